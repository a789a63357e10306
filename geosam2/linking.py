"""One object, one identity: parts of neighbouring frames joined by what they say of the overlap.

The rule is symmetric and knows no order of frames and no number of workers: two parts are linked if
each is the other's best partner in the overlap and they agree there. A frame that takes two fields
for one would chain all their neighbours together, so what contradicts each other counts as well
(`groups`). Where the overlap leaves doubt, a judge is asked (`MemoryJudge`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from geosam2.parts import CELL, EAST, NORTH, SOUTH, WEST, Box, FrameKey, Layout, Part, PartKey
from geosam2.recipe import Recipe

EQUAL = 0.05  # IoUs that differ by less say the same
ACCOUNT, ELSEWHERE = 0.5, 1.0  # what contradictions weigh, of one frame and of two, against an IoU

Judge = Callable[[Part, Part], bool]
"""Given two parts of neighbouring frames: are they one object?"""

Node = TypeVar("Node", bound=Hashable)

Apart = tuple[PartKey, PartKey]
"""Two cut parts that are not one object, the smaller key first."""


@dataclass(frozen=True)
class Evidence:
    """How two parts of neighbouring frames compare in the overlap."""

    a: int
    """Index in the first frame's parts."""
    b: int
    """Index in the second frame's parts."""
    iou: float
    """Of their masks in the overlap, its middle counting most; 0..1."""
    share_a: float
    """Share of `a`'s mask in the overlap that lies in `b`; 0..1."""
    share_b: float
    """The reverse."""


@dataclass(frozen=True)
class Link:
    """Two parts that are one object."""

    a: PartKey
    b: PartKey
    iou: float
    """Agreement in the overlap."""


def evidence(
    parts_a: Sequence[Part], parts_b: Sequence[Part], layout: Layout, a: FrameKey, b: FrameKey
) -> list[Evidence]:
    """Compare all parts of two frames that meet in their overlap.

    Pixels weigh as both frames' cosine weights together: at either border a mask is least sure.

    >>> layout = Layout(64, 32)
    >>> full = np.full((16, 8), 80, np.int8)
    >>> p = Part((0, 0), 0, (0, 32), 4, full, 0.9, 0.9)
    >>> q = Part((0, 1), 0, (0, 32), 4, full, 0.9, 0.9)
    >>> evidence([p], [q], layout, (0, 0), (0, 1))
    [Evidence(a=0, b=0, iou=1.0, share_a=1.0, share_b=1.0)]
    """
    window = layout.shared(a, b)
    if window.empty:
        return []
    weight = _cell_means(layout.weights(a, window) * layout.weights(b, window))
    masks_a, masks_b = _clipped(parts_a, window), _clipped(parts_b, window)
    out = []
    for i, (box_a, soft_a) in masks_a.items():
        for j, (box_b, soft_b) in masks_b.items():
            common = box_a & box_b
            if not common.empty:
                found = _compare(box_a, soft_a, box_b, soft_b, weight, window)
                if found[0] > 0:
                    out.append(Evidence(i, j, *found))
    return out


def _cell_means(values: NDArray[np.float32]) -> NDArray[np.float32]:
    rows, cols = values.shape
    cells = values.reshape(rows // CELL, CELL, cols // CELL, CELL)
    means: NDArray[np.float32] = cells.mean(axis=(1, 3), dtype=np.float32)
    return means


def _clipped(parts: Sequence[Part], window: Box) -> dict[int, tuple[Box, NDArray[np.float32]]]:
    """The pieces of masks that lie in the overlap, where there is anything."""
    out = {}
    for i, part in enumerate(parts):
        box, soft = part.soft
        common = box & window
        if common.empty:
            continue
        rows, cols = common.within(box)
        cut = soft[rows.start // CELL : rows.stop // CELL, cols.start // CELL : cols.stop // CELL]
        if cut.any():
            out[i] = (common, cut)
    return out


def _compare(
    box_a: Box,
    soft_a: NDArray[np.float32],
    box_b: Box,
    soft_b: NDArray[np.float32],
    weight: NDArray[np.float32],
    window: Box,
) -> tuple[float, float, float]:
    """IoU and the two shares; sums over each mask's own box, so that the cost follows the masks."""
    common = box_a & box_b
    both = np.minimum(soft_a[_at(common, box_a)], soft_b[_at(common, box_b)])
    shared = float((both * weight[_at(common, window)]).sum())
    size_a = float((soft_a * weight[_at(box_a, window)]).sum())
    size_b = float((soft_b * weight[_at(box_b, window)]).sum())
    union = size_a + size_b - shared
    return tuple(min(1.0, shared / max(x, 1e-12)) for x in (union, size_a, size_b))  # type: ignore[return-value]


def _at(inner: Box, outer: Box) -> tuple[slice, slice]:
    rows, cols = inner.within(outer)
    return (
        slice(rows.start // CELL, rows.stop // CELL),
        slice(cols.start // CELL, cols.stop // CELL),
    )


def compare(
    parts_a: Sequence[Part],
    parts_b: Sequence[Part],
    layout: Layout,
    recipe: Recipe,
    judge: Judge | None = None,
) -> tuple[list[Link], list[Apart]]:
    """The parts of two neighbouring frames that are one object, and those that contradict it.

    Two parts contradict each other where one lies in the other, as far as both frames see them, and
    is much less.

    Args:
        parts_a: All parts of one frame.
        parts_b: All parts of the other.
        layout: The frames' lattice.
        recipe: `link_iou`, `doubt_share`.
        judge: Asked where the overlap leaves doubt: one part lies in the other there, the object
            goes on beyond the border, and neither has a partner. None: not linked.
    """
    if not parts_a or not parts_b:
        return [], []
    if parts_a[0].frame > parts_b[0].frame:  # the same answer whichever frame is named first
        parts_a, parts_b = parts_b, parts_a
    found = evidence(parts_a, parts_b, layout, parts_a[0].frame, parts_b[0].frame)
    sizes = [p.area for p in parts_a], [p.area for p in parts_b]
    agreed = set(_mutual([e for e in found if e.iou >= recipe.link_iou], *sizes))
    if judge is not None:
        sure_a, sure_b = {e.a for e in agreed}, {e.b for e in agreed}
        agreed |= {
            e
            for e in found
            if e.a not in sure_a
            and e.b not in sure_b
            and _doubtful(e, parts_a[e.a], parts_b[e.b], recipe)
            and judge(parts_a[e.a], parts_b[e.b])
        }
    ordered = sorted(agreed, key=lambda e: (e.a, e.b))
    linked = [Link(parts_a[e.a].key, parts_b[e.b].key, e.iou) for e in ordered]
    apart = [
        (parts_a[e.a].key, parts_b[e.b].key)
        for e in found
        if e not in agreed and e.iou < recipe.link_iou and _one_in_other(e, recipe)
    ]
    return linked, apart


def _mutual(
    found: Iterable[Evidence], sizes_a: Sequence[int], sizes_b: Sequence[int]
) -> Iterator[Evidence]:
    """Pairs where each is the other's best.

    Where a shed and its yard both fill the overlap they agree equally: then like size goes first.
    """
    best_a: dict[int, Evidence] = {}
    best_b: dict[int, Evidence] = {}

    def merit(e: Evidence) -> tuple[float, float, int, int]:
        small, large = sorted((sizes_a[e.a], sizes_b[e.b]))
        return -round(e.iou / EQUAL), -small / max(large, 1), e.a, e.b

    for e in sorted(found, key=merit):
        best_a.setdefault(e.a, e)
        best_b.setdefault(e.b, e)
    return (e for e in best_a.values() if best_b[e.b] is e)


def _doubtful(e: Evidence, a: Part, b: Part, recipe: Recipe) -> bool:
    """One lies in the other, and the smaller one is cut by a border that the other looks beyond."""
    if not _one_in_other(e, recipe):
        return False
    towards_b = sides_towards(a.frame, b.frame)
    towards_a = sides_towards(b.frame, a.frame)
    return bool(a.edges & towards_b) and bool(b.edges & towards_a)


def _one_in_other(e: Evidence, recipe: Recipe) -> bool:
    return max(e.share_a, e.share_b) >= recipe.doubt_share


def sides_towards(frame: FrameKey, other: FrameKey) -> int:
    """Bits of the borders of `frame` that lie inside `other`.

    >>> sides_towards((0, 0), (0, 1)) == EAST, sides_towards((3, 3), (2, 2)) == NORTH | WEST
    (True, True)
    """
    down, right = other[0] - frame[0], other[1] - frame[1]
    return NORTH * (down < 0) | SOUTH * (down > 0) | WEST * (right < 0) | EAST * (right > 0)


def groups(
    members: Iterable[PartKey], linked: Iterable[Link], apart: Iterable[Apart]
) -> list[list[PartKey]]:
    """Parts that are one object, by all that is said for and against it.

    Greedy additive edge contraction (Keuper et al. 2015, https://arxiv.org/abs/1505.06973): links
    count by their agreement, contradictions against it; the two groups with most between them
    become one, as long as that is more than nothing. Groups that end apart do not change each
    other's order, so a group by itself is found again.

    Returns:
        The groups with their members in order; every member is in one.

    >>> a, b, c = (0, 0, 0), (0, 1, 0), (0, 2, 0)
    >>> groups([a, b, c], [Link(a, b, 0.9), Link(b, c, 0.8)], [(a, c)])
    [[(0, 0, 0), (0, 1, 0)], [(0, 2, 0)]]
    """
    said = [(k.a, k.b, k.iou) for k in linked]
    said += [(a, b, -(ACCOUNT if a[:2] == b[:2] else ELSEWHERE)) for a, b in apart]
    own = {key: [key] for key in members}
    between: dict[PartKey, dict[PartKey, float]] = {key: {} for key in own}
    for a, b, worth in said:
        if a in own and b in own:
            between[a][b] = between[b][a] = between[a].get(b, 0.0) + worth
    best = [(-worth, a, b) for a in own for b, worth in between[a].items() if a < b and worth > 0]
    heapq.heapify(best)
    while best:
        worth, a, b = heapq.heappop(best)
        if a not in own or b not in own or between[a].get(b) != -worth:
            continue  # one of them has become part of another group
        own[a] += own.pop(b)
        del between[a][b]
        for other, more in between.pop(b).items():
            if other != a:
                del between[other][b]
                total = between[a].get(other, 0.0) + more
                between[a][other] = between[other][a] = total
                if total > 0:
                    heapq.heappush(best, (-total, min(a, other), max(a, other)))
    return sorted(sorted(group) for group in own.values())


class UnionFind:
    """Connected components; the smallest member names a component, so order does not matter.

    >>> groups = UnionFind()
    >>> groups.join(3, 2); groups.join(2, 7)
    >>> groups.find(7), groups.find(5)
    (2, 5)
    """

    def __init__(self) -> None:
        self._parent: dict[Hashable, Hashable] = {}

    def find(self, node: Node) -> Node:
        """The name of the component of `node`."""
        root: Hashable = node
        while (up := self._parent.get(root, root)) != root:
            root = up
        step: Hashable = node
        while step != root:  # shorten the path for the next question
            step, self._parent[step] = self._parent[step], root
        return root  # type: ignore[return-value]

    def join(self, a: Node, b: Node) -> None:
        """Make the components of two nodes one."""
        low, high = sorted((self.find(a), self.find(b)))  # type: ignore[type-var]
        self._parent[high] = low
