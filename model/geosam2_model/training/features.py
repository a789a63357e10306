"""What a larger network sees in crops: something to learn from that nobody has to label.

A trunk that learns from the labels of a few sources alone comes to know those sources. So it also
learns to let MobileSAM's features (`teacher`) be read off its own by one 1 x 1 convolution, before
labels (`distill`) or beside them (`[features]` of a recipe), on pictures of any kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
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
FILES = ("pixels.npy", "features.npy")
"""Of a lesson's folder."""
FITTED = 256
"""Crops that a reader is fitted to before it is trained."""
READING = 0.1
"""Learning rate of a reader as a part of the others': all channels step together, and add up."""
RIDGE = 0.03
"""Penalty of that fit, a part of the variance."""


@dataclass(frozen=True)
class FeatureLoss:
    """How much of a larger network's features a run learns beside the labels."""

    crops: int = 0
    """Crops that the larger network is asked about, 1.4 MB each; 0 learns from labels alone. They
    are kept beside the run: one that goes on asks for no others."""
    batch: int = 6
    """Crops a step and process."""
    weight: float = 2.0
    """What the loss counts."""


@dataclass(frozen=True)
class Lesson:
    """Crops, and what the teacher sees in them; on disk, and read as far as they are drawn."""

    pixels: data.Array
    """(N, 3, SIZE, SIZE) uint8."""
    features: data.Array
    """(N, C, GRID, GRID) float16, each channel with mean 0 and deviation 1."""

    @classmethod
    def read(cls, folder: Path) -> Lesson:
        """The lesson that `prepare` wrote."""
        pixels, features = (np.load(folder / name, mmap_mode="r") for name in FILES)
        return cls(pixels, features)

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Crops and features; never turned, as strides put a cell's features off its middle."""
        return self.some(rng.integers(len(self.pixels), size=count))

    def some(self, chosen: data.Array) -> tuple[Tensor, Tensor]:
        """Crops and features of these numbers."""
        pixels, features = (
            torch.from_numpy(x[chosen]).float() for x in (self.pixels, self.features)
        )
        return pixels, features


@torch.no_grad()
def prepare(
    teacher: TinyViT, crops: data.Crops, count: int, rng: np.random.Generator, folder: Path
) -> Lesson:
    """Draw crops, ask the teacher about them, and write both to a new folder; 1.4 MB each."""
    partial = folder.with_name(f"{folder.name}.tmp")
    partial.mkdir(exist_ok=True)
    shapes = (3, SIZE, SIZE), (sum(teacher.channels[1:]), GRID, GRID)
    pixels, features = (
        np.lib.format.open_memmap(partial / name, "w+", dtype, (count, *shape))
        for name, dtype, shape in zip(FILES, (np.uint8, np.float16), shapes, strict=True)
    )
    moments = np.zeros((2, shapes[1][0]))
    for i in tqdm(range(count), desc="teacher", unit="crop"):
        pixels[i] = crops.draw(rng, SIZE, 1).pixels
        found = seen(teacher, torch.from_numpy(pixels[i])[None])[0].numpy()
        moments += found.mean((1, 2)) / count, np.square(found, dtype=float).mean((1, 2)) / count
        features[i] = found
    mean, square = moments[..., None, None]
    deviation = np.sqrt(square - mean**2) + 1e-3
    for one in features:
        one[:] = ((one - mean) / deviation).clip(-OUTLIER, OUTLIER)
    pixels.flush()
    features.flush()
    partial.rename(folder)
    return Lesson.read(folder)


def seen(teacher: TinyViT, pixels: Tensor) -> Tensor:
    """The teacher's features at strides 8 and 16 of enlarged crops: (B, C, GRID, GRID)."""
    large = F.interpolate(normalised(pixels), scale_factor=ENLARGED, mode="bilinear")
    with torch.autocast("cpu", torch.bfloat16):
        _, *coarse = teacher(large.contiguous(memory_format=torch.channels_last))
    return torch.cat([F.adaptive_avg_pool2d(x.float(), GRID) for x in coarse], dim=1)


class Reader(nn.Module):
    """Reads features off a trunk, cell by cell.

    Args:
        mean: Of each channel of all of the trunk's maps, (C,).
        deviation: The same, so that steps of one size suit every channel.
        features: Channels of what is read.

    >>> Reader(torch.zeros(496), torch.ones(496), 608).weight.shape
    torch.Size([608, 496, 1, 1])
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("deviation", deviation[:, None, None])
        self.weight = nn.Parameter(torch.zeros(features, len(mean), 1, 1))
        self.bias = nn.Parameter(torch.zeros(features))

    @classmethod
    def fitted(cls, model: SAM2, lesson: Lesson) -> Reader:
        """One that reads a model's trunk as it is, by least squares on the first crops."""
        channels, count = sum(model.image_encoder.trunk.channels), len(lesson.pixels[:FITTED])
        total = torch.zeros(channels + 1, channels + 1 + lesson.features.shape[1]).double()
        with torch.no_grad():
            for chosen in np.split(np.arange(count), range(8, count, 8)):
                pixels, features = lesson.some(chosen)
                x, y = (v.movedim(1, 0).flatten(1) for v in (side_by_side(model, pixels), features))
                x = torch.cat([x, torch.ones_like(x[:1])])
                total += (x @ torch.cat([x, y]).T).double() / (count * GRID**2)
        mean, read = total[-1, :channels], total[-1, channels + 1 :]
        covariance = total[:-1, :channels] - mean[:, None] * mean
        deviation = covariance.diagonal().clamp(min=1e-12).sqrt()
        shared = (total[:-1, channels + 1 :] - mean[:, None] * read) / deviation[:, None]
        correlation = covariance / deviation / deviation[:, None]
        weight = torch.linalg.solve(correlation + RIDGE * torch.eye(channels).double(), shared)
        reader = cls(mean.float(), deviation.float(), len(read))
        reader.weight.data = weight.T[:, :, None, None].float().contiguous()
        reader.bias.data = read.float()
        return reader

    def loss(self, model: SAM2, pixels: Tensor, features: Tensor) -> Tensor:
        """Mean smooth L1 distance of what is read in crops (B, 3, SIZE, SIZE), in deviations."""
        return F.smooth_l1_loss(self(side_by_side(model, pixels)), features)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, GRID, GRID) of `side_by_side` to features."""
        return F.conv2d((x - self.mean) / self.deviation, self.weight, self.bias)


def side_by_side(model: SAM2, pixels: Tensor) -> Tensor:
    """All maps of a model's trunk in the cells of `GRID`: (B, channels, GRID, GRID)."""
    fine, *rest = model.image_encoder.trunk(model.normalise(pixels.float()))
    size = (GRID, GRID)
    coarse = (F.interpolate(x, size, mode="bilinear") for x in rest)
    return torch.cat([F.adaptive_avg_pool2d(fine, size), *coarse], dim=1)
