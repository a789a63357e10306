"""What choosing the zoom of a click is worth, and the weights of its score fitted anew.

    python benchmarks/zoom.py ../shared/data/*/ --split ../shared/data/split.json [--fit] [--quick]

Clicks on objects as a user would, nothing told about their size, and notes what every zoom answered
at every click. Prints, as the mean over sources of the IoU: what was chosen, the best that any zoom
had, and what simpler rules would have chosen.

`--fit` fits `geosam2.zoom.WEIGHTS` to first clicks on part "train" and made-up scenes, and prints
the line to paste. What it makes as large as can be is the IoU of what would be chosen: the mean of
the masks of a click, weighted by the softmax of their scores. Told on part "train" and "dev", also
for each source with weights that were fitted to the others alone. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geosam2 import evaluation, testing, zoom
from geosam2.cache import EmbeddingCache
from geosam2.prompts import Prompt
from geosam2.quality import mask_iou
from geosam2.segmenter import FrameMask, Segmenter

TURNS = (0, 2, 4)
STEPS, SHRINK = 200, 0.02
MADE = "made up"


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


class Watching(Segmenter):
    """A Segmenter that keeps what every zoom said to the last prompt."""

    seen: list[FrameMask]

    def looks(self, prompts: Sequence[Prompt]) -> list[list[FrameMask]]:
        """As the Segmenter's."""
        found = super().looks(prompts)
        self.seen = found[-1]
        return found


class Watched:
    """Answers clicks through a Segmenter and notes what every zoom said."""

    def __init__(self, segmenter: Watching, truth: evaluation.Mask, source: str) -> None:
        self.segmenter, self.truth, self.source = segmenter, truth, source
        self.turns: list[Turn] = []

    def __call__(self, clicks: Any) -> evaluation.Mask:
        scene = self.segmenter.scene
        points = tuple(scene.geobox.affine * (x, y) for x, y, _ in clicks)
        prompt = Prompt(points, tuple(label for _, _, label in clicks), crs=scene.crs)
        (best,) = self.segmenter.predict(prompt, level="auto")
        if looks := self.segmenter.seen:  # else too far apart for any window
            chosen = next(n for n, look in enumerate(looks) if look.logits is best.logits)
            self.turns.append(self._turn(looks, chosen, len(clicks) - 1))
        return evaluation.on_grid(best.masklet, scene)

    def _turn(self, looks: list[FrameMask], chosen: int, turn: int) -> Turn:
        scene = self.segmenter.scene
        found = [evaluation.on_grid(look.masklet, scene) for look in looks]
        return Turn(
            self.source,
            turn,
            tuple(look.level.label for look in looks),
            np.array([mask_iou(mask, self.truth) for mask in found]),
            zoom.features(looks),
            chosen,
        )


def watch(images: list[evaluation.Labelled], model: Any, limit: int, clicks: int, cache: Any
          ) -> Iterator[Turn]:  # fmt: skip
    """Click on a fixed choice of objects of each source; every turn of every object."""
    options = evaluation.ClickOptions(limit=limit)
    chosen = evaluation.choose(images, options, evaluation.ClickReport(""))
    for labelled, ids in chosen.items():
        scene = evaluation.open_plain(labelled.path)
        segmenter = Watching(scene, model, cache=cache)
        raster = evaluation.read_raster(labelled.raster)
        for number in ids:
            truth = raster == number
            rng = evaluation.randomness(labelled, number, options.seed)
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
    """The rule of `zoom.scores` with other weights, without what it says of masks that are cut."""
    return lambda t: int(np.argmax(sum(weights[k] * t.features[k] for k in weights)))


def mean_iou(turns: list[Turn], turn: int, rule: Rule) -> float:
    """Mean over sources."""
    sources: dict[str, list[float]] = {}
    for one in turns:
        if one.turn == turn:
            sources.setdefault(one.source, []).append(float(one.ious[rule(one)]))
    return float(np.mean([np.mean(v) for v in sources.values()])) if sources else float("nan")


def made_up(folder: Path, scenes: int) -> Iterator[evaluation.Labelled]:
    """Fields, lakes, woods and buildings whose outlines are known."""
    for seed in range(scenes):
        made = testing.synthetic_scene(seed, 640)
        image, raster = folder / f"{seed}.tif", folder / f"{seed}_ids.tif"
        testing.write_geotiff(image, made.pixels, made.geobox)
        testing.write_geotiff(raster, made.labels, made.geobox, overviews=False)
        yield evaluation.Labelled(MADE, image, raster, human=False)


def fit(turns: list[Turn]) -> dict[str, float]:
    """Weights of the score that make the expected IoU of the chosen mask as large as can be.

    Each source counts the same. The sizes of the weights add up to 1.
    """
    import torch

    sources = [turn.source for turn in turns]
    share = torch.tensor([1 / sources.count(source) for source in sources])
    tables = [np.stack([t.features[k] for k in zoom.WEIGHTS], 1) for t in turns]
    spread = torch.tensor(np.concatenate(tables).std(0) + 1e-6)
    length = max(len(table) for table in tables)
    x = torch.stack([_padded(table, length) for table in tables]) / spread
    ious = torch.stack([_padded(turn.ious, length) for turn in turns])
    absent = torch.stack([_padded(np.ones(len(table)), length) for table in tables]) == 0
    weights = torch.zeros(len(zoom.WEIGHTS), requires_grad=True)
    optimiser = torch.optim.Adam([weights], lr=0.05)
    for _ in range(STEPS):
        chance = (x @ weights).masked_fill(absent, -1e4).softmax(1)
        expected = ((chance * ious).sum(1) * share).sum() / share.sum()
        optimiser.zero_grad()
        (SHRINK * (weights**2).sum() - expected).backward()
        optimiser.step()
    found = (weights / spread).detach().numpy()
    found /= np.abs(found).sum()
    return {k: round(float(v), 3) for k, v in zip(zoom.WEIGHTS, found, strict=True)}


def _padded(values: np.ndarray, length: int) -> Any:
    import torch

    wider = [(0, length - len(values)), *[(0, 0)] * (values.ndim - 1)]
    return torch.from_numpy(np.pad(values, wider).astype(np.float32))


def without_own(turns: list[Turn]) -> Rule:
    """The rule for each source whose weights were fitted to the other sources."""
    own = {
        source: by_weights(fit([t for t in turns if t.source != source]))
        for source in {t.source for t in turns}
    }
    everybodys = by_weights(fit(turns))  # for sources that were not fitted to
    return lambda turn: own.get(turn.source, everybodys)(turn)


def told(turns: list[Turn], extra: dict[str, Rule]) -> dict[str, list[float]]:
    """IoU of every rule at the reported turns that were made; printed as a table."""
    figures, made = {}, {turn.turn for turn in turns}
    for name, rule in {**rules(), **extra}.items():
        means = [mean_iou(turns, turn, rule) for turn in TURNS if turn in made]
        figures[name] = [round(value, 4) for value in means]
        print(f"{name:28s}" + "".join(f"{value:8.3f}" for value in figures[name]))
    return figures


def main() -> None:
    """Parse, watch, fit, tell."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--limit", type=int, default=15, help="objects of each source")
    parser.add_argument("--train", type=int, default=30, help="the same, to fit the weights to")
    parser.add_argument("--clicks", type=int, default=5)
    parser.add_argument("--fit", action="store_true", help="fit the weights anew")
    parser.add_argument("--cache", type=Path, help="folder for encoded frames")
    parser.add_argument("--quick", action="store_true", help="4 objects of each source at most")
    args = parser.parse_args()
    if args.quick:
        args.limit, args.train = min(args.limit, 4), min(args.train, 4)
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
        with tempfile.TemporaryDirectory() as folder:
            made = list(made_up(Path(folder), args.train))
            train = list(watch(part("train") + made, model, args.train, 1, cache))
        weights = fit(train)
        print(f"WEIGHTS = {json.dumps(weights)}")
        extra = {"fitted": by_weights(weights), "fitted to others": without_own(train)}
        for name in weights:
            less = {k: v for k, v in weights.items() if k != name}
            extra[f"  without {name}"] = by_weights(less)
        line["weights"] = weights
        print("first clicks on train")
        line["train"] = told(train, extra)
    dev = list(watch(part("dev"), model, args.limit, args.clicks, cache))
    print(f"{'mean IoU over sources':28s}" + "".join(f"{t + 1:>4d} cl." for t in TURNS))
    line |= {"iou": told(dev, extra), "objects": sum(t.turn == 0 for t in dev)}
    line["seconds"] = round(time.perf_counter() - started)
    print(json.dumps({"model": model.name, "weights_file": args.model, **line}))


if __name__ == "__main__":
    main()
