"""Vector files that people give, and tables of coordinates."""

from __future__ import annotations

from pathlib import Path

import geopandas
import pytest
import shapely
from geopandas.testing import assert_geodataframe_equal

from geosam2.errors import ExportWarning, SourceError
from geosam2.export import write
from geosam2.vector_files import read_vector


@pytest.mark.parametrize(
    ("columns", "epsg"),
    [
        ("Longitude,Latitude", 4326),
        ("lon,lat", 4326),
        ("x,y", None),
        ("Easting,NORTHING", None),
        ("x,y,lon,lat", None),
    ],
)
def test_a_table_of_coordinates_is_a_layer_of_points(
    tmp_path: Path, columns: str, epsg: int | None
) -> None:
    path = tmp_path / "points.csv"
    rest = ",7,7" if columns.count(",") == 3 else ""
    path.write_text(f"name,{columns}\nmill,85.5,27.25{rest}\nford,86,28{rest}\n")
    layer = read_vector(path)
    assert layer.geometry.tolist() == [shapely.Point(85.5, 27.25), shapely.Point(86, 28)]
    assert layer["name"].tolist() == ["mill", "ford"]
    assert (layer.crs and layer.crs.to_epsg()) == epsg


def test_a_row_without_coordinates_has_no_geometry(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n,\n3,\n4,north\n")
    assert read_vector(tmp_path / "a.csv").geometry.isna().tolist() == [False, True, True, True]


def test_a_layer_is_what_geopandas_wrote(tmp_path: Path) -> None:
    layer = geopandas.GeoDataFrame({"lon": [7]}, geometry=[shapely.box(0, 0, 1, 1)], crs=32633)
    layer.to_file(tmp_path / "a.gpkg")
    layer.to_parquet(tmp_path / "a.parquet")
    for name in ("a.gpkg", "a.parquet"):
        assert_geodataframe_equal(read_vector(tmp_path / name), layer, check_dtype=False)


@pytest.mark.parametrize("suffix", [".geojson", ".geojsonl"])
@pytest.mark.parametrize("pixels", [False, True])
def test_geojson_for_a_scene_without_crs_holds_pixels(
    tmp_path: Path, pixels: bool, suffix: str
) -> None:
    layer = geopandas.GeoDataFrame({"n": [7]}, geometry=[shapely.box(0, -9, 9, 0)], crs=None)
    with pytest.warns(ExportWarning, match="pixel"):
        write(layer, tmp_path / f"a{suffix}")
    found = read_vector(tmp_path / f"a{suffix}", pixels=pixels)
    assert (found.crs is None) == pixels
    assert found.geometry[0].equals(layer.geometry[0])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "name,area\nfield,3\n", "a table without geometry"),
        ("a.gpkg", "no database", "cannot be read as a vector file"),
        ("a.parquet", "no table", "cannot be read as a vector file"),
    ],
)
def test_what_is_no_layer_is_refused(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SourceError, match=says):
        read_vector(tmp_path / name)
    for missing in ("missing.gpkg", "missing.parquet"):
        with pytest.raises(SourceError, match="cannot be read"):
            read_vector(tmp_path / missing)
