"""A person, simulated: first clicks, boxes, known parts of a mask, and corrections."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from geosam2_model.prompt_encoder import BACKGROUND, FOREGROUND, PADDING, Prompts

Array = npt.NDArray[Any]
KINDS = ("click", "clicks", "box", "strip", "rough")
"""One click; several; a box; what neighbouring frames know at the sides; an inexact mask."""


@dataclass(frozen=True)
class Question:
    """Prompts of N objects, and whether they say which object is meant and it is there."""

    prompts: Prompts
    present: Tensor
    """(N,) bool."""


def depth(mask: Array) -> tuple[Array, tuple[int, int], int]:
    """Distance to the outline within the mask's box; (map, box origin, pixels per map cell)."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    step = max(1, max(part.shape) // 48)
    padded = np.pad(part[::step, ::step], 1)
    found = ndimage.distance_transform_edt(padded)[1:-1, 1:-1]
    return np.asarray(found, np.float64), (top, left), step


def inner_point(rng: np.random.Generator, mask: Array, centre: float = 0.25) -> tuple[float, float]:
    """A pixel (x, y) inside a mask that is not empty.

    Deep places are more likely than the rim; with probability `centre` it is the deepest.
    """
    found, (top, left), step = depth(mask)
    if not found.any():  # thinner than the steps
        rows, columns = np.nonzero(mask)
        pick = int(rng.integers(len(rows)))
        return float(columns[pick]), float(rows[pick])
    if rng.random() < centre:
        i = int(found.argmax())
    else:
        odds = found.ravel() ** rng.choice([0.5, 1.0, 2.0])
        i = int(rng.choice(odds.size, p=odds / odds.sum()))
    row, column = divmod(i, found.shape[1])
    return float(left + column * step), float(top + row * step)


def outer_point(rng: np.random.Generator, mask: Array) -> tuple[float, float] | None:
    """A pixel outside the mask, mostly close to it; None if it covers everything."""
    ring = ndimage.binary_dilation(mask[::4, ::4], iterations=int(rng.integers(2, 8)))
    ring &= ~ndimage.binary_dilation(mask[::4, ::4])
    places = np.argwhere(ring if ring.any() and rng.random() < 0.8 else ~mask[::4, ::4])
    if not len(places):
        return None
    row, column = places[rng.integers(len(places))] * 4
    return float(column), float(row)


def ask(rng: np.random.Generator, kind: str, masks: Array, truth: Tensor) -> Question:
    """First prompts of one kind for N objects.

    Args:
        rng: All randomness.
        kind: One of `KINDS`.
        masks: (N, S, S) bool.
        truth: Coverage of the same at stride 4, (N, S / 4, S / 4).
    """
    N = len(masks)
    present = torch.ones(N, dtype=torch.bool)
    if kind == "click":
        return Question(_points([[(inner_point(rng, m), FOREGROUND)] for m in masks]), present)
    if kind == "clicks":
        return Question(_points([_several(rng, m) for m in masks]), present)
    if kind == "box":
        clicks = _some_clicks(rng, masks, 0.3)
        return Question(replace(clicks, boxes=noisy_boxes(rng, masks)), present)
    if kind == "rough":
        clicks = _some_clicks(rng, masks, 0.5)
        return Question(replace(clicks, masks=rough_masks(rng, truth)), present)
    known = known_strips(rng, truth)
    clicks = _some_clicks(rng, masks, 0.75, known)
    clicked = (clicks.labels == FOREGROUND).any(1)  # type: ignore[union-attr]
    told = (known > 0).flatten(1).any(1) | clicked
    wrong = _mislead(rng, known, told & ~clicked)
    return Question(replace(clicks, masks=known), told & ~wrong)


Points = list[tuple[tuple[float, float], int]]


def _points(rows: list[Points]) -> Prompts:
    """Padded points of N objects."""
    longest = max(1, *[len(row) for row in rows]) if rows else 1
    places = torch.zeros(len(rows), longest, 2)
    labels = torch.full((len(rows), longest), PADDING)
    for i, row in enumerate(rows):
        for j, (place, label) in enumerate(row):
            places[i, j], labels[i, j] = torch.tensor(place), label
    return Prompts(places, labels)


def _several(rng: np.random.Generator, mask: Array) -> Points:
    row: Points = [(inner_point(rng, mask), FOREGROUND)]
    for _ in range(int(rng.integers(1, 5))):
        outside = outer_point(rng, mask) if rng.random() < 0.5 else None
        row.append((inner_point(rng, mask), FOREGROUND) if outside is None
                   else (outside, BACKGROUND))  # fmt: skip
    return row


def _some_clicks(
    rng: np.random.Generator, masks: Array, share: float, known: Tensor | None = None
) -> Prompts:
    """One foreground click for a share of the objects; inside what is known, if given."""
    rows: list[Points] = []
    for i, mask in enumerate(masks):
        if rng.random() >= share:
            rows.append([])
            continue
        if known is not None and rng.random() < 0.8:
            seen = np.kron((known[i, 0] > 0).numpy(), np.ones((4, 4), bool)) & mask
            mask = seen if seen.any() else mask
        rows.append([(inner_point(rng, mask), FOREGROUND)])
    return _points(rows)


def _mislead(rng: np.random.Generator, known: Tensor, may: Tensor) -> Tensor:
    """Mirror what is known of a few objects in place: then nothing is where it says; (N,) bool."""
    wrong = may & torch.from_numpy(rng.random(len(may)) < 0.3)
    for i in wrong.nonzero()[:, 0].tolist():
        along = 1 if (known[i, 0] != 0).all(1).any() else 2  # the strip's short side stays
        mirrored = known[i].flip(3 - along)
        differs = (mirrored > 0) & ~(known[i] > 0)
        if differs.sum() > 0.8 * (mirrored > 0).sum():
            known[i] = mirrored
        else:
            wrong[i] = False
    return wrong


def point_in(rng: np.random.Generator, mask: Array) -> tuple[float, float] | None:
    """A pixel (x, y) in a stride-4 mask; None if it is empty."""
    if not mask.any():
        return None
    x, y = inner_point(rng, mask)
    return 4 * x + 1.5, 4 * y + 1.5


def noisy_boxes(rng: np.random.Generator, masks: Array) -> Tensor:
    """Boxes (N, 4) around the masks, each side moved by up to a tenth of the box."""
    boxes = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)
        width, height = box[2] - box[0] + 1, box[3] - box[1] + 1
        noise = rng.normal(0, 0.04, size=4).clip(-0.1, 0.1) * np.array([width, height] * 2)
        boxes.append(np.clip(box + noise, 0, mask.shape[0] - 1))
    return torch.tensor(np.array(boxes), dtype=torch.float32)


def known_strips(rng: np.random.Generator, truth: Tensor) -> Tensor:
    """Mask prompts as panning gives them: logits where frames overlap, 0 (unknown) elsewhere.

    Returns:
        (N, 1, h, w) logits along one side or two.
    """
    N, h, w = truth.shape
    strips = torch.zeros(N, 1, h, w, dtype=torch.bool)
    for i in range(N):
        for side in rng.choice(4, size=1 if rng.random() < 0.6 else 2, replace=False):
            # a quarter is what frames usually share
            width = int(h * (0.25 if rng.random() < 0.5 else rng.uniform(0.15, 0.4)))
            view = strips[i, 0] if side < 2 else strips[i, 0].T
            view[slice(0, width) if side % 2 == 0 else slice(h - width, h)] = True
    return torch.where(strips, rough_logits(rng, truth), 0.0)


def rough_logits(rng: np.random.Generator, truth: Tensor) -> Tensor:
    """Logits as a network might have given them: soft, blurred, a little moved; (N, 1, h, w)."""
    x = truth[:, None]
    if rng.random() < 0.6:
        x = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    if rng.random() < 0.3:
        x = x.roll(tuple(int(v) for v in rng.integers(-1, 2, size=2)), (2, 3))
    steep = torch.tensor(rng.uniform(3, 12, size=(len(x), 1, 1, 1)), dtype=torch.float32)
    shift = torch.tensor(rng.normal(0, 0.12, size=(len(x), 1, 1, 1)), dtype=torch.float32)
    logits = (2 * x - 1 + shift) * steep
    return torch.where(logits == 0, 1e-3, logits)  # 0 would say "unknown"


def rough_masks(rng: np.random.Generator, truth: Tensor) -> Tensor:
    """Whole masks with mistakes: a rectangle of each flipped, grown or shrunk; (N, 1, h, w)."""
    x = truth.clone()
    N, h, w = x.shape
    for i in range(N):
        height, width = (int(n * rng.uniform(0.1, 0.4)) for n in (h, w))
        top, left = int(rng.integers(0, h - height + 1)), int(rng.integers(0, w - width + 1))
        x[i, top : top + height, left : left + width] = float(rng.integers(0, 2))
    if rng.random() < 0.3:
        x = F.max_pool2d(x, 3, 1, 1)
    return rough_logits(rng, x)


def correct(
    rng: np.random.Generator, question: Question, logits: Tensor, truth: Tensor, keep_mask: bool
) -> Question:
    """Add a click where the answer is most wrong.

    Args:
        rng: All randomness.
        question: What was asked.
        logits: The answer, (N, h, w).
        truth: Coverage, (N, h, w).
        keep_mask: The answer goes in as the mask prompt, as a person's tool does.
    """
    wanted, found = (truth > 0.5).numpy(), (logits > 0).numpy()
    rows = [_correction(rng, w, f) for w, f in zip(wanted, found, strict=True)]
    extra, old = _points(rows), question.prompts
    assert old.points is not None
    assert old.labels is not None
    assert extra.points is not None
    assert extra.labels is not None
    prompts = replace(
        old,
        points=torch.cat([old.points, extra.points], dim=1),
        labels=torch.cat([old.labels, extra.labels], dim=1),
        masks=logits[:, None].clamp(-12, 12) if keep_mask else old.masks,
    )
    told = torch.tensor([any(label == FOREGROUND for _, label in row) for row in rows])
    return Question(prompts, question.present | told)


def _correction(rng: np.random.Generator, wanted: Array, found: Array) -> Points:
    """A click in the larger of the two largest errors; none where there is no error."""
    best: tuple[float, Array | None, int] = (0, None, 0)
    for error, label in ((wanted & ~found, FOREGROUND), (found & ~wanted, BACKGROUND)):
        if not error.any():
            continue
        parts, _ = ndimage.label(error)
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        if sizes.max() > best[0]:
            best = (float(sizes.max()), parts == sizes.argmax(), label)
    if best[1] is None:
        return []
    x, y = inner_point(rng, best[1], centre=0.6)
    jitter = rng.uniform(-1.5, 1.5, size=2) if best[0] > 4 else np.zeros(2)
    return [((4 * x + 1.5 + float(jitter[0]), 4 * y + 1.5 + float(jitter[1])), best[2])]
