"""PMTiles: an archive of tiles in one file, local or read over HTTP by byte ranges."""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from geosam2.errors import SourceError, import_optional
from geosam2.sources.fetch import Fetcher, Service
from geosam2.sources.redact import Redactor
from geosam2.sources.tilestores import (
    WORLD,
    Contents,
    Tile,
    TileStore,
    WebStore,
    check_format,
    file_identity,
)

_HEAD = 16384  # header and root directory lie within this (PMTiles specification 3, section 2)
_KEPT_RANGES = 256  # of directories and tiles, per archive
_SIDES = ("min_lon", "min_lat", "max_lon", "max_lat")


class _Archive(TileStore):
    """What archives have in common, wherever their bytes come from."""

    _reader: Any

    def contents(self) -> Contents:
        """From the header."""
        header = self._reader.header()
        west, south, east, north = (header[f"{side}_e7"] / 1e7 for side in _SIDES)
        if not (west < east and south < north):
            west, south, east, north = WORLD
        return Contents(header["min_zoom"], header["max_zoom"], (west, south, east, north))

    def get(self, tile: Tile) -> bytes | None:
        """See `TileStore.get`."""
        try:
            body: bytes | None = self._reader.get(tile.z, tile.x, tile.y)
        except SourceError:
            raise
        except Exception as error:  # pmtiles has no base class for its errors
            raise SourceError(f"cannot find {self.describe(tile)}: {error}") from None
        return body

    def _read_with(self, get_bytes: Callable[[int, int], bytes]) -> None:
        library: Any = import_optional("pmtiles.reader", "pmtiles")
        self._reader = library.Reader(get_bytes)
        try:
            kind = self._reader.header()["tile_type"].name.lower()
        except SourceError:
            raise
        except Exception as error:  # pmtiles has no base class for its errors
            raise SourceError(f"{self.location} is no PMTiles file: {error}") from None
        check_format(kind, self.location)


class PmTiles(_Archive):
    """A PMTiles file of pictures; needs the extra "pmtiles"."""

    def __init__(self, path: str) -> None:
        self._path = Path(path).resolve()
        self.location, self.name = str(path), self._path.name
        self.identity = file_identity(self._path)
        self._open()

    def _open(self) -> None:
        if not self._path.is_file():
            raise SourceError(f"there is no file {self._path}")
        with self._path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._read_with(lambda offset, length: self._map[offset : offset + length])

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_map", "_reader")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


class WebPmTiles(WebStore, _Archive):
    """A PMTiles file behind a URL; ranges of it are fetched and cached as tiles are.

    Args:
        url: Of the file, on a server that answers range requests.
        service: How it is treated.
    """

    def __init__(self, url: str, service: Service) -> None:
        super().__init__(url, service)
        self._ranges = _Ranges(url, self.identity, self._fetcher)
        # a new version of the archive is another one, for every cache
        self.identity = f"{self.identity}/{self._ranges.version}"
        self._read_with(self._ranges)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_reader"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._read_with(self._ranges)


class _Ranges:
    """Bytes of a file behind a URL, by offset and length."""

    def __init__(self, url: str, identity: str, fetcher: Fetcher) -> None:
        self._url, self._identity, self._fetcher = url, identity, fetcher
        head = fetcher.entry(url, f"{identity}/head", (0, _HEAD))
        if not head.body:
            fetcher.forget(f"{identity}/head")
            raise SourceError(f"there is nothing at {Redactor.of(url).public}: check the URL")
        self._head, self.version = head.body, head.etag or head.modified
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def __call__(self, offset: int, length: int) -> bytes:
        if offset + length <= len(self._head) or len(self._head) < _HEAD:
            return self._head[offset : offset + length]
        with self._lock:
            body = self._kept.get((offset, length))
        if body is None:
            body = self._fetched(offset, length)
        with self._lock:
            self._kept[offset, length] = body
            self._kept.move_to_end((offset, length))
            if len(self._kept) > _KEPT_RANGES:
                self._kept.popitem(last=False)
        return body

    def _fetched(self, offset: int, length: int) -> bytes:
        key = f"{self._identity}/{self.version}/{offset}+{length}"
        entry = self._fetcher.entry(self._url, key, (offset, length))
        if (entry.etag or entry.modified) != self.version:
            self._fetcher.forget(key)
            self._fetcher.forget(f"{self._identity}/head")
            raise SourceError("the archive has changed on its server: open it again")
        if len(entry.body) != length:
            self._fetcher.forget(key)
            raise SourceError(
                f"the archive ends within bytes {offset} to {offset + length}: it is cut off, or "
                "its server knows no range requests; download it first"
            )
        return entry.body

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()
