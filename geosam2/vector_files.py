"""Vector files that people give: prompts, regions, examples, polygons to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from geosam2.errors import SourceError

if TYPE_CHECKING:
    import geopandas
    import pandas as pd

_COORDINATES = {
    ("x", "y"): None,
    ("easting", "northing"): None,
    ("lon", "lat"): 4326,
    ("long", "lat"): 4326,
    ("longitude", "latitude"): 4326,
}
"""Columns of a table that hold coordinates, in whatever case, and their EPSG code; the first that
are there count."""


def read_vector(path: str | Path, *, pixels: bool = False) -> geopandas.GeoDataFrame:
    """The first layer of a vector file; or the points of a CSV file.

    A CSV file has columns x and y (or easting and northing, in the CRS of whatever they are used
    with), or lon and lat (or longitude and latitude, in WGS 84).

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

    from geosam2.export import FORMATS

    kind = Path(path).suffix.lower()
    known = FORMATS.get(kind)
    try:
        if known and known.driver == "Parquet":
            layer = geopandas.read_parquet(path)
        else:
            how = {"AUTODETECT_TYPE": "YES"} if kind == ".csv" else {}
            layer = geopandas.read_file(path, **how)
    except (DataSourceError, DataLayerError, ArrowException, OSError, ValueError) as error:
        raise SourceError(
            f"{path} cannot be read as a vector file ({error}); give a GeoPackage, a GeoJSON file "
            "or a Shapefile"
        ) from error
    if not isinstance(layer, geopandas.GeoDataFrame):
        return _points_of(layer, path)
    if pixels and known and known.wgs84:
        return layer.set_crs(None, allow_override=True)
    return layer


def _points_of(table: pd.DataFrame, path: str | Path) -> geopandas.GeoDataFrame:
    """A layer of the points whose coordinates a table holds."""
    import geopandas
    import pandas as pd

    columns = {str(name).lower(): name for name in table}
    for (x, y), epsg in _COORDINATES.items():
        if x in columns and y in columns:
            there = table[[columns[x], columns[y]]].apply(pd.to_numeric, errors="coerce")
            points = geopandas.points_from_xy(*there.to_numpy().T)
            points[there.isna().any(axis=1).to_numpy()] = None  # a cell is empty, or holds text
            return geopandas.GeoDataFrame(table, geometry=points, crs=epsg)
    raise SourceError(
        f"{path} is a table without geometry; give a GeoPackage or a GeoJSON file, or a CSV "
        "file with columns lon and lat, or x and y"
    )
