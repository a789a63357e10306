"""Masks of one frame: found, filtered, suppressed, cleaned, filled in; agreement with Meta's."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from geosam2.automatic import (
    _boxes,
    _Candidates,
    _popcount,
    _spread_order,
    _suppress,
    _without_specks,
    find_masks,
)
from geosam2.parts import Layout, overlap_iou, stability_scores
from geosam2.point_grid import point_grid
from geosam2.recipe import Recipe
from geosam2.testing.oracle import ColourOracle, colour_scene

LAYOUT = Layout(256, 64)
RECIPE = Recipe(points=(16,), coverage=(), features=False)
ALL = np.ones((256, 256), bool)


def found_ids(parts, ids: np.ndarray) -> list[int]:
    """The object under most of each part."""
    out = []
    for part in parts:
        mask = part.upsampled(LAYOUT.frame((0, 0))) > 0
        out.append(int(np.bincount(ids[mask]).argmax()))
    return out


def test_every_object_is_found_once():
    pixels, ids = colour_scene((256, 256), 9, seed=1, size=(40, 120))
    found = find_masks(ColourOracle(), pixels, ALL, LAYOUT, (0, 0), RECIPE)
    large = {i for i in np.unique(ids)[1:] if (ids == i).sum() > 600}
    seen = found_ids(found.parts, ids)
    assert len(seen) == len(set(seen))
    assert large <= set(seen)
    assert [p.rank for p in found.parts] == list(range(len(seen)))
    assert found.coverage == pytest.approx((ids > 0).mean(), abs=0.04)


def test_points_in_the_middle_of_what_is_found_are_skipped_without_loss():
    pixels, ids = colour_scene((256, 256), 50, seed=2, size=(20, 44))
    lazy = find_masks(ColourOracle(), pixels, ALL, LAYOUT, (0, 0), replace(RECIPE, chunk=32))
    eager = find_masks(
        ColourOracle(), pixels, ALL, LAYOUT, (0, 0), replace(RECIPE, skip_explained=False)
    )
    assert lazy.decoded < 0.9 * eager.decoded == 0.9 * 256
    assert sorted(found_ids(lazy.parts, ids)) == sorted(found_ids(eager.parts, ids))


def test_a_tier_leaves_out_what_a_larger_one_explained():
    pixels, ids = colour_scene((256, 256), 50, seed=2, size=(20, 44))
    recipe = replace(RECIPE, points=(16, 8))
    lazy, eager = (
        find_masks(ColourOracle(), pixels, ALL, LAYOUT, (0, 0), replace(recipe, skip_explained=s))
        for s in (True, False)
    )
    first = find_masks(ColourOracle(), pixels, ALL, LAYOUT, (0, 0), RECIPE)
    assert eager.decoded == 256 + 4 * 64
    assert lazy.decoded - first.decoded < 0.8 * 4 * 64
    assert set(found_ids(eager.parts, ids)) == set(found_ids(lazy.parts, ids))


def test_chunks_do_not_change_the_result():
    pixels, _ = colour_scene((256, 256), 9, seed=3, size=(40, 160))
    recipe = replace(RECIPE, skip_explained=False)
    a, b = (
        find_masks(ColourOracle(), pixels, ALL, LAYOUT, (0, 0), replace(recipe, chunk=chunk))
        for chunk in (7, 256)
    )
    assert [p.box for p in a.parts] == [p.box for p in b.parts]


def test_nothing_is_found_on_nodata_and_no_point_is_spent_there():
    pixels, _ = colour_scene((256, 256), 9, seed=1, size=(40, 160))
    valid = ALL.copy()
    valid[:, 128:] = False
    found = find_masks(ColourOracle(), pixels, valid, LAYOUT, (0, 0), RECIPE)
    assert found.decoded <= 128
    assert found.valid_share == 0.5
    assert all(p.box.right <= 132 for p in found.parts)
    nothing = find_masks(ColourOracle(), pixels, ~ALL, LAYOUT, (0, 0), RECIPE)
    assert (nothing.parts, nothing.decoded, nothing.valid_share) == ((), 0, 0.0)


def test_points_are_only_set_in_the_region_of_interest():
    pixels, ids = colour_scene((256, 256), 9, seed=1, size=(40, 120))
    asked = np.zeros((256, 256), bool)
    asked[100:120, 90:140] = True
    found = find_masks(ColourOracle(), pixels, ALL, LAYOUT, (0, 0), RECIPE, asked=asked)
    assert 0 < found.decoded < 10
    assert set(found_ids(found.parts, ids)) <= set(np.unique(ids[asked]))


def test_zoomed_regions_find_what_the_frame_is_too_coarse_for():
    pixels = np.zeros((3, 256, 256), np.uint8)
    pixels[:, 102:105, 122:125] = np.array([200, 30, 60])[:, None, None]
    recipe = replace(RECIPE, min_region=0, points=(16, 0, 0))
    coarse = find_masks(ColourOracle(), pixels, ALL, LAYOUT, (0, 0), recipe)
    assert coarse.parts == ()
    # pixels enlarged by nearest neighbour, as a finer level would show them
    fine = find_masks(
        ColourOracle(),
        pixels,
        ALL,
        LAYOUT,
        (0, 0),
        replace(recipe, points=(16, 0, 32)),
        enlarge=lambda box: np.kron(
            pixels[:, box.top : box.bottom, box.left : box.right],
            np.ones((1, 4, 4), np.uint8),
        ),
    )
    (part,) = fine.parts
    assert part.step == 1
    assert part.area == 9


def test_what_a_zoomed_region_cuts_is_left_to_the_frame():
    pixels = np.zeros((3, 256, 256), np.uint8)
    pixels[:, 20:220, 40:200] = 90
    found = find_masks(
        ColourOracle(), pixels, ALL, LAYOUT, (0, 0), replace(RECIPE, points=(8, 8, 4))
    )
    (part,) = found.parts
    assert (part.step, part.area) == (4, 200 * 160)


@dataclass(frozen=True)
class Shy(ColourOracle):
    """Sure of nothing: only relaxed thresholds let its masks pass."""

    def decode(self, features, prompts, multimask=True):
        answer = super().decode(features, prompts, multimask)
        return answer._replace(predicted_iou=answer.predicted_iou * 0.66 / 0.98)


def test_the_coverage_pass_asks_again_where_nothing_was_accepted():
    pixels, _ = colour_scene((256, 256), 9, seed=1, size=(40, 120))
    plain = find_masks(Shy(), pixels, ALL, LAYOUT, (0, 0), RECIPE)
    again = find_masks(
        Shy(), pixels, ALL, LAYOUT, (0, 0), replace(RECIPE, coverage=(0.9,), coverage_points=16)
    )
    assert plain.coverage == 0.0
    assert again.coverage > 0.2
    assert again.decoded > plain.decoded


def test_features_are_the_mean_colour_under_the_mask():
    pixels = np.zeros((3, 256, 256), np.uint8)
    pixels[:, 64:128, 64:192] = np.array([200, 100, 50])[:, None, None]
    found = find_masks(ColourOracle(), pixels, ALL, LAYOUT, (0, 0), replace(RECIPE, features=True))
    np.testing.assert_allclose(found.parts[0].feature, [200, 100, 50])


# --- the pieces, against independent counts


def candidates(seed: int, count: int = 40) -> _Candidates:
    rng = np.random.default_rng(seed)
    logits = np.full((count, 24, 24), -50, np.int8)
    for i in range(count):
        top, left = rng.integers(0, 16, 2)
        logits[i, top : top + rng.integers(3, 9), left : left + rng.integers(3, 9)] = 50
    return _Candidates(logits, rng.random(count).astype(np.float32), np.ones(count, np.float32))


@pytest.mark.parametrize("seed", range(5))
def test_suppression_is_the_textbook_greedy_one(seed):
    some = candidates(seed)
    masks = (some.logits > 0).reshape(len(some), -1)
    stays: list[int] = []
    for i in np.argsort(-some.score, kind="stable"):
        ious = [(masks[i] & masks[j]).sum() / (masks[i] | masks[j]).sum() for j in stays]
        if all(iou <= 0.4 for iou in ious):
            stays.append(int(i))
    assert _suppress(some, 0.4).tolist() == stays


def test_bits_are_counted_alike_with_and_without_numpy_2(monkeypatch):
    words = np.random.default_rng(0).integers(0, 2**63, (7, 5)).astype(np.uint64)
    fast = _popcount(words)
    assert fast.tolist() == [sum(bin(int(w)).count("1") for w in row) for row in words]
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert _popcount(words).tolist() == fast.tolist()


def test_boxes_of_masks_agree_with_torch():
    masks = candidates(1).logits > 0
    expected = []
    for mask in masks:
        rows, cols = np.nonzero(mask)
        expected.append([rows.min(), cols.min(), rows.max() + 1, cols.max() + 1])
    assert _boxes(masks).tolist() == expected


def test_specks_and_pinholes_go_and_the_object_stays():
    logits = np.full((20, 20), -80, np.int8)
    logits[2:14, 2:14] = 80
    logits[6, 6] = -80
    logits[17, 17] = 80
    clean = _without_specks(logits, 4)
    assert clean[6, 6] > 0 > clean[17, 17]
    assert (clean[2:14, 2:14] > 0).all()
    lonely = np.full((20, 20), -80, np.int8)
    lonely[5:7, 5] = 80
    assert (_without_specks(lonely, 4) == lonely).all()


def test_early_points_are_spread_over_the_frame():
    points = point_grid(32, 512)
    order = _spread_order(points, 512)
    assert sorted(order) == list(range(1024))
    early = points[order[:64]]
    cells = {(int(x // 64), int(y // 64)) for x, y in early}
    assert len(cells) == 64  # one in each of 8 x 8 squares


def test_iou_of_parts_is_that_of_their_pixels():
    pixels, _ = colour_scene((256, 256), 4, seed=5, size=(80, 160))
    parts = find_masks(ColourOracle(), pixels, ALL, LAYOUT, (0, 0), RECIPE).parts
    assert overlap_iou(parts[0], parts[0]) == 1.0
    assert overlap_iou(parts[0], parts[1]) < 0.1


@pytest.mark.peers
def test_stability_is_that_of_metas_generator():
    amg = pytest.importorskip("sam2.utils.amg")
    logits = torch.randn(8, 32, 32, generator=torch.Generator().manual_seed(0)) * 3
    theirs = amg.calculate_stability_score(logits, 0.0, 1.0)
    torch.testing.assert_close(stability_scores(logits, 1.0), theirs)
