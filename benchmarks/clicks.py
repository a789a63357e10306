"""How long a click takes: the first one on a place, another one near it, and a correction.

    python benchmarks/clicks.py [--quick] [--models nano tiny]

Clicks on houses of the example scene through the Segmenter, as a user's are: every zoom, nothing
encoded before, nothing kept on disk. A model whose weights are not on this machine is timed with
random ones, which take as long. Last line: JSON, for each model the median seconds of each kind of
click and how many times as fast as the first one the others are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import geosam2
from geosam2.cache import EmbeddingCache
from geosam2.prompts import Prompt
from geosam2.segmenter import Segmenter

SCENE = Path(__file__).parent.parent / "examples" / "banepa.tif"
PLACES = ((1080, 762), (128, 400), (2000, 1500), (1500, 3000), (2500, 700), (700, 2200))
NEAR = 12
"""Pixels between a click and the next one near it."""


def network(name: str) -> Any:
    """A model, with random weights if its own would have to be fetched."""
    import geosam2_model
    import torch
    from geosam2_model.config import VARIANTS

    if name == "nano":
        return geosam2_model.load("nano")
    torch.manual_seed(0)
    return geosam2_model.SAM2(VARIANTS[f"sam2.1_{name}"]).eval()


def seconds(model: Any, places: list[tuple[int, int]]) -> dict[str, list[float]]:
    """Wall seconds of each kind of click at each place."""
    found: dict[str, list[float]] = {"first": [], "near": [], "correction": []}
    scene = geosam2.open_scene(SCENE)
    for place in places:
        segmenter = Segmenter(scene, model, cache=EmbeddingCache(folder=None))
        points = [segmenter.scene.geobox.affine * (place[0] + d, place[1] + d) for d in (0, NEAR)]
        asked = {
            "first": Prompt((points[0],), (1,), crs=scene.crs),
            "near": Prompt((points[1],), (1,), crs=scene.crs),
            "correction": Prompt(tuple(points), (1, 1), crs=scene.crs),
        }
        for kind, prompt in asked.items():
            began = time.perf_counter()
            segmenter.alternatives(prompt, level="auto")
            found[kind].append(time.perf_counter() - began)
    return found


def main() -> None:
    """Time, tell, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two places, nano alone")
    parser.add_argument("--models", nargs="+", default=["nano", "tiny"])
    args = parser.parse_args()
    line: dict[str, Any] = {}
    for name in ["nano"] if args.quick else args.models:
        model = network(name)
        seconds(model, [PLACES[-1]])  # what is made once, made
        took = seconds(model, list(PLACES[: 2 if args.quick else -1]))
        medians = {kind: statistics.median(values) for kind, values in took.items()}
        print(f"{name:8s} " + "  ".join(f"{k} {v:.3f} s" for k, v in medians.items()), flush=True)
        line[name] = {k: round(v, 4) for k, v in medians.items()}
        line[name] |= {
            f"{kind}_vs_first": round(medians["first"] / medians[kind], 2)
            for kind in ("near", "correction")
        }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
