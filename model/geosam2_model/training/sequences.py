"""Training the memory: windows that pan over a picture, and a picture that changes with time.

Panning keeps true lattice offsets, as `geosam2` pans over a map (`positions="map"`); objects are
larger than a window, leave it, or have look-alikes beside them. A time series shows one window
again and again, recoloured and slightly moved (`positions="frame"`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geosam2_model.memory_bank import MemoryBank, paste
from geosam2_model.prompt_encoder import Prompts
from geosam2_model.sam2 import SAM2, ImageFeatures
from geosam2_model.training import augment, data
from geosam2_model.training.losses import LossWeights, coverage, interaction_loss
from geosam2_model.training.prompts import ask, point_in

CELL = 16
"""Windows lie on the lattice of stride-16 cells."""
CANVAS = 2.5
"""Side of the picture that windows pan over, in windows."""
VISIBLE = 24
"""An object with fewer pixels in a window counts as absent."""
CERTAIN = 20.0
"""Logits of a prompted frame are steepened by this: a person saw and accepted that mask."""


@dataclass(frozen=True)
class Shape:
    """How much is computed at once."""

    size: int
    """Side of a window in pixels."""
    pictures: int
    """Pictures that are panned over together."""
    objects: int
    """Objects on each, at most."""


@dataclass(frozen=True)
class Sequence:
    """Frames of several pictures along one path, and N objects in them."""

    pixels: Tensor
    """(T, B, 3, S, S) uint8."""
    masks: Tensor
    """(T, N, S, S) bool."""
    places: tuple[tuple[int, int], ...]
    """Lattice cell (row, column) of each frame, from the first frame's."""
    index: Tensor
    """(N,) picture of each object."""


def path(rng: np.random.Generator, frames: int, size: int) -> list[tuple[int, int]]:
    """Offsets of windows in pixels: each overlaps the one before by a quarter to a half."""
    reach = int(size * (CANVAS - 1)) // CELL * CELL
    places = [(0, 0)]
    while len(places) < frames:
        step = np.array([(0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, 1)][rng.integers(6)])
        step *= int(size * rng.uniform(0.5, 0.75)) // CELL * CELL
        there = (places[-1][0] + int(step[0]), places[-1][1] + int(step[1]))
        spans = [max(v) - min(v) for v in zip(*places, there, strict=True)]
        if there not in places and max(spans) <= reach:
            places.append(there)
    return places


def pan(rng: np.random.Generator, crops: data.Crops, shape: Shape, frames: int) -> Sequence:
    """Windows along one path over several pictures."""
    size = shape.size
    canvas = int(size * CANVAS) // CELL * CELL
    offsets = path(rng, frames, size)
    low = np.min(offsets, axis=0)
    room = canvas - size - (np.max(offsets, axis=0) - low)
    pixels: list[data.Array] = []
    masks: list[data.Array] = []
    index: list[int] = []
    while len(pixels) < shape.pictures:
        crop = crops.draw(rng, canvas, shape.objects)
        rows, columns = np.nonzero(crop.masks[0])
        i = rng.integers(len(rows))
        start = np.array([rows[i], columns[i]]) - size * rng.uniform(0.2, 0.8, size=2)
        start = np.clip(start + low, 0, room).astype(int) // CELL * CELL - low
        windows = [(start[0] + r, start[1] + c) for r, c in offsets]
        cut = np.stack([crop.masks[:, r : r + size, c : c + size] for r, c in windows])
        shown = cut[0].sum((1, 2)) >= VISIBLE
        if not shown.any():
            continue
        index += [len(pixels)] * int(shown.sum())
        masks.append(cut[:, shown])
        pixels.append(np.stack([crop.pixels[:, r : r + size, c : c + size] for r, c in windows]))
    return Sequence(
        torch.from_numpy(np.stack(pixels, axis=1)),
        torch.from_numpy(np.concatenate(masks, axis=1)),
        tuple((r // CELL, c // CELL) for r, c in offsets),
        torch.tensor(index),
    )


def time_series(rng: np.random.Generator, crops: data.Crops, shape: Shape, frames: int) -> Sequence:
    """One window of each picture at several dates: recoloured, and moved by a few pixels."""
    size, play = shape.size, CELL
    shifts = rng.integers(0, play + 1, size=(frames, 2))
    pixels: list[data.Array] = []
    masks: list[data.Array] = []
    index: list[int] = []
    while len(pixels) < shape.pictures:
        crop = crops.draw(rng, size + play, shape.objects)
        cut = np.stack([crop.masks[:, r : r + size, c : c + size] for r, c in shifts])
        shown = cut[0].sum((1, 2)) >= VISIBLE
        if not shown.any():
            continue
        index += [len(pixels)] * int(shown.sum())
        masks.append(cut[:, shown])
        dates = []
        for r, c in shifts:
            window = crop.pixels[:, r : r + size, c : c + size].transpose(1, 2, 0)
            dates.append(augment.colours(rng, window).transpose(2, 0, 1))
        pixels.append(np.stack(dates))
    return Sequence(
        torch.from_numpy(np.stack(pixels, axis=1)),
        torch.from_numpy(np.concatenate(masks, axis=1)),
        tuple((0, 0) for _ in range(frames)),
        torch.tensor(index),
    )


def follow(
    model: SAM2, crops: data.Crops, rng: np.random.Generator, shape: Shape, weights: LossWeights
) -> tuple[Tensor, dict[str, float]]:
    """Prompt the first frame, then follow with memory, with known logits, or with both."""
    frames = int(rng.integers(3, 5))
    on_map = bool(rng.random() < 0.7)
    make = pan if on_map else time_series
    sequence = make(rng, crops, shape, frames)
    bank = MemoryBank(positions="map" if on_map else "frame")
    total, report = torch.zeros(()), {}
    said: list[Tensor] = []
    for t in range(frames):
        truth = coverage(sequence.masks[t])
        present = sequence.masks[t].flatten(1).sum(1) >= VISIBLE
        features = model.encode(sequence.pixels[t])
        place = sequence.places[t] if on_map else t
        if t == 0:
            kind = ("click", "clicks", "box")[rng.integers(3)]
            prompts = ask(rng, kind, sequence.masks[0].numpy(), truth).prompts
            seen = features
        else:
            seen = model.attend(features, bank, place, image_index=sequence.index)
            prompts = _known_prompts(rng, said, sequence, t, features, on_map)
        out = model.decode_all(seen, replace(prompts, image_index=sequence.index))
        loss, achieved = interaction_loss(out, truth, present, weights)
        total = total + loss
        best = achieved[torch.arange(len(achieved)), out.predicted_iou.argmax(1)]
        report[f"{'pan' if on_map else 'time'}_{t}"] = float(best[present].mean())
        told = _told(rng, model.choose(out, True).best_logits.detach(), truth)
        said.append(told)
        known = replace(
            model.choose(out, multimask=t == 0), object_score=torch.where(present, 10.0, -10.0)
        )
        memory = model.remember(
            features, known, prompted=t == 0, image_index=sequence.index,
            logits=told * (CERTAIN if t == 0 else 1.0),
        )  # fmt: skip
        bank.add(memory, place, prompted=t == 0)
    return total / frames, report


def _told(rng: np.random.Generator, logits: Tensor, truth: Tensor) -> Tensor:
    """What is remembered: often the truth, so that an early mistake does not spoil the rest."""
    if rng.random() < 0.6:
        return (2 * truth - 1) * 8
    return logits.clamp(-12, 12)


def _known_prompts(
    rng: np.random.Generator,
    said: list[Tensor],
    sequence: Sequence,
    t: int,
    features: ImageFeatures,
    on_map: bool,
) -> Prompts:
    """Nothing, or the logits that earlier windows gave where they overlap, perhaps with a point."""
    N = len(sequence.index)
    nothing = Prompts(torch.zeros(N, 1, 2), torch.full((N, 1), -1))
    if not on_map or rng.random() < 0.3:
        return nothing
    known = overlap_logits(said, sequence.places[: t + 1], features.size)
    if rng.random() < 0.3:
        return replace(nothing, masks=known)
    count = 1 if rng.random() < 0.6 else 2  # as many as panning over a map gives
    points = [[point_in(rng, m) for _ in range(count)] for m in (known[:, 0] > 0).numpy()]
    places = torch.tensor([[p or (0.0, 0.0) for p in row] for row in points])
    labels = torch.tensor([[1 if p else -1 for p in row] for row in points])
    return Prompts(places, labels, masks=known)


def overlap_logits(
    said: list[Tensor], places: tuple[tuple[int, int], ...], size: tuple[int, int]
) -> Tensor:
    """Logits of earlier windows on the last window's grid, 0 where none reaches: (N, 1, h, w)."""
    known = said[0].new_zeros(len(said[0]), size[0] // 4, size[1] // 4)
    here = places[-1]
    for logits, place in zip(said, places[:-1], strict=True):
        down, right = ((p - q) * CELL // 4 for p, q in zip(place, here, strict=True))
        paste(known, logits, down, right)
    return F.hardtanh(known, -12.0, 12.0)[:, None]
