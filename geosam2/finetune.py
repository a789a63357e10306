"""Adapt a model to one's own images and polygons."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from geosam2.errors import PromptError, SourceError, import_optional
from geosam2.evaluation import SUFFIXES, open_plain
from geosam2.vector_files import read_vector

if TYPE_CHECKING:
    import geopandas
    from affine import Affine
    from geosam2_model.training.data import Picture
    from geosam2_model.training.recipe import Recipe

Freeze = Literal["trunk", "encoder", "nothing"]
FROZEN: dict[str, tuple[str, ...]] = {
    "trunk": (),
    "encoder": (
        "image_encoder.",
        *(f"dense_prompts.{part}" for part in ("laterals", "lower", "norms", "smooth")),
    ),
    "nothing": (),
}
"""Parameters that stay, beside the trunk: choices of what is adapted."""
HELD_BACK = 0.25
"""Share of the polygons that is not trained on."""
ENOUGH = 8
"""With so many polygons held back, half of them choose the checkpoint and half are reported."""
LEFT = 0.5
"""A polygon must keep so much of its pixels where an image has no data."""


@dataclass(frozen=True)
class FineTune:
    """What to adapt, and how long; training runs on the CPU."""

    out: Path
    """Folder for the new checkpoint, its log and curves."""
    model: str = "nano"
    """Name or path of the weights to start from."""
    steps: int = 300
    """Optimiser steps."""
    freeze: Freeze = "trunk"
    """"trunk" adapts all but the trunk, "encoder" the prompt side alone, "nothing" everything."""
    lr: float = 2e-4
    """Learning rate at the start; it falls along a half cosine."""
    size: int = 256
    """Side of the training crops in pixels."""
    judged: int = 24
    """Crops of held-back objects that are clicked on before and after."""
    seed: int = 0
    """Same seed, same result."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.size % 32 or self.size < 64:
            raise PromptError(
                f"steps is {self.steps} and size {self.size}: at least one step, and crops of "
                "64, 96, 128 ... pixels"
            )
        if self.judged < 1 or self.seed < 0 or not self.lr > 0:
            raise PromptError(
                f"judged is {self.judged}, seed {self.seed} and lr {self.lr}: judge at least one "
                "crop, with a seed of 0 or more and a learning rate above 0"
            )


@dataclass(frozen=True)
class Outcome:
    """A fine-tuned model and what it gained on the held-back part."""

    checkpoint: Path
    """For `geosam2_model.load` and every --model; the start's own weights if none was better."""
    before: dict[str, float]
    """`iou_1`, `iou_3`, `iou_5`: mean IoU after so many clicks before training."""
    after: dict[str, float]
    """The same with the checkpoint."""
    independent: bool
    """The figures are of objects that had no say in which checkpoint was kept. Where there are
    fewer than `ENOUGH` held back, the same ones choose, and `after` is somewhat too good."""


@dataclass(frozen=True)
class Parts:
    """The same pictures three times, each with other polygons; no polygon is in two of them."""

    trained: list[Picture]
    """What crops are drawn around."""
    choosing: list[Picture]
    """Held back: the checkpoint that does best on them is kept."""
    reported: list[Picture]
    """Held back: what `Outcome` is about. The same as `choosing` if there are few."""

    @property
    def independent(self) -> bool:
        """Whether other objects are reported than those that choose."""
        return self.reported is not self.choosing


# -- images and polygons


def read_polygons(path: Path) -> geopandas.GeoDataFrame:
    """The polygons of a vector file, numbered from 1 by their index.

    Raises:
        SourceError: If it cannot be read, or has no polygon.
    """
    layer = read_vector(path)
    shapes = layer.geometry
    polygons = layer[shapes.geom_type.isin(["Polygon", "MultiPolygon"]) & ~shapes.is_empty]
    if polygons.empty:
        raise SourceError(f"{path} has no polygon among its {len(layer)} features")
    numbers = range(1, len(polygons) + 1)
    return polygons.set_axis(numbers, axis="index")


def pictures_of(images: Path, polygons: geopandas.GeoDataFrame) -> list[Picture]:
    """Images and the polygons that lie on them, as training pictures.

    Args:
        images: A folder of georeferenced images, or one image.
        polygons: See `read_polygons`; reprojected to each image. Their numbers are the ids.

    Raises:
        SourceError: If there is no image, or no polygon on any of them.
    """
    paths = [images] if images.is_file() else sorted(
        p for p in images.iterdir() if p.suffix.lower() in SUFFIXES
    )  # fmt: skip
    if not paths:
        raise SourceError(f"{images} has no image ({', '.join(SUFFIXES)})")
    found = [picture for path in paths if (picture := _picture(path, polygons)) is not None]
    if not found:
        raise SourceError(
            f"none of the {len(polygons)} polygons lies on an image of {images}; are both "
            "georeferenced?"
        )
    return found


def _picture(path: Path, polygons: geopandas.GeoDataFrame) -> Picture | None:
    """One image with its polygons burnt in, where it has data."""
    from geosam2_model.training.data import Picture

    scene = open_plain(path)
    if scene.crs is not None and polygons.crs is not None:
        polygons = polygons.to_crs(scene.crs)
    left, bottom, right, top = scene.bounds
    here = polygons.geometry.cx[left:right, bottom:top]
    if here.empty:
        return None
    frame = scene.read(scene.geobox)
    pixels = np.ascontiguousarray(frame.pixels.transpose(1, 2, 0))
    rasters = burn(list(here.items()), scene.shape, scene.geobox.affine)
    picture = Picture(path.name, pixels, tuple(seen(ids, frame.valid) for ids in rasters))
    return picture if picture.objects else None


def burn(
    polygons: Sequence[tuple[int, Any]], shape: tuple[int, int], transform: Affine
) -> list[npt.NDArray[np.int32]]:
    """Numbered polygons as rasters (H, W), as many as it takes for each to be whole in one.

    Args:
        polygons: (number, shapely geometry) in the raster's CRS.
        shape: (height, width).
        transform: Pixel corner -> CRS.
    """
    import rasterio.features

    rasters: list[npt.NDArray[np.int32]] = []
    for number, polygon in polygons:
        window = _window(polygon.bounds, shape, transform)
        rows, columns = window
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if height < 1 or width < 1:
            continue
        inside = rasterio.features.rasterize(
            [polygon],
            out_shape=(height, width),
            transform=transform * transform.translation(columns.start, rows.start),
            dtype="uint8",
        ).astype(bool)
        free = next((r for r in rasters if not r[window][inside].any()), None)
        if free is None:
            free = np.zeros(shape, np.int32)
            rasters.append(free)
        free[window][inside] = number
    return rasters


def _window(
    bounds: tuple[float, float, float, float], shape: tuple[int, int], transform: Affine
) -> tuple[slice, slice]:
    """Rows and columns of a raster that bounds in its CRS reach."""
    left, bottom, right, top = bounds
    corners = [~transform * (x, y) for x in (left, right) for y in (bottom, top)]
    columns, rows = zip(*corners, strict=True)
    return _span(rows, shape[0]), _span(columns, shape[1])


def _span(values: Sequence[float], size: int) -> slice:
    return slice(max(0, math.floor(min(values))), min(size, math.ceil(max(values))))


def seen(ids: npt.NDArray[np.int32], valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Ids (H, W) where there is data; objects that lose more than half of their pixels go."""
    whole = np.bincount(ids.ravel())
    left = np.bincount(ids[valid], minlength=len(whole))
    return np.where(valid & (left >= LEFT * whole)[ids], ids, np.int32(0))


# -- what is held back


def divide(pictures: Sequence[Picture], polygons: geopandas.GeoDataFrame) -> Parts:
    """Polygons to train on and polygons to hold back, by place: about a quarter lies beyond a cut.

    The cut is one straight line over all images, along the axes of the polygons' CRS. So a place
    that several images show (dates, overlapping tiles) is on one side in all of them; polygons
    that lie across the line are left out.

    Raises:
        SourceError: If there are too few.
    """
    ids = sorted({n for picture in pictures for _, n, _, _ in picture.objects})
    trained, held = cut(polygons.geometry.loc[ids].bounds.to_numpy())
    if not len(trained) or not len(held):
        raise SourceError(
            f"{len(ids)} polygons are too few to train on some and hold others back: no straight "
            "line has some on either side and crosses none of those; add polygons beside them"
        )
    named = np.array(ids)
    kept = _with(pictures, named[trained])
    if len(held) < ENOUGH:
        few = _with(pictures, named[held])
        return Parts(kept, few, few)
    half = len(held) // 2  # those nearer to the cut choose
    return Parts(kept, _with(pictures, named[held[:half]]), _with(pictures, named[held[half:]]))


def cut(boxes: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows of boxes on either side of the straight line that crosses few and leaves a quarter.

    Args:
        boxes: (N, 4) left, bottom, right, top.

    Returns:
        Rows below or left of the line, and rows beyond it, nearest first; both empty if there is
        no such line.

    >>> cut(np.array([[0, 0, 1, 1], [1, 0, 2, 1], [2, 0, 3, 1], [2.5, 0, 9, 1], [3, 0, 4, 1]]))
    (array([0, 1, 2]), array([4]))
    """
    best, found = math.inf, (np.empty(0, np.intp), np.empty(0, np.intp))
    for axis in (0, 1):
        low, high = boxes[:, axis], boxes[:, axis + 2]
        lines = np.unique(high)
        before = np.searchsorted(np.sort(high), lines, side="right")
        beyond = len(boxes) - np.searchsorted(np.sort(low), lines, side="left")
        loss = len(boxes) - before - beyond + np.abs(beyond - HELD_BACK * len(boxes))
        loss = np.where(beyond > 0, loss, math.inf)
        if loss.min() < best:
            best, line = loss.min(), lines[loss.argmin()]
            order = np.argsort(low + high, kind="stable")
            found = np.flatnonzero(high <= line), order[low[order] >= line]
    return found


def _with(pictures: Sequence[Picture], ids: Collection[int]) -> list[Picture]:
    """The pictures with these objects alone; those that show none are left out."""
    some = [
        replace(p, labels=tuple(np.where(np.isin(r, list(ids)), r, 0) for r in p.labels))
        for p in pictures
    ]
    return [p for p in some if p.objects]


# -- the run


def fine_tune(images: Path, polygons: Path, options: FineTune) -> Outcome:
    """Train on part of the polygons, judge on the rest, before and after.

    A run that was stopped in `options.out` goes on. Everything is computed on the CPU.

    Raises:
        SourceError: If images or polygons cannot be used.
        ExportError: If nothing can be written to `options.out`.
        MissingDependencyError: Without the `train` extra.
        InputError: (of geosam2_model) If `options.out` holds another run, or no object can be
            shown beside its ground.
    """
    import_optional("scipy", "train")
    import torch
    from geosam2_model import load
    from geosam2_model.training import judge
    from geosam2_model.training.data import Crops
    from geosam2_model.training.loop import identity_of, one_thread, train

    from geosam2.export import make_folder

    layer = read_polygons(polygons)
    parts = divide(pictures_of(images, layer), layer)
    rng = np.random.default_rng(options.seed)
    choosing = [judge.plain_crop(rng, parts.choosing) for _ in range(options.judged)]
    reported = choosing
    if parts.independent:
        reported = [judge.plain_crop(rng, parts.reported) for _ in range(options.judged)]
    pictures = Crops([(1.0, parts.trained)]), {"iou": choosing}
    recipe = _recipe(options)
    make_folder(options.out, or_else="choose another -o")
    identity_of(recipe, pictures)  # refuses a folder of another run before any work is done

    def figures(weights: str | Path) -> dict[str, float]:
        with one_thread():
            model = load(weights, device="cpu", dtype=torch.float32)
            found = judge.dev_figures(model, {"iou": reported})
        return {name: value for name, value in found.items() if name != "score"}

    before = figures(options.model)
    checkpoint = train(recipe, pictures)
    return Outcome(checkpoint, before, figures(checkpoint), parts.independent)


def _recipe(options: FineTune) -> Recipe:
    from geosam2_model.training.recipe import Phase, Recipe

    everything = options.freeze == "nothing"
    phase = Phase(
        options.steps,
        sizes=(options.size,),
        images=2,
        objects=4,
        lr=options.lr,
        decay=True,
        warmup=min(20, options.steps),
        trunk_lr=0.3 if everything else 0.0,
        trunk_from=0 if everything else 3,
        frozen=FROZEN[options.freeze],
    )
    return Recipe(
        options.out,
        sources=(),
        phases=(phase,),
        start=options.model,
        seed=options.seed,
        processes=1,
        ema=0.98,
        save_every=50,
        judge_every=max(25, options.steps // 4),
        synthetic=0.0,
    )
