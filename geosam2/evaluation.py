"""How good a model is: clicks on objects, videos, and panning, against what people drew.

The simulated person clicks inside the object first, then where the answer is most wrong. The
default way is a user's: through `Segmenter` on the whole scene, levels and all, with nothing told
about the object's size. `crop="object"` judges the bare network on crops around each object.

References:
    Clicks and their number: Sofiiuk et al. 2022 (RITM). J and F: Perazzi et al. 2016 (DAVIS).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from geosam2.errors import GeoreferenceError, SourceError, import_optional
from geosam2.quality import mask_iou

if TYPE_CHECKING:
    from geosam2_model import SAM2

    from geosam2.masklet import Masklet
    from geosam2.scene import Scene, StretchLike

Mask = npt.NDArray[np.bool_]
Click = tuple[float, float, int]
"""(x, y, label): pixels of the image, corners at integers; label 1 foreground, 0 background."""

SMALLEST = 20
"""Objects of fewer pixels are left out, and counted."""
SHOWN = 0.5
"""Objects of which less than this share lies on pixels with data are left out, and counted."""
SUFFIXES = (".tif", ".tiff", ".jpg", ".jpeg", ".png")
LARGEST_CROP = 512
"""Larger crops around an object are shrunk to this before anybody sees them."""
SURROUNDINGS = 2.5
"""The boundary of an object is judged in a square so many times as long as its box."""
REPORTED = (1, 3, 5)
"""IoU is given after so many clicks."""
GOALS = (0.85, 0.90)
"""The number of clicks until these IoUs are reached is given."""


# -- metrics


def outline(mask: Mask) -> Mask:
    """Pixels whose right, lower or lower-right neighbour differs, as in DAVIS."""
    edges = np.zeros_like(mask)
    edges[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edges[:-1] |= mask[:-1] ^ mask[1:]
    edges[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edges


def boundary_f(
    found: Mask, truth: Mask, tolerance: float = 0.008, *, diagonal: float | None = None
) -> float:
    """Boundary measure F of DAVIS, which videos are judged by.

    Args:
        found: (H, W).
        truth: (H, W).
        tolerance: Outlines may differ by this share of the diagonal, rounded up to pixels.
        diagonal: In pixels; None takes the image's, as DAVIS does.
    """
    distances = _ndimage().distance_transform_edt
    reach = np.ceil(tolerance * (np.hypot(*truth.shape) if diagonal is None else diagonal))
    ours, theirs = outline(found), outline(truth)
    box = _box(ours | theirs)
    ours, theirs = ours[box], theirs[box]  # distances between them do not change
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    precision = float((distances(~theirs)[ours] <= reach).mean())
    recall = float((distances(~ours)[theirs] <= reach).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary_f_of_object(found: Mask, truth: Mask) -> float:
    """Boundary measure F in a square around the object, which clicks are judged by.

    By DAVIS's rule the tolerance would grow with the scene around the object: 3 px in a picture of
    200 px, 32 px in a scene of 2,800 px, where nearly any outline of a house passes. Here it is
    0.8 % of the diagonal of a square that is `SURROUNDINGS` times as long as the object's box,
    about 3 % of the object's length, so that figures of different sources can be compared. The
    square is as large where it goes beyond the image. What was found outside of it is not judged:
    IoU tells of that.

    Args:
        found: (H, W) of the image.
        truth: (H, W) of the image; not empty.

    >>> truth = np.zeros((400, 400), bool)
    >>> truth[40:60, 40:60] = True
    >>> found = np.roll(truth, 3, axis=1)  # 3 of its 20 columns aside
    >>> round(boundary_f_of_object(found, truth), 2), boundary_f(found, truth)
    (0.5, 1.0)
    """
    square = surroundings(truth)
    part = square.inside(truth.shape)
    return boundary_f(found[part], truth[part], diagonal=float(np.hypot(square.side, square.side)))


def clicks_needed(ious: Sequence[float], goal: float) -> int:
    """Number of clicks until `goal`, or as many as were made (NoC).

    >>> clicks_needed([0.5, 0.9, 0.95], 0.85), clicks_needed([0.1, 0.2], 0.85)
    (2, 2)
    """
    return next((n for n, value in enumerate(ious, start=1) if value >= goal), len(ious))


def interval(
    values: Sequence[float], *, seed: int = 0, rounds: int = 2000, share: float = 0.95
) -> tuple[float, float]:
    """Bootstrap confidence interval of the mean."""
    if not len(values):
        return float("nan"), float("nan")
    picks = np.random.default_rng(seed).integers(len(values), size=(rounds, len(values)))
    means = np.asarray(values)[picks].mean(1)
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


# -- the simulated person


def _box(mask: Mask) -> tuple[slice, slice]:
    """Rows and columns around a mask; everything if it is empty."""
    if not mask.any():
        return slice(None), slice(None)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def depths(mask: Mask) -> npt.NDArray[np.float64]:
    """Distance of each pixel to the outside, the image's border being outside."""
    found, box = np.zeros(mask.shape), _box(mask)
    found[box] = _ndimage().distance_transform_edt(np.pad(mask[box], 1))[1:-1, 1:-1]
    return found


def _ndimage() -> Any:
    return import_optional("scipy.ndimage", "evaluate")


def first_click(truth: Mask, rng: np.random.Generator, how: Literal["jittered", "centre"]) -> Click:
    """A click in the object: its deepest place, or any of the places at least half as deep."""
    if how == "centre":
        return centre_click(truth)
    deep = depths(truth)
    places = np.argwhere(deep >= 0.5 * deep.max())
    row, column = places[rng.integers(len(places))]
    return float(column) + 0.5, float(row) + 0.5, 1


def centre_click(truth: Mask) -> Click:
    """A click at the object's deepest place; nothing about it is random."""
    return _deepest(depths(truth), 1)


def _deepest(deep: npt.NDArray[np.float64], label: int) -> Click:
    row, column = np.unravel_index(int(deep.argmax()), deep.shape)
    return float(column) + 0.5, float(row) + 0.5, label


def next_click(found: Mask, truth: Mask) -> Click | None:
    """The deepest place of what is missing or of what is too much; None if all is right."""
    missing, extra = depths(truth & ~found), depths(found & ~truth)
    label = int(missing.max() >= extra.max())
    deep = missing if label else extra
    return _deepest(deep, label) if deep.max() else None


class Answerer(Protocol):
    """Whoever turns clicks on one object into a mask."""

    def __call__(self, clicks: Sequence[Click]) -> Mask:
        """(H, W) of the image that the clicks are on; clicks are all made so far."""


def converse(answer: Answerer, truth: Mask, first: Click, count: int) -> tuple[list[float], Mask]:
    """IoU after each of `count` clicks, and the first answer."""
    clicks, ious, found = [first], [], truth
    for turn in range(count):
        found = answer(clicks)
        if turn == 0:
            opening = found
        ious.append(mask_iou(found, truth))
        if len(ious) < count:
            click = next_click(found, truth)
            if click is None:
                ious += [ious[-1]] * (count - len(ious))
                break
            clicks.append(click)
    return ious, opening


# -- what is judged


@dataclass(frozen=True)
class Labelled:
    """One image with its objects."""

    source: str
    """What its folder is called, see `short_names`."""
    path: Path
    """The image."""
    raster: Path
    """Ids on its grid, 0 = none."""
    human: bool
    """Drawn by people; else derived by a program."""


def find_labelled(
    folders: Sequence[Path], *, keep: Callable[[str, str], bool] = lambda source, stem: True
) -> list[Labelled]:
    """Images with rasters of ids in `instances/` or `instances_derived/` beside `images/`.

    Args:
        folders: Each holds `images/`; one that is given twice counts once.
        keep: Asked for each image's folder name (never its path) and file stem.

    Raises:
        SourceError: If a folder has no such pair.
    """
    found = []
    for folder, source in short_names(folders).items():
        pairs = list(_pairs(folder, source))
        if not pairs:
            raise SourceError(
                f"{folder} has no images/ with instances/ or instances_derived/ beside it"
            )
        found += [pair for pair in pairs if keep(_name(folder), pair.path.stem)]
    return found


def short_names(folders: Iterable[Path]) -> dict[Path, str]:
    """What each folder is called in tables: its name, or its path if two have the same name.

    A folder that is given twice, in whatever spelling, is there once.

    >>> list(short_names([Path("a/v1"), Path("b/v1"), Path("b/v2"), Path("./b/v2")]).values())
    ['a/v1', 'b/v1', 'v2']
    """
    once: dict[Path, Path] = {}
    for folder in folders:
        once.setdefault(folder.resolve(), folder)
    times = Counter(map(_name, once.values()))
    return {f: f.as_posix() if times[_name(f)] > 1 else _name(f) for f in once.values()}


def _name(folder: Path) -> str:
    return folder.name or folder.resolve().name  # "." has no name of its own


def _pairs(folder: Path, source: str) -> Iterator[Labelled]:
    images = sorted((folder / "images").glob("*")) if (folder / "images").is_dir() else []
    for path in images:
        for name in ("instances", "instances_derived"):
            raster = folder / name / f"{path.stem}.tif"
            if path.suffix.lower() in SUFFIXES and raster.exists():
                yield Labelled(source, path, raster, human=name == "instances")


def open_plain(path: Path, stretch: StretchLike | None = None) -> Scene:
    """A scene; in pixel coordinates if the file has no place on the map."""
    from geosam2.scene import open_scene

    try:
        return open_scene(path, stretch=stretch)
    except GeoreferenceError:
        return open_scene(path, stretch=stretch, pixel_coordinates=True)


def read_raster(path: Path) -> npt.NDArray[np.int32]:
    """Ids of a raster, (H, W); 0 where there is no object: no data, below 0, or not a number."""
    import warnings

    import rasterio

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            ids = np.nan_to_num(file.read(1, masked=True).filled(0))
    return np.maximum(np.asarray(ids, np.int32), np.int32(0))


def check_grid(path: Path, ids: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    """Refuse a raster that is not on its image's grid.

    Raises:
        SourceError: If the raster's (H, W) is not `shape`.
    """
    if ids.shape != shape:
        raise SourceError(f"{path} is {ids.shape}, its image {shape}: both must be on one grid")


def usable_ids(ids: npt.NDArray[np.int32]) -> tuple[list[int], int]:
    """Ids of objects that are large enough and not cut by the edge; and how many were left out."""
    numbers, areas = np.unique(ids, return_counts=True)
    cut = set(np.concatenate([ids[0], ids[-1], ids[:, 0], ids[:, -1]]).tolist())
    present = {int(n): int(area) for n, area in zip(numbers, areas, strict=True) if n > 0}
    kept = [n for n, area in present.items() if area >= SMALLEST and n not in cut]
    return kept, len(present) - len(kept)


def shown(truth: Mask, valid: Mask) -> Mask | None:
    """The part of an object (H, W) that the image has pixels of; None if that is too little."""
    part = truth & valid
    enough = max(SMALLEST, math.ceil(SHOWN * int(truth.sum())))
    return part if int(part.sum()) >= enough else None


@dataclass(frozen=True)
class Verdict:
    """What was measured on one object by one contestant."""

    source: str
    """What the image's folder is called, see `short_names`."""
    human: bool
    """Label drawn by people."""
    ious: tuple[float, ...]
    """After each click, the first one jittered."""
    centre: float
    """After one click at the deepest place."""
    boundary: float
    """Boundary F after one jittered click, by `boundary_f_of_object`."""
    image: Path | None = None
    """Where the object is; `number` is its id there."""
    number: int = 0
    """Id of the object in the image's raster."""


@dataclass
class ClickReport:
    """All verdicts of a run; filled as it goes, so that a stopped run can still be reported."""

    policy: str
    """How images were shown to the network, in words."""
    verdicts: dict[str, list[Verdict]] = field(default_factory=dict)
    """By contestant; the model under test is "model"."""
    left_out: int = 0
    """Objects that were too small, cut by the edge, or mostly where the image has no data."""
    seed: int = 0
    """Of the bootstrap."""

    def add(self, contestant: str, verdict: Verdict) -> None:
        """Note one object's figures."""
        self.verdicts.setdefault(contestant, []).append(verdict)

    def figures(self, contestant: str = "model") -> dict[str, Any]:
        """Means over all objects, with intervals, and the same per source.

        Human and derived labels of a source never share a figure.
        """
        verdicts = self.verdicts.get(contestant, [])
        sources: dict[str, list[Verdict]] = {}
        for verdict in verdicts:
            name = verdict.source + ("" if verdict.human else " (derived)")
            sources.setdefault(name, []).append(verdict)
        result = self.totals(contestant)
        result["sources"] = {
            name: summary(some, self.seed) for name, some in sorted(sources.items())
        }
        result["left_out"] = self.left_out
        result["policy"] = self.policy
        return result

    def totals(self, contestant: str = "model") -> dict[str, Any]:
        """Means over all objects, and over those that people drew ("human")."""
        verdicts = self.verdicts.get(contestant, [])
        human = summary([v for v in verdicts if v.human], self.seed)
        return {**summary(verdicts, self.seed), "human": human}

    def table(self) -> str:
        """Figures of everybody, as text."""
        head = f"{'contestant':15s} {'source':26s} {'n':>5s}" + "".join(
            f"{name:>9s}" for name in ("IoU@1", "95 %", "", "centre", "IoU@3", "IoU@5", "NoC@85",
                                      "NoC@90", "F@1"))  # fmt: skip
        lines = [head]
        for contestant in self.verdicts:
            figures = self.figures(contestant)
            rows = [*figures["sources"].items(), ("human labels", figures["human"]),
                    ("all", figures)]  # fmt: skip
            lines += [_row(contestant, name, f) for name, f in rows if f["n"]]
        return "\n".join([*lines, f"{self.left_out} objects left out; {self.policy}"])


def _row(contestant: str, source: str, f: Mapping[str, Any]) -> str:
    low, high = f["iou_1_interval"]
    numbers = (f["iou_1"], low, high, f["iou_1_centre"], f["iou_3"], f["iou_5"], f["noc_85"],
               f["noc_90"], f["boundary_f"])  # fmt: skip
    return f"{contestant:15s} {source:26s} {f['n']:5d}" + "".join(f"{v:9.3f}" for v in numbers)


def summary(verdicts: Sequence[Verdict], seed: int = 0) -> dict[str, Any]:
    """Means of some verdicts; NaN where a conversation was shorter than the figure's clicks.

    Args:
        verdicts: Of one contestant.
        seed: Of the bootstrap that gives the intervals.
    """
    result: dict[str, Any] = {}
    for turn in REPORTED:
        values = [v.ious[turn - 1] for v in verdicts if len(v.ious) >= turn]
        result[f"iou_{turn}"] = _mean(values)
        result[f"iou_{turn}_interval"] = [round(x, 4) for x in interval(values, seed=seed)]
    for goal in GOALS:
        result[f"noc_{round(goal * 100)}"] = _mean([clicks_needed(v.ious, goal) for v in verdicts])
    result["iou_1_centre"] = _mean([v.centre for v in verdicts])
    result["boundary_f"] = _mean([v.boundary for v in verdicts])
    result["n"] = len(verdicts)
    return result


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4) if len(values) else float("nan")


# -- contestants


class OnScene:
    """The user's way: prompts in map coordinates through `Segmenter`, whole objects out.

    Args:
        scene: The image.
        model: The network.
    """

    def __init__(self, scene: Scene, model: SAM2) -> None:
        from geosam2.cache import EmbeddingCache
        from geosam2.segmenter import Segmenter

        self.scene = scene
        self.segmenter = Segmenter(scene, model, cache=EmbeddingCache(folder=None))

    def __call__(self, clicks: Sequence[Click]) -> Mask:
        """Mask on the scene's native grid."""
        from geosam2.prompts import Prompt

        affine = self.scene.geobox.affine
        points = tuple((affine * (x, y)) for x, y, _ in clicks)
        prompt = Prompt(points, tuple(label for _, _, label in clicks))
        (masklet,) = self.segmenter.objects([prompt])
        return on_grid(masklet, self.scene)


def on_grid(masklet: Masklet, scene: Scene) -> Mask:
    """A masklet as (H, W) on the scene's native grid."""
    import rasterio.features

    from geosam2.vectorize import from_mosaic

    shape = from_mosaic(masklet.mosaic)
    if shape.is_empty:
        return np.zeros(scene.shape, bool)
    burnt = rasterio.features.rasterize(
        [shape], out_shape=scene.shape, transform=scene.geobox.affine
    )
    return np.asarray(burnt, bool)


@dataclass(frozen=True)
class Square:
    """A square piece of an image, shown at another size."""

    top: int
    """First row."""
    left: int
    """First column."""
    side: int
    """Rows and columns."""

    def cut(self, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The piece of (..., H, W); where it leaves the image, 0."""
        height, width = image.shape[-2:]
        bottom, right = self.top + self.side, self.left + self.side
        inside = image[..., max(0, self.top) : bottom, max(0, self.left) : right]
        pads = [(0, 0)] * (image.ndim - 2)
        pads += [(max(0, -self.top), max(0, bottom - height)),
                 (max(0, -self.left), max(0, right - width))]  # fmt: skip
        return np.pad(inside, pads)

    def inside(self, shape: tuple[int, ...]) -> tuple[slice, slice]:
        """Rows and columns of the piece that an image (H, W) has."""
        starts = max(0, self.top), max(0, self.left)
        return (
            slice(starts[0], min(shape[0], self.top + self.side)),
            slice(starts[1], min(shape[1], self.left + self.side)),
        )

    def local(self, click: Click) -> Click:
        """A click of the image in the piece's pixels."""
        return click[0] - self.left, click[1] - self.top, click[2]


def square_around(truth: Mask, rng: np.random.Generator) -> Square:
    """A square of 2 to 6 times the object, which lies somewhere in it, kept inside the image."""
    rows, columns = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
    box = np.array([[rows[0], rows[-1] + 1], [columns[0], columns[-1] + 1]])
    extent = int((box[:, 1] - box[:, 0]).max())
    side = max(16, min(int(extent * rng.uniform(2, 6)), *truth.shape))
    free = np.maximum(side - (box[:, 1] - box[:, 0]), 0)
    corner = box[:, 0] - (free * rng.uniform(0.1, 0.9, size=2)).astype(int)
    top, left = np.clip(corner, 0, np.array(truth.shape) - side)
    return Square(int(top), int(left), side)


def surroundings(truth: Mask) -> Square:
    """The square around an object in which its boundary is judged; it may leave the image."""
    box = _box(truth)
    side = math.ceil(SURROUNDINGS * max(one.stop - one.start for one in box))
    top, left = ((one.start + one.stop - side) // 2 for one in box)
    return Square(int(top), int(left), side)


class OnCrop:
    """The bare network on one square picture.

    Args:
        model: The network.
        pixels: (3, S, S) uint8.
    """

    def __init__(self, model: SAM2, pixels: npt.NDArray[np.uint8]) -> None:
        import torch
        import torch.nn.functional as F

        self.model, self.side = model, pixels.shape[-1]
        self.size = int(model.config.image_size)
        x = torch.from_numpy(np.ascontiguousarray(pixels))[None].float()
        shrinks = self.size < self.side
        with torch.no_grad():
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=shrinks)
            self.features = model.encode(x)
        self.previous: Any = None

    def __call__(self, clicks: Sequence[Click]) -> Mask:
        """Mask on the picture; the answer before is shown to the network with the new click."""
        import torch
        import torch.nn.functional as F
        from geosam2_model.prompt_encoder import Prompts

        scale = self.size / self.side
        places = [[x * scale - 0.5, y * scale - 0.5] for x, y, _ in clicks]
        labels = [label for _, _, label in clicks]
        masks = self.previous if len(clicks) > 1 else None
        prompts = Prompts(torch.tensor([places]), torch.tensor([labels]), masks=masks)
        with torch.no_grad():
            out = self.model.decode(self.features, prompts, multimask=len(clicks) == 1)
        logits = out.best_logits[:, None]
        self.previous = logits.clamp(-32, 32)
        full = F.interpolate(logits, (self.side, self.side), mode="bilinear")
        return np.asarray(full[0, 0].numpy() > 0)


def shrunk(pixels: npt.NDArray[np.uint8], truth: Mask) -> tuple[npt.NDArray[np.uint8], Mask]:
    """A square picture (3, S, S) and its truth, at most `LARGEST_CROP` pixels wide."""
    from PIL import Image

    side = truth.shape[0]
    if side <= LARGEST_CROP:
        return pixels, truth
    size = (LARGEST_CROP, LARGEST_CROP)
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    small = np.asarray(image.resize(size, Image.Resampling.BOX)).transpose(2, 0, 1)
    share = Image.fromarray(truth.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
    return small, np.asarray(share) > 127


def random_twin(model: SAM2, seed: int = 0) -> SAM2:
    """The same network with random weights: what the architecture alone would answer."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return type(model)(model.config).eval()


@dataclass(frozen=True)
class ClickOptions:
    """How clicks are judged."""

    crop: Literal["scene", "object"] = "scene"
    """Whole scene through the Segmenter, or crops of 2 to 6 times the object."""
    clicks: int = 5
    """Made on each object."""
    limit: int | None = None
    """Objects of each source, chosen at random; None takes all."""
    rivals: bool = False
    """Also judge random weights, GrabCut, region growing, Felzenszwalb and the random walker."""
    seed: int = 0
    """Of the choice of objects, first clicks, crops and the bootstrap."""

    @property
    def policy(self) -> str:
        """The way in words."""
        if self.crop == "scene":
            return (
                "clicks on the whole scene through the Segmenter; rivals see "
                f"{LARGEST_CROP} px of it around the first"
            )
        return "the bare network on crops of 2 to 6 times the object"


def judge_clicks(
    images: Sequence[Labelled], model: SAM2, options: ClickOptions | None = None
) -> Iterator[ClickReport]:
    """Click on every object; the same report, further filled, after each one.

    Args:
        images: From `find_labelled`.
        model: The network.
        options: How.

    Raises:
        SourceError: If an image and its raster differ in size.
        MissingDependencyError: If SciPy, or for rivals scikit-image or OpenCV, is not installed.
    """
    options = options or ClickOptions()
    report = ClickReport(options.policy, seed=options.seed)
    contestants: dict[str, Any] = {"model": model}
    if options.rivals:
        from geosam2 import rivals

        contestants |= {"random weights": random_twin(model), **rivals.everybody()}
    chosen = choose(images, options, report)
    for labelled, ids in chosen.items():
        scene = open_plain(labelled.path)
        raster = read_raster(labelled.raster)
        frame = scene.read(scene.geobox)
        check_grid(labelled.raster, raster, frame.shape)
        on_scene = {
            name: OnScene(scene, who)
            for name, who in contestants.items()
            if options.crop == "scene" and not callable(getattr(who, "solve", None))
        }
        for number in ids:
            truth = shown(raster == number, frame.valid)
            if truth is None:
                report.left_out += 1
                continue
            for name, who in contestants.items():
                report.add(name, _judge(labelled, frame.pixels, truth, number, options, who,
                                        on_scene.get(name)))  # fmt: skip
            yield report
    if not report.verdicts:
        yield report


def choose(
    images: Sequence[Labelled], options: ClickOptions, report: ClickReport
) -> dict[Labelled, list[int]]:
    """Objects to click on, at most `limit` of a source."""
    found: list[tuple[Labelled, int]] = []
    for labelled in images:
        ids, left_out = usable_ids(read_raster(labelled.raster))
        report.left_out += left_out
        found += [(labelled, n) for n in ids]
    chosen: dict[Labelled, list[int]] = {}
    for labelled, n in drawn(found, options.limit, options.seed):
        chosen.setdefault(labelled, []).append(n)
    return chosen


def drawn(
    objects: Iterable[tuple[Labelled, int]], limit: int | None, seed: int
) -> Iterator[tuple[Labelled, int]]:
    """At most `limit` objects of each source, at random; human and derived labels apart."""
    sources: dict[tuple[str, bool], list[tuple[Labelled, int]]] = {}
    for labelled, n in objects:
        sources.setdefault((labelled.source, labelled.human), []).append((labelled, n))
    for _, some in sorted(sources.items()):
        order = np.random.default_rng(seed).permutation(len(some))
        yield from (some[i] for i in sorted(order[:limit]))


def _judge(
    labelled: Labelled,
    pixels: npt.NDArray[np.uint8],
    truth: Mask,
    number: int,
    options: ClickOptions,
    who: Any,
    on_scene: OnScene | None,
) -> Verdict:
    """One contestant on one object; all contestants see the same clicks first and the same crop."""
    rng = randomness(labelled, number, options.seed)
    if options.crop == "object":
        square = square_around(truth, rng)
        pixels, truth = shrunk(square.cut(pixels), square.cut(truth))
        square = Square(0, 0, truth.shape[0])
    first = first_click(truth, rng, "jittered")
    centre = centre_click(truth)
    if on_scene is not None:
        answer: Answerer = on_scene
    else:
        if options.crop == "scene":
            square = frame_at(first, truth.shape)
        picture = square.cut(pixels)
        answer = who.solve(picture) if hasattr(who, "solve") else OnCrop(who, picture)
        answer = _pasted(answer, square, truth.shape)
    ious, opening = converse(answer, truth, first, options.clicks)
    at_centre = mask_iou(answer([centre]), truth)
    return Verdict(
        labelled.source,
        labelled.human,
        tuple(ious),
        at_centre,
        boundary_f_of_object(opening, truth),
        labelled.path,
        number,
    )


def randomness(labelled: Labelled, number: int, seed: int) -> np.random.Generator:
    """What clicks and crops of one object are drawn with: the same for whoever is judged."""
    return np.random.default_rng([seed, number, *labelled.path.stem.encode()])


def frame_at(click: Click, shape: tuple[int, ...]) -> Square:
    """512 pixels around a click, or as many as the image (H, W) has; never beyond its edge.

    The black beyond it would tell a rival that goes by colour where the object ends.

    >>> frame_at((10.5, 240.5, 1), (256, 300))
    Square(top=0, left=0, side=256)
    """
    side = min(LARGEST_CROP, *shape)
    top, left = (
        min(max(int(middle) - side // 2, 0), size - side)
        for middle, size in zip(click[1::-1], shape, strict=True)
    )
    return Square(top, left, side)


def _pasted(answer: Answerer, square: Square, shape: tuple[int, ...]) -> Answerer:
    """An answerer on a piece, as one on the whole image."""

    def whole(clicks: Sequence[Click]) -> Mask:
        inside = [square.local(c) for c in clicks]
        inside = [c for c in inside if 0 <= c[0] < square.side and 0 <= c[1] < square.side]
        if not inside:
            return np.zeros(shape, bool)
        found = np.zeros(shape, bool)
        found[square.inside(shape)] = answer(inside)
        return found

    return whole
