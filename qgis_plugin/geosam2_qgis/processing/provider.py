"""The provider "GeoSAM2"."""

from pathlib import Path

from qgis.core import QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from ..core.i18n import tr
from .algorithms import EngineStatus, SegmentPrompts, SegmentRaster, TrackDates


class Provider(QgsProcessingProvider):
    """Four algorithms: everything, from prompts, through dates, status."""

    def id(self):
        return "geosam2"

    def name(self):
        return "GeoSAM2"

    def longName(self):
        return tr("GeoSAM2: polygons from imagery")

    def icon(self):
        return QIcon(str(Path(__file__).parent.parent / "icons" / "geosam2.svg"))

    def loadAlgorithms(self):
        for algorithm in (SegmentRaster, SegmentPrompts, TrackDates, EngineStatus):
            self.addAlgorithm(algorithm())
