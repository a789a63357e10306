"""What one frame saw of one object, and the lattice on which frames meet.

A `Part` is small: the network's low-resolution logits, cropped and quantised to one byte, with
their place on the level's pixel lattice. Everything that joins frames (linking, blending, drawing)
works on parts; full-resolution masks exist only while a block is drawn.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from geosam2.errors import LevelError

if TYPE_CHECKING:
    from torch import Tensor

CELL = 4  # lattice pixels per low-resolution mask cell of an unzoomed frame (SAM 2's mask stride)
QUANTUM = 8.0  # logits are stored as round(logit * QUANTUM) in int8: 1/8 steps within +-16

NORTH, EAST, SOUTH, WEST = 1, 2, 4, 8  # bits of Part.edges

FrameKey = tuple[int, int]
PartKey = tuple[int, int, int]


@dataclass(frozen=True)
class Box:
    """A half-open rectangle of lattice pixels: rows [top, bottom), columns [left, right)."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width), never negative."""
        return max(0, self.bottom - self.top), max(0, self.right - self.left)

    @property
    def empty(self) -> bool:
        """True if no pixel is inside."""
        return self.bottom <= self.top or self.right <= self.left

    def __and__(self, other: Box) -> Box:
        return Box(
            max(self.top, other.top),
            max(self.left, other.left),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )

    def __or__(self, other: Box) -> Box:
        return Box(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )

    def grown(self, margin: int) -> Box:
        """The box with `margin` more pixels on each side."""
        return Box(self.top - margin, self.left - margin, self.bottom + margin, self.right + margin)

    def within(self, outer: Box) -> tuple[slice, slice]:
        """Slices of this box in an array that covers `outer`."""
        return (
            slice(self.top - outer.top, self.bottom - outer.top),
            slice(self.left - outer.left, self.right - outer.left),
        )


@dataclass(frozen=True)
class Layout:
    """Where the frames of a run lie on the pixel lattice; the arithmetic of a FrameGrid, no scene.

    >>> layout = Layout(size=512, overlap=128)
    >>> layout.frame((0, 1))
    Box(top=0, left=384, bottom=512, right=896)
    >>> layout.core((0, 1))
    Box(top=64, left=448, bottom=448, right=832)
    """

    size: int
    """Side of a frame in lattice pixels."""
    overlap: int
    """Pixels that neighbouring frames share; at most half a frame."""
    anchor: tuple[int, int] = (0, 0)
    """Lattice pixel (row, column) of the top-left corner of frame (0, 0)."""

    def __post_init__(self) -> None:
        if self.size % 16 or self.overlap % 16 or not 0 < self.overlap <= self.size // 2:
            raise LevelError(
                f"frame size {self.size} with overlap {self.overlap}: both must be multiples of 16 "
                f"and the overlap between 16 and half a frame ({self.size // 2})"
            )

    @property
    def stride(self) -> int:
        """Pixels from one frame to the next."""
        return self.size - self.overlap

    def frame(self, key: FrameKey) -> Box:
        """All pixels of a frame."""
        top = self.anchor[0] + key[0] * self.stride
        left = self.anchor[1] + key[1] * self.stride
        return Box(top, left, top + self.size, left + self.size)

    def core(self, key: FrameKey) -> Box:
        """The pixels whose nearest frame centre is this one's; cores tile the lattice."""
        return self.frame(key).grown(-self.overlap // 2)

    def shared(self, a: FrameKey, b: FrameKey) -> Box:
        """The overlap of two frames."""
        return self.frame(a) & self.frame(b)

    def region(self, key: FrameKey, zoom: int, row: int, col: int) -> Box:
        """One of the `zoom` x `zoom` regions of a frame that are looked at enlarged.

        They are the frames of the lattice of the `zoom` times finer level: the same overlap in
        network pixels, evenly spread over the core, so that no region is encoded for two frames.
        """
        frame = self.frame(key)
        margin = self.overlap * (zoom - 1) // (2 * zoom)
        side, stride = self.size // zoom, self.stride // zoom
        top = frame.top + margin + row * stride
        left = frame.left + margin + col * stride
        return Box(top, left, top + side, left + side)

    def weights(self, key: FrameKey, window: Box) -> NDArray[np.float32]:
        """Cosine blending weights of a frame over `window` (h, w): 1 in the middle, 0 outside.

        The weights of all frames sum to 1 at every pixel, and the nearest centre has the largest.
        """
        frame = self.frame(key)
        rows = _ramp(np.arange(window.top, window.bottom) - frame.top, self.size, self.overlap)
        cols = _ramp(np.arange(window.left, window.right) - frame.left, self.size, self.overlap)
        weights: NDArray[np.float32] = rows[:, None] * cols[None, :]
        return weights


def _ramp(position: NDArray[np.int_], size: int, overlap: int) -> NDArray[np.float32]:
    """sin^2 rise over the first `overlap` pixels, the mirror image at the end, 0 outside."""
    inside = np.minimum(position + 0.5, size - position - 0.5)
    rise = np.clip(inside / overlap, 0.0, 1.0)
    ramp: NDArray[np.float32] = (np.sin(rise * (np.pi / 2)) ** 2).astype(np.float32)
    return ramp


@dataclass(frozen=True, eq=False)
class Part:
    """One object as one frame sees it."""

    frame: FrameKey
    """(row, column) of the frame in the grid."""
    rank: int
    """Place in the frame's list, best first; (frame, rank) names the part in the whole run."""
    origin: tuple[int, int]
    """Lattice pixel (row, column) of the crop's top-left corner."""
    step: int
    """Lattice pixels per logit: 4 as the frame's network sees it, 2 or 1 in zoomed regions."""
    logits: NDArray[np.int8]
    """(h, w) logits x QUANTUM; what lies outside the crop is background."""
    predicted_iou: float
    """The network's own estimate, 0..1."""
    stability: float
    """IoU of the mask at logit +offset and -offset, 0..1."""
    edges: int = 0
    """Bits NORTH | EAST | SOUTH | WEST: frame borders that the mask touches."""
    feature: NDArray[np.float16] = field(default_factory=lambda: np.zeros(0, np.float16))
    """(C,) mean of the image embedding under the mask; empty if not asked for."""

    @property
    def key(self) -> PartKey:
        """(frame row, frame column, rank)."""
        return (*self.frame, self.rank)

    @property
    def score(self) -> float:
        """Predicted IoU x stability, the quality that suppression and drawing order go by."""
        return self.predicted_iou * self.stability

    @property
    def box(self) -> Box:
        """The crop in lattice pixels."""
        rows, cols = self.logits.shape
        top, left = self.origin
        return Box(top, left, top + rows * self.step, left + cols * self.step)

    @functools.cached_property
    def area(self) -> int:
        """Pixels of the mask."""
        return int((self.logits > 0).sum()) * self.step**2

    @functools.cached_property
    def soft(self) -> tuple[Box, NDArray[np.float32]]:
        """The mask as the covered share of each 4-pixel cell, and the cells' box (multiples of 4).

        One resolution for all parts, so that two parts compare in a few array operations; as shares
        and not as booleans, so that an object of a few pixels still has an area.
        """
        box = self.box
        outer = Box(
            box.top // CELL * CELL,
            box.left // CELL * CELL,
            -(-box.bottom // CELL) * CELL,
            -(-box.right // CELL) * CELL,
        )
        mask = (self.logits > 0).astype(np.float32)
        if self.step == CELL and outer == box:
            return outer, mask
        rows, cols = outer.shape
        fine = np.zeros((rows // self.step, cols // self.step), np.float32)
        top, left = (box.top - outer.top) // self.step, (box.left - outer.left) // self.step
        fine[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
        n = CELL // self.step
        return outer, fine.reshape(rows // CELL, n, cols // CELL, n).mean(axis=(1, 3))

    def soft_in(self, window: Box) -> NDArray[np.float32]:
        """Covered share of each 4-pixel cell of `window` (its sides multiples of 4)."""
        out = np.zeros((window.shape[0] // CELL, window.shape[1] // CELL), np.float32)
        outer, soft = self.soft
        common = outer & window
        if not common.empty:
            out[_cells(common, window)] = soft[_cells(common, outer)]
        return out

    def upsampled(self, window: Box) -> NDArray[np.float32]:
        """Logits at every lattice pixel of `window` (h, w), linear in between; background outside.

        Cell i covers pixels [i * step, (i + 1) * step), so its value sits at their middle: the same
        rule as bilinear resizing without aligned corners.
        """
        out = np.full(window.shape, -128 / QUANTUM, np.float32)
        common = self.box & window
        if common.empty:
            return out
        rows = _between(common.top - self.box.top, common.shape[0], self.step, self.logits.shape[0])
        cols = _between(
            common.left - self.box.left, common.shape[1], self.step, self.logits.shape[1]
        )
        r0, r1, c0, c1 = rows[0][0], rows[1][-1] + 1, cols[0][0], cols[1][-1] + 1
        crop = self.logits[r0:r1, c0:c1].astype(np.float32) / np.float32(QUANTUM)
        crop = _lerp(crop, rows[0] - r0, rows[1] - r0, rows[2])
        crop = _lerp(crop.T, cols[0] - c0, cols[1] - c0, cols[2]).T
        out[common.within(window)] = crop
        return out


def _cells(inner: Box, outer: Box) -> tuple[slice, slice]:
    rows, cols = inner.within(outer)
    return (
        slice(rows.start // CELL, rows.stop // CELL),
        slice(cols.start // CELL, cols.stop // CELL),
    )


def _between(
    start: int, count: int, step: int, length: int
) -> tuple[NDArray[np.int_], NDArray[np.int_], NDArray[np.float32]]:
    """Lower cell, upper cell and share of the upper one for `count` pixels from `start`."""
    place = (np.arange(start, start + count) + 0.5) / step - 0.5
    lower = np.floor(place).astype(int)
    share = (place - lower).astype(np.float32)
    return np.clip(lower, 0, length - 1), np.clip(lower + 1, 0, length - 1), share


def _lerp(
    values: NDArray[np.float32],
    lower: NDArray[np.int_],
    upper: NDArray[np.int_],
    share: NDArray[np.float32],
) -> NDArray[np.float32]:
    out: NDArray[np.float32] = values[lower] * (1 - share)[:, None] + values[upper] * share[:, None]
    return out


def crop_part(
    logits: NDArray[np.int8],
    region: Box,
    frame_box: Box,
    *,
    frame: FrameKey,
    rank: int,
    predicted_iou: float,
    stability: float,
    feature: NDArray[np.float16] | None = None,
) -> Part:
    """Cut the logits (H, W int8) of a whole region down to the mask with one cell of margin."""
    step = region.shape[0] // logits.shape[0]
    mask = logits > 0
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom = max(rows[0] - 1, 0), min(rows[-1] + 2, mask.shape[0])
    left, right = max(cols[0] - 1, 0), min(cols[-1] + 2, mask.shape[1])
    inside = Box(
        region.top + int(rows[0]) * step,
        region.left + int(cols[0]) * step,
        region.top + (int(rows[-1]) + 1) * step,
        region.left + (int(cols[-1]) + 1) * step,
    )
    return Part(
        frame=frame,
        rank=rank,
        origin=(region.top + int(top) * step, region.left + int(left) * step),
        step=step,
        logits=np.ascontiguousarray(logits[top:bottom, left:right]),
        predicted_iou=predicted_iou,
        stability=stability,
        edges=_touched(inside, frame_box),
        feature=np.zeros(0, np.float16) if feature is None else feature,
    )


def _touched(inside: Box, frame: Box) -> int:
    return (
        NORTH * (inside.top <= frame.top)
        | EAST * (inside.right >= frame.right)
        | SOUTH * (inside.bottom >= frame.bottom)
        | WEST * (inside.left <= frame.left)
    )


def overlap_iou(a: Part, b: Part) -> float:
    """IoU of two whole parts, 0..1."""
    common = a.box & b.box
    if common.empty:
        return 0.0
    window = a.soft[0] | b.soft[0]
    first, second = a.soft_in(window), b.soft_in(window)
    return float(np.minimum(first, second).sum() / max(np.maximum(first, second).sum(), 1e-9))


def stability_scores(logits: Tensor, offset: float) -> Tensor:
    """IoU of each mask (..., h, w) with the threshold moved up and down by `offset`; (...), 0..1.

    >>> import torch
    >>> stability_scores(torch.tensor([[[3.0, 0.5, -3.0]]]), 1.0)
    tensor([0.5000])
    """
    inner = (logits > offset).flatten(-2).sum(-1)
    outer = (logits > -offset).flatten(-2).sum(-1)
    return inner / outer.clamp(min=1)
