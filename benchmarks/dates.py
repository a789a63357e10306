"""One object through the dates of a stack: the memory, a click at each date, or neither.

    python benchmarks/dates.py [--quick] [--model NAME]

Water near Pucallpa on eight Landsat composites, 1985 to 2020: oxbow lakes that stay, river bends
that move by their own width. A labelled object is clicked once, in its middle, at one of three
dates, and its outline is looked for at later ones, as far as the labels show it (the label of the
next date that shares most with it, at an IoU of at least 0.3). Four ways, in the same run:

- track: what `geosam2.track` gives;
- memory: the same without a click of its own at each date;
- click: the first click asked again at each date, without any memory;
- still: the first outline for all dates.

The last line is JSON: mean IoU of each with the labels, and the share of the dates at which it is
below 0.25, where the object is lost.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from rasterio.features import rasterize

from geosam2 import regions, tracking
from geosam2.errors import PromptError
from geosam2.prompts import Prompt, apply_affine
from geosam2.quality import mask_iou
from geosam2.stack import Stack, open_stack

DATA = Path(__file__).parent.parent.parent / "shared" / "data" / "ts_landsat_pucallpa"
BANDS = [1, 2, 3]
"""Short-wave infrared, near infrared, red: water is dark in the first two."""
STARTS = (0, 2, 4)
"""Dates that are clicked at."""
SAME = 0.3
LOST = 0.25

Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Labels:
    """What is known of a stack."""

    dates: list[np.ndarray[Any, Any]]
    """(H, W) ids at each date; the same object has another id at each."""
    transform: Any
    """Of all of them."""

    def chains(self, start: int) -> Iterator[dict[int, Mask]]:
        """Masks of each object of a date, at that date and as far as it is found at later ones."""
        for number in np.unique(self.dates[start])[1:]:
            found = {start: self.dates[start] == number}
            for date in range(start + 1, len(self.dates)):
                before, labels = found[date - 1], self.dates[date]
                others = {mask_iou(before, labels == n): n for n in np.unique(labels[before]) if n}
                best = max(others, default=0.0)
                if best < SAME:
                    break
                found[date] = labels == others[best]
            if len(found) > 1:
                yield found

    def mask_of(self, outline: shapely.Geometry) -> Mask:
        """Pixels of an outline."""
        shape = self.dates[0].shape
        if outline is None or outline.is_empty:
            return np.zeros(shape, bool)
        return rasterize([outline], shape, transform=self.transform).astype(bool)


def read(images: Path) -> tuple[Stack, Labels]:
    """The stack and its labels."""
    files = sorted(images.glob("*.tif"))
    labels = []
    for path in files:
        with rasterio.open(images.parent / "instances_derived" / path.name) as file:
            labels.append(file.read(1))
            transform = file.transform
    return open_stack(files, bands=BANDS), Labels(labels, transform)


def middle(mask: Mask, transform: Any) -> tuple[float, float]:
    """The place deepest inside, in map coordinates."""
    ((row, col),) = regions.deepest(mask, count=1)
    return apply_affine(transform, col + 0.5, row + 0.5)


def outlines(tracker: tracking.Tracker, prompt: Prompt, start: int) -> dict[int, shapely.Geometry]:
    """What is followed, at each later date."""
    found = {}
    for seen in tracker.follow(prompt, start):
        if seen.number < start:
            break
        found[seen.number] = None if seen.masklet is None else tracking.outline_of(seen.masklet)
    return found


def clicked(tracker: tracking.Tracker, prompt: Prompt, date: int) -> shapely.Geometry | None:
    """What the same click shows at another date."""
    try:
        return tracking.outline_of(tracker.click(date, prompt))
    except PromptError:  # on nodata at that date
        return None


class MemoryAlone(tracking.Tracker):
    """Asks no click at later dates."""

    def agreeing(self, *_: Any) -> tuple[None, float]:
        """No click agrees."""
        return None, float("nan")


def judge(model: str, starts: tuple[int, ...], most: int | None) -> dict[str, float]:
    """Mean IoU of each way, and how often it loses the object."""
    stack, labels = read(DATA / "images")
    both = tracking.Tracker(stack, model)
    alone = MemoryAlone(stack, both.segmenters[0].model, cache=both.segmenters[0].encoder.cache)
    scores: dict[str, list[float]] = defaultdict(list)
    for start in starts:
        for truth in list(labels.chains(start))[:most]:
            point = middle(truth[start], labels.transform)
            prompt = Prompt((point,), (1,), crs=stack.scenes[0].crs)
            found = {"track": outlines(both, prompt, start)}
            found["memory"] = outlines(alone, prompt, start)
            later = [date for date in truth if date != start]
            found["click"] = {date: clicked(both, prompt, date) for date in later}
            found["still"] = dict.fromkeys(later, found["track"][start])
            line = {}
            for way, shapes in found.items():
                line[way] = [mask_iou(labels.mask_of(shapes[date]), truth[date]) for date in later]
                scores[way] += line[way]
            said = ", ".join(f"{way} {np.mean(values):.2f}" for way, values in line.items())
            print(f"{stack.dates[start]}, {truth[start].sum()} px, {len(later)} dates: {said}")
    figures: dict[str, float] = {"n": len(scores["track"])}
    for way, values in scores.items():
        figures[way] = round(float(np.mean(values)), 3)
        figures[f"{way}_lost"] = round(float((np.array(values) < LOST).mean()), 3)
    return figures


def main() -> None:
    """Judge a model, a line for each object; the last line is JSON."""
    parser = argparse.ArgumentParser(description="One object through the dates of a stack.")
    parser.add_argument("--quick", action="store_true", help="three objects of one date")
    parser.add_argument("--model", default="nano", help="name or path of weights")
    given = parser.parse_args()
    starts, most = (STARTS[:1], 3) if given.quick else (STARTS, None)
    print(json.dumps(judge(given.model, starts, most)))


if __name__ == "__main__":
    main()
