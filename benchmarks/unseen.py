"""Clicks on places, sensors and classes that nano never saw, with labels that people drew.

    python benchmarks/unseen.py [--quick] [--model NAME]

Two packages on PyPI carry labelled imagery among their test data; both are fetched once (38 MB):

- solaris 0.4.0 (Apache-2.0): footprints of buildings under trees on an oblique panchromatic
  WorldView image of Atlanta (SpaceNet 4, CC BY-SA 4.0), and fields in Landsat scenes, one of a
  single band.
- deepforest 2.1.0 (MIT): crowns of trees in NEON's aerial images, drawn as boxes; the ellipse
  within a box stands for the crown, so these labels count as derived.

They are laid out as `geosam2 evaluate clicks` wants its folders and judged by it: on whole scenes,
the way a user clicks. The last line is JSON: its figures.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import geopandas
import geosam2_model
import numpy as np
import pooch
import rasterio
from geosam2_model.checkpoints import models_dir
from geosam2_model.errors import ModelError
from PIL import Image, ImageDraw
from rasterio.features import rasterize
from rasterio.windows import Window, from_bounds

from geosam2 import evaluation

PACKAGES = {
    "solaris-0.4.0-py3-none-any.whl": (
        "https://files.pythonhosted.org/packages/86/16/"
        "d6bd1d5a09c9a8c565227659817030b636be743d1487b41b069b0f1793fd/",
        "09445946221410ebb2ae807580cf7dea9fe3c9aa3bf045947b61a162d2d3a8df",
    ),
    "deepforest-2.1.0-py3-none-any.whl": (
        "https://files.pythonhosted.org/packages/b7/a8/"
        "67e66685c81ec070372db546f933312c6d7401f845e200e5d900107ff51e/",
        "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
    ),
}
VECTORS = {
    "buildings_worldview": ("sample_geotiff.tif", "geotiff_labels.geojson"),
    "fields_landsat": (
        "sample_geotiff_custom_proj.tif",
        "geotiff_custom_proj_labels.geojson",
    ),
    "fields_landsat_one_band": (
        "nebraska_landsat5_with_nodata_wgs84.tif",
        "nebraska_wgs84_with_nodata_labels.geojson",
    ),
}
"""Image and polygons of each folder, in solaris."""
CROWNS = "crowns_aerial"
LARGEST = 1400
"""Aerial images are cut to so many pixels."""
MARGIN = 200
"""Pixels kept around the polygons of an image that is much larger than they."""


def fetched(name: str) -> Path:
    """Folder of the unpacked package, verified by its hash."""
    base, digest = PACKAGES[name]
    home = models_dir() / "unseen"
    pooch.retrieve(base + name, f"sha256:{digest}", name, home, pooch.Unzip(extract_dir=name[:-4]))
    return home / name[:-4]


def folders() -> list[Path]:
    """A folder a source, with `images/` and labels; made where it is not there yet."""
    home = models_dir() / "unseen" / "folders"
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=home.parent))
        try:
            solaris, deepforest = (fetched(name) for name in PACKAGES)
            for name, (image, polygons) in VECTORS.items():
                _from_polygons(made / name, solaris / "solaris/data", image, polygons)
            for drawn in sorted((deepforest / "deepforest/data").glob("*.xml")):
                _from_boxes(made / CROWNS, drawn)
            made.rename(home)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return sorted(home.iterdir())


def _from_polygons(folder: Path, data: Path, image: str, polygons: str) -> None:
    with rasterio.open(data / image) as source:
        labels = geopandas.read_file(data / polygons)
        left, top, right, bottom = labels.total_bounds
        if abs(left) > 180:  # GeoJSON without a CRS is taken for degrees, whatever it is in
            labels = labels.set_crs(source.crs, allow_override=True)
        window = Window(0, 0, source.width, source.height)
        if max(source.shape) > LARGEST:
            near = from_bounds(left, top, right, bottom, source.transform)
            near = Window(
                near.col_off - MARGIN,
                near.row_off - MARGIN,
                near.width + 2 * MARGIN,
                near.height + 2 * MARGIN,
            )
            window = near.intersection(window).round_offsets().round_lengths()
        pixels, transform = source.read(window=window), source.window_transform(window)
        shape = pixels.shape[1:]
        profile = source.profile | {"height": shape[0], "width": shape[1], "transform": transform}
    shapes = [(shape, n) for n, shape in enumerate(labels.geometry, start=1)]
    ids = rasterize(shapes, shape, transform=transform, dtype="uint16")
    _write(folder / "images" / f"{folder.name}.tif", pixels, profile)
    one = profile | {"count": 1, "dtype": "uint16", "nodata": 0}
    _write(folder / "instances" / f"{folder.name}.tif", ids[None], one)


def _from_boxes(folder: Path, drawn: Path) -> None:
    with Image.open(drawn.with_suffix(".png")) as image:
        pixels = image.convert("RGB").crop((0, 0, *(min(LARGEST, n) for n in image.size)))
    corners = ("xmin", "ymin", "xmax", "ymax")
    boxes = [
        tuple(round(float(box.findtext(name, "0"))) for name in corners)
        for box in ElementTree.parse(drawn).iter("bndbox")
    ]
    boxes.sort(key=lambda box: (box[0] - box[2]) * (box[3] - box[1]))  # small ones above
    ids = Image.new("I", pixels.size)
    for n, (left, top, right, bottom) in enumerate(boxes, start=1):
        if right < pixels.width and bottom < pixels.height:
            ImageDraw.Draw(ids).ellipse((left, top, right, bottom), fill=n)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    pixels.save(folder / "images" / f"{drawn.stem}.png")
    profile = {"driver": "GTiff", "width": pixels.width, "height": pixels.height, "count": 1}
    raster = folder / "instances_derived" / f"{drawn.stem}.tif"
    _write(raster, np.asarray(ids, np.uint16)[None], profile | {"dtype": "uint16"})


def _write(path: Path, pixels: Any, profile: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", **profile) as file:
        file.write(pixels)


def main() -> None:
    """Print the table of `geosam2 evaluate clicks`, then one line of JSON."""
    parser = argparse.ArgumentParser(description="Clicks on what nano never saw.")
    parser.add_argument("--quick", action="store_true", help="8 objects a source instead of 60")
    parser.add_argument("--model", default="nano", help="name or path of weights")
    given = parser.parse_args()
    try:
        model = geosam2_model.load(given.model)
    except ModelError as error:
        parser.error(str(error))
    options = evaluation.ClickOptions(limit=8 if given.quick else 60)
    (*_, report) = evaluation.judge_clicks(evaluation.find_labelled(folders()), model, options)
    print(report.table())
    print(json.dumps({"model": given.model, **report.figures()}))


if __name__ == "__main__":
    main()
