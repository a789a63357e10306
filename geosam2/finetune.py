"""Adapt a model to one's own images and polygons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from geosam2.errors import PromptError, SourceError
from geosam2.evaluation import SUFFIXES, open_plain

if TYPE_CHECKING:
    import geopandas
    from geosam2_model.training.data import Picture

Freeze = Literal["trunk", "encoder", "nothing"]
FROZEN: dict[str, tuple[str, ...]] = {
    "trunk": (),
    "encoder": ("image_encoder.", "dense_prompts.laterals", "dense_prompts.lower"),
    "nothing": (),
}
"""Parameters that stay, beside the trunk: choices of what is adapted."""
HELD_BACK = 0.25
"""Share of the images, or of each image's width if there are few, that is not trained on."""
FEW = 4
"""With fewer images, each is cut in two."""


@dataclass(frozen=True)
class FineTune:
    """What to adapt, and how long."""

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
    """Held-back objects that are clicked on before and after."""
    seed: int = 0
    """Same seed, same result."""


@dataclass(frozen=True)
class Outcome:
    """A fine-tuned model and what it gained on the held-back part."""

    checkpoint: Path
    """For `geosam2_model.load` and every --model."""
    before: dict[str, float]
    """Mean IoU after 1, 3 and 5 clicks before training."""
    after: dict[str, float]
    """The same with the checkpoint."""


def pictures_of(images: Path, polygons: Path) -> list[Picture]:
    """Images and the polygons that lie on them, as training pictures.

    Args:
        images: A folder of georeferenced images, or one image.
        polygons: Any vector file; reprojected to each image.

    Raises:
        SourceError: If there is no image, or no polygon on any of them.
    """
    import geopandas

    paths = [images] if images.is_file() else sorted(
        p for p in images.iterdir() if p.suffix.lower() in SUFFIXES
    )  # fmt: skip
    if not paths:
        raise SourceError(f"{images} has no image ({', '.join(SUFFIXES)})")
    layer = geopandas.read_file(polygons)
    found = [picture for path in paths if (picture := _picture(path, layer)) is not None]
    if not found:
        raise SourceError(
            f"no polygon of {polygons} lies on an image of {images}; are both georeferenced?"
        )
    return found


def _picture(path: Path, layer: geopandas.GeoDataFrame) -> Picture | None:
    """One image with its polygons burnt in, in order of size so that small ones stay visible."""
    import rasterio.features
    from geosam2_model.training.data import Picture

    scene = open_plain(path)
    if scene.crs is not None and layer.crs is not None:
        layer = layer.to_crs(scene.crs)
    left, bottom, right, top = scene.bounds
    shapes = layer.geometry[~(layer.geometry.is_empty | layer.geometry.isna())]
    shapes = shapes.cx[left:right, bottom:top]
    shapes = shapes[shapes.geom_type.isin(["Polygon", "MultiPolygon"])]
    if shapes.empty:
        return None
    order = shapes.area.sort_values(ascending=False).index
    ids = rasterio.features.rasterize(
        ((shapes.loc[[i]].iloc[0], n) for n, i in enumerate(order, start=1)),
        out_shape=scene.shape,
        transform=scene.geobox.affine,
        dtype="int32",
    )
    pixels = np.ascontiguousarray(scene.read(scene.geobox).pixels.transpose(1, 2, 0))
    picture = Picture(path.name, pixels, (ids,))
    return picture if picture.objects else None


def divide(pictures: Sequence[Picture], seed: int) -> tuple[list[Picture], list[Picture]]:
    """What is trained on, and what is held back: whole images, or a side of each if they are few.

    Raises:
        SourceError: If one of the two would have no object.
    """
    if len(pictures) >= FEW:
        order = np.random.default_rng(seed).permutation(len(pictures))
        count = max(1, round(HELD_BACK * len(pictures)))
        held, kept = ([pictures[i] for i in some] for some in (order[:count], order[count:]))
    else:
        cuts = [round((1 - HELD_BACK) * p.pixels.shape[1]) for p in pictures]
        kept = [_columns(p, slice(0, cut)) for p, cut in zip(pictures, cuts, strict=True)]
        held = [_columns(p, slice(cut, None)) for p, cut in zip(pictures, cuts, strict=True)]
    kept, held = [p for p in kept if p.objects], [p for p in held if p.objects]
    if not kept or not held:
        raise SourceError(
            "too few polygons to train on some and hold others back: every image (or, with fewer "
            f"than {FEW} images, the left three quarters and the right quarter) needs some"
        )
    return kept, held


def _columns(picture: Picture, columns: slice) -> Picture:
    def cut(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.ascontiguousarray(x[:, columns])

    return replace(picture, pixels=cut(picture.pixels), labels=tuple(map(cut, picture.labels)))


def fine_tune(images: Path, polygons: Path, options: FineTune) -> Outcome:
    """Train on part of the polygons, judge on the rest, before and after.

    Raises:
        SourceError: If images or polygons cannot be used.
        PromptError: If `steps` is not positive or `size` is no multiple of 32.
    """
    from geosam2_model import load
    from geosam2_model.training import judge
    from geosam2_model.training.data import Crops
    from geosam2_model.training.loop import train
    from geosam2_model.training.recipe import Phase, Recipe

    if options.steps < 1 or options.size % 32 or options.size < 64:
        raise PromptError(
            f"steps is {options.steps} and size {options.size}: at least one step, and crops of "
            "64, 96, 128 ... pixels"
        )
    kept, held = divide(pictures_of(images, polygons), options.seed)
    rng = np.random.default_rng(options.seed)
    crops = [judge.plain_crop(rng, held) for _ in range(options.judged)]
    looked_at = {"held back": crops}
    before = judge.dev_figures(load(options.model), looked_at)
    phase = Phase(
        options.steps,
        sizes=(options.size,),
        images=2,
        objects=4,
        lr=options.lr,
        decay=True,
        warmup=min(20, options.steps),
        trunk_lr=0.3 if options.freeze == "nothing" else 0.0,
        frozen=FROZEN[options.freeze],
    )
    recipe = Recipe(
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
    checkpoint = train(recipe, (Crops([(1.0, kept)]), looked_at))
    return Outcome(checkpoint, before, judge.dev_figures(load(checkpoint), looked_at))
