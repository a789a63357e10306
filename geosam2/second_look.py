"""A second look at what a frame saw whole, from a window around it.

A frame shows its objects wherever they happen to lie, and the network is better, and steadier, at
what lies in the middle. Each object is asked for again by its box, in a window with the object in
its middle; so its mask hardly depends on where the frames are. How far the two masks agree says
more of them than the scores do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from geosam2.parts import CELL, QUANTUM, Box, Part, crop_part, overlap_iou, stability_scores

Read = Callable[[Box, int], tuple[NDArray[np.uint8], NDArray[np.bool_]]]
"""A box (h, w) and a zoom -> pixels (3, h * zoom, w * zoom), and where there is data (h, w)."""

CHUNK = 8  # windows that the network encodes together


def look_again(
    network: Any, parts: Sequence[Part], frame: Box, read: Read, offset: float
) -> list[Part]:
    """Parts with the masks of a second look where one is possible, in their order.

    Args:
        network: See `automatic.Network`.
        parts: What a frame found; those that its border cuts stay as they are.
        frame: The frame's lattice pixels; a mask that would leave it is not taken.
        read: Pixels of a window.
        offset: By how many logits the threshold moves, for the stability.

    Returns:
        As many parts; the stability of those looked at is multiplied by the IoU of both masks.
    """
    whole = [i for i, part in enumerate(parts) if not part.edges]
    out = list(parts)
    for zoom in sorted({CELL // parts[i].step for i in whole}):
        wanted = [i for i in whole if CELL // parts[i].step == zoom]
        for start in range(0, len(wanted), CHUNK):
            chunk = wanted[start : start + CHUNK]
            some = [parts[i] for i in chunk]
            seen = _look(network, some, frame.shape[0] // zoom, zoom, read, offset)
            for i, new in zip(chunk, seen, strict=True):
                out[i] = _agreed(parts[i], new, frame)
    return out


def _agreed(old: Part, new: Part | None, frame: Box) -> Part:
    if new is None:
        return replace(old, stability=0.0)
    agreement = overlap_iou(old, new)
    mask = new if not new.edges and _inside(new.box, frame) else old
    return replace(old, origin=mask.origin, logits=mask.logits, stability=old.stability * agreement)


def _inside(box: Box, frame: Box) -> bool:
    return (box | frame) == frame


def _look(
    network: Any, parts: Sequence[Part], side: int, zoom: int, read: Read, offset: float
) -> Iterator[Part | None]:
    """The best of three masks of each part, from a window of `side` lattice pixels around it."""
    from geosam2_model import Prompts

    windows = [_around(part, side) for part in parts]
    pixels, valid = zip(*(read(window, zoom) for window in windows), strict=True)
    prompts = [_prompt(part, window) for part, window in zip(parts, windows, strict=True)]
    points, boxes = (
        torch.tensor(np.array(values, np.float32) * zoom - 0.5)
        for values in zip(*prompts, strict=True)
    )
    with torch.inference_mode():
        features = network.encode(torch.from_numpy(np.stack(pixels)))
        asked = Prompts(
            points=points[:, None],
            labels=torch.ones(len(parts), 1, dtype=torch.int64),
            boxes=boxes,
            image_index=torch.arange(len(parts)),
        )
        answer = network.decode(features, asked, multimask=True)
        logits, iou = answer.logits.float(), answer.predicted_iou.float()
        best = (iou * stability_scores(logits, offset)).argmax(1)
        chosen = logits[torch.arange(len(parts), device=best.device), best]
        small = (chosen * QUANTUM).round().clamp(-127, 127).to(torch.int8).cpu().numpy()
    for part, window, mask, data in zip(parts, windows, small, valid, strict=True):
        yield _part(part, window, np.where(_cells(data, len(mask)), mask, np.int8(-127)))


def _around(part: Part, side: int) -> Box:
    """A window with the part's box in its middle, on the lattice of cells."""
    box = _tight(part)
    top, left = (
        round((low + high - side) / (2 * CELL)) * CELL
        for low, high in ((box.top, box.bottom), (box.left, box.right))
    )
    return Box(top, left, top + side, left + side)


def _tight(part: Part) -> Box:
    mask = part.logits > 0
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    (top, left), step = part.origin, part.step
    return Box(
        top + int(rows[0]) * step,
        left + int(cols[0]) * step,
        top + (int(rows[-1]) + 1) * step,
        left + (int(cols[-1]) + 1) * step,
    )


def _prompt(part: Part, window: Box) -> tuple[tuple[float, float], tuple[int, int, int, int]]:
    """The surest place of a part (x, y) and its box (x, y, x, y), from the window's corner."""
    row, col = np.unravel_index(int(part.logits.argmax()), part.logits.shape)
    x = part.origin[1] + (int(col) + 0.5) * part.step - window.left
    y = part.origin[0] + (int(row) + 0.5) * part.step - window.top
    box = _tight(part)
    top, left = box.top - window.top, box.left - window.left
    return (x, y), (left, top, left + box.shape[1], top + box.shape[0])


def _cells(valid: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """Where more than half of a mask's cell has data."""
    n = valid.shape[0] // side
    share: NDArray[np.bool_] = valid.reshape(side, n, side, n).mean(axis=(1, 3)) > 0.5
    return share


def _part(old: Part, window: Box, logits: NDArray[np.int8]) -> Part | None:
    if not (logits > 0).any():
        return None
    return crop_part(
        logits,
        window,
        window,
        frame=old.frame,
        rank=old.rank,
        predicted_iou=old.predicted_iou,
        stability=old.stability,
        feature=old.feature,
    )
