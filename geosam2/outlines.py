"""Polygons of one block that fit those of the next block point for point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from geosam2 import contours
from geosam2.drawing import Figure, Labels
from geosam2.levels import Level
from geosam2.parts import Box, Layout

_HALF = 0.5  # vertices of label outlines lie on half pixels


def of_labels(labels: Labels, core: Box, level: Level, simplify: float) -> dict[int, BaseGeometry]:
    """Outlines of a painted block, by figure number from 0; neighbours share their borders.

    The block's own outline is cut at every half pixel and never simplified, so the pieces on its
    two sides meet vertex for vertex and dissolve into one polygon without a trace.

    Args:
        labels: (h, w) figure number + 1, 0 = none.
        core: The block's lattice pixels.
        level: Lattice pixels to map.
        simplify: Side in pixels of the square that the least important corner is worth.
    """
    if not labels.any():
        return {}
    # the ground between objects is a label too: its borders are simplified like all others
    rings = contours.trace(contours.strips(labels + 1), labels.shape[1])
    shapes, owner = contours.polygons(rings)
    shapes = np.array([_cut_at_outline(s, labels.shape) for s in shapes], dtype=object)
    if simplify > 0:
        simpler = shapely.coverage_simplify(shapes, simplify, simplify_boundary=False)
        if shapely.is_valid(simpler).all() and not shapely.is_empty(simpler).any():
            shapes = simpler
    wanted = owner > 1
    return _grouped(_on_map(shapes[wanted], core, level), owner[wanted] - 2)


def _grouped(shapes: NDArray[np.object_], owner: NDArray[np.int_]) -> dict[int, BaseGeometry]:
    groups: dict[int, list[BaseGeometry]] = {}
    for shape, number in zip(shapes, owner, strict=True):
        groups.setdefault(int(number), []).append(shape)
    return {
        number: own[0] if len(own) == 1 else shapely.multipolygons(own)
        for number, own in groups.items()
    }


def _cut_at_outline(shape: BaseGeometry, size: tuple[int, int]) -> BaseGeometry:
    """A vertex at each half pixel along the block's outline."""
    left, top, right, bottom = shape.bounds
    if left > 0 and top > 0 and right < size[1] and bottom < size[0]:
        return shape
    shell, *holes = (
        _dense(shapely.get_coordinates(ring), size) for ring in (shape.exterior, *shape.interiors)
    )
    return shapely.Polygon(shell, holes)


def _dense(points: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    start, end = points[:-1], points[1:]
    along = np.zeros(len(start), bool)
    for axis, limit in ((0, size[1]), (1, size[0])):
        for line in (0, limit):
            along |= (start[:, axis] == line) & (end[:, axis] == line)
    steps = np.where(along, np.abs(end - start).sum(1) / _HALF, 1).round().astype(int).clip(1)
    owner = np.repeat(np.arange(len(start)), steps)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(steps) - steps, steps)
    share = (place / steps[owner])[:, None]
    dense = start[owner] + (end - start)[owner] * share
    return np.concatenate([dense, dense[:1]])


def of_figures(
    drawn: Sequence[Figure], core: Box, layout: Layout, level: Level
) -> dict[int, BaseGeometry]:
    """Sub-pixel outline of each figure, cut at the block's outline; they may overlap."""
    out = {}
    for number, figure in enumerate(drawn):
        # one pixel beyond, so that both blocks draw the same line across the cut
        window = figure.box().grown(1) & core.grown(1)
        if window.empty:
            continue
        rings = contours.trace(contours.strips(figure.logits(window, layout)), window.shape[1])
        shapes, _ = contours.polygons(rings)
        if not len(shapes):
            continue
        shape = shapely.multipolygons(shapes) if len(shapes) > 1 else shapes[0]
        height, width = core.shape
        rim = shapely.box(0, 0, width, height)
        shift = np.array([window.left - core.left, window.top - core.top])
        moved = shapely.transform(shape, lambda points, by=shift: points + by)
        inside = _areas_only(moved if rim.contains(moved) else shapely.intersection(moved, rim))
        if not inside.is_empty:
            out[number] = _on_map(np.array([inside], dtype=object), core, level)[0]
    return out


def _areas_only(shape: BaseGeometry) -> BaseGeometry:
    parts = [p for p in shapely.get_parts(shape) if p.geom_type == "Polygon"]
    if not parts:
        return shapely.Polygon()  # the crop reaches into the block, the mask does not
    return parts[0] if len(parts) == 1 else shapely.multipolygons(parts)


def _on_map(shapes: NDArray[np.object_], core: Box, level: Level) -> NDArray[np.object_]:
    """Block pixels to the map, over whole lattice pixels: the same numbers from every block."""
    (x0, y0), (width, height) = level.anchor, level.resolution

    def place(points: NDArray[np.float64]) -> NDArray[np.float64]:
        x = x0 + (points[:, 0] + core.left) * width
        y = y0 - (points[:, 1] + core.top) * height
        return np.stack([x, y], axis=1)

    moved: NDArray[np.object_] = shapely.transform(shapes, place)
    return moved
