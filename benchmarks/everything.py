"""Everything in a scene: found, whole, once; seams, memory, scaling and speed in one run.

    python benchmarks/everything.py [--quick] [--only PART ...] [--model nano]

Parts: `oracle` (a stand-in network that makes no mistakes: what linking and drawing lose),
`synthetic` and `banepa` (the real network against known polygons), `memory`, `scaling`, `meta` (one
frame against Meta's SAM2AutomaticMaskGenerator with the same weights and points). Times are CPU
seconds of one thread unless said otherwise, so that other work on the machine does not count. Last
line: JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import shapely
import torch
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio import features as raster_features

from geosam2 import quality
from geosam2.cluster import InProcess
from geosam2.drawing import Figure
from geosam2.everything import collect, executor_for, plan, start, with_threads
from geosam2.linking import UnionFind
from geosam2.outlines import of_figures
from geosam2.part_table import read_parts
from geosam2.parts import Layout
from geosam2.settling import Object
from geosam2.steps import Job
from geosam2.testing import synthetic_scene, write_geotiff, write_repeated_vrt
from geosam2.testing.oracle import ColourOracle, colour_scene
from geosam2.tiling import FrameIndex

EXAMPLES = Path(__file__).parent.parent / "examples"
Shapes = Any


def finish(job: Job) -> geopandas.GeoDataFrame:
    """The whole run in this process."""
    last = None
    for progress in start(job, InProcess(), resume=True):  # none if it has been finished before
        last = progress
    return collect(job, last)


# --- baselines on the same masks


def part_outlines(job: Job, *, cores: bool) -> tuple[Shapes, list[tuple[int, int]]]:
    """Each frame's masks as polygons; `cores` cuts them so that frames do not overlap."""
    layout, blocks = job.layout, job.blocks
    shapes, frames = [], []
    for block in blocks.in_order():
        for part in read_parts(job.path("find", block)):
            box = layout.core(part.frame) if cores else layout.frame(part.frame)
            figure = Figure(_lone(part.key), (part,))
            found = of_figures([figure], box, layout, job.grid.level)
            shapes += list(found.values())
            frames += [part.frame] * len(found)
    return np.array(shapes, dtype=object), frames


def _lone(key: Any) -> Object:
    return Object(key, (key,), 0.0, 1.0, 1.0, 1, 0, 0.0, None)


def merged_by_rule(job: Job) -> Shapes:
    """The usual vector rule: union on intersection over the smaller area.

    0.15 if both are large, 0.5 if one is small, 0.03 if they also span the seam.
    """
    shapes, frames = part_outlines(job, cores=False)
    large = 64**2 * job.grid.level.cell_size**2
    areas = shapely.area(shapes)
    groups = UnionFind()
    a, b = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    for i, j in zip(a, b, strict=True):
        if i >= j or frames[i] == frames[j]:
            continue
        smaller = shapely.intersection(shapes[i], shapes[j]).area / min(areas[i], areas[j])
        both = areas[i] > large and areas[j] > large
        limit = (
            0.5 if not both else 0.03 if _spans(job, frames[i], frames[j], shapes, i, j) else 0.15
        )
        if smaller >= limit:
            groups.join(int(i), int(j))
    members: dict[int, list[int]] = {}
    for i in range(len(shapes)):
        members.setdefault(groups.find(i), []).append(i)
    return np.array([shapely.union_all(shapes[own]) for own in members.values()], dtype=object)


def _spans(job: Job, one: Any, other: Any, shapes: Shapes, i: int, j: int) -> bool:
    """Both are cut by the border that the other's frame lies behind."""
    reach = 2 * job.grid.level.cell_size
    edges = [shapely.box(*job.grid.bounds(FrameIndex(*f))).boundary for f in (one, other)]
    return bool(
        shapely.dwithin(shapes[i], edges[0], reach) and shapely.dwithin(shapes[j], edges[1], reach)
    )


# --- figures


def figures(found: Shapes, truth: Shapes, job: Job) -> dict[str, float]:
    """Recall, precision and seams of one result."""
    grid = job.grid
    extent = shapely.box(*job.scene.bounds)
    frames = shapely.intersection(
        quality.seam_lines(grid.bounds(index) for index in grid.indices()), extent
    )
    cores = quality.seam_lines(grid.level.bounds_of(grid.core(index)) for index in grid.indices())
    crossing = shapely.intersects(truth, frames)
    matched = {t for _, t, _ in quality.matches(found, truth, 0.5)}
    hit = np.isin(np.arange(len(truth)), list(matched))
    cell = grid.level.cell_size
    out = {
        "objects": len(found),
        "recall_50": float(hit.mean()),
        "recall_75": len(quality.matches(found, truth, 0.75)) / len(truth),
        "precision_50": len(matched) / max(len(found), 1),
        "recall_50_inside": float(hit[~crossing].mean()) if (~crossing).any() else float("nan"),
        "recall_50_crossing": float(hit[crossing].mean()) if crossing.any() else float("nan"),
        "split_rate": quality.split_rate(found, truth, frames),
        "duplicates": quality.duplicates(found),
        "straight_edge": quality.straight_edge(
            found, shapely.union(frames, cores), cell, edge=extent.boundary
        ),
    }
    return {k: round(v, 4) for k, v in out.items()}


def compare(name: str, job: Job, truth: Shapes) -> dict[str, Any]:
    """Ours, plain tiling and the vector rule, from the same masks."""
    began = time.process_time()
    table = finish(job)
    seconds = time.process_time() - began
    results = {
        "linked": np.asarray(table.geometry),
        "plain_tiling": part_outlines(job, cores=True)[0],
        "vector_rule": merged_by_rule(job),
    }
    out: dict[str, Any] = {"cpu_seconds_per_frame": round(seconds / len(job.grid), 3)}
    out["coverage"] = round(table.attrs.get("coverage", 0.0), 4)
    for key, shapes in results.items():
        out[key] = figures(shapes, truth, job)
        print(f"{name:10s} {key:13s} {out[key]}", flush=True)
    return out


def moved(path: Path, pixels: np.ndarray[Any, Any], geobox: GeoBox, by: int) -> Path:
    """The same pixels `by` pixels further south-east, for the phase test."""
    a = geobox.affine
    shifted = Affine(a.a, a.b, a.c + by * a.a, a.d, a.e, a.f + by * a.e)
    return write_geotiff(path, pixels, GeoBox(geobox.shape, shifted, geobox.crs))


def phase(job: Job, path: Path, by: int, folder: Path, **choices: Any) -> float:
    """Mean IoU with a run whose frames lie half a frame elsewhere."""
    first = finish(job)
    second = finish(plan(path, folder, **choices))
    a = job.grid.level.resolution
    back = shapely.transform(
        np.asarray(second.geometry), lambda p: p - np.array([by * a[0], -by * a[1]])
    )
    return round(quality.phase_iou(np.asarray(first.geometry), back), 4)


# --- parts


def oracle(folder: Path, quick: bool) -> dict[str, Any]:
    """Linking, settling and drawing alone: masks are right wherever they are asked for."""
    size = 1500 if quick else 4000
    pixels, ids = colour_scene((size, size), size * size // 40_000, seed=7, size=(30, 900))
    geobox = GeoBox(ids.shape, Affine(0.5, 0, 500_000, 0, -0.5, 4_600_000), "EPSG:32633")
    path = write_geotiff(folder / "oracle.tif", pixels, geobox)
    choices = {"model": ColourOracle(), "points": (24,), "coverage": (), "block": 3}
    job = plan(path, folder / "oracle", **choices)
    out = compare("oracle", job, _truth_of(ids, geobox, 400))
    other = moved(folder / "moved.tif", pixels, geobox, job.layout.stride // 2)
    by = job.layout.stride // 2
    out["phase_iou"] = phase(job, other, by, folder / "oracle_moved", **choices)
    return out


def _truth_of(ids: np.ndarray[Any, Any], geobox: GeoBox, least: int) -> Shapes:
    """Objects of a label raster as polygons; several pieces are one object."""
    pieces: dict[int, list[Any]] = {}
    found = raster_features.shapes(ids, mask=ids > 0, transform=geobox.affine)
    for shape, value in found:
        pieces.setdefault(int(value), []).append(shapely.geometry.shape(shape))
    whole = np.array([shapely.union_all(own) for own in pieces.values()], dtype=object)
    return whole[shapely.area(whole) >= least * geobox.affine.a**2]


def synthetic(folder: Path, quick: bool, model: str) -> dict[str, Any]:
    """The real network on a textured scene whose objects are known exactly."""
    made = synthetic_scene(3, 1024 if quick else 2048)
    path = write_geotiff(folder / "synthetic.tif", made.pixels, made.geobox)
    job = plan(path, folder / "synthetic", model=model, points=(16,), coverage=())
    truth = np.asarray(made.truth.geometry)
    return compare("synthetic", job, truth[shapely.area(truth) > 400 * made.geobox.affine.a**2])


def banepa(folder: Path, quick: bool, model: str) -> dict[str, Any]:
    """Buildings of the drone scene (OpenStreetMap; other things found are not wrong)."""
    import geosam2

    scene = geosam2.open_scene(EXAMPLES / "banepa.tif")
    if quick:
        left, _, _, top = scene.bounds
        side = 768 * scene.cell_size
        corner = left + 600 * scene.cell_size, top - 600 * scene.cell_size
        scene = scene.within((corner[0], corner[1] - side, corner[0] + side, corner[1]))
    job = plan(scene, folder / "banepa", model=model, points=(16,), coverage=())
    truth = geopandas.read_file(EXAMPLES / "banepa_buildings.geojson").to_crs(scene.crs)
    inside = truth.geometry.within(shapely.box(*scene.bounds))
    return compare("banepa", job, np.asarray(truth.geometry[inside]))


MEMORY = """
import resource, sys
from geosam2.everything import plan, start, executor_for
from geosam2.testing.oracle import ColourOracle
job = plan(sys.argv[1], __import__("pathlib").Path(sys.argv[2]), model=ColourOracle(), points=(4,),
           coverage=(), block=4)
with executor_for(job) as executor:
    for _ in start(job, executor):
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def memory(folder: Path, quick: bool) -> dict[str, Any]:
    """Peak resident memory of a small and of a large run, in processes of their own."""
    pixels, ids = colour_scene((1024, 1024), 25, seed=1, size=(40, 300))
    geobox = GeoBox(ids.shape, Affine(0.5, 0, 500_000, 0, -0.5, 4_600_000), "EPSG:32633")
    tile = write_geotiff(folder / "tile.tif", pixels, geobox)
    sides = (3_072, 9_216) if quick else (4_608, 44_800)
    peaks = {}
    for side in sides:
        vrt = write_repeated_vrt(folder / f"v{side}.vrt", tile, (side, side))
        command = [sys.executable, "-c", MEMORY, str(vrt), str(folder / f"run{side}")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[f"{side**2 / 1e9:.3f} Gpx"] = int(done.stdout.split()[-1]) // 1024
    small, large = peaks.values()
    print(f"memory     {peaks} MB", flush=True)
    return {"peak_mb": peaks, "memory_growth": round(large / small - 1, 4)}


def scaling(folder: Path, quick: bool) -> dict[str, Any]:
    """Wall seconds of one and of two workers with one thread each; needs a quiet machine."""
    side = 3_072 if quick else 6_144
    pixels, ids = colour_scene((side, side), side * side // 40_000, seed=2, size=(40, 300))
    geobox = GeoBox(ids.shape, Affine(0.5, 0, 500_000, 0, -0.5, 4_600_000), "EPSG:32633")
    path = write_geotiff(folder / "scaling.tif", pixels, geobox)
    seconds = {}
    for workers in (1, 2):
        choices = {"model": ColourOracle(), "points": (24,), "coverage": (), "block": 2}
        job = plan(path, folder / f"scaling{workers}", **choices)
        with executor_for(job, workers=workers) as executor:
            job = with_threads(job, executor)
            began = time.perf_counter()
            for _ in start(job, executor):
                pass
            seconds[workers] = time.perf_counter() - began
    print(f"scaling    {seconds} s", flush=True)
    return {"wall_seconds": seconds, "scaling_2": round(seconds[1] / seconds[2], 3)}


class _Resize(torch.nn.Module):
    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.height, self.width = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = [self.height, self.width]
        return torch.nn.functional.interpolate(x[None], size=size, mode="bilinear")[0]


class _Normalize(torch.nn.Module):
    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


def lend_torchvision() -> None:
    """Meta's generator wants a little of torchvision; where it is missing, it gets this."""
    import importlib.util
    import types

    if importlib.util.find_spec("torchvision") is not None:
        return

    def box_area(boxes: torch.Tensor) -> torch.Tensor:
        return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])

    def batched_nms(
        boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float
    ) -> torch.Tensor:
        boxes = boxes.float() + idxs.float()[:, None] * (boxes.max() + 1)
        order, kept = scores.argsort(descending=True), []
        while len(order):
            first, order = order[0], order[1:]
            kept.append(first)
            low = torch.maximum(boxes[order, :2], boxes[first, :2])
            high = torch.minimum(boxes[order, 2:], boxes[first, 2:])
            common = (high - low).clamp(min=0).prod(1)
            union = box_area(boxes[order]) + box_area(boxes[first][None]) - common
            order = order[common <= iou_threshold * union]
        return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.int64)

    def to_tensor(image: np.ndarray[Any, Any]) -> torch.Tensor:
        return torch.from_numpy(image).permute(2, 0, 1).float() / 255

    names = ("torchvision", "torchvision.ops", "torchvision.ops.boxes", "torchvision.transforms")
    modules = [types.ModuleType(name) for name in names]
    vars(modules[2]).update(batched_nms=batched_nms, box_area=box_area)
    vars(modules[3]).update(Normalize=_Normalize, Resize=_Resize, ToTensor=lambda: to_tensor)
    sys.modules.update(zip(names, modules, strict=True))


def meta(quick: bool) -> dict[str, Any]:
    """One frame, the same (random) weights, points and thresholds, one thread each.

    The weights do not matter for the time as long as the same share of masks passes the filters:
    the limit is set so that a third of the masks does.
    """
    from geosam2_model import SAM2, Prompts
    from geosam2_model.config import VARIANTS

    lend_torchvision()
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
    from sam2.build_sam import build_sam2

    from geosam2.automatic import find_masks
    from geosam2.recipe import Recipe

    torch.set_num_threads(1)
    torch.manual_seed(0)
    side = 6 if quick else 32
    theirs = build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", None, device="cpu")
    ours = SAM2(VARIANTS["sam2.1_tiny"]).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    pixels = synthetic_scene(1, 1024).pixels
    with torch.inference_mode():
        features = ours.encode(torch.from_numpy(pixels)[None])
        some = torch.rand(16, 1, 2) * 1024
        answer = ours.decode(features, Prompts(some, torch.ones(16, 1).long()), multimask=True)
    limit = float(answer.predicted_iou.quantile(0.67).clamp(0, 1))
    recipe = Recipe(
        points=(side,), min_iou=limit, min_stability=0.0, coverage=(), skip_explained=False,
        min_region=0, features=False,
    )  # fmt: skip
    generator = SAM2AutomaticMaskGenerator(
        theirs, points_per_side=side, pred_iou_thresh=limit, stability_score_thresh=0.0
    )
    image = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    valid = np.ones((1024, 1024), bool)
    seconds = {"meta": np.inf, "ours": np.inf}
    for _ in range(2):
        began = time.process_time()
        theirs_found = generator.generate(image)
        seconds["meta"] = min(seconds["meta"], time.process_time() - began)
        began = time.process_time()
        found = find_masks(ours, pixels, valid, Layout(1024, 256), (0, 0), recipe)
        seconds["ours"] = min(seconds["ours"], time.process_time() - began)
    counts = {"meta": len(theirs_found), "ours": len(found.parts)}
    print(f"meta       {side**2} points, CPU seconds {seconds}, masks {counts}", flush=True)
    return {
        "points": side**2,
        "cpu_seconds": {k: round(v, 3) for k, v in seconds.items()},
        "frame_vs_meta": round(seconds["meta"] / seconds["ours"], 2),
    }


PARTS = ("oracle", "synthetic", "banepa", "memory", "scaling", "meta")


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", default="nano")
    args = parser.parse_args(arguments)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in args.only:
            if part in ("synthetic", "banepa"):
                results[part] = globals()[part](folder, args.quick, args.model)
            elif part == "meta":
                results[part] = meta(args.quick)
            else:
                results[part] = globals()[part](folder, args.quick)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    seams = results.get("oracle", {})
    network = results.get("synthetic", results.get("banepa", {})).get("linked", {})
    print(
        json.dumps(
            {
                "split_rate": seams.get("linked", {}).get("split_rate"),
                "duplicates": seams.get("linked", {}).get("duplicates"),
                "phase_iou": seams.get("phase_iou"),
                "recall_50": network.get("recall_50"),
                "scaling_2": results.get("scaling", {}).get("scaling_2"),
                "memory_growth": results.get("memory", {}).get("memory_growth"),
                "frame_vs_meta": results.get("meta", {}).get("frame_vs_meta"),
                "peak_mb": peak,
                "parts": results,
            }
        )
    )


if __name__ == "__main__":
    main()
