"""What choosing the zoom of a click is worth, and the weights of its score fitted anew.

    python benchmarks/zoom.py ../shared/data/*/ --split ../shared/data/split.json --fit

Clicks on objects as a user would, nothing told about their size, and notes what every zoom answered
at every click. Prints, as the mean over sources of the IoU: what was chosen, the best that any zoom
had, and what simpler rules would have chosen. `--fit` fits `geosam2.zoom.WEIGHTS` to what was noted
(ridge regression of the true IoU, fitted on part "train", told on part "dev") and prints the line
to paste. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geosam2 import evaluation, zoom
from geosam2.cache import EmbeddingCache
from geosam2.prompts import Prompt
from geosam2.segmenter import FrameMask, Segmenter

TURNS = (0, 2, 4)
RIDGE = 3.0


@dataclass(frozen=True)
class Turn:
    """Everything that was seen of one object after one more click."""

    source: str
    turn: int
    """0 after the first click."""
    levels: tuple[str, ...]
    """Zoom of each look."""
    ious: np.ndarray
    """(n,) true IoU of each look."""
    features: dict[str, np.ndarray]
    """Parts of the score, each (n,)."""
    chosen: int
    """Number of the look that was shown to the user."""


class Watched:
    """Answers clicks through a Segmenter and notes what every zoom said."""

    def __init__(self, segmenter: Segmenter, truth: evaluation.Mask, source: str) -> None:
        self.segmenter, self.truth, self.source = segmenter, truth, source
        self.turns: list[Turn] = []

    def __call__(self, clicks: Any) -> evaluation.Mask:
        scene = self.segmenter.scene
        points = tuple(scene.geobox.affine * (x, y) for x, y, _ in clicks)
        prompt = Prompt(points, tuple(label for _, _, label in clicks), crs=scene.crs)
        looks = self.segmenter.looks([prompt])[0]
        best = self.segmenter.predict(prompt, level="auto")[0]
        self.turns.append(self._turn(looks, best))
        return evaluation.on_grid(best.masklet, scene)

    def _turn(self, looks: list[FrameMask], best: FrameMask) -> Turn:
        scene = self.segmenter.scene
        found = [evaluation.on_grid(look.masklet, scene) for look in looks]
        same = [np.array_equal(one.logits, best.logits) for one in looks]
        return Turn(
            self.source,
            len(self.turns),
            tuple(look.level.label for look in looks),
            np.array([evaluation.iou(mask, self.truth) for mask in found]),
            zoom.features(looks),
            same.index(True) if True in same else 0,
        )


def watch(images: list[evaluation.Labelled], model: Any, limit: int, clicks: int, cache: Any
          ) -> Iterator[Turn]:  # fmt: skip
    """Click on a fixed choice of objects of each source; every turn of every object."""
    options = evaluation.ClickOptions(limit=limit)
    chosen = evaluation.choose(images, options, evaluation.ClickReport(""))
    for labelled, ids in chosen.items():
        scene = evaluation.open_plain(labelled.path)
        segmenter = Segmenter(scene, model, cache=cache)
        raster = evaluation.read_raster(labelled.raster)
        for number in ids:
            truth = raster == number
            rng = np.random.default_rng([0, number, *labelled.path.stem.encode()])
            first = evaluation.first_click(truth, rng, "jittered")
            watched = Watched(segmenter, truth, labelled.source)
            evaluation.converse(watched, truth, first, clicks)
            yield from watched.turns


Rule = Callable[[Turn], int]


def rules() -> dict[str, Rule]:
    """Ways to choose a look."""
    return {
        "chosen": lambda t: t.chosen,
        "the best there was": lambda t: int(t.ious.argmax()),
        "predicted IoU alone": lambda t: int(t.features["predicted_iou"].argmax()),
        "agreement alone": lambda t: int(t.features["agreement"].argmax()),
        "native only": _native,
    }


def _native(turn: Turn) -> int:
    native = np.array([level == "native" for level in turn.levels])
    return int(np.argmax(np.where(native, turn.features["predicted_iou"], -1)))


def by_weights(weights: dict[str, float]) -> Rule:
    """The rule of `zoom.scores` with other weights."""
    return lambda t: int(np.argmax(sum(weights[k] * t.features[k] for k in weights)))


def mean_iou(turns: list[Turn], turn: int, rule: Rule) -> float:
    """Mean over sources."""
    sources: dict[str, list[float]] = {}
    for one in turns:
        if one.turn == turn:
            sources.setdefault(one.source, []).append(float(one.ious[rule(one)]))
    return float(np.mean([np.mean(v) for v in sources.values()])) if sources else float("nan")


def fit(turns: list[Turn], leave_out: str | None = None) -> dict[str, float]:
    """Weights of the score: ridge regression of the IoU on its standardised parts, first clicks."""
    kept = [t for t in turns if t.turn == 0 and t.source != leave_out]
    x = np.concatenate([np.stack([t.features[k] for k in zoom.WEIGHTS], 1) for t in kept])
    y = np.concatenate([t.ious for t in kept])
    spread = x.std(0) + 1e-6
    scaled = (x - x.mean(0)) / spread
    parts = scaled.T @ scaled + RIDGE * np.eye(x.shape[1])
    found = np.linalg.solve(parts, scaled.T @ (y - y.mean())) / spread
    return {k: round(float(v), 3) for k, v in zip(zoom.WEIGHTS, found, strict=True)}


def told(turns: list[Turn], extra: dict[str, Rule]) -> dict[str, list[float]]:
    """IoU of every rule at the reported turns; printed as a table."""
    figures = {}
    for name, rule in {**rules(), **extra}.items():
        figures[name] = [round(mean_iou(turns, turn, rule), 4) for turn in TURNS]
        print(f"{name:28s}" + "".join(f"{value:8.3f}" for value in figures[name]))
    return figures


def main() -> None:
    """Parse, watch, fit, tell."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--limit", type=int, default=15, help="objects of each source")
    parser.add_argument("--clicks", type=int, default=5)
    parser.add_argument("--fit", action="store_true", help="fit the weights on part train")
    parser.add_argument("--cache", type=Path, help="folder for encoded frames")
    args = parser.parse_args()
    import geosam2_model

    model, split = geosam2_model.load(args.model), json.loads(args.split.read_text())
    cache = EmbeddingCache(folder=args.cache)
    started, extra, line = time.perf_counter(), {}, {}
    labelled = [f for f in args.folders if f.name in split and (f / "images").is_dir()]

    def part(name: str) -> list[evaluation.Labelled]:
        return evaluation.find_labelled(
            labelled, keep=lambda source, stem: split[source].get(stem) == name
        )

    if args.fit:
        train = list(watch(part("train"), model, args.limit, 1, cache))
        weights = fit(train)
        print(f"WEIGHTS = {json.dumps(weights)}")
        extra = {"fitted on train": by_weights(weights)}
        for name in weights:
            less = {k: v for k, v in weights.items() if k != name}
            extra[f"  without {name}"] = by_weights(less)
        line["weights"] = weights
    dev = list(watch(part("dev"), model, args.limit, args.clicks, cache))
    print(f"{'mean IoU over sources':28s}" + "".join(f"{t + 1:>4d} cl." for t in TURNS))
    line |= {"iou": told(dev, extra), "objects": sum(t.turn == 0 for t in dev)}
    line["seconds"] = round(time.perf_counter() - started)
    print(json.dumps({"model": model.name, "weights_file": args.model, **line}))


if __name__ == "__main__":
    main()
