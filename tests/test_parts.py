"""Parts and the lattice: weights, regions, areas, enlarging."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from geosam2.errors import LevelError, PromptError
from geosam2.parts import EAST, QUANTUM, Box, Layout, Part, crop_part
from geosam2.point_grid import point_grid, regions
from geosam2.recipe import Recipe

LAYOUT = Layout(128, 32)


def part_of(
    mask: np.ndarray, origin: tuple[int, int] = (0, 0), step: int = 4, rank: int = 0
) -> Part:
    logits = np.where(mask, 80, -80).astype(np.int8)
    return Part((0, 0), rank, origin, step, logits, 0.9, 0.9)


def test_weights_of_all_frames_sum_to_one_everywhere():
    window = Box(-40, 10, 300, 260)
    keys = [(r, c) for r in range(-2, 5) for c in range(-2, 5)]
    total = sum(LAYOUT.weights(key, window) for key in keys)
    np.testing.assert_allclose(total, 1.0, atol=1e-6)


def test_the_nearest_frame_weighs_most():
    window = Box(0, 0, 128, 224)
    left, right = LAYOUT.weights((0, 0), window), LAYOUT.weights((0, 1), window)
    nearer_left = np.arange(224) + 0.5 < 112
    inside = left[64] + right[64] > 0
    assert ((left[64] > right[64]) == nearer_left)[inside].all()


def test_zoomed_regions_are_the_frames_of_the_finer_lattice():
    for zoom in (2, 4):
        places = sorted(
            {LAYOUT.region((0, c), zoom, 0, i).left for c in range(3) for i in range(zoom)}
        )
        assert set(np.diff(places)) == {LAYOUT.stride // zoom}  # evenly over frame borders
        assert len(places) == 3 * zoom  # and none of them twice


def test_zoomed_regions_cover_the_core():
    core = LAYOUT.core((2, 3))
    for zoom in (2, 4):
        boxes = [LAYOUT.region((2, 3), zoom, r, c) for r in range(zoom) for c in range(zoom)]
        assert min(b.top for b in boxes) <= core.top
        assert max(b.right for b in boxes) >= core.right
        frame = LAYOUT.frame((2, 3))
        assert all((b & frame) == b for b in boxes)


@pytest.mark.parametrize(("size", "overlap"), [(100, 32), (128, 0), (128, 80), (128, 24)])
def test_frames_that_cannot_be_linked_are_refused(size, overlap):
    with pytest.raises(LevelError, match="multiples of 16"):
        Layout(size, overlap)


def test_point_grid_is_that_of_sam():
    side = 3
    offset = 1 / (2 * side)
    axis = np.linspace(offset, 1 - offset, side) * 96
    expected = [(x, y) for y in axis for x in axis]
    np.testing.assert_allclose(point_grid(side, 96), expected, rtol=1e-6)


def test_frames_that_share_pixels_ask_at_different_places():
    layout = Layout(256, 128)
    asked = [
        (region.box.top + y, region.box.left + x)
        for key in [(0, 0), (0, 1), (1, 0), (1, 1)]
        for region in regions(layout, key, (8,))
        for x, y in region.points
    ]
    shared = layout.frame((0, 0)) & layout.frame((1, 1))
    inside = [
        (row, col)
        for row, col in asked
        if shared.top < row < shared.bottom and shared.left < col < shared.right
    ]
    rows, cols = (np.unique([place[axis] for place in inside]) for axis in (0, 1))
    assert len(inside) == len(set(inside)) == len(rows) * len(cols)
    assert set(np.diff(rows)) == set(np.diff(cols)) == {16.0}


def test_tiers_can_be_left_out():
    assert {r.zoom for r in regions(LAYOUT, (0, 0), (8, 0, 2))} == {1, 4}


@given(
    st.integers(0, 40), st.integers(0, 40), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1)
)
def test_soft_masks_keep_the_area(row, col, step, seed):
    rng = np.random.default_rng(seed)
    part = part_of(rng.random((9, 7)) < 0.5, (row * step, col * step), step)
    box, soft = part.soft
    assert soft.sum() * 16 == pytest.approx(part.area)
    assert (box.top % 4, box.left % 4, box.bottom % 4, box.right % 4) == (0, 0, 0, 0)


@pytest.mark.parametrize("step", [1, 2, 4])
def test_enlarging_agrees_with_torch(step):
    rng = np.random.default_rng(step)
    logits = rng.integers(-100, 100, (12, 9)).astype(np.int8)
    part = Part((0, 0), 0, (16, 32), step, logits, 1, 1)
    theirs = F.interpolate(
        torch.from_numpy(logits.astype(np.float32) / QUANTUM)[None, None],
        scale_factor=float(step),
        mode="bilinear",
        align_corners=False,
    )[0, 0].numpy()
    np.testing.assert_allclose(part.upsampled(part.box), theirs, atol=1e-5)


def test_enlarging_a_window_is_a_window_of_the_enlarged():
    rng = np.random.default_rng(0)
    part = Part((0, 0), 0, (8, 8), 4, rng.integers(-90, 90, (10, 10)).astype(np.int8), 1, 1)
    whole, window = Box(0, 0, 64, 64), Box(13, 7, 41, 60)
    np.testing.assert_array_equal(
        part.upsampled(window), part.upsampled(whole)[window.within(whole)]
    )


def test_a_cut_mask_knows_which_border_it_touches():
    logits = np.full((32, 32), -80, np.int8)
    logits[10:14, 28:] = 80
    frame = LAYOUT.frame((0, 0))
    part = crop_part(logits, frame, frame, frame=(0, 0), rank=0, predicted_iou=1, stability=1)
    assert part.edges == EAST
    assert part.area == 4 * 4 * 16
    assert part.box == Box(36, 108, 60, 128)


def test_recipes_survive_json():
    recipe = Recipe(points=(8, 4), layer="parts", coverage=())
    assert Recipe.from_dict({**recipe.to_dict(), "points": [8, 4]}) == recipe
    assert recipe.fingerprint != Recipe().fingerprint


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"points": (0,)}, "not all 0"),
        ({"points": ()}, "1 to 3 whole numbers"),
        ({"layer": "round"}, "choose 'flat' or 'parts'"),
        ({"min_area_m2": 5.0, "max_area_m2": 5.0}, "below max_area_m2"),
        ({"link_iou": -0.1}, "from 0 to 1"),
        ({"chunk": 0}, "at least 1"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(wrong, says):
    with pytest.raises(PromptError, match=says):
        Recipe(**wrong)
