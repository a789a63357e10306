"""Vector files that people give: prompts, regions, examples, polygons to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from geosam2.errors import SourceError

if TYPE_CHECKING:
    import geopandas


def read_vector(path: str | Path) -> geopandas.GeoDataFrame:
    """The first layer of a vector file.

    Raises:
        SourceError: If it cannot be read, or has no geometry.

    >>> import pytest
    >>> with pytest.raises(SourceError, match="cannot be read as a vector file"):
    ...     read_vector("pyproject.toml")
    """
    import geopandas
    from pyogrio.errors import DataLayerError, DataSourceError

    try:
        layer = geopandas.read_file(path)
    except (DataSourceError, DataLayerError, ValueError) as error:
        raise SourceError(
            f"{path} cannot be read as a vector file ({error}); give a GeoPackage, a GeoJSON file "
            "or a Shapefile"
        ) from error
    if not isinstance(layer, geopandas.GeoDataFrame):
        raise SourceError(
            f"{path} is a table without geometry; save it as a GeoPackage or a GeoJSON file with "
            "points or polygons"
        )
    return layer
