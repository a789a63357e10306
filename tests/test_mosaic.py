"""Blending of frames on one lattice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from affine import Affine

from geosam2.mosaic import UNKNOWN, LogitMosaic, Patch

SIZE, OVERLAP, STRIDE = 128, 32, 96
TRANSFORM = Affine(2, 0, 10, 0, -2, 20)


def patch(row, col, logits=None, **kwargs):
    if logits is None:
        logits = (
            np.random.default_rng((row + 1000) * 7 + col + 1000)
            .normal(size=(32, 32))
            .astype(np.float32)
        )
    return Patch(row, col, logits, overlap=OVERLAP, **kwargs)


def grid(order=None):
    places = [(r * STRIDE, c * STRIDE) for r, c in itertools.product(range(-1, 2), repeat=2)]
    mosaic = LogitMosaic(TRANSFORM)
    for k in order if order is not None else range(9):
        mosaic.add(places[k], patch(*places[k]))
    return mosaic


def test_weights_of_neighbours_add_up_to_one():
    mosaic = LogitMosaic(TRANSFORM)
    for row, col in itertools.product((0, 1), repeat=2):
        mosaic.add((row, col), patch(row * STRIDE, col * STRIDE))
    _, weight = mosaic.known(OVERLAP, OVERLAP, STRIDE, STRIDE)
    assert np.allclose(weight, 1, atol=5e-3)  # the floor at the very border adds a little


def test_the_order_of_visits_does_not_matter_to_the_last_bit():
    whole = grid().window(-96, -96, 320, 320)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(9)
        assert np.array_equal(whole, grid(order).window(-96, -96, 320, 320))


def test_a_window_is_a_part_of_a_larger_window():
    mosaic = grid()
    whole = mosaic.window(-96, -96, 320, 320)
    part = mosaic.window(-35, 3, 61, 77)
    assert np.allclose(part, whole[61:122, 99:176], atol=1e-5)


def test_interpolation_agrees_with_torch():
    import torch
    from torch.nn import functional as F

    one = patch(0, 0)
    mosaic = LogitMosaic(TRANSFORM, patches={(0, 0): one})
    expected = F.interpolate(
        torch.from_numpy(one.logits)[None, None], scale_factor=4, mode="bilinear"
    )
    assert np.allclose(mosaic.window(0, 0, SIZE, SIZE), expected[0, 0].numpy(), atol=1e-5)


def test_unknown_is_surely_not_the_object():
    mosaic = grid()
    assert (mosaic.window(1000, 1000, 4, 4) == UNKNOWN).all()
    assert np.isnan(mosaic.window(1000, 1000, 4, 4, fill=np.nan)).all()
    logits, weight = mosaic.known(1000, 1000, 4, 4)
    assert not logits.any()
    assert not weight.any()


def test_a_frame_that_is_taken_back_leaves_no_trace():
    mosaic = grid()
    mosaic.remove((0, 0))
    other = LogitMosaic(TRANSFORM)
    for key, one in grid().patches.items():
        if key != (0, 0):
            other.add(key, one)
    assert np.array_equal(mosaic.window(-96, -96, 320, 320), other.window(-96, -96, 320, 320))


def test_nodata_has_no_say():
    valid = np.ones((SIZE, SIZE), bool)
    valid[:, 64:] = False
    left = patch(0, 0, np.full((32, 32), 5, np.float32), valid=valid)
    mosaic = LogitMosaic(TRANSFORM, patches={(0, 0): left})
    window = mosaic.window(0, 0, SIZE, SIZE)
    assert np.allclose(window[:, :64], 5)
    assert (window[:, 64:] == UNKNOWN).all()


def test_refined_wins_over_coarse_and_fades_at_its_border():
    coarse = Patch(0, 0, np.full((32, 32), -4, np.float32), step=16, overlap=0)
    fine = patch(128, 128, np.full((32, 32), 4, np.float32), rank=1)
    mosaic = LogitMosaic(TRANSFORM, patches={(0, 0, 0): coarse, (1, 1, 1): fine})
    window = mosaic.window(0, 0, 512, 512)
    assert window[192, 192] == 4
    assert window[10, 10] == -4
    assert window[128, 192] == pytest.approx(-4, abs=0.2)
    assert (np.diff(window[192, 128:160]) >= 0).all()


def test_cells_are_the_means_of_pixels():
    mosaic = LogitMosaic(TRANSFORM, patches={(0, 0): patch(0, 0)})
    cells, _ = mosaic.known(16, 16, 64, 64, step=4)
    pixels = mosaic.known(16, 16, 64, 64)[0].reshape(16, 4, 16, 4).mean((1, 3))
    assert np.abs(cells - pixels).max() < np.abs(cells).max()  # the same thing, a little smoother
    assert np.corrcoef(cells.ravel(), pixels.ravel())[0, 1] > 0.9


def test_boxes_and_blocks():
    logits = np.full((32, 32), -1, np.float32)
    logits[10:12, 20:25] = 3
    mosaic = LogitMosaic(TRANSFORM, patches={(0, 0): patch(-64, 64, logits)})
    assert mosaic.box == (-64, 64, 64, 192)
    assert mosaic.bounds == (138, -108, 394, 148)
    assert mosaic.geobox().affine.c == 138
    top, left, bottom, right = mosaic.tight_box()
    assert (top, left) == pytest.approx((-64 + 40 - 2, 64 + 80 - 2), abs=1)
    assert (bottom, right) == pytest.approx((-64 + 48 + 2, 64 + 100 + 2), abs=1)
    assert sum((block > 0).sum() for _, block in mosaic.blocks(32)) == mosaic.pixel_count()
    assert LogitMosaic(TRANSFORM).tight_box() is None
    with pytest.raises(ValueError, match="add a patch first"):
        _ = LogitMosaic(TRANSFORM).box


def test_state_round_trip_is_exact():
    valid = np.random.default_rng(0).random((SIZE, SIZE)) > 0.3
    mosaic = LogitMosaic(TRANSFORM, patches={(0, -3): patch(0, -288, valid=valid, rank=2)})
    again = LogitMosaic.from_state(mosaic.state_dict(), TRANSFORM, None)
    one, other = mosaic.patches[(0, -3)], again.patches[(0, -3)]
    assert np.array_equal(one.logits, other.logits)
    assert np.array_equal(one.valid, other.valid)
    assert (one.box, one.step, one.overlap, one.rank) == (
        other.box,
        other.step,
        other.overlap,
        other.rank,
    )
