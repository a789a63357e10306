"""The four steps of an automatic run, each a function of files that leaves a file.

    find    a block     frames -> parts                       (nearly all of the time)
    settle  a node      parts, or what lower nodes hold -> objects, and what goes up
    draw    a block     objects and parts -> polygons, and pieces of polygons that go on
    join    a node      pieces -> polygons

A step's file appears whole or not at all, and depends on nothing but the job and the files it
reads: doing a step twice, here or elsewhere, writes the same. That is what makes a run resumable.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from geosam2.automatic import Network, enlarged, find_masks
from geosam2.blocks import Blocks, Node
from geosam2.drawing import Figure, figures, paint
from geosam2.files import whole
from geosam2.levels import Window, ground_size
from geosam2.linking import Apart, Judge, Link
from geosam2.part_table import (
    read_held,
    read_objects,
    read_parts,
    write_parts,
    write_settled,
)
from geosam2.parts import Box, FrameKey, Layout, Part
from geosam2.quality import straight_edge
from geosam2.recipe import Recipe
from geosam2.settling import (
    Borders,
    Object,
    Overlap,
    Row,
    compare_frames,
    compare_within,
    inner_edges,
    row_of,
)
from geosam2.settling import settle as settle_borders
from geosam2.tiling import FrameGrid, FrameIndex

if TYPE_CHECKING:
    from geosam2.scene import Frame, Scene

Kind = Literal["find", "settle", "draw", "join"]


@dataclass(frozen=True, kw_only=True)
class Asking:
    """What every job that asks the network has; small, and picklable if the scene is."""

    scene: Scene
    """What is looked at."""
    model: Callable[[], Network]
    """Makes the network; called once a process."""
    folder: Path
    """Where the steps leave their files; all workers see it."""
    threads: int | None = None
    """Threads of the network in each process; None leaves torch's own choice."""

    def do(self, step: Any) -> dict[str, Any]:
        """Do one step; what a worker is asked to do. What reading it took of memory is given back.

        Its file appears whole or not at all.
        """
        try:
            return self._do(step)
        finally:
            self.scene.release()

    def _do(self, step: Any) -> dict[str, Any]:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Job(Asking):
    """A run that finds everything: all that a worker needs to know."""

    recipe: Recipe
    """How."""
    grid: FrameGrid
    """Which frames."""
    block: int = 8
    """Frames along the side of a block."""
    judge: bool = True
    """Let the memory decide where linking is in doubt."""
    region: bytes | None = None
    """Region of interest as WKB in the scene's CRS."""
    about: dict[str, Any] = field(default_factory=dict)
    """Columns that are the same for all objects: model, source, date."""

    @property
    def layout(self) -> Layout:
        """Frames as pixel boxes."""
        return Layout(self.grid.frame_size, self.grid.overlap)

    @property
    def blocks(self) -> Blocks:
        """Blocks and their tree."""
        first = self.grid.first
        return Blocks((first.row, first.col), self.grid.shape, self.block)

    def path(self, kind: str, node: Node) -> Path:
        """The file that a step leaves."""
        return self.folder / kind / f"{node.name}.parquet"

    def result(self, step: tuple[Kind, Node]) -> Path:
        """The file that says that a step is done."""
        return self.path(*step)

    def _do(self, step: tuple[Kind, Node]) -> dict[str, Any]:
        kind, node = step
        return STEPS[kind](self, node)

    @functools.cached_property
    def area(self) -> BaseGeometry | None:
        """Region of interest in the scene's CRS."""
        return None if self.region is None else shapely.from_wkb(self.region)


# --- find


def find(job: Job, block: Node) -> dict[str, Any]:
    """Look at every frame of a block; leave its parts. Returns figures for the progress line."""
    began = time.perf_counter()
    network = network_of(job)
    wanted = [FrameIndex(*key) for key in frames_to_visit(job, block)]
    parts: list[Part] = []
    seen = points = 0
    shares = []
    for frame in job.scene.frames(job.grid, wanted, workers=1, ahead=3):
        found = look(job, network, frame)
        parts += found.parts
        points += found.decoded
        if found.valid_share > 0:
            seen += 1
            shares.append((found.coverage, found.valid_share))
    weight = sum(valid for _, valid in shares)
    figures_ = {
        "frames": len(wanted),
        "with_data": seen,
        "parts": len(parts),
        "points": points,
        "coverage": sum(c * v for c, v in shares) / weight if weight else 0.0,
        "valid": weight,
        "seconds": time.perf_counter() - began,
    }
    steady = {k: v for k, v in figures_.items() if k != "seconds"}
    write_parts(job.path("find", block), parts, figures=steady)
    return figures_


def look(job: Job, network: Network, frame: Frame) -> Any:
    """All masks of one frame."""
    assert frame.index is not None
    key = (frame.index.row, frame.index.col)
    return find_masks(
        network,
        frame.pixels,
        frame.valid,
        job.layout,
        key,
        job.recipe,
        enlarge=functools.partial(_finer, job) if job.grid.level.index > 0 else None,
        asked=_asked(job, frame),
        around=functools.partial(around, job),
    )


def around(job: Job, box: Box, zoom: int) -> Any:
    """A window of the level, enlarged from a finer level if there is one."""
    frame = job.scene.read_window(job.grid.level, _window(box))
    if zoom == 1:
        return frame.pixels, frame.valid
    if job.grid.level.index > 0:
        return _finer(job, box), frame.valid
    return enlarged(frame.pixels, zoom), frame.valid


def _finer(job: Job, box: Box) -> Any:
    """A part of a frame at the size of a frame, from a finer level of the scene."""
    size = (job.grid.frame_size, job.grid.frame_size)
    return job.scene.read(job.grid.level.geobox(_window(box)).zoom_to(size)).pixels


def _window(box: Box) -> Window:
    return Window(box.top, box.left, *box.shape)


def _asked(job: Job, frame: Frame) -> Any:
    if job.area is None:
        return None
    from rasterio.features import geometry_mask

    affine = frame.geobox.affine
    return geometry_mask([job.area], frame.shape, affine, all_touched=True, invert=True)


def frames_to_visit(job: Job, block: Node) -> list[FrameKey]:
    """Frames of a block that meet the region of interest, or all."""
    frames = job.blocks.frames_of(block)
    if job.area is None:
        return frames
    bounds = np.array([job.grid.bounds(FrameIndex(*key)) for key in frames])
    meets = shapely.intersects(job.area, shapely.box(*bounds.T))
    return [key for key, hit in zip(frames, meets, strict=True) if hit]


def visited_frames(job: Job) -> Iterator[FrameIndex]:
    """Frames of the whole run that are looked at."""
    for block in job.blocks.in_order():
        yield from (FrameIndex(*key) for key in frames_to_visit(job, block))


_NETWORKS: dict[Callable[[], Network], Network] = {}


def network_of(job: Asking) -> Network:
    """The network of this process, made when it is first needed."""
    import torch

    if job.threads is not None and torch.get_num_threads() != job.threads:
        torch.set_num_threads(job.threads)
    network = _NETWORKS.get(job.model)
    if network is None:  # two threads may make it twice, which does no harm
        network = job.model()
        remember_network(job.model, network)
    return network


def remember_network(maker: Callable[[], Network], network: Network) -> None:
    """Keep one network a process, under what makes it."""
    _NETWORKS.clear()
    _NETWORKS[maker] = network


# --- settle


def settle(job: Job, node: Node) -> dict[str, Any]:
    """Join parts to objects as far as this node's frames can tell."""
    blocks, layout = job.blocks, job.layout

    def reaches_out(row: Row) -> bool:
        return blocks.reaches_out(node, row.frame, row.box, layout)

    if node.level == 0:
        borders = [_compare_block(job, node)]
    else:
        borders = [read_held(job.path("settle", child)) for child in blocks.children(node)]
    objects, held = settle_borders(borders, reaches_out, job.recipe)
    pending = sorted({blocks.block_of(row.frame) for row in held.waiting})
    write_settled(job.path("settle", node), objects, held, pending, blocks.block_of)
    return {"objects": len(objects), "pending": pending}


def _compare_block(job: Job, block: Node) -> Borders:
    """Everything that the parts of a block say about each other and about those next door."""
    blocks, layout, recipe = job.blocks, job.layout, job.recipe
    by_frame = _parts_by_frame(job, block)
    judge = _judge(job)
    found_links: list[Link] = []
    apart: list[Apart] = []
    overlaps: list[Overlap] = []
    own = set(blocks.frames_of(block))
    for frame in sorted(own):
        contradicting, shared = compare_within(by_frame.get(frame, []))
        apart += contradicting
        overlaps += shared
        for other in _later_neighbours(frame):
            # a pair belongs to the block of its first frame: nobody asks the judge twice; and what
            # goes on across a corner goes on across the sides beside it, where the judge is asked
            across_side = frame[0] == other[0] or frame[1] == other[1]
            asked = judge if across_side else None
            new_links, contradicting, shared = compare_frames(
                by_frame.get(frame, []), by_frame.get(other, []), layout, recipe, asked
            )
            found_links += new_links
            apart += contradicting
            overlaps += shared
    rows = [row_of(p, layout) for f in sorted(own) for p in by_frame.get(f, [])]
    return Borders(tuple(rows), tuple(found_links), tuple(apart), tuple(overlaps))


def _later_neighbours(frame: FrameKey) -> list[FrameKey]:
    """East, and the three to the south: each pair of frames that share pixels comes up once.

    Corners count too: a small thing on one may have been asked about by the two across it alone.
    """
    row, col = frame
    return [(row, col + 1), (row + 1, col - 1), (row + 1, col), (row + 1, col + 1)]


def _parts_by_frame(job: Job, block: Node) -> dict[FrameKey, list[Part]]:
    """Parts of a block and of the frames around it."""
    blocks = job.blocks
    parts = _read(job, block, None)
    ring = blocks.ring(block)
    for neighbour in blocks.neighbours(block):
        parts += _read(job, neighbour, [f for f in ring if blocks.block_of(f) == neighbour])
    out: dict[FrameKey, list[Part]] = {}
    for part in parts:
        inner = replace(part, edges=inner_edges(part, blocks.exists))
        out.setdefault(part.frame, []).append(inner)
    return out


def _read(job: Job, block: Node, frames: list[FrameKey] | None) -> list[Part]:
    """Parts of a block; none if it was left out."""
    path = job.path("find", block)
    return read_parts(path, frames) if path.exists() else []


def _judge(job: Job) -> Judge | None:
    if not job.judge:
        return None
    from geosam2.judging import MemoryJudge

    network = network_of(job)
    return MemoryJudge(job.scene, network, job.grid) if hasattr(network, "attend") else None  # type: ignore[arg-type]


# --- draw


def draw(job: Job, block: Node) -> dict[str, Any]:
    """Polygons of a block: the finished ones, and pieces of those that settled higher up."""
    from geosam2 import outlines

    blocks, layout = job.blocks, job.layout
    own_parts = {p.key: p for group in _parts_by_frame(job, block).values() for p in group}
    near = [block, *blocks.neighbours(block)]
    settled = _settled_in(job, near)
    by_name = {o.name: o for objects in settled.values() for o in objects}
    home = {o.name: node for node, objects in settled.items() for o in objects}
    looked_at = _looked_at(job)
    wanted = [o for o in by_name.values() if _wanted(job, o) and not _cut(job, o, looked_at)]
    core = blocks.core(block, layout)
    drawn = [f for f in figures(wanted, own_parts) if not (f.box() & core).empty]
    if job.recipe.layer == "flat":
        labels = paint(drawn, core, blocks.tiles(block, layout), layout, job.recipe)
        shapes = outlines.of_labels(labels, core, job.grid.level, job.recipe.simplify)
    else:
        shapes = outlines.of_figures(drawn, core, layout, job.grid.level)
    rows = [
        {**_columns(drawn[i], job), "geometry": shape, "node": home[drawn[i].object.name]}
        for i, shape in sorted(shapes.items())
    ]
    for node in list(blocks.ancestors(block))[1:]:
        path = job.folder / "pieces" / node.name / f"{block.name}.parquet"
        path.unlink(missing_ok=True)  # of an earlier run, if other blocks were left out there
        if pieces := [row for row in rows if row["node"] == node]:
            _write_rows(job, path, pieces)
    whole = [_finished(row, job) for row in rows if row["node"].level == 0]
    kept = [row for row in whole if row is not None]
    _write_rows(job, job.path("draw", block), kept)  # last: it says that the block is done
    return {"objects": len(kept)}


def _settled_in(job: Job, near: list[Node]) -> dict[Node, list[Object]]:
    blocks = job.blocks
    out: dict[Node, list[Object]] = {}
    for node in sorted({n for block in near for n in blocks.ancestors(block)}):
        path = job.path("settle", node)
        if path.exists():
            out[node] = read_objects(path, near)
    return out


def _wanted(job: Job, o: Object) -> bool:
    """A generous area filter; the exact area is known when the polygon is."""
    recipe, level = job.recipe, job.grid.level
    if job.scene.crs is None:
        return True
    left, bottom, right, top = job.grid.bounds(FrameIndex(*o.name[:2]))
    middle = (left + right) / 2, (bottom + top) / 2
    area = o.area * ground_size(job.scene.crs, *middle, level.resolution) ** 2
    return recipe.min_area_m2 / 2 <= area <= 2 * recipe.max_area_m2


OPEN = 0.5  # an object that goes on nowhere behind so many of its borders is a piece of another one


def _cut(job: Job, o: Object, looked_at: Callable[[FrameKey], bool]) -> bool:
    """True for what ends at borders of frames because the frames behind saw something else.

    Where frames share half of their pixels, another one has its middle where this one ends.
    """
    if o.closed > OPEN or not _half_shared(job):
        return False
    row, col, _ = o.name
    return all(map(looked_at, [(row - 1, col), (row, col - 1), (row, col + 1), (row + 1, col)]))


STRAIGHT = 0.2  # nor is a thing what has so much of its outline along borders of frames


def _cut_straight(row: dict[str, Any], job: Job) -> bool:
    """True for what ends in straight lines along borders of frames.

    As a rule that is plain ground, water above all, which some frames take for a thing and others
    do not.
    """
    if not row["open_edges"] or not _half_shared(job):
        return False
    seams = shapely.MultiLineString(list(_seams_under(row["geometry"], job)))
    shapes = np.array([row["geometry"]])
    return straight_edge(shapes, seams, job.grid.level.cell_size) > STRAIGHT


def _seams_under(shape: BaseGeometry, job: Job) -> Iterator[BaseGeometry]:
    """The sides of the frames on a shape that another frame was looked at behind."""
    looked_at = _looked_at(job)
    for index in job.grid.crossing(shape):
        corners = shapely.get_coordinates(shapely.box(*job.grid.bounds(index), ccw=False))
        for (down, right), ends in zip(_CLOCKWISE, pairwise(corners), strict=True):
            behind = (index.row + down, index.col + right)
            if job.blocks.exists(behind) and looked_at(behind):
                yield shapely.LineString(ends)


_CLOCKWISE = ((0, -1), (-1, 0), (0, 1), (1, 0))
"""(down, right) to the neighbours behind the sides of a box: west, north, east, south."""


def _half_shared(job: Job) -> bool:
    return 2 * job.layout.stride <= job.grid.frame_size


def _looked_at(job: Job) -> Callable[[FrameKey], bool]:
    """What says of a frame whether it was looked at; True where there is none to look at.

    Frames of blocks that were left out, and those outside the region of interest, were not.
    """

    @functools.cache
    def frames_in(block: Node) -> frozenset[FrameKey]:
        done = job.path("find", block).exists()
        return frozenset(frames_to_visit(job, block) if done else ())

    def looked_at(frame: FrameKey) -> bool:
        return not job.blocks.exists(frame) or frame in frames_in(job.blocks.block_of(frame))

    return looked_at


def _columns(figure: Figure, job: Job) -> dict[str, Any]:
    o = figure.object
    out = {
        "name": "{}_{}_{}".format(*o.name),
        "score": round(o.score, 4),
        "predicted_iou": round(o.predicted_iou, 4),
        "stability": round(o.stability, 4),
        "frames": o.frames,
        "open_edges": o.open_edges,
        "parent": "" if o.parent is None else "{}_{}_{}".format(*o.parent),
    }
    if job.recipe.features:
        mass = sum(p.area for p in figure.parts)
        mean = sum(p.feature.astype(np.float32) * (p.area / mass) for p in figure.parts)
        out["feature"] = np.asarray(mean, np.float32)
    return out


# --- join


def join(job: Job, node: Node) -> dict[str, Any]:
    """Put together the pieces of objects that settled in this node."""
    folder = job.folder / "pieces" / node.name
    pieces: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.parquet")) if folder.exists() else []:
        for row in _read_rows(path):
            pieces.setdefault(row["name"], []).append(row)
    rows = []
    for name in sorted(pieces):
        whole = _united([row["geometry"] for row in pieces[name]], job.grid.level.cell_size)
        rows.append({**pieces[name][0], "geometry": whole})
    kept = [row for row in (_finished(row, job) for row in rows) if row is not None]
    _write_rows(job, job.path("join", node), kept)
    return {"objects": len(kept)}


def _united(shapes: list[BaseGeometry], cell: float) -> BaseGeometry:
    """One geometry of pieces that meet along block outlines."""
    if len(shapes) == 1:
        return shapes[0]
    whole = shapely.union_all(shapes)
    if whole.is_valid and not whole.is_empty:
        return whole
    return shapely.union_all(shapes, grid_size=cell * 1e-6)


def _finished(row: dict[str, Any], job: Job) -> dict[str, Any] | None:
    """A row with its area, or None if its area or its place rules it out.

    Without a CRS the limits are in square pixels, and the area in square metres is not known.
    """
    from geosam2.vectorize import geodesic_area

    recipe, crs, shape = job.recipe, job.scene.crs, row["geometry"]
    if recipe.layer == "parts" and recipe.simplify > 0:
        shape = shapely.simplify(shape, recipe.simplify * job.grid.level.cell_size / 4)
    area = shape.area if crs is None else geodesic_area(shape, crs)
    if not recipe.min_area_m2 <= area <= recipe.max_area_m2:
        return None
    if not _mostly_in(job.area or shapely.box(*job.scene.bounds), shape):
        return None
    row = {**row, "geometry": shape, "area_m2": math.nan if crs is None else area}
    return None if _cut_straight(row, job) else row


def _mostly_in(area: BaseGeometry, shape: BaseGeometry) -> bool:
    """Half of it at least; what lies beyond belongs to whoever looks there."""
    return bool(shape.intersection(area).area >= 0.5 * shape.area)


# --- rows of polygons on disk


def _write_rows(job: Job, path: Path, rows: list[dict[str, Any]]) -> None:
    import geopandas
    import pandas as pd

    columns = ["name", "score", "predicted_iou", "stability", "frames", "open_edges", "parent"]
    table = pd.DataFrame({c: [row.get(c) for row in rows] for c in columns})
    table["area_m2"] = [float(row.get("area_m2", np.nan)) for row in rows]
    table["feature"] = [row.get("feature", np.zeros(0, np.float32)).tobytes() for row in rows]
    crs = None if job.scene.crs is None else job.scene.crs.to_wkt()
    frame = geopandas.GeoDataFrame(table, geometry=[row["geometry"] for row in rows], crs=crs)
    with whole(path) as partial:
        frame.to_parquet(partial)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    import geopandas

    table = geopandas.read_parquet(path)
    rows: list[dict[str, Any]] = table.to_dict("records")
    for row in rows:
        row["feature"] = np.frombuffer(row["feature"], np.float32)
    return rows


STEPS: dict[Kind, Callable[[Job, Node], dict[str, Any]]] = {
    "find": find,
    "settle": settle,
    "draw": draw,
    "join": join,
}
