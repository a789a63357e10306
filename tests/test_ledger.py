"""The ledger: every step once, never too early, also after a kill."""

from __future__ import annotations

import random

import pytest

from geosam2.blocks import Blocks, Node
from geosam2.ledger import Ledger, Step, everything_in

BLOCKS = Blocks((3, -2), (5, 7), side=2)


def held_by(blocks: Blocks, node: Node) -> list[Node]:
    """A pessimist's settling: every block at the rim of a node has parts that reach out."""
    inside = list(blocks.in_order(node))
    return [b for b in inside if not set(blocks.neighbours(b)) <= set(inside)]


def follow(ledger: Ledger, rng: random.Random, before: list[Step] = ()) -> list[Step]:
    """Finish steps in random order; returns them as they were finished."""
    order = list(before)
    under_way: list[Step] = []
    while True:
        while (step := ledger.take()) is not None:
            if step not in order:
                under_way.append(step)
                _check_ready(step, set(order))
        if not under_way:
            return order
        step = under_way.pop(rng.randrange(len(under_way)))
        order.append(step)
        ledger.done(step, held_by(BLOCKS, step.node) if step.kind == "settle" else None)


def _check_ready(step: Step, done: set[Step]) -> None:
    around = [step.node, *BLOCKS.neighbours(step.node)]
    if step.kind == "settle" and step.node.level == 0:
        assert all(Step("find", b) in done for b in around)
    elif step.kind == "settle":
        assert all(Step("settle", child) in done for child in BLOCKS.children(step.node))
    elif step.kind == "draw":
        for block in around:  # nothing nearby may still change
            homes = [Step("settle", node) for node in BLOCKS.ancestors(block)]
            known = [home for home in homes if home in done]
            assert any(block not in held_by(BLOCKS, home.node) for home in known)
    elif step.kind == "join":
        assert all(Step("draw", block) in done for block in BLOCKS.in_order(step.node))


@pytest.mark.parametrize("seed", range(10))
def test_every_step_is_handed_out_once_and_not_too_early(seed):
    order = follow(Ledger(BLOCKS), random.Random(seed))
    assert len(order) == len(set(order))
    assert set(order) == set(everything_in(BLOCKS))


@pytest.mark.parametrize("seed", range(10))
def test_a_killed_run_goes_on_where_it_was(seed):
    rng = random.Random(seed)
    first = follow(Ledger(BLOCKS), rng)
    kept = set(first[: rng.randrange(len(first))])
    ledger = Ledger(BLOCKS)
    for step in everything_in(BLOCKS):
        if step in kept:
            ledger.done(step, held_by(BLOCKS, step.node) if step.kind == "settle" else None)
    order = follow(ledger, rng, [s for s in everything_in(BLOCKS) if s in kept])
    assert set(order) == set(first)


def test_polygons_leave_before_the_last_frame_is_looked_at():
    ledger = Ledger(Blocks((0, 0), (8, 8), side=1))
    kinds = []
    while (step := ledger.take()) is not None:
        kinds.append(step.kind)
        ledger.done(step, [] if step.kind == "settle" else None)
    assert kinds.index("draw") < len(kinds) - 1 - kinds[::-1].index("find")
