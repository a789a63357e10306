"""Find every object of a scene: from here a run is planned, started, and its result collected."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import shapely

from geosam2 import __version__
from geosam2.automatic import Network
from geosam2.cluster import (
    Executor,
    InProcess,
    OnDask,
    Progress,
    Work,
    local_client,
    named,
    prepare,
    read_manifest,
    run,
    threads_per_worker,
)
from geosam2.errors import GeoreferenceError, GeoSAM2Error, LeftOutWarning, PromptError
from geosam2.levels import Level, one_level
from geosam2.parts import Layout
from geosam2.recipe import Recipe, frame_size_for, overlap_for, recipe_for
from geosam2.scene import Scene, open_scene
from geosam2.steps import Job, remember_network, visited_frames
from geosam2.tiling import FrameGrid

if TYPE_CHECKING:
    import distributed
    import geopandas
    from shapely.geometry.base import BaseGeometry

AnyWork = TypeVar("AnyWork", bound=Work)

ROOM = 10_000_000  # bytes of a job that may travel to a worker with each step


@dataclass(frozen=True)
class NamedModel:
    """Makes a network from a name or a path; equal names are one network per process."""

    name: str
    device: str | None = None

    def __call__(self) -> Network:
        import geosam2_model

        network: Network = geosam2_model.load(self.name, device=self.device)
        return network


@dataclass(frozen=True, eq=False)
class _Given:
    """A network that exists already."""

    network: Network

    def __call__(self) -> Network:
        return self.network


def segment_everything(
    scene: Any,
    *,
    model: Any = "nano",
    level: Level | int | str = 0,
    recipe: Recipe | None = None,
    roi: Any = None,
    workers: int = 0,
    client: distributed.Client | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **choices: Any,
) -> geopandas.GeoDataFrame:
    """Find every object of a scene, each of them once, however many frames it covers.

    Args:
        scene: What `open_scene` takes, or a Scene.
        model: Name or path of a model, a model, or a callable that makes one (for workers it must
            be picklable and equal to its copies, or each step makes a network anew).
        level: Level of the scene to look at, its number or label; 0 = native. "x2", "x4" and "x8"
            enlarge the pixels: where objects are about 10 to 30 pixels across, as fields are in
            Landsat's and Sentinel-2's, several times as many are found, for 4 times the work.
        recipe: Thresholds and point grids, by default those of `recipe_for`; single ones can be
            given as keyword arguments too, such as `min_area_m2=20`, `points=(32, 16)` or
            `layer="parts"`.
        roi: Only objects that lie mostly in this region: a geometry in the scene's CRS, or a
            GeoSeries or GeoDataFrame in any CRS. Of the scene's bounds what lies in both counts.
        workers: 0 works in this process; more start a local dask cluster.
        client: A `distributed.Client` to use instead.
        folder: Where blocks leave their results; needed to resume. A temporary one by default.
        resume: Go on with the run in `folder`.
        progress: Called after each step.
        **choices: Fields of `Recipe`; also overlap=, block=, judge=, device= of `plan`.

    Returns:
        One row an object in the scene's CRS: id, score, predicted_iou, stability, area_m2, frames,
        open_edges, parent, level, model, prompt, source, geometry, and feature (a tuple) for
        `find_similar`. `.attrs` has the coverage and the blocks that were left out.

    Warns:
        LeftOutWarning: If blocks kept failing and are missing in the result.

    Raises:
        GeoSAM2Error: Wrong options, a run that cannot go on, or one in which all blocks failed.
        SourceError: If the scene cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="geosam2_"))
        job = plan(scene, Path(folder), model=model, level=level, recipe=recipe, roi=roi, **choices)
        executor = stack.enter_context(executor_for(job, workers=workers, client=client))
        job = with_threads(job, executor)
        for step in start(job, executor, resume=resume):
            if progress is not None:
                progress(step)
        found = collect(job)
    if left_out := found.attrs["left_out"]:
        warnings.warn(
            f"{len(left_out)} blocks were left out, the first: {left_out[0]}; run again with "
            "folder= and resume=True to try them again",
            LeftOutWarning,
            stacklevel=2,
        )
    return found


def plan(
    scene: Any,
    folder: Path,
    *,
    model: Any = "nano",
    level: Level | int | str = 0,
    recipe: Recipe | None = None,
    roi: Any = None,
    overlap: int | None = None,
    frame_size: int | None = None,
    block: int = 8,
    judge: bool = True,
    device: str | None = None,
    **choices: Any,
) -> Job:
    """Decide everything about a run without doing any of it; arguments as `segment_everything`.

    Args:
        scene: See there.
        folder: The run's folder.
        model: See there.
        level: See there.
        recipe: See there.
        roi: See there.
        overlap: Pixels that neighbouring frames share; by default `overlap_for` the model.
        frame_size: Pixels along a frame; by default `frame_size_for` the model.
        block: Frames along the side of a block, the unit of work.
        judge: Let the memory decide where linking is in doubt.
        device: Where the network runs.
        **choices: Fields of `Recipe`.
    """
    scene = open_scene(scene)
    if not isinstance(block, int) or block < 1:
        raise PromptError(f"block is {block}; give a whole number of frames along its side, from 1")
    maker, network = model_maker(model, device)
    remember_network(maker, network)
    recipe = _recipe(recipe or recipe_for(network), choices)
    size = frame_size or frame_size_for(network)
    overlap = overlap_for(network, size) if overlap is None else overlap
    Layout(size, overlap)  # refuses overlaps that cannot be linked
    area = region_of_interest(roi, scene)
    if area is not None:
        scene = scene.within(area.bounds)
    grid = FrameGrid.of(scene, one_level(scene, level), frame_size=size, overlap=overlap)
    if area is not None:
        _check_compact(area, grid)
    return Job(
        scene=scene,
        model=maker,
        recipe=recipe,
        grid=grid,
        folder=folder.absolute(),  # workers may be elsewhere
        block=block,
        judge=judge,
        region=None if area is None else shapely.to_wkb(area),
        about={"model": network.name, "fingerprint": network.fingerprint},
    )


MANY = 100_000  # frames that may lie outside the region of interest before somebody is asked


def _check_compact(area: BaseGeometry, grid: FrameGrid) -> None:
    """Parts that lie far apart, as on both sides of the antimeridian, are regions of their own."""
    frame = (grid.stride * grid.level.cell_size) ** 2
    wanted = sum(max(1.0, part.area / frame) for part in shapely.get_parts(area))
    if len(grid) > MANY and len(grid) > 100 * wanted:
        raise PromptError(
            f"the region of interest takes about {wanted:.0f} frames, the box around it "
            f"{len(grid)}: its parts lie far apart; run them one by one"
        )


def _recipe(recipe: Recipe, choices: dict[str, Any]) -> Recipe:
    known = set(Recipe.__dataclass_fields__)
    if unknown := sorted(choices.keys() - known):
        raise PromptError(
            f"unknown option {', '.join(unknown)}; choose from {', '.join(sorted(known))}"
        )
    return replace(recipe, **choices)


def model_maker(model: Any, device: str | None = None) -> tuple[Callable[[], Network], Any]:
    """A maker of the network, and the network."""
    network: Any
    if isinstance(model, str | Path):
        maker: Callable[[], Network] = NamedModel(str(model), device)
        network = maker()
    elif hasattr(model, "encode") and callable(model) and not hasattr(model, "config"):
        maker, network = model, model  # a stand-in that makes itself
    elif hasattr(model, "encode"):
        maker, network = _Given(model), model
    elif callable(model):
        maker, network = model, model()
    else:
        raise PromptError(
            f"model is {type(model).__name__}; give a name, a path, a model, or what makes one"
        )
    return maker, network


def region_of_interest(roi: Any, scene: Scene) -> BaseGeometry | None:
    """A region in the scene's CRS, as far as it lies in the scene's bounds.

    Raises:
        PromptError: If it is empty, no area, or outside the scene.
        GeoreferenceError: If its CRS cannot be brought into the scene's.
    """
    if roi is None:
        return None
    if hasattr(roi, "to_crs"):  # a layer
        if roi.crs is not None and scene.crs is None:
            raise GeoreferenceError(
                "the region has a CRS and the scene is in pixel coordinates; give the region in "
                "pixel coordinates without a CRS"
            )
        roi = roi.to_crs(scene.crs) if roi.crs is not None and scene.crs is not None else roi
        roi = shapely.union_all(shapely.make_valid(np.asarray(roi.geometry)))
    if not isinstance(roi, shapely.Geometry):
        raise PromptError(
            f"the region of interest is {type(roi).__name__}; give a polygon, or a layer of them"
        )
    area = shapely.make_valid(roi)
    if area.is_empty or area.area == 0:
        raise PromptError(f"the region of interest is {roi.geom_type} without an area")
    inside = shapely.intersection(area, shapely.box(*scene.bounds))
    if inside.area == 0:
        here, there = (", ".join(f"{v:g}" for v in b) for b in (area.bounds, scene.bounds))
        raise PromptError(
            f"the region of interest ({here}) is outside the scene ({there}); set its CRS, or "
            "give another one"
        )
    return inside


# --- start


@contextlib.contextmanager
def executor_for(
    job: Work,
    *,
    workers: int = 0,
    scheduler: str | None = None,
    client: distributed.Client | None = None,
) -> Iterator[Executor]:
    """Where a job's steps are done: this process, a local cluster, or one that exists."""
    if workers < 0:
        raise PromptError(f"workers is {workers}; 0 works in this process, more start processes")
    if workers == 0 and scheduler is None and client is None:
        yield InProcess()
        return
    _check_travels(job)
    with contextlib.ExitStack() as stack:
        if client is None:
            where = local_client(workers) if scheduler is None else _connected(scheduler)
            client = stack.enter_context(where)
        yield stack.enter_context(contextlib.closing(OnDask(client)))


@contextlib.contextmanager
def _connected(scheduler: str) -> Iterator[distributed.Client]:
    import distributed
    from distributed.comm.addressing import parse_address, parse_host_port

    try:
        parse_host_port(parse_address(scheduler)[1])  # a client of "foo" would wait for it
        client = distributed.Client(  # type: ignore[no-untyped-call]
            scheduler, timeout=10, set_as_default=False
        )
    except (OSError, ValueError) as error:
        raise GeoSAM2Error(
            f"no dask scheduler answers at {scheduler} ({error}); start one with `dask scheduler` "
            "and give its address (tcp://host:8786), or use --workers"
        ) from error
    try:
        yield client
    finally:
        client.close()  # type: ignore[no-untyped-call]


def _check_travels(job: Work) -> None:
    import cloudpickle

    try:
        size = len(cloudpickle.dumps(job))
    except Exception as error:
        raise GeoSAM2Error(
            f"this job cannot be sent to workers ({error}); open the scene from a path or URL and "
            "name the model, or work in this process (workers=0)"
        ) from error
    if size > ROOM:
        raise GeoSAM2Error(
            f"this job would send {size / 1e6:.0f} MB with each step; open the scene from a path "
            "or URL and name the model, or work in this process (workers=0)"
        )


def with_threads(job: AnyWork, executor: Executor) -> AnyWork:
    """Share the cores out among the workers; in this process torch's own choice stays."""
    if isinstance(executor, InProcess):
        return job
    threads = threads_per_worker(max(1, executor.capacity // 2))
    return replace(job, threads=threads)  # type: ignore[type-var]


def start(job: Job, executor: Executor, *, resume: bool = False) -> Iterator[Progress]:
    """Open the job's folder and do what is not done yet; see `cluster.run`.

    Raises:
        LevelError: If a web service would be asked for more tiles than `max_tiles` allows.
    """
    grid = job.grid
    # not gone through for sources that answer for free
    visited = (grid.window(index) for index in visited_frames(job))
    windows = [grid.covered] if job.area is None else visited
    job.scene.check_requests(grid.level, windows)
    prepare(job, identity(job), resume=resume)
    yield from run(job, executor)


def identity(job: Job) -> dict[str, Any]:
    """What must be the same for a run to be resumed."""
    return {
        "geosam2": __version__,
        "source": job.scene.source,
        "scene": job.scene.signature,
        "model": job.about["model"],
        "weights": job.about["fingerprint"],
        "recipe": job.recipe.to_dict() | {"max_area_m2": repr(job.recipe.max_area_m2)},
        "level": job.grid.level.label,
        "frames": [list(job.grid.first), list(job.grid.shape)],
        "frame_size": job.grid.frame_size,
        "overlap": job.grid.overlap,
        "block": job.block,
        "judge": job.judge,
        "bounds": list(job.scene.bounds),
        "region": None if job.region is None else hashlib.sha256(job.region).hexdigest()[:16],
    }


# --- collect


def tables(job: Job) -> Iterator[geopandas.GeoDataFrame]:
    """Finished polygons, a block at a time, in an order that does not depend on who made them."""
    import geopandas

    blocks = job.blocks
    count = 0
    files = [job.path("draw", block) for block in blocks.in_order()]
    files += [job.path("join", node) for node in blocks.nodes()]
    for path in files:
        if not path.exists():
            continue
        table = geopandas.read_parquet(path)
        if table.empty:
            continue
        table.insert(0, "id", np.arange(count + 1, count + len(table) + 1))
        count += len(table)
        yield _described(table, job)


def _described(table: geopandas.GeoDataFrame, job: Job) -> geopandas.GeoDataFrame:
    table["level"] = job.grid.level.label
    table["model"] = job.about["model"]
    table["prompt"] = "everything"
    table["source"] = job.scene.source
    table["feature"] = [tuple(np.frombuffer(b, np.float32).tolist()) for b in table["feature"]]
    return table[[*COLUMNS]]


COLUMNS = {
    "id": "int64",
    "name": "str",
    "score": "float64",
    "predicted_iou": "float64",
    "stability": "float64",
    "area_m2": "float64",
    "frames": "int64",
    "open_edges": "int64",
    "parent": "str",
    "level": "str",
    "model": "str",
    "prompt": "str",
    "source": "str",
    "feature": "object",
    "geometry": "geometry",
}
"""Columns of `tables` and their types, which tables of nothing have, too."""


def nothing(job: Job) -> geopandas.GeoDataFrame:
    """A table like those of `tables`, without rows."""
    import geopandas
    import pandas as pd

    kinds = {name: kind for name, kind in COLUMNS.items() if name != "geometry"}
    empty = pd.DataFrame({name: pd.Series([], dtype=kind) for name, kind in kinds.items()})
    crs = None if job.scene.crs is None else job.scene.crs.to_wkt()
    return geopandas.GeoDataFrame(empty, geometry=[], crs=crs)


def collect(job: Job) -> geopandas.GeoDataFrame:
    """All polygons of a finished run as one table; `parent` becomes the id of a row, 0 = none."""
    import geopandas
    import pandas as pd

    found = list(tables(job)) or [nothing(job)]
    whole = geopandas.GeoDataFrame(pd.concat(found, ignore_index=True), crs=found[0].crs)
    ids = dict(zip(whole["name"], whole["id"], strict=True))
    whole["parent"] = np.array([ids.get(name, 0) for name in whole["parent"]], np.int64)
    dropped = ["name"] if job.recipe.features else ["name", "feature"]
    whole = whole.drop(columns=dropped)
    manifest = read_manifest(job.folder)
    whole.attrs["coverage"] = manifest["coverage"]
    whole.attrs["left_out"] = named(manifest["failed"])
    return whole
