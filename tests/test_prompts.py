"""Map to network pixels, and mistakes that people make with coordinates."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer

from geosam2.errors import PromptError, SourceError
from geosam2.prompts import (
    MASK_LOGIT,
    FramePrompt,
    Prompt,
    as_prompts,
    check_valid,
    locate,
    network_box,
    network_mask,
    network_points,
    network_prompts,
    read_prompts,
)

UTM = CRS("EPSG:32633")
SCENE = SimpleNamespace(crs=UTM, bounds=(500_000.0, 4_598_720.0, 501_280.0, 4_600_000.0))


def frame(size=64, cell=2.0, valid=None):
    geobox = GeoBox((size, size), Affine(cell, 0, 500_000, 0, -cell, 4_600_000), "EPSG:32633")
    return SimpleNamespace(
        geobox=geobox, valid=np.ones((size, size), bool) if valid is None else valid
    )


def test_the_centre_of_a_pixel_is_a_whole_number_for_the_network():
    """The map point in the middle of pixel (column 3, row 5) is (3, 5), not (3.5, 5.5)."""
    points = network_points(((500_000 + 3.5 * 2, 4_600_000 - 5.5 * 2),), frame())
    assert points.tolist() == [[3.0, 5.0]]


@settings(deadline=None)
@given(st.floats(0, 63.9), st.floats(0, 63.9))
def test_pixel_to_map_to_pixel(column, row):
    there = (500_000 + (column + 0.5) * 2, 4_600_000 - (row + 0.5) * 2)
    back = network_points((there,), frame())[0]
    assert np.allclose(back, (column, row), atol=1e-4)  # float32


@settings(deadline=None)  # the first transformation opens a database
@given(st.floats(14.7, 15.3), st.floats(41, 42))
def test_crs_round_trip(lon, lat):
    prompt = Prompt(points=((lon, lat),), crs=4326)
    back = prompt.to_crs(32633).to_crs(4326)
    # 1e-6 of a 2 m pixel is 2e-6 m, about 2e-11 degrees
    assert np.allclose(back.points, prompt.points, rtol=0, atol=2e-11)


def test_a_box_is_clipped_to_the_frame():
    box = network_box((499_000, 4_599_990, 500_010, 4_601_000), frame())
    assert box.tolist() == [-0.5, -0.5, 4.5, 4.5]


def test_a_drawn_mask_becomes_logits_of_its_share_of_each_cell():
    half = shapely.box(500_000, 4_599_000, 500_000 + 6 * 2, 4_601_000)  # a cell and a half wide
    logits = network_mask(half, frame())
    assert logits.shape == (16, 16)
    assert logits[0, :3].tolist() == [MASK_LOGIT, 0.0, -MASK_LOGIT]


def test_prompts_of_different_lengths_are_padded():
    a = FramePrompt(((500_010, 4_599_990),), (1,))
    b = FramePrompt(((500_010, 4_599_990), (500_020, 4_599_980)), (1, 0))
    batch = network_prompts([a, b], [frame(), frame()])
    assert batch.labels.tolist() == [[1, -1], [1, 0]]
    assert batch.boxes is None
    assert batch.masks is None


def test_a_click_on_nodata_is_refused():
    valid = np.ones((64, 64), bool)
    valid[5, 3] = False
    with pytest.raises(PromptError, match="Click where there are pixels"):
        check_valid(FramePrompt(((500_007, 4_599_989),), (1,)), frame(valid=valid))
    # a background click there does no harm
    check_valid(FramePrompt(((500_007, 4_599_989),), (0,)), frame(valid=valid))


def test_only_points_on_the_frame_are_said():
    prompt = Prompt(points=((500_010, 4_599_990), (501_000, 4_599_000)), labels=(1, 0))
    assert FramePrompt.of(prompt, frame()).labels == (1,)


def test_boxes_may_be_polygons_and_layers_keep_their_own_crs() -> None:
    left, right = shapely.box(0, 0, 2, 1), shapely.Point(5, 5).buffer(1)
    assert [p.box for p in as_prompts(boxes=[left, right])] == [(0, 0, 2, 1), (4, 4, 6, 6)]
    boxes = geopandas.GeoSeries([left], crs=32633)
    masks = geopandas.GeoSeries([right], crs=3857)
    found = as_prompts(boxes=boxes, masks=masks)
    assert [p.crs.to_epsg() for p in found] == [32633, 3857]
    assert as_prompts(boxes=left)[0].box == (0, 0, 2, 1)


def test_a_drawn_outline_may_cross_itself() -> None:
    eight = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    (prompt,) = as_prompts(masks=eight)
    assert prompt.mask.area == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda: Prompt(), "give at least one of them"),
        (lambda: Prompt(points=((float("nan"), 1),)), "not finite"),
        (lambda: Prompt(points=((float("inf"), 1),)), "not finite"),
        (lambda: Prompt(points=((1, 1),), labels=(2,)), "use 1 for foreground"),
        (lambda: Prompt(points=((1, 1),), labels=(1, 0)), "one label"),
        (lambda: Prompt(box=(2, 0, 1, 1)), "the order is left, bottom, right, top"),
        (lambda: Prompt(box=(0, 0, float("nan"), 1)), "not finite"),
        (lambda: Prompt(mask=shapely.Polygon()), "give a polygon with an area"),
        (lambda: Prompt(points=((1, 1),), crs="EPSG:nothing"), "use for example 'EPSG:4326'"),
        (lambda: Prompt(points=((0, 91),), crs=4326).to_crs(3857), "has no place in EPSG:3857"),
        (lambda: as_prompts([(1, 2, 3)]), r"want \(x, y\)"),
        (lambda: as_prompts([(1, 2)], [[1], [0]]), "nest labels as points are"),
        (lambda: as_prompts([None]), r"want \(x, y\)"),
        (lambda: as_prompts("abc"), r"want \[\(x, y\), ...\]"),
        (lambda: as_prompts([(1, 2)], ["x"]), "label 'x': use 1 for foreground"),
        (lambda: as_prompts([(1, 2)], [0.5]), "label 0.5: use 1 for foreground"),
        (lambda: as_prompts([(1, 2)], [math.nan]), "use 1 for foreground"),
        (lambda: as_prompts(boxes=[(1, 2, 3)]), r"want \(left, bottom, right, top\)"),
        (lambda: as_prompts(boxes=["abc"]), r"want \(left, bottom, right, top\)"),
        (lambda: as_prompts(boxes=3), r"want \[\(left, bottom, right, top\), ...\]"),
        (lambda: as_prompts(masks=["abc"]), "give a shapely polygon"),
        (lambda: as_prompts(geopandas.GeoSeries([shapely.Point(1, 2), None])), "row 1 .* drop it"),
        (lambda: Prompt(points=(None,)), r"want \[\(x, y\), ...\]"),
    ],
)
def test_mistakes_name_the_remedy(make, remedy):
    with pytest.raises(PromptError, match=remedy):
        make()


def degrees(x, y):
    return Transformer.from_crs(UTM, 4326, always_xy=True).transform(x, y)


def mercator(x, y):
    return Transformer.from_crs(UTM, 3857, always_xy=True).transform(x, y)


@pytest.mark.parametrize(
    ("point", "crs", "remedy"),
    [
        (degrees(500_500, 4_599_500), None, "pass crs='EPSG:4326'"),
        (
            degrees(500_500, 4_599_500)[::-1],
            4326,
            "longitude. comes first, and pass crs='EPSG:4326'",
        ),
        (mercator(500_500, 4_599_500), None, "pass crs='EPSG:3857'"),
        ((500_500, 4_599_500), 3857, "In EPSG:32633 it would be inside"),
        ((1.0, 2.0), None, "Pass crs= if it is not in the scene's CRS"),
    ],
)
def test_outside_says_in_which_crs_it_would_be_inside(point, crs, remedy):
    with pytest.raises(PromptError, match=remedy) as error:
        locate(Prompt(points=(point,), crs=crs), SCENE)
    assert "500000, 4598720, 501280, 4600000; EPSG:32633" in str(error.value)


def test_inside_is_moved_to_the_scenes_crs():
    found = locate(Prompt(points=(degrees(500_500, 4_599_500),), crs=4326), SCENE)
    assert found.crs == UTM
    assert np.allclose(found.points, ((500_500, 4_599_500),), atol=1e-5)


def test_a_scene_without_crs_takes_pixels_only():
    picture = SimpleNamespace(crs=None, bounds=(0.0, -100.0, 200.0, 0.0))
    assert locate(Prompt(points=((10, -20),)), picture).points == ((10, -20),)
    with pytest.raises(PromptError, match="no crs="):
        locate(Prompt(points=((10, -20),), crs=4326), picture)
    with pytest.raises(PromptError, match="y = -row, so y is negative"):
        locate(Prompt(points=((1000, -20),)), picture)


def test_json_round_trip_keeps_everything():
    prompt = Prompt(
        points=((1.5, 2.25), (3, 4)),
        labels=(1, 0),
        box=(0, 0, 5, 5),
        mask=shapely.box(1, 1, 2, 2),
        crs="EPSG:32633",
        object_id=7,
    )
    assert Prompt.from_json(json.loads(json.dumps(prompt.to_json()))) == prompt


def test_layers_bring_their_crs():
    points = geopandas.GeoSeries(
        [shapely.Point(1, 2), shapely.MultiPoint([(3, 4), (5, 6)])], crs=3857
    )
    found = as_prompts(points)
    assert [p.points for p in found] == [((1, 2),), ((3, 4), (5, 6))]
    assert {p.crs for p in found} == {CRS(3857)}
    assert [p.object_id for p in found] == [1, 2]


def test_a_prompts_file_groups_features_by_object(tmp_path):
    def feature(geometry, **properties):
        return {"type": "Feature", "properties": properties, "geometry": geometry}

    def point(x, y):
        return {"type": "Point", "coordinates": [x, y]}

    square = shapely.geometry.mapping(shapely.box(0, 0, 1, 1))
    features = [
        feature(point(1, 2), object=5),
        feature(point(3, 4), object=5, label=0),
        feature(square, kind="box"),
        feature(square),
    ]
    path = tmp_path / "prompts.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    found = read_prompts(path)
    assert (found[0].object_id, found[0].labels) == (5, (1, 0))
    assert found[1].box == (0, 0, 1, 1)
    assert found[2].mask is not None
    assert all(prompt.crs == CRS(4326) for prompt in found)


def test_prompts_of_any_vector_file(tmp_path: Path) -> None:
    layer = geopandas.GeoDataFrame(
        {"object": [3, 3, 4], "label": [1, 0, None], "kind": [None, None, "box"]},
        geometry=[shapely.Point(1, 2), shapely.Point(3, 4), shapely.box(5, 6, 7, 8)],
        crs=32633,
    )
    layer.to_file(tmp_path / "a.gpkg")
    clicks, box = read_prompts(tmp_path / "a.gpkg")
    assert (clicks.object_id, clicks.points, clicks.labels) == (3, ((1, 2), (3, 4)), (1, 0))
    assert (box.object_id, box.box, box.crs.to_epsg()) == (4, (5, 6, 7, 8), 32633)
    (tmp_path / "a.csv").write_text("x,y\n1,2\n3,4\n")
    found = read_prompts(tmp_path / "a.csv")
    assert [(p.object_id, p.points, p.crs) for p in found] == [
        (1, ((1.0, 2.0),), None),
        (2, ((3.0, 4.0),), None),
    ]
    assert [p.crs.to_epsg() for p in read_prompts(tmp_path / "a.gpkg", crs=4326)] == [32633] * 2
    assert [p.crs.to_epsg() for p in read_prompts(tmp_path / "a.csv", crs=4326)] == [4326] * 2
    lines = [json.dumps(one) for one in layer.to_geo_dict()["features"]]
    (tmp_path / "a.geojsonl").write_text("\n".join(lines))
    assert [p.points for p in read_prompts(tmp_path / "a.geojsonl")] == [clicks.points, ()]
    with pytest.raises(SourceError, match="cannot be read as a vector file"):
        read_prompts(tmp_path / "missing.shp")


def test_prompts_from_a_pipe_and_under_any_name(tmp_path: Path) -> None:
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Point"}}
    feature["geometry"]["coordinates"] = [7, 8]  # type: ignore[index]
    for name in ("prompts", "prompts.txt"):
        (tmp_path / name).write_text(json.dumps(feature))
        assert read_prompts(tmp_path / name)[0].points == ((7.0, 8.0),)
    reading, writing = os.pipe()
    os.write(writing, json.dumps(feature).encode())
    os.close(writing)
    try:
        assert read_prompts(f"/dev/fd/{reading}")[0].points == ((7.0, 8.0),)
    finally:
        os.close(reading)


def test_objects_without_a_number_get_one_that_is_free() -> None:
    point = {"type": "Point", "coordinates": [7, 8]}
    features = [
        {"type": "Feature", "properties": said, "geometry": point}
        for said in ({"object": 2}, {}, {"object": "mill"}, {"object": 1})
    ]
    text = json.dumps({"type": "FeatureCollection", "features": features})
    assert [p.object_id for p in read_prompts(text)] == [2, 3, 4, 1]


def test_a_file_for_a_scene_without_crs_holds_pixels() -> None:
    feature = {"type": "Feature", "properties": {}, "geometry": None}
    feature["geometry"] = {"type": "Point", "coordinates": [7, -8]}
    assert read_prompts(json.dumps(feature))[0].crs.to_epsg() == 4326
    assert read_prompts(json.dumps(feature), pixels=True)[0].crs is None
    assert read_prompts(json.dumps(feature), pixels=True, crs=32633)[0].crs.to_epsg() == 32633


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("", "not a readable GeoJSON"),
        ("[]", "want a FeatureCollection"),
        ('{"type": "FeatureCollection", "features": []}', "put at least one point in it"),
        ('{"type": "Feature", "geometry": null, "properties": null}', "no usable geometry"),
        (
            '{"type": "Feature", "properties": {}, '
            '"geometry": {"type": "LineString", "coordinates": [[0, 0], [1, 1]]}}',
            "use points and polygons",
        ),
    ],
)
def test_a_bad_prompts_file_is_explained(tmp_path, text, remedy):
    path = tmp_path / "prompts.geojson"
    path.write_text(text)
    with pytest.raises(PromptError, match=remedy):
        read_prompts(path)


def test_a_single_point_box_or_mask_needs_no_list():
    assert as_prompts((1, 2), 1) == as_prompts([(1, 2)], [1])
    assert as_prompts(np.array([1.0, 2.0])) == as_prompts([(1, 2)])
    assert as_prompts(shapely.Point(1, 2)) == as_prompts([(1, 2)])
    assert as_prompts(boxes=(0, 1, 2, 3)) == as_prompts(boxes=[(0, 1, 2, 3)])
    square = shapely.box(0, 0, 1, 1)
    assert as_prompts(masks=square) == as_prompts(masks=[square])
    assert as_prompts([], boxes=[], masks=[]) == []


DATELINE = SimpleNamespace(crs=CRS(4326), bounds=(179.99, 9.97, 180.02, 10.0))


def test_a_place_a_whole_turn_away_is_the_same_place():
    found = locate(Prompt(points=((-179.995, 9.985), (179.995, 9.98)), crs=4326), DATELINE)
    assert found.points == pytest.approx(np.array([(180.005, 9.985), (179.995, 9.98)]))
    box = locate(Prompt(box=(-179.999, 9.98, -179.99, 9.99)), DATELINE).box
    assert box == pytest.approx((180.001, 9.98, 180.01, 9.99))
    west = shapely.box(-179.999, 9.98, -179.99, 9.99)
    mask = locate(Prompt(mask=west), DATELINE).mask
    assert mask.bounds == pytest.approx((180.001, 9.98, 180.01, 9.99))


def test_a_place_a_whole_turn_away_on_the_web_map():
    turn = 40_075_016.68557849
    web = SimpleNamespace(crs=CRS(3857), bounds=(turn / 2 - 1000, 0.0, turn / 2 + 1000, 1000.0))
    found = locate(Prompt(points=((-179.995, 0.005),), crs=4326), web)
    assert web.bounds[0] < found.points[0][0] < web.bounds[2]
    with pytest.raises(PromptError, match="outside the scene"):
        locate(Prompt(points=((-178, 0.005),), crs=4326), web)


def feature(**properties):
    place = {"type": "Point", "coordinates": [15, 42]}
    return {"type": "Feature", "properties": properties, "geometry": place}


@pytest.mark.parametrize(
    ("stored", "remedy"),
    [
        (feature(label="x"), "feature 0: label 'x': use 1 for foreground"),
        (feature(label=0.5), "use 1 for foreground"),
        (feature(object=[1]), "want a number or name"),
        ({"type": "FeatureCollection"}, "want a list of GeoJSON features"),
        ({"type": "FeatureCollection", "features": [None]}, "want a list of GeoJSON features"),
        ({**feature(), "properties": [1]}, "no JSON object"),
    ],
)
def test_mistakes_in_a_prompts_file_name_the_remedy(stored, remedy):
    with pytest.raises(PromptError, match=remedy):
        read_prompts(json.dumps(stored))


def test_null_in_a_prompts_file_is_nothing_said():
    two = [feature(label=None, object=None), feature(label=0, object=None)]
    stored = {"type": "FeatureCollection", "features": two, "crs": None}
    assert [prompt.labels for prompt in read_prompts(json.dumps(stored))] == [(1,), (0,)]
