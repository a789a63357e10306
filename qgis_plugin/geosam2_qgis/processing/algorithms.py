"""The three algorithms."""

import json
from datetime import datetime, timezone

from qgis.core import (
    QgsCoordinateTransform,
    QgsFeature,
    QgsFeatureSink,
    QgsFields,
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
    QgsProject,
    QgsWkbTypes,
)

from ..core import output, pixels, settings
from ..core.i18n import tr
from .client import Client, Stopped, objects

PRESETS = ("rapid", "high-res")
Number = QgsProcessingParameterNumber.Type


class Base(QgsProcessingAlgorithm):
    """What the algorithms share: the raster, the level, the model, the sink."""

    INPUT, RESOLUTION, PRESET, MIN_AREA, OUTPUT = (
        "INPUT",
        "RESOLUTION",
        "PRESET",
        "MIN_AREA",
        "OUTPUT",
    )
    COUNT = "COUNT"

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
        self.addParameter(resolution)
        self.addParameter(preset)
        area = QgsProcessingParameterNumber(
            self.MIN_AREA, tr("Smallest area in square metres"), Number.Double, 0.0, minValue=0.0
        )
        self.addParameter(area)
        self.addParameter(
            QgsProcessingParameterFeatureSink(
                self.OUTPUT, tr("Objects"), QgsProcessing.SourceType.TypeVectorPolygon
            )
        )
        self.addOutput(QgsProcessingOutputNumber(self.COUNT, tr("Number of objects")))

    def prepareAlgorithm(self, parameters, context, feedback):
        """In the GUI thread: clone the layer, so that the background thread owns its copy."""
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

    def level(self, parameters, context):
        """The level nearest to the wanted cell size."""
        cell = self.parameterAsDouble(parameters, self.RESOLUTION, context)
        return self.description.level_for(cell) if cell > 0 else 0

    def open(self, client, parameters, context):
        """Load the model and open the raster."""
        preset = PRESETS[self.parameterAsEnum(parameters, self.PRESET, context)]
        client.call("load_model", model=preset, device=settings.get("device") or None)
        client.call("open", scene=self.description.message())

    def sink(self, parameters, context):
        """(sink, id, fields) of the output layer."""
        fields = QgsFields()
        for item in output.new_fields():
            fields.append(item)
        sink, name = self.parameterAsSink(
            parameters, self.OUTPUT, context, fields, QgsWkbTypes.Type.MultiPolygon, self.crs
        )
        if sink is None:
            raise QgsProcessingException(self.invalidSinkError(parameters, self.OUTPUT))
        return sink, name, fields

    def feature(self, fields, number, shape, prompt):
        """A feature of the sink, and its area in square metres."""
        area = output.ellipsoidal_area(shape.geometry, self.crs)
        figures = shape.figures
        thresholds = settings.get("minScore"), settings.get("minStability")
        values = {
            "id": number, "score": figures.get("score"), "stability": figures.get("stability"),
            "area_m2": area, "frames": figures.get("frames"),
            "open_edges": figures.get("open_edges"), "cell_size": figures.get("cell"),
            "review": output.judge(figures, *thresholds), "model": figures.get("model"),
            "source": self.description.source,
            "prompt": json.dumps({**prompt, "crs": self.description.crs}) if prompt else None,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }  # fmt: skip
        geometry = shape.geometry
        geometry.convertToMultiType()
        feature = QgsFeature(fields)
        feature.setGeometry(geometry)
        for name, value in values.items():
            feature[name] = value
        return feature, area


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
        sink, name, fields = self.sink(parameters, context)
        bounds = self._bounds(parameters, context)
        smallest = self.parameterAsDouble(parameters, self.MIN_AREA, context)
        count = 0

        def progress(header, payload):
            nonlocal count
            for shape in objects(header, payload):
                feature, area = self.feature(fields, count + 1, shape, None)
                if area >= smallest:
                    sink.addFeature(feature, QgsFeatureSink.Flag.FastInsert)
                    count += 1
            done, waiting = header["done"], header["waiting"]
            feedback.setProgress(100 * done / max(1, done + waiting))

        try:
            with Client(feedback, self.layer, self.description) as client:
                self.open(client, parameters, context)
                level = self.level(parameters, context)
                client.call("everything", progress, bounds=bounds, level=level)
        except Stopped:
            feedback.pushInfo(tr("Stopped after {count} objects.", count=count))
        return {self.OUTPUT: name, self.COUNT: count}

    def _bounds(self, parameters, context):
        if not parameters.get(self.EXTENT):
            return list(self.description.bounds)
        box = self.parameterAsExtent(parameters, self.EXTENT, context, self.crs)
        left, bottom, right, top = self.description.bounds
        inside = [
            max(left, box.xMinimum()), max(bottom, box.yMinimum()),
            min(right, box.xMaximum()), min(top, box.yMaximum()),
        ]  # fmt: skip
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            raise QgsProcessingException(tr("The extent does not touch the imagery."))
        return inside


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
        source = self.parameterAsSource(parameters, self.PROMPTS, context)
        if source is None:
            raise QgsProcessingException(self.invalidSourceError(parameters, self.PROMPTS))
        sink, name, fields = self.sink(parameters, context)
        smallest = self.parameterAsDouble(parameters, self.MIN_AREA, context)
        transform = QgsCoordinateTransform(source.sourceCrs(), self.crs, QgsProject.instance())
        count, total = 0, max(1, source.featureCount())
        try:
            with Client(feedback, self.layer, self.description) as client:
                self.open(client, parameters, context)
                for number, feature in enumerate(source.getFeatures()):
                    for shape, prompt in self._segment(
                        client, feature, transform, parameters, context, feedback
                    ):
                        made, area = self.feature(fields, count + 1, shape, prompt)
                        if area >= smallest:
                            sink.addFeature(made, QgsFeatureSink.Flag.FastInsert)
                            count += 1
                    feedback.setProgress(100 * (number + 1) / total)
        except Stopped:
            feedback.pushInfo(tr("Stopped after {count} objects.", count=count))
        return {self.OUTPUT: name, self.COUNT: count}

    def _segment(self, client, feature, transform, parameters, context, feedback):
        """[(shape, prompt)] of one feature; a prompt that cannot be used is reported and skipped."""
        geometry = feature.geometry()
        if geometry.isEmpty():
            return []
        geometry.transform(transform)
        prompt = prompt_of(geometry)
        follow = self.parameterAsBool(parameters, self.FOLLOW, context)
        level = self.level(parameters, context)
        frames = settings.get("maxFrames") if follow else 1
        try:
            header, payload = client.call(
                "follow", prompt=prompt, level=level, options={"max_frames": frames}
            )
        except QgsProcessingException as error:
            if not client.alive:
                raise
            feedback.pushWarning(f"{feature.id()}: {error}")
            return []
        return [(shape, prompt) for shape in objects(header, payload)[:1]]


def prompt_of(geometry):
    """A click for points, a box for everything else."""
    if QgsWkbTypes.geometryType(geometry.wkbType()) == QgsWkbTypes.GeometryType.PointGeometry:
        points = [[vertex.x(), vertex.y()] for vertex in geometry.vertices()]
        return {"points": points, "labels": [1] * len(points), "box": None}
    box = geometry.boundingBox()
    corners = [box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum()]
    return {"points": [], "labels": [], "box": corners}


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
        with Client(feedback) as client:
            loaded, _ = client.call("load_model", device=settings.get("device") or None)
            ready = {**client.ready, **loaded}
        names = ("version", "protocol", "backend", "model", "device", "python")
        text = ", ".join(f"{name} {ready[name]}" for name in names if name in ready)
        feedback.pushInfo(text)
        return {self.STATUS: text}
