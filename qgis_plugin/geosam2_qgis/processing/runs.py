"""The work of the algorithms, in Processing's background thread."""

import json
from datetime import datetime, timezone

from qgis.core import (
    QgsCoordinateTransform,
    QgsFeature,
    QgsFeatureSink,
    QgsFields,
    QgsProcessingException,
    QgsProject,
    QgsWkbTypes,
)

from ..core import output, settings
from ..core.i18n import tr
from ..core.session import shapes
from .client import Client, Stopped

PRESETS = ("rapid", "high-res")


class Writer:
    """The output layer of an algorithm; leaves out what is smaller than the user wants."""

    def __init__(self, algorithm, parameters, context):
        self._algorithm = algorithm
        self._fields = QgsFields()
        for item in output.new_fields():
            self._fields.append(item)
        self._sink, self.name = algorithm.parameterAsSink(
            parameters, algorithm.OUTPUT, context, self._fields, QgsWkbTypes.Type.MultiPolygon,
            algorithm.crs,
        )  # fmt: skip
        if self._sink is None:
            text = algorithm.invalidSinkError(parameters, algorithm.OUTPUT)
            raise QgsProcessingException(text)
        self._smallest = algorithm.parameterAsDouble(parameters, algorithm.MIN_AREA, context)
        self._thresholds = settings.get("minScore"), settings.get("minStability")
        self.count = 0

    def add(self, shape, prompt=None):
        """Write one object, if it is large enough."""
        area = output.ellipsoidal_area(shape.geometry, self._algorithm.crs)
        if area < self._smallest:
            return
        feature = self._feature(shape, prompt, area)
        if not self._sink.addFeature(feature, QgsFeatureSink.Flag.FastInsert):
            raise QgsProcessingException(tr("The output refused an object."))
        self.count += 1

    def _feature(self, shape, prompt, area):
        description, figures = self._algorithm.description, shape.figures
        values = {
            "id": self.count + 1, "score": figures.get("score"),
            "stability": figures.get("stability"), "area_m2": area,
            "frames": figures.get("frames"), "open_edges": figures.get("open_edges"),
            "cell_size": figures.get("cell"), "review": output.judge(figures, *self._thresholds),
            "model": figures.get("model"), "source": description.source,
            "prompt": json.dumps({**prompt, "crs": description.crs}) if prompt else None,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }  # fmt: skip
        shape.geometry.convertToMultiType()
        feature = QgsFeature(self._fields)
        feature.setGeometry(shape.geometry)
        for name, value in values.items():
            feature[name] = value
        return feature

    def results(self):
        """What the algorithm returns."""
        return {self._algorithm.OUTPUT: self.name, self._algorithm.COUNT: self.count}


def _open(client, algorithm, parameters, context):
    """Load the model and open the raster."""
    preset = PRESETS[algorithm.parameterAsEnum(parameters, algorithm.PRESET, context)]
    client.call("load_model", model=preset, device=settings.get("device") or None)
    client.call("open", scene=algorithm.description.message())


def _level(algorithm, parameters, context):
    """The level nearest to the wanted cell size."""
    cell = _cell(algorithm, parameters, context)
    return algorithm.description.level_for(cell) if cell else 0


def _enlarge(algorithm, parameters, context):
    """How often the raster's own cells are enlarged for a wanted cell size finer than theirs."""
    cell = _cell(algorithm, parameters, context)
    return algorithm.description.enlargement_for(cell) if cell else 1


def _cell(algorithm, parameters, context):
    """The wanted cell size; 0 for the raster's own."""
    return algorithm.parameterAsDouble(parameters, algorithm.RESOLUTION, context)


def everything(algorithm, parameters, context, feedback):
    """Every object of the raster, or of an extent."""
    writer = Writer(algorithm, parameters, context)
    bounds = _bounds(algorithm, parameters, context)

    def progress(header, payload):
        for shape in shapes(header, payload):
            writer.add(shape)
        done, waiting = header["done"], header["waiting"]
        feedback.setProgress(100 * done / max(1, done + waiting))

    try:
        with Client(feedback, algorithm.layer, algorithm.description) as client:
            _open(client, algorithm, parameters, context)
            level = _level(algorithm, parameters, context)
            options = {"enlarge": _enlarge(algorithm, parameters, context)}
            client.call("everything", progress, bounds=bounds, level=level, options=options)
    except Stopped:
        feedback.pushInfo(tr("Stopped after {count} objects.", count=writer.count))
    return writer.results()


def _bounds(algorithm, parameters, context):
    if not parameters.get(algorithm.EXTENT):
        return list(algorithm.description.bounds)
    box = algorithm.parameterAsExtent(parameters, algorithm.EXTENT, context, algorithm.crs)
    left, bottom, right, top = algorithm.description.bounds
    inside = [
        max(left, box.xMinimum()), max(bottom, box.yMinimum()),
        min(right, box.xMaximum()), min(top, box.yMaximum()),
    ]  # fmt: skip
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise QgsProcessingException(tr("The extent does not touch the imagery."))
    return inside


def from_prompts(algorithm, parameters, context, feedback):
    """One object for each feature of a layer."""
    source = algorithm.parameterAsSource(parameters, algorithm.PROMPTS, context)
    if source is None:
        text = algorithm.invalidSourceError(parameters, algorithm.PROMPTS)
        raise QgsProcessingException(text)
    writer = Writer(algorithm, parameters, context)
    transform = QgsCoordinateTransform(source.sourceCrs(), algorithm.crs, QgsProject.instance())
    follow = algorithm.parameterAsBool(parameters, algorithm.FOLLOW, context)
    how = {
        "level": _level(algorithm, parameters, context),
        "options": {"max_frames": settings.get("maxFrames") if follow else 1},
    }
    total = max(1, source.featureCount())
    try:
        with Client(feedback, algorithm.layer, algorithm.description) as client:
            _open(client, algorithm, parameters, context)
            for number, feature in enumerate(source.getFeatures()):
                geometry = feature.geometry()
                if not geometry.isEmpty():
                    geometry.transform(transform)
                    _segment(client, writer, feedback, feature.id(), prompt_of(geometry), how)
                feedback.setProgress(100 * (number + 1) / total)
    except Stopped:
        feedback.pushInfo(tr("Stopped after {count} objects.", count=writer.count))
    return writer.results()


def _segment(client, writer, feedback, number, prompt, how):
    """Write the object of one prompt; a prompt that cannot be used is reported and skipped."""
    try:
        header, payload = client.call("follow", prompt=prompt, **how)
    except QgsProcessingException as error:
        if not client.alive:
            raise
        feedback.pushWarning(f"{number}: {error}")
        return
    for shape in shapes(header, payload)[:1]:
        writer.add(shape, prompt)


def prompt_of(geometry):
    """A click for points, a box for everything else."""
    if QgsWkbTypes.geometryType(geometry.wkbType()) == QgsWkbTypes.GeometryType.PointGeometry:
        points = [[vertex.x(), vertex.y()] for vertex in geometry.vertices()]
        return {"points": points, "labels": [1] * len(points), "box": None}
    box = geometry.boundingBox()
    corners = [box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum()]
    return {"points": [], "labels": [], "box": corners}


def status(feedback):
    """Start the engine and say what it is."""
    with Client(feedback) as client:
        loaded, _ = client.call("load_model", device=settings.get("device") or None)
        ready = {**client.ready, **loaded}
    names = ("version", "protocol", "backend", "model", "device", "python")
    text = ", ".join(f"{name} {ready[name]}" for name in names if name in ready)
    feedback.pushInfo(text)
    return text
