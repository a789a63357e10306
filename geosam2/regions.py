"""Questions about the shape of small masks: what hangs together, and where is its middle.

Masks here are at a quarter of a frame's resolution (128 x 128), so growing them again and again
takes a few milliseconds and no further package is needed.
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
    walls = _walls(ground)
    found = seeds & mask
    while True:
        before, found = found, grown(_swept(found, walls), 1) & ground
        if np.array_equal(found, before):
            return found & mask


def continued(mask: BoolArray, seeds: BoolArray, *, gap: int, thick: int) -> BoolArray:
    """The part of a mask that hangs together with the seeds, also over breaks where it ends.

    A road goes on beyond a bridge or a tree over it: there both sides of the break are ends. What
    comes near to it from the side (a road or river of the same looks) does not belong to it.

    Args:
        mask: (H, W).
        seeds: (H, W); only those on the mask count.
        gap: Breaks of up to twice so many cells are stepped over.
        thick: Cells from the outline to the middle from which a part has no ends, so that breaks
            beside it are stepped over anywhere.

    >>> mask = np.zeros((12, 40), bool)
    >>> mask[8:10, :18] = mask[8:10, 21:] = mask[:5, 6:8] = True  # a road, a tree, a side road
    >>> found = continued(mask, mask & (np.arange(40) == 0), gap=2, thick=4)
    >>> bool(found[9, 39]), bool(found[0, 6])
    (True, False)
    """
    found = reachable(mask, seeds, gap=1)
    rest = mask & ~found
    while (near := rest & grown(found, 2 * gap)).any():
        part = reachable(rest, _first(near), gap=1)
        rest &= ~part
        if _ends_at(found, part, gap, thick) and _ends_at(part, found, gap, thick):
            found |= part
    return found


def _ends_at(body: BoolArray, other: BoolArray, gap: int, thick: int) -> bool:
    """True unless a band passes by: the other is near, and the body goes on to both sides."""
    contact = body & grown(other, 2 * gap)
    half = int(depth(body & grown(contact, 2 * thick))[grown(contact, thick)].max())
    if half >= thick:
        return True
    cut = grown(contact, 2 * half)
    arms = body & grown(cut, 3) & ~cut
    first = reachable(arms, _first(arms))
    edge = np.pad(np.zeros(np.subtract(body.shape, 2), bool), 1, constant_values=True)
    leaves = bool((body & cut & edge).any())  # a side that the frame does not show
    return not ((arms & ~first).any() or (leaves and first.any()))


def _first(mask: BoolArray) -> BoolArray:
    """One cell of a mask, or none if it is empty."""
    found = np.zeros_like(mask)
    found.flat[mask.argmax()] = mask.any()
    return found


WAYS: tuple[tuple[int, Any], ...] = (
    (1, (slice(None), slice(None))),
    (1, (slice(None), slice(None, None, -1))),
    (0, (slice(None), slice(None))),
    (0, (slice(None, None, -1), slice(None))),
)
"""Axis along which one walks, and the view in which that is forwards: east, west, south, north."""


def _places(mask: BoolArray, axis: int) -> NDArray[np.int16]:
    """Number of each cell along an axis, counted as one walks."""
    size = mask.shape[axis]
    return np.arange(size, dtype=np.int16).reshape((1, size) if axis else (size, 1))


def _walls(ground: BoolArray) -> list[NDArray[np.int16]]:
    """For each way to walk: the last cell without ground up to each cell, -1 if there is none."""
    return [
        np.maximum.accumulate(np.where(ground[cut], np.int16(-1), _places(ground, axis)), axis)
        for axis, cut in WAYS
    ]


def _swept(found: BoolArray, walls: list[NDArray[np.int16]]) -> BoolArray:
    """What is found, and all that a straight walk over the ground along rows and columns reaches.

    As far as there is ground at all, so a few sweeps do what growing by cells takes many steps for.
    """
    for (axis, cut), wall in zip(WAYS, walls, strict=True):
        here = np.where(found[cut], _places(found, axis), np.int16(-1))
        found = (np.maximum.accumulate(here, axis) > wall)[cut]
    return found


def loose(mask: BoolArray, body: BoolArray, *, thick: int) -> BoolArray:
    """Thick parts of a mask that hang on to the body by a thread, or over a gap.

    Args:
        mask: (H, W).
        body: (H, W) what surely belongs together.
        thick: Cells from the outline to the middle from which a part counts as thick.

    >>> row = np.zeros((9, 20), bool)
    >>> row[:, :6] = row[:, 11:] = row[4] = True
    >>> body = row & (np.arange(20) < 8)
    >>> loose(row, body, thick=3)[0].astype(int).tolist()
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    """
    rest = mask & ~grown(body, 2)
    return reachable(rest, depth(rest) >= thick)


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


def grown(mask: BoolArray, by: int) -> BoolArray:
    """The mask and all cells within `by` of it (a square)."""
    return _spread(_spread(mask, by).T, by).T


def _spread(mask: BoolArray, by: int) -> BoolArray:
    """The mask and all cells within `by` rows of it, by windows that double their height."""
    found = np.pad(mask, ((by, by), (0, 0)))
    height, wanted = 1, 2 * by + 1
    while height < wanted:
        step = min(height, wanted - height)
        found = found[:-step] | found[step:]
        height += step
    return found
