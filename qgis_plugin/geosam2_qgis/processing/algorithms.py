"""The three algorithms as Processing sees them: names, help, parameters. `runs` does the work."""

from qgis.core import (
    QgsProcessing,
    QgsProcessingAlgorithm,
    QgsProcessingException,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterEnum,
    QgsProcessingParameterExtent,
    QgsProcessingParameterFeatureSink,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
)

from ..core.i18n import tr

Number = QgsProcessingParameterNumber.Type


class Base(QgsProcessingAlgorithm):
    """What the algorithms share: the raster, the level, the model, the sink."""

    INPUT, RESOLUTION, PRESET, MIN_AREA = "INPUT", "RESOLUTION", "PRESET", "MIN_AREA"
    OUTPUT, COUNT = "OUTPUT", "COUNT"

    def createInstance(self):
        return type(self)()

    def helpUrl(self):
        return "https://github.com/geosam2/geosam2/blob/main/docs/qgis.md"

    def add_common(self):
        """Parameters that both segmenting algorithms have."""
        resolution = QgsProcessingParameterNumber(
            self.RESOLUTION,
            tr("Cell size in the raster's units (0: the raster's own)"),
            Number.Double,
            0.0,
            minValue=0.0,
        )
        preset = QgsProcessingParameterEnum(
            self.PRESET, tr("Model"), [tr("Rapid"), tr("High resolution")], defaultValue=0
        )
        area = QgsProcessingParameterNumber(
            self.MIN_AREA, tr("Smallest area in square metres"), Number.Double, 0.0, minValue=0.0
        )
        sink = QgsProcessingParameterFeatureSink(
            self.OUTPUT, tr("Objects"), QgsProcessing.SourceType.TypeVectorPolygon
        )
        for parameter in (resolution, preset, area, sink):
            self.addParameter(parameter)
        self.addOutput(QgsProcessingOutputNumber(self.COUNT, tr("Number of objects")))

    def prepareAlgorithm(self, parameters, context, feedback):
        """In the GUI thread: clone the layer, so that the background thread owns its copy."""
        from ..core import pixels

        layer = self.parameterAsRasterLayer(parameters, self.INPUT, context)
        if layer is None or not layer.isValid():
            raise QgsProcessingException(self.invalidRasterError(parameters, self.INPUT))
        self.layer, self.description = layer.clone(), pixels.describe(layer)
        if self.description is None:
            raise QgsProcessingException(
                tr("The raster {name} has no coordinate system or no extent.", name=layer.name())
            )
        self.crs = layer.crs()
        return True


class SegmentRaster(Base):
    """Everything on a raster, or on a part of it."""

    EXTENT = "EXTENT"

    def name(self):
        return "segmentraster"

    def displayName(self):
        return tr("Segment everything")

    def shortHelpString(self):
        return tr(
            "Finds every object of a raster layer or basemap and writes it as a polygon. Give an "
            "extent and a cell size for a basemap: it has no end. Cancelling keeps nothing in a "
            "temporary layer; write to a file to keep what was finished."
        )

    def initAlgorithm(self, configuration=None):
        self.addParameter(QgsProcessingParameterRasterLayer(self.INPUT, tr("Imagery")))
        self.addParameter(QgsProcessingParameterExtent(self.EXTENT, tr("Extent"), optional=True))
        self.add_common()

    def processAlgorithm(self, parameters, context, feedback):
        from . import runs

        return runs.everything(self, parameters, context, feedback)


class SegmentPrompts(Base):
    """One object per point or box of a vector layer."""

    PROMPTS, FOLLOW = "PROMPTS", "FOLLOW"

    def name(self):
        return "segmentpoints"

    def displayName(self):
        return tr("Segment from points or boxes")

    def shortHelpString(self):
        return tr(
            "Makes one polygon for each feature of a layer: a point (or the points of a multipoint) "
            "is a click, a polygon or line is taken as a box. Objects that reach the border of a "
            "frame are followed across the imagery if wanted."
        )

    def initAlgorithm(self, configuration=None):
        self.addParameter(QgsProcessingParameterRasterLayer(self.INPUT, tr("Imagery")))
        self.addParameter(
            QgsProcessingParameterFeatureSource(
                self.PROMPTS,
                tr("Points or boxes"),
                [QgsProcessing.SourceType.TypeVectorAnyGeometry],
            )
        )
        self.addParameter(
            QgsProcessingParameterBoolean(self.FOLLOW, tr("Follow across the map"), True)
        )
        self.add_common()

    def processAlgorithm(self, parameters, context, feedback):
        from . import runs

        return runs.from_prompts(self, parameters, context, feedback)


class EngineStatus(QgsProcessingAlgorithm):
    """Start the engine and say what it is."""

    STATUS = "STATUS"

    def name(self):
        return "enginestatus"

    def displayName(self):
        return tr("Engine status")

    def shortHelpString(self):
        return tr("Starts the engine and reports its version and device, or why it does not start.")

    def createInstance(self):
        return EngineStatus()

    def initAlgorithm(self, configuration=None):
        self.addOutput(QgsProcessingOutputString(self.STATUS, tr("Status")))

    def processAlgorithm(self, parameters, context, feedback):
        from . import runs

        return {self.STATUS: runs.status(feedback)}
