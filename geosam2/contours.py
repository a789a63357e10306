"""Outlines of rasters: marching squares that never leave an invalid ring.

A raster is sampled at pixel centres. Every 2 x 2 of samples is a cell; where its corners differ, a
line passes. Each line piece runs from one cell edge to another and knows the number of both, so
pieces of any block of a raster can be made alone and are linked at the end: a mosaic need not be
held in memory, and the outline does not depend on how it was cut up.

Two rasters are understood. Real values (logits): the line lies where linear interpolation gives
zero. Labels: the line lies half way, pieces of both neighbours are the same points, and where three
objects meet there is one node; the outlines are a coverage.

References:
    Lorensen and Cline 1987, Marching cubes; the several-labels case is our own extension.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import shapely

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

UNKNOWN = -1
"""Label of what lies outside of the raster. In a raster of real values that is NaN."""

# A line that passed exactly through a sample could touch another; this far away it cannot.
_CLEARANCE = 1e-4
_STRIP = 256  # rows worked on at once, so that temporaries stay in the processor's cache

# Corners of a cell clockwise from the upper left, edge i between corners i and i + 1
_CORNER = ((0, 0), (0, 1), (1, 1), (1, 0))  # row, column
_LOW = (0, 1, 3, 0)  # the corner of edge i with the smaller row and column
_HIGH = (1, 2, 2, 3)
_VERTICAL = (0, 1, 0, 1)  # edge i joins samples of one column


class Block(NamedTuple):
    """Samples of a part of a raster. Neighbouring blocks share one row or column of samples."""

    row: int
    """Row of the first sample on the whole raster; -1 is the rim outside."""
    col: int
    """Column of the first sample."""
    samples: npt.NDArray[Any]
    """(h, w) float, NaN where unknown; or int, 0 = no object and -1 = unknown."""


@dataclass(frozen=True)
class Rings:
    """Closed lines in pixel coordinates, pixel (row, col) centred at (col + 0.5, row + 0.5)."""

    points: Floats
    """(N, 2) x, y of all rings one after another, not closed."""
    starts: Ints
    """(R,) index of the first point of each ring."""
    labels: Ints
    """(R,) label inside; 1 for real values."""
    rim: Bools
    """(N,) True on the edge of the raster or of what is known."""
    junction: Bools
    """(N,) True where more than two labels meet."""

    @property
    def owner(self) -> Ints:
        """(N,) which ring a point is on."""
        return np.repeat(np.arange(len(self.starts)), self.sizes)

    @property
    def sizes(self) -> Ints:
        """(R,) number of points of each ring."""
        return np.diff(np.append(self.starts, len(self.points)))

    @property
    def neighbours(self) -> tuple[Ints, Ints]:
        """(N,) index of the previous and of the next point on the same ring."""
        index = np.arange(len(self.points))
        ends = self.starts + self.sizes - 1
        before, after = index - 1, index + 1
        before[self.starts], after[ends] = ends, self.starts
        return before, after

    @property
    def areas(self) -> Floats:
        """(R,) signed area in pixels: positive for a shell, negative for a hole."""
        if not len(self.starts):
            return np.zeros(0)
        x, y = (self.points - np.repeat(self.points[self.starts], self.sizes, axis=0)).T
        after = self.neighbours[1]
        return np.add.reduceat(x[after] * y - x * y[after], self.starts) / 2

    def take(self, rings: Bools) -> Rings:
        """Only some of the rings."""
        return self._where(np.repeat(rings, self.sizes), rings)

    def straight(self) -> Rings:
        """Without the points on the straight line between their neighbours, junctions excepted.

        Neighbours in a coverage drop the same points. A ring of fewer than three points goes too.
        """
        before, after = self.neighbours
        into = self.points - self.points[before]
        out = self.points[after] - self.points
        bend = (into[:, 0] * out[:, 1] != into[:, 1] * out[:, 0]) | self.junction
        large = np.bincount(self.owner[bend], minlength=len(self.starts)) > 2
        return self._where(bend & large[self.owner], large)

    def _where(self, points: Bools, rings: Bools) -> Rings:
        sizes = np.bincount(self.owner[points], minlength=len(self.starts))[rings]
        return Rings(
            self.points[points],
            np.cumsum(np.append(0, sizes))[:-1],
            self.labels[rings],
            self.rim[points],
            self.junction[points],
        )


class _Pieces(NamedTuple):
    """Line pieces: each goes from one crossing of a cell edge to another, perhaps by the middle."""

    start: Ints  # (n,) number of the crossing where it begins
    stop: Ints  # (n,) and ends
    label: Ints  # (n,) label on its left, as seen with y down
    point: Floats  # (n, 2) where it begins
    middle: Floats  # (n, 2) where it bends, NaN if it does not
    rim: Bools  # (n,) whether its cell has unknown corners
    junction: Bools  # (n,) whether more than two lines meet in the middle


def strips(samples: npt.NDArray[Any]) -> Iterator[Block]:
    """A whole raster (H, W) as blocks, with a rim of the unknown."""
    height, width = samples.shape
    if samples.dtype.kind in "bu":  # the rim needs -1
        samples = samples.astype(np.int8 if samples.dtype.kind == "b" else np.int64)
    real = np.issubdtype(samples.dtype, np.floating)
    for row in range(-1, height, _STRIP):
        last = min(row + _STRIP, height)  # inclusive
        shape = (last - row + 1, width + 2)
        block = np.full(shape, np.nan if real else UNKNOWN, samples.dtype)
        part = samples[max(row, 0) : last + 1]
        top = max(row, 0) - row
        block[top : top + len(part), 1:-1] = part
        yield Block(row, -1, block)


def trace(blocks: Iterable[Block], width: int, *, level: float = 0.0) -> Rings:
    """Link the lines of all blocks to rings.

    Args:
        blocks: Their cells cover, once each, every place where the raster is not unknown.
        width: Columns of the whole raster.
        level: Real values above it are inside.

    Returns:
        Rings that neither cross nor touch themselves or each other (two labels' rings coincide).
    """
    found = [_block_pieces(block, width + 3, level) for block in blocks]
    pieces = _Pieces(*(np.concatenate(part) for part in zip(*found, strict=True)))
    order, starts = _cycles(pieces)
    points = np.stack([pieces.point[order], pieces.middle[order]], axis=1).reshape(-1, 2)
    given = ~np.isnan(points[:, 0])
    position = np.cumsum(np.append(0, given))  # of each point after those not given are left out
    junction = np.column_stack([np.zeros(len(order), bool), pieces.junction[order]]).ravel()
    return Rings(
        points[given],
        position[2 * starts],
        pieces.label[order[starts]],
        np.repeat(pieces.rim[order], 2)[given],
        junction[given],
    )


def polygons(rings: Rings) -> tuple[npt.NDArray[np.object_], Ints]:
    """Shells with their holes: shapely polygons (P,) and their labels (P,)."""
    rings = rings.straight()
    areas = rings.areas
    outlines = _linear_rings(rings)
    shells, holes = np.flatnonzero(areas > 0), np.flatnonzero(areas < 0)
    bare = shapely.polygons(outlines[shells])
    if not len(holes):
        return bare, rings.labels[shells]
    # each shell is prepared once and asked for the holes inside: the smallest shell has the hole
    tree = shapely.STRtree(shapely.points(rings.points[rings.starts[holes]]))
    shell, hole = tree.query(bare, predicate="contains")
    same = rings.labels[shells[shell]] == rings.labels[holes[hole]]
    shell, hole = shell[same], hole[same]
    order = np.lexsort((areas[shells[shell]], hole))
    hole, first = np.unique(hole[order], return_index=True)
    shell = shell[order][first]
    order = np.argsort(shell, kind="stable")
    with_holes, first = np.unique(shell[order], return_index=True)
    groups = np.split(outlines[holes[hole[order]]], first[1:])
    for number, inner in zip(with_holes, groups, strict=True):
        bare[number] = shapely.Polygon(outlines[shells[number]], list(inner))
    return bare, rings.labels[shells]


def _block_pieces(block: Block, stride: int, level: float) -> _Pieces:
    """All pieces of one block; crossings are numbered on a raster of `stride` columns."""
    samples = block.samples
    real = np.issubdtype(samples.dtype, np.floating)
    labels = samples > level if real else samples
    across = labels[:, 1:] != labels[:, :-1]
    down = labels[1:] != labels[:-1]
    # a line that enters a cell leaves it too, so three of its edges tell
    cell = np.flatnonzero(across[:-1] | down[:, :-1] | down[:, 1:])
    row, col = np.divmod(cell, samples.shape[1] - 1)
    corners = np.stack([samples[row + r, col + c] for r, c in _CORNER])
    number = (row + block.row + 1) * stride + (col + block.col + 1)
    origin = np.column_stack([col + block.col + 0.5, row + block.row + 0.5])
    if real:
        parts = _cell_pieces(
            *_from_values(corners - np.asarray(level, corners.dtype)), number, stride, origin
        )
    else:
        shares = np.full(corners.shape, 0.5)
        joined = np.maximum(corners[0], corners[1])  # of two labels that cross, the larger joins
        parts = _cell_pieces(corners.astype(np.int64), shares, joined, number, stride, origin)
    return _Pieces(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _from_values(corners: npt.NDArray[Any]) -> tuple[Ints, Floats, Ints]:
    """Labels of four corners (4, n), where each edge is crossed (4, n), which label joins (n,)."""
    values = corners.astype(np.float64)
    labels = (values > 0).astype(np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.stack(
            [values[a] / (values[a] - values[b]) for a, b in zip(_LOW, _HIGH, strict=True)]
        )
        joined = (values.sum(axis=0) > 0).astype(np.int64)
    shares = np.where(np.isfinite(shares), np.clip(shares, _CLEARANCE, 1 - _CLEARANCE), 0.5)
    labels[np.isnan(values)] = UNKNOWN
    return labels, shares, joined


def _cell_pieces(
    labels: Ints, shares: Floats, joined: Ints, number: Ints, stride: int, origin: Floats
) -> Iterator[_Pieces]:
    """Pieces that begin on edge 3, 0, 1, 2 of each cell, label by label.

    Args:
        labels: (4, n) of the corners.
        shares: (4, n) where each edge is crossed, from its smaller sample to the larger.
        joined: (n,) label that is connected where two labels cross like a chessboard.
        number: (n,) of the upper left sample.
        stride: Samples per row.
        origin: (n, 2) x, y of the upper left sample.
    """
    crossed = np.stack([labels[i] != labels[(i + 1) % 4] for i in range(4)])
    diagonal = (labels[0] == labels[2]) | (labels[1] == labels[3])
    chess = crossed.all(axis=0) & diagonal
    both = (labels[0] == labels[2]) & (labels[1] == labels[3])
    unknown = (labels == UNKNOWN).any(axis=0)
    junction = ~chess & (crossed.sum(axis=0) > 2)
    node = junction | (unknown & ~chess)
    middle = np.where(node[:, None], origin + _middles(labels, shares, crossed), np.nan)
    for corner in range(4):
        edge, label = (corner - 1) % 4, labels[corner]
        starts = np.flatnonzero(crossed[edge] & (label > 0))
        label, cross = label[starts], crossed[:, starts]
        goal = np.where(
            cross[corner],
            corner,
            np.where(cross[(corner + 1) % 4], (corner + 1) % 4, (corner + 2) % 4),
        )
        through = chess[starts] & (label == labels[(corner + 2) % 4, starts])
        through &= ~both[starts] | (label == joined[starts])
        goal = np.where(through, (corner + 2) % 4, goal)
        place = origin[starts] + _on_edge(edge, shares[edge, starts])
        begin = _crossing(number[starts], edge, stride, beyond=True)
        end = np.choose(
            goal, [_crossing(number[starts], e, stride, beyond=False) for e in range(4)]
        )
        bends = middle[starts]
        yield _Pieces(begin, end, label, place, bends, unknown[starts], junction[starts])


def _crossing(cell: Ints, edge: int, stride: int, *, beyond: bool) -> Ints:
    """Number of one side of a cell edge: the corner after it clockwise (`beyond`), or before it."""
    corner = _CORNER[_LOW[edge]]
    sample = cell + corner[0] * stride + corner[1]
    after_is_high = edge in (0, 1)
    return 4 * sample + 2 * _VERTICAL[edge] + (beyond == after_is_high)


def _on_edge(edge: int, share: Floats) -> Floats:
    """(n, 2) x, y of a crossing relative to the upper left sample."""
    row, col = _CORNER[_LOW[edge]]
    if _VERTICAL[edge]:
        return np.column_stack([np.full_like(share, col), row + share])
    return np.column_stack([col + share, np.full_like(share, row)])


def _middles(labels: Ints, shares: Floats, crossed: Bools) -> Floats:
    """(n, 2) where lines bend in a cell: its centre, which is a pixel corner.

    At the rim of the known, a line goes on straight to the rim from its last known crossing.
    """
    middle = np.full((labels.shape[1], 2), 0.5)
    for edge in range(4):
        known = (labels[edge] != UNKNOWN) & (labels[(edge + 1) % 4] != UNKNOWN)
        opposite = (labels[(edge + 2) % 4] == UNKNOWN) & (labels[(edge + 3) % 4] == UNKNOWN)
        rim = known & opposite & crossed[edge]
        middle[rim, _VERTICAL[edge]] = shares[edge, rim]
    return middle


def _cycles(pieces: _Pieces) -> tuple[Ints, Ints]:
    """Order in which the pieces follow each other, ring after ring, and where rings begin."""
    sequence = np.argsort(pieces.start)
    follower = np.searchsorted(pieces.start, pieces.stop, sorter=sequence)
    following = sequence[follower].tolist()
    # plain lists: following a chain is what numpy cannot do, and this takes 0.1 us a step
    order: list[int] = []
    starts: list[int] = []
    for piece in sequence.tolist():
        if following[piece] >= 0:
            starts.append(len(order))
        while (after := following[piece]) >= 0:
            order.append(piece)
            following[piece] = -1
            piece = after
    return np.array(order, np.int64), np.array(starts, np.int64)


def _linear_rings(rings: Rings) -> npt.NDArray[np.object_]:
    found: npt.NDArray[np.object_] = shapely.linearrings(rings.points, indices=rings.owner)
    return found
