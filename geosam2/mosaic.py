"""The sparse logit mosaic: what many frames decided about one object, blended on one lattice.

Nothing is blended until it is read: the mosaic keeps each frame's small logits (a sixteenth of its
pixels) and adds them up, in a fixed order, in the window that is asked for. So the result does not
depend on the order of visits to the last bit, a frame can be taken back (a corrective click), and
fifty frames weigh a few megabytes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
Box = tuple[int, int, int, int]

UNKNOWN = -10.0
"""Logit that `LogitMosaic.window` gives where no frame has looked: surely not the object."""

LEAST_WEIGHT = 1e-3
"""Weight at the very border of a frame: next to nothing, but known where no other frame is."""


@dataclass(frozen=True)
class Patch:
    """One frame's logits, placed on the global pixel lattice of a level."""

    row: int
    """Lattice row of its top edge, level pixels, south positive."""
    col: int
    """Lattice column of its left edge, level pixels."""
    logits: FloatArray
    """(h, w) float32, > 0 = the object."""
    step: int = 4
    """Level pixels per logit."""
    overlap: int = 128
    """Level pixels at each border over which its weight rises from nothing to one."""
    rank: int = 0
    """A higher rank wins over a lower one wherever it is known (refined over coarse)."""
    valid: BoolArray | None = None
    """(h * step, w * step), True = data; None = data everywhere."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "logits", np.ascontiguousarray(self.logits, np.float32))
        if self.valid is not None and self.valid.all():
            object.__setattr__(self, "valid", None)
        assert self.valid is None or self.valid.shape == self.shape, (self.shape, self.valid)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in level pixels."""
        height, width = self.logits.shape
        return height * self.step, width * self.step

    @property
    def box(self) -> Box:
        """(row, col, row stop, col stop) on the lattice."""
        height, width = self.shape
        return self.row, self.col, self.row + height, self.col + width

    def read(self, box: Box, step: int = 1) -> tuple[FloatArray, FloatArray]:
        """Logits and blending weights in a box of the lattice that lies inside the patch.

        Weights are a cosine ramp at the patch's borders, such that those of two frames that
        overlap by `overlap` pixels add up to one; 0 on nodata.

        Args:
            box: (row, col, row stop, col stop); its shape is a multiple of `step`.
            step: Level pixels per cell of the result; logits are interpolated or averaged.

        Returns:
            Two arrays (height / step, width / step) float32.
        """
        top, left, bottom, right = (
            edge - start for edge, start in zip(box, (self.row, self.col) * 2, strict=True)
        )
        height, width = self.shape
        rows = _ramp(height, self.overlap, top, bottom, step)
        cols = _ramp(width, self.overlap, left, right, step)
        weights = np.maximum(np.outer(rows, cols), LEAST_WEIGHT).astype(np.float32)
        if self.valid is not None:
            weights *= valid_cells(self.valid[top:bottom, left:right], step)
        return self._logits(top, left, bottom, right, step), weights

    def _logits(self, top: int, left: int, bottom: int, right: int, step: int) -> FloatArray:
        """Logits of a part of the patch; only what is needed of it is interpolated."""
        import torch
        from torch.nn import functional as F

        aligned = not any(edge % self.step for edge in (top, left, bottom, right))
        if self.step == step and aligned:
            cut = slice(top // step, bottom // step), slice(left // step, right // step)
            return self.logits[cut]
        rows = _needed(top, bottom, self.step, self.logits.shape[0])
        cols = _needed(left, right, self.step, self.logits.shape[1])
        small = torch.from_numpy(self.logits[rows, cols])[None, None]
        large = F.interpolate(small, scale_factor=float(self.step), mode="bilinear")
        shift = rows.start * self.step, cols.start * self.step
        large = large[..., top - shift[0] : bottom - shift[0], left - shift[1] : right - shift[1]]
        found: FloatArray = (
            F.avg_pool2d(large, step)[0, 0].numpy() if step > 1 else large[0, 0].numpy()
        )
        return found


@dataclass
class LogitMosaic:
    """Patches of one object on the pixel lattice of one level.

    Lattice pixel (row, col) has its top-left corner at `transform` of (col, row); no rotation.
    """

    transform: Affine
    """Lattice pixel corner (column, row) -> map."""
    crs: CRS | None = None
    """CRS of the map coordinates; None = pixel coordinates."""
    patches: dict[Hashable, Patch] = field(default_factory=dict)
    """Frame key -> what that frame said. Keys are sortable within one mosaic."""

    def add(self, key: Hashable, patch: Patch) -> None:
        """Put a frame in, in place of what it said before."""
        self.patches[key] = patch

    def remove(self, key: Hashable) -> None:
        """Take a frame back, as if it had never been looked at."""
        self.patches.pop(key, None)

    def __contains__(self, key: Hashable) -> bool:
        return key in self.patches

    def __len__(self) -> int:
        return len(self.patches)

    def window(
        self, row: int, col: int, height: int, width: int, *, fill: float = UNKNOWN
    ) -> FloatArray:
        """Blended logits of a rectangle of the lattice.

        Args:
            row: Lattice row of the top edge.
            col: Lattice column of the left edge.
            height: Rows.
            width: Columns.
            fill: What to say where no frame has looked; may be NaN.

        Returns:
            (height, width) float32.
        """
        box = row, col, row + height, col + width
        logits, weight = self._blend(box, 1, frozenset())
        return np.where(weight > 0, logits, np.float32(fill))

    def known(
        self,
        row: int,
        col: int,
        height: int,
        width: int,
        *,
        step: int = 1,
        skip: Collection[Hashable] = (),
    ) -> tuple[FloatArray, FloatArray]:
        """Blended logits and how firmly they are known, without the patches in `skip`.

        Args:
            row: Lattice row of the top edge; like the other three a multiple of `step`.
            col: Lattice column of the left edge.
            height: Level pixels.
            width: Level pixels.
            step: Level pixels per cell of the result.
            skip: Keys of patches to leave out.

        Returns:
            Logits (height / step, width / step) float32, 0 where unknown; weight of the same
            shape, 0 = unknown, about 1 in the middle of a frame.
        """
        return self._blend((row, col, row + height, col + width), step, skip)

    def _blend(
        self, box: Box, step: int, skip: Collection[Hashable]
    ) -> tuple[FloatArray, FloatArray]:
        shape = (box[2] - box[0]) // step, (box[3] - box[1]) // step
        logits, known = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        inside = {k: p for k, p in self.patches.items() if k not in skip and _meet(p.box, box)}
        for rank in sorted({patch.rank for patch in inside.values()}):
            keys = sorted((k for k, p in inside.items() if p.rank == rank), key=_order)
            mean, weight = self._rank([inside[k] for k in keys], box, step)
            share = np.where(known > 0, np.minimum(weight, 1), weight > 0).astype(np.float32)
            logits = mean * share + logits * (1 - share)
            known = np.maximum(known, weight)
        return logits, known

    @staticmethod
    def _rank(patches: list[Patch], box: Box, step: int) -> tuple[FloatArray, FloatArray]:
        """Weighted mean of patches of one rank, and the sum of their weights."""
        shape = (box[2] - box[0]) // step, (box[3] - box[1]) // step
        total, weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for patch in patches:
            common = _common(box, patch.box)
            to = np.s_[
                (common[0] - box[0]) // step : (common[2] - box[0]) // step,
                (common[1] - box[1]) // step : (common[3] - box[1]) // step,
            ]
            logits, part = patch.read(common, step)
            total[to] += part * logits
            weight[to] += part
        total /= np.where(weight > 0, weight, np.float32(1))
        return total, weight

    @property
    def box(self) -> Box:
        """(row, col, row stop, col stop) around all patches.

        Raises:
            ValueError: If the mosaic is empty.
        """
        if not self.patches:
            raise ValueError("the mosaic is empty: add a patch first")
        tops, lefts, bottoms, rights = zip(*(p.box for p in self.patches.values()), strict=True)
        return min(tops), min(lefts), max(bottoms), max(rights)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) around all patches, map coordinates."""
        row, col, row_stop, col_stop = self.box
        left, top = self._corner(row, col)
        right, bottom = self._corner(row_stop, col_stop)
        return left, bottom, right, top

    def _corner(self, row: int, col: int) -> tuple[float, float]:
        return self.transform.c + col * self.transform.a, self.transform.f + row * self.transform.e

    def geobox(self, box: Box | None = None) -> GeoBox:
        """The grid of a box of the lattice (default: all patches)."""
        from odc.geo.geobox import GeoBox

        row, col, row_stop, col_stop = box or self.box
        x, y = self._corner(row, col)
        affine = Affine(self.transform.a, 0, x, 0, self.transform.e, y)
        return GeoBox((row_stop - row, col_stop - col), affine, self.crs)

    def blocks(self, size: int = 2048) -> Iterator[tuple[Box, FloatArray]]:
        """Windows of at most `size` x `size` pixels that hold something of the object.

        Blocks start at multiples of `size` on the lattice, so they are the same for every extent.
        """
        for row, col in sorted(self._occupied(size)):
            logits = self.window(row, col, size, size)
            if (logits > 0).any():
                yield (row, col, row + size, col + size), logits

    def _occupied(self, size: int) -> set[tuple[int, int]]:
        found = set()
        for patch in self.patches.values():
            if not (patch.logits > 0).any():
                continue
            top, left, bottom, right = patch.box
            for row in range(top // size * size, bottom, size):
                found |= {(row, col) for col in range(left // size * size, right, size)}
        return found

    def tight_box(self) -> Box | None:
        """Box around logits > 0, a pixel wider on each side; None if there are none."""
        boxes = [_positive_box(box, logits) for box, logits in self.blocks()]
        if not boxes:
            return None
        tops, lefts, bottoms, rights = zip(*boxes, strict=True)
        return min(tops) - 1, min(lefts) - 1, max(bottoms) + 1, max(rights) + 1

    def pixel_count(self) -> int:
        """Level pixels with logits > 0."""
        return sum(int((logits > 0).sum()) for _, logits in self.blocks())

    def state_dict(self, prefix: str = "mosaic") -> dict[str, NDArray[Any]]:
        """Arrays for a safetensors file; `from_state` is the inverse.

        Keys must be tuples of integers or integers.
        """
        arrays: dict[str, NDArray[Any]] = {}
        for key, patch in self.patches.items():
            name = f"{prefix}/{_key_text(key)}"
            head = [patch.row, patch.col, patch.step, patch.overlap, patch.rank]
            arrays[f"{name}/head"] = np.array(head, np.int64)
            arrays[f"{name}/logits"] = patch.logits
            if patch.valid is not None:
                arrays[f"{name}/valid"] = np.packbits(patch.valid)
        return arrays

    @classmethod
    def from_state(
        cls,
        arrays: Mapping[str, NDArray[Any]],
        transform: Affine,
        crs: CRS | None,
        prefix: str = "mosaic",
    ) -> LogitMosaic:
        """A mosaic from what `state_dict` gave."""
        mosaic = cls(transform, crs)
        for name in arrays:
            if not (name.startswith(f"{prefix}/") and name.endswith("/head")):
                continue
            stem = name.removesuffix("/head")
            mosaic.add(_key_of(stem.removeprefix(f"{prefix}/")), _patch_of(arrays, stem))
        return mosaic


def _patch_of(arrays: Mapping[str, NDArray[Any]], stem: str) -> Patch:
    row, col, step, overlap, rank = (int(v) for v in arrays[f"{stem}/head"])
    logits = arrays[f"{stem}/logits"]
    valid = None
    if f"{stem}/valid" in arrays:
        shape = logits.shape[0] * step, logits.shape[1] * step
        bits = np.unpackbits(arrays[f"{stem}/valid"], count=shape[0] * shape[1])
        valid = bits.reshape(shape).astype(bool)
    return Patch(row, col, logits, step, overlap, rank, valid)


def _key_text(key: Hashable) -> str:
    return json.dumps(key, separators=(",", ":"))


def _key_of(text: str) -> Hashable:
    value = json.loads(text)
    return tuple(value) if isinstance(value, list) else value


def _order(key: Hashable) -> Any:
    return key


def valid_cells(valid: NDArray[np.bool_], step: int) -> NDArray[np.bool_]:
    """(H, W) -> (H / step, W / step): cells with more data than not.

    >>> valid_cells(np.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool), 2)
    array([[ True, False]])
    """
    height, width = (side // step for side in valid.shape)
    return np.asarray(valid.reshape(height, step, width, step).mean((1, 3)) > 0.5)


def _ramp(length: int, overlap: int, start: int, stop: int, step: int) -> FloatArray:
    """Weights along one axis: 1 in the middle, a raised cosine over `overlap` pixels at an end."""
    centre = np.arange(start, stop, step) + step / 2
    inside = np.minimum(centre, length - centre)
    rise = np.clip(inside / max(min(overlap, length // 2), 1), 0, 1)
    ramp: FloatArray = (0.5 - 0.5 * np.cos(np.pi * rise)).astype(np.float32)
    return ramp


def _needed(start: int, stop: int, step: int, count: int) -> slice:
    """Cells that interpolation between `start` and `stop` pixels looks at."""
    return slice(max(start // step - 1, 0), min(-(-stop // step) + 1, count))


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _common(a: Box, b: Box) -> Box:
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def _positive_box(box: Box, logits: FloatArray) -> Box:
    rows = np.flatnonzero((logits > 0).any(1))
    cols = np.flatnonzero((logits > 0).any(0))
    return (
        box[0] + int(rows[0]),
        box[1] + int(cols[0]),
        box[0] + int(rows[-1]) + 1,
        box[1] + int(cols[-1]) + 1,
    )
