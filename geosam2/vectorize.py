"""Logits and labels to polygons on the map. Invalid geometry never leaves this module.

Distances are metres on the ground in any CRS, degrees and Web Mercator included; without a CRS they
are pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyproj
import shapely
from affine import Affine
from shapely.geometry import MultiPolygon, Polygon

from geosam2 import contours
from geosam2.errors import OptionError
from geosam2.levels import to_degrees
from geosam2.regularize import right_angles, smoothed

if TYPE_CHECKING:
    import geopandas

    from geosam2.mosaic import LogitMosaic

Shape: TypeAlias = Polygon | MultiPolygon
Geometries: TypeAlias = npt.NDArray[np.object_]

_BLOCK = 1024  # lattice pixels of a mosaic that are in memory at once, each way
_LONGEST_EDGE = 1000.0  # metres; a longer straight line on the map is not one on the ground
_GEOD = pyproj.Geod(ellps="WGS84")


def polygons(
    logits: npt.NDArray[Any],
    transform: Affine,
    crs: Any = None,
    *,
    level: float = 0.0,
    min_area_m2: float = 0.0,
    simplify_m: float | None = None,
    orthogonal: bool = False,
    smooth: bool = False,
) -> Shape:
    """Outline of one object, finer than its pixels.

    The line runs where linear interpolation between pixel centres reaches `level`; where the object
    meets the edge of the array or NaN (not known), exactly along the pixel edge. Pixels that touch
    at a corner are joined if the mean of the four around that corner says so.

    Args:
        logits: (H, W) float, NaN = not known; or a bool mask, outlined half way between pixels.
        transform: Pixel corner to map.
        crs: Of the map; anything `pyproj.CRS.from_user_input` takes, None = pixel coordinates.
        level: Logits above it are the object.
        min_area_m2: Smaller parts are dropped, smaller holes filled.
        simplify_m: Largest distance by which the outline may move, or None.
        orthogonal: Right angles, for buildings; what does not fit is only simplified.
        smooth: Remove pixel-sized jitter, for natural things; keeps the area.

    Returns:
        A valid Polygon or MultiPolygon in `crs`; empty Polygon if nothing is above `level`.

    Raises:
        OptionError: As `check_options`.

    >>> square = np.pad(np.full((8, 8), 3.0), 4, constant_values=-3.0)
    >>> polygons(square, Affine(10, 0, 0, 0, -10, 0)).bounds
    (40.0, -120.0, 120.0, -40.0)
    """
    if logits.ndim != 2:
        raise ValueError(f"logits must be (H, W), got shape {logits.shape}")
    check_options(min_area_m2, simplify_m, orthogonal=orthogonal, smooth=smooth)
    rings = contours.trace(contours.strips(logits), logits.shape[1], level=level)
    return _finish(rings, transform, crs, min_area_m2, simplify_m, orthogonal, smooth)


def from_mosaic(
    mosaic: LogitMosaic,
    *,
    level: float = 0.0,
    min_area_m2: float = 0.0,
    simplify_m: float | None = None,
    orthogonal: bool = False,
    smooth: bool = False,
) -> Shape:
    """Outline of a followed object; as `polygons`, one block of the mosaic in memory at a time."""
    check_options(min_area_m2, simplify_m, orthogonal=orthogonal, smooth=smooth)
    if not len(mosaic):
        return Polygon()
    top, left, _, right = mosaic.box
    rings = contours.trace(_mosaic_blocks(mosaic), right - left, level=level)
    transform = _shifted(mosaic.transform, left, top)
    return _finish(rings, transform, mosaic.crs, min_area_m2, simplify_m, orthogonal, smooth)


def check_options(
    min_area_m2: float = 0.0,
    simplify_m: float | None = None,
    *,
    orthogonal: bool = False,
    smooth: bool = False,
    **unknown: Any,
) -> None:
    """Refuse options of `polygons` that make no sense: before hours of work rather than after.

    Raises:
        OptionError: If a number is negative or not finite, or two options exclude each other.
        TypeError: If there is no such option.
    """
    if unknown:
        raise TypeError(
            f"there is no option {', '.join(unknown)}: outlines take min_area_m2, simplify_m, "
            "orthogonal and smooth"
        )
    for name, value in (("min_area_m2", min_area_m2), ("simplify_m", simplify_m or 0.0)):
        if not (math.isfinite(value) and value >= 0):
            raise OptionError(f"{name}={value}: give a number from 0")
    if orthogonal and smooth:
        raise OptionError(
            "orthogonal=True is for buildings and smooth=True for natural things: choose one"
        )


def coverage(
    labels: npt.NDArray[Any],
    transform: Affine,
    crs: Any = None,
    *,
    ids: Sequence[int] | None = None,
    min_area_m2: float = 0.0,
    simplify_m: float | None = None,
) -> geopandas.GeoDataFrame:
    """Many objects that do not overlap; neighbours share their border point for point.

    Args:
        labels: (H, W) int, 0 = no object, negative = not known.
        transform: Pixel corner to map.
        crs: Of the map, or None.
        ids: Labels wanted; default all.
        min_area_m2: Smaller parts are dropped.
        simplify_m: How coarse the shared borders may become, or None.

    Returns:
        Columns id and geometry, one row a label, by id; a valid coverage.

    >>> coverage(np.array([[1, 1, 2], [1, 1, 2]]), Affine.identity()).geometry.area.tolist()
    [4.0, 2.0]
    """
    if labels.ndim != 2 or labels.dtype.kind not in "iub":
        raise ValueError(f"labels must be (H, W) integers, got {labels.dtype} {labels.shape}")
    rings = contours.trace(contours.strips(labels), labels.shape[1])
    parts, owner = contours.polygons(rings)
    wanted = shapely.area(parts) * _pixel_area(transform, crs, rings) >= min_area_m2
    if ids is not None:
        wanted &= np.isin(owner, np.asarray(ids))
    parts, owner = parts[wanted], owner[wanted]
    order = np.argsort(owner, kind="stable")
    found, first = np.unique(owner[order], return_index=True)
    groups = np.split(parts[order], first[1:]) if len(found) else []
    geometry = [group[0] if len(group) == 1 else shapely.multipolygons(group) for group in groups]
    placed = _affine(np.array(geometry, dtype=object), transform)
    if simplify_m:
        placed = simplify(placed, crs, simplify_m)
    import geopandas  # takes as long to import as a click: not before it is needed

    return geopandas.GeoDataFrame({"id": found}, geometry=placed, crs=crs)


def simplify(geometries: Geometries, crs: Any, metres: float) -> Geometries:
    """Simplify polygons together: borders that neighbours share stay shared.

    Args:
        geometries: (N,) polygons in `crs`.
        crs: Their CRS, or None.
        metres: Side of a square whose area is the least that a corner must matter (Visvalingam).

    Returns:
        (N,) valid polygons; one that would collapse stays as it was.
    """
    if not metres > 0:
        raise ValueError(f"simplification must be a positive distance, got {metres} m")
    if not len(geometries):
        return geometries
    plane = _Plane(geometries, crs)
    found = plane.back(shapely.coverage_simplify(plane.there(geometries), metres))
    bad = shapely.is_empty(found) | ~shapely.is_valid(found)
    return np.where(bad, geometries, found)


def geodesic_area(geometry: shapely.Geometry, crs: Any) -> float:
    """Area on the WGS 84 ellipsoid in square metres, holes taken off.

    Right across the antimeridian too. Without a CRS, plain area in pixels; in a local CRS, which
    has no place on the Earth, plain area in its unit of length.

    >>> round(geodesic_area(shapely.box(0, 0, 1, 1), "EPSG:4326") / 1e6)
    12308
    """
    return float(geodesic_areas(np.array([geometry]), crs)[0])


def geodesic_areas(geometries: Geometries, crs: Any) -> npt.NDArray[np.float64]:
    """`geodesic_area` of each."""
    if crs is None:
        return np.asarray(shapely.area(geometries))
    degrees = to_degrees(pyproj.CRS(crs))
    if degrees is None:
        mx, my = metres_per_unit(crs, 0.0, 0.0)
        return np.asarray(shapely.area(geometries)) * mx * my
    parts, owner = shapely.get_parts(geometries, return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    areas = np.zeros(len(geometries))
    if not len(rings):
        return areas
    mx, my = metres_per_unit(crs, *_centre(geometries))
    rings = shapely.segmentize(rings, _LONGEST_EDGE / max(mx, my))
    is_hole = np.append(False, part[1:] == part[:-1])  # the first ring of a part is its shell
    points, ring = shapely.get_coordinates(rings, return_index=True)
    lon, lat = degrees.transform(*points.T)
    breaks = np.flatnonzero(np.diff(ring)) + 1
    for lons, lats, hole, k in zip(
        np.split(lon, breaks), np.split(lat, breaks), is_hole, owner[part], strict=True
    ):
        area = abs(_GEOD.polygon_area_perimeter(lons, lats)[0])
        areas[k] += -area if hole else area
    return areas


def metres_per_unit(crs: Any, x: float, y: float) -> tuple[float, float]:
    """How long one unit of the CRS is on the ground at a place, along x and along y.

    >>> tuple(round(size) for size in metres_per_unit("EPSG:4326", 10.0, 60.0))
    (55800, 111412)
    """
    if crs is None:
        return 1.0, 1.0
    crs = pyproj.CRS(crs)
    step = 1e-4 if crs.is_geographic else 10.0
    degrees, nowhere = to_degrees(crs), ([np.nan], [np.nan])
    places = ([x, x + step, x], [y, y, y + step])
    lon, lat = nowhere if degrees is None else degrees.transform(*places)
    if not np.isfinite([lon, lat]).all():
        factor = crs.axis_info[0].unit_conversion_factor
        return factor, factor
    _, _, metres = _GEOD.inv([lon[0]] * 2, [lat[0]] * 2, lon[1:], lat[1:])
    return metres[0] / step, metres[1] / step


class _Plane:
    """A local plane in metres around some geometries, which distances can be trusted in."""

    def __init__(self, geometries: Geometries, crs: Any) -> None:
        self.centre = np.array(_centre(geometries))
        self.scale = np.array(metres_per_unit(crs, *self.centre))

    def there(self, geometries: Geometries) -> Geometries:
        moved: Geometries = shapely.transform(geometries, lambda p: (p - self.centre) * self.scale)
        return moved

    def back(self, geometries: Geometries) -> Geometries:
        moved: Geometries = shapely.transform(geometries, lambda p: p / self.scale + self.centre)
        return moved


def _finish(
    rings: contours.Rings,
    transform: Affine,
    crs: Any,
    min_area_m2: float,
    simplify_m: float | None,
    orthogonal: bool,
    smooth: bool,
) -> Shape:
    """From pixel outlines to one valid geometry on the map."""
    pixel_area = _pixel_area(transform, crs, rings)
    rings = rings.take(np.abs(rings.areas) * pixel_area >= min_area_m2)
    if smooth:
        rings = smoothed(rings)
    parts = _affine(contours.polygons(rings)[0], transform)
    if len(parts) and (orthogonal or simplify_m):
        plane = _Plane(parts, crs)
        parts = plane.there(parts)
        if orthogonal:
            tolerance = simplify_m or float(np.sqrt(pixel_area))
            parts = np.array([right_angles(part, tolerance) for part in parts], dtype=object)
        else:
            parts = shapely.get_parts(shapely.simplify(shapely.multipolygons(parts), simplify_m))
        parts = plane.back(parts)
    return _valid(parts)


def _valid(parts: Geometries) -> Shape:
    """One valid polygon or multipolygon of parts; lines and points that repair leaves are cut."""
    whole = parts[0] if len(parts) == 1 else shapely.multipolygons(parts)
    if not shapely.is_valid(whole):
        repaired = shapely.get_parts(shapely.make_valid(whole, method="structure"))
        kept = shapely.get_parts(repaired[shapely.get_dimensions(repaired) == 2])
        whole = kept[0] if len(kept) == 1 else shapely.multipolygons(kept)
    return whole if not shapely.is_empty(whole) else Polygon()


def _mosaic_blocks(mosaic: LogitMosaic) -> Iterator[contours.Block]:
    """The parts of a mosaic where frames are, with a rim of the unknown."""
    top, left, bottom, right = mosaic.box
    boxes = np.array([patch.box for patch in mosaic.patches.values()])
    for row in range(-1, bottom - top, _BLOCK):
        for col in range(-1, right - left, _BLOCK):
            height = min(_BLOCK, bottom - top - row) + 1
            width = min(_BLOCK, right - left - col) + 1
            r, c = top + row, left + col
            meets = (boxes[:, 0] < r + height) & (boxes[:, 2] > r)
            meets &= (boxes[:, 1] < c + width) & (boxes[:, 3] > c)
            if meets.any():
                yield contours.Block(row, col, mosaic.window(r, c, height, width, fill=np.nan))


def _shifted(transform: Affine, col: float, row: float) -> Affine:
    """The transform of a raster that begins at (col, row); affine 2 and 3 differ on * and @."""
    a, b, c, d, e, f = transform[:6]
    return Affine(a, b, a * col + b * row + c, d, e, d * col + e * row + f)


def _affine(geometries: Geometries, transform: Affine) -> Geometries:
    matrix = np.array([[transform.a, transform.b], [transform.d, transform.e]])
    offset = np.array([transform.c, transform.f])
    moved: Geometries = shapely.transform(geometries, lambda points: points @ matrix.T + offset)
    return moved


def _pixel_area(transform: Affine, crs: Any, rings: contours.Rings) -> float:
    """Square metres of a pixel where the object is."""
    if not len(rings.points):
        return 1.0
    x, y = rings.points.mean(axis=0)
    here = _shifted(transform, x, y)
    mx, my = metres_per_unit(crs, here.c, here.f)
    return float(abs(transform.determinant) * mx * my)


def _centre(geometries: Geometries) -> tuple[float, float]:
    left, bottom, right, top = shapely.total_bounds(geometries)
    return (left + right) / 2, (bottom + top) / 2
