"""Shapes of small masks against scipy, on random ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from geosam2 import regions

SQUARE = np.ones((3, 3), bool)


def drawn(seed: int) -> tuple[np.random.Generator, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng, rng.random(rng.integers(1, 60, 2)) > rng.random()


@pytest.mark.parametrize("by", [0, 1, 2, 5, 16, 80])
def test_growing_is_dilation_by_a_square(by: int) -> None:
    for seed in range(10):
        _, mask = drawn(seed)
        wanted = ndimage.maximum_filter(mask, 2 * by + 1, mode="constant")
        assert np.array_equal(regions.grown(mask, by), wanted)


@pytest.mark.parametrize("gap", [0, 1, 2])
def test_what_is_reachable_is_what_scipy_labels_alike(gap: int) -> None:
    for seed in range(60):
        rng, mask = drawn(seed)
        seeds = rng.random(mask.shape) > 0.98
        labels, _ = ndimage.label(regions.grown(mask, gap), SQUARE)
        wanted = np.isin(labels, np.unique(labels[seeds & mask])) & mask
        assert np.array_equal(regions.reachable(mask, seeds, gap=gap), wanted)


def test_depth_is_the_chessboard_distance_to_the_outside() -> None:
    for seed in range(20):
        _, mask = drawn(seed)
        wanted = ndimage.distance_transform_cdt(np.pad(mask, 1), "chessboard")[1:-1, 1:-1]
        assert np.array_equal(regions.depth(mask), wanted)
