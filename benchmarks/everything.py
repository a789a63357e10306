"""Everything in a scene: found, whole, once; seams, memory, scaling and speed in one run.

    python benchmarks/everything.py [--quick] [--only PART ...] [--model nano]

Parts: `oracle` (a stand-in network that makes no mistakes: what linking and drawing lose),
`synthetic`, `banepa`, `dubai`, `ships` and `fields` (the real network against known polygons; all
but the first on images held back from training, the last on one of `unseen.py`), `shifted` (the
real network, frames half a frame elsewhere), `tune` (what each limit of the score finds on training
pixels: how `recipe_for` was chosen; not run unless asked for), `memory`, `scaling`, `kills` (the
client, a worker or the scheduler killed at random moments, then resumed) and `meta` (one frame
against Meta's SAM2AutomaticMaskGenerator with the same weights and points). Times are CPU seconds
of one thread unless said otherwise, so that other work on the machine does not count. Last line:
JSON.

Beside ours, from the same masks: `no_judge` (the memory is not asked), `plain_tiling` (each frame's
own masks, cut where the next frame's begin), `vector_rule` (the usual union of polygons that
overlap) and `contact_rule` (sam-mosaic's: labels of neighbouring tiles that touch along the seam
for five pixels are one).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
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
from geosam2.automatic import find_masks
from geosam2.cluster import InProcess, prepare
from geosam2.drawing import Figure, paint
from geosam2.drawing import figures as figures_of
from geosam2.everything import collect, executor_for, identity, plan, start, tables
from geosam2.linking import UnionFind
from geosam2.outlines import of_figures, of_labels
from geosam2.part_table import read_parts, write_parts
from geosam2.parts import FrameKey, Layout, Part
from geosam2.settling import Borders, Object, compare_within, row_of, settle
from geosam2.steps import Job, around, network_of
from geosam2.testing import synthetic_scene, write_geotiff, write_repeated_vrt
from geosam2.testing.oracle import ColourOracle, colour_scene
from geosam2.tiling import FrameIndex

EXAMPLES = Path(__file__).parent.parent / "examples"
DATA = Path(__file__).parent.parent.parent / "shared" / "data"
Shapes = Any


def finish(job: Job) -> geopandas.GeoDataFrame:
    """The whole run in this process."""
    for _ in start(job, InProcess(), resume=True):  # none if it has been finished before
        pass
    return collect(job)


def linked(job: Job) -> Shapes:
    """Polygons of the finished run."""
    return np.array([shape for table in tables(job) for shape in table.geometry], dtype=object)


# --- baselines on the same masks


def part_outlines(job: Job, *, cores: bool) -> tuple[Shapes, list[FrameKey]]:
    """Each frame's masks as polygons, and the frame of each.

    `cores` cuts them so that frames do not overlap.
    """
    layout, blocks = job.layout, job.blocks
    shapes: list[Any] = []
    frames: list[FrameKey] = []
    for block in blocks.in_order():
        for part in read_parts(job.path("find", block)):
            box = layout.core(part.frame) if cores else layout.frame(part.frame)
            figure = Figure(_lone(part.key), (part,))
            found = of_figures([figure], box, layout, job.grid.level)
            shapes += list(found.values())
            frames += [part.frame] * len(found)
    return np.array(shapes, dtype=object), frames


def _lone(key: Any) -> Object:
    return Object(key, (key,), 0.0, 1.0, 1.0, 1, 0, 1.0, None)


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
    return _unions(shapes, groups)


def merged_by_contact(job: Job, pixels: int = 5) -> Shapes:
    """Sam-mosaic's rule, after its documentation: what touches along the seam is one object."""
    shapes, frames = part_outlines(job, cores=True)
    groups = UnionFind()
    a, b = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    other = [i < j and frames[i] != frames[j] for i, j in zip(a, b, strict=True)]
    a, b = a[other], b[other]
    edges = shapely.boundary(shapes)
    contact = shapely.length(shapely.intersection(edges[a], edges[b]))
    touching = contact >= pixels * _cell(job)
    for i, j in zip(a[touching], b[touching], strict=True):
        groups.join(int(i), int(j))
    return _unions(shapes, groups)


def _cell(job: Job) -> float:
    return job.grid.level.cell_size


def _unions(shapes: Shapes, groups: UnionFind) -> Shapes:
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


def figures(found: Shapes, truth: Shapes, job: Job) -> dict[str, float | None]:
    """Recall, precision and seams of one result.

    `split_rate` is the share of the true objects crossing a seam that came out as several
    polygons, for whatever reason: a building with two roofs, as a rule. `parted_by_seam` is the
    share of which two polygons meet along a seam, `parted_by_chance` along lines where none is, the
    mean of several places for those: roofs, too, may meet there.
    """
    grid = job.grid
    extent = shapely.box(*job.scene.bounds)
    lines = quality.seam_lines(grid.bounds(index) for index in grid.indices())
    frames = shapely.intersection(lines, extent)
    cores = quality.seam_lines(grid.level.bounds_of(grid.core(index)) for index in grid.indices())
    seams = shapely.union(frames, cores)
    crossing = shapely.intersects(truth, frames)
    matched = {t for _, t, _ in quality.matches(found, truth, 0.5)}
    hit = np.isin(np.arange(len(truth)), list(matched))
    out = {
        "objects": len(found),
        "recall_50": _mean(hit),
        "recall_75": len(quality.matches(found, truth, 0.75)) / len(truth),
        "precision_50": len(matched) / max(len(found), 1),
        "recall_50_inside": _mean(hit[~crossing]),
        "recall_50_crossing": _mean(hit[crossing]),
        "split_rate": quality.split_rate(found, truth, frames),
        **parted(found, truth[crossing], seams, job),
        "duplicates": quality.duplicates(found),
        **straight_edges(found, seams, extent, job),
    }
    return {k: None if np.isnan(v) else round(float(v), 4) for k, v in out.items()}


def parted(found: Shapes, truth: Shapes, seams: Any, job: Job) -> dict[str, float]:
    """True objects whose pieces meet along seams, and along the same lines in other places."""

    def rate(lines: Any) -> float:
        return quality.parted_rate(found, truth, lines, 2 * _cell(job))

    elsewhere = [rate(moved_lines(seams, job, share)) for share in ASIDE]
    return {"parted_by_seam": rate(seams), "parted_by_chance": _mean(np.array(elsewhere))}


ASIDE = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
"""Parts of a stride by which lines are moved to where no seam is."""


def moved_lines(seams: Any, job: Job, share: float = 0.2) -> Any:
    """The same lines where no seam is."""
    aside = share * job.layout.stride * _cell(job)
    return shapely.transform(seams, lambda points: points + aside)


def straight_edges(found: Shapes, seams: Any, extent: Any, job: Job) -> dict[str, float]:
    """Outline along seams, and along the same lines moved to where no seam is."""
    cell = _cell(job)
    rim = shapely.buffer(extent.boundary, 4 * cell)  # masks end with the data, to a cell
    aside = moved_lines(seams, job)
    return {
        name: quality.straight_edge(found, lines, cell, edge=rim)
        for name, lines in (("straight_edge", seams), ("straight_by_chance", aside))
    }


def centred(job: Job, truth: Shapes) -> dict[str, float]:
    """The same network and rules without a seam in the way: one frame a true object, around it."""
    hits = seen = several = 0
    for one in truth:
        found, itself = alone(job, one.centroid), np.array([one], dtype=object)
        hits += bool(quality.matches(found, itself, 0.5))
        pieces = len(quality.pieces_of(itself, found)[0])
        seen += pieces > 0
        several += pieces > 1
    recall, split = hits / max(len(truth), 1), several / max(seen, 1)
    return {"recall_50": round(recall, 4), "split_rate": round(split, 4)}


def alone(job: Job, place: Any) -> Shapes:
    """Flat polygons of one frame with `place` in its middle."""
    grid, recipe = job.grid, job.recipe
    frame = job.scene.read(grid.centred(place.x, place.y))
    layout = Layout(grid.frame_size, grid.overlap, frame.corner)
    key = (0, 0)
    parts = find_masks(
        network_of(job),
        frame.pixels,
        frame.valid,
        layout,
        key,
        recipe,
        around=functools.partial(around, job),
    ).parts
    parts = tuple(replace(part, edges=0) for part in parts)
    rows = tuple(row_of(part, layout) for part in parts)
    _, overlaps = compare_within(parts)
    known = Borders(rows, overlaps=tuple(overlaps))
    objects, _ = settle([known], lambda _: False, recipe)
    box = layout.frame(key)
    labels = paint(figures_of(objects, {p.key: p for p in parts}), box, [box], layout, recipe)
    return np.array(
        list(of_labels(labels, box, grid.level, recipe.simplify).values()), dtype=object
    )


def _mean(values: np.ndarray[Any, Any]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def average_precision(found: Shapes, score: Any, truth: Shapes, least: float) -> float:
    """Area under precision over recall, the best scores first (class-agnostic)."""
    right = np.zeros(len(found), bool)
    right[[f for f, _, _ in quality.matches(found, truth, least)]] = True
    right = right[np.argsort(-np.asarray(score), kind="stable")]
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return round(float(envelope[right].sum() / len(truth)), 4)


def without_judge(job: Job) -> Job:
    """The same masks, linked without asking the memory."""
    other = replace(job, judge=False, folder=job.folder.with_name(f"{job.folder.name}_no_judge"))
    prepare(other, identity(other), resume=True)
    shutil.copytree(job.folder / "find", other.folder / "find", dirs_exist_ok=True)
    return other


def compare(name: str, job: Job, truth: Shapes) -> dict[str, Any]:
    """Ours and the rivals, from the same masks."""
    began = time.process_time()
    table = finish(job)
    seconds = time.process_time() - began
    unjudged = without_judge(job)
    finish(unjudged)
    results = {
        "linked": linked(job),
        "no_judge": linked(unjudged),
        "plain_tiling": part_outlines(job, cores=True)[0],
        "vector_rule": merged_by_rule(job),
        "contact_rule": merged_by_contact(job),
    }
    out: dict[str, Any] = {
        "frames": len(job.grid),
        "truth": len(truth),
        "cpu_seconds_per_frame": round(seconds / len(job.grid), 3),
        "coverage": round(table.attrs.get("coverage", 0.0), 4),
        "ap_50": average_precision(results["linked"], table.score, truth, 0.5),
        "ap_75": average_precision(results["linked"], table.score, truth, 0.75),
    }
    if name == "banepa":
        out["centred"] = centred(job, truth)
    print(f"{name:10s} {out}", flush=True)
    for key, result in results.items():
        out[key] = figures(result, truth, job)
        print(f"{name:10s} {key:13s} {out[key]}", flush=True)
    return out


def moved(path: Path, pixels: np.ndarray[Any, Any], geobox: GeoBox, by: int) -> Path:
    """The same pixels `by` pixels further south-east, for the phase test."""
    a = geobox.affine
    shifted = Affine(a.a, a.b, a.c + by * a.a, a.d, a.e, a.f + by * a.e)
    return write_geotiff(path, pixels, GeoBox(geobox.shape, shifted, geobox.crs))


def phase(job: Job, path: Any, by: int, folder: Path, **choices: Any) -> float:
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
    choices = {
        "model": ColourOracle(), "points": (24,), "coverage": (), "block": 3, "overlap": 256,
    }  # fmt: skip
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
    made = synthetic_scene(3, 512 if quick else 2048)
    path = write_geotiff(folder / "synthetic.tif", made.pixels, made.geobox)
    job = plan(path, folder / "synthetic", model=model)
    things = made.truth[made.truth.area > 400 * made.geobox.affine.a**2]
    truth = np.asarray(things.geometry)
    out = compare("synthetic", job, truth)
    found = np.asarray(finish(job).geometry)
    for least in (0.5, 0.75):
        hit = np.isin(
            np.arange(len(truth)), [t for _, t, _ in quality.matches(found, truth, least)]
        )
        out[f"recall_{least * 100:.0f}_by_kind"] = (
            things.assign(hit=hit).groupby("kind").hit.mean().round(4).to_dict()
        )
    print(f"synthetic  {out['recall_50_by_kind']} {out['recall_75_by_kind']}", flush=True)
    return out


def open_window(path: Path, row: int, col: int, rows: int, cols: int) -> Any:
    """A window of a file."""
    import geosam2

    return part_of(geosam2.open_scene(path), row, col, rows, cols)


def part_of(scene: Any, row: int, col: int, rows: int, cols: int) -> Any:
    """A window of a scene in pixels of its native level."""
    left, _, _, top = scene.bounds
    c = scene.cell_size
    west, north = left + col * c, top - row * c
    return scene.within((west, north - rows * c, west + cols * c, north))


def drone_scene(row: int, col: int, rows: int, cols: int) -> tuple[Any, Shapes]:
    """Part of the drone scene, and the buildings that lie in it (OpenStreetMap)."""
    scene = open_window(EXAMPLES / "banepa.tif", row, col, rows, cols)
    truth = geopandas.read_file(EXAMPLES / "banepa_buildings.geojson").to_crs(scene.crs)
    inside = truth.geometry.within(shapely.box(*scene.bounds))
    return scene, np.asarray(truth.geometry[inside])


def banepa(folder: Path, quick: bool, model: str) -> dict[str, Any]:
    """Buildings of the drone scene; the last 1,024 rows were held back from training.

    Other things than buildings are found too and are not wrong, so precision says little.
    """
    window = (3_328, 1_920, 768, 768) if quick else (3_072, 0, 1_024, 3_072)
    scene, truth = drone_scene(*window)
    job = plan(scene, folder / "banepa", model=model)
    return compare("banepa", job, truth)


def shifted(folder: Path, quick: bool, model: str) -> dict[str, Any]:
    """The real network on the drone scene, and again with frames half a frame elsewhere."""
    window = (3_328, 1_920, 512, 512) if quick else (3_072, 0, 1_024, 3_072)
    job = plan(open_window(EXAMPLES / "banepa.tif", *window), folder / "here", model=model)
    by = job.layout.stride // 2
    moved_file = moved_copy(folder / "moved.vrt", EXAMPLES / "banepa.tif", by)
    there = open_window(moved_file, *window)
    return {"phase_iou": phase(job, there, by, folder / "there", model=model)}


def moved_copy(path: Path, source: Path, by: int) -> Path:
    """The same file `by` pixels further south-east."""
    import rasterio.shutil

    rasterio.shutil.copy(source, path, driver="VRT")
    with rasterio.open(path, "r+") as file:
        file.transform = file.transform * Affine.translation(by, by)
    return path


def dubai(folder: Path, quick: bool, model: str) -> dict[str, Any]:
    """Satellite images of Dubai that were held back; regions of buildings, roads, plants, water."""
    choices = {"pixel_coordinates": True}
    names = ("tile4_001",) if quick else ("tile4_001", "tile4_005", "tile5_002")
    source = DATA / "dubai_hitl"
    levels = ("x2",) if quick else ("native", "x2")
    return {
        f"{n} {level}": _labelled(source, n, "jpg", folder, model, 512, level, choices)
        for n in names
        for level in levels
    }


def ships(folder: Path, quick: bool, model: str) -> dict[str, Any]:
    """Sentinel-2 at 10 m, ports that were held back; most ships are 5 to 15 pixels long."""
    names = ("gdynia",) if quick else ("genoa", "gdynia")
    choices = {"bands": (3, 2, 1)}
    source = DATA / "sen2ships"
    return {n: _labelled(source, n, "tif", folder, model, 256, "x4", choices) for n in names}


def fields(folder: Path, quick: bool, model: str) -> dict[str, Any]:
    """Irrigated fields of 15 to 25 pixels on Landsat, at its own pixels and enlarged ones."""
    import unseen

    (source,) = (one for one in unseen.folders() if one.name == "fields_landsat")
    return {
        f"fields {level}": _labelled(source, source.name, "tif", folder, model, 512, level)
        for level in (("x2",) if quick else ("native", "x2"))
    }


def _labelled(
    source: Path, name: str, kind: str, folder: Path, model: str, side: int, level: str,
    opened: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The busiest window of an image at a level, against its label raster."""
    import rasterio

    import geosam2

    with rasterio.open(source / "instances" / f"{name}.tif") as labels:
        ids = labels.read(1).astype(np.int32)
    row, col = _busiest(ids, side)
    whole = geosam2.open_scene(source / "images" / f"{name}.{kind}", **(opened or {}))
    rows, cols = min(side, ids.shape[0]), min(side, ids.shape[1])
    scene = part_of(whole, row, col, rows, cols)
    left, _, _, top = scene.bounds
    place = Affine(scene.cell_size, 0, left, 0, -scene.cell_size, top)
    crs = None if scene.crs is None else scene.crs.to_wkt()
    window = np.ascontiguousarray(ids[row : row + rows, col : col + cols])
    truth = _truth_of(window, GeoBox(window.shape, place, crs), 16 if kind == "tif" else 200)
    job = plan(scene, folder / f"{name}_{level}", model=model, level=level)
    return compare(f"{name} {level}", job, truth)


def _busiest(ids: np.ndarray[Any, Any], side: int) -> tuple[int, int]:
    """Corner of the window with most objects, on a coarse raster of corners."""
    rows = range(0, max(1, ids.shape[0] - side + 1), 64)
    cols = range(0, max(1, ids.shape[1] - side + 1), 64)
    places = [(row, col) for row in rows for col in cols]
    return max(places, key=lambda p: len(np.unique(ids[p[0] : p[0] + side, p[1] : p[1] + side])))


def tune(folder: Path, quick: bool, model: str) -> dict[str, Any]:
    """What each limit of the score finds, on training pixels of the drone scene."""
    scene, truth = drone_scene(600, 600, 768, 768) if quick else drone_scene(0, 0, 1_536, 1_536)
    loose = {"min_iou": 0.2, "min_stability": 0.2, "min_score": 0.15, "coverage": ()}
    job = plan(scene, folder / "tune", model=model, **loose)
    finish(job)
    out = {}
    for limit in (0.2, 0.3, 0.35, 0.38, 0.42, 0.46, 0.5):
        strict = limited(job, lambda part, limit=limit: part.score >= limit, f"tune_{limit}")
        finish(strict)
        out[str(limit)] = figures(linked(strict), truth, strict)
        print(f"tune       {limit:13} {out[str(limit)]}", flush=True)
    return out


def limited(job: Job, keep: Callable[[Part], bool], name: str) -> Job:
    """The run as if masks that `keep` refuses had not been found."""
    other = replace(job, folder=job.folder.with_name(name))
    prepare(other, identity(other), resume=True)
    for block in job.blocks.in_order():
        kept: list[Part] = []
        ranks: dict[Any, int] = {}
        for part in filter(keep, read_parts(job.path("find", block))):
            rank = ranks.get(part.frame, 0)
            ranks[part.frame] = rank + 1
            kept.append(replace(part, rank=rank))
        empty = {"frames": 0, "coverage": 0.0, "valid": 0.0}
        write_parts(other.path("find", block), kept, figures=empty)
    return other


MEMORY = """
import resource, sys
from geosam2.everything import plan, start, executor_for
from geosam2.testing.oracle import ColourOracle
job = plan(sys.argv[1], __import__("pathlib").Path(sys.argv[2]), model=ColourOracle(), points=(4,),
           overlap=128, coverage=(), block=4)
with executor_for(job) as executor:
    for _ in start(job, executor):
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def memory(folder: Path, quick: bool) -> dict[str, Any]:
    """Peak resident memory of a small and of a large run, in processes of their own.

    Of whole GeoTIFFs: what GDAL keeps of one grows with the file, and of small tiles that a VRT
    repeats it does not.
    """
    import rasterio.shutil

    pixels, ids = colour_scene((1024, 1024), 25, seed=1, size=(40, 300))
    geobox = GeoBox(ids.shape, Affine(0.5, 0, 500_000, 0, -0.5, 4_600_000), "EPSG:32633")
    tile = write_geotiff(folder / "tile.tif", pixels, geobox)
    sides = (3_072, 12_288) if quick else (4_608, 44_800)
    peaks = {}
    for side in sides:
        vrt = write_repeated_vrt(folder / f"v{side}.vrt", tile, (side, side))
        path = folder / f"v{side}.tif"
        rasterio.shutil.copy(vrt, path, driver="GTiff", tiled=True, compress="deflate")
        command = [sys.executable, "-c", MEMORY, str(path), str(folder / f"run{side}")]
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
        choices = {
            "model": ColourOracle(),
            "points": (24,),
            "coverage": (),
            "block": 2,
            "overlap": 128,
        }
        job = plan(path, folder / f"scaling{workers}", **choices)
        with executor_for(job, workers=workers) as executor:
            job = replace(job, threads=1)
            began = time.perf_counter()
            for _ in start(job, executor):
                pass
            seconds[workers] = time.perf_counter() - began
    print(f"scaling    {seconds} s", flush=True)
    return {"wall_seconds": seconds, "scaling_2": round(seconds[1] / seconds[2], 3)}


RUN = Path(__file__).parent.parent / "tests" / "everything_run.py"


def kills(folder: Path, quick: bool) -> dict[str, Any]:
    """Kill a client, worker or scheduler at a random moment, resume, compare; seeded."""
    pixels, _ = colour_scene((250, 330), 12, seed=4, size=(30, 160))
    geobox = GeoBox((250, 330), Affine(0.5, 0, 500_000, 0, -0.5, 4_600_000), "EPSG:32633")
    scene = write_geotiff(folder / "kills.tif", pixels, geobox)
    whole = folder / "kills.geojson"
    subprocess.run([sys.executable, RUN, scene, folder / "kills", whole], check=True, stdout=-3)
    equal = []
    for seed in range(3 if quick else 20):
        victim = ("client", "worker", "scheduler")[seed % 3]
        found = _killed(scene, folder / f"kill{seed}", victim, random.Random(seed))
        same = [json.loads(path.read_text())["features"] for path in (found, whole)]
        equal.append(same[0] == same[1])
        print(f"kills      {seed} {victim:9s} equal {equal[-1]}", flush=True)
    return {"kills": len(equal), "equal": sum(equal)}


def _killed(scene: Path, folder: Path, victim: str, rng: random.Random) -> Path:
    """Run on a cluster of its own, kill, resume; returns the output."""
    output = folder.with_suffix(".geojson")
    command = [sys.executable, RUN, scene, folder, output, "--slow", "0.05"]
    port = str(rng.randrange(20_000, 60_000))
    address = f"tcp://127.0.0.1:{port}"
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1"]
    worker += ["--no-nanny", "--no-dashboard"]
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", port]
    with contextlib.ExitStack() as running:
        started = {"scheduler": running.enter_context(_process([*scheduler, "--no-dashboard"]))}
        _wait_for(int(port))
        started |= {
            "worker": running.enter_context(_process(worker)),
            "client": running.enter_context(_process([*command, "--scheduler", address])),
        }
        lines = started["client"].stdout
        assert lines is not None
        for _ in range(rng.randint(0, 9)):  # of 14 steps
            lines.readline()
        time.sleep(rng.uniform(0, 0.3))
        assert not output.exists(), "the run ended before it was disturbed"
        started[victim].send_signal(signal.SIGKILL)
        if victim == "worker":  # another one comes, as under any supervisor
            running.enter_context(_process(worker))
        started["client"].communicate(timeout=900)
    if not output.exists():
        subprocess.run([*command, "--resume"], check=True, stdout=-3)
    return output


def _wait_for(port: int) -> None:
    """Until something listens there."""
    for _ in range(1_200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"no scheduler listens on port {port}")


@contextlib.contextmanager
def _process(command: list[Any]) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the context; what it says of the killing is not shown."""
    hasty = {**os.environ, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "10s"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=hasty
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


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

    from geosam2.recipe import Recipe

    torch.set_num_threads(1)
    torch.manual_seed(0)
    side = 12 if quick else 32
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
    seconds = {}
    began = time.process_time()
    theirs_found = generator.generate(image)
    seconds["meta"] = time.process_time() - began
    began = time.process_time()
    found = find_masks(ours, pixels, valid, Layout(1024, 512), (0, 0), recipe)
    seconds["ours"] = time.process_time() - began
    counts = {"meta": len(theirs_found), "ours": len(found.parts)}
    print(f"meta       {side**2} points, CPU seconds {seconds}, masks {counts}", flush=True)
    return {
        "points": side**2,
        "cpu_seconds": {k: round(v, 3) for k, v in seconds.items()},
        "frame_vs_meta": round(seconds["meta"] / seconds["ours"], 2),
    }


NETWORK = ("synthetic", "banepa", "shifted", "dubai", "ships", "fields", "tune")
PARTS = ("oracle", *NETWORK, "memory", "scaling", "kills", "meta")


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    usual = [part for part in PARTS if part != "tune"]
    parser.add_argument("--only", nargs="+", choices=PARTS, default=usual)
    parser.add_argument("--model", default="nano")
    args = parser.parse_args(arguments)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for part in args.only:
            folder = Path(name) / part
            folder.mkdir()
            if part == "meta":
                results[part] = meta(args.quick)
            else:
                more = (args.model,) if part in NETWORK else ()
                results[part] = globals()[part](folder, args.quick, *more)
    print(json.dumps(summary(results)))


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The figures that count. Seams: of the real network on the drone scene, and of exact masks."""
    real = results.get("banepa", results.get("synthetic", {}))
    exact = results.get("oracle", {})
    names = ("split_rate", "parted_by_seam", "duplicates", "recall_50")
    return {
        **{name: real.get("linked", {}).get(name) for name in names},
        "phase_iou": results.get("shifted", {}).get("phase_iou"),
        "exact_masks": {
            **{name: exact.get("linked", {}).get(name) for name in names},
            "phase_iou": exact.get("phase_iou"),
        },
        "scaling_2": results.get("scaling", {}).get("scaling_2"),
        "memory_growth": results.get("memory", {}).get("memory_growth"),
        "frame_vs_meta": results.get("meta", {}).get("frame_vs_meta"),
        "kills_equal": results.get("kills", {}).get("equal"),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "parts": results,
    }


if __name__ == "__main__":
    main()
