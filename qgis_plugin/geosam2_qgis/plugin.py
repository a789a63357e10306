"""Wiring: what `initGui` registers, `unload` takes back in reverse order."""

from pathlib import Path

from qgis.core import QgsApplication, QgsNetworkAccessManager, QgsSettings
from qgis.PyQt.QtCore import QCoreApplication, Qt, QUrl
from qgis.PyQt.QtGui import QDesktopServices, QIcon

from .compat import QAction, vector_layer_type
from .core import settings
from .core.engine import Engine
from .core.i18n import install_translator, tr
from .core.session import Session
from .processing.provider import Provider

HERE = Path(__file__).parent
MENU = "GeoSAM2"


class GeoSAM2Plugin:
    """The plugin as QGIS sees it."""

    def __init__(self, iface):
        self.iface = iface
        self.provider = None
        self.controller = None
        self._undo = []
        self._dialog = None
        locale = QgsSettings().value("locale/userLocale", "en", type=str)
        self._translator = install_translator(locale)

    def initProcessing(self):
        """Also called by qgis_process, where there is no window."""
        self.provider = Provider()
        QgsApplication.processingRegistry().addProvider(self.provider)

    def initGui(self):
        """Build everything that is visible."""
        from .gui.controller import Controller
        from .gui.dock import Dock
        from .gui.options import OptionsFactory

        self.initProcessing()
        window = self.iface.mainWindow()
        self.engine = Engine(settings.find_engine, window)
        self.session = Session(self.engine, window)
        self.dock = Dock(window)
        self.iface.addDockWidget(Qt.DockWidgetArea.RightDockWidgetArea, self.dock)
        self.dock.hide()
        self.controller = Controller(self.iface, self.dock, self.session, self.open_setup)
        self._add_actions(window)
        self.options = OptionsFactory(self.engine.stop)
        self.iface.registerOptionsWidgetFactory(self.options)
        self._undo.append(lambda: self.iface.unregisterOptionsWidgetFactory(self.options))

    def _add_actions(self, window):
        self.toolbar = self.iface.addToolBar("GeoSAM2")
        self.toolbar.setObjectName("geosam2Toolbar")
        icon = QIcon(str(HERE / "icons" / "geosam2.svg"))
        self.tool_action = self._action(
            window, "Tool", icon, tr("Segment by clicking"), self.controller.toggle_tool
        )
        self.tool_action.setCheckable(True)
        self.controller.tool.setAction(self.tool_action)
        self.toolbar.addAction(self.tool_action)
        toggle = self.dock.toggleViewAction()
        toggle.setText(tr("GeoSAM2 panel"))
        others = [
            toggle,
            self._action(
                window, "Everything", QIcon(), tr("Segment everything..."), self._everything
            ),
            self._action(window, "Engine", QIcon(), tr("Set up the engine..."), self.open_setup),
            self._action(window, "Help", QIcon(), tr("Help"), self.open_help),
        ]
        for action in (self.tool_action, *others):
            self.iface.addPluginToRasterMenu(MENU, action)
            self._undo.append(lambda a=action: self.iface.removePluginRasterMenu(MENU, a))
        self._add_layer_action(window)

    def _add_layer_action(self, window):
        """In the context menu of vector layers in the layer tree."""
        flag = self._action(
            window,
            "Flag",
            QIcon(),
            tr("Flag GeoSAM2 objects of low quality"),
            self.controller.flag_low,
        )
        self.iface.addCustomActionForLayerType(flag, "", vector_layer_type(), True)
        self._undo.append(lambda: self.iface.removeCustomActionForLayerType(flag))

    def _action(self, window, name, icon, text, slot):
        action = QAction(icon, text, window)
        action.setObjectName(f"geosam2{name}Action")
        action.triggered.connect(lambda _=False: slot())
        self._undo.append(action.deleteLater)
        return action

    def unload(self):
        """Leave QGIS as it was found; the engine ends with us."""
        if self.controller is not None:
            self.controller.unload()
            self.controller = None
            self.engine.stop()
            for undo in reversed(self._undo):
                undo()
            self._undo = []
            self.iface.removeDockWidget(self.dock)
            for thing in (self.dock, self.toolbar, self.session, self.engine):
                thing.deleteLater()
        if self._dialog is not None:
            self._dialog.close()
            self._dialog.deleteLater()
            self._dialog = None
        if self.provider is not None:
            QgsApplication.processingRegistry().removeProvider(self.provider)
            self.provider = None
        if self._translator is not None:
            QCoreApplication.removeTranslator(self._translator)

    def _everything(self):
        self.controller.do("everything")

    def open_help(self):
        """The help page that comes with the plugin."""
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(HERE / "help" / "index.html")))

    def open_setup(self):
        """Show the set-up window."""
        from .gui.setup_dialog import SetupDialog

        if self._dialog is None:
            window = self.iface.mainWindow()
            self._dialog = SetupDialog(self._plan, self._setup_done, window)
        self._dialog.show()
        self._dialog.raise_()

    def _plan(self, wheels, cpu_only):
        from .core.setup import Plan

        return Plan(
            settings.engine_folder(), settings.get("packages"), wheels, cpu_only, _proxy_of_qgis()
        )

    def _setup_done(self, worked):
        if worked:
            self.engine.stop()  # the next click starts the new one
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
