"""Connects session, dock, map tool, rubber bands, output and message bar."""

from pathlib import Path

from qgis.core import (
    Qgis,
    QgsApplication,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsCsException,
    QgsMessageLog,
    QgsProject,
    QgsProxyProgressTask,
    QgsRasterLayer,
)
from qgis.PyQt.QtCore import QObject, Qt
from qgis.PyQt.QtGui import QKeySequence
from qgis.PyQt.QtWidgets import QFileDialog, QPushButton

from ..compat import QShortcut
from ..core import output, pixels, settings
from ..core.i18n import tr
from ..core.session import BUSY, State
from ..core.trouble import Trouble
from .maptool import ClickTool, bounding_box
from .marks import Marks
from .panel import GEOPACKAGE, SCRATCH

TAG = "GeoSAM2"


class Controller(QObject):
    """Everything that happens when the user does something."""

    def __init__(self, iface, dock, session, open_setup):
        super().__init__(iface.mainWindow())
        self.iface, self.dock, self.panel, self.session = iface, dock, dock.panel, session
        self._open_setup = open_setup
        self.canvas = iface.mapCanvas()
        self.tool = ClickTool(self.canvas)
        self.marks = Marks(self.canvas)
        self._task = None
        self._scratch_id = None
        self._bars = []
        self.escape = QShortcut(QKeySequence(Qt.Key.Key_Escape), iface.mainWindow())
        self.escape.setObjectName("geosam2Escape")
        self.escape.setContext(Qt.ShortcutContext.WindowShortcut)
        self.escape.setEnabled(False)
        self._connect()
        self._load_choices()
        self._layers_changed()
        self._layer_chosen(dock.layer_box.currentLayer())

    # wiring ---------------------------------------------------------------------------------

    def _connect(self):
        session, project = self.session, QgsProject.instance()
        self._wires = [
            (self.tool.clicked, self._clicked),
            (self.tool.boxed, self._boxed),
            (self.tool.key, self.do),
            (self.tool.activated, self._tool_activated),
            (self.tool.deactivated, self._tool_deactivated),
            (self.panel.wanted, self.do),
            (self.panel.changed, self._choice),
            (self.dock.layer_box.layerChanged, self._layer_chosen),
            (self.dock.entered, session.warm_up),
            (self.escape.activated, session.escape),
            (session.state_changed, self._state_changed),
            (session.prompt_changed, self._prompt_changed),
            (session.shape_changed, self._shape_changed),
            (session.progress, self._progress),
            (session.finished, self._finished),
            (session.trouble, self.show_trouble),
            (session.missing, self._missing),
            (session.hint, self._hint),
            (session.loaded, self._model_loaded),
            (session.engine.starting, self._engine_starting),
            (session.engine.ready, self._engine_ready),
            (session.engine.stopped, self._engine_stopped),
            (project.layersAdded, self._layers_changed),
            (project.layersRemoved, self._layers_changed),
            (project.layersWillBeRemoved, self._layers_going),
        ]
        for signal, slot in self._wires:
            signal.connect(slot)

    def unload(self):
        """Undo everything: nothing stays on the canvas, and the engine ends."""
        self.session.reset()
        for signal, slot in self._wires:
            signal.disconnect(slot)
        self._watch_style(None)
        self._end_task()
        self._drop_bars()
        self.canvas.unsetMapTool(self.tool)
        self.tool.remove()
        self.marks.remove()
        self.escape.setEnabled(False)
        self.session.engine.stop()
        for thing in (self.escape, self.tool, self.session, self.session.engine, self):
            thing.deleteLater()

    def _load_choices(self):
        self.panel.choose(*(settings.get(n) for n in ("detail", "preset", "follow", "maxFrames")))
        self.session.follow = settings.get("follow")
        self.session.preset = settings.get("preset")
        self.session.max_frames = settings.get("maxFrames")

    def _choice(self, name, value):
        if name == "target":
            if value == GEOPACKAGE:
                self._ask_for_geopackage()
            return
        settings.put(name, value)
        attribute = {"maxFrames": "max_frames", "preset": "preset", "follow": "follow"}.get(name)
        if attribute:
            setattr(self.session, attribute, value)

    # layers ---------------------------------------------------------------------------------

    def _layer_chosen(self, layer):
        layer = layer if isinstance(layer, QgsRasterLayer) else None
        self.session.set_layer(layer)
        self._watch_style(layer)

    def _watch_style(self, layer):
        watched = getattr(self, "_watched", None)
        if watched is not None:
            try:
                watched.styleChanged.disconnect(self.session.style_changed)
                watched.dataSourceChanged.disconnect(self._source_changed)
            except (RuntimeError, TypeError):
                watched = None  # deleted with its layer
        self._watched = layer
        if layer is not None:
            layer.styleChanged.connect(self.session.style_changed)
            layer.dataSourceChanged.connect(self._source_changed)

    def _source_changed(self):
        layer = self.session.layer
        self.session.set_layer(None)
        self.session.set_layer(layer)

    def _layers_going(self, ids):
        if self.session.layer is not None and self.session.layer.id() in ids:
            self._watch_style(None)
            self.session.set_layer(None)

    def _layers_changed(self, _layers=None):
        layers = [(layer.name(), layer.id()) for layer in output.usable_layers()]
        self.panel.set_targets(sorted(layers))

    # the map --------------------------------------------------------------------------------

    def _tool_activated(self):
        self.panel.tool.setChecked(True)
        if self.session.resumable() and self.session.state is State.EMPTY:
            self._offer_resume()
        self.session.warm_up()

    def _tool_deactivated(self):
        self.panel.tool.setChecked(False)

    def _transform(self):
        return QgsCoordinateTransform(
            self.canvas.mapSettings().destinationCrs(),
            self.session.layer.crs(),
            QgsProject.instance(),
        )

    def _clicked(self, place, label):
        def add():
            there = self._transform().transform(place)
            self.session.add_point(there.x(), there.y(), label)

        self._with_layer(add)

    def _boxed(self, geometry):
        def add():
            geometry.transform(self._transform())
            self.session.set_box(*bounding_box(geometry))

        self._with_layer(add)

    def _with_layer(self, action):
        """Run a click's action; without imagery or outside the projection, say so."""
        if self.session.layer is None or self.session.description is None:
            self.session.add_point(0, 0, 1)  # makes the session explain
            return
        self._choose_level()
        try:
            action()
        except QgsCsException as error:
            message = tr("This place cannot be converted to the imagery's coordinate system.")
            self.show_trouble(Trouble("crs", message, "", str(error)))

    def _choose_level(self):
        """The level for the next prompt; a prompt that has begun keeps its level."""
        if self.session.points or self.session.box or self.session.state in BUSY:
            return
        detail = settings.get("detail")
        if detail == "auto":
            self.session.level = "auto"
        elif detail == "finest":
            self.session.level = 0
        else:
            cell = pixels.cell_on_layer(self.canvas.mapSettings(), self.session.layer)
            self.session.level = self.session.description.level_for(cell)

    # buttons and keys -------------------------------------------------------------------------

    def do(self, name):
        """What a button or key asks for."""
        actions = {
            "tool": self.toggle_tool,
            "accept": self.session.accept,
            "back": self.session.take_back,
            "alternative": self.session.next_alternative,
            "pause": self.session.toggle_pause,
            "cancel": self.session.cancel,
            "flag": self.flag_low,
            "refine": self.refine,
            "everything": self._everything,
            "setup": self._open_setup,
        }
        actions[name]()

    def toggle_tool(self):
        """Take the map tool, or give it back."""
        if self.canvas.mapTool() is self.tool:
            self.canvas.unsetMapTool(self.tool)
        else:
            self.dock.setUserVisible(True)
            self.canvas.setMapTool(self.tool)
            self.canvas.setFocus()

    def _everything(self):
        from qgis import processing  # only there in the full application

        parameters = {}
        if self.session.layer is not None:
            extent, crs = self.canvas.extent(), self.canvas.mapSettings().destinationCrs()
            corners = (extent.xMinimum(), extent.xMaximum(), extent.yMinimum(), extent.yMaximum())
            text = ",".join(f"{v:.12g}" for v in corners)
            parameters = {"INPUT": self.session.layer.id(), "EXTENT": f"{text} [{crs.authid()}]"}
        processing.execAlgorithmDialog("geosam2:segmentraster", parameters)

    # session --------------------------------------------------------------------------------

    def _state_changed(self, state):
        self.panel.set_state(state.value)
        self.panel.set_alternatives(self.session.alternatives if state is State.PREVIEW else 0)
        self._arm()
        if state in BUSY and self._task is None:
            self._task = QgsProxyProgressTask(tr("GeoSAM2 follows an object"))
            QgsApplication.taskManager().addTask(self._task)
        elif state not in BUSY:
            self._end_task()

    def _arm(self):
        """Esc is ours only while there is something to pause or to clear; likewise Take back."""
        marks = bool(self.session.points or self.session.box)
        self.escape.setEnabled(self.session.state is not State.EMPTY or marks)
        self.panel.set_back(marks and self.session.state not in BUSY)

    def _end_task(self):
        if self._task is not None:
            task, self._task = self._task, None
            task.finalize(True)

    def _prompt_changed(self):
        layer = self.session.layer
        if layer is None:
            self.marks.clear()
            return
        self.marks.show_prompt(self.session.points, self.session.box, layer.crs())
        self._arm()

    def _shape_changed(self, shape):
        layer = self.session.layer
        if shape is None or layer is None:
            self.marks.show_shape(None, QgsCoordinateReferenceSystem())
            self.panel.set_quality(None)
            return
        sketch = self.session.state is State.THINKING
        self.marks.show_shape(shape.geometry, layer.crs(), sketch)
        self.panel.set_quality(shape.figures, *self._thresholds())
        if self.session.state is State.PREVIEW:
            self.panel.set_alternatives(self.session.alternatives)

    def _thresholds(self):
        return settings.get("minScore"), settings.get("minStability")

    def _progress(self, done, waiting):
        self.panel.set_progress(done, waiting)
        if self._task is not None:
            self._task.setProxyProgress(100.0 * done / max(1, done + waiting))

    def _hint(self, text):
        self.panel.status.setText(text)

    # output ---------------------------------------------------------------------------------

    def _ask_for_geopackage(self):
        title, kinds = tr("New GeoPackage"), "GeoPackage (*.gpkg)"
        path, _ = QFileDialog.getSaveFileName(self.dock, title, "", kinds)
        self.use_geopackage(path)

    def use_geopackage(self, path):
        """Make a new GeoPackage and write there from now on."""
        if not path:
            self.panel.set_targets([], SCRATCH)
            self._layers_changed()
            return
        path = path if path.lower().endswith(".gpkg") else path + ".gpkg"
        crs = self.session.layer.crs() if self.session.layer else QgsProject.instance().crs()
        try:
            layer = output.geopackage_layer(crs, path, Path(path).stem)
        except output.OutputError as error:
            self.panel.target.setCurrentIndex(0)
            self.show_trouble(Trouble("output", str(error)))
            return
        self._layers_changed()
        self.panel.target.setCurrentIndex(self.panel.target.findData(layer.id()))

    def target_layer(self, crs):
        """The layer that results go to; made when it is first needed."""
        key = self.panel.target.currentData()
        if key not in (SCRATCH, GEOPACKAGE):
            layer = QgsProject.instance().mapLayer(key)
            if layer is not None:
                return layer
        layer = QgsProject.instance().mapLayer(self._scratch_id or "")
        if layer is None:
            raster = self.iface.activeLayer()
            layer = output.scratch_layer(crs, tr("GeoSAM2 objects"))
            self._scratch_id = layer.id()
            if raster is not None:
                self.iface.setActiveLayer(raster)
        return layer

    def _finished(self, result):
        crs = QgsCoordinateReferenceSystem(result.description.crs)
        layer_id, feature_id = result.subject or ("", None)
        layer = QgsProject.instance().mapLayer(layer_id)
        try:
            if layer is not None:
                ids = output.replace(layer, feature_id, result, crs, self._thresholds())
            else:
                layer = self.target_layer(crs)
                ids = output.add(layer, result, crs, self._thresholds())
        except output.OutputError as error:
            self.show_trouble(Trouble("output", str(error)))
            return
        self.panel.set_quality(result.shape.figures, *self._thresholds())
        area = output.ellipsoidal_area(result.shape.geometry, crs)
        text = tr("Added to {layer}: {area}.", layer=layer.name(), area=_area_text(area))
        if output.judge(result.shape.figures, *self._thresholds()) == output.LOW:
            text += " " + tr("Look at it again: low score, or cut at the edge.")
        self._hint(text)
        self.last_feature = (layer.id(), ids[0])

    def refine(self):
        """Reopen the selected object with the clicks that made it."""
        layer = self.iface.activeLayer()
        selected = layer.selectedFeatures() if output.is_usable(layer) else []
        prompt = output.stored_prompt(selected[0]) if len(selected) == 1 else None
        if prompt is None:
            message = tr("Select one object that GeoSAM2 made (its field prompt is needed).")
            self.show_trouble(Trouble("refine", message))
            return
        if self.session.description is None or prompt.get("crs") != self.session.description.crs:
            message = tr("Choose the imagery that the object was made from.")
            self.show_trouble(Trouble("refine", message))
            return
        self.session.reset()
        if self.canvas.mapTool() is not self.tool:
            self.toggle_tool()
        self._choose_level()
        layer.removeSelection()  # its yellow would hide the imagery and the preview
        self.session.load_prompt(prompt, (layer.id(), selected[0].id()))

    def flag_low(self, layer=None):
        """Mark and select the objects that should be looked at."""
        layer = layer or self.iface.activeLayer()
        if not output.is_usable(layer):
            self.show_trouble(Trouble("flag", tr("Choose a polygon layer in the layer list.")))
            return
        try:
            low = output.flag_low(layer, *self._thresholds())
        except output.OutputError as error:
            self.show_trouble(Trouble("flag", str(error)))
            return
        text = tr("{count} objects to look at are selected.", count=len(low))
        self.iface.messageBar().pushMessage(TAG, text, Qgis.MessageLevel.Info, 6)

    # messages -------------------------------------------------------------------------------

    def show_trouble(self, trouble):
        """One line in the message bar that stays until it is closed; details in the log."""
        log = "\n".join(filter(None, (trouble.sentence(), trouble.detail)))
        QgsMessageLog.logMessage(log, TAG, Qgis.MessageLevel.Warning)
        buttons = []
        if trouble.kind in ("engine_missing", "engine_start", "engine_version"):
            buttons.append((tr("Set up..."), self._open_setup))
        if trouble.detail:
            buttons.append((tr("Details"), self._show_log))
        if trouble.kind == "engine_died" and self.session.resumable():
            buttons.append((tr("Resume the run"), self.session.resume_run))
        level = (
            Qgis.MessageLevel.Critical if trouble.kind != "prompt" else Qgis.MessageLevel.Warning
        )
        self._bar(trouble.sentence(), level, buttons)

    def _missing(self, share):
        text = tr(
            "{percent} % of a window has no imagery. Nothing was written.",
            percent=round(100 * share),
        )
        buttons = [
            (tr("Try again"), self.session.retry),
            (tr("Use what is there"), self.session.use_anyway),
            (tr("Stop"), self.session.cancel),
        ]
        QgsMessageLog.logMessage(text, TAG, Qgis.MessageLevel.Warning)
        self._bar(text, Qgis.MessageLevel.Warning, buttons)

    def _offer_resume(self):
        text = tr("A run on this imagery was interrupted.")
        self._bar(text, Qgis.MessageLevel.Info, [(tr("Resume the run"), self.session.resume_run)])

    def _bar(self, text, level, buttons):
        self._drop_bars()
        bar = self.iface.messageBar()
        widget = bar.createMessage(TAG, text)
        for number, (label, action) in enumerate(buttons):
            button = QPushButton(label)
            button.setObjectName(f"geosam2Bar{number}")
            button.clicked.connect(lambda _=False, a=action, w=widget: self._from_bar(a, w))
            widget.layout().addWidget(button)
        bar.pushWidget(widget, level)
        self._bars.append(widget)

    def _from_bar(self, action, widget):
        self._drop_bars()
        action()

    def _drop_bars(self):
        """Only the latest message of ours stays: old ones would offer buttons that lead nowhere."""
        widgets, self._bars = self._bars, []
        for widget in widgets:
            try:
                self.iface.messageBar().popWidget(widget)
            except RuntimeError:
                continue  # the user has closed it

    def _show_log(self):
        self.iface.openMessageLog()

    def _engine_starting(self):
        self.panel.set_engine(tr("The engine is starting..."))

    def _engine_ready(self, header):
        text = tr("Engine {version}: loading the model...", version=header.get("version", "?"))
        self.panel.set_engine(text)

    def _model_loaded(self, header):
        names = {"model": header.get("model", "?"), "device": header.get("device", "?")}
        self.panel.set_engine(tr("Engine: model {model} on {device}", **names))

    def _engine_stopped(self):
        self.panel.set_engine("")


def _area_text(area):
    if area >= 1e6:
        return f"{area / 1e6:,.2f} km²"
    if area >= 1e4:
        return f"{area / 1e4:,.2f} ha"
    return f"{area:,.1f} m²"
