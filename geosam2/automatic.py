"""All masks of one frame: a grid of points, filters, suppression, clean-up, coverage.

Everything happens at the network's mask resolution (a quarter of the frame's side): a candidate
costs one pass through the mask decoder and a few sums, and only survivors are looked at in detail.
Meta's SAM2AutomaticMaskGenerator enlarges, thresholds and run-length-encodes each one instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from geosam2.parts import (
    CELL,
    QUANTUM,
    Box,
    FrameKey,
    Layout,
    Part,
    crop_part,
    overlap_iou,
    stability_scores,
)
from geosam2.point_grid import kept_points, point_grid, regions
from geosam2.recipe import Recipe
from geosam2.second_look import Read, look_again

if TYPE_CHECKING:
    from geosam2_model import Prompts

EXPLAINED = 0.02  # share of the frame; points inside found masks up to this size are skipped

BoolArray = NDArray[np.bool_]
Pixels = NDArray[np.uint8]


class Network(Protocol):
    """What automatic mode needs of a model: `geosam2_model.SAM2` or a stand-in with its methods."""

    name: str
    fingerprint: str

    def encode(self, pixels: Tensor) -> Any:
        """(1, 3, H, W) uint8 -> features with an `embedding` (1, C, H / 16, W / 16)."""

    def decode(self, features: Any, prompts: Prompts, multimask: bool) -> Any:
        """Features and N prompts -> `logits` (N, M, H / 4, W / 4) and `predicted_iou` (N, M)."""


@dataclass(frozen=True)
class FrameMasks:
    """What was found on one frame."""

    parts: tuple[Part, ...]
    """Best first; their rank is their place here."""
    coverage: float
    """Share of the valid pixels that were asked about inside any part, 0..1."""
    valid_share: float
    """Share of the frame's core that holds data, 0..1."""
    decoded: int
    """Points that went through the mask decoder."""


@dataclass(frozen=True)
class _Candidates:
    """Masks that passed the filters, one row each."""

    logits: NDArray[np.int8]  # (N, h, w) x QUANTUM
    iou: NDArray[np.float32]
    stability: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.iou)

    def __getitem__(self, rows: Any) -> _Candidates:
        return _Candidates(self.logits[rows], self.iou[rows], self.stability[rows])

    @property
    def score(self) -> NDArray[np.float32]:
        product: NDArray[np.float32] = self.iou * self.stability
        return product


def find_masks(
    network: Network,
    pixels: Pixels,
    valid: BoolArray,
    layout: Layout,
    key: FrameKey,
    recipe: Recipe,
    *,
    enlarge: Callable[[Box], Pixels] | None = None,
    asked: BoolArray | None = None,
    around: Read | None = None,
) -> FrameMasks:
    """Find every object that one frame shows.

    Args:
        network: A model in eval mode.
        pixels: (3, S, S) uint8 of the frame.
        valid: (S, S), True = data.
        layout: The frames' lattice; S = layout.size.
        key: (row, column) of the frame.
        recipe: Point grids, thresholds.
        enlarge: Called with the box of a zoomed region for its pixels (3, S, S), where the scene
            has finer ones; None enlarges the frame's own pixels.
        asked: (S, S) where points may be set (a region of interest); None = everywhere.
        around: Reads windows for the second look at each object; None leaves it out.

    References:
        Ravi et al. 2024, SAM 2, section E.1 (point grids of the data engine); Kirillov et al. 2023,
        Segment Anything, section B (filters, suppression, small regions).
    """
    frame_box = layout.frame(key)
    allowed = valid if asked is None else valid & asked
    if not allowed.any():
        return FrameMasks((), 0.0, float(_core(valid, layout).mean()), 0)
    found: list[Part] = []
    weak = _joined([], layout.size)
    decoded = 0
    whole: Any = None
    explained = np.zeros((layout.size // CELL, layout.size // CELL), bool)  # cells of the frame
    for region in regions(layout, key, recipe.points):
        inside = region.box.within(frame_box)
        image = pixels
        if region.zoom > 1:
            own = pixels[:, inside[0], inside[1]]
            image = enlarge(region.box) if enlarge else enlarged(own, region.zoom)
        points = kept_points(region.points, allowed[inside], layout.size)
        if len(points) == 0:
            continue
        features = _encode(network, image)
        whole = features if region.zoom == 1 else whole
        known = _magnified(explained, region.box, frame_box, region.zoom)
        candidates, asked_for = _search(network, features, points, recipe, layout.size, known)
        decoded += asked_for
        firm = _passing(candidates, recipe)
        if region.zoom == 1:
            weak = candidates[~firm]
        candidates = candidates[firm]
        candidates = _clean(candidates, valid[inside], recipe.min_region)
        if region.zoom > 1:
            candidates = candidates[~_touches_border(candidates.logits)]
        candidates = candidates[_suppress(candidates, recipe.duplicate_iou)]
        if region.zoom == 1:
            explained = _middles(candidates.logits)
        found += _parts(candidates, region.box, frame_box, key)
    if whole is None:
        whole = _encode(network, pixels)
    found = _suppress_across(found, recipe.duplicate_iou)
    bare = _Bare(found, valid, layout, key, recipe)
    bare.fill(weak)
    points = bare.points(allowed)
    bare.fill(_ask_all(network, whole, points, recipe))
    parts = [*found, *bare.filled]
    if around is not None and recipe.look_again:
        parts = look_again(network, parts, frame_box, around, recipe.stability_offset)
    parts = _ranked(parts)
    if recipe.features:
        parts = [_with_feature(p, whole.embedding[0], frame_box) for p in parts]
    covered = _covered(parts, frame_box)
    cells = _cell_share(allowed) > 0.5
    coverage = float(covered[cells].mean()) if cells.any() else 0.0
    return FrameMasks(
        tuple(parts), coverage, float(_core(valid, layout).mean()), decoded + len(points)
    )


def _encode(network: Network, image: Pixels) -> Any:
    with torch.inference_mode():
        return network.encode(torch.from_numpy(np.ascontiguousarray(image))[None])


def _core(valid: BoolArray, layout: Layout) -> BoolArray:
    margin = layout.overlap // 2
    return valid[margin:-margin, margin:-margin]


def enlarged(pixels: Pixels, zoom: int) -> Pixels:
    """(3, h, w) uint8 -> (3, h * zoom, w * zoom), bicubic."""
    small = torch.from_numpy(np.ascontiguousarray(pixels))[None].float()
    big = F.interpolate(small, scale_factor=zoom, mode="bicubic")
    out: Pixels = big[0].round().clamp(0, 255).to(torch.uint8).numpy()
    return out


# --- asking the network


def _magnified(cells: BoolArray, region: Box, frame_box: Box, zoom: int) -> BoolArray:
    """Cells of a frame as those of one of its regions, `zoom` times as many along a side."""
    rows, cols = region.within(frame_box)
    inside = cells[rows.start // CELL : rows.stop // CELL, cols.start // CELL : cols.stop // CELL]
    return np.kron(inside, np.ones((zoom, zoom), bool))


def _search(
    network: Network,
    features: Any,
    points: NDArray[np.float32],
    recipe: Recipe,
    size: int,
    explained: BoolArray,
) -> tuple[_Candidates, int]:
    """Ask for all points, a chunk at a time; with `skip_explained`, coarse points come first.

    `explained` are cells where a larger tier found small things already. Candidates that pass the
    limits only when they are relaxed come back too.
    """
    kept: list[_Candidates] = []
    asked = 0
    for chunk in _chunks(points, recipe, size):
        if recipe.skip_explained:
            chunk = chunk[~explained[tuple((chunk[:, ::-1] / CELL).astype(int).T)]]
            if len(chunk) == 0:
                continue
        asked += len(chunk)
        found = _ask(network, features, chunk, recipe)
        firm = found[_passing(found, recipe)]
        if recipe.skip_explained and len(firm):
            explained = explained | _middles(firm.logits)
        kept.append(found)
    return _joined(kept, size), asked


def _chunks(
    points: NDArray[np.float32], recipe: Recipe, size: int
) -> Iterator[NDArray[np.float32]]:
    if recipe.skip_explained:
        points = points[_spread_order(points, size)]
    for start in range(0, len(points), recipe.chunk):
        yield points[start : start + recipe.chunk]


def _spread_order(points: NDArray[np.float32], size: int) -> NDArray[np.int_]:
    """An order in which any first part of the points is spread over the image (bit reversal)."""
    col, row = (points * (256 / size)).astype(np.uint8).T
    mixed = np.bitwise_xor(row, col)
    code = np.zeros(len(points), np.uint32)
    for bit in range(8):  # the lowest bits of place become the highest of the code
        code = code * 4 + ((mixed >> bit) & 1) * 2 + ((row >> bit) & 1)
    # bits below the spacing of the points are the same pattern for all: reverse their weight
    return np.lexsort((points[:, 0], points[:, 1], code))


def _middles(logits: NDArray[np.int8]) -> BoolArray:
    """Cells well inside small masks: another point there would find the same again.

    Only firm cells (logit > 2) that lie a cell or more from the border count. In large masks every
    point is asked: things may lie in them that a point elsewhere does not show.
    """
    small = (logits > 0).mean((1, 2)) <= EXPLAINED
    firm = (logits[small] > 2 * QUANTUM).astype(np.uint8)
    inner = firm[:, 1:-1, 1:-1] & firm[:, :-2, 1:-1] & firm[:, 2:, 1:-1]
    inner &= firm[:, 1:-1, :-2] & firm[:, 1:-1, 2:]
    out = np.zeros(logits.shape[1:], bool)
    out[1:-1, 1:-1] = inner.any(0)
    return out


def _ask_all(
    network: Network, features: Any, points: NDArray[np.float32], recipe: Recipe
) -> _Candidates:
    chunks = range(0, len(points), recipe.chunk)
    found = [_ask(network, features, points[i : i + recipe.chunk], recipe) for i in chunks]
    return _joined(found, features.embedding.shape[-1] * 16)


def _passing(candidates: _Candidates, recipe: Recipe, share: float = 1.0) -> BoolArray:
    """True for masks above the limits times `share`."""
    passing: BoolArray = candidates.iou >= share * recipe.min_iou
    passing &= candidates.stability >= share * recipe.min_stability
    passing &= candidates.score >= share * recipe.min_score
    return passing


def _ask(
    network: Network, features: Any, points: NDArray[np.float32], recipe: Recipe
) -> _Candidates:
    """Three masks a point, those that pass the most relaxed limits: by predicted IoU first."""
    from geosam2_model import Prompts

    # pixel corners here, pixel centres in the network
    xy = torch.from_numpy(points - np.float32(0.5))[:, None]
    share = min(recipe.coverage, default=1.0)
    with torch.inference_mode():
        prompts = Prompts(points=xy, labels=torch.ones(len(xy), 1, dtype=torch.int64))
        out = network.decode(features, prompts, multimask=True)
        good = out.predicted_iou >= share * max(recipe.min_iou, recipe.min_score)
        logits, iou = out.logits[good], out.predicted_iou[good]
        stability = stability_scores(logits, recipe.stability_offset)
        steady = stability >= share * recipe.min_stability
        steady &= iou * stability >= share * recipe.min_score
        logits, iou, stability = logits[steady], iou[steady], stability[steady]
        small = (logits * QUANTUM).round().clamp(-127, 127).to(torch.int8)
    kept = (small, iou.float(), stability.float())
    return _Candidates(*(values.cpu().numpy() for values in kept))


def _joined(chunks: Sequence[_Candidates], size: int) -> _Candidates:
    if not chunks:
        side = size // CELL
        none = np.zeros(0, np.float32)
        return _Candidates(np.zeros((0, side, side), np.int8), none, none)
    return _Candidates(
        np.concatenate([c.logits for c in chunks]),
        np.concatenate([c.iou for c in chunks]),
        np.concatenate([c.stability for c in chunks]),
    )


# --- clean-up and suppression


def _touches_border(logits: NDArray[np.int8]) -> BoolArray:
    rim = np.concatenate([logits[:, [0, -1]], logits[:, :, [0, -1]].swapaxes(1, 2)], axis=1)
    out: BoolArray = np.any(rim > 0, axis=(1, 2))
    return out


def _clean(candidates: _Candidates, valid: BoolArray, min_region: int) -> _Candidates:
    """Nothing on nodata, no specks, no pinholes, no empty masks."""
    logits = candidates.logits
    side = logits.shape[1]
    share = torch.from_numpy(valid.astype(np.float32))[None, None]
    data: Any = F.adaptive_avg_pool2d(share, side)[0, 0].numpy() > 0.5
    if not data.all():
        logits = np.where(data, logits, np.int8(-127))
    candidates = replace(candidates, logits=logits)
    candidates = candidates[(candidates.logits > 0).any((1, 2))]
    cells = -(-min_region // CELL**2)
    if cells > 1:
        cleaned = (
            np.stack([_without_specks(m, cells) for m in candidates.logits])
            if len(candidates)
            else candidates.logits
        )
        candidates = replace(candidates, logits=cleaned)
        candidates = candidates[(candidates.logits > 0).any((1, 2))]
    return candidates


def _without_specks(logits: NDArray[np.int8], cells: int) -> NDArray[np.int8]:
    """Islands and holes of fewer than `cells` cells are turned over, weakly.

    GDAL's sieve does both at once. A mask that is nothing but one small region stays as it is.
    """
    from rasterio.features import sieve

    mask = (logits > 0).astype(np.uint8)
    if int(mask.sum()) < 2 * cells:
        return logits
    sieved = sieve(mask, size=cells, connectivity=4)
    changed = sieved != mask
    if not changed.any():
        return logits
    weak = np.where(sieved == 1, 1, -1).astype(np.int8)
    return np.where(changed, weak, logits)


def _suppress(candidates: _Candidates, limit: float) -> NDArray[np.int_]:
    """Rows that stay: greedy by score, IoU of the masks themselves, counted in packed bits."""
    if len(candidates) == 0:
        return np.zeros(0, int)
    mask = candidates.logits > 0
    boxes = _boxes(mask)
    bits = np.packbits(mask.reshape(len(mask), -1), axis=1)
    bits = np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8))).view(np.uint64)
    area = mask.reshape(len(mask), -1).sum(1)
    waiting = np.argsort(-candidates.score, kind="stable")
    stays = []
    while len(waiting):
        first, waiting = waiting[0], waiting[1:]
        stays.append(first)
        near: Any = _meet(boxes[first], boxes[waiting])
        near &= np.minimum(area[waiting], area[first]) > limit * np.maximum(
            area[waiting], area[first]
        )
        rivals = waiting[near]
        common = _popcount(bits[rivals] & bits[first])
        same = common > limit * (area[rivals] + area[first] - common)
        gone = np.zeros(len(waiting), bool)
        gone[np.flatnonzero(near)[same]] = True
        waiting = waiting[~gone]
    return np.array(stays)


def _popcount(words: NDArray[np.uint64]) -> NDArray[np.int_]:
    if hasattr(np, "bitwise_count"):
        counts: NDArray[np.int_] = np.bitwise_count(words).sum(1, dtype=int)
        return counts
    table = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1)  # numpy 1.26
    slow: NDArray[np.int_] = table[np.ascontiguousarray(words).view(np.uint8)].sum(1, dtype=int)
    return slow


def _boxes(mask: BoolArray) -> NDArray[np.int_]:
    """(N, 4) top, left, bottom, right of each mask, half-open; masks are not empty."""
    rows: BoolArray = np.any(mask, axis=2)
    cols: BoolArray = np.any(mask, axis=1)
    height, width = mask.shape[1:]
    return np.stack(
        [
            rows.argmax(1),
            cols.argmax(1),
            height - rows[:, ::-1].argmax(1),
            width - cols[:, ::-1].argmax(1),
        ],
        axis=1,
    )


def _meet(box: NDArray[np.int_], boxes: NDArray[np.int_]) -> BoolArray:
    out: BoolArray = (
        (boxes[:, 0] < box[2])
        & (boxes[:, 2] > box[0])
        & (boxes[:, 1] < box[3])
        & (boxes[:, 3] > box[1])
    )
    return out


def _parts(candidates: _Candidates, region: Box, frame_box: Box, key: FrameKey) -> list[Part]:
    return [
        crop_part(
            candidates.logits[i],
            region,
            frame_box,
            frame=key,
            rank=i,
            predicted_iou=float(candidates.iou[i]),
            stability=float(candidates.stability[i]),
        )
        for i in range(len(candidates))
    ]


def _suppress_across(parts: list[Part], limit: float) -> list[Part]:
    """Between tiers the sharper mask wins; between overlapping regions of a tier the better one."""
    stays: list[Part] = []
    for part in sorted(parts, key=lambda p: (p.step, -p.score, p.origin)):
        rivals = (other for other in stays if not part.step == other.step == CELL)
        if all(overlap_iou(part, other) <= limit for other in rivals):
            stays.append(part)
    return stays


def _ranked(parts: list[Part]) -> list[Part]:
    ordered = sorted(parts, key=lambda p: (-p.score, p.origin, p.logits.shape))
    return [replace(part, rank=rank) for rank, part in enumerate(ordered)]


# --- where nothing was found


class _Bare:
    """Cells where nothing was accepted, filled step by step less strictly with what is new."""

    def __init__(
        self,
        found: Sequence[Part],
        valid: BoolArray,
        layout: Layout,
        key: FrameKey,
        recipe: Recipe,
    ) -> None:
        self.filled: list[Part] = []
        self._covered = _covered(found, layout.frame(key))
        self._valid, self._layout, self._key, self._recipe = valid, layout, key, recipe

    def points(self, allowed: BoolArray) -> NDArray[np.float32]:
        """The denser grid's points on bare pixels."""
        if not self._recipe.coverage:
            return np.zeros((0, 2), np.float32)
        side, size = self._recipe.coverage_points, self._layout.size
        bare = allowed & ~np.kron(self._covered, np.ones((CELL, CELL), bool))
        return kept_points(point_grid(side, size), bare, size)

    def fill(self, candidates: _Candidates) -> None:
        """Accept what lies mostly on bare cells, the best first."""
        recipe, box = self._recipe, self._layout.frame(self._key)
        for share in recipe.coverage:
            passing = candidates[_passing(candidates, recipe, share)]
            clean = _clean(passing, self._valid, recipe.min_region)
            clean = clean[_suppress(clean, recipe.duplicate_iou)]
            for part in _parts(clean, box, box, self._key):
                mask = part.soft_in(box) > 0.5
                if (mask & ~self._covered).sum() > 0.5 * mask.sum():
                    self._covered |= mask
                    self.filled.append(part)


def _covered(parts: Sequence[Part], frame_box: Box) -> BoolArray:
    rows, cols = frame_box.shape
    out = np.zeros((rows // CELL, cols // CELL), bool)
    for part in parts:
        box, soft = part.soft
        common = box & frame_box
        inside = tuple(slice(s.start // CELL, s.stop // CELL) for s in common.within(frame_box))
        own = tuple(slice(s.start // CELL, s.stop // CELL) for s in common.within(box))
        out[inside] |= soft[own] > 0.5
    return out


def _cell_share(valid: BoolArray) -> NDArray[np.float32]:
    rows, cols = valid.shape
    cells = valid.reshape(rows // CELL, CELL, cols // CELL, CELL)
    share: NDArray[np.float32] = cells.mean(axis=(1, 3), dtype=np.float32)
    return share


def _with_feature(part: Part, embedding: Tensor, frame_box: Box) -> Part:
    """Mean of the stride-16 embedding (C, h, w) under the mask."""
    channels, rows, cols = embedding.shape
    soft = part.soft_in(frame_box)
    n = frame_box.shape[0] // rows // CELL
    weights = torch.from_numpy(soft.reshape(rows, n, cols, n).mean(axis=(1, 3))).reshape(-1)
    flat = embedding.reshape(channels, -1).float().cpu()
    mean = flat @ (weights / weights.sum().clamp(min=1e-9))
    return replace(part, feature=mean.numpy().astype(np.float16))
