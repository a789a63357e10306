from __future__ import annotations

import numpy as np
import pyproj
import pytest
import rasterio.features
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from geosam2 import testing, vectorize
from geosam2.mosaic import LogitMosaic, Patch
from geosam2.testing import textures

UTM = Affine(0.5, 0, 500_000, 0, -0.5, 4_600_000)
DEGREES = Affine(5e-6, 0, 15.0, 0, -5e-6, 60.0)  # about 0.28 m by 0.56 m


def _ellipse(side=300, a=110.0, b=60.0, angle=0.4):
    rows, cols = np.mgrid[0.5:side, 0.5:side] - side / 2
    along = cols * np.cos(angle) + rows * np.sin(angle)
    across = rows * np.cos(angle) - cols * np.sin(angle)
    return ((1 - np.hypot(along / a, across / b)) * 40).astype(np.float32)


def test_area_of_a_known_ellipse():
    expected = np.pi * 110 * 60 * 0.25
    found = vectorize.polygons(_ellipse(), UTM, "EPSG:32633")
    assert found.area == pytest.approx(expected, rel=2e-4)
    assert vectorize.polygons(_ellipse() > 0, UTM).area == pytest.approx(expected, rel=2e-3)


@settings(max_examples=30, deadline=None)
@given(st.floats(20, 120), st.floats(20, 120), st.floats(0, 3))
def test_area_of_any_ellipse(a, b, angle):
    found = vectorize.polygons(_ellipse(a=a, b=b, angle=angle), Affine.identity())
    assert found.area == pytest.approx(np.pi * a * b, rel=2e-3)


def test_boundary_is_closer_than_a_staircase():
    circle = shapely.Point(150, 150).buffer(97, quad_segs=256)
    rows, cols = np.mgrid[0.5:300, 0.5:300] - 150
    logits = 97 - np.hypot(rows, cols)
    mine = vectorize.polygons(logits, Affine.identity())
    stairs = [
        shapely.geometry.shape(geometry)
        for geometry, value in rasterio.features.shapes((logits > 0).astype(np.uint8))
        if value
    ]
    assert mine.hausdorff_distance(circle) < 0.01
    assert stairs[0].hausdorff_distance(circle) > 0.4


@settings(max_examples=60, deadline=None)
@given(testing.geoboxes(), st.integers(0, 2**32 - 1))
def test_polygons_on_any_map_are_valid_and_cover_the_mask(geobox, seed):
    logits = np.random.default_rng(seed).normal(size=geobox.shape)
    found = vectorize.polygons(logits, geobox.transform, str(geobox.crs))
    assert found.is_valid
    assert found.geom_type in ("Polygon", "MultiPolygon")
    back = (
        rasterio.features.rasterize(
            [] if found.is_empty else [found], geobox.shape, transform=geobox.transform
        )
        if not found.is_empty
        else np.zeros(geobox.shape)
    )
    assert np.array_equal(back == 1, logits > 0)


@pytest.mark.parametrize("options", [{"simplify_m": 2.0}, {"orthogonal": True}, {"smooth": True}])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_tidied_polygons_are_valid_too(options, seed):
    scene_like = textures.noise(np.random.default_rng(seed), (60, 60), 20, 4)
    found = vectorize.polygons(scene_like, UTM, "EPSG:32633", **options)
    assert found.is_valid
    assert found.geom_type in ("Polygon", "MultiPolygon")


@pytest.mark.parametrize(
    ("transform", "crs"),
    [
        (UTM, "EPSG:32633"),
        (DEGREES, "EPSG:4326"),
        (Affine(1.0, 0, 1.67e6, 0, -1.0, 8.4e6), "EPSG:3857"),
    ],
)
def test_simplification_is_in_metres_in_any_crs(transform, crs):
    logits = _ellipse()
    exact = vectorize.polygons(logits, transform, crs)
    coarse = vectorize.polygons(logits, transform, crs, simplify_m=1.5)
    to_utm = pyproj.Transformer.from_crs(crs, 32633, always_xy=True).transform
    a, b = (shapely.transform(g, to_utm, interleaved=False) for g in (exact, coarse))
    assert 0.5 < a.hausdorff_distance(b) < 1.6
    assert shapely.get_num_coordinates(b) < shapely.get_num_coordinates(a) / 10


def test_small_parts_are_dropped_and_small_holes_filled():
    logits = np.full((60, 60), -4.0)
    logits[5:45, 5:45] = 4
    logits[10:12, 10:12] = -4  # 4 px, 1 m2
    logits[20:36, 20:36] = -4  # a real hole
    logits[50:52, 50:52] = 4
    found = vectorize.polygons(logits, UTM, "EPSG:32633", min_area_m2=3)
    assert found.geom_type == "Polygon"
    assert len(found.interiors) == 1
    everything = vectorize.polygons(logits, UTM, "EPSG:32633")
    assert len(everything.geoms) == 2
    assert len(max(everything.geoms, key=shapely.area).interiors) == 2


def test_nothing_found_is_an_empty_polygon():
    found = vectorize.polygons(np.full((5, 5), -1.0), UTM, "EPSG:32633", orthogonal=True)
    assert found.is_empty
    assert found.geom_type == "Polygon"


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"must be \(H, W\)"):
        vectorize.polygons(np.zeros((1, 4, 4)), UTM)
    with pytest.raises(ValueError, match="integers"):
        vectorize.coverage(np.zeros((4, 4)), UTM)


def test_a_mosaic_gives_the_polygon_of_its_pixels():
    rng = np.random.default_rng(2)
    mosaic = LogitMosaic(UTM, pyproj.CRS(32633))
    surface = textures.noise(rng, (700, 800), 120, 4) + 0.2
    for row in range(-1200, 1200, 384):
        key_rows = (row % 600, row % 500)
        part = surface[key_rows[0] : key_rows[0] + 96, key_rows[1] : key_rows[1] + 96]
        mosaic.add((row, row), Patch(row, 2 * row, np.ascontiguousarray(part[:, :]), step=4))
    top, left, bottom, right = mosaic.box
    pixels = mosaic.window(top, left, bottom - top, right - left, fill=np.nan)
    corner = Affine(0.5, 0, 500_000 + 0.5 * left, 0, -0.5, 4_600_000 - 0.5 * top)
    expected = vectorize.polygons(pixels, corner, "EPSG:32633")
    found = vectorize.from_mosaic(mosaic)
    assert expected.area > 1000
    assert found.is_valid
    assert found.symmetric_difference(expected).area < 1e-6 * expected.area


def test_an_empty_mosaic_is_an_empty_polygon():
    assert vectorize.from_mosaic(LogitMosaic(UTM)).is_empty


def test_coverage_of_fields_stays_one_when_simplified():
    scene = testing.synthetic_scene(2, 400)
    matrix, crs = scene.geobox.transform, "EPSG:32633"
    exact = vectorize.coverage(scene.labels, matrix, crs)
    coarse = vectorize.coverage(scene.labels, matrix, crs, simplify_m=1.0)
    for layer in (exact, coarse):
        assert shapely.coverage_is_valid(layer.geometry.to_numpy())
        assert layer.is_valid.all()
        assert layer.id.tolist() == sorted(set(scene.labels.ravel()) - {0})
    assert shapely.get_num_coordinates(coarse.geometry).sum() < (
        shapely.get_num_coordinates(exact.geometry).sum() / 4
    )
    truth = scene.truth.set_index("id").loc[coarse.id].geometry.to_numpy()
    mine = coarse.geometry.to_numpy()
    overlap = shapely.area(shapely.intersection(truth, mine)) / shapely.area(
        shapely.union(truth, mine)
    )
    assert np.median(overlap) > 0.97


def test_coverage_of_some_labels_only():
    labels = np.repeat(np.arange(4), 10)[None].repeat(10, axis=0)
    layer = vectorize.coverage(labels, UTM, "EPSG:32633", ids=[1, 3])
    assert layer.id.tolist() == [1, 3]
    small = vectorize.coverage(labels[:, 8:], UTM, "EPSG:32633", min_area_m2=20)
    assert small.id.tolist() == [1, 2, 3]
    assert vectorize.coverage(labels, UTM, "EPSG:32633", min_area_m2=26).empty


def test_geodesic_area_agrees_with_an_equal_area_projection():
    lake = shapely.box(15, 60, 15.3, 60.2).difference(shapely.box(15.1, 60.05, 15.2, 60.1))
    to_equal = pyproj.Transformer.from_crs(4326, 6933, always_xy=True).transform
    expected = shapely.transform(shapely.segmentize(lake, 0.001), to_equal, interleaved=False).area
    assert vectorize.geodesic_area(lake, "EPSG:4326") == pytest.approx(expected, rel=1e-5)
    both = shapely.multipolygons([lake, shapely.box(16, 60, 16.1, 60.1)])
    assert vectorize.geodesic_area(both, "EPSG:4326") > 1.1 * expected


def test_web_mercator_area_is_that_on_the_ground():
    to_web = pyproj.Transformer.from_crs(4326, 3857, always_xy=True).transform
    field = shapely.box(15, 60, 15.01, 60.01)
    web = shapely.transform(field, to_web, interleaved=False)
    area = vectorize.geodesic_area(web, "EPSG:3857")
    assert area == pytest.approx(vectorize.geodesic_area(field, "EPSG:4326"), rel=1e-6)
    assert web.area / area == pytest.approx(4.0, rel=0.02)


@pytest.mark.parametrize("west", [179.9, 179.9 - 360])
def test_area_across_the_antimeridian(west):
    here = vectorize.geodesic_area(shapely.box(10, 10, 10.2, 10.2), "EPSG:4326")
    there = vectorize.geodesic_area(shapely.box(west, 10, west + 0.2, 10.2), "EPSG:4326")
    assert there == pytest.approx(here, rel=1e-9)


def test_a_foot_is_a_foot():
    assert vectorize.metres_per_unit("EPSG:2263", 980_000, 200_000) == pytest.approx(
        (0.3048, 0.3048), rel=1e-3
    )
    assert vectorize.metres_per_unit(None, 0, 0) == (1, 1)
