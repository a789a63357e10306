"""Wiring: what `initGui` registers, `unload` takes back in reverse order.

Only what QGIS must know at its start is made there; the rest (`Controller` and all behind it) when
the tool, the panel or a menu entry is used for the first time.
"""

from pathlib import Path

from qgis.core import QgsApplication, QgsNetworkAccessManager, QgsSettings
from qgis.gui import QgsOptionsWidgetFactory
from qgis.PyQt.QtCore import QCoreApplication, Qt, QUrl
from qgis.PyQt.QtGui import QDesktopServices, QIcon

from .compat import QAction, vector_layer_type
from .core.i18n import install_translator, tr
from .gui.dock import Dock

HERE = Path(__file__).parent
ICON = str(HERE / "icons" / "geosam2.svg")
MENU = "GeoSAM2"


class OptionsFactory(QgsOptionsWidgetFactory):
    """Makes the page in Settings > Options."""

    def __init__(self, changed):
        super().__init__()
        self._changed = changed
        self.setTitle("GeoSAM2")

    def icon(self):
        return QIcon(ICON)

    def createWidget(self, parent):
        from .gui.options import OptionsPage

        return OptionsPage(self._changed, parent)


class GeoSAM2Plugin:
    """The plugin as QGIS sees it."""

    def __init__(self, iface):
        self.iface = iface
        self.provider = None
        self._controller = None
        self._undo = []
        self._dialog = None
        locale = QgsSettings().value("locale/userLocale", "en", type=str)
        self._translator = install_translator(locale)

    def initProcessing(self):
        """Also called by qgis_process, where there is no window."""
        from .processing.provider import Provider

        self.provider = Provider()
        QgsApplication.processingRegistry().addProvider(self.provider)

    def initGui(self):
        """Build what is visible at the start."""
        self.initProcessing()
        window = self.iface.mainWindow()
        self.dock = Dock(window)
        self.iface.addDockWidget(Qt.DockWidgetArea.RightDockWidgetArea, self.dock)
        self.dock.hide()  # QGIS shows it again if it was open when QGIS was left
        self.dock.wake = lambda: self.controller
        self._add_actions(window)
        self.options = OptionsFactory(self._stop_engine)
        self.iface.registerOptionsWidgetFactory(self.options)
        self._undo.append(lambda: self.iface.unregisterOptionsWidgetFactory(self.options))

    @property
    def controller(self):
        """What acts on clicks, keys and buttons; made when it is first needed."""
        if self._controller is None:
            from .core import settings
            from .core.engine import Engine
            from .core.session import Session
            from .gui.controller import Controller

            window = self.iface.mainWindow()
            engine = Engine(settings.find_engine, window)
            self.dock.fill()
            self._controller = Controller(
                self.iface, self.dock, Session(engine, window), self.open_setup
            )
            self._controller.tool.setAction(self.tool_action)
        return self._controller

    @property
    def session(self):
        """The session of the controller."""
        return self.controller.session

    @property
    def engine(self):
        """The engine of the session."""
        return self.session.engine

    def _add_actions(self, window):
        self.toolbar = self.iface.addToolBar("GeoSAM2")
        self.toolbar.setObjectName("geosam2Toolbar")
        self.tool_action = self._action(window, "Tool", tr("Segment by clicking"), "tool")
        self.tool_action.setIcon(QIcon(ICON))
        self.tool_action.setCheckable(True)
        self.toolbar.addAction(self.tool_action)
        panel = self.dock.toggleViewAction()
        panel.setText(tr("GeoSAM2 panel"))
        help_action = self._action(window, "Help", tr("Help"))
        help_action.triggered.connect(lambda _=False: self.open_help())
        entries = (
            self.tool_action,
            panel,
            self._action(window, "Everything", tr("Segment everything..."), "everything"),
            self._action(window, "Engine", tr("Set up the engine..."), "setup"),
            help_action,
        )
        for action in entries:
            self.iface.addPluginToRasterMenu(MENU, action)
            self._undo.append(lambda a=action: self.iface.removePluginRasterMenu(MENU, a))
        # in the context menu of vector layers in the layer tree
        flag = self._action(window, "Flag", tr("Flag GeoSAM2 objects of low quality"), "flag")
        self.iface.addCustomActionForLayerType(flag, "", vector_layer_type(), True)
        self._undo.append(lambda: self.iface.removeCustomActionForLayerType(flag))

    def _action(self, window, name, text, wanted=None):
        """An action; `wanted` names what the controller shall do."""
        action = QAction(text, window)
        action.setObjectName(f"geosam2{name}Action")
        if wanted:
            action.triggered.connect(lambda _=False: self.controller.do(wanted))
        self._undo.append(action.deleteLater)
        return action

    def unload(self):
        """Leave QGIS as it was found; the engine ends with us."""
        if self._controller is not None:
            self._controller.unload()
            self._controller = None
        if self._dialog is not None:
            self._dialog.close()
            self._dialog.deleteLater()
            self._dialog = None
        if self._undo:
            for undo in reversed(self._undo):
                undo()
            self._undo = []
            self.iface.removeDockWidget(self.dock)
            self.dock.deleteLater()
            self.toolbar.deleteLater()
        if self.provider is not None:
            QgsApplication.processingRegistry().removeProvider(self.provider)
            self.provider = None
        if self._translator is not None:
            QCoreApplication.removeTranslator(self._translator)

    def _stop_engine(self):
        """The next click starts it anew, with the settings of then."""
        if self._controller is not None:
            self.engine.stop()

    def open_help(self):
        """The help page that comes with the plugin."""
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(HERE / "help" / "index.html")))

    def open_setup(self):
        """Show the set-up window."""
        from .gui.setup_dialog import SetupDialog

        if self._dialog is None:
            self._dialog = SetupDialog(self._plan, self._setup_done, self.iface.mainWindow())
        self._dialog.show()
        self._dialog.raise_()

    def _plan(self, wheels, cpu_only):
        from .core import settings
        from .core.setup import Plan

        return Plan(
            settings.engine_folder(), settings.get("packages"), wheels, cpu_only, _proxy_of_qgis()
        )

    def _setup_done(self, worked):
        if worked:
            self._stop_engine()
            self.controller.panel.set_engine(tr("The engine is ready."))


def _proxy_of_qgis():
    """QGIS's proxy as a URL for pip, or "" if there is none."""
    proxy = QgsNetworkAccessManager.instance().fallbackProxy()
    if not proxy.hostName():
        return ""
    login = ""
    if proxy.user():
        quote = QUrl.toPercentEncoding
        login = f"{bytes(quote(proxy.user())).decode()}:{bytes(quote(proxy.password())).decode()}@"
    return f"http://{login}{proxy.hostName()}:{proxy.port()}"
