"""Outlining masks: ours against rasterio.features.shapes and contourpy, in one run.

    python benchmarks/vectorizing.py [--quick]

Each contender turns the same mask or logits into one GeoDataFrame row with area, best of three.
Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contourpy
import geopandas
import numpy as np
import rasterio.features
import shapely
from affine import Affine

from geosam2 import vectorize
from geosam2.testing import textures

TRANSFORM = Affine(0.5, 0, 500_000, 0, -0.5, 4_600_000)
CRS = "EPSG:32633"


def surface(side: int, kind: str) -> np.ndarray[Any, Any]:
    """Logits: "blobs" with holes, a "lake" with a long shore, or "speckle" of noise."""
    rng = np.random.default_rng(0)
    if kind == "lake":
        rows, cols = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
        slope: np.ndarray[Any, Any] = 4 * (0.7 - np.hypot(rows, cols))
        return slope + textures.noise(rng, (side, side), side / 4, 8)
    if kind == "speckle":
        return textures.noise(rng, (side, side), 12, 3) - 0.2
    return textures.noise(rng, (side, side), 300, 7) - 0.3


def ours(logits: Any) -> geopandas.GeoDataFrame:
    return _row(vectorize.polygons(logits, TRANSFORM, CRS))


def ours_mask(logits: Any) -> geopandas.GeoDataFrame:
    return _row(vectorize.polygons(logits > 0, TRANSFORM, CRS))


def rasterio_shapes(logits: Any) -> geopandas.GeoDataFrame:
    """The usual recipe: staircases, one feature a part, dissolved to one object."""
    mask = logits > 0
    found = rasterio.features.shapes(mask.astype(np.uint8), mask=mask, transform=TRANSFORM)
    features = [{"geometry": geometry, "properties": {}} for geometry, _ in found]
    return geopandas.GeoDataFrame.from_features(features, crs=CRS).dissolve()


def contourpy_filled(logits: Any) -> geopandas.GeoDataFrame:
    """The same lines by contourpy; validity is left to chance."""
    generator = contourpy.contour_generator(z=logits, fill_type="OuterOffset")
    parts = []
    for points, cuts in zip(*generator.filled(0, np.finfo(float).max), strict=True):
        rings = np.split(points + 0.5, cuts[1:-1])
        parts.append(shapely.Polygon(rings[0], rings[1:]))
    matrix = TRANSFORM
    placed = shapely.transform(
        shapely.multipolygons(parts), lambda p: p * [matrix.a, matrix.e] + [matrix.c, matrix.f]
    )
    return _row(placed)


def _row(geometry: shapely.Geometry) -> geopandas.GeoDataFrame:
    return geopandas.GeoDataFrame({"area": [geometry.area]}, geometry=[geometry], crs=CRS)


CONTENDERS: dict[str, Callable[[Any], geopandas.GeoDataFrame]] = {
    "ours": ours,
    "ours_mask": ours_mask,
    "shapes": rasterio_shapes,
    "contourpy": contourpy_filled,
}


def seconds(contender: Callable[[Any], Any], logits: Any, rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        contender(logits)
        times.append(time.perf_counter() - start)
    return min(times)


def peak_extra_mb(name: str, side: int) -> float:
    """Memory on top of the raster itself, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "logits.npy")
        np.save(path, surface(side, "blobs"))
        command = [sys.executable, __file__, "--memory", name, str(path)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(run.stdout)


def report_memory(name: str, path: str) -> None:
    logits = np.load(path)
    CONTENDERS[name](np.eye(64, dtype=np.float32) - 0.5)  # imports and caches
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    CONTENDERS[name](logits)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1 Mpx instead of 16, one round")
    parser.add_argument("--memory", nargs=2, metavar=("NAME", "PATH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        report_memory(*arguments.memory)
        return
    side, rounds = (1024, 1) if arguments.quick else (4096, 3)
    figures: dict[str, float] = {"megapixels": side * side / 2**20}
    for kind in ("lake", "blobs", "speckle"):
        # dissolving speckle takes the peers minutes: a sixteenth of it tells as much
        logits = surface(side // 4 if kind == "speckle" else side, kind)
        for name, contender in CONTENDERS.items():
            figures[f"{kind}_{name}_s"] = round(seconds(contender, logits, rounds), 4)
        valid = vectorize.polygons(logits, TRANSFORM, CRS).is_valid
        print(kind, {name: figures[f"{kind}_{name}_s"] for name in CONTENDERS}, "valid:", valid)
        figures[f"{kind}_speedup"] = round(
            figures[f"{kind}_shapes_s"] / figures[f"{kind}_ours_s"], 2
        )
    for name in ("ours", "shapes", "contourpy"):
        figures[f"extra_mb_{name}"] = round(peak_extra_mb(name, side), 1)
    labels = (4 * surface(side, "blobs")).astype(np.int32).clip(0)
    start = time.perf_counter()
    layer = vectorize.coverage(labels, TRANSFORM, CRS, simplify_m=0.7)
    figures["coverage_s"] = round(time.perf_counter() - start, 3)
    figures["coverage_valid"] = bool(shapely.coverage_is_valid(layer.geometry.to_numpy()))
    figures["speedup"] = min(figures[f"{kind}_speedup"] for kind in ("lake", "blobs"))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
