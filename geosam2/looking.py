"""One look at a frame: from what is said and known about it to the mask of the object.

What is known comes in along a side of the frame, or as a click, and the object may reach across the
whole of it (a road). The network answers well near to what it was told and worse further away. So
it is asked again and again: its answer is taken for known a little further out each time, until it
stays the same. Each round costs a decoding, a tenth of what the frame has cost already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from geosam2 import regions
from geosam2.prompts import MASK_STEP, FramePrompt, apply_affine, network_prompts
from geosam2.quality import mask_iou

if TYPE_CHECKING:
    from geosam2_model import SAM2, Decoded, ImageFeatures

    from geosam2.cache import EncodedFrame
    from geosam2.prompts import Point

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

GAP = 3  # cells: breaks of up to 24 px (a bridge, a tree over a road) do not cut an object
PARTLY = 0.02  # share of unknown cells above which a mask is known in part
LIMIT = 32.0  # known logits are shown to the network within +-LIMIT
AGREES = 0.8  # agreement from which the single mask is taken without looking at the other three
REACH = 16  # cells (64 px) by which the answer is taken for known further out each round
SURE = 1.0  # logits nearer to 0 are not taken for known,
SURE_AFAR = 3.0  # nor those further out, where the network has seen less to go by
UNSURE = -0.5  # logit of what may belong to the object or not
FIRM = 0.3  # of the logits at the seeds: those of a body whose parts hang together
THICK = 8  # cells (32 px) from outline to middle: wider than roads and rivers that gaps may cut
CALM = 0.985  # IoU of two rounds that counts as no change; twice in a row ends the look
WORSE = 0.1  # quality that going on may cost before the first answer is taken after all


@dataclass(frozen=True)
class Answer:
    """One candidate mask of the network on a frame."""

    decoded: Decoded
    """Its scores and its pointer; one object, one mask."""
    logits: FloatArray
    """(H/4, W/4), cut down to what hangs together with the known part or a click."""
    agreement: float
    """IoU with what is known, where it is known; nan if nothing is."""

    @property
    def quality(self) -> float:
        """What the best candidate is chosen by: the known part decides where there is one."""
        guess = float(self.decoded.predicted_iou[0, 0])
        return guess if math.isnan(self.agreement) else guess * self.agreement


@dataclass(frozen=True)
class Look:
    """Everything that one look at a frame goes by."""

    model: SAM2
    """The network."""
    frame: EncodedFrame
    """Where the frame is."""
    features: ImageFeatures
    """Its features, conditioned on the memory if there is one."""
    said: FramePrompt
    """The user's prompts, and what is known as a mask with points in it."""
    known: FloatArray
    """(H/4, W/4) logits that other frames gave, 0 where none did."""
    weight: FloatArray
    """(H/4, W/4) how firmly they are known, 0 = unknown."""

    @property
    def seeds(self) -> BoolArray:
        """(H/4, W/4) cells that are surely the object: known before, or clicked."""
        return seeds_of(self.frame, self.known, self.said)

    def answer(self, *, alternative: int | None = None, rounds: int = 0) -> Answer:
        """The object's mask on this frame.

        Args:
            alternative: Which of the three masks of an ambiguous prompt; None = the best.
            rounds: Times, at most, that the network is asked again with its own answer.
        """
        first = max(self.candidates(alternative), key=lambda one: one.quality)
        return self._carried_on(first, rounds) if rounds else first

    def candidates(self, alternative: int | None = None) -> list[Answer]:
        """Candidate masks: three where the prompt is ambiguous or the single one disagrees."""
        if self.said.logits is not None:
            single = self._ask(self.said, multimask=False)
            if not single[0].agreement < AGREES:
                return single
            return single + self._ask(self.said, multimask=True)
        ambiguous = self.said.ambiguous
        found = self._ask(self.said, multimask=ambiguous)
        return [found[alternative]] if alternative is not None and ambiguous else found

    def _carried_on(self, first: Answer, rounds: int) -> Answer:
        """Ask until the mask stays the same, telling a little more of the last answer each time."""
        trusted = (self.weight > 0) | self.seeds
        if not trusted.any():  # a box alone, or nothing but memory: there is no place to start from
            trusted = np.ones_like(trusted)
        answer, calm = first, 0
        for _ in range(rounds):
            trusted = regions.grown(trusted, REACH)
            before, answer = answer, self._ask(self._told(answer, trusted), multimask=False)[0]
            same = mask_iou(before.logits > 0, answer.logits > 0)
            calm = calm + 1 if same > CALM else 0
            if calm == 2:
                break
        return answer if answer.quality >= first.quality - WORSE else first

    def _told(self, answer: Answer, trusted: BoolArray) -> FramePrompt:
        """The prompt with the trusted part of an answer where nothing else is known."""
        sure = np.abs(answer.logits) > np.where(trusted, SURE, SURE_AFAR)
        own = np.where(sure, answer.logits, np.float32(0))
        if self.said.logits is not None:
            own = np.where(self.said.logits != 0, self.said.logits, own)
        return replace(self.said, logits=np.clip(own, -LIMIT, LIMIT))

    def _ask(self, said: FramePrompt, *, multimask: bool) -> list[Answer]:
        prompts = None if said.empty else network_prompts([said], [self.frame])
        if prompts is not None and said.logits is not None:
            prompts = replace(prompts, in_part=float((said.logits == 0).mean()) > PARTLY)
        out = self.model.decode(self.features, prompts, multimask=multimask)
        return [self._read(_only(out, number)) for number in range(int(out.logits.shape[1]))]

    def _read(self, one: Decoded) -> Answer:
        """One candidate, cut down to what hangs together with the known part or a click."""
        logits = one.logits[0, 0].float().cpu().numpy().copy()
        if (seeds := self.seeds).any():
            logits = cut_down(logits, seeds)
        decided = self.weight > 0
        if not decided.any():
            return Answer(one, logits, math.nan)
        here, there = (logits > 0) & decided, (self.known > 0) & decided
        # an arm of the object that only this frame knows is no disagreement
        touching = regions.reachable(here, there, gap=1)
        return Answer(one, logits, mask_iou(touching, there, self.weight))


def cut_down(logits: FloatArray, seeds: BoolArray) -> FloatArray:
    """Logits of what hangs together with the seeds.

    What does not is turned to its negative. Thin things may be interrupted (a road under trees),
    but what only passes near to them (a road of the same looks) is something else.
    Something large beyond a line of low logits may be a neighbour, as two fields of one colour
    have: it is left out too, but as unsure, so that another round may find that it belongs to it.
    """
    mask = logits > 0
    kept = regions.continued(mask, seeds, gap=GAP, thick=THICK)
    if not kept.any():
        return np.where(mask, -logits, logits)
    firm = FIRM * float(logits[mask & seeds].mean())
    body = regions.reachable(logits > firm, seeds)
    found = np.where(mask & ~kept, -logits, logits)
    return np.where(regions.loose(kept, body, thick=THICK), np.float32(UNSURE), found)


def seeds_of(frame: EncodedFrame, known: FloatArray, said: FramePrompt) -> BoolArray:
    """(H/4, W/4) cells that are surely the object: known before, or clicked."""
    seeds: BoolArray = known > 0
    inverse = ~frame.geobox.affine
    for point, label in zip(said.points, said.labels, strict=True):
        if label == 1:
            col, row = (int(v // MASK_STEP) for v in apply_affine(inverse, *point))
            seeds[max(row - 2, 0) : row + 3, max(col - 2, 0) : col + 3] = True
    return seeds


def places_in(known: FloatArray, frame: EncodedFrame) -> list[Point]:
    """One or two places deep inside what is known to be the object, in the scene's CRS."""
    cells = regions.deepest(known > 0, count=2)
    to_map = frame.geobox.affine
    return [
        apply_affine(to_map, (col + 0.5) * MASK_STEP, (row + 0.5) * MASK_STEP) for row, col in cells
    ]


def _only(out: Decoded, number: int) -> Decoded:
    """One candidate of one object."""
    part = slice(number, number + 1)
    return replace(out, logits=out.logits[:, part], predicted_iou=out.predicted_iou[:, part])
