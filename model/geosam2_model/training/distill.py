"""Teach a trunk to see what a larger network sees: features, not labels.

    python -m geosam2_model.training.distill RECIPE.toml OUT.safetensors [--start WEIGHTS]

The trunk learns `features` of the recipe's crops. Then what reads it in the rest of the network
(the neck, and the pyramid of the dense prompts) is fitted to what it made of the trunk before, so
that training can go on from there: the written weights are the recipe's `start`. Without labels
beside it the trunk learns several times as fast.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from geosam2_model.checkpoints import load, save
from geosam2_model.errors import CheckpointError, ModelError
from geosam2_model.sam2 import SAM2
from geosam2_model.training import features
from geosam2_model.training.loop import feature_crops, learning_rate, training_crops
from geosam2_model.training.recipe import Phase, Recipe
from geosam2_model.training.teacher import load_teacher

BATCH = 8
RATE = 2e-3
"""Greatest learning rate of layers that read a trunk."""
REFIT = 5
"""What reads the trunk is fitted in so many times fewer steps than the trunk is trained."""
CAREFUL = 0.3
"""Learning rate of the trunk as a part of that."""


def learn(model: SAM2, lesson: features.Lesson, steps: int, rng: np.random.Generator) -> float:
    """Train a model's trunk in place; returns the mean loss of the last steps.

    Args:
        model: Whose trunk learns.
        lesson: What it learns.
        steps: Batches of `BATCH` crops.
        rng: Draws the crops.
    """
    trunk = model.image_encoder.trunk
    reader = features.Reader.fitted(model, lesson)
    trunk.requires_grad_(True).train()
    groups = [
        {"params": list(trunk.parameters()), "part": CAREFUL, "weight_decay": 0.0},
        {"params": list(reader.parameters()), "part": features.READING},
    ]
    losses = []
    for _ in _steps(torch.optim.AdamW(groups), steps, "trunk"):
        loss = reader.loss(model, *lesson.draw(rng, BATCH))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trunk.parameters(), 1.0)
        losses.append(float(loss.detach()))
    trunk.eval()
    return float(np.mean(losses[-100:]))


def refit(
    model: SAM2, before: SAM2, lesson: features.Lesson, steps: int, rng: np.random.Generator
) -> float:
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
    found = model.encode(pixels)
    return [found.embedding, *found.high_res, *(found.trunk or ())]


def _steps(optimiser: torch.optim.Optimizer, count: int, name: str) -> Iterator[int]:
    """Count steps: each begins without gradients and ends with the optimiser's step."""
    phase = Phase(count, lr=RATE, decay=True, warmup=50)
    for step in tqdm(range(count), desc=name, unit="step"):
        for group in optimiser.param_groups:
            group["lr"] = group["part"] * learning_rate(phase, step)
        optimiser.zero_grad(set_to_none=True)
        yield step
        optimiser.step()


def distill(recipe: Recipe, crops: int, steps: int, start: str = "nano") -> SAM2:
    """A model with a trunk that has learned.

    Args:
        recipe: Whose crops and seed are used.
        crops: How many the teacher is asked about.
        steps: Batches of `BATCH` crops.
        start: Name or path of the weights to begin with.

    Raises:
        CheckpointError: If there are no such weights, they are of another kind than nano, or the
            teacher's cannot be read.
    """
    before = load(start, device="cpu", dtype=torch.float32)
    if not before.config.dense_prompts:
        raise CheckpointError(f"{before.config.name} has no dense prompts; start from nano's kind.")
    teacher = load_teacher()
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    model = copy.deepcopy(before)
    asked = feature_crops(recipe) or training_crops(recipe)
    with tempfile.TemporaryDirectory() as folder:
        lesson = features.prepare(teacher, asked, crops, rng, Path(folder) / "lesson")
        loss = learn(model, lesson, steps, rng)
        error = refit(model, before, lesson, steps // REFIT, rng)
    print(f"features {loss:.3f} (smooth L1, in deviations), readers {error:.3f} of the variance")
    return model


def main() -> None:
    """Write the weights that the command line names."""
    parser = argparse.ArgumentParser(description="Teach a trunk a larger network's features.")
    parser.add_argument("recipe", type=Path, help="whose crops and seed are used")
    parser.add_argument("out", type=Path, help="safetensors file to write")
    parser.add_argument("--crops", type=int, default=3600, help="crops to ask about (3600)")
    parser.add_argument("--steps", type=int, default=1500, help="batches of 8 crops (1500)")
    parser.add_argument("--start", default="nano", help="weights to begin with (nano)")
    given = parser.parse_args()
    if given.crops < 1 or given.steps < REFIT:
        parser.error(
            f"--crops must be at least 1, --steps {REFIT}; not {given.crops}, {given.steps}."
        )
    if not given.out.parent.is_dir():
        parser.error(f"there is no folder {given.out.parent} to write {given.out.name} to.")
    try:
        model = distill(Recipe.read(given.recipe), given.crops, given.steps, given.start)
        save(model, given.out)
    except ModelError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
