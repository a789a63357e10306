"""Outlines of synthetic objects, in pixels around (0, 0)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import shapely
from shapely import affinity
from shapely.geometry import Polygon, box

Rng = np.random.Generator


def blob(rng: Rng, diameter: float) -> Polygon:
    """A natural outline: random harmonics, wiggly at every scale down to a few pixels."""
    vertices = int(np.clip(diameter * 1.5, 120, 4000))
    angle = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    orders = np.arange(2, max(8, int(diameter / 20)))
    amplitude = 0.55 * rng.normal(size=orders.size) / orders**1.25
    phase = rng.uniform(0, 2 * np.pi, orders.size)
    radius = 1 + (amplitude * np.cos(np.outer(angle, orders) + phase)).sum(axis=1)
    radius = np.maximum(radius, 0.25)
    stretch = rng.uniform(0.7, 1.0)
    points = np.column_stack([radius * np.cos(angle), stretch * radius * np.sin(angle)])
    outline = affinity.rotate(Polygon(points), rng.uniform(0, 180), origin=(0, 0))
    return _fit(outline, diameter)


def lake(rng: Rng, diameter: float) -> Polygon:
    """A blob with up to three islands."""
    outline = blob(rng, diameter)
    for _ in range(int(rng.integers(1, 4))):
        angle, reach = rng.uniform(0, 2 * np.pi), diameter * rng.uniform(0.05, 0.25)
        island = affinity.translate(
            blob(rng, diameter * rng.uniform(0.08, 0.16)),
            reach * np.cos(angle),
            reach * np.sin(angle),
        )
        if outline.buffer(-6).contains(island):
            outline = outline.difference(island)
    return largest(outline)


def band(width: float, wander: float, spread: float) -> Callable[[Rng, float], Polygon]:
    """Maker of roads and rivers: a winding centre line with a varying width.

    Args:
        width: Mean width in pixels, whatever the length.
        wander: Sideways amplitude as a share of the length.
        spread: Relative variation of the width, 0 for a road.
    """

    def make(rng: Rng, length: float) -> Polygon:
        steps = max(24, int(length / 12))
        t = np.linspace(-0.5, 0.5, steps)
        orders = np.arange(1, 7)
        bends = rng.normal(size=6) / orders**1.3
        phase = rng.uniform(0, 2 * np.pi, 6)
        side = (bends * np.sin(2 * np.pi * np.outer(t, orders) + phase)).sum(axis=1)
        line = np.column_stack([t, wander * side]) * length
        widths = width * (1 + spread * np.interp(t, np.linspace(-0.5, 0.5, 9), rng.normal(size=9)))
        discs = shapely.buffer(shapely.points(line), np.maximum(widths, width / 3) / 2)
        pairs = [shapely.GeometryCollection([a, b]) for a, b in pairwise(discs)]
        outline = largest(shapely.union_all(shapely.convex_hull(pairs)))
        return affinity.rotate(outline, rng.uniform(-50, 50), origin=(0, 0))

    return make


def field(rng: Rng, diameter: float) -> Polygon:
    """A slightly skewed rectangle."""
    half = diameter / 2 / np.sqrt(1 + 0.7**2)
    corners = np.array([(-1, -0.7), (1, -0.7), (1, 0.7), (-1, 0.7)]) * half
    corners += rng.normal(scale=0.05 * half, size=corners.shape)
    return affinity.rotate(Polygon(corners), rng.uniform(0, 90), origin=(0, 0))


def building(rng: Rng, diameter: float) -> Polygon:
    """A rectangle, an L or a U with right angles only."""
    width, height = diameter * 0.8, diameter * rng.uniform(0.4, 0.6)
    outline = box(-width / 2, -height / 2, width / 2, height / 2)
    form = rng.integers(0, 3)
    if form == 1:
        outline = outline.difference(box(0.05 * width, 0, width, height))
    elif form == 2:
        outline = outline.difference(box(-0.2 * width, -0.1 * height, 0.2 * width, height))
    return affinity.rotate(largest(outline), rng.uniform(0, 90), origin=(0, 0))


def patchwork(rng: Rng, area: Polygon, side: float) -> list[Polygon]:
    """Split a rotated rectangle over `area` into touching plots of about `side` pixels."""
    angle = rng.uniform(0, 90)
    centre = area.centroid
    reach = float(np.hypot(*np.ptp(shapely.get_coordinates(area), axis=0))) / 2
    pending = [(-reach, -reach, reach, reach)]
    plots = []
    while pending:
        left, bottom, right, top = pending.pop()
        width, height = right - left, top - bottom
        if max(width, height) < side * rng.uniform(1.0, 1.8):
            plots.append(box(left, bottom, right, top))
        elif width > height:
            cut = left + width * rng.uniform(0.35, 0.65)
            pending += [(left, bottom, cut, top), (cut, bottom, right, top)]
        else:
            cut = bottom + height * rng.uniform(0.35, 0.65)
            pending += [(left, bottom, right, cut), (left, cut, right, top)]
    turned = [
        affinity.translate(affinity.rotate(plot, angle, origin=(0, 0)), centre.x, centre.y)
        for plot in plots
    ]
    return [largest(cut) for plot in turned if (cut := plot.intersection(area)).area > 0]


def largest(geometry: shapely.Geometry) -> Polygon:
    """The largest polygon of whatever an overlay returned."""
    parts = [
        part
        for part in shapely.get_parts(shapely.make_valid(geometry))
        if part.geom_type == "Polygon"
    ]
    return max(parts, key=lambda part: part.area) if parts else Polygon()


def _fit(outline: Polygon, diameter: float) -> Polygon:
    """Scale so that the longer side of the bounds is `diameter`, centred on (0, 0)."""
    left, bottom, right, top = outline.bounds
    centred = affinity.translate(outline, -(left + right) / 2, -(bottom + top) / 2)
    factor = diameter / max(right - left, top - bottom)
    return affinity.scale(centred, factor, factor, origin=(0, 0))
