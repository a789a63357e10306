"""A stand-in for the network that reads objects from their colours: exact, fast, no weights.

For scenes in which every object has a flat colour of its own. Tests of linking, resuming and
drawing can then ask for the truth, to the pixel, and a run takes seconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from rasterio import features
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from geosam2_model import Prompts


class _Features(NamedTuple):
    embedding: Tensor  # (B, 3, H / 16, W / 16) mean colours
    images: Tensor  # (B, 3, H, W)


class _Answer(NamedTuple):
    logits: Tensor
    predicted_iou: Tensor


@dataclass(frozen=True)
class ColourOracle:
    """Answers a click with all pixels of the clicked colour.

    Black is background and gives a mask that no filter accepts. It has the methods of
    `geosam2_model.SAM2` that automatic mode needs, pickles, and makes itself, so it can stand where
    a model or a maker of models is asked for.

    >>> oracle = ColourOracle()
    >>> oracle() is oracle
    True
    """

    seconds: float = 0.0
    """Pretended cost of encoding a frame."""
    wobble: float = 0.0
    """Size of a deterministic, frame-dependent error of the logits near mask borders."""
    name: str = "colour oracle"
    fingerprint: str = "oracle"

    def __call__(self) -> ColourOracle:
        return self

    def encode(self, pixels: Tensor) -> _Features:
        """Keep the images (B, 3, H, W)."""
        time.sleep(self.seconds * len(pixels))
        return _Features(F.avg_pool2d(pixels.float(), 16), pixels)

    def decode(self, features: _Features, prompts: Prompts, multimask: bool = True) -> _Answer:
        """Three equal masks a click, of which only the first claims to be good."""
        assert prompts.points is not None
        if prompts.image_index is None:
            return self._decode(features, prompts.points)
        answers = [
            self._decode(_Features(*(x[i : i + 1] for x in features)), point[None])
            for i, point in zip(prompts.image_index, prompts.points, strict=True)
        ]
        return _Answer(*(torch.cat(x) for x in zip(*answers, strict=True)))

    def _decode(self, features: _Features, points: Tensor) -> _Answer:
        image = features.images[0].int()
        x, y = points[:, 0].round().long().T
        limit = image.shape[-1] - 1
        colours = image[:, y.clamp(0, limit), x.clamp(0, limit)].T
        unique, which = torch.unique(colours, dim=0, return_inverse=True)
        same = [(image == c[:, None, None]).all(0).float() for c in unique]
        share = F.avg_pool2d(torch.stack(same)[:, None], 4)[:, 0]
        logits = (share - 0.47) * 64  # firm even where a border halves a cell
        if self.wobble:
            logits = logits + self.wobble * torch.sin(7.0 * features.embedding.sum() + logits)
        background = (unique == 0).all(1)
        iou = torch.where(background, 0.0, 0.98)[which]
        scores = torch.stack([iou, iou - 0.9, iou - 0.9], dim=1)
        return _Answer(logits[which][:, None].expand(-1, 3, -1, -1), scores)


def colour_scene(
    shape: tuple[int, int], objects: int, *, seed: int = 0, size: tuple[int, int] = (20, 300)
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Ellipses and rectangles, touching and nested: pixels (3, H, W) and ids.

    What others leave visible of one counts as an object, with a colour of its own, piece by piece.

    >>> pixels, ids = colour_scene((64, 64), 3, size=(10, 30))
    >>> pixels.shape, bool((pixels[:, ids == 0] == 0).all())
    ((3, 64, 64), True)
    """
    rng = np.random.default_rng(seed)
    ids = np.zeros(shape, np.int32)
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    for number in range(1, objects + 1):
        height, width = rng.uniform(*size, 2) / 2
        row, col = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        dy, dx = np.abs(rows - row) / height, np.abs(cols - col) / width
        inside = dy**2 + dx**2 < 1 if rng.random() < 0.5 else np.maximum(dy, dx) < 1
        ids[inside] = number
    pieces = [shape for shape, _ in features.shapes(ids, mask=ids > 0)]
    if pieces:
        numbered = zip(pieces, range(1, len(pieces) + 1), strict=True)
        ids = features.rasterize(numbered, out_shape=shape, dtype=np.int32)
    code = (np.arange(len(pieces) + 1, dtype=np.int64) * 2654435761) % 2**24
    code[1:] = np.where(code[1:] == 0, 1, code[1:])
    colours = np.stack([(code >> shift) & 255 for shift in (0, 8, 16)]).astype(np.uint8)
    colours[:, 0] = 0
    return colours[:, ids], ids
