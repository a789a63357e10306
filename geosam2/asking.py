"""Asking the network about prompts on frames, in batches, and letting it think again.

What it said is kept as `Answer`, one an object, so that a second thought goes on from the first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geosam2 import regions
from geosam2.looking import GAP, LIMIT, seeds_of
from geosam2.prompts import FramePrompt, Prompt, check_valid, network_prompts

if TYPE_CHECKING:
    from geosam2_model import SAM2, Decoded

    from geosam2.cache import EncodedFrame
    from geosam2.levels import Level, Window

FloatArray = NDArray[np.float32]
BATCH = 64  # objects that are decoded together on one frame


@dataclass(frozen=True)
class Question:
    """A prompt, and where it is looked at."""

    prompt: Prompt
    """In the scene's CRS."""
    level: Level
    """Resolution."""
    window: Window
    """Place on the level's lattice."""
    shown: FloatArray | None = None
    """(H/4, W/4) logits of an earlier answer, 0 = unknown."""


@dataclass(frozen=True)
class Answer:
    """What the network said to one question."""

    question: Question
    """What was asked."""
    frame: EncodedFrame
    """What was looked at."""
    said: FramePrompt
    """The prompt as the frame shows it."""
    out: Decoded
    """Of this one object: three candidates if the prompt is ambiguous, else one mask."""
    ambiguous: bool
    """One click and nothing else: the candidates may be a part, the whole, or a group."""

    def candidates(self) -> Iterator[tuple[FloatArray, float, float]]:
        """(logits, predicted IoU, object score) of each mask, without what is not clicked on."""
        score = float(self.out.object_score[0])
        logits = self.out.logits[0].float().cpu().numpy()
        for mask, iou in zip(logits, self.out.predicted_iou[0].tolist(), strict=True):
            yield _whole(mask, self.frame, self.said), iou, score


def ask(
    model: SAM2, encode: Callable[[Level, Window], EncodedFrame], questions: Sequence[Question]
) -> list[Answer]:
    """Answers in the order of the questions; those that share a frame are decoded together.

    Raises:
        PromptError: If a click is on nodata.
    """
    import torch

    found: dict[int, Answer] = {}
    for (level, window), members in _by_frame(questions).items():
        frame = encode(level, window)
        seen = {n: _as_seen(questions[n], frame) for n in members}
        for numbers in _batches(seen):
            said = [seen[n] for n in numbers]
            prompts = network_prompts(said, frame)
            ambiguous = prompts.num_points <= 1 and prompts.masks is None
            with torch.no_grad():
                out = model.decode(frame.features, prompts, multimask=ambiguous)
            for i, n in enumerate(numbers):
                one = out[i : i + 1]
                found[n] = Answer(questions[n], frame, seen[n], one, ambiguous)
    return [found[n] for n in range(len(questions))]


def think_again(model: SAM2, answers: Sequence[Answer], times: int) -> list[Answer]:
    """Show the network its own best masks as prompts; keep what it then thinks better of.

    Answers that are not ambiguous stay as they are.
    """
    found = dict(enumerate(answers))
    for members in _by_frame([answer.question for answer in answers]).values():
        seen = {n: answers[n].said for n in members if answers[n].ambiguous}
        for numbers in _batches(seen):
            said, frame = [seen[n] for n in numbers], answers[numbers[0]].frame
            out = type(answers[numbers[0]].out).joined([answers[n].out for n in numbers])
            for _ in range(times):
                out = _again(model, out, said, frame)
            for i, n in enumerate(numbers):
                found[n] = replace(answers[n], out=out[i : i + 1])
    return [found[n] for n in range(len(answers))]


def _again(model: SAM2, out: Decoded, said: list[FramePrompt], frame: EncodedFrame) -> Decoded:
    import torch

    best = np.clip(out.best_logits.float().cpu().numpy(), -LIMIT, LIMIT)
    own = [replace(one, logits=mask) for one, mask in zip(said, best, strict=True)]
    with torch.no_grad():
        new = model.decode(frame.features, network_prompts(own, frame))
    rows, better = torch.arange(len(said)), new.best_iou >= out.best_iou
    logits, ious = out.logits.clone(), out.predicted_iou.clone()
    at = rows[better], out.best[better]
    logits[at], ious[at] = new.best_logits[better], new.best_iou[better]
    return replace(out, logits=logits, predicted_iou=ious)


def _by_frame(questions: Sequence[Question]) -> dict[tuple[Level, Window], list[int]]:
    frames: dict[tuple[Level, Window], list[int]] = defaultdict(list)
    for number, question in enumerate(questions):
        frames[question.level, question.window].append(number)
    return frames


def _as_seen(question: Question, frame: EncodedFrame) -> FramePrompt:
    said = FramePrompt.of(question.prompt, frame)
    check_valid(said, frame)
    return said if question.shown is None else replace(said, logits=question.shown)


def _batches(seen: dict[int, FramePrompt]) -> Iterator[list[int]]:
    """Numbers of prompts of one kind, which can be decoded together."""
    kinds: dict[Any, list[int]] = defaultdict(list)
    for number, said in seen.items():
        kinds[(*said.kind(), len(said.points) <= 1)].append(number)
    for group in kinds.values():
        for start in range(0, len(group), BATCH):
            yield group[start : start + BATCH]


def _whole(logits: FloatArray, frame: EncodedFrame, said: FramePrompt) -> FloatArray:
    """The mask without what does not hang together with a click."""
    empty = np.zeros(logits.shape, np.float32)
    seeds = seeds_of(frame, empty, said)
    if not seeds.any():
        return logits.copy()
    kept = regions.reachable(logits > 0, seeds, gap=GAP)
    return np.where((logits > 0) & ~kept, -logits, logits)
