"""Reading ahead: in order, each block of a file once, nothing left behind."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from geosam2.errors import SourceError
from geosam2.levels import Level, Window
from geosam2.scene import Scene, open_scene
from geosam2.sources.base import Raw
from geosam2.testing.files import write_geotiff
from geosam2.tiling import FrameGrid


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = np.random.default_rng(0).integers(0, 3000, (3, 700, 1100)).astype(np.uint16)
    pixels[:, 300:400, 500:600] = 0
    geobox = GeoBox((700, 1100), Affine(10, 0, 3e5 + 40, 0, -10, 4.1e6 + 70), "EPSG:32612")
    return write_geotiff(
        tmp_path_factory.mktemp("ahead") / "a.tif", pixels, geobox, block=128, nodata=0
    )


def reads_of(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> list[Window]:
    """Windows that the reader is asked for from now on."""
    windows: list[Window] = []
    whole = type(scene.reader).read

    def counted(self: Any, level: Level, window: Window) -> Raw:
        windows.append(window)
        return whole(self, level, window)

    monkeypatch.setattr(type(scene.reader), "read", counted)
    return windows


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("workers", [1, 3])
def test_frames_from_chunks_are_the_frames_read_alone(path: Path, level: int, workers: int) -> None:
    scene = open_scene(path)
    assert scene.reader.chunk(scene.levels[level]) == (512, 512)
    grid = FrameGrid.of(scene, level, frame_size=256, overlap=64)
    seen = 0
    for frame, index in zip(scene.frames(grid, workers=workers), grid, strict=True):
        alone = scene.read_frame(grid, index)
        np.testing.assert_array_equal(frame.pixels, alone.pixels)
        np.testing.assert_array_equal(frame.valid, alone.valid)
        assert (frame.index, frame.corner) == (index, alone.corner)
        assert (frame.geobox, frame.level) == (alone.geobox, alone.level)
        seen += int(frame.valid.any() and not frame.valid.all())
    assert seen > 0, "no frame with a hole or an edge"


def test_each_chunk_is_read_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = open_scene(path)
    _ = scene.stretch
    grid = FrameGrid.of(scene, frame_size=256, overlap=128)
    windows = reads_of(scene, monkeypatch)
    assert sum(1 for _ in scene.frames(grid, "snake", workers=2)) == len(grid) > 40
    assert len(windows) == len(set(windows)) == 6
    extent = scene.levels[0].extent
    assert sum(w.height * w.width for w in windows) == extent.height * extent.width


def test_what_does_not_fit_is_read_again_and_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = open_scene(path)
    grid = FrameGrid.of(scene, frame_size=256, overlap=128)
    expected = [frame.pixels for frame in scene.frames(grid)]
    monkeypatch.setattr("geosam2.prefetch._KEPT_PIXELS", 512 * 512)
    windows = reads_of(scene, monkeypatch)
    for frame, pixels in zip(scene.frames(grid, workers=2), expected, strict=True):
        np.testing.assert_array_equal(frame.pixels, pixels)
    assert len(windows) > len(set(windows))


def test_a_frame_beyond_the_file_is_empty(path: Path) -> None:
    scene = open_scene(path)
    level = scene.levels[0]
    beyond = Window(level.extent.row - 900, level.extent.col - 900, 256, 256)
    grid = FrameGrid(level, beyond, frame_size=256, overlap=0)
    for frame in scene.frames(grid):
        assert not frame.valid.any()
        assert not frame.pixels.any()


def test_a_damaged_block_is_told_at_the_turn_of_its_frame(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 1100, 600)).astype(np.uint8)
    geobox = GeoBox((1100, 600), Affine(10, 0, 3e5, 0, -10, 4.1e6), "EPSG:32612")
    cut = write_geotiff(tmp_path / "cut.tif", pixels, geobox, block=256, overviews=False)
    with cut.open("r+b") as file:
        file.truncate(cut.stat().st_size * 2 // 3)
    scene = open_scene(cut)
    frames = scene.frames(FrameGrid.of(scene, frame_size=128, overlap=0), workers=2)
    assert next(frames).valid.any()
    with pytest.raises(SourceError, match="damaged or cut off"):
        list(frames)
    assert [t for t in threading.enumerate() if t.name.startswith("geosam2-read")] == []


def test_a_file_cut_off_before_its_overviews_says_so(path: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.tif"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(SourceError, match="damaged or cut off"):
        open_scene(cut)
