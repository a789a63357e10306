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


def read_vector(path: str | Path) -> geopandas.GeoDataFrame:
    """The first layer of a vector file; or the points of a CSV file.

    A CSV file has columns lon and lat (or longitude and latitude, in WGS 84), or x and y (or
    easting and northing, in the CRS of whatever they are used with).

    Raises:
        SourceError: If it cannot be read, or has no geometry.

    >>> import pytest
    >>> with pytest.raises(SourceError, match="cannot be read as a vector file"):
    ...     read_vector("pyproject.toml")
    """
    import geopandas
    from pyogrio.errors import DataLayerError, DataSourceError

    try:
        layer = geopandas.read_file(path, **_how(path))
    except (DataSourceError, DataLayerError, ValueError) as error:
        raise SourceError(
            f"{path} cannot be read as a vector file ({error}); give a GeoPackage, a GeoJSON file "
            "or a Shapefile"
        ) from error
    if not isinstance(layer, geopandas.GeoDataFrame):
        raise SourceError(
            f"{path} is a table without geometry; give a GeoPackage or a GeoJSON file, or a CSV "
            "file with columns lon and lat, or x and y"
        )
    if layer.crs is None and _is_csv(path) and _DEGREES.keys() & {c.lower() for c in layer}:
        return layer.set_crs(4326)
    return layer


def _is_csv(path: str | Path) -> bool:
    return Path(path).suffix.lower() == ".csv"


def _how(path: str | Path) -> dict[str, str]:
    """Options of GDAL's driver of CSV."""
    if not _is_csv(path):
        return {}
    both = _DEGREES | _MAP_UNITS
    return {
        "X_POSSIBLE_NAMES": ",".join(both),
        "Y_POSSIBLE_NAMES": ",".join(dict.fromkeys(both.values())),
        "AUTODETECT_TYPE": "YES",
    }
