"""From parts to objects: the best account of a place stays, what contradicts it goes.

Candidates are parts that one frame saw whole, and cut parts of several frames that are linked. They
are taken best first; one that is largely the same ground as a better one that was taken is dropped,
and so are linked parts that smaller things inside them explain. What is taken depends on what it
meets alone, so it can be decided piecemeal: a block decides about what it knows everything of, and
hands the rest up. What is handed up, one small row a part, grows with the length of the borders and
not with the area; the result is that of one large block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from geosam2.linking import Apart, Judge, Link, UnionFind, compare, groups
from geosam2.parts import CELL, EAST, NORTH, SOUTH, WEST, Box, FrameKey, Layout, Part, PartKey
from geosam2.recipe import Recipe

_SIDES = {NORTH: (-1, 0), EAST: (0, 1), SOUTH: (1, 0), WEST: (0, -1)}

NESTED = 0.1  # below this share of the other's area, a thing inside is a thing of its own
LARGER = 0.1  # power of the area in a candidate's quality: a roof before the half of it
WORTH = 0.1  # an overlap of less than this share of the smaller part is not worth a row
CONTAINED = 0.9  # a parent holds this share of its child
ONE_PLACE = 0.2  # parts of one frame that share more of the smaller one are accounts of one place
SAME = 0.5  # IoU of two accounts of the same thing
EXPLAINED = 0.75  # a chain is several things if things inside it fill so much of its ground
INSIDE = 0.8  # share of a thing's ground that lies in the chain then
CREDIBLE = 0.3  # of the chain's quality, that each of them has at least


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
class Overlap:
    """Ground that two parts share."""

    a: PartKey
    b: PartKey
    """The larger of the two keys."""
    pixels: float


@dataclass(frozen=True)
class Object:
    """A candidate that was taken."""

    name: PartKey
    """The smallest key of its parts: the same whoever found it."""
    parts: tuple[PartKey, ...]
    """The part that is drawn, or the cut parts that are blended."""
    area: float
    """Lattice pixels."""
    predicted_iou: float
    stability: float
    frames: int
    """Frames that it was found on."""
    open_edges: int
    """Frame borders where it goes on and the neighbour did not find it."""
    closed: float
    """Share of the frame borders across it where the neighbour did find it, 0..1."""
    parent: PartKey | None
    """Name of the object around it."""

    @property
    def score(self) -> float:
        """Predicted IoU x stability."""
        return self.predicted_iou * self.stability


@dataclass(frozen=True)
class Borders:
    """Everything that a node hands up: what has not settled, and what it meets."""

    rows: tuple[Row, ...] = ()
    links: tuple[Link, ...] = ()
    apart: tuple[Apart, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    taken: Mapping[PartKey, bool] = field(default_factory=dict)
    """Parts of candidates that are decided already: True = taken, False = dropped."""

    @property
    def waiting(self) -> list[Row]:
        """The parts that are not decided."""
        return [row for row in self.rows if row.key not in self.taken]


def inner_edges(part: Part, exists: Callable[[FrameKey], bool]) -> int:
    """The borders that a part touches and that another frame lies behind, as bits."""
    return sum(
        bit
        for bit, (down, right) in _SIDES.items()
        if part.edges & bit and exists((part.frame[0] + down, part.frame[1] + right))
    )


def row_of(part: Part, layout: Layout) -> Row:
    """Measure a part."""
    box, soft = part.soft
    weights = layout.weights(part.frame, box)
    rows, cols = soft.shape
    cells = weights.reshape(rows, weights.shape[0] // rows, cols, -1).sum(axis=(1, 3))
    return Row(
        key=part.key,
        box=part.box,
        mass=float((soft * cells).sum()),
        area=float(part.area),
        predicted_iou=part.predicted_iou,
        stability=part.stability,
        edges=part.edges,
    )


# --- what parts say about each other


def compare_frames(
    parts_a: Sequence[Part],
    parts_b: Sequence[Part],
    layout: Layout,
    recipe: Recipe,
    judge: Judge | None,
) -> tuple[list[Link], list[Apart], list[Overlap]]:
    """What the parts of two neighbouring frames say about each other; only cut ones are linked."""
    cut_a, cut_b = ([p for p in parts if p.edges] for parts in (parts_a, parts_b))
    whole = [p for p in (*parts_a, *parts_b) if not p.edges]

    def asked(a: Part, b: Part) -> bool:
        """The judge's word, where nothing that a frame saw whole is there instead."""
        assert judge is not None
        explained = any(_explained(part, whole, recipe.covered_share) for part in (a, b))
        return not explained and judge(a, b)

    linked, apart = compare(cut_a, cut_b, layout, recipe, asked if judge else None)
    boxes = _boxes(parts_b)
    return linked, apart, [o for part in parts_a for o in _overlaps(part, parts_b, boxes)]


def _explained(part: Part, whole: Sequence[Part], share: float) -> bool:
    return any(_shared_pixels(part, other) > share * part.area for other in whole)


def compare_within(parts: Sequence[Part]) -> tuple[list[Apart], list[Overlap]]:
    """Parts of one frame that contradict each other, being accounts of one place, and overlaps."""
    boxes = _boxes(parts)
    found = [
        overlap
        for i, part in enumerate(parts, 1)
        for overlap in _overlaps(part, parts[i:], boxes[i:])
    ]
    cut = {p.key: p.area for p in parts if p.edges}
    apart = [
        (o.a, o.b)
        for o in found
        if o.a in cut and o.b in cut and o.pixels > ONE_PLACE * min(cut[o.a], cut[o.b])
    ]
    return apart, found


def _boxes(parts: Sequence[Part]) -> NDArray[np.int_]:
    boxes = [(p.box.top, p.box.left, p.box.bottom, p.box.right) for p in parts]
    return np.array(boxes, int).reshape(-1, 4)


def _overlaps(part: Part, others: Sequence[Part], boxes: NDArray[np.int_]) -> Iterator[Overlap]:
    """Of one part with others, whose boxes are given."""
    box = part.box
    meet = (boxes[:, 0] < box.bottom) & (boxes[:, 2] > box.top)
    meet &= (boxes[:, 1] < box.right) & (boxes[:, 3] > box.left)
    for j in np.flatnonzero(meet):
        other = others[int(j)]
        shared = _shared_pixels(part, other)
        if shared >= WORTH * min(part.area, other.area):
            a, b = sorted((part.key, other.key))
            yield Overlap(a, b, shared)


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


# --- candidates


@dataclass(frozen=True)
class _Candidate:
    """A part that one frame saw whole, or cut parts that are linked."""

    rows: tuple[Row, ...]
    """By key."""
    complete: bool
    """No frame outside can add to it."""
    known: bool
    """Nor show anything else on its ground."""

    @property
    def name(self) -> PartKey:
        return self.rows[0].key

    @functools.cached_property
    def weights(self) -> list[float]:
        mass = sum(row.mass for row in self.rows)
        return [row.mass / mass if mass > 0 else 1 / len(self.rows) for row in self.rows]

    @functools.cached_property
    def area(self) -> float:
        if len(self.rows) == 1:
            return self.rows[0].area
        return max(sum(row.mass for row in self.rows), *(row.area for row in self.rows))

    def mean(self, name: str) -> float:
        values = (getattr(row, name) for row in self.rows)
        return float(sum(w * v for w, v in zip(self.weights, values, strict=True)))

    @functools.cached_property
    def open_edges(self) -> int:
        """Borders where it goes on although the frame behind holds nothing of it."""
        frames = {row.frame for row in self.rows}
        return sum(
            bool(row.edges & bit) and (row.frame[0] + down, row.frame[1] + right) not in frames
            for row in self.rows
            for bit, (down, right) in _SIDES.items()
        )

    @property
    def closed(self) -> float:
        """Share of the borders across it where it goes on in the frame behind."""
        return 1 - self.open_edges / max(sum(row.edges.bit_count() for row in self.rows), 1)

    @functools.cached_property
    def quality(self) -> tuple[float, PartKey]:
        """Score and size, less for what is left open; the name decides ties everywhere alike."""
        score = self.mean("predicted_iou") * self.mean("stability")
        return self.closed * score * self.area**LARGER, self.name


class _Ground:
    """Candidates and what they share."""

    def __init__(self, candidates: Iterable[_Candidate], overlaps: Iterable[Overlap]) -> None:
        self.by_name = {c.name: c for c in candidates}
        self.home = {row.key: c.name for c in self.by_name.values() for row in c.rows}
        self._pixels: dict[PartKey, dict[PartKey, float]] = {}
        self.meets: dict[PartKey, set[PartKey]] = {name: set() for name in self.by_name}
        for o in overlaps:
            for key, other in ((o.a, o.b), (o.b, o.a)):
                self._pixels.setdefault(key, {})[other] = o.pixels
                one, two = self.home.get(key), self.home.get(other)
                if one is not None and two is not None and one != two:
                    self.meets[one].add(two)

    def share(self, inner: PartKey, outer: PartKey) -> float:
        """Share of one candidate's ground that another one claims, 0..1."""
        candidate = self.by_name[inner]
        theirs = {row.key for row in self.by_name[outer].rows}
        total = 0.0
        for row, weight in zip(candidate.rows, candidate.weights, strict=True):
            shared = self._pixels.get(row.key, {})
            most = max((v for key, v in shared.items() if key in theirs), default=0.0)
            total += weight * min(1.0, most / max(row.area, 1.0))
        return total

    def iou(self, a: PartKey, b: PartKey) -> float:
        """IoU of two candidates, 0..1."""
        small, large = sorted((self.by_name[a], self.by_name[b]), key=lambda c: (c.area, c.name))
        shared = self.share(small.name, large.name) * small.area
        return shared / max(small.area + large.area - shared, 1.0)

    def exclude(self, a: PartKey, b: PartKey, recipe: Recipe) -> bool:
        """True if only one of two candidates can stay."""
        if recipe.layer == "parts":
            return self.iou(a, b) > SAME
        small, large = sorted((self.by_name[a], self.by_name[b]), key=lambda c: (c.area, c.name))
        if small.area <= NESTED * large.area:
            return False
        return self.share(small.name, large.name) > recipe.covered_share

    def explained(self, name: PartKey, recipe: Recipe) -> bool:
        """True if a chain is several things at once: smaller candidates inside it fill it.

        A frame that takes two fields for one may link them, and the frames that tell them apart
        are there as well.
        """
        chain = self.by_name[name]
        if len(chain.rows) == 1 or recipe.layer == "parts":
            return False
        least = CREDIBLE * chain.quality[0]
        things = [
            other
            for other in (self.by_name[o] for o in self.meets[name])
            if least <= other.quality[0] < chain.quality[0]
            and other.area < EXPLAINED * chain.area
            and self.share(other.name, name) >= INSIDE
        ]
        chosen: list[_Candidate] = []
        for one in sorted(things, key=lambda c: c.quality, reverse=True):
            if not any(self.exclude(one.name, other.name, recipe) for other in chosen):
                chosen.append(one)
        filled = sum(self.share(one.name, name) * one.area for one in chosen)
        return filled >= EXPLAINED * chain.area

    def frames(self, name: PartKey) -> int:
        """Frames that show the candidate, or another account of the same thing."""
        rows = self.by_name[name].rows
        frames = {row.frame for row in rows}
        if len(rows) == 1:
            for other in self.meets[name]:
                if self.iou(name, other) > SAME:
                    frames |= {row.frame for row in self.by_name[other].rows}
        return len(frames)


def settle(
    borders: Sequence[Borders], reaches_out: Callable[[Row], bool], recipe: Recipe
) -> tuple[list[Object], Borders]:
    """Decide about every candidate that nothing outside can change; hand the rest up.

    Args:
        borders: What blocks or lower nodes hold.
        reaches_out: True for a part whose pixels frames outside see too.
        recipe: `layer`, `covered_share`.
    """
    rows = {row.key: row for b in borders for row in b.rows}
    all_links = sorted({link for b in borders for link in b.links}, key=lambda k: (k.a, k.b))
    apart = sorted({pair for b in borders for pair in b.apart})
    overlaps = sorted({o for b in borders for o in b.overlaps}, key=lambda o: (o.a, o.b))
    before = {name: taken for b in borders for name, taken in b.taken.items()}
    ground = _Ground(_candidates(rows, all_links, apart, reaches_out), overlaps)
    taken = _decide(ground, before, recipe)
    new = [name for name in sorted(taken) if taken[name] and name not in before]
    objects = [_object(ground, name, taken, recipe) for name in new]
    return objects, _held(ground, all_links, apart, overlaps, taken)


def _candidates(
    rows: Mapping[PartKey, Row],
    all_links: Sequence[Link],
    apart: Sequence[Apart],
    reaches_out: Callable[[Row], bool],
) -> Iterator[_Candidate]:
    """Every part in one candidate; what hangs together is taken apart once all of it is known."""
    for chain in _chains(rows, all_links, apart):
        known = not any(reaches_out(rows[key]) for key in chain.keys)
        whole = len(chain.keys) == 1 and rows[chain.keys[0]].edges == 0
        said = groups(chain.keys, chain.links, chain.apart) if known else [chain.keys]
        for own in said:
            yield _Candidate(tuple(rows[key] for key in own), complete=known or whole, known=known)


@dataclass(frozen=True)
class _Chain:
    """Parts that hang together by links, and what is said for and against that."""

    keys: list[PartKey] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    apart: list[Apart] = field(default_factory=list)


def _chains(
    rows: Mapping[PartKey, Row], all_links: Iterable[Link], apart: Iterable[Apart]
) -> Iterable[_Chain]:
    joined = UnionFind()
    for link in all_links:
        joined.join(link.a, link.b)
    found = {joined.find(key): _Chain() for key in rows}
    for key in sorted(rows):
        found[joined.find(key)].keys.append(key)
    for link in all_links:
        if chain := found.get(joined.find(link.a)):
            chain.links.append(link)
    for a, b in apart:
        if (name := joined.find(a)) == joined.find(b) and name in found:
            found[name].apart.append((a, b))
    return found.values()


def _decide(ground: _Ground, before: Mapping[PartKey, bool], recipe: Recipe) -> dict[PartKey, bool]:
    """The best first; what is not decided here is missing in the answer."""
    taken = dict(before)
    ranked = sorted(ground.by_name.values(), key=lambda c: c.quality, reverse=True)
    for candidate in ranked:
        name, others = candidate.name, ground.meets[candidate.name]
        if name in taken or not candidate.complete:
            continue
        rivals = (o for o in others if taken.get(o) and ground.by_name[o].complete)
        if any(ground.exclude(name, o, recipe) for o in rivals):
            taken[name] = False
        elif candidate.known and not any(_may_win(ground, o, candidate, taken) for o in others):
            taken[name] = not ground.explained(name, recipe)
    return taken


def _may_win(
    ground: _Ground, other: PartKey, candidate: _Candidate, taken: Mapping[PartKey, bool]
) -> bool:
    """True if another candidate that is not decided could be better."""
    if other in taken:
        return False
    rival = ground.by_name[other]
    return not rival.complete or rival.quality > candidate.quality


def _object(
    ground: _Ground, name: PartKey, taken: Mapping[PartKey, bool], recipe: Recipe
) -> Object:
    candidate = ground.by_name[name]
    return Object(
        name=name,
        parts=tuple(row.key for row in candidate.rows),
        area=candidate.area,
        predicted_iou=candidate.mean("predicted_iou"),
        stability=candidate.mean("stability"),
        frames=ground.frames(name),
        open_edges=candidate.open_edges,
        closed=candidate.closed,
        parent=_parent(ground, candidate, taken, recipe),
    )


def _parent(
    ground: _Ground, child: _Candidate, taken: Mapping[PartKey, bool], recipe: Recipe
) -> PartKey | None:
    """The smallest better candidate around it, or else the best of the others.

    Better ones are decided by now. Of the others only that is known, whatever the block, that those
    which exclude the child have lost.
    """
    around = [
        other
        for other in (ground.by_name[o] for o in ground.meets[child.name])
        if other.area > child.area and ground.share(child.name, other.name) >= CONTAINED
    ]
    better = [o for o in around if o.quality > child.quality and taken[o.name]]
    if better:
        return min(better, key=lambda o: (o.area, o.name)).name
    others = [
        o
        for o in around
        if o.quality < child.quality and not ground.exclude(child.name, o.name, recipe)
    ]
    return max(others, key=lambda o: o.quality).name if others else None


def _waits(ground: _Ground, taken: Mapping[PartKey, bool], key: PartKey) -> bool:
    return key not in ground.home or ground.home[key] not in taken


def _still_asked(
    ground: _Ground, overlaps: Iterable[Overlap], taken: Mapping[PartKey, bool]
) -> tuple[Overlap, ...]:
    """Overlaps of what waits, and of things inside a chain that waits: do they explain it?"""
    chains = {c.name for c in ground.by_name.values() if c.name not in taken and c.rows[0].edges}

    def asked(o: Overlap) -> bool:
        if _waits(ground, taken, o.a) or _waits(ground, taken, o.b):
            return True
        one, other = (ground.meets[ground.home[key]] for key in (o.a, o.b))
        return not chains.isdisjoint(one & other)

    return tuple(filter(asked, overlaps))


def _held(
    ground: _Ground,
    all_links: Iterable[Link],
    apart: Iterable[Apart],
    overlaps: Iterable[Overlap],
    taken: Mapping[PartKey, bool],
) -> Borders:
    """What is undecided, and the candidates and overlaps that it or something outside will meet."""

    def joins(link: Link) -> bool:
        """Whether a link still matters: not one that a contradiction undid."""
        ends = {ground.home.get(key) for key in (link.a, link.b)} - {None}
        return len(ends) == 1 and ends <= names

    waits = functools.partial(_waits, ground, taken)
    kept = _still_asked(ground, overlaps, taken)
    ends = {ground.home[key] for o in kept for key in (o.a, o.b) if key in ground.home}
    # what frames outside see too stays known, decided or not: they hold overlaps with it
    names = ends | {c.name for c in ground.by_name.values() if c.name not in taken or not c.known}
    return Borders(
        tuple(row for name in sorted(names) for row in ground.by_name[name].rows),
        tuple(filter(joins, all_links)),
        tuple(pair for pair in apart if all(map(waits, pair))),
        kept,
        {
            row.key: taken[name]
            for name in sorted(names & taken.keys())
            for row in ground.by_name[name].rows
        },
    )
