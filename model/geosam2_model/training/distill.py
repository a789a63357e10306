"""Teach a trunk to see what a larger network sees: features, not labels.

    python -m geosam2_model.training.distill RECIPE.toml OUT.safetensors

A trunk that learns from the labels of a few sources alone comes to know those sources. So it first
learns, on crops of the recipe, to let MobileSAM's features (`teacher`) be read off its own by one
1 x 1 convolution; nobody's labels are in that. Then what reads the trunk in the rest of the network
(the neck, and the pyramid of the dense prompts) is fitted to what it made of the trunk before, so
that training can go on from there: the written weights are a recipe's `start`.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from geosam2_model.checkpoints import load, save
from geosam2_model.errors import CheckpointError, ModelError
from geosam2_model.sam2 import SAM2
from geosam2_model.training import data
from geosam2_model.training.loop import learning_rate, training_crops
from geosam2_model.training.recipe import Phase, Recipe
from geosam2_model.training.teacher import TinyViT, load_teacher, normalised

SIZE = 256
"""Side of a crop in pixels."""
ENLARGED = 2
"""The teacher sees crops so much larger: it learned from pictures of 1,024 px and larger things."""
GRID = SIZE // 8
"""Cells a side in which features are compared."""
OUTLIER = 5.0
"""Features are compared in standard deviations, and none counts as further out than so many."""
BATCH = 8
RATE = 2e-3
"""Greatest learning rate of layers that read a trunk."""
REFIT = 5
"""What reads the trunk is fitted in so many times fewer steps than the trunk is trained."""
CAREFUL = 0.2
"""Learning rate of the trunk as a part of that."""


@dataclass(frozen=True)
class Lesson:
    """Crops, and what the teacher sees in them."""

    pixels: data.Array
    """(N, 3, SIZE, SIZE) uint8."""
    features: data.Array
    """(N, C, GRID, GRID) float16, each channel with mean 0 and deviation 1."""

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Crops and features, turned and mirrored together."""
        chosen = rng.integers(len(self.pixels), size=count)
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        both = (torch.from_numpy(x[chosen]).float() for x in (self.pixels, self.features))
        turned = (torch.rot90(x, turns, (2, 3)) for x in both)
        pixels, features = (x.flip(3) if mirrored else x for x in turned)
        return pixels, features


@torch.no_grad()
def prepare(teacher: TinyViT, crops: data.Crops, count: int, rng: np.random.Generator) -> Lesson:
    """Draw crops and ask the teacher about them; 1.4 MB each."""
    pixels = np.empty((count, 3, SIZE, SIZE), np.uint8)
    features = np.empty((count, sum(teacher.channels[1:]), GRID, GRID), np.float16)
    for i in tqdm(range(count), desc="teacher", unit="crop"):
        pixels[i] = crops.draw(rng, SIZE, 1).pixels
        features[i] = seen(teacher, torch.from_numpy(pixels[i])[None])[0].numpy()
    _standardise(features)
    return Lesson(pixels, features)


def seen(teacher: TinyViT, pixels: Tensor) -> Tensor:
    """The teacher's features at strides 8 and 16 of enlarged crops: (B, C, GRID, GRID)."""
    large = F.interpolate(normalised(pixels), scale_factor=ENLARGED, mode="bilinear")
    with torch.autocast("cpu", torch.bfloat16):
        _, *coarse = teacher(large.contiguous(memory_format=torch.channels_last))
    return torch.cat([F.adaptive_avg_pool2d(x.float(), GRID) for x in coarse], dim=1)


def _standardise(features: data.Array) -> None:
    for channel in range(features.shape[1]):  # float32 of all at once would be twice the memory
        x = features[:, channel].astype(np.float32)
        x = (x - x.mean()) / (x.std() + 1e-3)
        features[:, channel] = x.clip(-OUTLIER, OUTLIER)


def learn(model: SAM2, lesson: Lesson, steps: int, rng: np.random.Generator) -> float:
    """Train a model's trunk in place; returns the mean loss of the last steps.

    Args:
        model: Whose trunk learns.
        lesson: What it learns.
        steps: Batches of `BATCH` crops.
        rng: Draws the crops.
    """
    trunk = model.image_encoder.trunk
    reader = nn.Conv2d(sum(trunk.channels), lesson.features.shape[1], 1)
    trunk.requires_grad_(True).train()
    groups = [
        {"params": list(trunk.parameters()), "part": CAREFUL, "weight_decay": 0.0},
        {"params": list(reader.parameters()), "part": 1.0},
    ]
    losses = []
    for _ in _steps(torch.optim.AdamW(groups), steps, "trunk"):
        pixels, features = lesson.draw(rng, BATCH)
        found = reader(_side_by_side(trunk(model.normalise(pixels))))
        loss = F.smooth_l1_loss(found, features)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trunk.parameters(), 1.0)
        losses.append(float(loss.detach()))
    trunk.eval()
    return float(np.mean(losses[-100:]))


def _side_by_side(maps: tuple[Tensor, ...]) -> Tensor:
    """All of a trunk's maps in the cells of `GRID`."""
    fine, *rest = maps
    size = (GRID, GRID)
    return torch.cat(
        [
            F.adaptive_avg_pool2d(fine, size),
            *(F.interpolate(x, size, mode="bilinear") for x in rest),
        ],
        dim=1,
    )


def refit(model: SAM2, before: SAM2, lesson: Lesson, steps: int, rng: np.random.Generator) -> float:
    """Fit what reads the trunk to what it was with the trunk before; returns the last error.

    The error is the mean over six maps of the squared difference as a part of the variance.
    """
    model.requires_grad_(False)
    dense = model.dense_prompts
    readers = (dense.laterals, dense.norms, dense.lower, dense.smooth, model.image_encoder.neck)
    weights = [p for part in readers for p in part.requires_grad_(True).parameters()]
    groups = [{"params": weights, "part": 1.0, "weight_decay": 0.0}]
    error = torch.zeros(())
    for _ in _steps(torch.optim.AdamW(groups), steps, "readers"):
        pixels, _ = lesson.draw(rng, BATCH)
        with torch.no_grad():
            wanted = _read_off(before, pixels)
        pairs = zip(_read_off(model, pixels), wanted, strict=True)
        error = torch.stack([F.mse_loss(x, y) / y.var() for x, y in pairs]).mean()
        error.backward()  # type: ignore[no-untyped-call]
    model.requires_grad_(True)
    return float(error.detach())


def _read_off(model: SAM2, pixels: Tensor) -> list[Tensor]:
    features = model.encode(pixels)
    return [features.embedding, *features.high_res, *(features.trunk or ())]


def _steps(optimiser: torch.optim.Optimizer, count: int, name: str) -> Iterator[int]:
    """Count steps: each begins without gradients and ends with the optimiser's step."""
    phase = Phase(count, lr=RATE, decay=True, warmup=50)
    for step in tqdm(range(count), desc=name, unit="step"):
        for group in optimiser.param_groups:
            group["lr"] = group["part"] * learning_rate(phase, step)
        optimiser.zero_grad(set_to_none=True)
        yield step
        optimiser.step()


def distill(recipe: Recipe, crops: int, steps: int) -> SAM2:
    """The recipe's start (by default the embedded model) with a trunk that has learned.

    Raises:
        CheckpointError: If there are no such weights, they are of another kind than nano, or the
            teacher's cannot be read.
    """
    before = load(recipe.start or recipe.variant, device="cpu", dtype=torch.float32)
    if not before.config.dense_prompts:
        raise CheckpointError(f"{before.config.name} has no dense prompts; start from nano's kind.")
    teacher = load_teacher()
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    model = copy.deepcopy(before)
    lesson = prepare(teacher, training_crops(recipe), crops, rng)
    loss = learn(model, lesson, steps, rng)
    error = refit(model, before, lesson, steps // REFIT, rng)
    print(f"features {loss:.3f} (smooth L1, in deviations), readers {error:.3f} of the variance")
    return model


def main() -> None:
    """Write the weights that the command line names."""
    parser = argparse.ArgumentParser(description="Teach a trunk a larger network's features.")
    parser.add_argument("recipe", type=Path, help="whose crops, start and seed are used")
    parser.add_argument("out", type=Path, help="safetensors file to write")
    parser.add_argument("--crops", type=int, default=3600, help="crops to ask about (3600)")
    parser.add_argument("--steps", type=int, default=1500, help="batches of 8 crops (1500)")
    given = parser.parse_args()
    if given.crops < 1 or given.steps < REFIT:
        parser.error(
            f"--crops must be at least 1, --steps {REFIT}; not {given.crops}, {given.steps}."
        )
    if not given.out.parent.is_dir():
        parser.error(f"there is no folder {given.out.parent} to write {given.out.name} to.")
    try:
        save(distill(Recipe.read(given.recipe), given.crops, given.steps), given.out)
    except ModelError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
