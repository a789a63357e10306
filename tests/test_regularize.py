from __future__ import annotations

import numpy as np
import pytest
import rasterio.features
import shapely
from affine import Affine
from PIL import Image, ImageFilter
from shapely import affinity

from geosam2 import regularize, vectorize
from geosam2.testing import shapes, textures


def _seen(truth, rng, side=96):
    """Logits as a network gives them for a building: blurred, with noise."""
    large = rasterio.features.rasterize(
        [affinity.scale(truth, 4, 4, origin=(0, 0))], (4 * side,) * 2
    )
    cover = large.reshape(side, 4, side, 4).mean((1, 3))
    image = Image.fromarray((cover * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.2))
    noise = 0.8 * textures.noise(rng, (side, side), 8, 3)
    return (np.asarray(image, np.float32) / 255 - 0.5) * 8 + noise


def _iou(first, second):
    return first.intersection(second).area / first.union(second).area


def _is_right_angled(polygon):
    steps = np.diff(shapely.get_coordinates(polygon.exterior), axis=0)
    fourth = np.exp(4j * np.arctan2(steps[:, 1], steps[:, 0]))
    return np.allclose(fourth, fourth[0], atol=1e-6)


def test_buildings_get_right_angles_and_come_closer_to_the_truth():
    rng = np.random.default_rng(1)
    before, after, square, areas = [], [], [], []
    for _ in range(40):
        truth = shapes.building(rng, rng.uniform(24, 70))
        truth = affinity.translate(truth, 48 + rng.uniform(-0.5, 0.5), 48)
        logits = _seen(truth, rng)
        raw = vectorize.polygons(logits, Affine.identity(), min_area_m2=20)
        built = vectorize.polygons(logits, Affine.identity(), min_area_m2=20, orthogonal=True)
        before.append(_iou(raw, truth))
        after.append(_iou(built, truth))
        square.append(_is_right_angled(shapely.get_parts(built)[0]))
        areas.append(built.area / raw.area)
    assert np.mean(square) > 0.95
    assert np.mean(after) > np.mean(before) + 0.005
    assert np.min(after) > 0.9
    assert np.abs(np.array(areas) - 1).max() < 0.08


@pytest.mark.parametrize(
    "shape", [shapely.Point(0, 0).buffer(20), shapely.Polygon([(0, 0), (40, 0), (20, 35)])]
)
def test_what_is_not_rectilinear_is_only_simplified(shape):
    found = regularize.right_angles(shape, 1.0)
    assert _iou(found, shape) > 0.95
    assert not _is_right_angled(found)


def test_courtyards_stay_in_the_direction_of_the_building():
    truth = shapely.box(0, 0, 40, 30).difference(shapely.box(10, 10, 28, 20))
    turned = affinity.rotate(truth, 31)
    found = regularize.right_angles(shapely.segmentize(turned, 0.7), 0.5)
    assert len(found.interiors) == 1
    assert _iou(found, turned) > 0.999


def test_smoothing_removes_stairs_and_keeps_the_area():
    rows, cols = np.mgrid[0.5:200, 0.5:200]
    mask = np.hypot((rows - 100) / 60, (cols - 100) / 80) < 1
    stairs = vectorize.polygons(mask, Affine.identity())
    smooth = vectorize.polygons(mask, Affine.identity(), smooth=True)
    assert smooth.area == pytest.approx(np.pi * 60 * 80, rel=1e-3)
    turns = [_total_turn(polygon) for polygon in (stairs, smooth)]
    assert turns[1] < turns[0] / 5


def _total_turn(polygon):
    steps = np.diff(shapely.get_coordinates(polygon), axis=0)
    headings = np.unwrap(np.arctan2(steps[:, 1], steps[:, 0]))
    return np.abs(np.diff(headings)).sum()
