"""The dock. What is in it is made when it is first shown."""

from qgis.gui import QgsDockWidget
from qgis.PyQt.QtCore import pyqtSignal

from ..core.i18n import tr


class Dock(QgsDockWidget):
    """Dock widget "GeoSAM2"."""

    entered = pyqtSignal()
    """The mouse has come in: something is going to be pressed."""

    def __init__(self, parent=None):
        super().__init__(tr("GeoSAM2"), parent)
        self.setObjectName("geosam2Dock")
        self.wake = lambda: None  # called when the dock is shown; makes what lies behind it
        self.panel = None

    def showEvent(self, event):
        self.wake()
        super().showEvent(event)

    def enterEvent(self, event):
        self.entered.emit()
        super().enterEvent(event)

    def fill(self):
        """Make the panel, with QGIS's list of raster layers in it."""
        from qgis.core import QgsMapLayerProxyModel
        from qgis.gui import QgsMapLayerComboBox

        from .panel import Panel

        self.layer_box = QgsMapLayerComboBox()
        self.layer_box.setObjectName("geosam2Imagery")
        self.layer_box.setFilters(QgsMapLayerProxyModel.Filter.RasterLayer)
        self.layer_box.setAllowEmptyLayer(False)
        self.layer_box.setMinimumContentsLength(12)
        self.panel = Panel(self.layer_box, self)
        self.setWidget(self.panel)
