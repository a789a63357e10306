"""Writing: undo, other people's layers, coordinate systems, refining, flagging."""

import json
import math

import pytest
import scenes
from geosam2_qgis.core import output, pixels
from geosam2_qgis.core.session import Result, Shape
from qgis.core import (
    NULL,
    QgsCoordinateReferenceSystem,
    QgsFeature,
    QgsGeometry,
    QgsProject,
    QgsVectorLayer,
)

pytestmark = pytest.mark.qgis
CRS = QgsCoordinateReferenceSystem("EPSG:32633")
THRESHOLDS = (0.7, 0.85)


def ellipse(x, y, a, b, steps=720):
    turns = [2 * math.pi * k / steps for k in range(steps)]
    ring = ", ".join(f"{x + a * math.cos(t)} {y + b * math.sin(t)}" for t in [*turns, 0.0])
    return QgsGeometry.fromWkt(f"MultiPolygon((({ring})))")


def result(geometry=None, subject=None, **figures):
    figures = {
        "score": 0.9,
        "stability": 0.95,
        "open_edges": 0,
        "frames": 2,
        "cell": 0.5,
        "model": "fake",
        **figures,
    }
    description = pixels.Description(
        "EPSG:32633", (0, 0, 1, 1), (0.5,), (0, 0), "scene", "scene.tif", False
    )
    prompt = {"points": [[500200.0, 5300400.0]], "labels": [1], "box": None}
    shape = Shape(geometry or ellipse(*scenes.POND), figures)
    return Result(shape, prompt, description, True, subject)


def test_undo_and_redo_through_the_edit_buffer(qgis_new_project):
    layer = output.scratch_layer(CRS, "objects")
    output.add(layer, result(), CRS, THRESHOLDS)
    assert layer.isEditable()
    assert layer.featureCount() == 1
    layer.undoStack().undo()
    assert layer.featureCount() == 0
    layer.undoStack().redo()
    assert layer.featureCount() == 1
    feature = next(layer.getFeatures())
    assert feature["score"] == 0.9
    assert feature["review"] == "ok"
    assert json.loads(feature["prompt"])["points"] == [[500200.0, 5300400.0]]


def test_areas_are_ellipsoidal(qgis_new_project):
    mercator = QgsCoordinateReferenceSystem("EPSG:3857")
    lake = ellipse(*scenes.LAKE)
    planar = lake.area()
    latitude = math.degrees(2 * math.atan(math.exp(scenes.LAKE[1] / 6378137)) - math.pi / 2)
    expected = planar * math.cos(math.radians(latitude)) ** 2
    assert output.ellipsoidal_area(lake, mercator) == pytest.approx(expected, rel=0.01)
    assert planar / output.ellipsoidal_area(lake, mercator) > 2


def demanding_layer(path):
    """An existing GeoPackage layer of somebody else: other CRS, Z, a mandatory field, a default."""
    from osgeo import ogr, osr

    system = osr.SpatialReference()
    system.ImportFromEPSG(4326)
    data = ogr.GetDriverByName("GPKG").CreateDataSource(str(path))
    table = data.CreateLayer("theirs", system, ogr.wkbMultiPolygon25D)
    owner = ogr.FieldDefn("owner", ogr.OFTString)
    owner.SetNullable(False)
    owner.SetDefault("'nobody'")
    table.CreateField(owner)
    table.CreateField(ogr.FieldDefn("area_m2", ogr.OFTReal))
    table.CreateField(ogr.FieldDefn("remark", ogr.OFTString))
    data = table = None
    layer = QgsVectorLayer(f"{path}|layername=theirs", "theirs", "ogr")
    assert layer.isValid()
    QgsProject.instance().addMapLayer(layer)
    return layer


def test_a_demanding_layer_takes_the_object(tmp_path, qgis_new_project):
    layer = demanding_layer(tmp_path / "theirs.gpkg")
    style = layer.renderer().dump()
    fields = [f.name() for f in layer.fields()]
    output.add(layer, result(), CRS, THRESHOLDS)
    assert layer.commitChanges(), layer.commitErrors()
    again = QgsVectorLayer(f"{tmp_path / 'theirs.gpkg'}|layername=theirs", "again", "ogr")
    feature = next(again.getFeatures())
    assert feature["owner"] == "nobody"
    assert feature["remark"] == NULL
    truth = math.pi * scenes.POND[2] * scenes.POND[3]
    assert feature["area_m2"] == pytest.approx(truth, rel=2e-3)  # UTM's scale is 0.9996 there
    geometry = feature.geometry()
    assert geometry.isGeosValid()
    assert again.crs().authid() == "EPSG:4326"
    assert all(vertex.z() == 0.0 for vertex in geometry.vertices())
    assert 14.9 < geometry.boundingBox().center().x() < 15.1
    assert [f.name() for f in layer.fields()] == fields
    assert layer.renderer().dump() == style


def test_a_new_geopackage_keeps_what_was_saved(tmp_path, qgis_new_project):
    layer = output.geopackage_layer(CRS, tmp_path / "new.gpkg", "new")
    output.add(layer, result(), CRS, THRESHOLDS)
    output.add(layer, result(ellipse(*scenes.TWINS[0], 22, 22), score=0.5), CRS, THRESHOLDS)
    assert layer.commitChanges(), layer.commitErrors()
    again = QgsVectorLayer(str(tmp_path / "new.gpkg") + "|layername=objects", "again", "ogr")
    features = list(again.getFeatures())
    assert [f["review"] for f in features] == ["ok", "check"]
    assert [f["id"] for f in features] == [1, 2]
    assert again.crs().authid() == "EPSG:32633"


def test_an_existing_file_is_never_overwritten(tmp_path, qgis_new_project):
    (tmp_path / "old.gpkg").write_bytes(b"precious")
    with pytest.raises(output.OutputError, match="exists already"):
        output.geopackage_layer(CRS, tmp_path / "old.gpkg", "old")
    assert (tmp_path / "old.gpkg").read_bytes() == b"precious"


def test_a_read_only_layer_is_refused_in_one_sentence(qgis_new_project):
    layer = QgsVectorLayer("MultiPolygon?crs=EPSG:32633", "locked", "memory")
    layer.setReadOnly(True)
    with pytest.raises(output.OutputError, match="locked cannot be edited"):
        output.add(layer, result(), CRS, THRESHOLDS)
    assert not output.is_usable(layer)


def test_single_polygon_layers_get_one_feature_per_part(qgis_new_project):
    layer = QgsVectorLayer("Polygon?crs=EPSG:32633", "single", "memory")
    two = ellipse(*scenes.TWINS[0], 10, 10).combine(ellipse(*scenes.TWINS[1], 10, 10))
    assert len(output.add(layer, result(two), CRS, THRESHOLDS)) == 2


def test_the_projects_no_overlap_setting_is_respected(qgis_new_project):
    from qgis.core import Qgis

    layer = output.scratch_layer(CRS, "objects")
    modes = (Qgis if hasattr(Qgis, "AvoidIntersectionsMode") else QgsProject).AvoidIntersectionsMode
    QgsProject.instance().setAvoidIntersectionsMode(modes.AvoidIntersectionsCurrentLayer)
    output.add(layer, result(ellipse(500200, 5300400, 100, 60)), CRS, THRESHOLDS)
    output.add(layer, result(ellipse(500260, 5300400, 100, 60)), CRS, THRESHOLDS)
    first, second = (f.geometry() for f in layer.getFeatures())
    assert first.intersection(second).area() < 1e-3
    with pytest.raises(output.OutputError, match="others cover it already"):
        output.add(layer, result(ellipse(500200, 5300400, 50, 30)), CRS, THRESHOLDS)


def test_refining_replaces_shape_and_figures_in_one_undo_step(qgis_new_project):
    layer = output.scratch_layer(CRS, "objects")
    (fid,) = output.add(layer, result(score=0.4), CRS, THRESHOLDS)
    steps = layer.undoStack().count()
    output.replace(
        layer, fid, result(ellipse(500200, 5300400, 50, 30), score=0.99), CRS, THRESHOLDS
    )
    assert layer.undoStack().count() == steps + 1
    feature = layer.getFeature(fid)
    assert feature["score"] == 0.99
    assert feature["id"] == 1
    assert feature.geometry().area() == pytest.approx(math.pi * 50 * 30, rel=1e-3)
    assert output.stored_prompt(feature)["labels"] == [1]
    layer.undoStack().undo()
    assert layer.getFeature(fid)["review"] == "check"


def test_low_objects_are_flagged_and_selected(qgis_new_project):
    layer = output.scratch_layer(CRS, "objects")
    output.add(layer, result(), CRS, THRESHOLDS)
    for figures in ({"score": 0.5}, {"stability": 0.5}, {"open_edges": 2}):
        output.add(layer, result(**figures), CRS, THRESHOLDS)
    low = output.flag_low(layer, *THRESHOLDS)
    assert len(low) == 3
    assert set(layer.selectedFeatureIds()) == set(low)
    assert len(output.flag_low(layer, 0.95, 0.85)) == 4
    assert {f["review"] for f in layer.getFeatures()} == {"check"}


def test_flagging_works_on_other_layers_with_figures_and_refuses_the_rest(qgis_new_project):
    scored = QgsVectorLayer("Polygon?crs=EPSG:32633&field=score:double", "scored", "memory")
    feature = QgsFeature(scored.fields())
    feature["score"] = 0.1
    scored.dataProvider().addFeatures([feature])
    assert len(output.flag_low(scored, *THRESHOLDS)) == 1
    plain = QgsVectorLayer("Polygon?crs=EPSG:32633", "plain", "memory")
    with pytest.raises(output.OutputError, match="plain has no field score"):
        output.flag_low(plain, *THRESHOLDS)


@pytest.mark.parametrize("text", ["", "nonsense", "[1]", '{"a": 1}'])
def test_a_prompt_field_of_somebody_else_is_no_prompt(text, qgis_new_project):
    layer = QgsVectorLayer("Polygon?crs=EPSG:32633&field=prompt:string", "x", "memory")
    feature = QgsFeature(layer.fields())
    feature["prompt"] = text
    assert output.stored_prompt(feature) is None
