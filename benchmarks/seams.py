"""What following is worth at seams: memory, known logits, asking again, all of them, none.

    python benchmarks/seams.py --quick
    python benchmarks/seams.py --seeds 2 --sizes 4 12 --kinds lake road

One click on an object of known outline that covers several frames, and ways to get it whole:

    both     memory in map coordinates and known logits as a prompt (what `pan` does)
    memory   memory only
    known    known logits only
    frame    both, but memories placed as in a video, all in the same spot
    once     both, but each frame is asked once and not until its mask stays the same
    merge    every frame by itself (a grid of points), then the best vector rule known: join masks
             whose intersection over the smaller is 0.15 if both are large, 0.5 if one is small,
             0.03 if they meet along most of the seam
    coarse   no following: one frame at the level where the whole object fits, then its outline
             refined at the finest level; what the others are to be compared with

The last line is JSON. `followed_iou_N`: mean IoU with the truth for objects of N frames;
`split_rate`: share of found seam-crossing objects that came out in parts; `straight_edge`: share
of outline along frame borders; `phase_iou`: IoU of two runs with frames half a frame apart;
`swallowed`: share of the look-alike neighbour that was taken in; `of_coarse_N`: followed_iou_N
as a share of what "coarse" reached.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import geopandas
import numpy as np
import shapely
import torch
from affine import Affine
from odc.geo.geobox import GeoBox

import geosam2
from geosam2 import quality, regions
from geosam2.cache import EmbeddingCache, FrameEncoder
from geosam2.masklet import PanOptions
from geosam2.prompts import FramePrompt, Prompt, network_prompts
from geosam2.propagate import Panning
from geosam2.segmenter import Segmenter
from geosam2.testing import SyntheticScene, synthetic_scene, write_geotiff
from geosam2.tiling import FrameGrid, FrameIndex
from geosam2.vectorize import from_mosaic, polygons

VARIANTS: dict[str, dict[str, Any]] = {
    "both": {},
    "memory": {"use_known": False},
    "known": {"use_memory": False},
    "frame": {"positions": "frame"},
    "once": {"rounds": 0},
    "merge": {},
    "coarse": {},
}
SIZES = (1, 4, 12, 40)
KINDS = {
    "lake": ("lake", "road", "field", "building", "wood"),
    "river": ("river", "field", "building", "wood"),
    "field": ("field", "building", "road"),
    "road": ("road", "field", "building", "wood"),
}
"""What is followed, and the clutter around it."""
FITS = 0.6  # of a frame: an object of that size is whole on the frame that holds its middle
LARGE = 32 * 32  # pixels from which a mask counts as large in the vector rule


@dataclass(frozen=True)
class Case:
    """One object on one scene."""

    name: str
    path: Path
    """The scene."""
    shifted: Path | None
    """The same pixels with the frames half a frame elsewhere."""
    truth: shapely.Geometry
    """True outline in the scene's CRS."""
    twin: shapely.Geometry | None
    """A look-alike beside it."""
    move: tuple[float, float]
    """From the scene's coordinates to the shifted one's."""
    frames: int
    """Frames that the object is drawn to touch."""


@dataclass
class Found:
    """What one variant found of one case."""

    case: Case
    outline: shapely.Geometry
    shifted: shapely.Geometry | None
    seams: shapely.Geometry
    pixel: float
    agreement: list[float] = field(default_factory=list)
    seconds: float = 0.0
    looks: int = 0
    parts: int = 1


def synthetic(
    folder: Path, seeds: int, sizes: tuple[int, ...], kinds: tuple[str, ...]
) -> Iterator[Case]:
    """Lakes with islands, rivers, fields and roads among clutter, every other one with a twin."""
    for frames, seed, kind in itertools.product(sizes, range(seeds), kinds):
        twin = (seed + list(KINDS).index(kind)) % 2 == 0
        made = synthetic_scene(seed, kinds=KINDS[kind], frames=frames, twin=twin)
        yield _drawn(folder, f"{kind}-{frames}-{seed}", made, frames)


def _drawn(folder: Path, name: str, made: SyntheticScene, frames: int) -> Case:
    path = write_geotiff(folder / f"{name}.tif", made.pixels, made.geobox)
    a = made.geobox.affine
    dx, dy = 192 * a.a, 192 * a.e
    moved = Affine(a.a, 0, a.c + dx, 0, a.e, a.f + dy)
    other = GeoBox(made.geobox.shape, moved, made.geobox.crs)
    shifted = write_geotiff(folder / f"{name}-shifted.tif", made.pixels, other)
    main = made.truth[made.truth.main].geometry.iloc[0]
    twins = made.truth[made.truth.twin].geometry
    twin = twins.union_all() if len(twins) else None
    return Case(name, path, shifted, main, twin, (dx, dy), frames)


def buildings(count: int) -> Iterator[Case]:
    """Buildings of the example scene that cross a frame border; OpenStreetMap's outlines."""
    folder = Path(__file__).parents[1] / "examples"
    scene = geosam2.open_scene(folder / "banepa.tif")
    truth = geopandas.read_file(folder / "banepa_buildings.geojson").to_crs(scene.crs)
    grid = FrameGrid.of(scene, 0)
    lines = quality.seam_lines([grid.bounds(index) for index in grid])
    crossing = truth[truth.intersects(lines) & (truth.area > 60)]
    for row in crossing.sample(min(count, len(crossing)), random_state=0).itertuples():
        yield Case(f"building-{row.osm_id}", folder / "banepa.tif", None, row.geometry, None,
                   (0, 0), 1)  # fmt: skip


def click_on(shape: shapely.Geometry) -> tuple[float, float]:
    """The place furthest from the outline."""
    circle = shapely.maximum_inscribed_circle(shape)
    x, y = shapely.get_coordinates(circle)[0]
    return float(x), float(y)


class Encoders:
    """One encoder a scene, so that variants share what was encoded."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.known: dict[Path, FrameEncoder] = {}

    def __getitem__(self, path: Path) -> FrameEncoder:
        if path not in self.known:
            self.known.clear()
            cache = EmbeddingCache(folder=None, memory_bytes=3 * 2**30)
            self.known[path] = FrameEncoder(geosam2.open_scene(path), self.model, cache)
        return self.known[path]


def followed(
    encoder: FrameEncoder, point: tuple[float, float], max_frames: int, options: dict[str, Any]
) -> tuple[Panning, shapely.Geometry]:
    """The object by panning."""
    run = Panning(
        encoder, None, Prompt((point,)), options=PanOptions(max_frames=max_frames, **options)
    )
    list(run)
    return run, from_mosaic(run.mosaic)


def merged(
    encoder: FrameEncoder, point: tuple[float, float], max_frames: int
) -> tuple[list[FrameIndex], shapely.Geometry]:
    """The object from frames that know nothing of each other, joined by the vector rule."""
    size = encoder.model.config.image_size
    grid = FrameGrid.of(encoder.scene, 0, frame_size=size, overlap=size // 4)
    start = grid.index_at(*point)
    pixel = grid.level.cell_size
    masks = {start: frame_masks(encoder, grid, start, point)[:1]}
    todo, whole = [start], masks[start][0] if masks[start] else shapely.Polygon()
    while todo and len(masks) < max_frames:
        for beside in grid.neighbours(todo.pop(0)):
            if beside in masks or len(masks) >= max_frames:
                continue
            if not shapely.box(*grid.bounds(beside)).intersects(whole):
                continue
            masks[beside] = frame_masks(encoder, grid, beside, None)
            joined = [m for m in masks[beside] if joins(whole, m, grid, beside, pixel)]
            if joined:
                whole = shapely.union_all([whole, *joined])
                todo.append(beside)
    return list(masks), whole


def frame_masks(
    encoder: FrameEncoder, grid: FrameGrid, index: FrameIndex, point: tuple[float, float] | None
) -> list[shapely.Geometry]:
    """Masks of a frame for a click, or for a grid of 8 x 8 clicks without near-duplicates."""
    frame = encoder(grid.level, grid.window(index))
    left, bottom, right, top = grid.bounds(index)
    steps = (np.arange(8) + 0.5) / 8
    clicks = [
        (left + (right - left) * x, bottom + (top - bottom) * y) for y in steps for x in steps
    ]
    said = [FramePrompt((click,), (1,)) for click in ([point] if point else clicks)]
    with torch.no_grad():
        out = encoder.model.decode(frame.features, network_prompts(said, frame), multimask=True)
    logits, ious = out.best_logits.numpy(), out.best_iou.numpy()
    kept: list[np.ndarray] = []
    for n in np.argsort(-ious):
        mask = logits[n] > 0
        if (point or ious[n] >= 0.5) and all(regions.iou(mask, logits[k] > 0) < 0.7 for k in kept):
            kept.append(n)
    affine = frame.geobox.affine
    quarter = Affine(affine.a * 4, 0, affine.c, 0, affine.e * 4, affine.f)
    return [shape for k in kept if not (shape := polygons(logits[k], quarter)).is_empty]


def joins(
    whole: shapely.Geometry,
    mask: shapely.Geometry,
    grid: FrameGrid,
    index: FrameIndex,
    pixel: float,
) -> bool:
    """The vector rule: are two masks of neighbouring frames one object?"""
    here = shapely.box(*grid.bounds(index))
    part = whole.intersection(here)
    common = part.intersection(mask)
    if common.is_empty or part.area == 0:
        return False
    share = common.area / min(part.area, mask.area)
    small = min(part.area, mask.area) < LARGE * pixel**2
    if share >= (0.5 if small else 0.15):
        return True
    seam = here.boundary
    spans = [shape.intersection(seam).length for shape in (part, mask)]
    return share >= 0.03 and min(spans) > 0.5 * max(spans) > 0


def coarse_first(encoder: FrameEncoder, point: tuple[float, float], size: float) -> tuple[
    list[FrameIndex], shapely.Geometry
]:  # fmt: skip
    """The object from one frame of the level where it fits, refined at the finest level."""
    side = encoder.model.config.image_size * FITS
    levels = encoder.scene.levels
    level = next((one for one in levels if size / one.cell_size <= side), levels[-1])
    segmenter = Segmenter(encoder.scene, encoder.model, cache=encoder.cache)
    masklet = segmenter.predict(Prompt((point,)), level=level)[0].masklet
    for run in segmenter.refinements(masklet, max_frames=1000):
        list(run)
        masklet = run.masklet
    return [report.index for report in masklet.frames[1:]], from_mosaic(masklet.mosaic)


def outline_of(
    variant: str, encoder: FrameEncoder, point: tuple[float, float], case: Case, max_frames: int
) -> tuple[list[FrameIndex], shapely.Geometry, list[float]]:
    """Frames of the finest level, outline and agreements of one variant."""
    if variant == "coarse":
        left, bottom, right, top = case.truth.bounds
        return *coarse_first(encoder, point, max(right - left, top - bottom)), []
    if variant == "merge":
        return *merged(encoder, point, max_frames), []
    run, outline = followed(encoder, point, max_frames, VARIANTS[variant])
    reports = run.masklet.frames
    agreements = [r.agreement for r in reports if r.agreement == r.agreement]
    return [report.index for report in reports], outline, agreements


def run_case(variant: str, case: Case, encoders: Encoders, max_frames: int) -> Found:
    """One variant on one case."""
    encoder = encoders[case.path]
    started = time.perf_counter()
    frames, outline, agreement = outline_of(
        variant, encoder, click_on(case.truth), case, max_frames
    )
    seconds = time.perf_counter() - started
    size = encoder.model.config.image_size
    grid = FrameGrid.of(encoder.scene, 0, frame_size=size, overlap=size // 4)
    seams = quality.seam_lines([grid.bounds(index) for index in frames])
    found = Found(case, outline, None, seams, grid.level.cell_size, agreement, seconds, len(frames))
    found.parts = len(shapely.get_parts(outline)) if not outline.is_empty else 0
    return found


def shifted_outline(variant: str, case: Case, encoders: Encoders, max_frames: int) -> Any:
    """The same object with frames half a frame elsewhere, moved back."""
    assert case.shifted is not None
    dx, dy = case.move
    x, y = click_on(case.truth)
    encoder = encoders[case.shifted]
    _, outline, _ = outline_of(variant, encoder, (x + dx, y + dy), case, max_frames)
    return shapely.transform(outline, lambda p: p - [dx, dy])


def figures(results: list[Found]) -> dict[str, float]:
    """Means over the cases of one variant."""
    ious = {n: [] for n in sorted({r.case.frames for r in results})}
    for result in results:
        ious[result.case.frames].append(quality.polygon_iou(result.outline, result.case.truth))
    found = {f"followed_iou_{n}": float(np.mean(values)) for n, values in ious.items()}
    outlines = np.array([r.outline for r in results], dtype=object)
    long = [r for r in results if r.looks > 1]
    found["split_rate"] = float(np.mean([split(r) for r in long])) if long else float("nan")
    agreements = [value for r in results for value in r.agreement]
    found["overlap_agreement"] = float(np.mean(agreements)) if agreements else float("nan")
    straight = [
        quality.straight_edge(outlines[k : k + 1], r.seams, r.pixel) for k, r in enumerate(results)
    ]
    found["straight_edge"] = float(np.mean(straight))
    phases = [quality.polygon_iou(r.outline, r.shifted) for r in results if r.shifted is not None]
    found["phase_iou"] = float(np.mean(phases)) if phases else float("nan")
    twins = [
        r.outline.intersection(r.case.twin).area / r.case.twin.area
        for r in results
        if r.case.twin is not None
    ]
    found["swallowed"] = float(np.mean(twins)) if twins else float("nan")
    found["seconds_per_frame"] = sum(r.seconds for r in results) / max(
        sum(r.looks for r in results), 1
    )
    return found


def split(result: Found) -> float:
    """1 if the parts of the result that lie on the object are more than one."""
    parts = shapely.get_parts(result.outline)
    on_it = [
        p for p in parts if p.intersection(result.case.truth).area > 0.1 * result.case.truth.area
    ]
    return float(len(on_it) > 1)


def main() -> None:
    """Run and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="a lake and a road of 4 frames, three buildings"
    )
    parser.add_argument("--model", default="nano")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--buildings", type=int, default=20, help="real ones that cross a seam")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--no-phase", action="store_true", help="leave the shifted runs out")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each result")
    asked = parser.parse_args()
    if asked.quick:
        asked.seeds, asked.sizes, asked.kinds, asked.buildings = 1, [4], ["lake", "road"], 3
    import geosam2_model

    model = geosam2_model.load(asked.model)
    print(f"model {model.name} {model.fingerprint[:12]}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    results: dict[str, list[Found]] = {name: [] for name in asked.variants}
    real: dict[str, list[Found]] = {name: [] for name in asked.variants}
    encoders = Encoders(model)
    with TemporaryDirectory() as folder:
        for case in _cases(Path(folder), asked):
            limit = 2 * case.frames + 4
            for name in asked.variants:
                results[name].append(run_case(name, case, encoders, limit))
            for name in () if asked.no_phase else asked.variants:
                results[name][-1].shifted = shifted_outline(name, case, encoders, limit)
            _show(case, {name: results[name][-1] for name in asked.variants}, asked.pictures)
        for case in buildings(asked.buildings):
            for name in asked.variants:
                real[name].append(run_case(name, case, encoders, 6))
    table = {name: figures(found) for name, found in results.items()}
    if asked.buildings:
        for name, found in real.items():
            table[name] |= {f"real_{k}": v for k, v in figures(found).items() if v == v}
    _compare(table)
    _print(table)
    flat = {**table[asked.variants[0]], **table, "model": model.fingerprint[:12]}
    print(json.dumps(_rounded(flat)))


def _cases(folder: Path, asked: argparse.Namespace) -> Iterator[Case]:
    return synthetic(folder, asked.seeds, tuple(asked.sizes), tuple(asked.kinds))


def _compare(table: dict[str, dict[str, float]]) -> None:
    """Add what each variant reached of what the coarse level gave."""
    coarse = table.get("coarse", {})
    for key in [key for key in coarse if key.startswith("followed_iou")]:
        for row in table.values():
            row[key.replace("followed_iou", "of_coarse")] = row[key] / max(coarse[key], 1e-6)


def _show(case: Case, found: dict[str, Found], pictures: Path | None) -> None:
    for name, one in found.items():
        iou = quality.polygon_iou(one.outline, case.truth)
        phase = float("nan")
        if one.shifted is not None:
            phase = quality.polygon_iou(one.outline, one.shifted)
        print(f"{case.name:<16} {name:<8} iou {iou:.3f} phase {phase:.3f} frames {one.looks:>3} "
              f"parts {one.parts} {one.seconds:6.1f} s", flush=True)  # fmt: skip
        if pictures is not None:
            from geosam2 import viz

            pictures.mkdir(parents=True, exist_ok=True)
            scene = geosam2.open_scene(case.path)
            shapes = geopandas.GeoDataFrame(
                {"id": [name, "truth"]}, geometry=[one.outline, case.truth], crs=scene.crs
            )
            viz.save_preview(scene, shapes, pictures / f"{case.name}-{name}.png")


def _print(table: dict[str, dict[str, float]]) -> None:
    keys = list(next(iter(table.values())))
    print(f"{'':<24}" + "".join(f"{name:>9}" for name in table))
    for key in keys:
        print(
            f"{key:<24}" + "".join(f"{row.get(key, float('nan')):>9.3f}" for row in table.values())
        )


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, float):
        return round(value, 4) if value == value else None
    return value


if __name__ == "__main__":
    main()
