"""Reading: a local COG against plain rasterio, tiles against one by one, memory against size.

    [PEER_PYTHON=/path/to/python] python benchmarks/reading.py [--quick]

All data are made here; the tile server is this machine, in a process of its own, and waits 30 ms
before each answer. Each comparison is run in turns, so that both sides see the same machine, and
the median is taken. Files are read in a new process each time. The last line is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image
from rasterio.windows import Window

from geosam2.scene import Scene, open_scene
from geosam2.sources.fetch import Service
from geosam2.testing.files import write_geotiff, write_repeated_vrt
from geosam2.tiling import FrameGrid

LATENCY = 0.03
ZOOM, LEFT, TOP = 17, 70000, 40000


def texture(side: int, dtype: str = "uint16") -> Any:
    """Smooth hills with grain: compresses about as imagery does."""
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[0:side, 0:side] / 97
    hills = np.sin(rows) + np.cos(1.3 * cols) + np.sin(0.7 * (rows + cols))
    grains = [0.15 * rng.standard_normal(hills.shape) for _ in range(3)]
    bands = [(hills + 4 + grain) * (300 + 40 * b) for b, grain in enumerate(grains)]
    top = 255 if dtype == "uint8" else 65535
    return np.clip(np.stack(bands) / (12 if dtype == "uint8" else 1), 0, top).astype(dtype)


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(rounds: int, *works: Callable[[], float]) -> list[float]:
    """Median of the seconds that each returns, run alternately after one round to warm up."""
    for work in works:
        work()
    seconds = [[work() for work in works] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*seconds, strict=True)]


def cog_against_rasterio(folder: Path, side: int, rounds: int) -> dict[str, float]:
    """Frames per second, stretch and mask included, against the windows alone."""
    figures = {}
    for dtype in ("uint8", "uint16"):
        geobox = GeoBox((side, side), Affine(10, 0, 3e5, 0, -10, 4.1e6), "EPSG:32612")
        path = write_geotiff(
            folder / f"{dtype}.tif", texture(side, dtype), geobox, cog=True, block=512
        )
        count = len(FrameGrid.of(open_scene(path)))
        works = [partial(_alone, way, path) for way in (_plain, _frames, _one_thread)]
        rates = [count / seconds for seconds in in_turns(rounds, *works)]
        print(
            f"COG {side} px {dtype}: rasterio {rates[0]:.1f}, scene.frames {rates[1]:.1f}, "
            f"one by one in one thread {rates[2]:.1f} frames/s"
        )
        figures[dtype] = rates[1] / rates[0]
        figures[f"{dtype}_one_thread"] = rates[2] / rates[0]
    return figures


def _alone(way: Callable[[Path], float], path: Path) -> float:
    """Seconds that a way of reading takes in a new process: nobody finds memory laid out."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(way, path).result()


def _plain(path: Path) -> float:
    """The loop that people write: pixels of each window, no padding, no mask, no stretch."""
    scene = open_scene(path)
    extent, grid = scene.levels[0].extent, FrameGrid.of(scene)
    parts = [grid.window(index) & extent for index in grid]
    windows = [Window(p.col - extent.col, p.row - extent.row, p.width, p.height) for p in parts]

    def work() -> None:
        with rasterio.open(path) as file:
            for window in windows:
                file.read([1, 2, 3], window=window)

    return timed(work)


def _scene(path: Path) -> tuple[Scene, FrameGrid]:
    """A scene with its stretch, which is measured once and not per frame, and no file open."""
    scene = open_scene(path)
    _ = scene.stretch
    scene.close()
    return scene, FrameGrid.of(scene)


def _frames(path: Path) -> float:
    scene, grid = _scene(path)
    return timed(lambda: deque(scene.frames(grid), maxlen=0))


def _one_thread(path: Path) -> float:
    scene, grid = _scene(path)
    return timed(lambda: deque((scene.read_frame(grid, index) for index in grid), maxlen=0))


def _serve(port: Any, bodies: list[bytes]) -> None:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            time.sleep(LATENCY)
            body = bodies[hash(self.path) % len(bodies)]
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    port.put(server.server_port)
    server.serve_forever()


def tiles_against_one_by_one(folder: Path, side: int, rounds: int) -> dict[str, Any]:
    """`side` x `side` tiles, nothing cached, decoded and pasted on both sides."""
    pixels = texture(512, "uint8")
    bodies = []
    for i in range(4):
        file = io.BytesIO()
        part = pixels[:, i * 64 : i * 64 + 256, i * 64 : i * 64 + 256]
        Image.fromarray(np.moveaxis(part, 0, -1)).save(file, "JPEG", quality=85)
        bodies.append(file.getvalue())
    context = multiprocessing.get_context("spawn")
    port = context.Queue()
    process = context.Process(target=_serve, args=(port, bodies), daemon=True)
    process.start()
    url = f"http://127.0.0.1:{port.get()}/{{z}}/{{x}}/{{y}}.jpg"
    try:
        return _tile_figures(url, folder, side, rounds)
    finally:
        process.terminate()


def _tile_figures(url: str, folder: Path, side: int, rounds: int) -> dict[str, Any]:
    import mercantile

    first = mercantile.xy_bounds(LEFT, TOP, ZOOM)
    last = mercantile.xy_bounds(LEFT + side - 1, TOP + side - 1, ZOOM)
    # a hair inside, or its neighbours would be fetched too
    bounds = (first.left + 0.01, last.bottom + 0.01, last.right - 0.01, first.top - 0.01)

    def one_by_one() -> None:
        mosaic = np.zeros((side * 256, side * 256, 3), np.uint8)
        with httpx.Client() as client:
            for row in range(side):
                for col in range(side):
                    answer = client.get(url.format(z=ZOOM, x=LEFT + col, y=TOP + row))
                    tile = np.asarray(Image.open(io.BytesIO(answer.content)))
                    mosaic[row * 256 : row * 256 + 256, col * 256 : col * 256 + 256] = tile

    def scene() -> None:
        service = Service(concurrency=32, rate=1e6, cache=None)
        scene = open_scene(url, bounds=bounds, max_zoom=ZOOM, service=service)
        assert scene.read(scene.geobox).valid.all()
        scene.close()

    seconds = in_turns(rounds, partial(timed, one_by_one), partial(timed, scene))
    print(
        f"{side * side} tiles at {LATENCY * 1000:.0f} ms: one by one {seconds[0]:.2f} s, "
        f"scene {seconds[1]:.2f} s ({seconds[0] / seconds[1]:.1f} x)"
    )
    figures: dict[str, Any] = {"serial": seconds[0] / seconds[1]}
    peer = _peer(url, bounds, folder)
    if peer is not None:
        figures["tms_to_geotiff"] = peer / seconds[1]
        print(f"samgeo's tms_to_geotiff {peer:.2f} s ({peer / seconds[1]:.1f} x)")
    return figures


# `tms_to_geotiff` alone: the package around it imports every version of SAM
_PEER = """
import importlib.util, sys, time
from pathlib import Path
url, zoom, target, *box = sys.argv[1:]
place = importlib.util.find_spec("samgeo").submodule_search_locations[0]
spec = importlib.util.spec_from_file_location("samgeo_common", Path(place) / "common.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
start = time.perf_counter()
module.tms_to_geotiff(target, [float(v) for v in box], zoom=int(zoom), source=url,
                      overwrite=True, quiet=True)
print(time.perf_counter() - start)
"""


def _peer(url: str, bounds: tuple[float, ...], folder: Path) -> float | None:
    """Seconds of samgeo's downloader for the same tiles, once; None if it is not installed.

    They include the GeoTIFF that it writes; five connections are its own choice. It draws with
    GDAL's own bindings, so it may need a Python of its own: $PEER_PYTHON.
    """
    from pyproj import Transformer

    box = Transformer.from_crs(3857, 4326, always_xy=True).transform_bounds(*bounds)
    facts = [url, ZOOM, folder / "peer.tif", *box]
    done = subprocess.run(
        [os.environ.get("PEER_PYTHON", sys.executable), "-c", _PEER, *map(str, facts)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        print(f"no comparison with samgeo's tms_to_geotiff: {done.stderr.strip()[-200:]}")
        return None
    return float(done.stdout.split()[-1])


_WALK = """
import re, sys
from pathlib import Path
import numpy as np
from geosam2.scene import open_scene
from geosam2.tiling import FrameGrid
scene = open_scene(sys.argv[1])
grid = FrameGrid.of(scene)
steps = np.linspace(0, len(grid) - 1, int(sys.argv[2])).astype(int)
rows, cols = grid.shape
first = grid.first
order = [type(first)(first.row + int(i) // cols, first.col + int(i) % cols) for i in steps]
for frame in scene.frames(grid, order=order):
    assert frame.valid.any()
status = Path("/proc/self/status").read_text()
print(int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 1024, len(grid))
"""


def memory_against_size(folder: Path, frames: int) -> dict[str, float]:
    """Peak memory of a process that reads the same number of frames of 0.1 and of 10 Gpx."""
    geobox = GeoBox((4000, 4000), Affine(10, 0, 3e5, 0, -10, 4.1e6), "EPSG:32612")
    source = write_geotiff(folder / "cell.tif", texture(4000, "uint8"), geobox, block=512)
    peaks = []
    for side in (10_000, 100_000):
        vrt = write_repeated_vrt(folder / f"{side}.vrt", source, (side, side))
        done = subprocess.run(
            [sys.executable, "-c", _WALK, str(vrt), str(frames)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peak, count = done.stdout.split()
        print(f"{side**2 / 1e9:g} Gpx: peak {float(peak):.0f} MB, {frames} of {count} frames read")
        peaks.append(float(peak))
    return {"small": peaks[0], "large": peaks[1], "growth": peaks[1] / peaks[0]}


def main() -> None:
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Smaller data, fewer rounds.")
    quick = parser.parse_args().quick
    if not re.match("linux", sys.platform):
        print("peak memory is read from /proc: Linux only")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cog = cog_against_rasterio(folder, 2048 if quick else 4096, 5)
        tiles = tiles_against_one_by_one(folder, 8 if quick else 16, 1 if quick else 3)
        memory = memory_against_size(folder, 40 if quick else 300)
    print(
        json.dumps(
            {
                "cog_vs_rasterio": round(min(cog["uint8"], cog["uint16"]), 3),
                "cog_vs_rasterio_detail": {k: round(v, 3) for k, v in cog.items()},
                "xyz_vs_serial": round(tiles["serial"], 1),
                "xyz_vs_tms_to_geotiff": round(tiles.get("tms_to_geotiff", 0), 1) or None,
                "memory_growth": round(memory["growth"], 3),
                "quick": quick,
            }
        )
    )


if __name__ == "__main__":
    main()
