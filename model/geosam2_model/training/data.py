"""Pictures with labelled regions, and the crops that training sees.

A source is a folder `images/` with `instances/` (drawn by people) or `instances_derived/` (not)
beside it: rasters on the image's grid, one id an object, 0 nothing. Regions that nobody labelled
come from superpixel hierarchies (`proposals`), scenes that never were from `synthetic`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from geosam2_model.errors import InputError
from geosam2_model.training import augment
from geosam2_model.training.proposals import region_hierarchy

Array = npt.NDArray[Any]
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
FILLS, PLAIN_FILLS = (0.004, 0.6), (0.012, 0.6)
"""Share of a crop that its object fills: when training, when judging."""
MIN_PIXELS = 24
"""Objects that show fewer pixels than this in a crop are not asked for."""
SMALLEST = 16
"""Pictures must have so many pixels along each side: the smallest window that is cut out."""
MOST_DRAWS = 1000
"""After so many crops that show nothing to ask for, there is nothing."""

# tifffile says of each file with whole numbers and nodata "0.0" that it cannot read that; we do
logging.getLogger("tifffile").addFilter(lambda said: "GDAL_NODATA" not in said.getMessage())

_CONVERTED = {
    "L": "L",
    "RGB": "RGB",
    "I;16": "I;16",
    "1": "L",
    "LA": "L",
    "P": "RGB",
    "PA": "RGB",
    "RGBA": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
}
"""Pillow's modes that are read, and as what; transparency is no band."""


@dataclass(frozen=True)
class Picture:
    """An image in memory and the regions that may be asked for in it."""

    name: str
    """Source and file name, for logs."""
    pixels: Array
    """(H, W, bands) whole or real numbers, 0 where there is no data; bands in the file's order."""
    labels: tuple[Array, ...]
    """Rasters (H, W) of ids; several if regions overlap (people's labels, then proposals)."""
    rgb: tuple[int, int, int] = (0, 1, 2)
    """Bands that look natural."""

    def __post_init__(self) -> None:
        for raster in self.labels:
            if raster.shape != self.pixels.shape[:2]:
                raise InputError(
                    f"{self.name}: labels are {raster.shape}, the image is "
                    f"{self.pixels.shape[:2]}; both must be on one grid."
                )
        height, width = self.pixels.shape[:2]
        if self.labels and min(height, width) < SMALLEST:
            raise InputError(
                f"{self.name} is {height} x {width} pixels; leave it out, training needs at least "
                f"{SMALLEST} along each side."
            )

    @cached_property
    def limits(self) -> Array:
        """2nd and 98th percentile of each band, (2, bands): the stretch to 8 bits."""
        if self.pixels.dtype == np.uint8:
            bands = self.pixels.shape[2]
            return np.stack([np.zeros(bands), np.full(bands, 255.0)])
        seen = self.pixels[::3, ::3].reshape(-1, self.pixels.shape[2])
        seen = seen[seen.any(1)]
        if not len(seen):  # all is 0, and stays black
            return np.stack([np.zeros(seen.shape[1]), np.ones(seen.shape[1])])
        return np.percentile(seen, [2, 98], axis=0)

    @cached_property
    def objects(self) -> list[tuple[int, int, int, tuple[int, int, int, int]]]:
        """(raster, id, area, (top, left, bottom, right)) of all regions."""
        from scipy.ndimage import find_objects

        found = []
        for i, raster in enumerate(self.labels):
            areas = np.bincount(raster.ravel())
            for n, box in enumerate(find_objects(raster.astype(np.int32)), start=1):
                if box is not None and areas[n] >= MIN_PIXELS:
                    rows, columns = box
                    found.append(
                        (i, n, int(areas[n]), (rows.start, columns.start, rows.stop, columns.stop))
                    )
        return found


@dataclass(frozen=True)
class Crop:
    """One training picture: what the network sees, and objects with their true masks."""

    pixels: Array
    """(3, S, S) uint8."""
    masks: Array
    """(K, S, S) bool."""
    source: str
    """Where it is from."""


def read_image(path: Path) -> Array:
    """An image file as (H, W, bands); TIFF with any number of bands and bits through tifffile.

    What has no data is 0.

    Raises:
        InputError: If its pixels are no whole or real numbers, or of a kind that has no bands.
    """
    pixels = _read_tiff(path) if path.suffix.lower() in (".tif", ".tiff") else _read_plain(path)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif pixels.ndim == 3 and pixels.shape[0] < min(pixels.shape[1:]):
        pixels = np.moveaxis(pixels, 0, -1)  # band after band
    if pixels.dtype.kind not in "uif":
        raise InputError(
            f"{path}: pixels are {pixels.dtype}; training reads whole and real numbers."
        )
    return np.ascontiguousarray(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels)


def _read_plain(path: Path) -> Array:
    """JPEG and PNG: stored bands as they are, colours in place of a palette's numbers."""
    with Image.open(path) as image:
        if image.mode not in _CONVERTED:
            raise InputError(
                f"{path}: pixels are of mode {image.mode!r}; save it as grey or RGB, 8 or 16 bits."
            )
        wanted = _CONVERTED[image.mode]
        return np.asarray(image if image.mode == wanted else image.convert(wanted))


def _read_tiff(path: Path) -> Array:
    import tifffile

    with tifffile.TiffFile(path) as file:
        pixels: Array = file.asarray()
        nodata = file.pages.first.tags.get("GDAL_NODATA")
    if pixels.dtype.kind == "f":
        pixels = np.nan_to_num(pixels, posinf=0.0, neginf=0.0)
    if nodata is not None and float(nodata.value) != 0:
        pixels = np.where(pixels == float(nodata.value), pixels.dtype.type(0), pixels)
    return pixels


def read_labels(path: Path) -> Array:
    """A raster of ids, (H, W) int32."""
    raster = read_image(path)[..., 0]
    return raster.astype(np.int32)


@dataclass(frozen=True)
class Source:
    """A folder of training pictures, as a recipe names it."""

    path: Path
    """Folder that holds `images/`."""
    weight: float = 1.0
    """Share of the crops that are built around labelled objects of this source."""
    proposals: float = 0.0
    """Share of the crops that are built around its superpixel regions."""
    features: float = 0.0
    """Share of the crops that a larger network is asked about (`features`), around such regions."""
    labels: str = "instances"
    """Folder of the label rasters; images without a raster are used for proposals alone."""
    rgb: tuple[int, int, int] = (0, 1, 2)
    """Bands that look natural."""
    unlabelled: bool = False
    """There is no label folder at all."""

    def pictures(self, keep: Callable[[str], bool] = lambda stem: True) -> Iterator[Picture]:
        """Its images with people's labels alone; `keep` is asked for each file's stem.

        Raises:
            InputError: If there is no such folder, or an image cannot be read.
        """
        images = self.path / "images"
        if not images.is_dir():
            raise InputError(
                f"there is no folder {images}; paths in a recipe are relative to the working "
                "directory."
            )
        for path in sorted(images.iterdir()):
            if path.suffix.lower() not in SUFFIXES or not keep(path.stem):
                continue
            raster = self.path / self.labels / f"{path.stem}.tif"
            labels = (read_labels(raster),) if raster.exists() and not self.unlabelled else ()
            yield Picture(f"{self.path.name}/{path.stem}", read_image(path), labels, self.rgb)


def _parts(split: Path | None) -> dict[str, dict[str, str]]:
    """Source -> image stem -> "train" or "dev"."""
    if split is None:
        return {}
    if not split.exists():
        raise InputError(
            f"there is no {split}, which says what may be trained on; paths in a recipe are "
            "relative to the working directory."
        )
    parts: dict[str, dict[str, str]] = json.loads(split.read_text())
    return parts


def keep_training(split: Path | None) -> Callable[[str], bool]:
    """Whether an image may be trained on; a place held back by one source is so in all."""
    held = {
        stem
        for source in _parts(split).values()
        for stem, part in source.items()
        if part != "train"
    }
    return lambda stem: stem not in held


def keep_development(split: Path | None, source: str) -> Callable[[str], bool]:
    """Whether an image of a source is held back."""
    parts = _parts(split).get(source, {})
    return lambda stem: parts.get(stem) == "dev"


def stretched(picture: Picture) -> Array:
    """Natural colours in 8 bits, (H, W, 3)."""
    bands = list(picture.rgb)
    return augment.to_uint8(picture.pixels[..., bands], picture.limits[:, bands])


def with_proposals(picture: Picture, cache: Path) -> Picture:
    """The picture with superpixel regions for labels, computed once and kept under `cache`."""
    key = hashlib.sha256(picture.pixels.tobytes()).hexdigest()[:16]
    path = cache / f"{key}.npz"
    if not path.exists():
        rasters = region_hierarchy(stretched(picture))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.npz")  # another process may be at it, too
        np.savez_compressed(partial, *rasters)
        partial.replace(path)
    with np.load(path) as stored:
        return replace(picture, labels=tuple(stored[k] for k in stored.files))


class Crops:
    """Draws crops around objects of many pictures.

    Args:
        groups: (weight, pictures) pairs; a picture is drawn in proportion to the square root of
            its number of objects.
    """

    def __init__(self, groups: Sequence[tuple[float, Sequence[Picture]]]) -> None:
        kept = [(w, [p for p in pictures if p.objects]) for w, pictures in groups]
        kept = [(w, pictures) for w, pictures in kept if w > 0 and pictures]
        if not kept:
            raise InputError("no labelled object was found in any training source.")
        self.pictures = [pictures for _, pictures in kept]
        self.shares = np.array([w for w, _ in kept]) / sum(w for w, _ in kept)
        self.odds = []
        for pictures in self.pictures:
            odds = np.sqrt([len(p.objects) for p in pictures])
            self.odds.append(odds / odds.sum())

    def draw(self, rng: np.random.Generator, size: int, objects: int) -> Crop:
        """A crop of `size` pixels with 1 to `objects` objects.

        Raises:
            InputError: If no object can be shown.
        """
        for _ in range(MOST_DRAWS):
            group = rng.choice(len(self.pictures), p=self.shares)
            picture = self.pictures[group][rng.choice(len(self.odds[group]), p=self.odds[group])]
            crop = draw_crop(rng, picture, size, objects)
            if crop is not None:
                return crop
        raise nothing_to_show(picture)


def nothing_to_show(picture: Picture) -> InputError:
    """What to raise after `MOST_DRAWS` crops in vain."""
    return InputError(
        f"no crop of {picture.name} (the last of {MOST_DRAWS} that were tried) shows an object and "
        "ground beside it; an object must not cover the whole picture, and must have at least "
        f"{MIN_PIXELS} pixels."
    )


def draw_crop(
    rng: np.random.Generator, picture: Picture, size: int, objects: int, plain: bool = False
) -> Crop | None:
    """A crop around a random object of the picture; None if it shows too little.

    `plain` leaves colours and orientation alone.
    """
    raster, n, area, box = picture.objects[rng.integers(len(picture.objects))]
    fills = PLAIN_FILLS if plain else FILLS
    top, left, side = _window(rng, picture, raster, n, area / _drawn(rng, fills), box, size)
    masks = _masks(rng, picture, (raster, n), (top, left, side), size, objects)
    if not len(masks):
        return None
    count = picture.pixels.shape[2]
    bands = list(picture.rgb) if plain else augment.choose_bands(rng, count, picture.rgb)
    limits = picture.limits[:, bands]
    window = picture.pixels[top : top + side, left : left + side][..., bands]
    rgb = augment.to_uint8(window, limits if plain else augment.jitter_limits(rng, limits))
    rgb = _resize(rgb, size)
    if not plain:
        rgb, masks = augment.dihedral(rng, rgb, masks)
        rgb = augment.colours(rng, rgb)
    return Crop(np.ascontiguousarray(rgb.transpose(2, 0, 1)), masks, picture.name)


def _drawn(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    """A number between limits, no order of size likelier than another."""
    return float(np.exp(rng.uniform(*np.log(limits))))


def _window(
    rng: np.random.Generator,
    picture: Picture,
    raster: int,
    n: int,
    area: float,
    box: tuple[int, int, int, int],
    size: int,
) -> tuple[int, int, int]:
    """Top, left and side of a square of about `area` pixels that shows the object.

    It is enlarged up to eight times, as far as a click on something small is (`geosam2.zoom`).
    """
    height, width = picture.pixels.shape[:2]
    side = int(np.clip(np.sqrt(area), size / 8, size * 8))
    side = min(max(SMALLEST, side), height, width)
    if rng.random() < 0.7:  # around the middle of its box
        row, column = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    else:  # around any of its pixels
        inside = picture.labels[raster][box[0] : box[2], box[1] : box[3]] == n
        rows, columns = np.nonzero(inside)
        i = rng.integers(len(rows))
        row, column = box[0] + rows[i], box[1] + columns[i]
    top, left = (int(c - side * rng.uniform(0.25, 0.75)) for c in (row, column))
    return max(0, min(top, height - side)), max(0, min(left, width - side)), side


def _masks(
    rng: np.random.Generator,
    picture: Picture,
    anchor: tuple[int, int],
    window: tuple[int, int, int],
    size: int,
    objects: int,
) -> Array:
    """Masks (K, size, size) of the anchor and of others that show in the window."""
    top, left, side = window
    pick = ((np.arange(size) + 0.5) * side / size).astype(int)
    rasters = [r[top : top + side, left : left + side][np.ix_(pick, pick)] for r in picture.labels]
    found = []
    for i, raster in enumerate(rasters):
        ids, counts = np.unique(raster, return_counts=True)
        found += [
            ((i, int(n)), float(c))
            for n, c in zip(ids, counts, strict=True)
            if n and MIN_PIXELS <= c < 0.98 * size * size
        ]
    others = [(key, c) for key, c in found if key != anchor]
    chosen = [key for key, _ in found if key == anchor]
    if others and objects > 1:
        odds = np.sqrt([c for _, c in others])
        count = min(objects - len(chosen), len(others))
        picks = rng.choice(len(others), size=count, replace=False, p=odds / odds.sum())
        chosen += [others[i][0] for i in picks]
    return np.array([rasters[i] == n for i, n in chosen], dtype=bool).reshape(-1, size, size)


def _resize(rgb: Array, size: int) -> Array:
    image = Image.fromarray(np.ascontiguousarray(rgb))
    method = Image.Resampling.BOX if rgb.shape[0] > 2 * size else Image.Resampling.BILINEAR
    return np.asarray(image.resize((size, size), method))
