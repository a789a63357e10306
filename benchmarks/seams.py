"""What following is worth at seams: memory, known logits, both of them, none.

    python benchmarks/seams.py --quick                     # about 100 processor seconds
    python benchmarks/seams.py                             # about 8 minutes
    python benchmarks/seams.py --plan lake:12 road:4 dubai --keep rows.jsonl

One click on an object of known outline that covers several frames, and ways to get it whole:

    auto     what `segment` does when nothing else is said: the zoom that shows the click best,
             followed there, its outline refined at the finest level
    both     followed at the finest level with memory in map coordinates and known logits as a
             prompt (what `pan` does)
    memory   memory only
    known    known logits only
    frame    both, but memories placed as in a video, all in the same spot
    merge    every frame by itself (a grid of points), then the best vector rule known: join masks
             whose intersection over the smaller is 0.15 if both are large, 0.5 if one is small,
             0.03 if they meet along most of the seam
    coarse   no following: one frame at the level where the whole object fits, then its outline
             refined at the finest level; what the others are to be compared with
    once     both, but each frame is asked once and not until its mask stays the same

What a plan can name: lake:N, river:N, field:N, road:N, objects drawn so that they touch N frames
(lake:N:S another drawing), lakes and fields with a look-alike beside them; dubai and pucallpa,
large objects of labelled pictures, which need the folder `--data`; buildings, those of the example
scene that cross a frame's border.

The last line is JSON, of "auto" and then of each variant: `followed_iou_N`: mean IoU with the truth
for objects of N frames; `of_coarse_N`: as a share of what "coarse" reached, where it saw the object
at all; `split_rate`: share of found seam-crossing objects that came out in parts, a part being what
covers more than a tenth of the object; `not_found`: objects of which nothing has such a part, which
`split_rate` leaves out; `straight_edge`: share of outline along frame borders; `phase_iou`: IoU of
two runs with frames half a frame apart; `swallowed`: share of the look-alike that was taken in.
`real_` is for labelled pictures. Seconds are processor time without reading and encoding, so that a
machine at work gives them, too.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import geopandas
import numpy as np
import rasterio
import shapely
import torch
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image

import geosam2
from geosam2 import quality
from geosam2.cache import EmbeddingCache, FrameEncoder
from geosam2.masklet import Masklet, PanOptions
from geosam2.prompts import FramePrompt, Prompt, network_prompts
from geosam2.propagate import Panning
from geosam2.segmenter import Segmenter
from geosam2.testing import synthetic_scene, write_geotiff
from geosam2.tiling import FrameGrid, FrameIndex
from geosam2.vectorize import from_mosaic, polygons

VARIANTS: dict[str, dict[str, Any]] = {
    "auto": {},
    "both": {},
    "memory": {"use_known": False},
    "known": {"use_memory": False},
    "frame": {"positions": "frame"},
    "coarse": {},
    "merge": {},
    "once": {"rounds": 0},
}
QUICK = ("lake:12", "road:4")
FULL = (
    *("lake:1", "field:1", "lake:4", "river:4", "field:4", "road:4"),
    *("lake:12", "river:12", "field:12", "road:12", "lake:40", "dubai", "buildings"),
)
Bounds = tuple[float, float, float, float]
KINDS = {
    "lake": ("lake", "road", "field", "building", "wood"),
    "river": ("river", "field", "building", "wood"),
    "field": ("field", "building", "road"),
    "road": ("road", "field", "building", "wood"),
}
"""What is followed, and the clutter around it."""
TWINS = ("lake", "field")
DUBAI = (("tile5_003", 2), ("tile4_006", 43), ("tile4_004", 45), ("tile4_003", 49))
"""Pictures and labelled objects of 4 to 9 frames: a creek, lagoons, a park."""
PUCALLPA = (("1985", 1), ("2005", 1))
SEEN = 0.5  # IoU from which "coarse" saw the object at all; it does not see thin ones
PART = 0.1  # of the object: what covers no more of it is a crumb and no part
FITS = 0.6  # of a frame: an object of that size is whole on the frame that holds its middle
LARGE = 32 * 32  # pixels from which a mask counts as large in the vector rule
LONGEST = 15.0, 4.0  # processor seconds, and more a frame, after which a variant is stopped

clock = time.process_time


@dataclass(frozen=True)
class Case:
    """One object on one scene."""

    name: str
    path: Path
    """The scene."""
    truth: shapely.Geometry
    """True outline in the scene's CRS."""
    frames: int
    """Frames that the object touches; 0 for labelled pictures."""
    shifted: Path | None = None
    """The same pixels with the frames half a frame elsewhere."""
    twin: shapely.Geometry | None = None
    """A look-alike beside it."""
    move: tuple[float, float] = (0.0, 0.0)
    """From the scene's coordinates to the shifted one's."""


@dataclass(frozen=True)
class Found:
    """What one variant found."""

    frames: list[Bounds]
    """Where the frames lie that were looked at last."""
    outline: shapely.Geometry
    """In the scene's CRS."""
    agreement: list[float]
    """IoU of each frame with what was known in its overlap."""
    whole: bool = True
    """False if it took too long and was stopped."""


# -- cases


def cases(folder: Path, plan: Iterable[str], data: Path) -> Iterator[Case]:
    """The objects of a plan, drawn or read one after the other."""
    for entry in plan:
        name, *numbers = entry.split(":")
        if name in KINDS:
            yield drawn(folder, entry, name, *map(int, numbers))
        elif name == "buildings":
            yield from buildings(8)
        elif name == "dubai":
            yield from (dubai(folder, data, *one) for one in DUBAI)
        else:
            yield from (pucallpa(data, *one) for one in PUCALLPA)


def drawn(folder: Path, name: str, kind: str, frames: int, seed: int = 0) -> Case:
    """A synthetic scene around an object, and the same with frames elsewhere."""
    made = synthetic_scene(seed, kinds=KINDS[kind], frames=frames, twin=kind in TWINS)
    path = write_geotiff(folder / "drawn.tif", made.pixels, made.geobox)
    a = made.geobox.affine
    move = 192 * a.a, 192 * a.e
    affine = Affine(a.a, 0, a.c + move[0], 0, a.e, a.f + move[1])
    there = GeoBox(made.geobox.shape, affine, made.geobox.crs)
    shifted = write_geotiff(folder / "shifted.tif", made.pixels, there)
    truth = made.truth
    twins = truth[truth.twin].geometry
    beside = twins.union_all() if len(twins) else None
    return Case(name, path, truth[truth.main].geometry.iloc[0], frames, shifted, beside, move)


def dubai(folder: Path, data: Path, picture: str, number: int) -> Case:
    """A labelled object of a picture without a place on earth, taken for one in UTM."""
    source = data / "dubai_hitl"
    pixels = np.asarray(Image.open(source / "images" / f"{picture}.jpg")).transpose(2, 0, 1)
    with rasterio.open(source / "instances" / f"{picture}.tif") as file:
        labels = file.read(1)
    geobox = GeoBox(labels.shape, Affine(0.5, 0, 499_968, 0, -0.5, 2_800_128), "EPSG:32640")
    path = write_geotiff(folder / f"{picture}.tif", pixels, geobox)
    return Case(f"{picture}-{number}", path, outline_of_label(labels == number, geobox.affine), 0)


def pucallpa(data: Path, year: str, number: int) -> Case:
    """A river as a threshold on two infrared bands drew it: labels that no person made."""
    source = data / "ts_landsat_pucallpa"
    with rasterio.open(source / "instances_derived" / f"{year}.tif") as file:
        truth = outline_of_label(file.read(1) == number, file.transform)
    return Case(f"pucallpa-{year}", source / "images" / f"{year}.tif", truth, 0)


def outline_of_label(mask: np.ndarray, affine: Affine) -> shapely.Geometry:
    """Pixel edges, so that nothing is lost of narrow parts."""
    shapes = rasterio.features.shapes(mask.astype(np.uint8), mask=mask, transform=affine)
    return shapely.union_all([shapely.geometry.shape(shape) for shape, _ in shapes])


def buildings(count: int) -> Iterator[Case]:
    """Buildings of the example scene that cross a frame border; OpenStreetMap's outlines."""
    folder = Path(__file__).parents[1] / "examples"
    scene = geosam2.open_scene(folder / "banepa.tif")
    truth = geopandas.read_file(folder / "banepa_buildings.geojson").to_crs(scene.crs)
    grid = FrameGrid.of(scene, 0)
    lines = quality.seam_lines([grid.bounds(index) for index in grid])
    crossing = truth[truth.intersects(lines) & (truth.area > 60)]
    for row in crossing.sample(min(count, len(crossing)), random_state=0).itertuples():
        yield Case(f"building-{row.osm_id}", folder / "banepa.tif", row.geometry, 0)


def click_on(shape: shapely.Geometry) -> tuple[float, float]:
    """The place furthest from the outline."""
    circle = shapely.maximum_inscribed_circle(shape)
    x, y = shapely.get_coordinates(circle)[0]
    return float(x), float(y)


# -- ways to the whole object


@dataclass
class TimedEncoder(FrameEncoder):
    """Says what reading and encoding took, which the first variant would pay for all others."""

    seconds: float = 0.0
    """Of the processor."""

    def _encode(self, level: Any, window: Any) -> Any:
        started = clock()
        tensors = super()._encode(level, window)
        self.seconds += clock() - started
        return tensors


class Encoders:
    """One encoder a scene, so that all variants share what was encoded."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.path: Path | None = None

    def __getitem__(self, path: Path) -> TimedEncoder:
        if path != self.path:
            cache = EmbeddingCache(folder=None, memory_bytes=2**30)
            self.path = path
            self.encoder = TimedEncoder(geosam2.open_scene(path), self.model, cache)
        return self.encoder


def found_by(variant: str, encoder: FrameEncoder, point: tuple[float, float], case: Case) -> Found:
    """One variant on one scene."""
    most = max(2 * case.frames + 4, PanOptions.max_frames)
    until = clock() + LONGEST[0] + LONGEST[1] * (case.frames or 12)
    if variant == "coarse":
        left, bottom, right, top = case.truth.bounds
        return coarse_first(encoder, point, max(right - left, top - bottom), until)
    if variant == "auto":
        return zoomed(encoder, point, most, until)
    if variant == "merge":
        return merged(encoder, point, most, until)
    return followed(encoder, point, most, VARIANTS[variant], until)


def followed(
    encoder: FrameEncoder,
    point: tuple[float, float],
    most: int,
    options: dict[str, Any],
    until: float,
) -> Found:
    """The object by panning."""
    run = Panning(encoder, None, Prompt((point,)), options=PanOptions(max_frames=most, **options))
    while not run.finished and clock() < until:
        run.step()
    reports = run.masklet.frames
    agreement = [report.agreement for report in reports if report.agreement == report.agreement]
    return Found(frames_of(run), from_mosaic(run.mosaic), agreement, run.finished)


def frames_of(run: Panning) -> list[Bounds]:
    """Where the frames of a run lie that show the object."""
    return [run.grid.bounds(report.index) for report in run.masklet.frames]


def merged(encoder: FrameEncoder, point: tuple[float, float], most: int, until: float) -> Found:
    """The object from frames that know nothing of each other, joined by the vector rule."""
    grid = grid_of(encoder)
    start = grid.index_at(*point)
    first = frame_masks(encoder, grid, start, point)[:1]
    todo, seen, whole = [start], [start], first[0] if first else shapely.Polygon()
    while todo and len(seen) < most and clock() < until:
        for beside in grid.neighbours(todo.pop(0)):
            if beside in seen or not shapely.box(*grid.bounds(beside)).intersects(whole):
                continue
            seen.append(beside)
            masks = frame_masks(encoder, grid, beside, None)
            joined = [mask for mask in masks if joins(whole, mask, grid, beside)]
            if joined:
                whole = shapely.union_all([whole, *joined])
                todo.append(beside)
    return Found([grid.bounds(index) for index in seen], whole, [], not todo)


def frame_masks(
    encoder: FrameEncoder, grid: FrameGrid, index: FrameIndex, point: tuple[float, float] | None
) -> list[shapely.Geometry]:
    """Masks of a frame for a click, or for a grid of 4 x 4 clicks without near-duplicates."""
    frame = encoder(grid.level, grid.window(index))
    left, bottom, right, top = grid.bounds(index)
    steps = (np.arange(4) + 0.5) / 4
    clicks = [
        (left + (right - left) * x, bottom + (top - bottom) * y) for y in steps for x in steps
    ]
    said = [FramePrompt((click,), (1,)) for click in ([point] if point else clicks)]
    with torch.no_grad():
        out = encoder.model.decode(
            frame.features, network_prompts(said, [frame] * len(said)), multimask=True
        )
    logits, ious = out.best_logits.numpy(), out.best_iou.numpy()
    kept: list[np.ndarray] = []
    for n in np.argsort(-ious):
        mask = logits[n] > 0
        new = all(quality.mask_iou(mask, logits[k] > 0) < 0.7 for k in kept)
        if (point or ious[n] >= 0.5) and new:
            kept.append(n)
    affine = frame.geobox.affine
    quarter = Affine(affine.a * 4, 0, affine.c, 0, affine.e * 4, affine.f)
    return [shape for k in kept if not (shape := polygons(logits[k], quarter)).is_empty]


def joins(
    whole: shapely.Geometry, mask: shapely.Geometry, grid: FrameGrid, index: FrameIndex
) -> bool:
    """The vector rule: are two masks of neighbouring frames one object?"""
    here = shapely.box(*grid.bounds(index))
    part = whole.intersection(here)
    common = part.intersection(mask)
    if common.is_empty or part.area == 0:
        return False
    share = common.area / min(part.area, mask.area)
    small = min(part.area, mask.area) < LARGE * grid.level.cell_size**2
    if share >= (0.5 if small else 0.15):
        return True
    spans = [shape.intersection(here.boundary).length for shape in (part, mask)]
    return bool(share >= 0.03 and min(spans) > 0.5 * max(spans) > 0)


def coarse_first(
    encoder: FrameEncoder, point: tuple[float, float], size: float, until: float
) -> Found:
    """The object from one frame of the level where it fits, refined at the finest level."""
    side = encoder.model.config.image_size * FITS
    levels = encoder.scene.levels
    level = next((one for one in levels if size / one.cell_size <= side), levels[-1])
    segmenter = Segmenter(encoder.scene, encoder.model, cache=encoder.cache)
    masklet = segmenter.predict(Prompt((point,)), level=level)[0].masklet
    return refined(segmenter, masklet, [], until)


def zoomed(encoder: FrameEncoder, point: tuple[float, float], most: int, until: float) -> Found:
    """What a click gives when nothing else is said."""
    segmenter = Segmenter(encoder.scene, encoder.model, cache=encoder.cache)
    mask = segmenter.predict(Prompt((point,)), level="auto")[0]
    level = segmenter.follows_at(mask)
    if level is None:
        return refined(segmenter, mask.masklet, [], until)
    run = segmenter.start(mask.prompt, level=level, options=PanOptions(max_frames=most))
    while not run.finished and clock() < until:
        run.step()
    frames = [] if run.grid.level.index > 0 else frames_of(run)
    return refined(segmenter, run.masklet, frames, until)


def refined(segmenter: Segmenter, masklet: Masklet, frames: list[Bounds], until: float) -> Found:
    """An object brought to the finest level, with the frames that were looked at there."""
    for run in segmenter.refinements(masklet, max_frames=1000):
        steps = iter(run)
        while clock() < until and next(steps, None):
            pass
        masklet, frames = run.masklet, [run.grid.bounds(report.index) for report in run.reports]
    return Found(frames, from_mosaic(masklet.mosaic), [], clock() < until)


def grid_of(encoder: FrameEncoder) -> FrameGrid:
    """Frames of the finest level."""
    size = encoder.model.config.image_size
    return FrameGrid.of(encoder.scene, 0, frame_size=size, overlap=size // 4)


# -- figures


def measured(
    variant: str, case: Case, encoders: Encoders, pictures: Path | None
) -> tuple[dict[str, Any], shapely.Geometry]:
    """A row of figures of one variant on one case, and the outline."""
    encoder = encoders[case.path]
    started, encoding = clock(), encoder.seconds
    found = found_by(variant, encoder, click_on(case.truth), case)
    seconds = clock() - started - (encoder.seconds - encoding)
    grid = grid_of(encoder)
    seams = quality.seam_lines(found.frames)
    row = {
        "case": case.name,
        "frames": case.frames,
        "variant": variant,
        "iou": quality.polygon_iou(found.outline, case.truth),
        "looks": len(found.frames),
        "found": bool(parts_on(found, case)),
        "split": split(found, case) if len(found.frames) > 1 else None,
        "straight_edge": quality.straight_edge(
            np.array([found.outline], object),
            seams,
            grid.level.cell_size,
            edge=shapely.box(*encoder.scene.bounds).boundary,
        ),
        "agreement": float(np.mean(found.agreement)) if found.agreement else None,
        "swallowed": None,
        "phase_iou": None,
        "seconds": seconds,
        "whole": found.whole,
    }
    if case.twin is not None:
        row["swallowed"] = found.outline.intersection(case.twin).area / case.twin.area
    if pictures is not None:
        drawing(case, variant, found, pictures)
    return row, found.outline


def split(found: Found, case: Case) -> float | None:
    """1 if the object came out in more than one part, 0 if in one, None if it was not found.

    A part is a polygon of the result that covers more than 10 % of the true outline's area, so
    crumbs beside the object and specks inside it do not count.
    """
    parts = parts_on(found, case)
    return float(len(parts) > 1) if parts else None


def parts_on(found: Found, case: Case) -> list[shapely.Geometry]:
    """Polygons of the result that cover more than `PART` of the object."""
    least = PART * case.truth.area
    parts = shapely.get_parts(found.outline)
    return [part for part in parts if part.intersection(case.truth).area > least]


def phase_iou(
    variant: str, case: Case, encoders: Encoders, outline: shapely.Geometry
) -> float | None:
    """IoU with the same object found by frames that lie half a frame elsewhere."""
    if case.shifted is None:
        return None
    dx, dy = case.move
    x, y = click_on(case.truth)
    other = found_by(variant, encoders[case.shifted], (x + dx, y + dy), case).outline
    return quality.polygon_iou(outline, shapely.transform(other, lambda p: p - [dx, dy]))


def drawing(case: Case, variant: str, found: Found, folder: Path) -> None:
    """The outline and the true one over the scene."""
    from geosam2 import viz

    folder.mkdir(parents=True, exist_ok=True)
    scene = geosam2.open_scene(case.path)
    shapes = geopandas.GeoDataFrame(
        {"id": [variant, "truth"]}, geometry=[found.outline, case.truth], crs=scene.crs
    )
    viz.save_preview(scene, shapes, folder / f"{case.name}-{variant}.png")


def table_of(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Means over the cases of each variant."""
    by_variant: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_variant[row["variant"]].append(row)
    table = {name: means(some) for name, some in by_variant.items()}
    whole = {row["case"]: row["iou"] for row in by_variant["coarse"] if row["iou"] > SEEN}
    for name, some in by_variant.items():
        for frames in sorted({row["frames"] for row in some}):
            shares = [
                row["iou"] / whole[row["case"]]
                for row in some
                if row["case"] in whole and row["frames"] == frames
            ]
            if shares:
                table[name][f"of_coarse_{frames or 'real'}"] = float(np.mean(shares))
    return table


def means(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Figures of one variant."""
    synthetic, real = ([r for r in rows if bool(r["frames"]) == kind] for kind in (True, False))
    found: dict[str, float | None] = {}
    for frames in sorted({row["frames"] for row in synthetic}):
        some = [row for row in synthetic if row["frames"] == frames]
        found[f"followed_iou_{frames}"] = mean(some, "iou")
    for start, some in (("", synthetic), ("real_", real)):
        if some:
            found |= {f"{start}followed_iou": mean(some, "iou")} if start else {}
            names = {"split": "split_rate", "agreement": "overlap_agreement"}
            for key in ("split", "straight_edge", "agreement", "phase_iou", "swallowed"):
                found[start + names.get(key, key)] = mean(some, key)
            found[f"{start}not_found"] = sum(not row["found"] for row in some)
            found[f"{start}seconds_per_frame"] = sum(r["seconds"] for r in some) / max(
                sum(r["looks"] for r in some), 1
            )
    return found


def mean(rows: list[dict[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if row[key] is not None]
    return float(np.mean(values)) if values else None


def main() -> None:
    """Run and print; the last line is JSON."""
    asked = arguments()
    import geosam2_model

    model = geosam2_model.load(asked.model)
    print(f"model {model.name} {model.fingerprint[:12]}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    rows = kept_rows(asked.keep, model.fingerprint)
    for row in rows:
        show(row)
    done = {(row["case"], row["variant"]) for row in rows}
    plan = [one for one in asked.plan if {(one, name) for name in asked.variants} - done]
    with TemporaryDirectory() as folder:
        for case in cases(Path(folder), plan, asked.data):
            todo = [name for name in asked.variants if (case.name, name) not in done]
            for row in case_rows(case, todo, Encoders(model), asked):
                rows.append(row)
                show(row)
                keep(asked.keep, model.fingerprint, row)
    table = table_of(rows)
    show_table(table)
    first = table.get(asked.variants[0], {})
    print(json.dumps(rounded({**first, **table, "model": model.fingerprint[:12]})))


def arguments() -> argparse.Namespace:
    """What was asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"the plan {' '.join(QUICK)}")
    parser.add_argument("--plan", nargs="+", default=FULL, metavar="CASE", help="see above")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS)[:-1])
    parser.add_argument("--phase", nargs="*", choices=VARIANTS, default=["auto"],
                        help="variants that are run on shifted frames, too")  # fmt: skip
    parser.add_argument("--model", default="nano")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each result")
    parser.add_argument("--keep", type=Path, help="file of finished rows, to go on with")
    asked = parser.parse_args()
    if asked.quick:
        asked.plan = QUICK
    if not asked.data.is_dir():
        print(f"there is no folder {asked.data}: without labelled pictures")
        asked.plan = [entry for entry in asked.plan if entry not in ("dubai", "pucallpa")]
    return asked


def case_rows(
    case: Case, variants: list[str], encoders: Encoders, asked: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Rows as they come; variants that are also run on shifted frames come last."""
    later = []
    for variant in variants:
        row, outline = measured(variant, case, encoders, asked.pictures)
        if variant in asked.phase:
            later.append((row, outline))
        else:
            yield row
    for row, outline in later:
        row["phase_iou"] = phase_iou(row["variant"], case, encoders, outline)
        yield row


def kept_rows(path: Path | None, fingerprint: str) -> list[dict[str, Any]]:
    """Rows of an earlier run with the same weights; none of when it was not said what is found."""
    if path is None or not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in rows if row["model"] == fingerprint and "found" in row]


def keep(path: Path | None, fingerprint: str, row: dict[str, Any]) -> None:
    """Append a row."""
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "model": fingerprint}) + "\n")


def show(row: dict[str, Any]) -> None:
    """A line as soon as it is known."""
    extra = [f"{name} {row[name]:.3f}" for name in ("phase_iou", "swallowed") if row[name]]
    extra += [] if row["whole"] else ["stopped"]
    print(f"{row['case']:<18} {row['variant']:<7} iou {row['iou']:.3f}  looks {row['looks']:>3}  "
          f"straight {row['straight_edge']:.4f} {row['seconds']:6.1f} s  {'  '.join(extra)}",
          flush=True)  # fmt: skip


def show_table(table: dict[str, dict[str, float | None]]) -> None:
    """Variants side by side."""
    keys = dict.fromkeys(key for row in table.values() for key in row)
    print(f"{'':<24}" + "".join(f"{name:>9}" for name in table))
    for key in keys:
        values = [row.get(key) for row in table.values()]
        cells = ["-" if value is None else f"{value:.3f}" for value in values]
        print(f"{key:<24}" + "".join(f"{cell:>9}" for cell in cells))


def rounded(value: Any) -> Any:
    """Four digits are enough."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
