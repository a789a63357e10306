"""Linking: evidence in the overlap, components, order invariance, the judge."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from geosam2.blocks import Blocks, Node
from geosam2.linking import ACCOUNT, Link, UnionFind, compare, evidence, groups
from geosam2.parts import Box, Layout, Part, crop_part
from geosam2.recipe import Recipe
from geosam2.settling import (
    LARGER,
    Borders,
    compare_frames,
    compare_within,
    inner_edges,
    row_of,
    settle,
)

LAYOUT = Layout(128, 32)
RECIPE = Recipe()


def seen(mask: np.ndarray, frame: tuple[int, int], rank: int, score: float = 0.9) -> Part | None:
    """What a perfect network sees of a full-resolution mask (lattice from (0, 0)) on a frame."""
    box = LAYOUT.frame(frame)
    window = np.zeros(box.shape, bool)
    common = box & Box(0, 0, *mask.shape)
    window[common.within(box)] = mask[common.within(Box(0, 0, *mask.shape))]
    share = window.reshape(32, 4, 32, 4).mean(axis=(1, 3))
    logits = np.round((share - 0.5) * 160).astype(np.int8)
    if not (logits > 0).any():
        return None
    return crop_part(logits, box, box, frame=frame, rank=rank, predicted_iou=score, stability=1.0)


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((320, 416), bool)
    mask[top:bottom, left:right] = True
    return mask


def on_frame(frame: tuple[int, int], *masks: np.ndarray) -> list[Part]:
    found = (seen(mask, frame, rank) for rank, mask in enumerate(masks))
    return [part for part in found if part is not None]


def links(*given) -> list[Link]:
    return compare(*given)[0]


def test_an_object_over_a_seam_is_linked():
    field = rectangle(20, 40, 70, 180)
    found = links(on_frame((0, 0), field), on_frame((0, 1), field), LAYOUT, RECIPE)
    assert [(link.a, link.b) for link in found] == [((0, 0, 0), (0, 1, 0))]
    assert found[0].iou == pytest.approx(1.0)


def test_touching_look_alikes_stay_apart():
    upper, lower = rectangle(20, 40, 60, 180), rectangle(60, 40, 100, 180)
    found = links(on_frame((0, 0), upper, lower), on_frame((0, 1), upper, lower), LAYOUT, RECIPE)
    assert {(link.a[2], link.b[2]) for link in found} == {(0, 0), (1, 1)}


def test_naming_the_frames_the_other_way_round_changes_nothing():
    masks = [rectangle(20, 40, 60, 180), rectangle(62, 40, 100, 180), rectangle(30, 90, 50, 120)]
    left, right = on_frame((0, 0), *masks), on_frame((0, 1), *masks)
    assert links(left, right, LAYOUT, RECIPE) == links(right, left, LAYOUT, RECIPE)


def test_evidence_agrees_with_counting_pixels():
    a = seen(rectangle(20, 60, 64, 140), (0, 0), 0)
    b = seen(rectangle(32, 60, 84, 200), (0, 1), 0)
    window = LAYOUT.shared((0, 0), (0, 1))
    (found,) = evidence([a], [b], LAYOUT, (0, 0), (0, 1))
    weight = LAYOUT.weights((0, 0), window) * LAYOUT.weights((0, 1), window)
    masks = [rectangle(20, 60, 64, 140), rectangle(32, 60, 84, 200)]
    one, two = (m[window.within(Box(0, 0, *m.shape))] for m in masks)
    iou = (weight * (one & two)).sum() / (weight * (one | two)).sum()
    assert found.iou == pytest.approx(iou, rel=1e-3)
    assert found.share_a == pytest.approx(
        (weight * (one & two)).sum() / (weight * one).sum(), rel=1e-3
    )


def test_a_shed_that_fills_the_overlap_is_not_taken_for_its_yard():
    yard, shed = rectangle(0, 20, 128, 220), rectangle(0, 80, 128, 150)
    left = on_frame((0, 0), yard, shed)
    for right in (on_frame((0, 1), yard, shed), on_frame((0, 1), shed, yard)):
        found = links(left, right, LAYOUT, RECIPE)
        areas = {p.key: p.area for p in (*left, *right)}
        assert len(found) == 2
        assert all(0.5 < areas[k.a] / areas[k.b] < 2 for k in found)


def test_the_judge_is_asked_only_where_there_is_doubt():
    whole, upper = rectangle(20, 40, 100, 180), rectangle(20, 40, 58, 180)
    asked = []

    def judge(a: Part, b: Part) -> bool:
        asked.append((a.key, b.key))
        return True

    left, right = on_frame((0, 0), whole), on_frame((0, 1), upper)
    assert links(left, right, LAYOUT, RECIPE) == []  # they agree by less than link_iou
    assert len(links(left, right, LAYOUT, RECIPE, judge)) == 1
    assert asked == [((0, 0, 0), (0, 1, 0))]
    lower = rectangle(58, 40, 100, 180)  # and this half agrees by more
    assert len(links(left, on_frame((0, 1), upper, lower), LAYOUT, RECIPE, judge)) == 1
    clear = [rectangle(20, 40, 60, 180), rectangle(62, 40, 100, 180)]
    links(on_frame((0, 0), *clear), on_frame((0, 1), *clear), LAYOUT, RECIPE, judge)
    assert len(asked) == 1


def test_the_judge_is_not_asked_about_what_a_frame_saw_whole():
    whole, upper = rectangle(20, 40, 100, 180), rectangle(20, 40, 58, 180)
    barn = rectangle(20, 70, 100, 126)  # most of what the left frame sees of the cut part, and all
    asked = []

    def judge(a: Part, b: Part) -> bool:
        asked.append((a.key, b.key))
        return True

    left, right = on_frame((0, 0), whole, barn), on_frame((0, 1), upper)
    compare_frames(left, right, LAYOUT, replace(RECIPE, covered_share=0.9), judge)
    assert len(asked) == 1
    compare_frames(left, right, LAYOUT, replace(RECIPE, covered_share=0.4), judge)
    assert len(asked) == 1


def test_a_judge_that_says_no_keeps_parts_apart():
    whole, upper = rectangle(20, 40, 100, 180), rectangle(20, 40, 50, 180)
    left, right = on_frame((0, 0), whole), on_frame((0, 1), upper)
    assert links(left, right, LAYOUT, RECIPE, lambda a, b: False) == []


@settings(deadline=None)  # scipy's first import takes a second
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60), st.randoms())
def test_components_are_those_of_scipy_in_any_order(pairs, random):
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    shuffled = pairs[:]
    random.shuffle(shuffled)
    groups = UnionFind()
    for a, b in shuffled:
        groups.join(a, b)
    rows, cols = zip(*pairs, strict=True) if pairs else ((), ())
    graph = coo_matrix((np.ones(len(pairs)), (rows, cols)), shape=(31, 31))
    _, labels = connected_components(graph, directed=False)
    for a, b in itertools.combinations(range(31), 2):
        assert (groups.find(a) == groups.find(b)) == (labels[a] == labels[b])
    for a in range(31):
        assert groups.find(a) == np.flatnonzero(labels == labels[a])[0]  # the smallest names it


def test_two_fields_contradict_what_takes_them_for_one():
    upper, lower, both = (
        rectangle(*rows, 180) for rows in ((20, 40, 60), (60, 40, 100), (20, 40, 100))
    )
    linked, apart = compare(on_frame((0, 0), upper, lower), on_frame((0, 1), both), LAYOUT, RECIPE)
    assert len(linked) == 1  # half of it is what it agrees with best
    assert len(apart) == 1
    assert {apart[0][0], linked[0].a} == {(0, 0, 0), (0, 0, 1)}


@pytest.mark.parametrize("side", [1, 2])
def test_one_frame_that_takes_two_fields_for_one_does_not_join_them(side):
    left, right = rectangle(20, 20, 200, 110), rectangle(20, 110, 200, 200)
    parts = scene_parts([left, right], (2, 2))
    parts[0, 0] = on_frame((0, 0), left | right)  # linked to the one below, the other beside it
    objects = settled_in_a_tree(parts, Blocks((0, 0), (2, 2), side))
    found = {tuple(key for key in o.parts if key != (0, 0, 0)) for o in objects} - {()}
    assert found == {((0, 1, rank), (1, 0, rank), (1, 1, rank)) for rank in (0, 1)}


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=50)
def test_groups_gain_nothing_by_joining_or_by_losing_one_of_two(seed):
    """Against the sums worked out anew: no two groups have more for than against each other."""
    rng = np.random.default_rng(seed)
    keys = [(0, i // 2, i % 2) for i in range(12)]
    pairs = [p for p in itertools.combinations(keys, 2) if rng.random() < 0.4]
    linked = [Link(*p, float(rng.uniform(0.5, 1))) for p in pairs if rng.random() < 0.6]
    apart = [p for p in pairs if rng.random() < 0.4]
    worth = dict.fromkeys(pairs, 0.0)
    for link in linked:
        worth[link.a, link.b] += link.iou
    for pair in apart:
        worth[pair] -= ACCOUNT if pair[0][:2] == pair[1][:2] else 1

    def between(one: list, other: list) -> float:
        return sum(worth.get((min(a, b), max(a, b)), 0.0) for a in one for b in other)

    found = groups(keys, linked, apart)
    assert sorted(itertools.chain(*found)) == keys
    for one, other in itertools.combinations(found, 2):
        assert between(one, other) <= 1e-9
    for group in found:
        if len(group) == 2:
            assert between(group[:1], group[1:]) > 0
        # a group by itself is found again: what is handed up is no more than that
        inner = [k for k in linked if k.a in group and k.b in group]
        assert groups(group, inner, [p for p in apart if p[0] in group and p[1] in group]) == [
            group
        ]


# --- settling


def scene_parts(
    masks: list[np.ndarray], frames: tuple[int, int]
) -> dict[tuple[int, int], list[Part]]:
    return {(r, c): on_frame((r, c), *masks) for r in range(frames[0]) for c in range(frames[1])}


def borders_of(parts: dict, keys: list, blocks: Blocks, recipe: Recipe) -> Borders:
    """What a block's step works out, for the frames `keys`."""
    parts = {
        key: [replace(p, edges=inner_edges(p, blocks.exists)) for p in own]
        for key, own in parts.items()
    }
    all_links, apart, overlaps = [], [], []
    for r, c in keys:
        contradicting, shared = compare_within(parts[r, c])
        apart += contradicting
        overlaps += shared
        for other in [(r, c + 1), (r + 1, c - 1), (r + 1, c), (r + 1, c + 1)]:
            if other in parts:
                found = compare_frames(parts[r, c], parts[other], LAYOUT, recipe, None)
                for known, new in zip((all_links, apart, overlaps), found, strict=True):
                    known += new
    rows = [row_of(p, LAYOUT) for key in keys for p in parts[key]]
    return Borders(tuple(rows), tuple(all_links), tuple(apart), tuple(overlaps))


def settled_in_a_tree(parts: dict, blocks: Blocks, recipe: Recipe = RECIPE) -> list:
    held: dict[Node, Borders] = {}
    found = []
    for node in [*blocks.in_order(), *blocks.nodes()]:
        if node.level == 0:
            below = [borders_of(parts, blocks.frames_of(node), blocks, recipe)]
        else:
            below = [held.pop(child) for child in blocks.children(node)]

        def reaches_out(row, node=node):
            return blocks.reaches_out(node, row.frame, row.box, LAYOUT)

        objects, held[node] = settle(below, reaches_out, recipe)
        found += objects
    assert held[blocks.root] == Borders()
    return sorted(found, key=lambda o: o.name)


MASKS = [
    rectangle(20, 40, 70, 400),
    rectangle(70, 40, 110, 400),
    rectangle(130, 10, 310, 60),
    rectangle(150, 200, 180, 230),
    rectangle(140, 190, 300, 380),
    rectangle(200, 100, 204, 170),
]


def random_parts(seed: int, frames: tuple[int, int] = (3, 4)) -> dict:
    """Frames that contradict each other: masks of any size and score, cut or whole."""
    rng = np.random.default_rng(seed)
    parts: dict = {}
    for key in itertools.product(range(frames[0]), range(frames[1])):
        box = LAYOUT.frame(key)
        found = []
        for _ in range(rng.integers(0, 9)):
            height, width = rng.integers(8, 128, 2)
            top, left = rng.integers(-height // 2, 128 - height // 2), rng.integers(-40, 100)
            top, left = max(0, box.top + top), max(0, box.left + left)
            mask = rectangle(top, left, top + height, left + width)
            part = seen(mask, key, len(found), round(rng.uniform(0.3, 1.0), 1))
            found += [] if part is None else [part]
        parts[key] = found
    return parts


def random_fields(seed: int, frames: tuple[int, int] = (3, 4)) -> dict:
    """Fields that touch, two of which a frame may take for one."""
    rng = np.random.default_rng(seed)
    rows = [10, *np.sort(rng.choice(np.arange(40, 260, 10), 2, replace=False)), 300]
    cols = [10, *np.sort(rng.choice(np.arange(40, 360, 10), 3, replace=False)), 390]
    fields = {
        (i, j): rectangle(rows[i], cols[j], rows[i + 1], cols[j + 1])
        for i, j in itertools.product(range(3), range(4))
    }
    pairs = [(a, (a[0] + i, a[1] + j)) for a in fields for i, j in ((0, 1), (1, 0))]
    both = [fields[a] | fields[b] for a, b in pairs if b in fields]
    parts: dict = {}
    for key in itertools.product(range(frames[0]), range(frames[1])):
        masks = [m for m in fields.values() if rng.random() < 0.8]
        masks += [m for m in both if rng.random() < 0.3]
        scores = rng.uniform(0.5, 1.0, len(masks)).round(1)
        found = [seen(m, key, i, s) for i, (m, s) in enumerate(zip(masks, scores, strict=True))]
        parts[key] = [part for part in found if part is not None]
    return parts


@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_tree_of_blocks_settles_what_one_block_would(side):
    parts = scene_parts(MASKS, (3, 4))
    whole = settled_in_a_tree(parts, Blocks((0, 0), (3, 4), 8))
    in_blocks = settled_in_a_tree(parts, Blocks((0, 0), (3, 4), side))
    assert in_blocks == whole
    assert len(whole) == len(MASKS)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 3), st.sampled_from(["flat", "parts"]))
@example(409, 3, "flat")  # dropped in one block, and overlapped by what another one holds
def test_contradictions_are_settled_alike_in_blocks_of_any_size(seed, side, layer):
    parts = random_parts(seed)
    recipe = Recipe(layer=layer, covered_share=0.4)
    whole = settled_in_a_tree(parts, Blocks((0, 0), (3, 4), 8), recipe)
    assert settled_in_a_tree(parts, Blocks((0, 0), (3, 4), side), recipe) == whole


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_fields_taken_for_one_are_settled_alike_in_blocks_of_any_size(seed, side):
    parts = random_fields(seed)
    recipe = Recipe(covered_share=0.4)
    whole = settled_in_a_tree(parts, Blocks((0, 0), (3, 4), 8), recipe)
    assert settled_in_a_tree(parts, Blocks((0, 0), (3, 4), side), recipe) == whole


@pytest.mark.parametrize("layer", ["flat", "parts"])
@pytest.mark.parametrize("side", [1, 2])
def test_a_chain_gives_way_to_the_fields_inside_it(side, layer):
    """Unless parts may overlap: then it stays beside them, as it scores best."""
    left, right = rectangle(20, 20, 200, 110), rectangle(20, 110, 200, 200)
    frames = itertools.product(range(2), range(2))
    masks = ((left | right, 0.9), (left, 0.8), (right, 0.8))
    parts = {f: [p for r, (m, s) in enumerate(masks) if (p := seen(m, f, r, s))] for f in frames}
    recipe = Recipe(layer=layer, covered_share=0.4)
    objects = settled_in_a_tree(parts, Blocks((0, 0), (2, 2), side), recipe)
    assert {o.name[2] for o in objects} == ({1, 2} if layer == "flat" else {0, 1, 2})


def test_what_is_left_out_gives_way_to_something_better():
    """Textbook suppression on what frames saw whole: greedy, by score, on pixels."""
    rng = np.random.default_rng(3)
    masks, scores = [], []
    for _ in range(14):
        top, left = rng.integers(4, 60, 2)
        height, width = rng.integers(20, 60, 2)
        masks.append(rectangle(top, left, top + height // 4 * 4, left + width // 4 * 4))
        scores.append(round(float(rng.uniform(0.4, 1)), 3))
    parts = [seen(m, (0, 0), i, s) for i, (m, s) in enumerate(zip(masks, scores, strict=True))]
    recipe = Recipe(covered_share=0.4)
    found = settled_in_a_tree({(0, 0): parts}, Blocks((0, 0), (1, 1), 1), recipe)
    cells = [p.upsampled(LAYOUT.frame((0, 0))) > 0 for p in parts]
    ranked = sorted(range(14), key=lambda i: -scores[i] * parts[i].area ** LARGER)
    kept: list[int] = []
    for i in ranked:
        shared = [(cells[i] & cells[j]).sum() for j in kept]
        smaller = [min(parts[i].area, parts[j].area) for j in kept]
        if all(a <= 0.4 * b for a, b in zip(shared, smaller, strict=True)):
            kept.append(i)
    assert 1 < len(kept) < 14
    assert {o.name[2] for o in found} == set(kept)


def test_what_one_frame_saw_whole_is_found_on_all_that_saw_it():
    parts = {
        (0, 0): on_frame((0, 0), rectangle(20, 100, 60, 124)),
        (0, 1): on_frame((0, 1), rectangle(20, 100, 64, 124)),
    }
    (found,) = settled_in_a_tree(parts, Blocks((0, 0), (1, 2), 1))
    assert found.frames == 2
    assert found.parts == ((0, 1, 0),)  # the larger of two equally good ones is drawn
    assert found.open_edges == 0


def test_objects_know_their_frames_area_and_parent():
    objects = settled_in_a_tree(scene_parts(MASKS, (3, 4)), Blocks((0, 0), (3, 4), 1))

    def with_area(area: float):
        return min(objects, key=lambda o: abs(o.area - area))

    field, shed, yard = with_area(50 * 360), with_area(30 * 30), with_area(160 * 190)
    assert field.frames == 4
    assert field.open_edges == 0
    assert field.area == pytest.approx(50 * 360, rel=0.1)  # an estimate, in cells of 4 pixels
    assert shed.parent == yard.name
    assert yard.parent is None


def test_a_part_that_the_neighbour_did_not_find_is_reported_open():
    parts = scene_parts([rectangle(20, 40, 70, 180)], (1, 2))
    parts[0, 1] = []
    (alone,) = settled_in_a_tree(parts, Blocks((0, 0), (1, 2), 1))
    assert (alone.frames, alone.open_edges) == (1, 1)


def test_the_worse_account_of_the_same_thing_goes():
    better, worse = rectangle(20, 20, 80, 80), rectangle(20, 20, 80, 64)
    parts = {(0, 0): [seen(better, (0, 0), 0, 0.9), seen(worse, (0, 0), 1, 0.8)]}
    (only,) = settled_in_a_tree(parts, Blocks((0, 0), (1, 1), 1))
    assert only.name == (0, 0, 0)


# --- blocks


@given(
    st.tuples(st.integers(-20, 20), st.integers(-20, 20)),
    st.tuples(st.integers(1, 13), st.integers(1, 13)),
    st.integers(1, 5),
)
def test_blocks_hold_every_frame_once(first, frames, side):
    blocks = Blocks(first, frames, side)
    held = [frame for block in blocks.in_order() for frame in blocks.frames_of(block)]
    assert len(held) == len(set(held)) == frames[0] * frames[1]
    assert all(blocks.holds(blocks.block_of(frame), frame) for frame in held)
    assert len(list(blocks.in_order())) == len(blocks)
    assert sum(len(blocks.children(node)) for node in blocks.nodes()) == (
        len(list(blocks.nodes())) - 1 + len(blocks) if blocks.height else 0
    )
