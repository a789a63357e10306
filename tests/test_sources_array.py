"""DataArrays: rioxarray and odc-geo write their places, the GeoTIFF reader is the oracle."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from affine import Affine
from odc.geo.geobox import GeoBox

from geosam2.errors import GeoreferenceError, SourceError
from geosam2.scene import Scene, open_scene
from geosam2.testing.files import write_geotiff
from geosam2.tiling import FrameGrid

GEOBOX = GeoBox((300, 420), Affine(10, 0, 400030, 0, -10, 4099950), "EPSG:32612")


def noise(dtype: Any = np.uint16, bands: int = 3) -> Any:
    return np.random.default_rng(3).integers(1, 200, (bands, *GEOBOX.shape)).astype(dtype)


def centres() -> dict[str, Any]:
    rows, cols = np.arange(300), np.arange(420)
    return {"y": 4099950 - 10 * (rows + 0.5), "x": 400030 + 10 * (cols + 0.5)}


@pytest.fixture
def twin(tmp_path: Path) -> Scene:
    return open_scene(write_geotiff(tmp_path / "a.tif", noise(), GEOBOX, overviews=False, nodata=7))


def same(a: Scene, b: Scene) -> None:
    """Two scenes hold the same on every level."""
    assert a.geobox == b.geobox
    assert a.stretch == b.stretch
    assert [level.extent for level in a.levels] == [level.extent for level in b.levels]
    for k in range(len(a.levels)):
        grid = FrameGrid.of(a, k, frame_size=128, overlap=32)
        other = FrameGrid.of(b, k, frame_size=128, overlap=32)
        for one, two in zip(a.frames(grid), b.frames(other), strict=True):
            np.testing.assert_array_equal(one.valid, two.valid)
            # GDAL's mean of whole numbers may round the other way at a half
            assert np.abs(one.pixels.astype(int) - two.pixels).max() <= (0 if k == 0 else 2)


def test_rioxarray_s_way(twin: Scene, tmp_path: Path) -> None:
    import rioxarray

    with rioxarray.open_rasterio(twin.source) as array:
        same(open_scene(array), twin)
    with rioxarray.open_rasterio(twin.source, chunks={"x": 100, "y": 100}) as lazy:
        scene = open_scene(lazy)
        assert scene.reader.details()["chunks"] == [3, 100, 100]
        same(scene, twin)


def test_odc_geo_s_way(twin: Scene) -> None:
    from odc.geo.xr import xr_coords

    array = xarray.DataArray(
        noise(), dims=("band", "y", "x"), coords=xr_coords(GEOBOX), attrs={"nodata": 7}
    )
    same(open_scene(array), twin)


def test_a_cf_grid_mapping_without_wkt(twin: Scene) -> None:
    from pyproj import CRS

    mapping = {k: v for k, v in CRS(32612).to_cf().items() if k != "crs_wkt"}
    array = xarray.DataArray(
        noise(),
        dims=("band", "y", "x"),
        coords={**centres(), "utm": xarray.DataArray(0, attrs=mapping)},
        attrs={"grid_mapping": "utm", "_FillValue": 7},
    )
    scene = open_scene(array)
    np.testing.assert_array_equal(scene.read(scene.geobox).pixels, twin.read(twin.geobox).pixels)
    assert scene.crs is not None
    assert scene.crs.to_epsg() == 32612


def test_south_up_and_turned_dimensions_are_put_right(twin: Scene) -> None:
    array = xarray.DataArray(
        noise(), dims=("band", "y", "x"), coords=centres(), attrs={"crs": 32612, "nodata": 7}
    )
    same(open_scene(array.isel(y=slice(None, None, -1))), twin)
    same(open_scene(array.isel(x=slice(None, None, -1))), twin)
    same(open_scene(array.transpose("x", "band", "y")), twin)
    same(open_scene(array.rename(x="Longitude", y="LAT")), twin)


def test_bands_by_name_and_floats_with_nan() -> None:
    values = noise(np.float64, 4)
    values[:, 10:20, 10:20] = np.nan
    array = xarray.DataArray(
        values,
        dims=("band", "y", "x"),
        coords={**centres(), "band": ["B02", "B03", "B04", "B08"]},
        attrs={"crs": "EPSG:32612"},
        name="s2",
    )
    scene = open_scene(array)
    assert scene.bands == ("B04", "B03", "B02")
    frame = scene.read(scene.geobox)
    assert not frame.valid[10:20, 10:20].any()
    assert frame.valid.sum() == frame.valid.size - 100
    expected = np.percentile(values[2][np.isfinite(values[2])], [2, 98])
    np.testing.assert_allclose((scene.stretch.low[0], scene.stretch.high[0]), expected)


@pytest.mark.parametrize("dtype", [">u2", "bool", "complex64", "int64", ">f4"])
def test_any_kind_of_number(dtype: str) -> None:
    values = noise().astype(dtype)
    array = xarray.DataArray(
        values[0], dims=("y", "x"), coords=centres(), attrs={"crs": "EPSG:32612"}
    )
    scene = open_scene(array, stretch=(0, 255))
    expected = np.abs(values[0]).astype(float)
    np.testing.assert_allclose(scene.read(scene.geobox).pixels[1], expected, atol=0.51)
    assert scene.read(scene.levels[-1].geobox(scene.levels[-1].extent)).valid.all()


def test_dask_computes_only_what_a_frame_needs() -> None:
    import dask.array

    computed = []

    def block(block_info: Any = None) -> Any:
        computed.append(block_info[None]["chunk-location"])
        return np.ones((1, 1000, 1000), np.uint8)

    lazy = dask.array.map_blocks(
        block, chunks=((1, 1, 1), (1000,) * 50, (1000,) * 50), dtype=np.uint8, meta=np.empty(0)
    )
    coords = {"y": -np.arange(50000.0) - 0.5, "x": np.arange(50000.0) + 0.5}
    array = xarray.DataArray(lazy, dims=("band", "y", "x"), coords=coords, attrs={"crs": 32612})
    scene = open_scene(array)
    computed.clear()
    grid = FrameGrid.of(scene, frame_size=512, overlap=128)
    frame = scene.read_frame(grid, grid.index_at(25500.0, -25500.0))
    assert frame.valid.all()
    assert len(computed) <= 12


def test_pickles_and_signatures_of_other_processes(tmp_path: Path) -> None:
    array = xarray.DataArray(
        noise(), dims=("band", "y", "x"), coords=centres(), attrs={"crs": 32612}
    )
    scene = open_scene(array)
    path = tmp_path / "scene"
    path.write_bytes(pickle.dumps(scene))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).signature)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == scene.signature
    assert open_scene(array + 1).signature != scene.signature


def test_what_has_no_place_is_refused() -> None:
    array = xarray.DataArray(noise(), dims=("band", "y", "x"), coords=centres())
    with pytest.raises(GeoreferenceError, match="pass crs="):
        open_scene(array)
    assert open_scene(array, crs="EPSG:32612").gsd == pytest.approx(10, rel=0.01)
    picture = open_scene(array, pixel_coordinates=True)
    assert picture.bounds == (0, -300, 420, 0)
    uneven = array.assign_coords(x=np.arange(420.0) ** 2, crs_=0).assign_attrs(crs=32612)
    with pytest.raises(GeoreferenceError, match="not evenly spaced"):
        open_scene(uneven)
    bare = xarray.DataArray(noise(), dims=("band", "y", "x"), attrs={"crs": 32612})
    with pytest.raises(GeoreferenceError, match="no coordinates along x and y"):
        open_scene(bare)
    with pytest.raises(SourceError, match=r"one date is needed.*\.isel\(time=0\)"):
        open_scene(array.rename(band="time"))
    with pytest.raises(SourceError, match="must include y and x"):
        open_scene(array.rename(x="across"))


def test_a_crs_that_nobody_knows_is_said() -> None:
    array = xarray.DataArray(noise(), dims=("band", "y", "x"), coords=centres())
    with pytest.raises(GeoreferenceError, match="crs='foo' is not known: use for example"):
        open_scene(array, crs="foo")
    with pytest.raises(GeoreferenceError, match=r"attribute crs .* is not known"):
        open_scene(array.assign_attrs(crs="foo"))
