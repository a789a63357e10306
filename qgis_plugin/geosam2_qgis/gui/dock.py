"""The dock: the panel with QGIS's layer list in it."""

from qgis.core import QgsMapLayerProxyModel
from qgis.gui import QgsDockWidget, QgsMapLayerComboBox

from ..core.i18n import tr
from .panel import Panel


class Dock(QgsDockWidget):
    """Dock widget "GeoSAM2"."""

    def __init__(self, parent=None):
        super().__init__(tr("GeoSAM2"), parent)
        self.setObjectName("geosam2Dock")
        self.layer_box = QgsMapLayerComboBox()
        self.layer_box.setObjectName("geosam2Imagery")
        self.layer_box.setFilters(QgsMapLayerProxyModel.Filter.RasterLayer)
        self.layer_box.setAllowEmptyLayer(False)
        self.layer_box.setMinimumContentsLength(12)
        self.panel = Panel(self.layer_box, self)
        self.setWidget(self.panel)
