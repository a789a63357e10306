"""Web tiles as one raster: levels are zooms, frames are pasted from tiles, nothing is resampled."""

from __future__ import annotations

import hashlib
import io
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal
from urllib.parse import urlsplit

import mercantile
import numpy as np
from PIL import Image, UnidentifiedImageError
from pyproj import CRS

from geosam2.errors import LevelError, SourceError
from geosam2.levels import MERCATOR_LIMIT, Level, Window, ground_size, zoom_cell_size
from geosam2.sources.bands import BandChoice
from geosam2.sources.base import Picture, Raw, Source, blank, paste
from geosam2.sources.fetch import Service
from geosam2.sources.pmtiles import PmTiles, WebPmTiles
from geosam2.sources.tilestores import (
    BBox,
    Contents,
    FolderTiles,
    MbTiles,
    Tile,
    TileStore,
    WebTiles,
)

log = logging.getLogger(__name__)

OnError = Literal["raise", "nodata"]

_KEPT_TILES = 256  # decoded, about 64 MiB: neighbouring frames share tiles
_CRS = CRS.from_epsg(3857)


class XyzSource(Source):
    """Reader of XYZ tiles.

    Args:
        where: A template, a folder of z/x/y tiles, or an MBTiles or PMTiles file.
        min_zoom: Coarsest zoom; default: what the store says, else 0.
        max_zoom: Finest zoom, the native level; default: what the store says, else 19.
        tile_size: Pixels along a tile's side; found out for local tiles.
        on_error: "nodata" leaves a hole where a tile cannot be had.
        max_tiles: Most tiles that one call may ask a web service for.
        service: How a web service is treated.
    """

    def __init__(
        self,
        where: str,
        *,
        min_zoom: int | None = None,
        max_zoom: int | None = None,
        tile_size: int | None = None,
        on_error: OnError = "raise",
        max_tiles: int = 4096,
        service: Service | None = None,
    ) -> None:
        if on_error not in ("raise", "nodata"):
            raise SourceError(f'on_error is "raise" or "nodata", got {on_error!r}')
        self._store = store_of(where, service or Service())
        self._on_error, self._max_tiles = on_error, max_tiles
        contents = self._store.contents()
        low = contents.min_zoom if min_zoom is None else min_zoom
        high = contents.max_zoom if max_zoom is None else max_zoom
        if not 0 <= low <= high <= 30:
            raise LevelError(f"zooms must be 0 <= min_zoom <= max_zoom <= 30, got {low} and {high}")
        self._side = tile_size or _found_size(self._store, contents, high) or 256
        self.workers = 4 if self._store.remote else 1
        self.name, self.location = self._store.name, self._store.location
        self.crs, self.nodata, self.dtype = _CRS, None, np.dtype(np.uint8)
        self.choice = BandChoice((1, 2, 3), ("red", "green", "blue"), "pictures", 3)
        self.levels = tuple(
            _level(index, zoom, self._side, contents.bbox)
            for index, zoom in enumerate(range(high, low - 1, -1))
        )
        self._zooms = range(high, low - 1, -1)
        self._whole_world = contents.bbox[2] - contents.bbox[0] >= 360
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._tiles: OrderedDict[Tile, Future[Picture | None]] = OrderedDict()
        self._threads: ThreadPoolExecutor | None = None

    # -- what it is

    @property
    def signature(self) -> str:
        """See `Source.signature`: of the template without keys, or of the file."""
        text = f"{self._store.identity}|{self._side}|{self._zooms}"
        return hashlib.sha256(text.encode()).hexdigest()

    def details(self) -> dict[str, Any]:
        """See `Source.details`."""
        return {
            "driver": type(self._store).__name__,
            "tile_size": self._side,
            "zooms": [self._zooms[-1], self._zooms[0]],
        }

    def reach(self, level: Level) -> Window:
        """See `Source.reach`: east of the antimeridian the map goes on in the west."""
        if not self._whole_world:
            return level.extent
        row, col, height, width = level.extent
        return Window(row, col - width, height, 3 * width)

    # -- reading

    def read(self, level: Level, window: Window) -> Raw:
        """See `Source.read`."""
        tiles = list(self._tiles_under(level, window))
        self.check_requests(level, [window])
        picture = blank(window)
        futures = [(place, self._ask(tile)) for tile, place in tiles]
        for place, future in futures:
            tile = future.result()
            if tile is not None:
                paste(tile, place, picture, window)
        return Raw(*picture)

    def requests(self, level: Level, windows: Iterable[Window]) -> int:
        """See `Source.requests`; tiles that are already cached are counted too."""
        if not self._store.remote:
            return 0
        grids = [window.coarsened(self._side) for window in windows]
        if len(grids) == 1:
            # at coarse zooms the map goes round within a window
            return min(grids[0].height * grids[0].width, 1 << 2 * self._zooms[level.index])
        return len(
            {
                (row, col)
                for grid in grids
                for row in range(grid.row, grid.row_stop)
                for col in range(grid.col, grid.col_stop)
            }
        )

    def check_requests(self, level: Level, windows: Iterable[Window]) -> None:
        """See `Source.check_requests`."""
        reach = self.reach(level)
        count = self.requests(level, [window & reach for window in windows])
        if count > self._max_tiles:
            raise LevelError(
                f"this takes {count} tiles of {self.name} at {level.label}, more than "
                f"max_tiles={self._max_tiles}: take a coarser level or smaller bounds, "
                "or raise max_tiles= if the service allows it"
            )

    def _tiles_under(self, level: Level, window: Window) -> Iterator[tuple[Tile, Window]]:
        """Tiles that meet a window, with their place on the lattice."""
        zoom, side = self._zooms[level.index], self._side
        count = 2**zoom
        # the CRS origin is the middle of the map: half a tile off at zoom 0
        middle = count * side // 2
        shifted = Window(window.row + middle, window.col + middle, window.height, window.width)
        grid = shifted.coarsened(side)
        for y in range(max(grid.row, 0), min(grid.row_stop, count)):
            for x in range(grid.col, grid.col_stop):
                place = Window(y * side - middle, x * side - middle, side, side)
                yield Tile(zoom, x % count, y), place

    def _ask(self, tile: Tile) -> Future[Picture | None]:
        """A tile that is wanted, under way or here; several frames share one request."""
        with self._lock:
            future = self._tiles.get(tile)
            if future is None or (future.done() and future.exception() is not None):
                future = self._pool().submit(self._load, tile)
                self._tiles[tile] = future
            self._tiles.move_to_end(tile)
            while len(self._tiles) > _KEPT_TILES:
                self._tiles.popitem(last=False)
        return future

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._store.workers, "geosam2-tiles")
        return self._threads

    def _load(self, tile: Tile) -> Picture | None:
        try:
            body = self._store.get(tile)
            return None if body is None else self._decoded(tile, body)
        except SourceError as error:
            if self._on_error == "raise":
                raise
            log.warning("no data for %s", error)
            return None

    def _decoded(self, tile: Tile, body: bytes) -> Picture:
        try:
            picture = decode(body)
        except SourceError as error:
            self._store.forget(tile)
            raise SourceError(f"{self._store.describe(tile)} is {error}") from None
        if picture.valid.shape != (self._side, self._side):
            self._store.forget(tile)
            height, width = picture.valid.shape
            raise SourceError(
                f"{self._store.describe(tile)} is {width} x {height} px instead of {self._side}: "
                f"pass tile_size={width} if all of them are"
            )
        return picture

    def close(self) -> None:
        """See `Source.close`."""
        with self._lock:
            threads, self._threads = self._threads, None
            self._tiles.clear()
        if threads is not None:
            threads.shutdown(wait=True, cancel_futures=True)
        self._store.close()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but threads and tiles."""
        gone = ("_lock", "_tiles", "_threads")
        return {key: value for key, value in self.__dict__.items() if key not in gone}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()


def store_of(where: str, service: Service) -> TileStore:
    """The store behind a template, a folder or a file.

    Raises:
        SourceError: If it is none of these.
    """
    if where.startswith(("http://", "https://")):
        path = urlsplit(where).path.lower()
        if path.endswith(".mbtiles"):
            raise SourceError("MBTiles cannot be read over a network: download the file first")
        return WebPmTiles(where, service) if path.endswith(".pmtiles") else WebTiles(where, service)
    if "://" in where:
        raise SourceError(
            f"tiles come over http, https or from local files, not {where.partition('://')[0]}"
        )
    lower = where.lower()
    if lower.endswith(".mbtiles"):
        return MbTiles(where)
    if lower.endswith(".pmtiles"):
        return PmTiles(where)
    return FolderTiles(where)


def decode(body: bytes) -> Picture:
    """(3, H, W) colours and (H, W) valid of an image file.

    Raises:
        SourceError: "half an image" and the like, to complete a sentence.
    """
    try:
        with Image.open(io.BytesIO(body)) as image:
            image.load()
            clear = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
            pixels = np.asarray(image.convert("RGBA" if clear else "RGB"))
    except UnidentifiedImageError:
        if body.lstrip()[:1] in (b"<", b"{"):
            raise SourceError(
                "a text instead of an image, perhaps an error or log-in page: open the URL in a "
                "browser to read it"
            ) from None
        raise SourceError("no image that can be read (png, jpg and webp can)") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise SourceError("a damaged image: try again, or pass on_error='nodata'") from None
    colours = np.ascontiguousarray(np.moveaxis(pixels[..., :3], -1, 0))
    valid = pixels[..., 3] > 0 if clear else np.ones(pixels.shape[:2], bool)
    return Picture(colours, valid)


def _level(index: int, zoom: int, side: int, bbox: BBox) -> Level:
    """Zoom as a level; its anchor is the CRS origin itself."""
    cell = zoom_cell_size(zoom, side)
    west, south, east, north = bbox
    left, bottom = mercantile.xy(west, max(south, -MERCATOR_LIMIT))
    right, top = mercantile.xy(east, min(north, MERCATOR_LIMIT))
    centre = ((left + right) / 2, (bottom + top) / 2)
    level = Level(
        index=index,
        label=f"z{zoom}",
        resolution=(cell, cell),
        anchor=(0.0, 0.0),
        extent=Window(0, 0, 0, 0),
        gsd=ground_size(_CRS, *centre, (cell, cell)),
        crs="EPSG:3857",
    )
    half = side * 2**zoom // 2
    # bounds in degrees are often rounded: take the nearest pixels
    extent = level.window_of((left, bottom, right, top), slack=0.5) & Window(
        -half, -half, 2 * half, 2 * half
    )
    return replace(level, extent=extent)


def _found_size(store: TileStore, contents: Contents, zoom: int) -> int | None:
    """Side of a local tile in the middle; asking a web service would cost a request."""
    if store.remote:
        return None
    west, south, east, north = contents.bbox
    middle = mercantile.tile((west + east) / 2, (south + north) / 2, zoom)
    body = store.get(Tile(zoom, middle.x, middle.y))
    if body is None:
        return None
    try:
        return int(decode(body).valid.shape[1])
    except SourceError:
        return None
