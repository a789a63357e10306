"""Vector files that people give: prompts, regions, examples, polygons to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from geosam2.errors import SourceError

if TYPE_CHECKING:
    import geopandas

_DEGREES = {"lon": "lat", "long": "lat", "longitude": "latitude"}
_MAP_UNITS = {"x": "y", "easting": "northing"}
"""Columns of a table that hold coordinates, in whatever case."""
_COLUMNS = {
    "X_POSSIBLE_NAMES": ",".join(_DEGREES | _MAP_UNITS),
    "Y_POSSIBLE_NAMES": ",".join((_DEGREES | _MAP_UNITS).values()),
    "AUTODETECT_TYPE": "YES",
}
"""The same as options of GDAL's driver of CSV."""
GEOJSON = (".geojson", ".json", ".geojsonl", ".geojsons", ".ndjson")
"""Suffixes of GeoJSON and of GeoJSON a line a feature."""


def read_vector(path: str | Path, *, pixels: bool = False) -> geopandas.GeoDataFrame:
    """The first layer of a vector file; or the points of a CSV file.

    A CSV file has columns lon and lat (or longitude and latitude, in WGS 84), or x and y (or
    easting and northing, in the CRS of whatever they are used with).

    Args:
        path: Whatever GDAL reads, or GeoParquet.
        pixels: It is for a scene without CRS: GeoJSON, which cannot say that it has none, then
            holds pixel coordinates.

    Raises:
        SourceError: If it cannot be read, or has no geometry.

    >>> import pytest
    >>> with pytest.raises(SourceError, match="cannot be read as a vector file"):
    ...     read_vector("pyproject.toml")
    """
    import geopandas
    from pyarrow import ArrowException
    from pyogrio.errors import DataLayerError, DataSourceError

    kind = Path(path).suffix.lower()
    try:
        if kind in (".parquet", ".geoparquet"):
            layer = geopandas.read_parquet(path)
        else:
            layer = geopandas.read_file(path, **(_COLUMNS if kind == ".csv" else {}))
    except (DataSourceError, DataLayerError, ArrowException, OSError, ValueError) as error:
        raise SourceError(
            f"{path} cannot be read as a vector file ({error}); give a GeoPackage, a GeoJSON file "
            "or a Shapefile"
        ) from error
    if not isinstance(layer, geopandas.GeoDataFrame):
        raise SourceError(
            f"{path} is a table without geometry; give a GeoPackage or a GeoJSON file, or a CSV "
            "file with columns lon and lat, or x and y"
        )
    if kind == ".csv" and _DEGREES.keys() & {column.lower() for column in layer}:
        return layer.set_crs(4326)
    if pixels and kind in GEOJSON:
        return layer.set_crs(None, allow_override=True)
    return layer
