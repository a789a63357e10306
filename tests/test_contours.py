from __future__ import annotations

from itertools import pairwise

import contourpy
import numpy as np
import pytest
import rasterio.features
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from geosam2 import contours, testing

SHAPES = [(1, 1), (1, 7), (2, 2), (20, 30), (80, 60)]


def _polygons(raster, level=0.0):
    return contours.polygons(contours.trace(contours.strips(raster), raster.shape[1], level=level))


def _rasterised(polygons, shape):
    if not len(polygons):
        return np.zeros(shape, bool)
    return rasterio.features.rasterize(list(polygons), shape, transform=Affine.identity()) == 1


@settings(max_examples=80, deadline=None)
@given(testing.masks())
def test_polygonise_then_rasterise_gives_the_mask_back(mask):
    polygons, _ = _polygons(mask)
    assert shapely.is_valid(polygons).all()
    assert np.array_equal(_rasterised(polygons, mask.shape), mask)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 1000]))
def test_rings_of_any_values_are_valid_and_contain_what_is_above(shape, seed, steps):
    # few distinct values make lines pass through samples, the hard case
    values = np.random.default_rng(seed).integers(-steps, steps + 1, shape).astype(np.float32)
    polygons, _ = _polygons(values)
    assert shapely.is_valid(polygons).all()
    assert shapely.is_valid(shapely.multipolygons(polygons))  # nor do they touch each other
    assert np.array_equal(_rasterised(polygons, shape), values > 0)


@pytest.mark.parametrize("seed", range(5))
def test_lines_agree_with_contourpy(seed):
    values = np.random.default_rng(seed).normal(size=(40, 50)).astype(np.float32)
    generator = contourpy.contour_generator(z=values, fill_type="OuterOffset")
    points, offsets = generator.filled(0, np.finfo(float).max)
    rings = [
        [piece[a:b] + 0.5 for a, b in pairwise(cut)]
        for piece, cut in zip(points, offsets, strict=True)
    ]
    expected = shapely.multipolygons([shapely.Polygon(ring[0], ring[1:]) for ring in rings])
    inside = shapely.box(0.5, 0.5, 49.5, 39.5)  # contourpy stops at the outer samples
    found = shapely.multipolygons(_polygons(values)[0]).intersection(inside)
    assert found.symmetric_difference(shapely.make_valid(expected)).area < 0.1


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_labels_become_a_coverage(shape, seed, count):
    labels = np.random.default_rng(seed).integers(-1, count + 1, shape)
    polygons, owner = _polygons(labels)
    assert shapely.is_valid(polygons).all()
    assert shapely.coverage_is_valid(polygons)
    for label in range(1, count + 1):
        mine = _rasterised(polygons[owner == label], shape)
        assert np.array_equal(mine, labels == label)


def test_touching_labels_leave_no_gap():
    labels = np.random.default_rng(3).integers(1, 4, (20, 20)).repeat(3, axis=0)
    polygons, _ = _polygons(labels)
    assert shapely.area(polygons).sum() == pytest.approx(labels.size)
    assert shapely.union_all(polygons).equals(shapely.box(0, 0, 20, 60))


@pytest.mark.parametrize("real", [True, False])
def test_the_outline_does_not_depend_on_the_blocks(real):
    rng = np.random.default_rng(5)
    raster = rng.normal(size=(70, 90)) if real else rng.integers(0, 3, (70, 90))
    rim = np.nan if real else contours.UNKNOWN
    padded = np.pad(raster.astype(float if real else int), 1, constant_values=rim)
    blocks = [
        contours.Block(row - 1, col - 1, padded[row : row + 18, col : col + 24])
        for row in range(0, 71, 17)
        for col in range(0, 91, 23)
    ]
    rng.shuffle(blocks)
    whole = contours.trace(contours.strips(raster), 90)
    pieced = contours.trace(blocks, 90)
    assert np.array_equal(whole.points, pieced.points)
    assert np.array_equal(whole.starts, pieced.starts)


def test_holes_and_islands_nest():
    rows, cols = np.ogrid[-50:50, -50:50]
    polygons, _ = _polygons(np.sin(np.hypot(rows, cols) / 2).astype(np.float32))
    nested = sorted(polygons, key=lambda polygon: polygon.area)
    rings = [polygon for polygon in nested if shapely.contains_xy(polygon.envelope, 50, 50)]
    assert [len(ring.interiors) for ring in rings[:4]] == [1, 1, 1, 1]
    assert shapely.is_valid(shapely.multipolygons(polygons))


def test_edges_of_the_array_and_of_the_known_are_pixel_edges():
    values = np.full((6, 8), 2.0)
    assert _polygons(values)[0][0].equals(shapely.box(0, 0, 8, 6))
    values[:, 6:] = np.nan
    values[4:] = np.nan
    assert _polygons(values)[0][0].equals(shapely.box(0, 0, 6, 4))
    slope = np.linspace(-1, 1, 5)[:, None].repeat(4, axis=1)  # crosses 0.2 between rows 2 and 3
    assert _polygons(slope, level=0.2)[0][0].bounds == pytest.approx((0, 2.9, 4, 5))


def test_straight_borders_have_no_points_between_but_junctions():
    labels = np.ones((10, 20), int)
    labels[:, 10:] = 2
    polygons, _ = _polygons(labels)
    assert shapely.get_num_coordinates(polygons).tolist() == [5, 5]
    labels[5:, 15:] = 3
    polygons, owner = _polygons(labels)
    assert shapely.coverage_is_valid(polygons)
    assert polygons[owner == 1][0].equals(shapely.box(0, 0, 10, 10))


def test_nothing_inside_gives_nothing():
    assert len(_polygons(np.full((3, 3), -1.0))[0]) == 0
    assert len(_polygons(np.full((3, 3), np.nan))[0]) == 0
