"""XYZ tiles: a direct paste is the oracle, mercantile and morecantile for their place."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mercantile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from geosam2.errors import LevelError, SourceError
from geosam2.scene import Scene, open_scene
from geosam2.sources.diskcache import DiskCache, Entry
from geosam2.sources.fetch import Service
from geosam2.sources.redact import Redactor, hide_keys
from geosam2.sources.tilestores import Tile, fill
from geosam2.testing.files import write_xyz_tiles
from geosam2.testing.server import Server, serve_folder
from geosam2.tiling import FrameGrid

X, Y, Z = 386690, 220241, 19
SHAPE = (768, 1024)


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(1, 256, (3, *SHAPE)).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, picture: Any) -> Path:
    return write_xyz_tiles(tmp_path_factory.mktemp("tiles"), picture, X, Y, Z)


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serve_folder(folder) as running:
        yield running


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(rate=1000, backoff=0.01, timeout=30, cache=tmp_path / "cache")


def bounds() -> tuple[float, float, float, float]:
    left, _, _, top = mercantile.xy_bounds(X, Y, Z)
    _, bottom, right, _ = mercantile.xy_bounds(X + 3, Y + 2, Z)
    return left, bottom, right, top


def web_scene(server: Server, service: Service, query: str = "", **options: Any) -> Scene:
    template = server.url + "/{z}/{x}/{y}.png" + query
    return open_scene(template, bounds=bounds(), service=service, **options)


# -- agreement


@settings(max_examples=60, deadline=None)
@given(z=st.integers(0, 22), data=st.data(), side=st.sampled_from([256, 512]))
def test_tiles_lie_where_mercantile_and_morecantile_put_them(
    z: int, data: st.DataObject, side: int
) -> None:
    import morecantile

    x = data.draw(st.integers(0, 2**z - 1))
    y = data.draw(st.integers(0, 2**z - 1))
    from geosam2.sources.tilestores import WORLD
    from geosam2.sources.xyz import _level

    level = _level(0, z, side, WORLD)
    middle = side * 2**z // 2
    from geosam2.levels import Window

    box = level.bounds_of(Window(y * side - middle, x * side - middle, side, side))
    np.testing.assert_allclose(box, mercantile.xy_bounds(x, y, z), atol=1e-6)
    theirs = morecantile.tms.get("WebMercatorQuad").xy_bounds(morecantile.Tile(x, y, z))
    np.testing.assert_allclose(box, theirs, atol=1e-6)


def test_a_scene_of_tiles_is_their_direct_paste(
    server: Server, service: Service, folder: Path, picture: Any
) -> None:
    scene = web_scene(server, service)
    assert scene.shape == SHAPE
    frame = scene.read(scene.geobox)
    np.testing.assert_array_equal(frame.pixels, picture)
    assert frame.valid.all()
    level = scene.level(2)
    assert level.label == "z17"
    whole = scene.read(level.geobox(scene.window(level)))
    for x, y in ((X >> 2, Y >> 2), ((X >> 2) + 1, Y >> 2)):
        with Image.open(folder / "17" / str(x) / f"{y}.png") as image:
            tile = np.moveaxis(np.asarray(image), -1, 0)
        box = mercantile.xy_bounds(x, y, 17)
        window = level.window_of(box)
        inside = window & scene.window(level)
        row, col = inside.row - window.row, inside.col - window.col
        r, c = inside.row - scene.window(level).row, inside.col - scene.window(level).col
        np.testing.assert_array_equal(
            whole.pixels[:, r : r + inside.height, c : c + inside.width],
            tile[:, row : row + inside.height, col : col + inside.width],
        )


def test_frames_of_tiles_and_of_two_extents_are_the_same(
    server: Server, service: Service, picture: Any
) -> None:
    scene = web_scene(server, service)
    left, bottom, right, top = scene.bounds
    part = scene.within((left + 100, bottom + 37, right, top - 11))
    grid, other = FrameGrid.of(scene, frame_size=256), FrameGrid.of(part, frame_size=256)
    common = set(grid) & set(other)
    assert common
    for frame in part.frames(other, order=sorted(common)):
        assert frame.index is not None
        np.testing.assert_array_equal(
            frame.pixels, scene.read_frame(grid, frame.index).pixels, "whatever was opened"
        )


def test_folders_mbtiles_pmtiles_and_tms_hold_the_same_picture(
    folder: Path, tmp_path: Path, picture: Any
) -> None:
    tms = tmp_path / "tms"
    for path in (folder / "19").glob("*/*.png"):
        row = 2**Z - 1 - int(path.stem)
        target = tms / "19" / path.parent.name / f"{row}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    for where in (
        folder,
        f"{folder}/{{z}}/{{x}}/{{y}}.png",
        f"{tms}/{{z}}/{{x}}/{{-y}}.png",
        write_mbtiles(tmp_path / "a.mbtiles", folder),
        write_pmtiles(tmp_path / "a.pmtiles", folder),
    ):
        scene = open_scene(where)
        assert scene.levels[0].label == "z19"
        assert scene.shape == SHAPE
        np.testing.assert_array_equal(scene.read(scene.geobox).pixels, picture)
        twin = pickle.loads(pickle.dumps(scene))
        assert twin.signature == scene.signature
        np.testing.assert_array_equal(twin.read(scene.geobox).pixels, picture)
        scene.close()
        np.testing.assert_array_equal(scene.read(scene.geobox).pixels, picture)


def write_mbtiles(path: Path, folder: Path, kind: str = "png") -> Path:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE metadata (name text, value text)")
    database.execute(
        "CREATE TABLE tiles (zoom_level int, tile_column int, tile_row int, tile_data blob)"
    )
    database.execute("INSERT INTO metadata VALUES ('format', ?)", (kind,))
    for tile in folder.glob("*/*/*.png"):
        z, x, y = int(tile.parts[-3]), int(tile.parts[-2]), int(tile.stem)
        database.execute(
            "INSERT INTO tiles VALUES (?, ?, ?, ?)", (z, x, 2**z - 1 - y, tile.read_bytes())
        )
    database.commit()
    database.close()
    return path


def write_pmtiles(path: Path, folder: Path) -> Path:
    from pmtiles.tile import Compression, TileType, zxy_to_tileid
    from pmtiles.writer import Writer

    west, _, _, north = mercantile.bounds(X, Y, Z)
    _, south, east, _ = mercantile.bounds(X + 3, Y + 2, Z)
    tiles = {
        zxy_to_tileid(int(t.parts[-3]), int(t.parts[-2]), int(t.stem)): t.read_bytes()
        for t in folder.glob("*/*/*.png")
    }
    with path.open("wb") as file:
        writer = Writer(file)
        for number in sorted(tiles):
            writer.write_tile(number, tiles[number])
        writer.finalize(
            {
                "tile_type": TileType.PNG,
                "tile_compression": Compression.NONE,
                "min_zoom": 17,
                "max_zoom": 19,
                "min_lon_e7": round(west * 1e7),
                "min_lat_e7": round(south * 1e7),
                "max_lon_e7": round(east * 1e7),
                "max_lat_e7": round(north * 1e7),
                "center_zoom": 18,
                "center_lon_e7": round(west * 1e7),
                "center_lat_e7": round(south * 1e7),
            },
            {},
        )
    return path


@pytest.fixture
def archive(folder: Path, tmp_path: Path) -> Iterator[tuple[Path, Server]]:
    """A PMTiles file, and a server that has it."""
    (tmp_path / "www").mkdir()
    path = write_pmtiles(tmp_path / "www" / "a.pmtiles", folder)
    with serve_folder(tmp_path / "www") as running:
        yield path, running


def test_pmtiles_behind_a_url_are_read_by_ranges_and_cached(
    archive: tuple[Path, Server], service: Service, picture: Any
) -> None:
    path, server = archive
    url = f"{server.url}/a.pmtiles?token=SECRET-123"
    scene = open_scene(url, service=service)
    assert len(server.requests) == 1, "the header"
    np.testing.assert_array_equal(scene.read(scene.geobox).pixels, picture)
    assert {request.status for request in server.requests} == {206}
    assert server.bytes_sent < path.stat().st_size + 16384
    assert "SECRET-123" not in scene.source + repr(scene)
    count = len(server.requests)
    for again in (open_scene(url, service=service), pickle.loads(pickle.dumps(scene))):
        assert again.signature == scene.signature
        np.testing.assert_array_equal(again.read(scene.geobox).pixels, picture)
    assert len(server.requests) == count, "the second process finds all of it in the cache"


def test_an_archive_that_changes_on_its_server_is_told(
    archive: tuple[Path, Server], service: Service, picture: Any
) -> None:
    path, server = archive
    pixels_after = path.read_bytes()
    path.write_bytes(pixels_after + bytes(40000))  # longer than its head, so that ranges are asked
    scene = open_scene(f"{server.url}/a.pmtiles", service=service)
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceError, match="has changed on its server: open it again"):
        scene.read(scene.geobox)
    again = open_scene(f"{server.url}/a.pmtiles", service=service)
    assert again.signature != scene.signature
    np.testing.assert_array_equal(again.read(again.geobox).pixels, picture)


def test_archives_that_are_cut_off_or_missing_say_so(
    archive: tuple[Path, Server], service: Service
) -> None:
    path, server = archive
    with pytest.raises(SourceError, match=r"nothing at .*: check the URL"):
        open_scene(f"{server.url}/b.pmtiles", service=service)
    server.fault = lambda path: (200, b"<html>please log in</html>")
    with pytest.raises(SourceError, match="no PMTiles file"):
        open_scene(f"{server.url}/page.pmtiles", service=service)
    server.fault = None
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 5000)
    cut = open_scene(f"{server.url}/a.pmtiles", service=service)
    with pytest.raises(SourceError, match="it is cut off"):
        cut.read(cut.geobox)


def test_a_large_archive_on_a_server_without_ranges_is_told(
    archive: tuple[Path, Server], service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, server = archive
    monkeypatch.setattr("geosam2.sources.fetch._LARGEST", 20_000)
    server.fault = lambda _: (200, path.read_bytes() + bytes(40_000))
    with pytest.raises(SourceError, match="knows no range requests: download it first"):
        open_scene(f"{server.url}/a.pmtiles", service=service)


def test_vector_tiles_and_strange_files_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="vector tiles: pictures are needed"):
        open_scene(write_mbtiles(tmp_path / "v.mbtiles", folder, kind="pbf"))
    (tmp_path / "b.mbtiles").write_bytes(b"nothing of the kind")
    with pytest.raises(SourceError, match="no MBTiles file"):
        open_scene(tmp_path / "b.mbtiles")
    (tmp_path / "b.pmtiles").write_bytes(b"nothing of the kind" * 20)
    with pytest.raises(SourceError, match="no PMTiles file"):
        open_scene(tmp_path / "b.pmtiles")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"holds no z/x/y\.png tiles"):
        open_scene(tmp_path / "empty")


@pytest.mark.parametrize(
    ("template", "remedy"),
    [
        ("https://t.org/{z}/{x}.png", "needs {z}, {x} and {y}"),
        ("https://t.org/{z}/{x}/{y}.png?v={date}", "put the value there"),
        ("ftp://t.org/{z}/{x}/{y}.png", "http, https or from local files, not ftp"),
        ("https://t.org/a.mbtiles", "download the file first"),
    ],
)
def test_templates_that_cannot_work_are_refused_before_fetching(template: str, remedy: str) -> None:
    with pytest.raises(SourceError, match=remedy.replace("{", r"\{")):
        open_scene(template)


def test_mirrors_quadkeys_and_rows_from_the_south() -> None:
    assert fill("http://{switch:t1,t2}.org/{z}/{x}/{y}", Tile(2, 1, 0)) == "http://t2.org/2/1/0"
    assert fill("http://t/{q}.jpg", Tile(3, 3, 5)) == "http://t/213.jpg"
    assert fill("http://t/{z}/{x}/{-y}", Tile(3, 3, 5)) == "http://t/3/3/2"


# -- the antimeridian and the poles


def test_the_map_goes_on_east_of_the_antimeridian(tmp_path: Path) -> None:
    folder = tmp_path / "world"
    pixels = np.random.default_rng(0).integers(1, 256, (3, 1024, 1024)).astype(np.uint8)
    write_xyz_tiles(folder, pixels, 0, 0, 2, levels=2)
    scene = open_scene(folder, bounds=(170, -20, -170, 20), bounds_crs="EPSG:4326")
    assert scene.bounds[2] > 20037508
    frame = scene.read(scene.geobox)
    assert frame.valid.all()
    level = scene.levels[0]
    expected = np.roll(pixels, -(scene.window(level).col + 512), axis=2)
    top = scene.window(level).row + 512
    np.testing.assert_array_equal(
        frame.pixels, expected[:, top : top + frame.shape[0], : frame.shape[1]]
    )
    grid = FrameGrid.of(scene, frame_size=64, overlap=16)
    assert all(f.valid.all() for f in scene.frames(grid))
    whole = open_scene(folder)
    beyond = FrameGrid.of(whole, frame_size=512, overlap=128)
    assert len(whole.levels) == 2
    north = whole.read_frame(beyond, beyond.index_at(0, 20037508))
    assert not north.valid[:100].any(), "no map beyond 85.05 degrees"


# -- a good citizen


def test_requests_say_who_asks_and_each_tile_is_asked_for_once(
    server: Server, service: Service
) -> None:
    scene = web_scene(server, service)
    grid = FrameGrid.of(scene, frame_size=256, overlap=128)
    list(scene.frames(grid, workers=4, ahead=8))
    paths = [request.path for request in server.requests]
    assert len(paths) == len(set(paths))
    server.requests.clear()
    again = web_scene(server, service)
    list(again.frames(grid))
    assert server.requests == [], "the disk cache serves another scene"


def test_user_agent_and_headers_are_sent() -> None:
    from geosam2.sources.fetch import _USER_AGENT, Fetcher

    fetcher = Fetcher(Service(headers={"Authorization": "Bearer s3cret"}), Redactor.of("http://t"))
    headers = fetcher._connection().headers
    assert headers["User-Agent"] == _USER_AGENT
    assert "geosam2" in _USER_AGENT
    assert headers["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in repr(fetcher.service)
    fetcher.close()


def test_no_more_connections_than_allowed(server: Server, tmp_path: Path) -> None:
    running, peak, lock = [0], [0], threading.Lock()

    def slow(path: str) -> None:
        with lock:
            running[0] += 1
            peak[0] = max(peak[0], running[0])
        time.sleep(0.02)
        with lock:
            running[0] -= 1

    server.fault = slow
    scene = web_scene(server, Service(concurrency=3, rate=1000, cache=None))
    scene.read(scene.geobox)
    assert 2 <= peak[0] <= 3


def test_the_pace_is_kept(server: Server) -> None:
    from geosam2.sources import fetch

    fetch._hosts.clear()
    scene = web_scene(server, Service(concurrency=8, rate=5, cache=None))
    start = time.perf_counter()
    scene.read(scene.geobox)  # 12 tiles: 5 at once, 7 more at 5 per second
    fetch._hosts.clear()
    assert 1.0 < time.perf_counter() - start < 60


def test_old_entries_are_asked_for_conditionally(
    server: Server, service: Service, picture: Any
) -> None:
    from dataclasses import replace as changed

    scene = web_scene(server, service)
    scene.read(scene.geobox)
    cache = DiskCache(Path(str(service.cache)))
    for path in cache.folder.glob("*/*.tile"):
        head, _, body = path.read_bytes().partition(b"\n")
        facts = json.loads(head)
        assert facts["etag"]
        path.write_bytes(json.dumps({**facts, "expires": 0}).encode() + b"\n" + body)
    asked: list[str] = []
    server.fault = lambda path: (asked.append(path), (304, b""))[1]
    again = web_scene(server, service)
    np.testing.assert_array_equal(again.read(again.geobox).pixels, picture)
    assert len(asked) == 12
    asked.clear()
    third = web_scene(server, service)
    third.read(third.geobox)
    assert asked == [], "304 makes an entry fresh again"
    assert changed(Entry(b""), etag="x").etag == "x"


def test_a_stale_copy_is_better_than_none(
    server: Server, service: Service, picture: Any, caplog: pytest.LogCaptureFixture
) -> None:
    scene = web_scene(server, service)
    scene.read(scene.geobox)
    for path in Path(str(service.cache)).glob("*/*.tile"):
        head, _, body = path.read_bytes().partition(b"\n")
        path.write_bytes(json.dumps({**json.loads(head), "expires": 0}).encode() + b"\n" + body)
    server.fault = lambda path: (503, b"")
    again = web_scene(server, Service(**{**vars(service), "retries": 0}))
    np.testing.assert_array_equal(again.read(again.geobox).pixels, picture)
    assert "older copy" in caplog.text


def test_too_many_tiles_are_refused_with_their_number(server: Server, service: Service) -> None:
    scene = web_scene(server, service, max_tiles=5)
    with pytest.raises(LevelError, match=r"takes 12 tiles .* max_tiles=5"):
        scene.read(scene.geobox)
    with pytest.raises(LevelError, match=r"takes \d+ tiles"):
        scene.frames(FrameGrid.of(scene))
    assert server.requests == []
    world = open_scene(server.url + "/{z}/{x}/{y}.png", service=service)
    with pytest.raises(LevelError, match="raise max_tiles="):
        world.frames(FrameGrid.of(world))


# -- faults


def png(side: int = 256) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (side, side, 3)).astype(np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("status", "body", "remedy"),
    [
        (401, b"", "HTTP 401 .* check the key"),
        (403, b"", "HTTP 403 .* check the key"),
        (400, b"", "HTTP 400 .* Check the template"),
        (429, b"", "HTTP 429 after 3 tries .* lower rate="),
        (500, b"", "HTTP 500 after 3 tries"),
        (200, b"<html>please log in</html>", "a text instead of an image"),
        (200, png()[:5000], "a damaged image"),
        (200, b"\x00\x01\x02", "no image that can be read"),
        (200, png(512), "512 x 512 px instead of 256: pass tile_size=512"),
    ],
)
def test_a_fault_names_the_tile_and_the_remedy_but_not_the_key(
    server: Server,
    service: Service,
    caplog: pytest.LogCaptureFixture,
    status: int,
    body: bytes,
    remedy: str,
) -> None:
    caplog.set_level("DEBUG")
    server.fault = lambda path: (status, body) if f"/{X + 1}/{Y}." in path else None
    quick = Service(**{**vars(service), "retries": 2})
    scene = web_scene(server, quick, "?api_key=SECRET123")
    with pytest.raises(SourceError, match=f"(?s){remedy}") as caught:
        scene.read(scene.geobox)
    text = str(caught.value)
    assert f"{Z}/{X + 1}/{Y}" in text
    assert "SECRET123" not in text + repr(scene) + scene.source + caplog.text
    assert caught.value.__cause__ is None
    assert not any("SECRET123" in str(p) for p in Path(str(service.cache)).rglob("*"))
    holes = web_scene(server, quick, "?api_key=SECRET123", on_error="nodata")
    frame = holes.read(holes.geobox)
    assert not frame.valid[:256, 256:512].any()
    assert frame.valid.sum() == 11 * 256 * 256
    server.fault = None
    healed = web_scene(server, quick, "?api_key=SECRET123")
    assert healed.read(healed.geobox).valid.all(), "a bad answer is not kept"


@pytest.mark.parametrize("status", [204, 404])
def test_a_tile_that_is_not_there_is_no_data(server: Server, service: Service, status: int) -> None:
    server.fault = lambda path: (status, b"") if f"/{X}/{Y}." in path else None
    frame = (scene := web_scene(server, service)).read(scene.geobox)
    assert not frame.valid[:256, :256].any()
    assert frame.pixels[:, :256, :256].max() == 0
    assert frame.valid.sum() == 11 * 256 * 256


def test_retry_after_is_obeyed(server: Server, service: Service, picture: Any) -> None:
    refused: list[float] = []

    def busy(path: str) -> tuple[int, bytes] | None:
        if f"/{X}/{Y}." in path and not refused:
            refused.append(time.monotonic())
            return 429, b""
        return None

    server.fault, server.headers = busy, {"Retry-After": "1"}
    scene = web_scene(server, service)
    frame = scene.read(scene.geobox)
    assert time.monotonic() - refused[0] >= 1.0
    np.testing.assert_array_equal(frame.pixels, picture)
    server.fault, server.headers = lambda path: (429, b""), {"Retry-After": "3600"}
    with pytest.raises(SourceError, match="asks to wait 3600 s"):
        (other := web_scene(server, Service(rate=1000, cache=None))).read(other.geobox)


def test_slow_and_silent_servers_run_into_a_timeout(server: Server) -> None:
    server.fault = lambda path: time.sleep(0.6)  # type: ignore[func-returns-value]
    hasty = Service(rate=1000, timeout=0.1, retries=1, backoff=0.01, cache=None)
    scene = web_scene(server, hasty)
    with pytest.raises(SourceError, match="no answer in time after 2 tries"):
        scene.read(scene.geobox)
    gone = open_scene("http://127.0.0.1:9/{z}/{x}/{y}.png", bounds=bounds(), service=hasty)
    with pytest.raises(SourceError, match="no connection after 2 tries"):
        gone.read(gone.geobox)


# -- streaming


def threads_named(prefix: str) -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(prefix)]


def test_reading_ahead_is_bounded_and_ends_with_the_consumer(folder: Path) -> None:
    scene = open_scene(folder)
    grid = FrameGrid.of(scene, frame_size=64, overlap=0)
    read: list[Any] = []
    whole = type(scene.reader).read

    def counted(self: Any, level: Any, window: Any) -> Any:
        read.append(window)
        return whole(self, level, window)

    type(scene.reader).read = counted  # type: ignore[method-assign]
    try:
        frames = scene.frames(grid, workers=3, ahead=5)
        assert threads_named("geosam2-read") == []
        next(frames)
        time.sleep(0.2)
        assert 1 < len(read) <= 6
        assert threads_named("geosam2-read")
        frames.close()  # type: ignore[attr-defined]
        time.sleep(0.05)
        assert threads_named("geosam2-read") == []
        assert len(read) <= 6
    finally:
        type(scene.reader).read = whole  # type: ignore[method-assign]


def test_an_error_comes_at_the_turn_of_its_frame(server: Server, service: Service) -> None:
    server.fault = lambda path: (403, b"") if f"/{X + 3}/" in path else None
    scene = web_scene(server, service)
    grid = FrameGrid.of(scene, frame_size=128, overlap=0)
    seen = []
    with pytest.raises(SourceError, match="HTTP 403"):
        seen.extend(scene.frames(grid, workers=1))
    assert len(seen) == 6
    assert threads_named("geosam2-read") == []


# -- the cache


def _fill_cache(folder: str, seed: int) -> None:
    cache = DiskCache(folder, 60_000)
    body = bytes([seed]) * 1000
    for i in range(120):
        cache.put(f"{i}", Entry(body, expires=time.time() + 99))
        found = cache.get(f"{(i * 7) % 120}")
        if found is not None:
            assert len(set(found.body)) == 1
            assert len(found.body) == 1000


@pytest.mark.slow
def test_two_processes_share_a_bounded_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill_cache, args=(str(tmp_path), s)) for s in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    DiskCache(tmp_path, 60_000).sweep()
    assert sum(p.stat().st_size for p in tmp_path.glob("*/*")) <= 60_000
    assert not list(tmp_path.glob("*/*.part"))


def test_a_damaged_entry_counts_as_none(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    cache.put("a", Entry(b"body"))
    path = cache.path("a")
    for damage in (path.read_bytes()[:-1], b"", b"{}\nbody", b"\xff\xfe", b"[1]\nx"):
        path.write_bytes(damage)
        assert cache.get("a") is None


def test_the_oldest_go_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 5000)
    for i in range(10):
        cache.put(str(i), Entry(b"x" * 400))
        os.utime(cache.path(str(i)), (i, i))
    assert cache.get("0") is not None
    cache.sweep()
    assert cache.get("0") is not None, "reading makes it young"
    cache.max_bytes = 2600
    cache.sweep()
    assert [i for i in range(10) if cache.get(str(i))] == [0, 6, 7, 8, 9]


def test_a_full_disk_stops_the_cache_and_not_the_run(
    server: Server, picture: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
    try:
        scene = web_scene(server, Service(rate=1000, cache=disk))
        np.testing.assert_array_equal(scene.read(scene.geobox).pixels, picture)
        assert "No space left" in caplog.text
        assert not list(disk.glob("*/*.part"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_without_room_is_told_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    cache = DiskCache(tmp_path)
    monkeypatch.setattr(Path, "replace", full)
    cache.put("a", Entry(b"x"))
    assert cache.get("a") is None
    assert "No space left" in caplog.text
    assert not list(tmp_path.glob("*/*.part"))


# -- keys


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("https://t.org/{z}/{x}/{y}.png", "https://t.org/{z}/{x}/{y}.png"),
        ("https://t.org/{z}/{x}/{y}?k=ab", "https://t.org/{z}/{x}/{y}?k=***"),
        ("https://u:p@t.org/{z}/{x}/{y}", "https://***@t.org/{z}/{x}/{y}"),
        ("https://t.org/pk1a2b3c4d5e6f7g8h9i0j/{z}/{x}/{y}", "https://t.org/***/{z}/{x}/{y}"),
        ("https://t.org/a?layers=x&SIG=q%2Fr", "https://t.org/a?layers=x&SIG=***"),
        ("s3://bucket/key/S2A_MSIL2A_20200101T1.tif", "s3://bucket/key/S2A_MSIL2A_20200101T1.tif"),
        ("/data/my key=1/a.tif", "/data/my key=1/a.tif"),
    ],
)
def test_only_what_may_be_shown_is_shown(url: str, public: str) -> None:
    assert Redactor.of(url).public == public


@pytest.mark.parametrize(
    ("source", "public"),
    [
        ("WMS:http://h:9/wms?layers=a&key=KEY1", "WMS:http://h:9/wms?layers=a&key=***"),
        ("WMTS:https://h/w?apikey=KEY1", "WMTS:https://h/w?apikey=***"),
        ("/vsizip//vsicurl/http://h/a.zip?key=KEY1", "/vsizip//vsicurl/http://h/a.zip?key=***"),
        ("/vsigzip//vsicurl/http://h/a.gz?sig=KEY1", "/vsigzip//vsicurl/http://h/a.gz?sig=***"),
        ("/vsitar//vsicurl/http://u:KEY1@h/a.tar", "/vsitar//vsicurl/http://***@h/a.tar"),
        ("/vsizip/{/vsicurl/http://h/a?k=KEY1}/b", "/vsizip/{/vsicurl/http://h/a?k=***"),
        (
            "/vsicurl?url=http%3A%2F%2Fh%3A9%2Fa.tif%3Fkey%3DKEY1",
            "/vsicurl?url=http%3A%2F%2Fh%3A9%2Fa.tif%3Fkey%3D***",
        ),
        (
            "/vsicurl?header.Authorization=KEY1&url=http%3A%2F%2Fh%2Fa.tif",
            "/vsicurl?header.Authorization=***&url=http%3A%2F%2Fh%2Fa.tif",
        ),
        ("zip+https://h/a.zip?key=KEY1!a.tif", "zip+https://h/a.zip?key=***"),
        ("<ServerUrl>http://h/w?key=KEY1</ServerUrl>", "<ServerUrl>http://h/w?key=***</ServerUrl>"),
        ("http://[no/host?key=KEY1", "http://***"),
    ],
)
def test_urls_are_found_wherever_they_stand(source: str, public: str) -> None:
    door = Redactor.of(source)
    assert door.public == public
    # GDAL says it in other forms: taken apart, decoded, with a member of the archive behind it
    for said in ("open KEY1", "/vsizip/vsicurl/https://h/a.zip?key=KEY1/a.tif", f"no {source}"):
        assert "KEY1" not in door.clean(said)


@pytest.mark.parametrize(
    "name",
    ["key", "apikey", "api_key", "token", "access_token", "sig", "Signature", "password",
     "subscription-key", "Ocp-Apim-Subscription-Key", "X-Amz-Signature"],
)  # fmt: skip
def test_under_the_door_is_a_net(name: str) -> None:
    said = (
        f"GDALOpen(/vsicurl/http://h/a.tif?v=1&{name}=Q&x=2): http%3A%2F%2Fh%3F{name}%3DQ%26x%3D2"
    )
    hidden = f"GDALOpen(/vsicurl/http://h/a.tif?v=1&{name}=***&x=2): http%3A%2F%2Fh%3F{name}%3D***"
    assert hide_keys(said) == f"{hidden}%26x%3D2"
    assert hide_keys(hide_keys(said)) == hide_keys(said)


def test_passwords_of_data_bases_are_in_the_net_and_ordinary_words_are_not() -> None:
    said = "PG:host=h user=me password='Q' table=key=1 sig=2 in /data/token=3/api_key=4.tif"
    assert hide_keys(said) == said.replace("'Q'", "'***'")


def test_a_name_that_is_no_utf8_can_be_said() -> None:
    door = Redactor.of("/data/a\udcff.tif")
    assert door.public.encode() == b"/data/a\\udcff.tif"


def test_a_new_key_keeps_the_cache_and_another_layer_does_not() -> None:
    def identity(query: str) -> str:
        return Redactor.of("https://t.org/{z}/{x}/{y}?" + query).identity

    assert identity("layers=a&key=1") == identity("key=2&layers=a")
    assert identity("layers=a&key=1") != identity("layers=b&key=1")


@given(secret=st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=8, max_size=40))
@settings(max_examples=50)
def test_no_secret_survives_in_text(secret: str) -> None:
    door = Redactor.of(f"https://t.org/{{z}}/{{x}}/{{y}}.png?access_token={secret}")
    assert secret not in door.public
    assert secret not in door.clean(f"GET /1/2/3.png?access_token={secret} failed: {secret!r}")
