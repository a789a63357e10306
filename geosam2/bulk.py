"""One polygon for each of very many prompts: points or boxes of a vector layer.

Prompts are grouped by the frame whose centre is nearest; a frame is read and encoded once for all
of its prompts. An object that its frame cuts is asked for again on a frame of its own, around it.
Blocks of frames are steps as those of a run that finds everything: here, or on dask workers.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import shapely
import torch
from numpy.typing import NDArray

from geosam2 import __version__
from geosam2.automatic import Network
from geosam2.cluster import outcomes, prepare
from geosam2.errors import GeoreferenceError, PromptError
from geosam2.everything import executor_for, model_maker, with_threads
from geosam2.files import whole
from geosam2.levels import Level, one_level
from geosam2.parts import stability_scores
from geosam2.prompts import network_box, network_points
from geosam2.recipe import frame_size_for
from geosam2.scene import Frame, Scene, open_scene
from geosam2.steps import Asking, network_of, remember_network
from geosam2.tiling import FrameGrid, FrameIndex
from geosam2.vectorize import geodesic_area, polygons

if TYPE_CHECKING:
    import distributed
    import geopandas


_INSIDE = 0.8  # a box longer than this share of a frame is looked at on a coarser level
_BLOCK = 8  # frames along the side of a block


class Batch(NamedTuple):
    """The prompts of one block of frames on one level of the scene."""

    level: int
    row: int
    col: int

    @property
    def name(self) -> str:
        """Short name for files and messages."""
        return f"prompts_{self.level}_{self.row}_{self.col}"


@dataclass(frozen=True)
class _Asked:
    """Prompts in map coordinates, one row each."""

    rows: NDArray[np.int_]
    centres: NDArray[np.float64]  # (N, 2)
    boxes: NDArray[np.float64] | None  # (N, 4) left, bottom, right, top

    def __getitem__(self, which: Any) -> _Asked:
        boxes = None if self.boxes is None else self.boxes[which]
        return _Asked(self.rows[which], self.centres[which], boxes)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, kw_only=True)
class PromptJob(Asking):
    """A run that answers prompts, which wait in its folder, a file a batch."""

    size: int
    """Side of a frame in pixels."""
    overlap: int
    """Pixels that neighbouring frames share."""
    chunk: int = 64
    """Prompts per call of the mask decoder."""
    simplify_m: float | None = None
    """Tolerance of the outlines in metres."""

    def grid(self, level: int) -> FrameGrid:
        """The frames of a level."""
        return FrameGrid.of(
            self.scene, self.scene.level(level), frame_size=self.size, overlap=self.overlap
        )

    def path(self, kind: str, batch: Batch) -> Path:
        """File of a batch's prompts ("asked") or answers ("answered")."""
        return self.folder / kind / f"{batch.name}.parquet"

    def result(self, step: Batch) -> Path:
        """The file that says that a batch is answered."""
        return self.path("answered", step)

    def _do(self, step: Batch) -> dict[str, Any]:
        network, grid = network_of(self), self.grid(step.level)
        asked = _read_asked(self.path("asked", step))
        answers: dict[int, dict[str, Any]] = {}
        for index, own in _by_frame(asked, grid):
            frame = self.scene.read_frame(grid, index)
            answers |= _answer(network, frame, own, grid.level, self)
            for one, row in enumerate(own.rows):  # once more, with the object in the middle
                if not answers[int(row)]["open_edges"]:
                    continue
                place = answers[int(row)]["geometry"].centroid
                centred = self.scene.read(grid.centred(place.x, place.y))
                if _holds(centred, own[[one]]):
                    answers |= _answer(network, centred, own[[one]], grid.level, self)
        _write(self.path("answered", step), answers, self.scene)
        return {"prompts": len(asked)}


def segment_prompts(
    scene: Any,
    prompts: geopandas.GeoDataFrame,
    *,
    model: Any = "nano",
    level: Level | int | str = 0,
    overlap: int | None = None,
    chunk: int = 64,
    simplify_m: float | None = None,
    device: str | None = None,
    workers: int = 0,
    scheduler: str | None = None,
    client: distributed.Client | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> geopandas.GeoDataFrame:
    """Segment one object for each row of a layer.

    Args:
        scene: What `open_scene` takes, or a Scene.
        prompts: Points, or polygons whose bounding boxes are taken; any CRS. Its columns are kept,
            but for those that are named as the answer's.
        model: As for `segment_everything`.
        level: Level of the scene, see `segment_everything`; boxes too large for a frame use a
            coarser one.
        overlap: Pixels shared by neighbouring frames; a quarter of a frame by default.
        chunk: Prompts per call of the mask decoder.
        simplify_m: Tolerance in metres, or None.
        device: Where the network runs.
        workers: 0 works in this process; more start a local dask cluster.
        scheduler: Address of a dask scheduler to use instead.
        client: A `distributed.Client` to use instead.
        folder: Where finished blocks leave their answers; needed to resume.
        resume: Go on with the run in `folder`.
        progress: Called with prompts done and prompts in all, after each block of frames.

    Returns:
        One row a prompt, in the order and with the columns and index of `prompts`, in the scene's
        CRS: prompt columns, then score, predicted_iou, stability, area_m2 (NaN without a CRS),
        open_edges (1 if the object goes on beyond its frame), level and geometry (empty if nothing
        was found).
        `.attrs["left_out"]` names blocks that kept failing; their rows have no geometry.

    Raises:
        PromptError: Other geometries, empty ones, or prompts outside the scene; names the row.
        GeoSAM2Error: If the folder holds another run, or this one and `resume` is not asked for.
    """
    import geopandas

    if not isinstance(prompts, geopandas.GeoDataFrame):
        raise PromptError(
            f"prompts are {type(prompts).__name__}; give a GeoDataFrame of points or polygons"
        )
    scene = open_scene(scene)
    finest = one_level(scene, level).index
    maker, network = model_maker(model, device)
    remember_network(maker, network)
    asked = _asked(prompts, scene)
    size = frame_size_for(network)
    overlap = size // 4 if overlap is None else overlap
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="geosam2_"))
        job = PromptJob(
            scene=scene,
            model=maker,
            folder=Path(folder).absolute(),
            size=size,
            overlap=overlap,
            chunk=chunk,
            simplify_m=simplify_m,
        )
        executor = stack.enter_context(
            executor_for(job, workers=workers, scheduler=scheduler, client=client)
        )
        prepare(job, _identity(job, asked, finest, network), resume=resume)
        batches = dict(_batches(asked, job, finest))
        done = sum(len(own) for batch, own in batches.items() if _is_done(job, batch))
        waiting = iter([batch for batch in batches if not _is_done(job, batch)])
        for batch in batches:
            _write_asked(job.path("asked", batch), batches[batch])
        left_out = []
        job = with_threads(job, executor)
        for batch, outcome in outcomes(job, executor, lambda: next(waiting, None)):
            if isinstance(outcome, BaseException):
                left_out.append(f"block {batch.name} ({outcome})")
            done += len(batches[batch])
            if progress is not None:
                progress(done, len(asked))
        table = _table(prompts, _read_answers(job, list(batches)), scene)
    table.attrs["left_out"] = left_out
    return table


def _identity(job: PromptJob, asked: _Asked, level: int, network: Any) -> dict[str, Any]:
    """What must be the same for a run to be resumed."""
    where = asked.centres if asked.boxes is None else asked.boxes
    return {
        "geosam2": __version__,
        "source": job.scene.source,
        "scene": job.scene.signature,
        "model": network.name,
        "weights": network.fingerprint,
        "prompts": hashlib.sha256(np.ascontiguousarray(where).tobytes()).hexdigest()[:16],
        "level": level,
        "frame_size": job.size,
        "overlap": job.overlap,
        "simplify_m": job.simplify_m,
    }


def _batches(asked: _Asked, job: PromptJob, level: int) -> Iterator[tuple[Batch, _Asked]]:
    for number, group in _by_level(asked, job.scene, level, job.size):
        grid, rows = job.grid(number), {}  # type: tuple[FrameGrid, dict[Batch, list[int]]]
        for row, (x, y) in enumerate(group.centres):
            index = grid.index_at(x, y)
            batch = Batch(number, index.row // _BLOCK, index.col // _BLOCK)
            rows.setdefault(batch, []).append(row)
        for batch in sorted(rows):
            yield batch, group[rows[batch]]


def _is_done(job: PromptJob, batch: Batch) -> bool:
    return job.path("answered", batch).exists()


def _asked(prompts: geopandas.GeoDataFrame, scene: Scene) -> _Asked:
    """Prompts in the scene's CRS, checked."""
    if prompts.crs is not None and scene.crs is None:
        raise GeoreferenceError(
            "the prompts have a CRS and the scene is in pixel coordinates; give them in pixel "
            "coordinates without a CRS"
        )
    shapes = prompts.geometry
    if prompts.crs is not None and scene.crs is not None:
        shapes = shapes.to_crs(scene.crs)
    if shapes.empty:
        raise PromptError("the layer holds no prompts")
    values = np.asarray(shapes)
    if (bad := shapely.is_missing(values) | shapely.is_empty(values)).any():
        raise PromptError(f"row {int(np.flatnonzero(bad)[0])} of the prompts has no geometry")
    kinds = set(shapes.geom_type)
    if kinds != {"Point"} and not kinds <= {"Polygon", "MultiPolygon"}:
        raise PromptError(
            f"prompts are {', '.join(sorted(kinds))}; give a layer of points, or one of polygons "
            "(their boxes are taken)"
        )
    boxes = None if kinds == {"Point"} else shapely.bounds(values)
    centres = shapely.get_coordinates(
        values if boxes is None else shapely.centroid(shapely.box(*boxes.T))
    )
    left, bottom, right, top = scene.bounds
    x, y = centres.T
    outside = ~((x >= left) & (x <= right) & (y >= bottom) & (y <= top))
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise PromptError(
            f"{int(outside.sum())} of {len(values)} prompts are outside the scene, the first "
            f"(row {first}) at ({x[first]:g}, {y[first]:g}); clip the layer to the scene's bounds "
            f"({left:g}, {bottom:g}, {right:g}, {top:g}), or set its CRS"
        )
    return _Asked(np.arange(len(values)), centres, boxes)


def _by_level(asked: _Asked, scene: Scene, level: int, size: int) -> Iterator[tuple[int, _Asked]]:
    """Prompts by the finest level on which their box fits into a frame."""
    if asked.boxes is None:
        yield level, asked
        return
    left, bottom, right, top = asked.boxes.T
    longest = np.maximum(right - left, top - bottom)
    numbers = range(level, len(scene.levels))
    cells = np.array([scene.level(number).cell_size for number in numbers])
    fits = longest[:, None] <= _INSIDE * size * cells[None, :]
    chosen = np.where(fits.any(1), fits.argmax(1), len(cells) - 1)
    for number in np.unique(chosen):
        yield numbers[int(number)], asked[chosen == number]


def _by_frame(asked: _Asked, grid: FrameGrid) -> Iterator[tuple[FrameIndex, _Asked]]:
    groups: dict[FrameIndex, list[int]] = {}
    for row, (x, y) in enumerate(asked.centres):
        groups.setdefault(grid.index_at(x, y), []).append(row)
    for index in sorted(groups):
        yield index, asked[groups[index]]


def _holds(frame: Frame, asked: _Asked) -> bool:
    xy = network_points([tuple(place) for place in asked.centres], frame)
    return bool(((xy >= 0) & (xy < frame.shape[0])).all())


def _answer(
    network: Network, frame: Frame, asked: _Asked, level: Level, job: PromptJob
) -> dict[int, dict[str, Any]]:
    """The answers of one frame, by row of the layer."""
    out = {}
    valid = _small(frame.valid)
    with torch.inference_mode():
        features = network.encode(torch.from_numpy(frame.pixels)[None])
        for start in range(0, len(asked), job.chunk):
            part = asked[slice(start, start + job.chunk)]
            logits, iou, stability = _decode(network, features, frame, part)
            for i, row in enumerate(part.rows):
                mask = np.where(valid, logits[i], np.float32(-16))
                out[int(row)] = {
                    "predicted_iou": float(iou[i]),
                    "stability": float(stability[i]),
                    "open_edges": int(_on_border(mask)),
                    "level": level.label,
                    "geometry": _outline(mask, frame, level, job.simplify_m),
                }
    return out


def _decode(network: Network, features: Any, frame: Frame, asked: _Asked) -> tuple[Any, Any, Any]:
    from geosam2_model import Prompts

    if asked.boxes is None:
        places = [(float(x), float(y)) for x, y in asked.centres]
        points = torch.from_numpy(network_points(places, frame))[:, None]
        prompts = Prompts(points=points, labels=torch.ones(len(points), 1, dtype=torch.int64))
    else:
        boxes = [network_box(tuple(box), frame) for box in asked.boxes]
        prompts = Prompts(boxes=torch.from_numpy(np.stack(boxes)))
    out = network.decode(features, prompts, multimask=asked.boxes is None)
    best = out.predicted_iou.argmax(1)
    rows = torch.arange(len(best), device=best.device)
    logits, iou = out.logits[rows, best].float(), out.predicted_iou[rows, best].float()
    answer = (logits, iou, stability_scores(logits, 1.0))
    logits, iou, stability = (values.cpu().numpy() for values in answer)
    return logits, iou, stability


def _small(valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    rows, cols = valid.shape
    share: NDArray[np.float64] = valid.reshape(rows // 4, 4, cols // 4, 4).mean(axis=(1, 3))
    small: NDArray[np.bool_] = share > 0.5
    return small


def _on_border(logits: NDArray[np.float32]) -> bool:
    rim = np.concatenate([logits[0], logits[-1], logits[:, 0], logits[:, -1]])
    return bool((rim > 0).any())


def _outline(
    logits: NDArray[np.float32], frame: Frame, level: Level, simplify_m: float | None
) -> shapely.Geometry:
    """Polygon of a mask (H / 4, W / 4); only the cells around it are enlarged."""
    from affine import Affine
    from torch.nn import functional as F

    rows, cols = np.flatnonzero((logits > 0).any(1)), np.flatnonzero((logits > 0).any(0))
    if len(rows) == 0:
        return shapely.Polygon()
    # two cells more: the outermost pixels then are what they are in the whole frame
    top, left = max(rows[0] - 2, 0), max(cols[0] - 2, 0)
    crop = np.ascontiguousarray(logits[top : rows[-1] + 3, left : cols[-1] + 3])
    big = F.interpolate(torch.from_numpy(crop)[None, None], scale_factor=4.0, mode="bilinear")
    transform = Affine(*frame.geobox.affine[:6]) * Affine.translation(4 * left, 4 * top)
    return polygons(big[0, 0].numpy(), transform, level.crs, simplify_m=simplify_m)


# --- files


def _write_asked(path: Path, asked: _Asked) -> None:
    import pandas as pd

    places = asked.centres if asked.boxes is None else np.hstack([asked.centres, asked.boxes])
    table = pd.DataFrame(places, index=asked.rows)
    with whole(path) as partial:
        table.rename(columns=str).to_parquet(partial)


def _read_asked(path: Path) -> _Asked:
    import pandas as pd

    table = pd.read_parquet(path)
    places = table.to_numpy()
    boxes = places[:, 2:] if places.shape[1] > 2 else None
    return _Asked(table.index.to_numpy(), places[:, :2], boxes)


def _write(path: Path, answers: dict[int, dict[str, Any]], scene: Scene) -> None:
    import geopandas

    crs = None if scene.crs is None else scene.crs.to_wkt()
    table = geopandas.GeoDataFrame(
        list(answers.values()), index=list(answers), geometry="geometry", crs=crs
    )
    with whole(path) as partial:
        table.to_parquet(partial)


def _read_answers(job: PromptJob, batches: list[Batch]) -> list[dict[str, Any]]:
    import geopandas

    out: list[dict[str, Any]] = []
    for batch in batches:
        if _is_done(job, batch):
            found = geopandas.read_parquet(job.path("answered", batch))
            out += [{"row": row, **a} for row, a in found.to_dict("index").items()]
    return out


def _table(
    prompts: geopandas.GeoDataFrame, answers: list[dict[str, Any]], scene: Scene
) -> geopandas.GeoDataFrame:
    import geopandas
    import pandas as pd

    columns = ["row", "predicted_iou", "stability", "open_edges", "level", "geometry"]
    table = pd.DataFrame(answers, columns=columns).set_index("row").reindex(range(len(prompts)))
    table["geometry"] = [
        shapely.Polygon() if missing else shape
        for shape, missing in zip(table["geometry"], table["geometry"].isna(), strict=True)
    ]
    table.insert(0, "score", table["predicted_iou"] * table["stability"])
    areas = [
        math.nan if scene.crs is None else geodesic_area(shape, scene.crs)
        for shape in table["geometry"]
    ]
    table.insert(3, "area_m2", areas)
    kept = prompts.drop(columns=prompts.geometry.name)
    kept = kept.drop(columns=[c for c in table.columns if c in kept.columns])
    crs = None if scene.crs is None else scene.crs.to_wkt()
    # side by side, not joined by an index: two prompts may have the same
    both = {**dict(kept.items()), **{name: table[name].to_numpy() for name in table}}
    return geopandas.GeoDataFrame(both, index=prompts.index, geometry="geometry", crs=crs)
