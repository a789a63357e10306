from __future__ import annotations

import geopandas
import numpy as np
import pytest
import rasterio.features
import shapely
from affine import Affine
from shapely import affinity

from geosam2 import quality, vectorize
from geosam2.testing import shapes, textures

FRAMES = [(c * 384, r * 384, c * 384 + 512, r * 384 + 512) for r in range(3) for c in range(3)]
SEAMS = quality.seam_lines(FRAMES)


def _boxes(*boxes):
    return np.array([shapely.box(*box) for box in boxes], dtype=object)


def test_iou_of_masks_and_of_polygons_agree():
    first, second = np.zeros((2, 40, 40), bool)
    first[5:20, 5:30], second[10:25, 10:35] = True, True
    polygons = _boxes((5, 5, 30, 20), (10, 10, 35, 25))
    expected = quality.polygon_iou(*polygons)
    assert quality.mask_iou(first, second) == pytest.approx(expected)
    assert quality.mask_iou(first & False, second & False) == 1
    assert quality.polygon_iou(shapely.Polygon(), shapely.Polygon()) == 1


def test_stability_falls_with_the_slope_of_the_border():
    distance = 20 - np.hypot(*np.mgrid[-30:31, -30:31])
    steep, gentle = (quality.stability_score(distance * slope) for slope in (10, 0.3))
    assert steep > 0.97
    assert gentle < 0.6
    assert quality.stability_score(np.full((4, 4), -9.0)) == 1
    with pytest.raises(ValueError, match="positive"):
        quality.stability_score(distance, offset=0)


def test_boundary_f_score_prefers_sub_pixel_lines_to_staircases():
    truth = affinity.translate(shapes.blob(np.random.default_rng(0), 90), 60, 60)
    large = rasterio.features.rasterize([affinity.scale(truth, 8, 8, origin=(0, 0))], (960, 960))
    cover = large.reshape(120, 8, 120, 8).mean((1, 3))
    mine = vectorize.polygons(cover - 0.5, Affine.identity())
    mask = (cover > 0.5).astype(np.uint8)
    stairs = next(
        shapely.geometry.shape(shape) for shape, value in rasterio.features.shapes(mask) if value
    )
    ours, theirs = (quality.boundary_f_score(found, truth, 0.25) for found in (mine, stairs))
    assert ours > 0.95
    assert theirs < 0.75
    assert quality.boundary_f_score(truth, truth, 0.1) == pytest.approx(1)
    assert quality.boundary_f_score(affinity.translate(truth, 500), truth, 1) == 0
    assert quality.boundary_f_score(shapely.Polygon(), truth, 1) == 0


def test_matching_is_one_to_one():
    truth = _boxes((0, 0, 10, 10), (20, 0, 30, 10))
    found = _boxes((0, 0, 10, 9), (0, 0, 10, 8), (21, 0, 30, 10), (50, 50, 60, 60))
    assert quality.matches(found, truth) == [(0, 0, pytest.approx(0.9)), (2, 1, pytest.approx(0.9))]


def test_split_rate_counts_objects_cut_at_seams():
    truth = _boxes((350, 100, 550, 200), (350, 300, 550, 360), (20, 20, 60, 60))
    whole = _boxes((351, 101, 549, 199), (350, 300, 550, 360), (20, 20, 60, 60))
    cut = _boxes((350, 100, 512, 200), (512, 100, 550, 200), (350, 300, 550, 360))
    assert quality.split_rate(whole, truth, SEAMS) == 0
    assert quality.split_rate(cut, truth, SEAMS) == 0.5
    joined = np.array([shapely.MultiPolygon(list(cut[:2])), cut[2]], dtype=object)
    assert quality.split_rate(joined, truth, SEAMS) == 0  # one object of two parts is one object
    assert np.isnan(quality.split_rate(whole, truth[2:], SEAMS))


def test_splitting_inside_one_frame_is_no_seam_split():
    truth = _boxes((150, 150, 250, 250))
    halves = _boxes((150, 150, 200, 250), (200, 150, 250, 250))
    assert np.isnan(quality.split_rate(halves, truth, SEAMS))


def test_parted_rate_counts_pieces_that_meet_along_a_seam():
    truth = _boxes((350, 100, 550, 200), (350, 250, 550, 360))
    at_seam = _boxes((350, 100, 511, 200), (513, 100, 550, 200), (350, 250, 550, 360))
    at_ridge = _boxes((350, 100, 550, 150), (350, 150, 550, 200), (350, 250, 550, 360))
    assert quality.parted_rate(at_seam, truth, SEAMS, 2) == 0.5
    assert quality.parted_rate(at_ridge, truth, SEAMS, 2) == 0
    assert quality.split_rate(at_ridge, truth, SEAMS) == 0.5
    bent = shapely.MultiPolygon([shapely.box(350, 100, 512, 200), shapely.box(512, 100, 550, 120)])
    mostly = np.array([bent, shapely.box(512, 122, 550, 200)], dtype=object)
    assert quality.parted_rate(mostly, truth, SEAMS, 2) == 1  # of the one that was found
    assert quality.parted_rate(truth, truth, SEAMS, 2) == 0
    assert np.isnan(quality.parted_rate(at_seam[:0], truth, SEAMS, 2))


def test_overlap_agreement_compares_the_same_ground():
    surface = textures.noise(np.random.default_rng(1), (512, 900), 90, 4)
    first, second = surface[:, :512], surface[:, 384:896]
    assert quality.overlap_agreement(first, second, (0, 384)) == 1
    assert quality.overlap_agreement(second, first, (0, -384)) == 1
    assert quality.overlap_agreement(first, second, (0, 380)) < 0.95
    assert np.isnan(quality.overlap_agreement(first, second, (0, 512)))
    shifted = surface[100:], surface[:-100]
    assert quality.overlap_agreement(*shifted, (-100, 0)) == 1


def test_straight_edge_finds_what_was_cut_at_a_border():
    lake = affinity.translate(shapes.blob(np.random.default_rng(2), 400), 500, 450)
    cut = lake.intersection(shapely.box(0, 0, 512, 2000))
    cut_length = lake.intersection(shapely.LineString([(512, 0), (512, 2000)])).length
    whole_figure = quality.straight_edge(np.array([lake]), SEAMS, 1)
    cut_figure = quality.straight_edge(np.array([cut]), SEAMS, 1)
    assert whole_figure < 0.02
    assert cut_figure == pytest.approx(cut_length / cut.length, abs=0.02)
    border = shapely.LineString([(512, 0), (512, 2000)])
    assert quality.straight_edge(np.array([cut]), SEAMS, 1, edge=border) < 0.02
    assert quality.straight_edge(np.array([], dtype=object), SEAMS, 1) == 0


def test_a_straight_edge_across_seams_is_no_fault():
    road = affinity.rotate(shapely.box(0, 500, 1200, 520), 30)
    assert quality.straight_edge(np.array([road]), SEAMS, 1) < 0.01


def test_phase_iou_punishes_what_one_run_misses():
    runs = _boxes((0, 0, 10, 10), (20, 0, 30, 10)), _boxes((0, 0, 10, 10))
    assert quality.phase_iou(runs[0], runs[0]) == 1
    assert quality.phase_iou(*runs) == pytest.approx(2 / 3)
    assert quality.phase_iou(runs[0][:0], runs[0][:0]) == 1
    assert quality.phase_iou(runs[0], runs[0][:0]) == 0


def test_duplicates_are_covered_by_another():
    found = _boxes((0, 0, 10, 10), (0, 0, 10, 9), (0, 0, 10, 10), (9, 0, 19, 10))
    assert quality.duplicates(found) == 0.5
    assert quality.duplicates(found[2:]) == 0


def test_review_is_kept_per_object():
    gdf = geopandas.GeoDataFrame({"id": [1, 2, 3]}, geometry=_boxes(*[(0, 0, 1, 1)] * 3))
    once = quality.set_review(gdf, [2], "accepted")
    twice = quality.set_review(once, [3], quality.Review.REJECTED)
    assert twice.review.tolist() == ["open", "accepted", "rejected"]
    assert "review" not in gdf
    with pytest.raises(ValueError, match="no object has id 9"):
        quality.set_review(gdf, [9], "accepted")
    with pytest.raises(ValueError, match="perfect"):
        quality.set_review(gdf, [1], "perfect")
