"""GeoJSON as RFC 7946 wants it: WGS 84, right-hand rule, cut at the antimeridian."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, TextIO

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyproj
import shapely

from geosam2.errors import ExportError, ExportWarning
from geosam2.levels import to_degrees

_DECIMALS = 7  # RFC 7946, section 11.2: about a centimetre


def write_geojson(gdf: geopandas.GeoDataFrame, stream: TextIO, *, lines: bool = False) -> None:
    """Write RFC 7946 GeoJSON, feature by feature.

    Args:
        gdf: With a CRS; without one the coordinates are written as they are.
        stream: Text stream.
        lines: Newline-delimited features instead of one collection.

    Warns:
        ExportWarning: If there is no CRS: whoever reads the file takes the numbers for degrees.

    >>> import sys
    >>> square = geopandas.GeoDataFrame({"id": [1]}, geometry=[shapely.box(0, 0, 1, 1)], crs=4326)
    >>> write_geojson(square, sys.stdout, lines=True)
    {"type":"Feature","properties":{"id":1},"geometry":{"type":"Polygon","coordinates":[[[...]]]}}
    """
    write_features([gdf], stream, lines=lines)


def write_features(tables: Iterable[geopandas.GeoDataFrame], stream: TextIO, *, lines: bool) -> int:
    """Write tables one after the other as one collection, or as lines; says how many features.

    Args:
        tables: As for `write_geojson`; taken one at a time.
        stream: Text stream.
        lines: Newline-delimited features instead of one collection.
    """
    count = 0
    stream.write("" if lines else '{"type":"FeatureCollection","features":[')
    for feature in chain.from_iterable(map(_features, _warned_of(tables))):
        stream.write(("\n" if lines else ",\n") * (count > 0) + feature)
        count += 1
    stream.write(("\n" if count else "") if lines else "]}\n")
    return count


def _warned_of(tables: Iterable[geopandas.GeoDataFrame]) -> Iterator[geopandas.GeoDataFrame]:
    """The same tables; the first one without a CRS is warned of."""
    warned = False
    for table in tables:
        if len(table) and table.crs is None and not warned:
            warned = True
            warnings.warn(
                "the polygons have no CRS: their coordinates are written as they are, but GeoJSON "
                "means degrees. Write GeoPackage (.gpkg) for pixel coordinates, or set_crs first",
                ExportWarning,
                stacklevel=2,
            )
        yield table


def to_rfc7946(geometries: npt.NDArray[np.object_], crs: Any) -> npt.NDArray[np.object_]:
    """Geometries in WGS 84, counter-clockwise shells, in pieces within +-180 degrees.

    Args:
        geometries: (N,) in `crs`.
        crs: Their CRS; None = no place on the Earth, such as pixels: they come back as they are.

    Raises:
        ExportError: If it is a local CRS, which has no longitude and latitude.
    """
    if crs is None:  # cut at "the antimeridian" nothing would be left of them
        return geometries
    if not pyproj.CRS(crs).equals(pyproj.CRS(4326), ignore_axis_order=True):
        degrees = to_degrees(pyproj.CRS(crs))
        if degrees is None:
            raise ExportError(
                f"{pyproj.CRS(crs).name} has no place on the Earth, and GeoJSON is in degrees: "
                "write GeoPackage (.gpkg) instead"
            )
        geometries = shapely.transform(geometries, degrees.transform, interleaved=False)
    geometries = np.array([_cut(geometry) for geometry in geometries], dtype=object)
    # rounding can make rings touch: the grid keeps them valid where plain rounding does not
    rounded = shapely.transform(geometries, lambda points: points.round(_DECIMALS))
    broken = ~shapely.is_valid(rounded) & shapely.is_valid(geometries)
    rounded[broken] = shapely.set_precision(geometries[broken], 10.0**-_DECIMALS)
    return np.asarray(shapely.orient_polygons(rounded))


def _features(gdf: geopandas.GeoDataFrame) -> Iterator[str]:
    columns = [column for column in gdf.columns if column != gdf.geometry.name]
    geometries = to_rfc7946(gdf.geometry.to_numpy(), gdf.crs)
    texts = shapely.to_geojson(geometries)
    for values, text in zip(gdf[columns].itertuples(index=False), texts, strict=True):
        properties = {name: plain(value) for name, value in zip(columns, values, strict=True)}
        body = json.dumps(properties, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        yield f'{{"type":"Feature","properties":{body},"geometry":{text or "null"}}}'


def plain(value: Any) -> Any:
    """A value of a table as JSON knows it: no NaN, no dates, no numpy.

    >>> plain(np.float32("nan")), plain([np.int64(1)]), plain(pd.Timestamp("2024-05-01"))
    (None, [1], '2024-05-01 00:00:00')
    """
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or pd.isna(value):
        return None
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, (str, int, bool)) else str(value)


def _cut(geometry: shapely.Geometry) -> shapely.Geometry:
    """Cut a geometry in degrees at the antimeridian (RFC 7946, section 3.1.9)."""
    if geometry is None or geometry.is_empty:
        return geometry
    west, _, east, _ = geometry.bounds
    if west >= -180 and east <= 180 and east - west <= 180:
        return geometry
    pieces = [piece for part in shapely.get_parts(geometry) for piece in _cut_part(part)]
    if len(pieces) == 1:
        return pieces[0]
    many = {0: shapely.multipoints, 1: shapely.multilinestrings, 2: shapely.multipolygons}
    return many[int(shapely.get_dimensions(geometry))](pieces)


def _cut_part(part: shapely.Geometry) -> Iterator[shapely.Geometry]:
    """Pieces of a single point, line or polygon within +-180 degrees."""
    if _jumps(part):  # western longitudes of something that straddles 180 become 180..360
        part = shapely.transform(part, lambda p: p + [360, 0] * (p[:, :1] < 0))
        part = part if part.is_valid else shapely.make_valid(part)
    west, _, east, _ = part.bounds
    for turn in range(int((west + 180) // 360), int((east + 180) // 360) + 1):
        world = shapely.box(360 * turn - 180, -90, 360 * turn + 180, 90)
        inside = shapely.get_parts(shapely.intersection(part, world))
        same = inside[shapely.get_dimensions(inside) == shapely.get_dimensions(part)]
        yield from shapely.transform(same, lambda p, turn=turn: p - [360 * turn, 0])


def _jumps(part: shapely.Geometry) -> bool:
    """Whether an edge is longer than half the way round: it goes the other way then."""
    rings = shapely.get_rings(part) if part.geom_type == "Polygon" else np.array([part])
    points, ring = shapely.get_coordinates(rings, return_index=True)
    far = np.abs(np.diff(points[:, 0])) > 180
    return bool((far & (np.diff(ring) == 0)).any())
