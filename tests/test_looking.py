"""One look at a frame: carrying an answer on, and what hangs together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from affine import Affine
from geosam2_model import Decoded, ImageFeatures
from odc.geo.geobox import GeoBox

from geosam2 import looking, regions
from geosam2.cache import EncodedFrame
from geosam2.levels import Window
from geosam2.looking import Look, cut_down
from geosam2.prompts import FramePrompt

SIDE = 512
CELLS = SIDE // 4
FRAME = EncodedFrame(
    ImageFeatures(torch.zeros(1, 4, 32, 32), (), (SIDE, SIDE)),  # type: ignore[arg-type]
    np.ones((SIDE, SIDE), bool),
    GeoBox((SIDE, SIDE), Affine(1, 0, 0, 0, -1, SIDE), None),
    Window(0, 0, SIDE, SIDE),
)


class ShortSighted:
    """A network that finds its object, but only within some cells of what it is told."""

    def __init__(self, truth: np.ndarray, sight: int) -> None:
        self.truth, self.sight, self.asked = truth, sight, 0

    def decode(self, features, prompts, multimask=False):
        self.asked += 1
        told = np.zeros((CELLS, CELLS), bool)
        if prompts.masks is not None:
            told |= prompts.masks[0, 0].numpy() > 0
        for x, y in (prompts.points[0] / 4).long().tolist():
            told[y, x] = True
        seen = self.truth & regions.grown(told, self.sight)
        logits = torch.from_numpy(np.where(seen, 8.0, -2.0).astype(np.float32))[None, None]
        score = torch.full((1, 1), 0.9)
        return Decoded(logits, score, torch.ones(1), torch.zeros(1, 4))


def look(model, points=(), known=None) -> Look:
    known = np.zeros((CELLS, CELLS), np.float32) if known is None else known
    said = FramePrompt(points, (1,) * len(points), logits=known if known.any() else None)
    weight = (known != 0).astype(np.float32)
    return Look(model, FRAME, FRAME.features, said, known, weight)


def road() -> np.ndarray:
    truth = np.zeros((CELLS, CELLS), bool)
    truth[60:66] = True
    return truth


def test_a_road_is_carried_on_from_side_to_side():
    truth = road()
    known = np.zeros((CELLS, CELLS), np.float32)
    known[:, :32] = np.where(truth[:, :32], 8, -8)
    model = ShortSighted(truth, sight=20)
    one = look(model, points=((40.0, SIDE - 250.0),), known=known)
    once = one.answer()
    assert not (once.logits > 0)[:, 100:].any()
    whole = one.answer(rounds=16)
    assert np.array_equal(whole.logits > 0, truth)
    assert whole.agreement == 1.0


def test_what_stays_the_same_is_not_asked_again():
    truth = np.zeros((CELLS, CELLS), bool)
    truth[40:60, 40:60] = True
    model = ShortSighted(truth, sight=40)
    found = look(model, points=((200.0, SIDE - 200.0),)).answer(rounds=16)
    assert np.array_equal(found.logits > 0, truth)
    assert model.asked == 3  # one answer, and two that say the same


def field_and(gap: int, neighbour: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a square, an interruption, and something beside it; and a seed in the square."""
    logits = np.full((CELLS, CELLS), -8.0, np.float32)
    logits[20:80, 10:50] = 8
    middle, half = 50, neighbour // 2
    logits[middle - half : middle + half, 50 + gap : 100] = 8
    seeds = np.zeros((CELLS, CELLS), bool)
    seeds[50, 30] = True
    return logits, seeds


@pytest.mark.parametrize(("wide", "kept"), [(8, True), (40, False)])
def test_a_gap_interrupts_a_road_but_ends_a_field(wide, kept):
    logits, seeds = field_and(4, wide)
    assert (cut_down(logits, seeds)[50, 90] > 0) == kept


@pytest.mark.parametrize(("gap", "kept"), [(1, True), (4, False)])
def test_a_road_that_comes_near_from_the_side_is_another_one(gap, kept):
    """Across a break a road goes on; what ends beside it is no part of it, if there is a break."""
    mask = road()
    mask[:, 30:35] = False  # a bridge over it
    mask[: 60 - gap, 80:86] = True
    logits = np.where(mask, 8.0, -8.0).astype(np.float32)
    seeds = np.zeros((CELLS, CELLS), bool)
    seeds[62, 10] = True
    found = cut_down(logits, seeds) > 0
    assert found[62, 5]
    assert found[62, 120]
    assert found[10, 82] == kept


@pytest.mark.parametrize("side", range(4))
def test_a_road_that_leaves_the_frame_is_not_taken_for_one_that_ends(side):
    """Another one comes near where this one crosses the border."""
    mask = road()
    mask[:56, 2:8] = True
    logits = np.rot90(np.where(mask, 8.0, -8.0).astype(np.float32), side)
    seeds = np.zeros((CELLS, CELLS), bool)
    seeds[62, 100] = True
    found = np.rot90(cut_down(logits, np.rot90(seeds, side)) > 0, -side)
    assert found[62, 2]
    assert not found[10, 4]


def test_a_line_of_low_logits_parts_two_fields():
    logits, seeds = field_and(0, 40)
    assert cut_down(logits, seeds)[50, 90] > 0
    logits[:, 50:52] = np.minimum(logits[:, 50:52], looking.FIRM * 8 / 2)
    found = cut_down(logits, seeds)
    assert found[50, 90] == looking.UNSURE  # not denied: another round may tell
    assert found[50, 30] == 8


def test_sweeping_finds_what_growing_cell_by_cell_finds():
    rng = np.random.default_rng(0)
    for share in (0.5, 0.6, 0.7):
        mask = rng.random((40, 50)) < share
        seeds = np.zeros_like(mask)
        seeds[tuple(rng.integers(0, 40, 2))] = True
        slow = seeds & mask
        while not np.array_equal(slow, grown := regions.grown(slow, 1) & mask):
            slow = grown
        assert np.array_equal(regions.reachable(mask, seeds), slow)
