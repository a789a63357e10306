"""Tidier outlines: right angles for what people build, smooth lines for what grows.

All in metres on a plane; `vectorize` goes there and back.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import shapely
from shapely import affinity
from shapely.geometry import Polygon

from geosam2.contours import Rings

Floats: TypeAlias = npt.NDArray[np.float64]

_SLANT = np.tan(np.radians(25))  # a side further than this from both axes is a slanted one


class _Side(NamedTuple):
    """One side of a rectilinear ring, in a frame turned into its direction."""

    axis: int  # 0: runs along x, at y = offset; 1: runs along y, at x = offset
    offset: float
    length: float
    turn: float  # how far its points still turn from the axis, radians
    trust: float  # weight of `turn`


def right_angles(polygon: Polygon, tolerance: float) -> Polygon:
    """The polygon with horizontal and vertical sides only, in its own main direction.

    Each side is put where most of the outline along it is (the median), so that rounded corners and
    single bumps do not pull it. What does not fit is only simplified: a polygon with long slanted
    or curved sides, or one whose area would change by more than 5 %.

    Args:
        polygon: Valid, in metres.
        tolerance: How far the outline may be wrong, metres; about one pixel.

    >>> rough = Polygon([(0, 0), (5, 0.2), (10, 0), (10.1, 3), (10, 6), (0, 6.1), (-0.1, 3)])
    >>> right_angles(rough, 0.5).minimum_rotated_rectangle.area.__round__()
    60
    """
    plain = shapely.simplify(polygon, tolerance / 2)
    angle = _direction(shapely.simplify(polygon, tolerance))
    for _ in range(2):  # the second time with the direction that the sides themselves show
        sides = [_sides(ring, angle, tolerance) for ring in (polygon.exterior, *polygon.interiors)]
        found = [ring for ring in sides if ring is not None]
        if len(found) < len(sides):
            return plain
        trust = sum(side.trust for ring in found for side in ring)
        turn = sum(side.turn * side.trust for ring in found for side in ring) / max(trust, 1e-12)
        if abs(turn) < 1e-3:
            break
        angle += turn
    rings = [_corners(ring) for ring in found]
    square = affinity.rotate(Polygon(rings[0], rings[1:]), angle, origin=(0, 0), use_radians=True)
    return square if _fits(square, polygon, tolerance) else plain


def smoothed(rings: Rings, rounds: int = 20) -> Rings:
    """Rings in pixels without their pixel-sized jitter; areas stay (Taubin 1995).

    Points on the rim of what is known stay where they are.
    """
    before, after = rings.neighbours
    points = rings.points.copy()
    free = ~rings.rim[:, None]
    for _ in range(rounds):
        for step in (0.5, -0.53):
            pull = (points[before] + points[after]) / 2 - points
            points += step * np.where(free, pull, 0)
    return replace(rings, points=points)


def _direction(polygon: Polygon) -> float:
    """Main direction modulo 90 degrees, radians: long edges count most."""
    steps = np.diff(shapely.get_coordinates(polygon.exterior), axis=0)
    edges = steps[:, 0] + 1j * steps[:, 1]
    lengths = np.abs(edges)
    # the fourth power of a direction is the same for all four right-angled ones
    return float(np.angle(np.sum(lengths**2 * (edges / np.maximum(lengths, 1e-12)) ** 4)) / 4)


def _sides(ring: shapely.LinearRing, angle: float, tolerance: float) -> list[_Side] | None:
    """Alternating sides of a ring turned by -angle, or None if it is not rectilinear."""
    dense = shapely.segmentize(ring, tolerance / 2)
    points = shapely.get_coordinates(dense)[:-1]
    far = np.argmax(np.hypot(*(points - points.mean(axis=0)).T))  # surely a corner
    points = np.roll(points, -far, axis=0) @ _turn(-angle).T
    corners = _corner_indices(points, tolerance)
    steps = np.diff(points[[*corners, corners[0]]], axis=0)
    small, large = np.sort(np.abs(steps), axis=1).T
    if (small / np.maximum(large, 1e-12) > _SLANT)[large > 4 * tolerance].any():
        return None
    axes = (np.abs(steps[:, 1]) > np.abs(steps[:, 0])).astype(int)
    if len(set(axes)) < 2:
        return None
    breaks = np.flatnonzero(axes != np.roll(axes, 1))
    bounds = np.array(corners)[breaks]
    spans = zip(breaks, bounds, np.roll(bounds, -1), strict=True)
    sides = [_side(points, first, last, int(axes[k])) for k, first, last in spans]
    return _without_short(sides, 2 * tolerance)


def _corner_indices(points: Floats, tolerance: float) -> list[int]:
    """Indices of the points that remain after simplification."""
    closed = shapely.LineString(np.vstack([points, points[:1]]))
    kept = shapely.get_coordinates(shapely.simplify(closed, tolerance))[:-1]
    where = {tuple(point): index for index, point in reversed(list(enumerate(points.tolist())))}
    return [where[tuple(point)] for point in kept.tolist()]


def _side(points: Floats, first: int, last: int, axis: int) -> _Side:
    """Fit one side to the outline from corner `first` to corner `last`."""
    index = np.arange(first, last + 1 if last > first else last + 1 + len(points)) % len(points)
    along, across = points[index, axis], points[index, 1 - axis]
    spread = along - along.mean()
    slope = float((spread * across).sum() / max((spread**2).sum(), 1e-12))
    turn = np.arctan(slope) if axis == 0 else -np.arctan(slope)
    length = float(np.ptp(along))
    return _Side(axis, float(np.median(across)), length, float(turn), length**3)


def _without_short(sides: list[_Side], shortest: float) -> list[_Side] | None:
    """Take out the shortest steps, joining their neighbours, until all sides count."""
    while len(sides) > 4:
        lengths = [
            abs(sides[k - 1].offset - sides[(k + 1) % len(sides)].offset) for k in range(len(sides))
        ]
        k = int(np.argmin(lengths))
        if lengths[k] >= shortest:
            break
        sides = [*sides[k:], *sides[:k]]  # the short one first: its neighbours are last and second
        one, two = sides[-1], sides[1]
        share = one.length / max(one.length + two.length, 1e-12)
        joined = one._replace(
            offset=share * one.offset + (1 - share) * two.offset, length=one.length + two.length
        )
        sides = [joined, *sides[2:-1]]
    return sides if len(sides) >= 4 else None


def _corners(sides: list[_Side]) -> Floats:
    """Where each side meets the next."""
    pairs = zip(sides, [*sides[1:], sides[0]], strict=True)
    return np.array(
        [(b.offset, a.offset) if a.axis == 0 else (a.offset, b.offset) for a, b in pairs]
    )


def _fits(square: Polygon, polygon: Polygon, tolerance: float) -> bool:
    if not square.is_valid or square.is_empty:
        return False
    # a tenth of a pixel all along the outline is no difference, whatever share of the area it is
    change = max(0.05 * polygon.area, 0.1 * tolerance * polygon.length)
    apart = square.symmetric_difference(polygon).area
    return bool(abs(square.area - polygon.area) <= change and apart <= 2 * change)


def _turn(angle: float) -> Floats:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
