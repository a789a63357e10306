"""More like these: rank what was found by how much it looks like a few examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray

from geosam2.errors import PromptError

if TYPE_CHECKING:
    import geopandas


def find_similar(
    found: geopandas.GeoDataFrame, examples: Any, *, min_iou: float = 0.3
) -> geopandas.GeoDataFrame:
    """Rank found objects by similarity to examples.

    What is compared is the network's embedding, averaged over each object, minus the mean of all
    objects: what all of a scene has in common says nothing about likeness.

    Args:
        found: Result of `segment_everything` with its `feature` column.
        examples: Polygons or points: a GeoDataFrame or GeoSeries in any CRS, geometries in the CRS
            of `found`, or ids of its rows.
        min_iou: A polygon stands for the found object that overlaps it best, at least so much; a
            point for the smallest object that it lies on.

    Returns:
        `found`, most similar first, with `similarity` (cosine, -1..1) to the closest example and
        `example` (True for the examples themselves).

    Raises:
        PromptError: If there are no features, or no example fits any object.
    """
    if "feature" not in found or found.empty or not len(found["feature"].iloc[0]):
        raise PromptError(
            "these objects have no features; run segment_everything with features=True"
        )
    rows = _example_rows(found, examples, min_iou)
    features = _unit(np.array(found["feature"].tolist(), np.float32))
    closest = (features @ features[rows].T).max(axis=1)
    ranked = found.assign(
        similarity=closest.clip(-1, 1), example=np.isin(np.arange(len(found)), rows)
    )
    return ranked.sort_values("similarity", ascending=False, kind="stable", ignore_index=True)


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    if len(features) > 1:
        features = features - features.mean(axis=0)
    unit: NDArray[np.float32] = features / np.maximum(
        np.linalg.norm(features, axis=1, keepdims=True), 1e-9
    )
    return unit


def _example_rows(found: geopandas.GeoDataFrame, examples: Any, min_iou: float) -> NDArray[np.int_]:
    if hasattr(examples, "to_crs"):
        known = examples.crs is not None and found.crs is not None
        examples = (examples.to_crs(found.crs) if known else examples).geometry
    values = list(examples)
    if not values:
        raise PromptError("there are no examples; give at least one polygon or id")
    if not isinstance(values[0], shapely.Geometry):
        return _rows_of_ids(found, values)
    shapes = np.asarray(found.geometry)
    tree = shapely.STRtree(shapes)
    rows = []
    for example in values:
        near = tree.query(example, predicate="intersects")
        if not len(near):
            continue
        if not example.area:
            rows.append(int(near[shapely.area(shapes[near]).argmin()]))
            continue
        common = shapely.area(shapely.intersection(shapes[near], example))
        iou = common / (shapely.area(shapes[near]) + example.area - common)
        if iou.max() >= min_iou:
            rows.append(int(near[iou.argmax()]))
    if not rows:
        raise PromptError(
            f"none of the {len(values)} examples overlaps a found object by {min_iou:.0%} (IoU), "
            "or lies on one; draw them on objects that were found, or lower min_iou"
        )
    return np.unique(rows)


def _rows_of_ids(found: geopandas.GeoDataFrame, ids: list[Any]) -> NDArray[np.int_]:
    places = {int(value): row for row, value in enumerate(found["id"])}
    if missing := [i for i in ids if int(i) not in places]:
        raise PromptError(f"there is no object with id {missing[0]}; ids are 1 to {len(found)}")
    return np.unique([places[int(i)] for i in ids])
