"""The four algorithms as Processing sees them: names, help, parameters. `runs` does the work."""

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
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
)

from ..core.i18n import tr

Number = QgsProcessingParameterNumber.Type


class Base(QgsProcessingAlgorithm):
    """What the algorithms share: imagery, the level, the model, the sink."""

    INPUT, PROMPTS, FOLLOW = "INPUT", "PROMPTS", "FOLLOW"
    RESOLUTION, PRESET, MIN_AREA = "RESOLUTION", "PRESET", "MIN_AREA"
    OUTPUT, COUNT = "OUTPUT", "COUNT"

    def createInstance(self):
        return type(self)()

    def helpUrl(self):
        return "https://github.com/geosam2/geosam2/blob/main/docs/qgis.md"

    def add_prompts(self):
        """What the algorithms have that are told where to look."""
        prompts = QgsProcessingParameterFeatureSource(
            self.PROMPTS,
            tr("Points or boxes"),
            [QgsProcessing.SourceType.TypeVectorAnyGeometry],
        )
        follow = QgsProcessingParameterBoolean(self.FOLLOW, tr("Follow across the map"), True)
        for parameter in (prompts, follow):
            self.addParameter(parameter)

    def add_sizes(self):
        """What the algorithms have that look at one raster."""
        resolution = QgsProcessingParameterNumber(
            self.RESOLUTION,
            tr("Cell size in the raster's units (0: the raster's own)"),
            Number.Double,
            0.0,
            minValue=0.0,
        )
        area = QgsProcessingParameterNumber(
            self.MIN_AREA, tr("Smallest area in square metres"), Number.Double, 0.0, minValue=0.0
        )
        for parameter in (resolution, area):
            self.addParameter(parameter)

    def add_common(self):
        """What all of them have."""
        preset = QgsProcessingParameterEnum(
            self.PRESET, tr("Model"), [tr("Rapid"), tr("High resolution")], defaultValue=0
        )
        sink = QgsProcessingParameterFeatureSink(
            self.OUTPUT, tr("Objects"), QgsProcessing.SourceType.TypeVectorPolygon
        )
        for parameter in (preset, sink):
            self.addParameter(parameter)
        self.addOutput(QgsProcessingOutputNumber(self.COUNT, tr("Number of objects")))

    def prepareAlgorithm(self, parameters, context, feedback):
        """In the GUI thread: clone the layers, so that the background thread owns its copies."""
        layers = self.imagery(parameters, context)
        if not layers or any(layer is None or not layer.isValid() for layer in layers):
            raise QgsProcessingException(self.invalidRasterError(parameters, self.INPUT))
        self.layers = [(layer.clone(), self.describe(layer)) for layer in layers]
        self.crs = layers[0].crs()
        return True

    def imagery(self, parameters, context):
        """The raster layers to look at."""
        return [self.parameterAsRasterLayer(parameters, self.INPUT, context)]

    def describe(self, layer):
        """What the engine has to know of a layer."""
        from ..core import pixels

        description = pixels.describe(layer)
        if description is None:
            raise QgsProcessingException(
                tr("The raster {name} has no coordinate system or no extent.", name=layer.name())
            )
        return description

    @property
    def description(self):
        """Of the raster; of the first one if there are many."""
        return self.layers[0][1]


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
        self.add_sizes()
        self.add_common()

    def processAlgorithm(self, parameters, context, feedback):
        from . import runs

        return runs.everything(self, parameters, context, feedback)


class SegmentPrompts(Base):
    """One object per point or box of a vector layer."""

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
        self.add_prompts()
        self.add_sizes()
        self.add_common()

    def processAlgorithm(self, parameters, context, feedback):
        from . import runs

        return runs.from_prompts(self, parameters, context, feedback)


class TrackDates(Base):
    """The objects of one date at all dates."""

    START = "START"

    def name(self):
        return "trackdates"

    def displayName(self):
        return tr("Follow objects through dates")

    def shortHelpString(self):
        return tr(
            "Looks for each object, pointed at on one date, on imagery of other dates, and writes a "
            "polygon for each object and date; without a geometry where it was not seen. The "
            "layers need one coordinate system and one grid of pixels. A layer's date is its "
            "fixed temporal range if it has one, else the date in its name, else its name."
        )

    def initAlgorithm(self, configuration=None):
        self.addParameter(
            QgsProcessingParameterMultipleLayers(
                self.INPUT,
                tr("Imagery, a layer for each date"),
                QgsProcessing.SourceType.TypeRaster,
            )
        )
        self.addParameter(
            QgsProcessingParameterRasterLayer(
                self.START,
                tr("Layer on which the points or boxes were made (default: the earliest)"),
                optional=True,
            )
        )
        self.add_prompts()
        self.add_common()

    def imagery(self, parameters, context):
        return self.parameterAsLayerList(parameters, self.INPUT, context)

    def prepareAlgorithm(self, parameters, context, feedback):
        super().prepareAlgorithm(parameters, context, feedback)
        from ..core import pixels

        layers = self.imagery(parameters, context)  # clones do not carry the temporal range
        self.dates = [pixels.date_of(layer) for layer in layers]
        start = self.parameterAsRasterLayer(parameters, self.START, context)
        sources = [layer.source() for layer in layers]
        if start is not None and start.source() not in sources:
            raise QgsProcessingException(
                tr("{name} is none of the layers of imagery.", name=start.name())
            )
        self.start = None if start is None else sources.index(start.source())
        return True

    def processAlgorithm(self, parameters, context, feedback):
        from . import runs

        return runs.through_dates(self, parameters, context, feedback)


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
