"""Where the network is asked: three tiers of points, as in SAM 2's data engine (section E.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geosam2.parts import Box, FrameKey, Layout

ZOOMS = (1, 2, 4)


@dataclass(frozen=True)
class Region:
    """A square of a frame, looked at `zoom` times enlarged, and the points asked for in it."""

    box: Box
    """Lattice pixels."""
    zoom: int
    """1 = the frame itself, 2 or 4 = a region of half or a quarter of its side."""
    points: NDArray[np.float32]
    """(N, 2) x, y in network pixels of the enlarged region."""


def point_grid(side: int, size: int) -> NDArray[np.float32]:
    """Centres of `side` x `side` equal squares of a `size` pixel image, row by row, as (N, 2) x, y.

    >>> point_grid(2, 512).tolist()
    [[128.0, 128.0], [384.0, 128.0], [128.0, 384.0], [384.0, 384.0]]
    """
    places = (np.arange(side, dtype=np.float32) + 0.5) * (size / side)
    return np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2).astype(np.float32)


def regions(layout: Layout, key: FrameKey, per_side: tuple[int, ...]) -> Iterator[Region]:
    """The regions of a frame: itself, its 4 zoomed and its 16 twice zoomed ones.

    Args:
        layout: Where the frames lie.
        key: The frame.
        per_side: Points per side for zoom 1, 2 and 4; 0 or missing leaves the tier out.

    Frames of odd rows and columns ask half-way between the places of even ones, so what several
    frames share is asked about twice (or, in half a frame, four times) as densely by all together.

    >>> layout = Layout(512, 128)
    >>> [(r.zoom, len(r.points)) for r in regions(layout, (0, 0), (32, 16, 0))]
    [(1, 1024), (2, 256), (2, 256), (2, 256), (2, 256)]
    >>> next(regions(layout, (0, 1), (2,))).points.tolist()
    [[256.0, 128.0], [256.0, 384.0]]
    >>> next(regions(layout, (1, 1), (1,))).points.tolist()
    [[256.0, 256.0]]
    """
    for zoom, side in zip(ZOOMS, per_side, strict=False):
        if side == 0:
            continue
        points = _interlaced(point_grid(side, layout.size), layout.size / side, layout.size, key)
        for row in range(zoom):
            for col in range(zoom):
                yield Region(layout.region(key, zoom, row, col), zoom, points)


def _interlaced(
    points: NDArray[np.float32], spacing: float, size: int, key: FrameKey
) -> NDArray[np.float32]:
    if len(points) == 1:
        return points  # half-way to the next one is the frame's edge
    shift = np.array([key[1] % 2, key[0] % 2], np.float32) * np.float32(spacing / 2)
    moved: NDArray[np.float32] = points + shift
    return moved[np.all(moved < size, axis=1)]


def kept_points(
    points: NDArray[np.float32], allowed: NDArray[np.bool_], size: int
) -> NDArray[np.float32]:
    """The points that lie on True pixels of `allowed` (h, w), which covers `size` network pixels.

    >>> kept_points(point_grid(2, 4), np.array([[True, False], [False, False]]), 4).tolist()
    [[1.0, 1.0]]
    """
    scale = allowed.shape[0] / size
    col, row = (points * scale).astype(int).T
    kept: NDArray[np.float32] = points[allowed[row, col]]
    return kept
