"""From parts to objects: links become components, and components that no border can change settle.

A block settles what lies inside it. What reaches over its border is held, as one small row a part,
and settles in the lowest node of the tree that contains it; so what is held grows with the length
of the borders and not with the area.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from geosam2.linking import Judge, Link, UnionFind, evidence, links
from geosam2.parts import CELL, EAST, NORTH, SOUTH, WEST, Box, FrameKey, Layout, Part, PartKey
from geosam2.recipe import Recipe

_SIDES = {NORTH: (-1, 0), EAST: (0, 1), SOUTH: (1, 0), WEST: (0, -1)}


@dataclass(frozen=True)
class Row:
    """What settling needs to know of a part."""

    key: PartKey
    box: Box
    """Its crop in lattice pixels."""
    mass: float
    """Its pixels weighted so that the frames' weights sum to 1 on the ground."""
    area: float
    """Its pixels."""
    predicted_iou: float
    stability: float
    edges: int
    """Frame borders that it touches and that the scene goes on behind."""

    @property
    def frame(self) -> FrameKey:
        """(row, column) of its frame."""
        return self.key[:2]


@dataclass(frozen=True)
class Cover:
    """A part lies in a better one, or in a larger one."""

    inner: PartKey
    outer: PartKey
    share: float
    """Of the inner one's pixels."""
    better: bool
    """True: the outer one is the better account of the same thing; False: it merely contains it."""


@dataclass(frozen=True)
class Object:
    """Parts that are one object, and what is known of it as a whole."""

    name: PartKey
    """The smallest key of its parts: the same whoever found it."""
    parts: tuple[PartKey, ...]
    area: float
    """Lattice pixels."""
    predicted_iou: float
    stability: float
    frames: int
    """Frames that it was found on."""
    open_edges: int
    """Frame borders where it goes on and the neighbour did not find it."""
    covered: float
    """Share that better objects cover, 0..1."""
    parent: PartKey | None
    """Name of the object around it, of several the one that holds most of its parts."""

    @property
    def score(self) -> float:
        """Predicted IoU x stability."""
        return self.predicted_iou * self.stability


@dataclass(frozen=True)
class Borders:
    """Everything that a node hands up: rows, links and covers of what has not settled."""

    rows: tuple[Row, ...] = ()
    links: tuple[Link, ...] = ()
    covers: tuple[Cover, ...] = ()


def row_of(part: Part, layout: Layout, exists: Callable[[FrameKey], bool]) -> Row:
    """Measure a part."""
    box, soft = part.soft
    weights = layout.weights(part.frame, box)
    rows, cols = soft.shape
    cells = weights.reshape(rows, weights.shape[0] // rows, cols, -1).sum(axis=(1, 3))
    goes_on = sum(
        bit
        for bit, (down, right) in _SIDES.items()
        if part.edges & bit and exists((part.frame[0] + down, part.frame[1] + right))
    )
    return Row(
        key=part.key,
        box=part.box,
        mass=float((soft * cells).sum()),
        area=float(part.area),
        predicted_iou=part.predicted_iou,
        stability=part.stability,
        edges=goes_on,
    )


# --- what parts say about each other


def compare_frames(
    parts_a: Sequence[Part],
    parts_b: Sequence[Part],
    layout: Layout,
    recipe: Recipe,
    judge: Judge | None,
) -> tuple[list[Link], list[Cover]]:
    """Links and covers between two neighbouring frames."""
    if not parts_a or not parts_b:
        return [], []
    joined = links(parts_a, parts_b, layout, recipe, judge)
    covers: list[Cover] = []
    for e in evidence(parts_a, parts_b, layout, parts_a[0].frame, parts_b[0].frame):
        covers += _covers(parts_a[e.a], parts_b[e.b], layout)
    return joined, covers


def compare_within(parts: Sequence[Part], layout: Layout) -> list[Cover]:
    """Covers between the parts of one frame."""
    boxes = np.array([(p.box.top, p.box.left, p.box.bottom, p.box.right) for p in parts])
    out: list[Cover] = []
    for i, part in enumerate(parts):
        later = boxes[i + 1 :]
        box = part.box
        meet = (later[:, 0] < box.bottom) & (later[:, 2] > box.top)
        meet &= (later[:, 1] < box.right) & (later[:, 3] > box.left)
        for j in np.flatnonzero(meet):
            out += _covers(part, parts[i + 1 + int(j)], layout)
    return out


NESTED = 0.1  # below this share of the other's area, a thing inside is a thing of its own
LARGER = 0.35  # power of the area in a mask's quality: a roof before the half of it
INSIDE = 0.5  # covers of less than this share are not worth a row


def _covers(a: Part, b: Part, layout: Layout) -> Iterator[Cover]:
    """Either may lie in the other; small overlaps say nothing."""
    shared = _shared_pixels(a, b)
    for inner, outer in ((a, b), (b, a)):
        share = shared / max(inner.area, 1)
        if share < INSIDE:
            continue
        better = _quality(outer) > _quality(inner) and inner.area > NESTED * outer.area
        if better or outer.area > inner.area:
            yield Cover(inner.key, outer.key, min(1.0, share), better)


def _shared_pixels(a: Part, b: Part) -> float:
    box_a, soft_a = a.soft
    box_b, soft_b = b.soft
    common = box_a & box_b
    if common.empty:
        return 0.0
    first, second = (
        soft[tuple(slice(s.start // CELL, s.stop // CELL) for s in common.within(box))]
        for box, soft in ((box_a, soft_a), (box_b, soft_b))
    )
    return float(np.minimum(first, second).sum()) * CELL**2


def _quality(part: Part) -> tuple[bool, float, PartKey]:
    """Whole before cut, then by score and size; the key decides ties, the same way everywhere."""
    return part.edges == 0, part.score * part.area**LARGER, part.key


# --- components


def settle(
    borders: Sequence[Borders], reaches_out: Callable[[Row], bool]
) -> tuple[list[Object], Borders]:
    """Make objects of every component that lies wholly inside; hand the rest up.

    Args:
        borders: What blocks or lower nodes hold.
        reaches_out: True for a part that frames outside may still be linked to.
    """
    rows = {row.key: row for b in borders for row in b.rows}
    all_links = sorted({link for b in borders for link in b.links}, key=lambda k: (k.a, k.b))
    covers = sorted({c for b in borders for c in b.covers}, key=lambda c: (c.inner, c.outer))
    groups = UnionFind()
    for link in all_links:
        groups.join(link.a, link.b)
    members: dict[PartKey, list[Row]] = {}
    for key in sorted(rows):
        members.setdefault(groups.find(key), []).append(rows[key])
    held = {name for name, own in members.items() if any(map(reaches_out, own))}
    by_inner: dict[PartKey, list[Cover]] = {}
    for cover in covers:
        by_inner.setdefault(cover.inner, []).append(cover)
    objects = [
        _object(name, own, by_inner, groups) for name, own in members.items() if name not in held
    ]
    return objects, _held(rows.values(), all_links, covers, held, groups)


def _held(
    rows: Iterable[Row],
    all_links: Iterable[Link],
    covers: Iterable[Cover],
    held: set[PartKey],
    groups: UnionFind,
) -> Borders:
    return Borders(
        tuple(row for row in rows if groups.find(row.key) in held),
        tuple(link for link in all_links if groups.find(link.a) in held),
        # by the outer object's name: what settles here is not known by its parts higher up
        tuple(
            replace(c, outer=groups.find(c.outer)) for c in covers if groups.find(c.inner) in held
        ),
    )


def _object(
    name: PartKey, own: list[Row], covers: dict[PartKey, list[Cover]], groups: UnionFind
) -> Object:
    mass = sum(row.mass for row in own)
    weights = [row.mass / mass if mass > 0 else 1 / len(own) for row in own]
    frames = {row.frame for row in own}
    covered = 0.0
    votes: dict[PartKey, float] = {}
    for row, weight in zip(own, weights, strict=True):
        foreign = [c for c in covers.get(row.key, []) if groups.find(c.outer) != name]
        covered += weight * max((c.share for c in foreign if c.better), default=0.0)
        # once for each object around it: how many of its parts are known depends on the block
        around = (c.outer for c in foreign if c.share >= CONTAINED and not c.better)
        for outer in set(map(groups.find, around)):
            votes[outer] = votes.get(outer, 0.0) + weight
    return Object(
        name=name,
        parts=tuple(row.key for row in own),
        area=max(mass, max(row.area for row in own)),
        predicted_iou=float(sum(w * r.predicted_iou for w, r in zip(weights, own, strict=True))),
        stability=float(sum(w * r.stability for w, r in zip(weights, own, strict=True))),
        frames=len(frames),
        open_edges=sum(_open_edges(row, frames) for row in own),
        covered=covered,
        parent=max(votes, key=lambda k: (votes[k], k)) if votes else None,
    )


CONTAINED = 0.9  # a parent holds this share of its child


def _open_edges(row: Row, frames: set[FrameKey]) -> int:
    """Borders where the part goes on although the frame behind holds nothing of the object."""
    return sum(
        bool(row.edges & bit) and (row.frame[0] + down, row.frame[1] + right) not in frames
        for bit, (down, right) in _SIDES.items()
    )
