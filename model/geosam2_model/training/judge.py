"""How good the weights are, on objects that were held back; and the run's curves.

    python -m geosam2_model.training.judge RECIPE.toml WEIGHTS...

judges the bare network as a run does: crops around one object, nothing chosen among zooms.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geosam2_model.checkpoints import load
from geosam2_model.errors import ModelError
from geosam2_model.prompt_encoder import Prompts
from geosam2_model.sam2 import SAM2
from geosam2_model.training import data
from geosam2_model.training.losses import coverage
from geosam2_model.training.prompts import Question, ask, correct
from geosam2_model.training.recipe import Recipe

TURNS = (1, 3, 5)
"""Figures are given after so many clicks."""

Answer = Callable[[Prompts, bool], Tensor]
"""Prompts of one object in pixels of a crop; the first question? -> logits (1, h, w)."""


def held_back(recipe: Recipe) -> dict[str, list[data.Crop]]:
    """The same objects of each source's dev images for each look."""
    found: dict[str, list[data.Crop]] = {}
    for source in recipe.sources:
        keep = data.keep_development(recipe.split, source.path.name)
        if source.unlabelled:
            continue
        rng = np.random.default_rng(0)
        pictures = [p for p in source.pictures(keep) if p.labels and p.objects]
        if pictures:
            found[source.path.name] = [plain_crop(rng, pictures) for _ in range(recipe.judged)]
    return found


def plain_crop(rng: np.random.Generator, pictures: list[data.Picture]) -> data.Crop:
    """A crop of 256 px around one object, colours as they are.

    Raises:
        InputError: If no object of the pictures can be shown.
    """
    for _ in range(data.MOST_DRAWS):
        picture = pictures[rng.integers(len(pictures))]
        crop = data.draw_crop(rng, picture, 256, 1, plain=True)
        if crop is not None:
            return crop
    raise data.nothing_to_show(picture)


def dev_figures(model: SAM2, held: dict[str, list[data.Crop]]) -> dict[str, float]:
    """Mean IoU after 1, 3 and 5 clicks per source, and their mean as "score"."""
    figures: dict[str, float] = {}
    for name, crops in held.items():
        each = np.array([clicks(model, crop, np.random.default_rng(i), max(TURNS))
                         for i, crop in enumerate(crops)])  # fmt: skip
        for turn in TURNS:
            figures[f"{name}_{turn}"] = round(float(each[:, turn - 1].mean()), 4)
    figures["score"] = round(float(np.mean(list(figures.values()))), 4) if figures else 0.0
    return figures


@torch.no_grad()
def clicks(model: SAM2, crop: data.Crop, rng: np.random.Generator, count: int) -> list[float]:
    """IoU of one crop's first object after each of `count` clicks, at full resolution."""
    return click_by_click(look(model, crop), crop, rng, count)


def look(model: SAM2, crop: data.Crop) -> Answer:
    """Encode a crop once, for any number of questions."""
    image = model.encode(torch.from_numpy(crop.pixels)[None])
    return lambda prompts, first: model.decode(image, prompts, multimask=first).best_logits


def click_by_click(
    answer: Answer, crop: data.Crop, rng: np.random.Generator, count: int
) -> list[float]:
    """The same for whatever answers prompts: each further click is where it errs most."""
    masks = crop.masks[:1]
    truth = coverage(torch.from_numpy(masks))
    question: Question = ask(rng, "click", masks, truth)
    found = []
    for turn in range(count):
        logits = answer(question.prompts, turn == 0)
        found.append(overlap(logits, masks))
        cells = F.interpolate(logits[:, None], truth.shape[-2:], mode="bilinear")[:, 0]
        question = correct(rng, question, cells, truth, keep_mask=True)
    return found


def overlap(logits: Tensor, masks: data.Array) -> float:
    """IoU of logits (1, h, w) with a mask (1, S, S), at its resolution."""
    full = F.interpolate(logits[:, None], masks.shape[1:], mode="bilinear")[0, 0] > 0
    return iou(full.numpy(), masks[0])


def iou(found: data.Array, wanted: data.Array) -> float:
    """Intersection over union of two masks; 1 if both are empty."""
    either = np.logical_or(found, wanted).sum()
    return float(np.logical_and(found, wanted).sum() / either) if either else 1.0


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, without those that a killed run did not write to their end."""
    lines = []
    for line in path.read_text(errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return [x for x in lines if isinstance(x, dict) and "step" in x]


def draw_curves(log: Path, out: Path) -> None:
    """Loss and dev figures of a run as a PNG."""
    from matplotlib.figure import Figure

    lines = read_log(log)
    figure = Figure(figsize=(11, 4))
    left, right = figure.subplots(1, 2)
    steps = [(x["step"], x["loss"]) for x in lines if "loss" in x]
    if steps:
        x, y = np.array(steps).T
        width = max(1, len(y) // 100)
        smooth = np.convolve(y, np.ones(width) / width, mode="valid")
        left.plot(x[len(x) - len(smooth) :], smooth)
    left.set(xlabel="step", ylabel="loss")
    looks = [x for x in lines if "dev" in x]
    for name in looks[-1]["dev"] if looks else ():
        right.plot([x["step"] for x in looks], [x["dev"].get(name, np.nan) for x in looks],
                   label=name)  # fmt: skip
    right.set(xlabel="step", ylabel="IoU on dev", ylim=(0, 1))
    right.legend(fontsize=7)
    figure.savefig(out, dpi=90)


def main() -> None:
    """Judge the weights that the command line names; a line of JSON for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("recipe", type=Path, help="says the sources and which images are held back")
    parser.add_argument("weights", nargs="+", help="names or files")
    parser.add_argument("--objects", type=int, default=48, help="of each source")
    given = parser.parse_args()
    try:
        held = held_back(replace(Recipe.read(given.recipe), judged=given.objects))
        models = {name: load(name, device="cpu") for name in given.weights}
    except ModelError as error:
        parser.error(str(error))
    for name, model in models.items():
        print(json.dumps({"weights": name, **dev_figures(model, held)}), flush=True)


if __name__ == "__main__":
    main()
