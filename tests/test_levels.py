"""Levels: GDAL's ratios, pyproj's geodesics and mercantile's zooms are the oracles."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import assume, given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import CRS, Geod, Transformer

from geosam2.errors import LevelError, ResolutionWarning
from geosam2.levels import (
    Level,
    Window,
    ground_size,
    gsd_at,
    is_web_mercator,
    ladder,
    level_for,
    whole_cells,
    zoom_cell_size,
    zoom_for_gsd,
)
from geosam2.scene import Scene, open_scene
from geosam2.testing.files import write_geotiff

cells = st.floats(1e-6, 1e5)
phases = st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.6, 0.9])


@given(count=st.integers(-(10**8), 10**8), cell=cells, phase=phases, noise=st.floats(-1, 1))
def test_whole_cells_forgive_rounding_noise(
    count: int, cell: float, phase: float, noise: float
) -> None:
    # what writing a corner as text and reading it again may cost
    corner = (count + phase) * cell
    jitter = noise * 1e-12 * max(abs(corner), cell)
    assert whole_cells(corner + jitter, cell) == whole_cells(corner, cell)
    assert abs(corner - whole_cells(corner, cell) * cell) < cell


@given(
    left=st.floats(-1e7, 1e7),
    top=st.floats(-1e7, 1e7),
    cell=st.floats(0.01, 1000),
    row=st.integers(0, 5000),
    col=st.integers(0, 5000),
)
def test_a_pixel_has_one_address_from_wherever_the_raster_starts(
    left: float, top: float, cell: float, row: int, col: int
) -> None:
    assume(not 0.69 < (left / cell) % 1 < 0.73)  # a phase that nobody has
    assume(not 0.69 < (-top / cell) % 1 < 0.73)
    whole = Level.at_corner(left, top, (cell, cell), (6000, 6000), crs=None)
    part = Level.at_corner(left + col * cell, top - row * cell, (cell, cell), (10, 10), crs=None)
    assert part.extent[:2] == (whole.extent.row + row, whole.extent.col + col)
    np.testing.assert_allclose(part.anchor, whole.anchor, atol=1e-6 * cell + 1e-8)


@given(x=st.floats(-1e6, 1e6), y=st.floats(-1e6, 1e6))
def test_pixel_to_map_to_pixel(x: float, y: float) -> None:
    level = Level.at_corner(300000.0, 4100040.0, (0.6, 0.6), (100, 100), crs="EPSG:32612")
    row, col = level.pixel_at(x, y)
    box = level.geobox(Window(math.floor(row), math.floor(col), 1, 1)).boundingbox
    slack = 1e-6
    assert box.left - slack <= x <= box.right + slack
    assert box.bottom - slack <= y <= box.top + slack


@given(
    row=st.integers(-1000, 1000), col=st.integers(-1000, 1000),
    height=st.integers(1, 99), width=st.integers(1, 99),
)  # fmt: skip
def test_a_window_is_found_again_from_its_geobox(
    row: int, col: int, height: int, width: int
) -> None:
    level = Level.at_corner(7.0, -3.0, (0.3, 0.7), (9, 9), crs="EPSG:32612")
    window = Window(row, col, height, width)
    assert level.locate(level.geobox(window)) == window
    assert level.window_of(level.bounds_of(window)) == window
    moved = GeoBox(
        (height, width), level.geobox(window).affine @ Affine.translation(0.4, 0), "EPSG:32612"
    )
    assert level.locate(moved) is None


def test_the_ladder_halves_to_a_frame_and_no_further_than_a_sixteenth() -> None:
    assert ladder((100, 100)) == [1]
    assert ladder((512, 100)) == [1, 2]
    assert ladder((10**6, 10**6)) == [1, 2, 4, 8, 16]
    assert ladder((1, 1)) == [1]


@pytest.mark.parametrize("latitude", [0.0, 37.7, -60.0, 80.0])
def test_metres_in_web_mercator_shrink_with_the_cosine(latitude: float) -> None:
    _, y = Transformer.from_crs(4326, 3857, always_xy=True).transform(10, latitude)
    size = ground_size(CRS(3857), 1e6, y, (1.2, 1.2))
    assert size == pytest.approx(1.2 * math.cos(math.radians(latitude)), rel=1e-6)


@pytest.mark.parametrize(
    ("crs", "x", "y", "cell"),
    [
        (4326, 12.0, 48.0, 0.001),
        (32633, 500000.0, 5.3e6, 10.0),
        (3413, 0.0, -2e6, 50.0),
        (2263, 1e6, 2e5, 2.0),  # US survey feet
    ],
)
def test_metres_elsewhere_are_the_geodesic_s(crs: int, x: float, y: float, cell: float) -> None:
    to_degrees = Transformer.from_crs(crs, 4326, always_xy=True)
    geod = Geod(ellps="WGS84")
    sides = []
    for dx, dy in ((cell * 100, 0), (0, cell * 100)):
        lon0, lat0 = to_degrees.transform(x - dx / 2, y - dy / 2)
        lon1, lat1 = to_degrees.transform(x + dx / 2, y + dy / 2)
        sides.append(geod.inv(lon0, lat0, lon1, lat1)[2] / 100)
    found = ground_size(CRS(crs), x, y, (cell, cell))
    assert found == pytest.approx(math.sqrt(sides[0] * sides[1]), rel=1e-4)


def test_metres_beyond_the_earth_are_nominal() -> None:
    goes = CRS.from_proj4("+proj=geos +lon_0=-75 +h=35786023 +ellps=GRS80 +units=m")
    assert ground_size(goes, 5.4e6, 5.4e6, (2000.0, 2000.0)) == pytest.approx(2000)
    assert math.isnan(ground_size(None, 0, 0, (1, 1)))


def test_web_mercator_under_its_names() -> None:
    assert is_web_mercator(CRS("EPSG:3857"))
    assert is_web_mercator(CRS("ESRI:102100"))
    assert is_web_mercator(CRS.from_wkt(CRS(3857).to_wkt("WKT1_GDAL")))
    assert not is_web_mercator(CRS(4326))
    assert not is_web_mercator(CRS(3395))
    assert not is_web_mercator(None)


@given(gsd=st.floats(0.01, 1e5), latitude=st.floats(-85, 85))
def test_zooms_bracket_what_was_asked_for(gsd: float, latitude: float) -> None:
    def metres(zoom: int) -> float:
        return zoom_cell_size(zoom) * math.cos(math.radians(latitude))

    finer = zoom_for_gsd(gsd, latitude, strategy="finer")
    coarser = zoom_for_gsd(gsd, latitude, strategy="coarser")
    nearest = zoom_for_gsd(gsd, latitude)
    assert finer >= nearest >= coarser
    if 0 < finer < 30:
        assert metres(finer) <= gsd * 1.0101 < metres(finer - 1) * 1.0102
    others = [abs(math.log(metres(z) / gsd)) for z in range(31)]
    assert abs(math.log(metres(nearest) / gsd)) == pytest.approx(min(others))


def test_zooms_of_512_px_tiles_are_one_less() -> None:
    assert zoom_for_gsd(0.6, 0, tile_size=512) == zoom_for_gsd(0.6, 0) - 1


@pytest.mark.parametrize(("gsd", "latitude"), [(0.0, 0), (-1, 0), (math.nan, 0), (1, 86), (1, -90)])
def test_impossible_zooms_are_refused(gsd: float, latitude: float) -> None:
    with pytest.raises(LevelError):
        zoom_for_gsd(gsd, latitude)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    pixels = np.full((3, 2048, 2048), 50, np.uint8)
    geobox = GeoBox((2048, 2048), Affine(0.5, 0, 500000, 0, -0.5, 4e6), "EPSG:32633")
    path = tmp_path_factory.mktemp("levels") / "a.tif"
    return open_scene(write_geotiff(path, pixels, geobox))


@pytest.mark.parametrize(
    ("asked", "label"),
    [
        ({"gsd": 0.5}, "native"),
        ({"gsd": 1.3}, "1/2"),
        ({"gsd": 1.3, "strategy": "finer"}, "1/2"),
        ({"gsd": 1.3, "strategy": "coarser"}, "1/4"),
        ({"gsd": 1.99, "strategy": "finer"}, "1/4"),
        ({"gsd": 99}, "1/8"),
        ({"object_size": 80}, "native"),
        ({"object_size": 320}, "1/4"),
    ],
)
def test_levels_by_resolution_and_by_object(scene: Scene, asked: Any, label: str) -> None:
    assert level_for(scene, **asked).label == label


def test_asking_for_more_than_there_is_warns(scene: Scene) -> None:
    with pytest.warns(ResolutionWarning, match=r"0\.1 m per pixel is finer than a.tif holds"):
        assert level_for(scene, gsd=0.1).label == "x4"
    with pytest.warns(ResolutionWarning, match="pixels enlarged 8 times"):
        assert level_for(scene, gsd=0.001).label == "x8"
    with pytest.warns(ResolutionWarning, match="looking at its finest level"):
        assert level_for(scene, gsd=0.45).index == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        level_for(scene, gsd=0.5)
    with pytest.raises(LevelError, match="either gsd= or object_size="):
        level_for(scene)
    with pytest.raises(LevelError, match='"nearest", "finer" or "coarser"'):
        level_for(scene, gsd=1, strategy="best")  # type: ignore[arg-type]


def test_latitude_counts_on_a_web_map(tmp_path: Any) -> None:
    from geosam2.testing.files import write_xyz_tiles

    folder = write_xyz_tiles(tmp_path / "t", np.full((3, 256, 256), 9, np.uint8), 0, 0, 0, levels=1)
    world = open_scene(str(folder / "{z}/{x}/{y}.png"), max_zoom=19)
    assert level_for(world, gsd=0.3, latitude=0).label == "z19"
    assert level_for(world, gsd=0.3, latitude=60).label == "z18"
    assert gsd_at(world, world.levels[0], 60) == pytest.approx(zoom_cell_size(19) / 2)
    norway = world.within((10, 59.9, 10.1, 60.1), crs=4326)
    assert level_for(norway, gsd=0.3).label == "z18"
    with pytest.raises(LevelError, match="outside Web Mercator"):
        level_for(world, gsd=1, latitude=89)
