"""Pictures of what a model is bad at: the objects of a click report that came out worst."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geosam2.evaluation import (
    Click,
    ClickReport,
    Labelled,
    Mask,
    OnScene,
    Verdict,
    converse,
    first_click,
    open_plain,
    randomness,
    read_raster,
)
from geosam2.files import whole
from geosam2.quality import mask_iou

if TYPE_CHECKING:
    from geosam2_model import SAM2

TURNS = (1, 3)
"""Answers are drawn after so many clicks."""
MARGIN = 0.6
"""Share of the object's and the answers' box that is shown around it."""


@dataclass(frozen=True)
class Answered:
    """What was said to some clicks on one object."""

    clicks: tuple[Click, ...]
    found: Mask
    """(H, W) of the image."""


def worst(report: ClickReport, per_source: int = 3) -> list[Verdict]:
    """The objects of each source with the lowest IoU after one click, worst first."""
    sources: dict[str, list[Verdict]] = {}
    for verdict in report.verdicts.get("model", []):
        sources.setdefault(verdict.source, []).append(verdict)
    return [
        verdict
        for name in sorted(sources)
        for verdict in sorted(sources[name], key=lambda v: v.ious[0])[:per_source]
    ]


def draw(
    verdicts: Sequence[Verdict], images: Sequence[Labelled], model: SAM2, path: Path, seed: int = 0
) -> None:
    """A sheet of pictures: a column an object, a row for each of `TURNS`.

    The clicks are those of `judge_clicks` with the same seed on the whole scene.

    Args:
        verdicts: From `worst`.
        images: Those that were judged.
        model: The network.
        path: .png or .jpg; replaced in one step.
        seed: Of the report.
    """
    from matplotlib.figure import Figure

    known = {(labelled.path, labelled.human): labelled for labelled in images}
    chosen = [(v, known[key]) for v in verdicts if (key := (v.image, v.human)) in known]
    figure = Figure(figsize=(1.9 * max(len(chosen), 1), 2.1 * len(TURNS)), layout="constrained")
    axes = figure.subplots(len(TURNS), max(len(chosen), 1), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for column, (verdict, labelled) in enumerate(chosen):
        pixels, truth, answers = _asked(verdict, labelled, model, seed)
        window = _window(np.logical_or.reduce([truth, *(a.found for a in answers)]))
        for axis, answered in zip(axes[:, column], answers, strict=False):
            _paint(axis, pixels, truth, answered, window)
        axes[0, column].set_title(
            f"{_short(verdict.source)}\n{_said(answers[0], truth)}", fontsize=7
        )
        for axis, answered in zip(axes[1:, column], answers[1:], strict=False):
            axis.set_title(_said(answered, truth), fontsize=7)
    with whole(path) as partial:
        figure.savefig(partial, dpi=110, format=path.suffix.lstrip(".").lower())


def _short(source: str) -> str:
    """As much of a source's name as fits: a path's end, a name's beginning."""
    return source[-14:] if "/" in source else source[:14]


def _said(answered: Answered, truth: Mask) -> str:
    count = len(answered.clicks)
    return f"{count} click{'s' * (count > 1)}: {mask_iou(answered.found, truth):.2f}"


def _asked(
    verdict: Verdict, labelled: Labelled, model: SAM2, seed: int
) -> tuple[Any, Mask, list[Answered]]:
    """Pixels (H, W, 3), truth, and the answers after each of `TURNS`."""
    scene = open_plain(labelled.path)
    truth = read_raster(labelled.raster) == verdict.number
    first = first_click(truth, randomness(labelled, verdict.number, seed), "jittered")
    asked, answers = OnScene(scene, model), []

    def listening(clicks: Sequence[Click]) -> Mask:
        answers.append(Answered(tuple(clicks), asked(clicks)))
        return answers[-1].found

    converse(listening, truth, first, max(TURNS))
    pixels = scene.read(scene.geobox).pixels.transpose(1, 2, 0)
    return pixels, truth, [a for a in answers if len(a.clicks) in TURNS]


def _window(shown: Mask) -> tuple[slice, slice]:
    """A square around everything that is to be seen."""
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    middle = [(int(n[0]) + int(n[-1]) + 1) / 2 for n in (rows, columns)]
    extent = max(int(n[-1] - n[0]) + 1 for n in (rows, columns))
    half = max(12.0, extent * (1 + MARGIN) / 2)
    return tuple(_side(m, half, size) for m, size in zip(middle, shown.shape, strict=True))  # type: ignore[return-value]


def _side(middle: float, half: float, size: int) -> slice:
    return slice(max(0, int(middle - half)), min(size, int(middle + half) + 1))


def _paint(
    axis: Any, pixels: Any, truth: Mask, answered: Answered, window: tuple[slice, slice]
) -> None:
    rows, columns = window
    axis.imshow(pixels[window], interpolation="nearest")
    for mask, colour in ((truth, "lime"), (answered.found, "magenta")):
        if mask[window].any():
            axis.contour(mask[window], levels=[0.5], colors=colour, linewidths=1)
    for x, y, label in _inside(answered.clicks, window):
        axis.plot(x - columns.start - 0.5, y - rows.start - 0.5, "o", markersize=4,
                  color="yellow" if label else "red", markeredgecolor="black")  # fmt: skip


def _inside(clicks: Sequence[Click], window: tuple[slice, slice]) -> Iterator[Click]:
    rows, columns = window
    for click in clicks:
        if columns.start <= click[0] < columns.stop and rows.start <= click[1] < rows.stop:
            yield click
