"""Asking the network about prompts on frames, in batches, and letting it think again."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

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
BATCH = 64  # objects that are decoded together
FRAMES = 16  # frames that are in memory at once
FEW = 4  # objects of a frame that are decoded with those of other frames: its maps are copied

T = TypeVar("T")


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

    def candidates(self) -> Iterator[tuple[FloatArray, float, float]]:
        """(logits, predicted IoU, object score) of each mask, without what is not clicked on."""
        score = float(self.out.object_score[0])
        logits = self.out.logits[0].float().cpu().numpy()
        for mask, iou in zip(logits, self.out.predicted_iou[0].tolist(), strict=True):
            yield _whole(mask, self.frame, self.said), iou, score


def ask(
    model: SAM2,
    encode: Callable[[Level, Window], EncodedFrame],
    questions: Sequence[Question],
    second_thoughts: int = 0,
) -> list[Answer]:
    """Answers in the order of the questions; several go through the network together.

    Args:
        model: The network.
        encode: Brings frames.
        questions: Prompts and where to look at them.
        second_thoughts: Times that an ambiguous prompt is asked again with the best mask so far;
            what the network then thinks better of is kept.

    Raises:
        PromptError: If a click is on nodata.
    """
    found: dict[int, Answer] = {}
    for numbers, frames in _runs(questions, encode):
        shown = [_as_seen(questions[n], frame) for n, frame in zip(numbers, frames, strict=True)]
        for rows in _batches(shown, frames):
            said = [shown[i] for i in rows]
            out = _answered(model, said, [frames[i] for i in rows], second_thoughts)
            for k, i in enumerate(rows):
                n = numbers[i]
                found[n] = Answer(questions[n], frames[i], shown[i], out[k : k + 1])
    return [found[n] for n in range(len(questions))]


def _answered(
    model: SAM2, said: list[FramePrompt], frames: list[EncodedFrame], second_thoughts: int
) -> Decoded:
    """What the network says to prompts of one kind, each on its frame of one size."""
    import torch

    distinct = list({id(frame): frame for frame in frames}.values())
    index = None  # one each, or a single one: nothing is copied
    if 1 < len(distinct) < len(frames):
        order = {id(frame): row for row, frame in enumerate(distinct)}
        index = torch.tensor([order[id(frame)] for frame in frames])
    # joined once: what the network keeps of images it finds again by where they lie
    features = type(distinct[0].features).joined([frame.features for frame in distinct])

    def decoded(prompts: list[FramePrompt], multimask: bool) -> Decoded:
        placed = replace(network_prompts(prompts, frames), image_index=index)
        with torch.no_grad():
            return model.decode(features, placed, multimask=multimask)

    ambiguous = said[0].ambiguous
    out = decoded(said, ambiguous)
    for _ in range(second_thoughts if ambiguous else 0):
        best = np.clip(out.best_logits.float().cpu().numpy(), -LIMIT, LIMIT)
        own = [replace(one, logits=mask) for one, mask in zip(said, best, strict=True)]
        out = _better(out, decoded(own, multimask=False))
    return out


def _better(out: Decoded, new: Decoded) -> Decoded:
    """The best mask of each object replaced where the new one is thought better of."""
    import torch

    rows, better = torch.arange(len(out.logits)), new.best_iou >= out.best_iou
    logits, ious = out.logits.clone(), out.predicted_iou.clone()
    at = rows[better], out.best[better]
    logits[at], ious[at] = new.best_logits[better], new.best_iou[better]
    return replace(out, logits=logits, predicted_iou=ious)


def _runs(
    questions: Sequence[Question], encode: Callable[[Level, Window], EncodedFrame]
) -> Iterator[tuple[list[int], list[EncodedFrame]]]:
    """Numbers of questions and their frames, a few frames at a time: all would be gigabytes."""
    places: dict[tuple[Level, Window], list[int]] = defaultdict(list)
    for number, question in enumerate(questions):
        places[question.level, question.window].append(number)
    for some in _chunks(list(places), FRAMES):
        frames = {place: encode(*place) for place in some}
        members = [(n, frames[place]) for place in some for n in places[place]]
        yield [n for n, _ in members], [frame for _, frame in members]


def _as_seen(question: Question, frame: EncodedFrame) -> FramePrompt:
    said = FramePrompt.of(question.prompt, frame)
    check_valid(said, frame)
    return said if question.shown is None else replace(said, logits=question.shown)


def _batches(said: list[FramePrompt], frames: list[EncodedFrame]) -> Iterator[list[int]]:
    """Numbers of prompts of one kind which can be decoded together: all of a frame that many ask
    about, or those of frames of one size that few do."""
    asked = Counter(id(frame) for frame in frames)
    kinds: dict[Any, list[int]] = defaultdict(list)
    for number, (one, frame) in enumerate(zip(said, frames, strict=True)):
        place = id(frame) if asked[id(frame)] > FEW else frame.features.size
        kinds[(*one.kind(), len(one.points) <= 1, place)].append(number)
    for group in kinds.values():
        yield from _chunks(group, BATCH)


def _chunks(items: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _whole(logits: FloatArray, frame: EncodedFrame, said: FramePrompt) -> FloatArray:
    """The mask without what does not hang together with a click."""
    empty = np.zeros(logits.shape, np.float32)
    seeds = seeds_of(frame, empty, said)
    if not seeds.any():
        return logits.copy()
    kept = regions.reachable(logits > 0, seeds, gap=GAP)
    return np.where((logits > 0) & ~kept, -logits, logits)
