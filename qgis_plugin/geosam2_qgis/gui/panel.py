"""The dock's content. Only Qt is needed here: QGIS's own widgets are handed in.

It shows what it is told and says what the user wants; it decides nothing.
"""

from qgis.PyQt.QtCore import Qt, pyqtSignal
from qgis.PyQt.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFormLayout,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from ..core.i18n import tr

SCRATCH, GEOPACKAGE = "scratch", "geopackage"


class Panel(QWidget):
    """All controls of the plugin, top to bottom in the order of use."""

    wanted = pyqtSignal(str)
    """A button: tool, accept, back, alternative, pause, cancel, flag, refine, everything, setup."""
    changed = pyqtSignal(str, object)
    """A choice: detail, preset, follow, maxFrames, target."""

    def __init__(self, layer_box, parent=None):
        super().__init__(parent)
        self.layer_box = layer_box
        outer, inner = QVBoxLayout(self), QWidget()
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QScrollArea.Shape.NoFrame)
        scroll.setWidget(inner)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(scroll)
        column = QVBoxLayout(inner)
        column.addLayout(self._choices())
        column.addLayout(self._buttons())
        column.addLayout(self._display())
        column.addStretch(1)
        column.addLayout(self._more())
        self.set_state("empty")
        # as wide as its widest row: nothing is cut off, whatever the language
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        bar = scroll.verticalScrollBar().sizeHint().width()
        scroll.setMinimumWidth(inner.minimumSizeHint().width() + bar)

    # building -------------------------------------------------------------------------------

    def _choices(self):
        form = QFormLayout()
        form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self.detail = self._combo("detail")
        self.detail.addItem(tr("As on the screen"), "view")
        self.detail.addItem(tr("Automatic"), "auto")
        self.detail.addItem(tr("Finest"), "finest")
        self.preset = self._combo("preset")
        self.preset.addItem(tr("Rapid"), "rapid")
        self.preset.addItem(tr("High resolution"), "high-res")
        self.follow = QCheckBox(tr("Follow across the map"))
        self.follow.setObjectName("geosam2Follow")
        self.follow.setToolTip(tr("Objects that reach the border of the frame are followed."))
        self.follow.toggled.connect(lambda on: self.changed.emit("follow", on))
        self.frames = QSpinBox()
        self.frames.setEnabled(False)
        self.follow.toggled.connect(self.frames.setEnabled)
        self.frames.setObjectName("geosam2Frames")
        self.frames.setRange(1, 5000)
        self.frames.setSuffix(" " + tr("frames at most"))
        self.frames.valueChanged.connect(lambda n: self.changed.emit("maxFrames", n))
        self.target = self._combo("target")
        self.set_targets([])
        form.addRow(_label(tr("&Imagery"), self.layer_box), self.layer_box)
        form.addRow(_label(tr("&Detail"), self.detail), self.detail)
        form.addRow(_label(tr("&Model"), self.preset), self.preset)
        form.addRow(self.follow)
        form.addRow("", self.frames)
        form.addRow(_label(tr("&Output"), self.target), self.target)
        return form

    def _combo(self, name):
        box = QComboBox()
        box.setObjectName("geosam2" + name.capitalize())
        box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        box.setMinimumContentsLength(12)
        box.activated.connect(lambda _: self.changed.emit(name, box.currentData()))
        return box

    def _buttons(self):
        grid = QGridLayout()
        self.tool = self._button("tool", tr("&Click on the map"))
        self.tool.setCheckable(True)
        self.tool.setToolTip(
            tr("Left click includes, right click excludes, drag draws a box, Enter accepts.")
        )
        self.accept = self._button("accept", tr("&Accept (Enter)"))
        self.accept.setToolTip(tr("Write the object into the output layer, once there is one."))
        self.back = self._button("back", tr("Take &back"))
        self.back.setToolTip(tr("Remove the last point or box (Backspace)."))
        self.alternative = self._button("alternative", tr("O&ther shape"))
        self.alternative.setToolTip(
            tr("Show another reading of a single click (A); more clicks leave no choice.")
        )
        self.pause = self._button("pause", tr("&Pause (Esc)"))
        self.pause.setToolTip(tr("While an object is followed: pause and go on (Esc)."))
        self.cancel = self._button("cancel", tr("Ca&ncel"))
        grid.addWidget(self.tool, 0, 0, 1, 2)
        grid.addWidget(self.accept, 1, 0)
        grid.addWidget(self.alternative, 1, 1)
        grid.addWidget(self.back, 2, 0)
        grid.addWidget(self.cancel, 2, 1)
        grid.addWidget(self.pause, 3, 0, 1, 2)
        return grid

    def _button(self, name, text):
        button = QPushButton(text)
        button.setObjectName("geosam2" + name.capitalize())
        button.setSizePolicy(QSizePolicy.Policy.MinimumExpanding, QSizePolicy.Policy.Fixed)
        button.clicked.connect(lambda: self.wanted.emit(name))
        return button

    def _display(self):
        column = QVBoxLayout()
        self.status = QLabel()
        self.status.setObjectName("geosam2Status")
        self.status.setWordWrap(True)
        self.progress = QProgressBar()
        self.progress.setObjectName("geosam2Progress")
        self.progress.setTextVisible(True)
        self.progress.hide()
        self.quality = QLabel()
        self.quality.setObjectName("geosam2Quality")
        self.quality.setWordWrap(True)
        self.quality.setTextFormat(Qt.TextFormat.RichText)
        for widget in (self.status, self.progress, self.quality):
            column.addWidget(widget)
        return column

    def _more(self):
        column, row = QVBoxLayout(), QHBoxLayout()
        self.refine = self._button("refine", tr("Refine &selected"))
        self.refine.setToolTip(tr("Load the clicks of the selected object and change them."))
        self.flag = self._button("flag", tr("&Flag low quality"))
        self.flag.setToolTip(tr("Mark and select the objects that should be looked at."))
        row.addWidget(self.refine)
        row.addWidget(self.flag)
        self.everything = self._button("everything", tr("&Everything on the screen..."))
        self.engine = QLabel()
        self.engine.setObjectName("geosam2Engine")
        self.engine.setWordWrap(True)
        self.setup = self._button("setup", tr("Set &up the engine..."))
        column.addLayout(row)
        column.addWidget(self.everything)
        column.addWidget(self.engine)
        column.addWidget(self.setup)
        return column

    # showing --------------------------------------------------------------------------------

    def set_state(self, state):
        """Enable what makes sense in a state (value of session.State)."""
        busy = state in ("following", "paused")
        self.accept.setEnabled(state != "empty")
        self.set_back(False)
        self.pause.setEnabled(busy)
        self.cancel.setEnabled(state != "empty")
        self.alternative.setEnabled(False)
        self.layer_box.setEnabled(not busy)
        self.preset.setEnabled(not busy)
        paused = state == "paused"
        self.pause.setText(tr("&Resume (Esc)") if paused else tr("&Pause (Esc)"))
        self.progress.setVisible(busy)
        texts = {
            "empty": tr("Click inside an object on the map."),
            "thinking": tr("Looking..."),
            "preview": tr("Enter accepts; more clicks correct."),
            "following": tr("Following the object..."),
            "paused": tr("Paused: click to correct, Esc to go on, Enter to accept."),
        }
        self.status.setText(texts[state])

    def set_progress(self, done, waiting):
        """Frames looked at and frames waiting."""
        self.progress.setMaximum(max(1, done + waiting))
        self.progress.setValue(done)
        self.progress.setFormat(tr("{done} frames, {waiting} waiting", done=done, waiting=waiting))

    def set_back(self, possible):
        """Is there a point or box that can be taken back?"""
        self.back.setEnabled(possible)

    def set_alternatives(self, count):
        """How many shapes there are to choose from."""
        self.alternative.setEnabled(count > 1)

    def set_quality(self, figures, min_score=0.0, min_stability=0.0):
        """Show the figures of an object; None clears them."""
        if figures is None:
            self.quality.clear()
            return
        rows = [
            _row(
                tr("Score"), f"{figures.get('score', 0):.2f}", figures.get("score", 0) >= min_score
            ),
            _row(
                tr("Stability"),
                f"{figures.get('stability', 0):.2f}",
                figures.get("stability", 0) >= min_stability,
            ),
            _row(
                tr("Open edges"),
                str(figures.get("open_edges", 0)),
                not figures.get("open_edges", 0),
            ),
        ]
        self.quality.setText("<table>" + "".join(rows) + "</table>")

    def set_engine(self, text):
        """One line about the engine."""
        self.engine.setText(text)

    def set_targets(self, layers, current=None):
        """Fill the output list: [(name, key), ...] of existing layers."""
        current = current if current is not None else self.target.currentData()
        self.target.clear()
        self.target.addItem(tr("New scratch layer"), SCRATCH)
        self.target.addItem(tr("New GeoPackage..."), GEOPACKAGE)
        for name, key in layers:
            self.target.addItem(name, key)
        self.target.setCurrentIndex(max(0, self.target.findData(current)))

    def choose(self, detail, preset, follow, frames):
        """Set the controls without announcing it."""
        for widget in (self.detail, self.preset, self.follow, self.frames):
            widget.blockSignals(True)
        self.detail.setCurrentIndex(max(0, self.detail.findData(detail)))
        self.preset.setCurrentIndex(max(0, self.preset.findData(preset)))
        self.follow.setChecked(follow)
        self.frames.setEnabled(follow)
        self.frames.setValue(frames)
        for widget in (self.detail, self.preset, self.follow, self.frames):
            widget.blockSignals(False)


def _label(text, buddy):
    label = QLabel(text)
    label.setBuddy(buddy)
    return label


def _row(name, value, good):
    """Colour is never the only sign, and both colours are readable on light and dark themes."""
    sign, colour = ("✓", "#2e9e4f") if good else ("⚠", "#d9822b")
    return (
        f"<tr><td>{name}&nbsp;&nbsp;</td><td align='right'><b>{value}</b></td>"
        f"<td>&nbsp;<span style='color:{colour}'>{sign}</span></td></tr>"
    )
