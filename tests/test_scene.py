"""Scenes and frames: what is the same for every kind of source."""

from __future__ import annotations

import json
import threading
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.warp
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from geosam2.commands.info import describe
from geosam2.errors import ExportError, GeoreferenceError, LevelError, PromptError, SourceError
from geosam2.export import check_crs
from geosam2.levels import Level, Window, level_for
from geosam2.prompts import Prompt, locate
from geosam2.scene import Scene, open_scene
from geosam2.sources.bands import Stretch
from geosam2.testing.files import write_geotiff, write_xyz_tiles
from geosam2.tiling import FrameGrid
from geosam2.vectorize import geodesic_area

SHAPE = (900, 1100)
# corner off the multiples of a pixel: half a cell east, a quarter south
GEOBOX = GeoBox(SHAPE, Affine(0.6, 0, 583000.3, 0, -0.6, 4507000.15), "EPSG:32618")


@pytest.fixture(scope="module")
def pixels() -> Any:
    return np.random.default_rng(11).integers(1, 256, (3, *SHAPE)).astype(np.uint8)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, pixels: Any) -> Path:
    return write_geotiff(tmp_path_factory.mktemp("scene") / "a.tif", pixels, GEOBOX)


@pytest.fixture(scope="module")
def scene(path: Path) -> Scene:
    return open_scene(path)


fractions = st.tuples(st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0.05, 1), st.floats(0.05, 1))


def part_of(scene: Scene, at: tuple[float, float, float, float]) -> Scene:
    left, bottom, right, top = scene.bounds
    width, height = right - left, top - bottom
    west, south = left + at[0] * width, bottom + at[1] * height
    return scene.within((west, south, min(right, west + at[2] * width), south + at[3] * height))


@given(
    a=fractions,
    b=fractions,
    level=st.integers(0, 2),
    u=st.floats(0.01, 0.99),
    v=st.floats(0.01, 0.99),
)
@settings(max_examples=40, deadline=None)
def test_two_extents_share_the_frame_under_a_reprojected_prompt(
    scene: Scene, a: Any, b: Any, level: int, u: float, v: float
) -> None:
    one, two = part_of(scene, a), part_of(scene, b)
    grids = [FrameGrid.of(s, level, frame_size=128, overlap=32) for s in (one, two)]
    left, bottom, right, top = one.bounds
    to_degrees = Transformer.from_crs(scene.crs, 4326, always_xy=True)
    lon, lat = to_degrees.transform(left + u * (right - left), bottom + v * (top - bottom))
    x, y = Transformer.from_crs(4326, scene.crs, always_xy=True).transform(lon, lat)
    index = grids[0].index_at(x, y)
    first = one.read_frame(grids[0], index)
    second = two.read_frame(grids[1], index)
    assert first.geobox == second.geobox
    assert first.origin == second.origin
    np.testing.assert_array_equal(first.pixels, second.pixels)
    np.testing.assert_array_equal(first.valid, second.valid)


@given(row=st.integers(0, 700), col=st.integers(0, 900), level=st.integers(0, 1))
@settings(max_examples=25, deadline=None)
def test_a_clip_of_the_file_gives_the_same_native_frames(
    scene: Scene, pixels: Any, tmp_path_factory: Any, row: int, col: int, level: int
) -> None:
    a = GEOBOX.affine
    corner = Affine(a.a, 0, a.c + col * a.a, 0, a.e, a.f + row * a.e)
    clip = GeoBox((SHAPE[0] - row, SHAPE[1] - col), corner, GEOBOX.crs)
    folder = tmp_path_factory.mktemp("clip")
    part = open_scene(write_geotiff(folder / "a.tif", pixels[:, row:, col:], clip, overviews=False))
    grid = FrameGrid.of(part, frame_size=128, overlap=32)
    other = FrameGrid.of(scene, frame_size=128, overlap=32)
    for index in list(grid)[:: max(1, len(grid) // 5)]:
        frame = part.read_frame(grid, index)
        mine = scene.read_frame(other, index)
        np.testing.assert_array_equal(frame.pixels, np.where(frame.valid, mine.pixels, 0))


def test_frames_know_their_place(scene: Scene) -> None:
    grid = FrameGrid.of(scene, 1, frame_size=256, overlap=64)
    for frame in scene.frames(grid, order="snake"):
        assert frame.shape == (256, 256)
        assert frame.level is grid.level
        assert frame.index is not None
        assert frame.origin == grid.origin(frame.index)
        assert frame.geobox == grid.geobox(frame.index)
        again = scene.read(frame.geobox)
        assert again.corner == frame.corner
        np.testing.assert_array_equal(again.pixels, frame.pixels)


def test_a_frame_off_the_cells_has_no_origin(scene: Scene) -> None:
    level = scene.levels[0]
    frame = scene.read(level.geobox(Window(level.extent.row + 3, level.extent.col, 64, 64)))
    with pytest.raises(LevelError, match="no lattice origin"):
        _ = frame.origin


def test_another_grid_is_warped_as_rasterio_does(scene: Scene, path: Path) -> None:
    to_web = Transformer.from_crs(scene.crs, 3857, always_xy=True)
    left, bottom, right, top = to_web.transform_bounds(*scene.bounds)
    wide = GeoBox.from_bbox(
        (left - 50, bottom - 50, right + 50, top + 50), "EPSG:3857", shape=(700, 800)
    )
    frame = scene.read(wide)
    assert frame.level is None
    # GDAL guesses the width of its filter from the window it is given: tell it instead
    a = wide.affine
    to_utm = Transformer.from_crs(3857, scene.crs, always_xy=True)
    xs, ys = to_utm.transform([a.c, a.c + a.a * 800], [a.f + a.e * 350] * 2)
    scale = 0.6 / (np.hypot(xs[1] - xs[0], ys[1] - ys[0]) / 800)
    with rasterio.open(path) as file:
        expected = np.zeros((3, 700, 800), np.uint8)
        rasterio.warp.reproject(
            rasterio.band(file, [1, 2, 3]), expected, dst_transform=wide.affine,
            dst_crs="EPSG:3857", XSCALE=scale, YSCALE=scale,
            resampling=rasterio.warp.Resampling.bilinear,
        )  # fmt: skip
    inner = frame.valid & (expected > 0).all(axis=0)
    assert 0.7 < inner.mean() < 1
    difference = np.abs(frame.pixels[:, inner].astype(int) - expected[:, inner])
    assert difference.mean() < 1, "of noise: a pixel too far or a filter too wide give 6 and more"
    assert not frame.valid[0].any(), "beyond the scene"


def test_warping_takes_the_level_that_is_just_fine_enough(scene: Scene) -> None:
    quarter = scene.geobox.zoom_out(4).pad(3)
    moved = GeoBox(quarter.shape, quarter.affine @ Affine.translation(0.3, 0.3), quarter.crs)
    frame = scene.read(moved)
    level = scene.levels[2]
    near = scene.read(level.geobox(level.extent))
    assert abs(frame.pixels[:, frame.valid].mean() - near.pixels.mean()) < 1
    assert frame.pixels[:, frame.valid].std() < 0.8 * near.pixels.std() + 12


def test_pixel_coordinates_cannot_be_warped(path: Path) -> None:
    picture = open_scene(path, pixel_coordinates=True)
    with pytest.raises(GeoreferenceError, match="has no CRS"):
        picture.read(GEOBOX)
    with pytest.raises(LevelError, match="no CRS, so pixels have no size"):
        level_for(picture, gsd=1)


def test_levels_by_number_and_of_another_scene(scene: Scene, tmp_path: Path, pixels: Any) -> None:
    with pytest.raises(LevelError, match=r"there is no level 9: .* has 0 \(native\)"):
        scene.level(9)
    other = open_scene(
        write_geotiff(
            tmp_path / "b.tif", pixels[:, :300], GeoBox((300, 1100), GEOBOX.affine, GEOBOX.crs)
        )
    )
    with pytest.raises(LevelError, match="belongs to another scene"):
        FrameGrid.of(scene, other.levels[0])


def test_a_forgotten_iterator_ends_its_threads(scene: Scene) -> None:
    frames = scene.frames(FrameGrid.of(scene, frame_size=64, overlap=0), workers=3)
    next(frames)
    del frames
    assert [t for t in threading.enumerate() if t.name.startswith("geosam2-read")] == []


def test_order_may_be_any_frames(scene: Scene) -> None:
    grid = FrameGrid.of(scene, frame_size=128, overlap=32)
    wanted = list(grid)[5:1:-1]
    assert [frame.index for frame in scene.frames(grid, order=iter(wanted))] == wanted


def test_it_prints_itself(scene: Scene, path: Path) -> None:
    assert repr(scene) == (
        "<Scene a.tif: 900 x 1100 px at 0.6 m, WGS 84 / UTM zone 18N, "
        "bands band 1, band 2, band 3, 4 levels>"
    )
    page = scene._repr_html_()
    ElementTree.fromstring(page)  # well formed, so a notebook shows it
    assert "data:image/png;base64," in page
    assert "<svg" in page
    unplaced = open_scene(path, pixel_coordinates=True)
    assert "900 x 1100 px, pixel coordinates, bands" in repr(unplaced)
    picture = unplaced._repr_html_()
    assert "<svg" not in picture
    assert "pixel coordinates" in picture


def test_a_thumbnail_shows_the_working_area(scene: Scene) -> None:
    frame = scene.thumbnail(200)
    assert max(frame.shape) <= 200
    assert frame.valid.all()
    left, bottom, _, _ = scene.bounds
    part = scene.within((left, bottom, left + 60, bottom + 60)).thumbnail(200)
    assert part.shape == (100, 100) or part.shape == (101, 101)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
@given(low=st.floats(-100, 100), span=st.floats(0.5, 200), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_stretch_is_a_clipped_line(dtype: str, low: float, span: float, seed: int) -> None:
    values = np.random.default_rng(seed).uniform(0, 120, (3, 9, 7)).astype(dtype)
    if np.dtype(dtype).kind != "u":
        values -= np.asarray(50, dtype)
    stretch = Stretch((low,) * 3, (low + span,) * 3)
    expected = np.clip((values.astype(float) - low) / span * 255, 0, 255)
    found = stretch.apply(values)
    assert found.dtype == np.uint8
    assert np.abs(found - expected).max() <= 0.51


def test_stretches_that_mean_nothing_are_refused() -> None:
    for low, high in (((0.0,), (0.0,)), ((0.0,), (np.nan,)), ((0.0, 1.0), (1.0, 2.0)), ((), ())):
        with pytest.raises(SourceError, match="stretch"):
            Stretch(low, high)
    assert Stretch((0.0,), (1.0,)).apply(np.array([[[np.nan, np.inf, -np.inf]]])).tolist()[0] == [
        [0, 255, 0]
    ]


@pytest.mark.parametrize("bounds", [(1, 2), "abc", 3, (1, 2, 3, "x"), None])
def test_bounds_that_are_no_box_name_the_remedy(scene: Scene, bounds: Any) -> None:
    with pytest.raises(GeoreferenceError, match="give four numbers"):
        scene.within(bounds)


LOCAL = 'LOCAL_CS["site plan",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]'


def test_a_local_crs_has_metres_but_no_place_on_the_earth(tmp_path: Path, pixels: Any) -> None:
    path = write_geotiff(tmp_path / "local.tif", pixels, GEOBOX)
    with rasterio.open(path, "r+") as file:
        file.crs = rasterio.CRS.from_wkt(LOCAL)
    local = open_scene(path)
    assert local.gsd == pytest.approx(0.6)
    assert json.loads(json.dumps(describe(local)))["bbox"] is None
    place = local.bounds[0] + 1, local.bounds[1] + 1
    assert locate(Prompt(points=(place,)), local).points == (place,)
    with pytest.raises(PromptError, match="has no place in"):
        locate(Prompt(points=((-74, 40),), crs=4326), local)
    with pytest.raises(PromptError, match="outside the scene"):
        locate(Prompt(points=((-74, 40),)), local)
    assert geodesic_area(shapely.box(0, 0, 10, 10), local.crs) == pytest.approx(100)
    with pytest.raises(ExportError, match="write GeoPackage"):
        check_crs("-", local.crs)
    check_crs("a.gpkg", local.crs)


def test_enlarged_levels_are_read_frame_by_frame(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 512, 512)).astype(np.uint8)
    folder = write_xyz_tiles(tmp_path / "t", pixels, 8000, 5000, 14, levels=2)
    scene = open_scene(str(folder / "{z}/{x}/{y}.png"))
    level = scene.level(-1)
    whole = scene.read_window(level, level.extent)
    assert whole.shape == (1024, 1024)
    np.testing.assert_allclose(whole.pixels.mean((1, 2)), pixels.mean((1, 2)), atol=0.5)
    grid = FrameGrid.of(scene, level, frame_size=256, overlap=64)
    for frame in scene.frames(grid):
        assert frame.corner is not None
        row, col = frame.corner[0] - level.extent.row, frame.corner[1] - level.extent.col
        inside = whole.pixels[:, max(0, row) : row + 256, max(0, col) : col + 256]
        rows, cols = slice(max(0, -row), None), slice(max(0, -col), None)
        ours = frame.pixels[:, rows, cols][:, : inside.shape[1], : inside.shape[2]]
        np.testing.assert_array_equal(ours, inside)


def test_requests_for_enlarged_levels_are_those_of_native_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_xyz_tiles(tmp_path / "t", np.zeros((3, 256, 256), np.uint8), 8000, 5000, 14)
    scene = open_scene(str(folder / "{z}/{x}/{y}.png"))
    asked: list[tuple[Level, list[Window]]] = []
    monkeypatch.setattr(
        scene.reader, "check_requests", lambda level, windows: asked.append((level, list(windows)))
    )
    scene.check_requests(scene.level("x4"), [Window(0, 8, 16, 20)])
    assert asked == [(scene.levels[0], [Window(0, 2, 4, 5)])]
