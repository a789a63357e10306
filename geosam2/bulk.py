"""One polygon for each of very many prompts: points or boxes of a vector layer.

Prompts are grouped by the frame whose centre is nearest; a frame is read and encoded once for all
of its prompts. An object that its frame cuts is asked for again on a frame of its own, around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
import torch
from numpy.typing import NDArray

from geosam2.automatic import Network, stability_scores
from geosam2.errors import GeoreferenceError, PromptError
from geosam2.everything import load_network
from geosam2.prompts import network_box, network_points
from geosam2.scene import Frame, Scene, open_scene
from geosam2.tiling import FrameGrid, FrameIndex
from geosam2.vectorize import geodesic_area, polygons

if TYPE_CHECKING:
    import geopandas

    from geosam2.levels import Level

_INSIDE = 0.8  # a box longer than this share of a frame is looked at on a coarser level


@dataclass(frozen=True)
class _Asked:
    """Prompts in map coordinates, one row each."""

    rows: NDArray[np.int_]
    centres: NDArray[np.float64]  # (N, 2)
    boxes: NDArray[np.float64] | None  # (N, 4) left, bottom, right, top

    def __getitem__(self, which: Any) -> _Asked:
        boxes = None if self.boxes is None else self.boxes[which]
        return _Asked(self.rows[which], self.centres[which], boxes)


def segment_prompts(
    scene: Any,
    prompts: geopandas.GeoDataFrame,
    *,
    model: Any = "nano",
    level: int = 0,
    overlap: int | None = None,
    chunk: int = 64,
    simplify_m: float | None = None,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> geopandas.GeoDataFrame:
    """Segment one object for each row of a layer.

    Args:
        scene: What `open_scene` takes, or a Scene.
        prompts: Points, or polygons whose bounding boxes are taken; any CRS. Its columns are kept.
        model: Name or path of a model, or a model.
        level: Level of the scene; boxes too large for a frame use a coarser one.
        overlap: Pixels shared by neighbouring frames; a quarter of a frame by default.
        chunk: Prompts per call of the mask decoder.
        simplify_m: Tolerance in metres, or None.
        device: Where the network runs.
        progress: Called with prompts done and prompts in all, after each frame.

    Returns:
        One row a prompt, in the order and with the columns and index of `prompts`, in the scene's
        CRS: prompt columns, then score, predicted_iou, stability, area_m2, open_edges (1 if the
        object goes on beyond its frame), level and geometry (empty if nothing was found).

    Raises:
        PromptError: Other geometries, empty ones, or prompts outside the scene; names the row.
    """
    scene = open_scene(scene)
    network = load_network(model, device)
    asked = _asked(prompts, scene)
    size = network.config.image_size if hasattr(network, "config") else 512
    overlap = size // 4 if overlap is None else overlap
    answers: list[dict[str, Any]] = [{} for _ in range(len(prompts))]
    done = 0
    for number, group in _by_level(asked, scene, level, size):
        grid = FrameGrid.of(scene, number, frame_size=size, overlap=overlap)
        for index, own in _by_frame(group, grid):
            frame = scene.read_frame(grid, index)
            cut = _answer(network, frame, own, grid.level, chunk, simplify_m, answers)
            for one in cut:  # once more, with the object in the middle
                place = answers[int(own.rows[one])]["geometry"].centroid
                centred = scene.read(grid.centred(place.x, place.y))
                alone = own[[one]]
                if _holds(centred, alone):
                    _answer(network, centred, alone, grid.level, chunk, simplify_m, answers)
            done += len(own.rows)
            if progress is not None:
                progress(done, len(prompts))
    return _table(prompts, answers, scene)


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
    cells = np.array([one.cell_size for one in scene.levels[level:]])
    fits = longest[:, None] <= _INSIDE * size * cells[None, :]
    chosen = np.where(fits.any(1), fits.argmax(1), len(cells) - 1)
    for number in np.unique(chosen):
        yield level + int(number), asked[chosen == number]


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
    network: Network,
    frame: Frame,
    asked: _Asked,
    level: Level,
    chunk: int,
    simplify_m: float | None,
    answers: list[dict[str, Any]],
) -> list[int]:
    """Fill in the answers of one frame; returns which of its objects the frame cuts."""
    cut = []
    with torch.inference_mode():
        features = network.encode(torch.from_numpy(frame.pixels)[None])
        for start in range(0, len(asked.rows), chunk):
            part = asked[slice(start, start + chunk)]
            logits, iou, stability = _decode(network, features, frame, part)
            for i, row in enumerate(part.rows):
                mask = np.where(_small(frame.valid), logits[i], np.float32(-16))
                if _on_border(mask):
                    cut.append(start + i)
                answers[int(row)] = {
                    "predicted_iou": float(iou[i]),
                    "stability": float(stability[i]),
                    "open_edges": int(_on_border(mask)),
                    "level": level.label,
                    "geometry": _outline(mask, frame, level, simplify_m),
                }
    return cut


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
    rows = torch.arange(len(best))
    logits = out.logits[rows, best]
    stability = stability_scores(logits, 1.0)
    return logits.float().numpy(), out.predicted_iou[rows, best].numpy(), stability.numpy()


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
    from affine import Affine
    from torch.nn import functional as F

    big = F.interpolate(torch.from_numpy(logits)[None, None], scale_factor=4.0, mode="bilinear")
    affine = frame.geobox.affine
    transform = Affine(*affine[:6])
    return polygons(big[0, 0].numpy(), transform, level.crs, simplify_m=simplify_m)


def _table(
    prompts: geopandas.GeoDataFrame, answers: list[dict[str, Any]], scene: Scene
) -> geopandas.GeoDataFrame:
    import geopandas

    table = geopandas.pd.DataFrame(answers, index=prompts.index)
    table.insert(0, "score", table["predicted_iou"] * table["stability"])
    areas = [
        shape.area if scene.crs is None else geodesic_area(shape, scene.crs)
        for shape in table["geometry"]
    ]
    table.insert(3, "area_m2", areas)
    kept = prompts.drop(columns=prompts.geometry.name)
    kept = kept.drop(columns=[c for c in table.columns if c in kept.columns])
    crs = None if scene.crs is None else scene.crs.to_wkt()
    return geopandas.GeoDataFrame(kept.join(table), geometry="geometry", crs=crs)
