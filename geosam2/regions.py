"""Questions about the shape of small masks: what hangs together, and where is its middle.

Masks here are at a quarter of a frame's resolution (128 x 128), so repeated pooling answers in a
few milliseconds and no further package is needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]


def reachable(mask: BoolArray, seeds: BoolArray, *, gap: int = 0) -> BoolArray:
    """The part of a mask that hangs together with the seeds.

    Args:
        mask: (H, W).
        seeds: (H, W); only those on the mask count.
        gap: Breaks of up to twice so many cells are stepped over (a bridge over a river).

    >>> row = np.array([[1, 1, 0, 1, 0, 0, 0, 1]], bool)
    >>> seed = np.array([[1, 0, 0, 0, 0, 0, 0, 0]], bool)
    >>> reachable(row, seed, gap=1).astype(int).tolist()
    [[1, 1, 0, 1, 0, 0, 0, 0]]
    """
    ground = grown(mask, gap)
    found = seeds & mask
    while True:
        before = found
        for _ in range(8):  # looking for a change costs as much as a step
            found = grown(found, 1) & ground
        if np.array_equal(found, before):
            return found & mask


def depth(mask: BoolArray) -> NDArray[np.int32]:
    """Cells from each cell of the mask to the nearest cell outside; 0 outside.

    The border of the array counts as outside.

    >>> depth(np.ones((3, 5), bool))[1].tolist()
    [1, 2, 2, 2, 1]
    """
    steps = np.zeros(mask.shape, np.int32)
    left = np.pad(mask, 1)
    while left.any():
        steps += left[1:-1, 1:-1]
        left = ~grown(~left, 1)
        left[[0, -1]] = left[:, [0, -1]] = False
    return steps


def deepest(mask: BoolArray, *, count: int = 1, apart: int = 16) -> list[tuple[int, int]]:
    """(row, col) of up to `count` cells that lie deepest inside, at least `apart` cells apart.

    >>> deepest(np.pad(np.ones((3, 3), bool), 2), count=2)
    [(3, 3)]
    """
    steps = depth(mask)
    found: list[tuple[int, int]] = []
    rows, cols = np.indices(mask.shape)
    while len(found) < count and steps.any():
        row, col = (int(v) for v in np.unravel_index(int(steps.argmax()), steps.shape))
        found.append((row, col))
        steps[np.hypot(rows - row, cols - col) < apart] = 0
    return found


def iou(a: BoolArray, b: BoolArray, weight: Any = 1.0) -> float:
    """Intersection over union of two masks, each cell counted by its weight; 1 if both are empty.

    >>> iou(np.array([1, 1, 0], bool), np.array([0, 1, 1], bool))
    0.3333333333333333
    """
    union = float(((a | b) * weight).sum())
    return float(((a & b) * weight).sum()) / union if union > 0 else 1.0


def grown(mask: BoolArray, by: int) -> BoolArray:
    """The mask and all cells within `by` of it (a square)."""
    import torch
    from torch.nn import functional as F

    if by == 0:
        return mask
    values = torch.from_numpy(mask.astype(np.float32))[None, None]
    found: BoolArray = F.max_pool2d(values, 2 * by + 1, stride=1, padding=by)[0, 0].numpy() > 0
    return found
