"""Judging a model on videos, and while it pans over objects that are larger than a frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from geosam2.errors import SourceError, import_optional
from geosam2.evaluation import (
    SUFFIXES,
    Labelled,
    Mask,
    boundary_f,
    centre_click,
    check_grid,
    drawn,
    on_grid,
    open_plain,
    read_raster,
    short_names,
)
from geosam2.quality import mask_iou
from geosam2.tiling import FrameGrid, FrameIndex

if TYPE_CHECKING:
    from geosam2_model import SAM2

    from geosam2.levels import Window
    from geosam2.scene import Scene
    from geosam2.sources.bands import Stretch

VISIBLE = 64
"""Frames that show fewer pixels of an object are not judged."""


def find_videos(folders: Sequence[Path]) -> Iterator[Path]:
    """Folders with frames/ and masks/ among the given ones and those directly in them, each once.

    Raises:
        SourceError: If there is none.
    """
    found = [
        folder
        for given in folders
        for folder in (given, *sorted(p for p in given.iterdir() if p.is_dir()))
        if (folder / "frames").is_dir() and (folder / "masks").is_dir()
    ]
    if not found:
        raise SourceError(f"no frames/ with masks/ beside it in {', '.join(map(str, folders))}")
    yield from short_names(found)


def judge_video(folder: Path, model: SAM2) -> dict[str, float]:
    """J, F and their mean over the objects of the first mask, as DAVIS has them.

    The first mask is given; it and the last frame are not judged. The tolerance of F is DAVIS's,
    0.8 % of the diagonal of a frame. Frames of more than 8 bits all get the first one's stretch:
    with one each, an object would change its brightness from frame to frame.

    Returns:
        Means over objects of their means over frames: "J", "F", "J&F"; and "n" objects.

    Raises:
        SourceError: If frames and masks do not go together.
        MissingDependencyError: If SciPy is not installed.
    """
    from geosam2_model.video_predictor import VideoPredictor

    frames = sorted(p for p in (folder / "frames").iterdir() if p.suffix.lower() in SUFFIXES)
    masks = {p.stem: p for p in (folder / "masks").iterdir() if p.suffix.lower() in SUFFIXES}
    missing = [p.stem for p in frames if p.stem not in masks]
    if missing or len(frames) < 3:
        raise SourceError(
            f"{folder}: {len(frames)} frames, {len(missing)} of them without a mask of the same "
            "name; at least 3 frames are needed, each with a mask"
        )
    truths = [read_raster(masks[p.stem]) for p in frames]
    ids = [int(n) for n in np.unique(truths[0]) if n]
    if not ids:
        raise SourceError(
            f"{folder}: the mask of the first frame, {frames[0].stem}, is empty: "
            "it must show the objects to follow"
        )
    stretch = open_plain(frames[0]).stretch
    pictures = [picture(p, stretch) for p in frames]
    for path, pixels, truth in zip(frames, pictures, truths, strict=True):
        check_grid(masks[path.stem], truth, pixels.shape[:2])
    predictor = VideoPredictor(model, pictures)
    for n in ids:
        predictor.prompt(0, n, mask=truths[0] == n)
    regions: dict[int, list[float]] = {n: [] for n in ids}
    outlines: dict[int, list[float]] = {n: [] for n in ids}
    for result in predictor.track():
        if not 0 < result.frame < len(frames) - 1:
            continue
        for name, mask in zip(result.object_ids, result.masks.numpy(), strict=True):
            number = int(str(name))
            truth = truths[result.frame] == number
            regions[number].append(mask_iou(mask, truth))
            outlines[number].append(boundary_f(mask, truth))
    J = float(np.mean([np.mean(v) for v in regions.values()]))
    F = float(np.mean([np.mean(v) for v in outlines.values()]))
    return {"J": round(J, 4), "F": round(F, 4), "J&F": round((J + F) / 2, 4), "n": len(ids)}


def picture(path: Path, stretch: Stretch) -> npt.NDArray[np.uint8]:
    """A frame as (H, W, 3) uint8, any format and bit depth that a scene may have."""
    scene = open_plain(path, stretch)
    return np.ascontiguousarray(scene.read(scene.geobox).pixels.transpose(1, 2, 0))


def judge_panning(
    images: Sequence[Labelled], model: SAM2, frames: int, limit: int | None, seed: int
) -> dict[str, Any]:
    """Pan over objects that several frames show, against clicking each of these frames.

    Objects that the image's edge cuts count too: nearly every river and road is.

    Args:
        images: From `find_labelled`.
        model: The network.
        frames: At most so many for each object.
        limit: Objects of each source, chosen at random; None takes all.
        seed: Of the choice of objects and of the bootstrap.

    Returns:
        Mean IoU in the frames after the first when panned over ("iou_pan") and when each was
        clicked by itself ("iou_single"), the ratio of these means ("kept") with its interval over
        objects ("kept_interval"), the share of the objects' pixels on frames that panning accepted
        ("reached"), and the number of objects that were judged ("n"). None where there is nothing
        to divide by.

    Raises:
        SourceError: If an image and its raster differ in size.
        MissingDependencyError: If SciPy is not installed.
    """
    pairs, reached = [], []
    for labelled, n in drawn(_larger_than_a_frame(images, _side(model)), limit, seed):
        scene, truth = open_plain(labelled.path), read_raster(labelled.raster) == n
        check_grid(labelled.raster, truth, scene.shape)
        found, share = _pan_and_click(scene, truth, model, frames)
        reached.append(share)
        if found:
            panned, single = np.mean(found, axis=0)
            pairs.append((float(panned), float(single)))
    return {
        "iou_pan": _mean([panned for panned, _ in pairs]),
        "iou_single": _mean([single for _, single in pairs]),
        "kept": _rounded(ratio_of_means(pairs)),
        "kept_interval": [_rounded(x) for x in ratio_interval(pairs, seed=seed)],
        "reached": _mean(reached),
        "n": len(pairs),
    }


def ratio_of_means(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Mean of the first over mean of the second; None if that is 0 or there are no pairs.

    >>> ratio_of_means([(0.4, 0.5), (0.5, 0.0)]), ratio_of_means([(0.5, 0.0)])
    (1.8, None)
    """
    below = sum(second for _, second in pairs)
    return float(sum(first for first, _ in pairs) / below) if below > 0 else None


def ratio_interval(
    pairs: Sequence[tuple[float, float]], *, seed: int = 0, rounds: int = 2000, share: float = 0.95
) -> tuple[float | None, float | None]:
    """Bootstrap confidence interval of `ratio_of_means`, (None, None) if it has no value.

    Each round draws pairs and divides their means, as the figure itself does: the mean of ratios
    is another figure, and a single object that was hardly found when clicked would decide it.
    Rounds that happen to draw only such with 0 below are left out.
    """
    if ratio_of_means(pairs) is None:
        return None, None
    picks = np.random.default_rng(seed).integers(len(pairs), size=(rounds, len(pairs)))
    above, below = np.asarray(pairs)[picks].sum(1).T
    some = below > 0
    low, high = np.quantile(above[some] / below[some], [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _side(model: SAM2) -> int:
    return int(model.config.image_size)


def _larger_than_a_frame(images: Sequence[Labelled], size: int) -> Iterator[tuple[Labelled, int]]:
    ndimage: Any = import_optional("scipy.ndimage", "evaluate")
    for labelled in images:
        boxes = ndimage.find_objects(read_raster(labelled.raster))
        for n, box in enumerate(boxes, start=1):
            if box is not None and max(side.stop - side.start for side in box) > size:
                yield labelled, n


def _pan_and_click(
    scene: Scene, truth: Mask, model: SAM2, frames: int
) -> tuple[list[tuple[float, float]], float]:
    """(IoU when panned, IoU when clicked) of each frame after the first; share covered."""
    from geosam2.cache import EmbeddingCache
    from geosam2.masklet import PanOptions
    from geosam2.prompts import Prompt
    from geosam2.segmenter import Segmenter

    segmenter = Segmenter(scene, model, cache=EmbeddingCache(folder=None))
    affine = scene.geobox.affine
    x, y, _ = centre_click(truth)
    prompt = Prompt((affine * (x, y),))
    run = segmenter.start(prompt, level=0, options=PanOptions(max_frames=frames))
    for _ in run:
        pass
    found = on_grid(run.masklet, scene)
    visited = {report.index for report in run.masklet.frames}
    grid = segmenter.grid(0)
    home = grid.index_at(*prompt.anchor)
    pairs, covered = [], np.zeros_like(truth)
    for index in grid.indices():
        part = _rows_and_columns(grid.window(index), scene)
        if index not in visited:
            continue
        covered[part] = True
        if truth[part].sum() < VISIBLE or index == home:
            continue
        cx, cy, _ = centre_click(_of_frame(truth, grid, index, scene))
        again = segmenter.predict(replace(prompt, points=(affine * (cx, cy),)), level=0)[0]
        alone = on_grid(again.masklet, scene)
        pairs.append((mask_iou(found[part], truth[part]), mask_iou(alone[part], truth[part])))
    return pairs, float((truth & covered).sum() / truth.sum())


def _of_frame(truth: Mask, grid: FrameGrid, index: FrameIndex, scene: Scene) -> Mask:
    """The part of the truth where a click is answered on this frame: its core, if it is there."""
    for window in (grid.core(index), grid.window(index)):
        part = _rows_and_columns(window, scene)
        own = np.zeros_like(truth)
        own[part] = truth[part]
        if own.any():
            break
    return own


def _rows_and_columns(window: Window, scene: Scene) -> tuple[slice, slice]:
    area = scene.window(scene.levels[0])
    top, left = window.row - area.row, window.col - area.col
    return (
        slice(max(0, top), max(0, top + window.height)),
        slice(max(0, left), max(0, left + window.width)),
    )
