"""Finished objects become features: through the edit buffer, so that Ctrl+Z works."""

import json
from datetime import datetime, timezone
from pathlib import Path

from qgis.core import (
    Qgis,
    QgsCoordinateTransform,
    QgsDistanceArea,
    QgsFeature,
    QgsFeatureRequest,
    QgsFillSymbol,
    QgsGeometry,
    QgsProject,
    QgsVectorFileWriter,
    QgsVectorLayer,
    QgsVectorLayerUtils,
    QgsWkbTypes,
)

from ..compat import field, polygon_type
from .i18n import tr

FIELDS = (
    ("id", "int"), ("score", "real"), ("stability", "real"), ("area_m2", "real"), ("frames", "int"),
    ("open_edges", "int"), ("cell_size", "real"), ("review", "text"), ("model", "text"),
    ("source", "text"), ("prompt", "text"), ("created", "text"),
)  # fmt: skip
LOW, GOOD = "check", "ok"


class OutputError(Exception):
    """A feature could not be written; the text is for the user."""


def new_fields():
    """The fields of layers that the plugin makes."""
    return [field(name, kind) for name, kind in FIELDS]


def scratch_layer(crs, name):
    """A new temporary layer in the project."""
    layer = QgsVectorLayer(f"MultiPolygon?crs={crs.authid()}", name, "memory")
    if not crs.authid():
        layer.setCrs(crs)
    layer.dataProvider().addAttributes(new_fields())
    layer.updateFields()
    return _adopt(layer)


def geopackage_layer(crs, path, name):
    """A new GeoPackage with one empty layer, in the project.

    Raises:
        OutputError: If the file exists or cannot be written.
    """
    path = Path(path)
    if path.exists():
        text = tr(
            "{file} exists already. Choose another name, or add the file to the project.",
            file=path.name,
        )
        raise OutputError(text)
    template = QgsVectorLayer(f"MultiPolygon?crs={crs.authid()}", name, "memory")
    template.setCrs(crs)
    template.dataProvider().addAttributes(new_fields())
    template.updateFields()
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName, options.layerName = "GPKG", "objects"
    context = QgsProject.instance().transformContext()
    code, message, *_ = QgsVectorFileWriter.writeAsVectorFormatV3(
        template, str(path), context, options
    )
    if code != QgsVectorFileWriter.WriterError.NoError:
        raise OutputError(tr("{file} cannot be written: {reason}", file=path.name, reason=message))
    return _adopt(QgsVectorLayer(f"{path}|layername=objects", name, "ogr"))


def _adopt(layer):
    """Style a layer of ours (once) and put it into the project."""
    symbol = QgsFillSymbol.createSimple(
        {"color": "31,155,214,60", "outline_color": "15,111,163,255", "outline_width": "0.6"}
    )
    layer.renderer().setSymbol(symbol)
    QgsProject.instance().addMapLayer(layer)
    return layer


def usable_layers():
    """Polygon layers of the project that can be edited."""
    layers = QgsProject.instance().mapLayers().values()
    return [layer for layer in layers if is_usable(layer)]


def is_usable(layer):
    """A vector layer of polygons that is not read-only."""
    return (
        isinstance(layer, QgsVectorLayer)
        and layer.isValid()
        and layer.geometryType() == polygon_type()
        and not layer.readOnly()
        and bool(layer.dataProvider().capabilities() & layer.dataProvider().Capability.AddFeatures)
    )


def ellipsoidal_area(geometry, crs):
    """Area in square metres on the project's ellipsoid (WGS 84 if it has none)."""
    project = QgsProject.instance()
    measure = QgsDistanceArea()
    measure.setSourceCrs(crs, project.transformContext())
    ellipsoid = project.ellipsoid()
    measure.setEllipsoid(ellipsoid if ellipsoid and ellipsoid != "NONE" else "EPSG:7030")
    return measure.measureArea(geometry)


def judge(figures, min_score, min_stability):
    """LOW if a person should look at the object, else GOOD."""
    low = (
        figures.get("score", 0) < min_score
        or figures.get("stability", 0) < min_stability
        or figures.get("open_edges", 0) > 0
    )
    return LOW if low else GOOD


def attributes(result, crs, thresholds):
    """Values of our fields for a finished object."""
    figures = result.shape.figures
    prompt = {**result.prompt, "crs": result.description.crs}
    return {
        "score": figures.get("score"),
        "stability": figures.get("stability"),
        "area_m2": ellipsoidal_area(result.shape.geometry, crs),
        "frames": figures.get("frames"),
        "open_edges": figures.get("open_edges"),
        "cell_size": figures.get("cell"),
        "review": judge(figures, *thresholds),
        "model": figures.get("model"),
        "source": result.description.source,
        "prompt": json.dumps(prompt),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _next_id(layer):
    index = layer.fields().lookupField("id")
    largest = layer.maximumValue(index) if index >= 0 else None
    # an empty memory layer answers with the smallest number there is
    return max(0, int(largest)) + 1 if isinstance(largest, (int, float)) else 1


def _to_layer(geometry, crs, layer):
    geometry = QgsGeometry(geometry)
    transform = QgsCoordinateTransform(crs, layer.crs(), QgsProject.instance())
    geometry.transform(transform)
    return geometry if geometry.isGeosValid() else geometry.makeValid()


def _without_overlaps(geometry, layer, ignored):
    """Apply the project's "avoid overlap" setting, as QGIS's own tools do."""
    project = QgsProject.instance()
    mode = project.avoidIntersectionsMode()
    modes = (Qgis if hasattr(Qgis, "AvoidIntersectionsMode") else QgsProject).AvoidIntersectionsMode
    if mode == modes.AvoidIntersectionsCurrentLayer:
        layers = [layer]
    elif mode == modes.AvoidIntersectionsLayers:
        layers = project.avoidIntersectionsLayers()
    else:
        return geometry
    # avoidIntersections() of older PyQGIS cannot be told to ignore the object that is refined
    for other in layers:
        for feature in other.getFeatures(QgsFeatureRequest(geometry.boundingBox())):
            if other is not layer or feature.id() not in ignored:
                geometry = geometry.difference(feature.geometry())
    return geometry


def _values(layer, values):
    """Field index -> value, for those of our fields that the layer has; the primary key is its own."""
    keys = set(layer.primaryKeyAttributes())
    indices = {name: layer.fields().lookupField(name) for name in values}
    return {i: values[name] for name, i in indices.items() if i >= 0 and i not in keys}


def add(layer, result, crs, thresholds):
    """Add a finished object to a polygon layer; returns the new feature ids.

    The layer stays in edit mode, so that the user can undo, and saves when the user says so.

    Raises:
        OutputError: If the layer refuses.
    """
    if not layer.isEditable() and not layer.startEditing():
        raise OutputError(tr("The layer {name} cannot be edited.", name=layer.name()))
    geometry = _without_overlaps(_to_layer(result.shape.geometry, crs, layer), layer, [])
    if geometry.isEmpty():
        raise OutputError(tr("Nothing is left of the object: others cover it already."))
    values = {"id": _next_id(layer), **attributes(result, crs, thresholds)}
    plain = QgsVectorLayerUtils.createFeature(layer, geometry, _values(layer, values))
    layer.beginEditCommand(tr("Add GeoSAM2 object"))
    new = []
    for feature in QgsVectorLayerUtils.makeFeatureCompatible(plain, layer):
        if QgsWkbTypes.hasZ(layer.wkbType()):
            feature.setGeometry(_flat_z(feature.geometry()))
        if not layer.addFeature(feature):
            layer.destroyEditCommand()
            raise OutputError(tr("The layer {name} refused the object.", name=layer.name()))
        new.append(feature.id())
    layer.endEditCommand()
    layer.triggerRepaint()
    return new


def _flat_z(geometry):
    """Height 0 where QGIS put NaN."""
    for vertex_number in range(geometry.constGet().nCoordinates()):
        vertex = geometry.vertexAt(vertex_number)
        if vertex.z() != vertex.z():
            vertex.setZ(0.0)
            geometry.moveVertex(vertex, vertex_number)
    return geometry


def replace(layer, fid, result, crs, thresholds):
    """Give an existing feature a new shape and new figures (one undo step).

    Raises:
        OutputError: If the layer refuses.
    """
    if not layer.isEditable() and not layer.startEditing():
        raise OutputError(tr("The layer {name} cannot be edited.", name=layer.name()))
    geometry = _without_overlaps(_to_layer(result.shape.geometry, crs, layer), layer, [fid])
    if geometry.isEmpty():
        raise OutputError(tr("Nothing is left of the object: others cover it already."))
    feature = QgsFeature(layer.getFeature(fid))
    feature.setGeometry(geometry)
    compatible = QgsVectorLayerUtils.makeFeatureCompatible(feature, layer)
    if len(compatible) != 1:
        raise OutputError(tr("The object has several parts, but the layer holds single polygons."))
    layer.beginEditCommand(tr("Refine GeoSAM2 object"))
    layer.changeGeometry(fid, compatible[0].geometry())
    for index, value in _values(layer, attributes(result, crs, thresholds)).items():
        layer.changeAttributeValue(fid, index, value)
    layer.endEditCommand()
    layer.triggerRepaint()
    return [fid]


def stored_prompt(feature):
    """The prompt that a feature was made with, or None."""
    index = feature.fields().lookupField("prompt")
    if index < 0:
        return None
    try:
        prompt = json.loads(str(feature.attribute(index)))
    except ValueError:
        return None
    return prompt if isinstance(prompt, dict) and "points" in prompt else None


def flag_low(layer, min_score, min_stability):
    """Write `review` for every feature and select those to look at; returns their ids.

    Raises:
        OutputError: If the layer has no figures.
    """
    names = {
        name: layer.fields().lookupField(name) for name in ("score", "stability", "open_edges")
    }
    review = layer.fields().lookupField("review")
    if names["score"] < 0:
        raise OutputError(tr("The layer {name} has no field score.", name=layer.name()))
    low = []
    if review >= 0 and not layer.isEditable():
        layer.startEditing()
    if review >= 0:
        layer.beginEditCommand(tr("Flag objects of low quality"))
    for feature in layer.getFeatures():
        figures = {n: feature.attribute(i) for n, i in names.items() if i >= 0}
        figures = {n: v for n, v in figures.items() if isinstance(v, (int, float))}
        thresholds = (min_score, min_stability if "stability" in figures else -1)
        verdict = judge(figures, *thresholds)
        if verdict == LOW:
            low.append(feature.id())
        if review >= 0 and feature.attribute(review) != verdict:
            layer.changeAttributeValue(feature.id(), review, verdict)
    if review >= 0:
        layer.endEditCommand()
    layer.selectByIds(low)
    return low
