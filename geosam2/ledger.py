"""Which step may be done next: the state of a run, rebuilt from its files after a kill."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import NamedTuple

from geosam2.blocks import Blocks, Node
from geosam2.steps import Kind

_URGENCY: dict[Kind, int] = {"join": 0, "draw": 1, "settle": 2, "find": 3}


class Step(NamedTuple):
    """One thing to do."""

    kind: Kind
    node: Node

    @property
    def name(self) -> str:
        """For messages and task keys."""
        return f"{self.kind}-{self.node.name}"


class Ledger:
    """Knows what is done and hands out what may be done: later steps before earlier ones.

    So polygons leave while frames are still being looked at, and little is ever half done.

    >>> ledger = Ledger(Blocks((0, 0), (2, 1), side=1))
    >>> first = [ledger.take(), ledger.take(), ledger.take()]
    >>> [step and step.name for step in first]
    ['find-0_0_0', 'find-0_1_0', None]
    >>> ledger.done(first[0]); ledger.done(first[1])
    >>> ledger.take().name
    'settle-0_0_0'
    """

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self._finds = blocks.in_order()
        self._ready: list[tuple[int, int, Step]] = []
        self._count = 0
        self._found: set[Node] = set()
        self._settled: set[Node] = set()
        self._held: dict[Node, list[Node]] = {}
        self._clear: set[Node] = set()
        self._drawn: dict[Node, int] = {}

    def take(self) -> Step | None:
        """The next step, or None if all that is left waits for steps under way."""
        if self._ready:
            return heapq.heappop(self._ready)[2]
        for block in self._finds:
            return Step("find", block)
        return None

    def done(self, step: Step, pending: list[Node] | None = None) -> None:
        """Note a finished step; `pending` are the blocks that a settled node still holds."""
        if step.kind == "find":
            self._after_find(step.node)
        elif step.kind == "settle":
            self._after_settle(step.node, pending or [])
        elif step.kind == "draw":
            self._after_draw(step.node)

    @property
    def total(self) -> dict[Kind, int]:
        """Steps of each kind in the whole run."""
        blocks, inner = len(self.blocks), sum(1 for _ in self.blocks.nodes())
        return {"find": blocks, "settle": blocks + inner, "draw": blocks, "join": inner}

    def _offer(self, kind: Kind, node: Node) -> None:
        self._count += 1
        heapq.heappush(self._ready, (_URGENCY[kind], self._count, Step(kind, node)))

    def _after_find(self, block: Node) -> None:
        self._found.add(block)
        for other in sorted((block, *self.blocks.neighbours(block))):
            if other not in self._settled and self._surrounded(other, self._found):
                self._settled.add(other)
                self._offer("settle", other)

    def _surrounded(self, block: Node, by: set[Node]) -> bool:
        return block in by and by.issuperset(self.blocks.neighbours(block))

    def _after_settle(self, node: Node, pending: list[Node]) -> None:
        children = self.blocks.children(node) if node.level else []
        before = {b for child in children for b in self._held.pop(child)} if children else {node}
        self._held[node] = pending
        for block in sorted(before.difference(pending)):
            self._set_clear(block)
        parent = node.parent
        if node.level < self.blocks.height and all(
            child in self._held for child in self.blocks.children(parent)
        ):
            self._offer("settle", parent)

    def _set_clear(self, block: Node) -> None:
        self._clear.add(block)
        for other in sorted((block, *self.blocks.neighbours(block))):
            if other not in self._drawn and self._surrounded(other, self._clear):
                self._drawn[other] = 0
                self._offer("draw", other)

    def _after_draw(self, block: Node) -> None:
        for node in list(self.blocks.ancestors(block))[1:]:
            self._drawn[node] = self._drawn.get(node, 0) + 1
            if self._drawn[node] == self._blocks_in(node):
                self._offer("join", node)

    def _blocks_in(self, node: Node) -> int:
        rows, cols = self.blocks.shape
        side: int = 2**node.level
        height = min(rows, (node.row + 1) * side) - node.row * side
        width = min(cols, (node.col + 1) * side) - node.col * side
        return height * width


def everything_in(blocks: Blocks) -> Iterator[Step]:
    """All steps of a run, in an order that is always possible."""
    yield from (Step("find", block) for block in blocks.in_order())
    yield from (Step("settle", block) for block in blocks.in_order())
    yield from (Step("settle", node) for node in blocks.nodes())
    yield from (Step("draw", block) for block in blocks.in_order())
    yield from (Step("join", node) for node in blocks.nodes())
