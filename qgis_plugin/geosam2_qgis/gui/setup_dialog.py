"""The window that sets up the engine: says the size first, shows the log, can be stopped."""

from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtGui import QFontDatabase, QGuiApplication
from qgis.PyQt.QtWidgets import (
    QCheckBox,
    QDialog,
    QDialogButtonBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QVBoxLayout,
)

from ..core.i18n import tr
from ..core.setup import Setup, expected_size


class SetupDialog(QDialog):
    """Not modal: QGIS stays usable while pip downloads.

    Args:
        make_plan: (wheels folder, cpu_only) -> Plan.
        finished: Called with True when the engine is ready.
    """

    def __init__(self, make_plan, finished, parent=None):
        super().__init__(parent)
        self._make_plan, self._finished = make_plan, finished
        self.setup = None
        self.setObjectName("geosam2Setup")
        self.setWindowTitle(tr("Set up the GeoSAM2 engine"))
        self.setModal(False)
        self.resize(640, 460)
        self._build()
        self._update_size()

    def _build(self):
        column = QVBoxLayout(self)
        self.text = QLabel(
            tr(
                "The network runs in its own Python, outside QGIS. This makes a folder with that "
                "Python's packages; delete the folder to remove everything."
            )
        )
        self.text.setWordWrap(True)
        self.size = QLabel()
        self.size.setWordWrap(True)
        self.cpu = QCheckBox(tr("Without CUDA (smaller; for computers without an NVIDIA card)"))
        self.cpu.setChecked(True)
        self.cpu.toggled.connect(self._update_size)
        self.wheels = QLineEdit()
        self.wheels.setPlaceholderText(
            tr("Folder of wheels, to install without a network (optional)")
        )
        self.wheels.textChanged.connect(self._update_size)
        browse = QPushButton(tr("Browse..."))
        browse.clicked.connect(self._browse)
        row = QHBoxLayout()
        row.addWidget(self.wheels)
        row.addWidget(browse)
        self.progress = QProgressBar()
        self.progress.hide()
        self.log = QPlainTextEdit()
        self.log.setReadOnly(True)
        self.log.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        self.result = QLabel()
        self.result.setWordWrap(True)
        self.result.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        for widget in (self.text, self.size, self.cpu):
            column.addWidget(widget)
        column.addLayout(row)
        for widget in (self.progress, self.log, self.result):
            column.addWidget(widget)
        self.buttons = QDialogButtonBox()
        role = QDialogButtonBox.ButtonRole
        self.start = self.buttons.addButton(tr("Start"), role.AcceptRole)
        self.stop = self.buttons.addButton(tr("Stop"), role.ActionRole)
        self.copy = self.buttons.addButton(tr("Copy report"), role.ActionRole)
        self.close_button = self.buttons.addButton(tr("Close"), role.RejectRole)
        self.start.clicked.connect(self.begin)
        self.stop.clicked.connect(lambda: self.setup and self.setup.cancel())
        self.copy.clicked.connect(self.copy_report)
        self.close_button.clicked.connect(self.close)
        self.stop.setEnabled(False)
        self.copy.setEnabled(False)
        column.addWidget(self.buttons)

    def _update_size(self):
        self.size.setText(expected_size(self.cpu.isChecked(), bool(self.wheels.text())))

    def _browse(self):
        folder = QFileDialog.getExistingDirectory(self, tr("Folder of wheels"))
        if folder:
            self.wheels.setText(folder)

    def begin(self):
        """Start, or go on."""
        self.setup = Setup(self._make_plan(self.wheels.text(), self.cpu.isChecked()), self)
        self.setup.line.connect(self.log.appendPlainText)
        self.setup.step_started.connect(self._step)
        self.setup.done.connect(self._done)
        self._set_running(True)
        self.result.clear()
        self.setup.start()

    def _set_running(self, running):
        for widget in (self.start, self.cpu, self.wheels):
            widget.setEnabled(not running)
        self.stop.setEnabled(running)
        self.copy.setEnabled(True)
        self.progress.setVisible(running)

    def _step(self, number, count, title):
        self.progress.setRange(0, count)
        self.progress.setValue(number - 1)
        self.progress.setFormat(f"{number}/{count} {title}")

    def _done(self, worked, sentence):
        self._set_running(False)
        self.result.setText(sentence)
        self._finished(worked)

    def copy_report(self):
        """Put the whole log on the clipboard."""
        if self.setup is not None:
            QGuiApplication.clipboard().setText(self.setup.report())

    def closeEvent(self, event):
        if self.setup is not None and self.setup.running:
            self.setup.cancel()
        super().closeEvent(event)
