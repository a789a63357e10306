"""How good a result is: of one mask, of an outline, of seams, and what a person says of it.

References:
    DAVIS boundary measure: Perazzi et al. 2016, section 4. Stability: Kirillov et al. 2023, 4.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import shapely

if TYPE_CHECKING:
    import geopandas

Geometries: TypeAlias = npt.NDArray[np.object_]
Rows: TypeAlias = npt.NDArray[np.intp]
Line: TypeAlias = tuple[float, float, float, float]


class Review(enum.Enum):
    """What a person has said about an object; the text is what files hold."""

    OPEN = "open"
    """Nobody has looked."""
    ACCEPTED = "accepted"
    """Good as it is."""
    CORRECTED = "corrected"
    """Good after more clicks or edits by hand."""
    REJECTED = "rejected"
    """Not what was meant."""


def mask_iou(
    first: npt.NDArray[Any], second: npt.NDArray[Any], weight: npt.NDArray[Any] | float = 1.0
) -> float:
    """Intersection over union of masks (H, W), cells counted by their weight; two empty ones: 1.

    >>> mask_iou(np.array([[1, 1, 0]]), np.array([[0, 1, 1]]))  # doctest: +ELLIPSIS
    0.333...
    """
    first, second = first.astype(bool), second.astype(bool)
    either = float(((first | second) * weight).sum())
    return float(((first & second) * weight).sum()) / either if either > 0 else 1.0


def stability_score(logits: npt.NDArray[Any], offset: float = 1.0, level: float = 0.0) -> float:
    """How little a mask changes when its threshold does: IoU of level + offset and level - offset.

    1 for a mask with a steep border, and for one that is empty at both.
    """
    if not offset > 0:
        raise ValueError(f"offset must be positive, got {offset}")
    inner = int((logits > level + offset).sum())
    outer = int((logits > level - offset).sum())
    return inner / outer if outer else 1.0


def polygon_iou(first: shapely.Geometry, second: shapely.Geometry) -> float:
    """Intersection over union of two polygons in one plane; two empty ones agree: 1."""
    union = shapely.union(first, second).area
    return float(shapely.intersection(first, second).area / union) if union else 1.0


def boundary_f_score(found: shapely.Geometry, truth: shapely.Geometry, tolerance: float) -> float:
    """Share of the outlines that lie within `tolerance` of each other, 0..1.

    The harmonic mean of two shares of length: of the found outline near the true one, and of the
    true one near the found one.

    Args:
        found: Polygon, in the plane of `truth`.
        truth: Polygon.
        tolerance: In units of that plane, > 0.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    if found.is_empty or truth.is_empty:
        return float(found.is_empty and truth.is_empty)
    precision = _share_near(found.boundary, truth.boundary, tolerance)
    recall = _share_near(truth.boundary, found.boundary, tolerance)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def matches(
    found: Geometries, truth: Geometries, least: float = 0.5
) -> list[tuple[int, int, float]]:
    """Pairs (index found, index truth, IoU), each in one pair at most, best first.

    Args:
        found: (N,) polygons.
        truth: (M,) polygons in the same plane.
        least: Pairs of a smaller IoU are none.
    """
    tree = shapely.STRtree(found)
    t, f = tree.query(truth, predicate="intersects")
    common = shapely.area(shapely.intersection(found[f], truth[t]))
    iou = common / (shapely.area(found[f]) + shapely.area(truth[t]) - common)
    used_found: set[int] = set()
    used_truth: set[int] = set()
    pairs = []
    for k in np.lexsort((t, f, -iou)):
        one, other = int(f[k]), int(t[k])
        if iou[k] >= least and one not in used_found and other not in used_truth:
            used_found.add(one)
            used_truth.add(other)
            pairs.append((one, other, float(iou[k])))
    return pairs


def seam_lines(boxes: Iterable[Line]) -> shapely.Geometry:
    """The borders of frames, given as (left, bottom, right, top), as lines."""
    outlines = shapely.boundary(shapely.box(*np.array(list(boxes), float).reshape(-1, 4).T))
    return shapely.union_all(outlines)


def split_rate(
    found: Geometries, truth: Geometries, seams: shapely.Geometry, *, part: float = 0.1
) -> float:
    """Share of the true objects crossing a seam that came out as more than one polygon.

    Args:
        found: (N,) polygons or multipolygons; each is one object.
        truth: (M,) polygons.
        seams: Lines; see `seam_lines`.
        part: A found object counts if it covers this share of the true one and lies mostly in it.

    Returns:
        0..1; NaN if no object that was found at all crosses a seam.
    """
    crossing = truth[shapely.intersects(truth, seams)]
    whole, _ = pieces_of(crossing, found, part)
    # several pieces of one found object are one
    pieces = np.bincount(whole, minlength=len(crossing))
    seen = pieces > 0
    return float((pieces[seen] > 1).mean()) if seen.any() else float("nan")


def parted_rate(
    found: Geometries,
    truth: Geometries,
    seams: shapely.Geometry,
    reach: float,
    *,
    part: float = 0.1,
) -> float:
    """Share of the true objects crossing a seam of which two pieces meet along a seam.

    `split_rate` counts whatever came out in pieces, as a house does that has two roofs. Here the
    border between two pieces must follow seams for more than half of its length.

    Args:
        found: (N,) polygons or multipolygons; each is one object.
        truth: (M,) polygons.
        seams: Lines; see `seam_lines`.
        reach: Pieces meet, and borders follow a seam, that are no further apart.
        part: As for `split_rate`.

    Returns:
        0..1; NaN if no object that was found at all crosses a seam.
    """
    crossing = truth[shapely.intersects(truth, seams)]
    whole, piece = pieces_of(crossing, found, part)
    along = shapely.buffer(seams, reach)

    def meet_there(one: int, other: int) -> bool:
        near = shapely.buffer(found[other], reach)
        border = shapely.intersection(shapely.boundary(found[one]), near)
        there = shapely.length(shapely.intersection(border, along))
        return bool(there > max(0.5 * shapely.length(border), 2 * reach))

    parted = [
        any(meet_there(*pair) for pair in itertools.permutations(piece[whole == t], 2))
        for t in np.unique(whole)
    ]
    return float(np.mean(parted)) if parted else float("nan")


def pieces_of(truth: Geometries, found: Geometries, part: float = 0.1) -> tuple[Rows, Rows]:
    """Pairs of a true object and one of its pieces: rows of `truth`, and rows of `found`.

    A piece covers the share `part` of the true object and lies mostly in it.

    >>> whole, halves = shapely.box(0, 0, 4, 4), [shapely.box(0, 0, 2, 4), shapely.box(2, 0, 4, 4)]
    >>> [rows.tolist() for rows in pieces_of(np.array([whole]), np.array(halves))]
    [[0, 0], [0, 1]]
    """
    t, f = shapely.STRtree(found).query(truth, predicate="intersects")
    common = shapely.area(shapely.intersection(truth[t], found[f]))
    counts = common >= part * shapely.area(truth[t])
    counts &= common >= 0.5 * shapely.area(found[f])
    return t[counts], f[counts]


def overlap_agreement(
    first: npt.NDArray[Any], second: npt.NDArray[Any], shift: tuple[int, int], *, level: float = 0.0
) -> float:
    """IoU of two frames' masks where the frames overlap.

    Args:
        first: Logits (H, W) of one frame.
        second: Logits (H, W) of the other.
        shift: (rows, columns) from the first frame's corner to the second's.
        level: Logits above it are the object.

    Returns:
        0..1; NaN if the frames do not overlap.
    """
    rows, cols = shift
    here = first[max(rows, 0) :, max(cols, 0) :]
    there = second[max(-rows, 0) :, max(-cols, 0) :]
    height, width = min(here.shape[0], there.shape[0]), min(here.shape[1], there.shape[1])
    if height <= 0 or width <= 0:
        return float("nan")
    return mask_iou(here[:height, :width] > level, there[:height, :width] > level)


def straight_edge(
    found: Geometries,
    seams: shapely.Geometry,
    pixel: float,
    *,
    edge: shapely.Geometry | None = None,
) -> float:
    """Share of outline length within one pixel of a seam and parallel to it.

    The mark of an object that was cut at a border. Real outlines crossing seams give almost none;
    real straight edges that happen to lie there count too, so compare with the truth's own figure.

    Args:
        found: (N,) polygons.
        seams: Horizontal and vertical lines.
        pixel: Side of a pixel in units of the plane.
        edge: Outline of the scene, where objects end by right; not counted at all.
    """
    outline = shapely.union_all(shapely.boundary(found))
    if edge is not None:
        outline = shapely.difference(outline, shapely.buffer(edge, pixel))
    total = outline.length
    if not total:
        return 0.0
    near = shapely.intersection(outline, shapely.buffer(seams, pixel, cap_style="flat"))
    points, line = shapely.get_coordinates(_lines(near), return_index=True)
    steps = np.abs(np.diff(points, axis=0)[np.diff(line) == 0])
    lengths = np.hypot(*steps.T)
    # the line may wander by a pixel over its whole length, not by more than 10 degrees of it
    parallel = steps.min(axis=1) <= np.sin(np.radians(10)) * lengths
    return float(lengths[parallel].sum() / total)


def phase_iou(first: Geometries, second: Geometries) -> float:
    """Mean IoU between the objects of two runs whose frames lie half a frame apart.

    Each object is compared with one of the other run, the pairs of best IoU first; one without a
    partner counts 0.
    """
    if not len(first) and not len(second):
        return 1.0
    total = sum(iou for _, _, iou in matches(first, second, least=1e-9))
    return float(2 * total / (len(first) + len(second)))


def duplicates(found: Geometries, *, least: float = 0.5) -> float:
    """Share of objects that another, larger or earlier one covers by more than `least`."""
    if not len(found):
        return 0.0
    a, b = shapely.STRtree(found).query(found, predicate="intersects")
    areas = shapely.area(found)
    behind = (areas[b] > areas[a]) | ((areas[b] == areas[a]) & (b < a))
    a, b = a[behind], b[behind]
    common = shapely.area(shapely.intersection(found[a], found[b]))
    return len(set(a[common > least * areas[a]].tolist())) / len(found)


def set_review(
    gdf: geopandas.GeoDataFrame, ids: Iterable[int], state: Review | str
) -> geopandas.GeoDataFrame:
    """A copy with the column `review` set for some ids; others keep theirs, or are open.

    Raises:
        ValueError: If an id is not there, or the state is none.
    """
    state, wanted = Review(state), list(ids)
    missing = sorted(set(wanted) - set(gdf["id"]))
    if missing:
        raise ValueError(f"no object has id {missing[0]}; ids are in the column 'id'")
    reviewed = gdf.copy()
    if "review" not in reviewed:
        reviewed["review"] = Review.OPEN.value
    reviewed.loc[reviewed["id"].isin(wanted), "review"] = state.value
    return reviewed


def _share_near(line: shapely.Geometry, other: shapely.Geometry, tolerance: float) -> float:
    near = shapely.intersection(line, shapely.buffer(other, tolerance))
    return float(near.length / line.length)


def _lines(geometry: shapely.Geometry) -> Geometries:
    """The line strings of what an overlay returned."""
    parts: Geometries = shapely.get_parts(geometry)
    return np.asarray(parts[shapely.get_dimensions(parts) == 1])
