"""From objects to polygons, one block at a time: each pixel of a block is painted once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio import features

from geosam2.parts import Box, FrameKey, Layout, Part, PartKey
from geosam2.recipe import Recipe
from geosam2.settling import Object

Labels = NDArray[np.int32]

_LEAST = 1e-4  # weight of a frame at its very border, where it may be the only one


@dataclass(frozen=True)
class Figure:
    """An object and those of its parts that can reach the block."""

    object: Object
    parts: tuple[Part, ...]

    def box(self) -> Box:
        """Lattice pixels that the parts' crops span."""
        out = self.parts[0].box
        for part in self.parts[1:]:
            out = out | part.box
        return out

    def logits(self, window: Box, layout: Layout) -> NDArray[np.float32]:
        """Blended logits (h, w) of the object over `window`: cosine weights, float32."""
        by_frame: dict[FrameKey, NDArray[np.float32]] = {}
        for part in self.parts:
            seen = part.upsampled(window)
            before = by_frame.get(part.frame)
            by_frame[part.frame] = seen if before is None else np.maximum(seen, before)
        if len(by_frame) == 1:
            return next(iter(by_frame.values()))
        total = np.zeros(window.shape, np.float32)
        weight = np.zeros(window.shape, np.float32)
        for frame in sorted(by_frame):
            share = _weights(layout, frame, window)
            total += share * by_frame[frame]
            weight += share
        blended: NDArray[np.float32] = np.where(
            weight > 0, total / np.maximum(weight, 1e-12), np.float32(-16)
        )
        return blended


def _weights(layout: Layout, frame: FrameKey, window: Box) -> NDArray[np.float32]:
    share = layout.weights(frame, window)
    inside = layout.frame(frame) & window
    if not inside.empty:
        at = inside.within(window)
        share[at] = np.maximum(share[at], np.float32(_LEAST))
    return share


def figures(objects: Sequence[Object], parts: Mapping[PartKey, Part]) -> list[Figure]:
    """Objects with the parts that are at hand, large ones first, so that small ones lie on top."""
    found = [Figure(o, tuple(parts[k] for k in o.parts if k in parts)) for o in objects]
    return sorted((f for f in found if f.parts), key=lambda f: (-f.object.area, f.object.name))


def paint(
    drawn: Sequence[Figure], core: Box, tiles: Sequence[Box], layout: Layout, recipe: Recipe
) -> Labels:
    """Number of the figure (from 1) at each pixel of a block, 0 = none.

    Args:
        drawn: In painting order.
        core: The block's pixels.
        tiles: Boxes that tile `core`; painted one after the other to bound the memory.
        layout: The frames' lattice.
        recipe: `gap_logit`, `min_region`.
    """
    labels = np.zeros(core.shape, np.int32)
    boxes = [figure.box() for figure in drawn]
    for tile in tiles:
        near = [i for i, box in enumerate(boxes) if not (box & tile).empty]
        labels[tile.within(core)] = _paint_tile(drawn, boxes, near, tile, layout, recipe.gap_logit)
    return _without_fragments(labels, recipe.min_region)


def _paint_tile(
    drawn: Sequence[Figure],
    boxes: Sequence[Box],
    near: Sequence[int],
    tile: Box,
    layout: Layout,
    gap: float,
) -> Labels:
    labels = np.zeros(tile.shape, np.int32)
    first = np.full(tile.shape, -np.inf, np.float32)  # highest logit of any object
    second = first.copy()  # and the next
    nearest = np.zeros(tile.shape, np.int32)
    for i in near:
        window = boxes[i] & tile
        at = window.within(tile)
        logits = drawn[i].logits(window, layout)
        labels[at][logits > 0] = i + 1
        higher = logits > first[at]
        second[at] = np.where(higher, first[at], np.maximum(second[at], logits))
        nearest[at][higher] = i + 1
        first[at] = np.maximum(first[at], logits)
    # a gap is what two objects nearly claim; the outer border of a lone object stays where it is
    gaps = (labels == 0) & (second > -gap)
    labels[gaps] = nearest[gaps]
    return labels


def _without_fragments(labels: Labels, smallest: int) -> Labels:
    """Crumbs that painting left are given to what surrounds them; whole small objects stay."""
    if smallest < 2 or not labels.any():
        return labels
    sieved: Labels = features.sieve(labels, size=smallest, connectivity=4)
    lost = np.setdiff1d(np.unique(labels), np.unique(sieved))
    keep = np.isin(labels, lost[lost > 0])
    changed = (sieved != labels) & ~keep
    for crumb in _at_the_outline(labels, changed):
        changed &= ~crumb  # goes on in the next block: its size is not known here
    return np.where(changed, sieved, labels)


def _at_the_outline(labels: Labels, changed: NDArray[np.bool_]) -> Iterator[NDArray[np.bool_]]:
    edge = changed.copy()
    edge[1:-1, 1:-1] = False
    if not edge.any():
        return
    rows, cols = labels.shape
    for shape, _ in features.shapes(labels, mask=changed, connectivity=4):
        x, y = zip(*shape["coordinates"][0], strict=True)
        if min(x) == 0 or min(y) == 0 or max(x) == cols or max(y) == rows:
            yield features.rasterize([shape], out_shape=labels.shape, dtype="uint8") > 0
