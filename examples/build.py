"""Make banepa.tif and banepa_buildings.geojson from chips of hotosm/fAIr-models (see SOURCE.md).

    python examples/build.py CHIPS_FOLDER BUILDINGS.geojson

Kept beside the data so that anybody can check where each pixel comes from.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import rasterio
import shapely
from affine import Affine
from PIL import Image
from pyproj import Transformer
from rasterio.shutil import copy

ZOOM, SIDE = 19, 512
COLUMNS, ROWS = range(386690, 386696), range(220241, 220249)
HALF_WORLD = 20037508.342789244
CELL = 2 * HALF_WORLD / 2**ZOOM / SIDE
LEFT, TOP = -HALF_WORLD + COLUMNS[0] * SIDE * CELL, HALF_WORLD - ROWS[0] * SIDE * CELL


def mosaic(chips: Path) -> np.ndarray:
    """All chips side by side, (3, H, W) uint8."""
    whole = np.zeros((len(ROWS) * SIDE, len(COLUMNS) * SIDE, 3), np.uint8)
    for r, y in enumerate(ROWS):
        for c, x in enumerate(COLUMNS):
            chip = Image.open(chips / f"train_OAM-{x}-{y}-{ZOOM}.jpg").convert("RGB")
            whole[r * SIDE : (r + 1) * SIDE, c * SIDE : (c + 1) * SIDE] = np.array(chip)
    return whole.transpose(2, 0, 1)


def write_cog(pixels: np.ndarray, path: Path) -> None:
    """JPEG at the quality of the chips, so that hardly anything is lost a second time."""
    profile = {
        "driver": "GTiff",
        "count": 3,
        "height": pixels.shape[1],
        "width": pixels.shape[2],
        "dtype": "uint8",
        "crs": "EPSG:3857",
        "transform": Affine(CELL, 0, LEFT, 0, -CELL, TOP),
        "photometric": "RGB",
    }
    options = {"compress": "JPEG", "quality": 75, "overview_quality": 75, "blocksize": 256}
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.tif"
        with rasterio.open(plain, "w", **profile) as target:
            target.write(pixels)
        copy(plain, path, driver="COG", overview_resampling="average", **options)


def write_buildings(source: Path, path: Path) -> None:
    """Buildings that lie wholly inside the scene: outline and OSM id, nothing else."""
    to_degrees = Transformer.from_crs(3857, 4326, always_xy=True)
    width, height = len(COLUMNS) * SIDE * CELL, len(ROWS) * SIDE * CELL
    scene = shapely.box(*to_degrees.transform_bounds(LEFT, TOP - height, LEFT + width, TOP))
    kept = []
    for feature in json.loads(source.read_text("utf-8"))["features"]:
        shape = shapely.geometry.shape(feature["geometry"])
        if scene.contains(shape):
            outline = shapely.set_precision(shape, 1e-7)
            properties = {"osm_id": feature["properties"]["osm_id"]}
            geometry = shapely.geometry.mapping(outline)
            kept.append({"type": "Feature", "properties": properties, "geometry": geometry})
    lines = ",\n".join(json.dumps(feature, separators=(",", ":")) for feature in kept)
    path.write_text(f'{{"type":"FeatureCollection","features":[\n{lines}\n]}}\n', "utf-8")


if __name__ == "__main__":
    here = Path(__file__).parent
    write_cog(mosaic(Path(sys.argv[1])), here / "banepa.tif")
    write_buildings(Path(sys.argv[2]), here / "banepa_buildings.geojson")
