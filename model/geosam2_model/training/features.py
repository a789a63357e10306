"""What a larger network sees in crops: something to learn from that nobody has to label.

A trunk that learns from the labels of a few sources alone comes to know those sources. So it also
learns to let MobileSAM's features (`teacher`) be read off its own by one 1 x 1 convolution, before
labels (`distill`) or beside them (`[features]` of a recipe), on pictures of any kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from geosam2_model.sam2 import SAM2
from geosam2_model.training import data
from geosam2_model.training.teacher import TinyViT, normalised

SIZE = 256
"""Side of a crop in pixels."""
ENLARGED = 2
"""The teacher sees crops so much larger: it learned from pictures of 1,024 px and larger things."""
GRID = SIZE // 8
"""Cells a side in which features are compared."""
OUTLIER = 5.0
"""Features are compared in standard deviations, and none counts as further out than so many."""
FITTED = 256
"""Crops that a reader is fitted to before it is trained."""
RIDGE = 1e-3
"""Penalty of that fit, a part of the variance."""


@dataclass(frozen=True)
class FeatureLoss:
    """How much of a larger network's features a run learns beside the labels."""

    crops: int = 0
    """Crops that the larger network is asked about, 1.4 MB each; 0 learns from labels alone."""
    batch: int = 6
    """Crops a step and process."""
    weight: float = 2.0
    """What the loss counts."""


@dataclass(frozen=True)
class Lesson:
    """Crops, and what the teacher sees in them."""

    pixels: Tensor
    """(N, 3, SIZE, SIZE) uint8."""
    features: Tensor
    """(N, C, GRID, GRID) float16, each channel with mean 0 and deviation 1."""

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Crops and features, turned and mirrored together."""
        chosen = torch.from_numpy(rng.integers(len(self.pixels), size=count))
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        both = (x[chosen].float() for x in (self.pixels, self.features))
        turned = (torch.rot90(x, turns, (2, 3)) for x in both)
        pixels, features = (x.flip(3) if mirrored else x for x in turned)
        return pixels, features


@torch.no_grad()
def prepare(teacher: TinyViT, crops: data.Crops, count: int, rng: np.random.Generator) -> Lesson:
    """Draw crops and ask the teacher about them; 1.4 MB each."""
    pixels = torch.empty((count, 3, SIZE, SIZE), dtype=torch.uint8)
    features = torch.empty((count, sum(teacher.channels[1:]), GRID, GRID), dtype=torch.float16)
    for i in tqdm(range(count), desc="teacher", unit="crop"):
        pixels[i] = torch.from_numpy(crops.draw(rng, SIZE, 1).pixels)
        features[i] = seen(teacher, pixels[i : i + 1])[0]
    _standardise(features)
    return Lesson(pixels, features)


def seen(teacher: TinyViT, pixels: Tensor) -> Tensor:
    """The teacher's features at strides 8 and 16 of enlarged crops: (B, C, GRID, GRID)."""
    large = F.interpolate(normalised(pixels), scale_factor=ENLARGED, mode="bilinear")
    with torch.autocast("cpu", torch.bfloat16):
        _, *coarse = teacher(large.contiguous(memory_format=torch.channels_last))
    return torch.cat([F.adaptive_avg_pool2d(x.float(), GRID) for x in coarse], dim=1)


def _standardise(features: Tensor) -> None:
    for channel in range(features.shape[1]):  # float32 of all at once would be twice the memory
        x = features[:, channel].float()
        x = (x - x.mean()) / (x.std() + 1e-3)
        features[:, channel] = x.clamp(-OUTLIER, OUTLIER)


def kept(path: Path, make: Callable[[], Lesson]) -> Lesson:
    """The lesson in a file; made and written if there is none."""
    if path.exists():
        return Lesson(**load_file(path))
    lesson = make()
    partial = path.with_suffix(".tmp")
    save_file({"pixels": lesson.pixels, "features": lesson.features}, partial)
    partial.replace(path)
    return lesson


class Reader(nn.Module):
    """Reads features off a trunk, cell by cell.

    Args:
        trunk: Channels of all of its maps together.
        features: Channels of what is read.

    >>> Reader(496, 608).weight.shape
    torch.Size([608, 496, 1, 1])
    """

    def __init__(self, trunk: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(features, trunk, 1, 1))
        self.bias = nn.Parameter(torch.zeros(features))

    @classmethod
    def fitted(cls, model: SAM2, lesson: Lesson) -> Reader:
        """One that reads a model's trunk as it is, by least squares on the first crops."""
        reader = cls(sum(model.image_encoder.trunk.channels), lesson.features.shape[1])
        few = slice(FITTED)
        with torch.no_grad():
            found = torch.cat([side_by_side(model, x) for x in torch.split(lesson.pixels[few], 8)])
            x, y = (v.movedim(1, 3).flatten(0, 2).double() for v in (found, lesson.features[few]))
            mean, deviation = x.mean(0), x.std(0) + 1e-6
            x = (x - mean) / deviation
            square = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
            weight = torch.linalg.solve(square, x.T @ y) / deviation[:, None]
            reader.weight.copy_(weight.T[:, :, None, None])
            reader.bias.copy_(y.mean(0) - mean @ weight)
        return reader

    def loss(self, model: SAM2, pixels: Tensor, features: Tensor) -> Tensor:
        """Mean smooth L1 distance of what is read in crops (B, 3, SIZE, SIZE), in deviations."""
        found = F.conv2d(side_by_side(model, pixels), self.weight, self.bias)
        return F.smooth_l1_loss(found, features)


def side_by_side(model: SAM2, pixels: Tensor) -> Tensor:
    """All maps of a model's trunk in the cells of `GRID`: (B, channels, GRID, GRID)."""
    fine, *rest = model.image_encoder.trunk(model.normalise(pixels.float()))
    size = (GRID, GRID)
    coarse = (F.interpolate(x, size, mode="bilinear") for x in rest)
    return torch.cat([F.adaptive_avg_pool2d(fine, size), *coarse], dim=1)
