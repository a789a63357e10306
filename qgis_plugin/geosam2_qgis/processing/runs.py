"""The work of the algorithms, in Processing's background thread."""

import json
import re
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
from qgis.PyQt.QtCore import QDate, QDateTime, QTime

from ..compat import field
from ..core import output, settings
from ..core.i18n import tr
from ..core.session import shapes
from .client import Client, Stopped

PRESETS = ("rapid", "high-res")
DATED = (
    ("object", "int"), ("date", "text"), ("begin", "datetime"), ("found_by", "text"),
    ("agreement", "real"),
)  # fmt: skip


class Writer:
    """The output layer of an algorithm; leaves out what is smaller than the user wants.

    Args:
        more: Fields between the id and the other usual ones.
    """

    def __init__(self, algorithm, parameters, context, more=()):
        self._algorithm = algorithm
        self._fields = QgsFields()
        number, *usual = output.new_fields()
        for item in (number, *more, *usual):
            self._fields.append(item)
        self._sink, self.name = algorithm.parameterAsSink(
            parameters, algorithm.OUTPUT, context, self._fields, QgsWkbTypes.Type.MultiPolygon,
            algorithm.crs,
        )  # fmt: skip
        if self._sink is None:
            text = algorithm.invalidSinkError(parameters, algorithm.OUTPUT)
            raise QgsProcessingException(text)
        self._smallest = 0.0
        if algorithm.parameterDefinition(algorithm.MIN_AREA):
            self._smallest = algorithm.parameterAsDouble(parameters, algorithm.MIN_AREA, context)
        self._thresholds = settings.get("minScore"), settings.get("minStability")
        self.count = 0

    def add(self, shape, prompt=None, **more):
        """Write one object, if it is large enough; `more` are values of further fields."""
        area = output.ellipsoidal_area(shape.geometry, self._algorithm.crs)
        if area >= self._smallest:
            shape.geometry.convertToMultiType()
            self._write(self._values(shape.figures, prompt, area) | more, shape.geometry)

    def add_unseen(self, **values):
        """Write a row without a geometry."""
        self._write(values)

    def _write(self, values, geometry=None):
        feature = QgsFeature(self._fields)
        if geometry is not None:
            feature.setGeometry(geometry)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        for name, value in {"id": self.count + 1, "created": now, **values}.items():
            feature[name] = value
        if not self._sink.addFeature(feature, QgsFeatureSink.Flag.FastInsert):
            raise QgsProcessingException(tr("The output refused an object."))
        self.count += 1

    def _values(self, figures, prompt, area):
        description = self._algorithm.description
        return {
            "score": figures.get("score"), "stability": figures.get("stability"), "area_m2": area,
            "frames": figures.get("frames"), "open_edges": figures.get("open_edges"),
            "cell_size": figures.get("cell"), "review": output.judge(figures, *self._thresholds),
            "model": figures.get("model"), "source": description.source,
            "prompt": json.dumps({**prompt, "crs": description.crs}) if prompt else None,
        }  # fmt: skip

    def results(self):
        """What the algorithm returns."""
        return {self._algorithm.OUTPUT: self.name, self._algorithm.COUNT: self.count}


def _load(client, algorithm, parameters, context):
    """Load the model."""
    preset = PRESETS[algorithm.parameterAsEnum(parameters, algorithm.PRESET, context)]
    client.call("load_model", model=preset, device=settings.get("device") or None)


def _open(client, algorithm, parameters, context):
    """Load the model and open the raster."""
    _load(client, algorithm, parameters, context)
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
        with Client(feedback, *algorithm.layers) as client:
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
    prompts = _prompts(algorithm, parameters, context)
    writer = Writer(algorithm, parameters, context)
    how = {
        "level": _level(algorithm, parameters, context),
        "options": _limits(algorithm, parameters, context),
    }

    def segment(client, prompt, number):
        header, payload = client.call("follow", prompt=prompt, **how)
        for shape in shapes(header, payload)[:1]:
            writer.add(shape, prompt)

    try:
        with Client(feedback, *algorithm.layers) as client:
            _open(client, algorithm, parameters, context)
            for place, (number, prompt) in enumerate(prompts, 1):
                _try(segment, client, prompt, number, feedback)
                feedback.setProgress(100 * place / len(prompts))
    except Stopped:
        feedback.pushInfo(tr("Stopped after {count} objects.", count=writer.count))
    return writer.results()


def through_dates(algorithm, parameters, context, feedback):
    """The object of each feature of a layer, at all dates."""
    prompts = _prompts(algorithm, parameters, context)
    writer = Writer(algorithm, parameters, context, [field(*one) for one in DATED])
    descriptions = [description for _, description in algorithm.layers]
    limits, total = _limits(algorithm, parameters, context), len(prompts) * len(descriptions)

    def track(client, prompt, number):
        def seen(header, payload):
            date = dates[header["scene"]]
            row = {"object": number, "date": date, "begin": begin_of(date)}
            row.update(found_by=header["found_by"], agreement=header["agreement"])
            row["source"] = descriptions[header["scene"]].source
            _write_sighting(writer, header, payload, prompt, row)
            feedback.setProgress(100 * writer.count / total)

        client.call("track", seen, prompt=prompt, start=algorithm.start)

    try:
        with Client(feedback, *algorithm.layers) as client:
            _load(client, algorithm, parameters, context)
            scenes = [description.message() for description in descriptions]
            names = algorithm.dates
            opened, _ = client.call("open_stack", scenes=scenes, dates=names, options=limits)
            dates = dict(zip(opened["order"], opened["dates"]))
            for number, prompt in prompts:
                _try(track, client, prompt, number, feedback)
    except Stopped:
        feedback.pushInfo(tr("Stopped after {count} objects.", count=writer.count))
    return writer.results()


def begin_of(date):
    """The first moment of a date such as 1985 or 2020-03, for the map's time slider; else None."""
    known = re.fullmatch(r"(\d{4})(?:-(\d\d))?(?:-(\d\d))?", date)
    if known is None:
        return None
    year, month, day = (int(part or 1) for part in known.groups())
    return QDateTime(QDate(year, month, day), QTime(0, 0))


def _write_sighting(writer, header, payload, prompt, row):
    """A row for one date, with the outline if the object was found."""
    found = shapes(header, payload)
    if found:
        writer.add(found[0], prompt, **row)
    else:
        writer.add_unseen(**row, area_m2=0.0 if header["found_by"] == "absent" else None)


def _try(work, client, prompt, number, feedback):
    """Do something for one prompt; one that cannot be used is reported and skipped."""
    try:
        work(client, prompt, number)
    except QgsProcessingException as error:
        if not client.alive:
            raise
        feedback.pushWarning(f"{number}: {error}")


def _prompts(algorithm, parameters, context):
    """(feature id, prompt) of each feature that has a geometry, in the imagery's system."""
    source = algorithm.parameterAsSource(parameters, algorithm.PROMPTS, context)
    if source is None:
        text = algorithm.invalidSourceError(parameters, algorithm.PROMPTS)
        raise QgsProcessingException(text)
    transform = QgsCoordinateTransform(source.sourceCrs(), algorithm.crs, QgsProject.instance())
    found = []
    for feature in source.getFeatures():
        geometry = feature.geometry()
        if not geometry.isEmpty():
            geometry.transform(transform)
            found.append((feature.id(), prompt_of(geometry)))
    return found


def _limits(algorithm, parameters, context):
    """How far objects are followed."""
    follow = algorithm.parameterAsBool(parameters, algorithm.FOLLOW, context)
    return {"max_frames": settings.get("maxFrames") if follow else 1}


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
