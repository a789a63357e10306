"""Where tiles come from: a web service, a folder or an MBTiles file."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sqlite3
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import mercantile

from geosam2.errors import SourceError
from geosam2.sources.fetch import Fetcher, Service
from geosam2.sources.redact import Redactor

BBox = tuple[float, float, float, float]
WORLD: BBox = (-180.0, -85.0511287798066, 180.0, 85.0511287798066)


class Tile(NamedTuple):
    """Address of a tile, rows from the north (XYZ, not TMS)."""

    z: int
    x: int
    y: int


@dataclass(frozen=True)
class Contents:
    """What a store says that it holds."""

    min_zoom: int
    """Coarsest."""
    max_zoom: int
    """Finest."""
    bbox: BBox
    """(west, south, east, north) in degrees."""


class TileStore(ABC):
    """Bodies of tiles by address; picklable, safe in threads."""

    name: str
    """Short, for people."""
    location: str
    """Without keys."""
    identity: str
    """Hash of where and which, without keys."""
    remote: bool = False
    """True if a tile costs a request."""
    workers: int = 2
    """Threads that may fetch at a time."""

    @abstractmethod
    def contents(self) -> Contents:
        """What there is."""

    @abstractmethod
    def get(self, tile: Tile) -> bytes | None:
        """Body of a tile, None where there is none."""

    def forget(self, tile: Tile) -> None:  # noqa: B027 - only caches forget
        """The body was no picture: do not keep it."""

    def describe(self, tile: Tile) -> str:
        """Address for messages."""
        return f"tile {tile.z}/{tile.x}/{tile.y} of {self.location}"

    def close(self) -> None:  # noqa: B027 - nothing is open by default
        """Release files and connections."""


class WebStore(TileStore):
    """Tiles behind a URL.

    Args:
        url: With keys; a template, if it has placeholders.
        service: How it is treated.
    """

    remote = True

    def __init__(self, url: str, service: Service) -> None:
        door = Redactor.of(url)
        secrets = {*door.secrets, *service.headers.values()}
        self._door = Redactor(
            door.public, door.identity, tuple(sorted(secrets, key=len, reverse=True))
        )
        self._door.guard_logs()
        self._fetcher = Fetcher(service, self._door)
        self.workers = service.concurrency
        self.location = self._door.public
        self.name = urlsplit(self.location).netloc.rpartition("@")[2]
        self.identity = self._door.identity

    def close(self) -> None:
        """See `TileStore.close`."""
        self._fetcher.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._door.guard_logs()


class WebTiles(WebStore):
    """An XYZ or TMS service.

    Args:
        template: URL with {z}, {x} and {y} ({-y} counts rows from the south), or {q} for quadkeys;
            {s} or {switch:a,b} for mirrors.
        service: How it is treated.
    """

    def __init__(self, template: str, service: Service) -> None:
        _check_template(template)
        super().__init__(template, service)
        self._template = template

    def contents(self) -> Contents:
        """The whole world to zoom 19: a template does not say."""
        return Contents(0, 19, WORLD)

    def get(self, tile: Tile) -> bytes | None:
        """See `TileStore.get`."""
        return self._fetcher.get(fill(self._template, tile), self._key(tile))

    def forget(self, tile: Tile) -> None:
        """See `TileStore.forget`."""
        self._fetcher.forget(self._key(tile))

    def describe(self, tile: Tile) -> str:
        """Address with the numbers filled in and keys left out."""
        url = Redactor.of(fill(self._template, tile)).public
        return f"tile {tile.z}/{tile.x}/{tile.y} ({url})"

    def _key(self, tile: Tile) -> str:
        return f"{self.identity}/{tile.z}/{tile.x}/{tile.y}"


class FolderTiles(TileStore):
    """A local folder of z/x/y files, as a template or as the folder itself."""

    def __init__(self, template: str) -> None:
        if "{" not in template:
            template = _template_of(Path(template))
        _check_template(template)
        self._template = template
        root = Path(template[: template.index("{")]).resolve()
        self._root = root if root.is_dir() else root.parent
        if not self._root.is_dir():
            raise SourceError(f"there is no folder {self._root}")
        self.location = template
        self.name = self._root.name
        self.identity = hashlib.sha256(str(template).encode()).hexdigest()

    def contents(self) -> Contents:
        """Zooms and columns are the names of folders; rows are the names of files."""
        zooms = sorted(int(p.name) for p in self._root.iterdir() if p.name.isdigit())
        if not zooms or not re.search(r"\{z\}/\{x\}/\{-?y\}\.\w+$", self._template):
            return Contents(0, 19, WORLD)
        south_up = "{-y}" in self._template
        columns = [p for p in (self._root / str(zooms[-1])).iterdir() if p.name.isdigit()]
        rows = [int(p.stem) for c in columns for p in c.iterdir() if p.stem.isdigit()]
        if not rows:
            return Contents(zooms[0], zooms[-1], WORLD)
        if south_up:
            rows = [2 ** zooms[-1] - 1 - row for row in rows]
        names = [int(p.name) for p in columns]
        box = _bbox_of(zooms[-1], min(names), max(names), min(rows), max(rows))
        return Contents(zooms[0], zooms[-1], box)

    def get(self, tile: Tile) -> bytes | None:
        """See `TileStore.get`."""
        try:
            return Path(fill(self._template, tile)).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SourceError(f"cannot read {self.describe(tile)}: {error.strerror}") from error


class MbTiles(TileStore):
    """An MBTiles file (SQLite; rows from the south)."""

    def __init__(self, path: str) -> None:
        self._path = Path(path).resolve()
        self.location, self.name = str(path), self._path.name
        self.identity = file_identity(self._path)
        self._open()
        try:
            self._metadata = dict(self._all("SELECT name, value FROM metadata"))
        except sqlite3.Error as error:
            raise SourceError(f"{path} is no MBTiles file: {error}") from None
        check_format(str(self._metadata.get("format", "png")), self.location)

    def contents(self) -> Contents:
        """From the metadata, else from the tiles themselves."""
        lowest, highest = self._all("SELECT min(zoom_level), max(zoom_level) FROM tiles")[0]
        if highest is None:
            raise SourceError(f"{self.location} holds no tiles")
        left, right, south, north = self._all(
            "SELECT min(tile_column), max(tile_column), min(tile_row), max(tile_row)"
            " FROM tiles WHERE zoom_level = ?",
            (highest,),
        )[0]
        last = 2**highest - 1
        box = _bbox_of(highest, left, right, last - north, last - south)
        with contextlib.suppress(KeyError, ValueError):
            west, low, east, high = (float(v) for v in self._metadata["bounds"].split(","))
            # pictures often have bounds in the middle of tiles; never larger than the tiles
            box = _common(box, (west, low, east, high)) or box
        return Contents(lowest, highest, box)

    def get(self, tile: Tile) -> bytes | None:
        """See `TileStore.get`."""
        row = 2**tile.z - 1 - tile.y
        try:
            found = self._all(
                "SELECT tile_data FROM tiles"
                " WHERE zoom_level = ? AND tile_column = ? AND tile_row = ?",
                (tile.z, tile.x, row),
            )
        except sqlite3.Error as error:
            raise SourceError(f"cannot read {self.describe(tile)}: {error}") from None
        return bytes(found[0][0]) if found else None

    def _open(self) -> None:
        if not self._path.is_file():
            raise SourceError(f"there is no file {self._path}")
        # read-only: opening must not leave journals beside somebody's file
        uri = f"{self._path.as_uri()}?mode=ro"
        self._lock = threading.Lock()
        self._database = sqlite3.connect(uri, uri=True, check_same_thread=False)

    def _all(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._database.execute(query, values).fetchall()

    def close(self) -> None:
        """See `TileStore.close`; opened again by the next pickle or scene."""
        with self._lock:
            self._database.close()
        self._open()

    def __del__(self) -> None:
        if hasattr(self, "_database"):
            self._database.close()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_database")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def fill(template: str, tile: Tile) -> str:
    """URL or path of a tile.

    >>> fill("https://{s}.t.org/{z}/{x}/{-y}.png", Tile(3, 1, 2))
    'https://a.t.org/3/1/5.png'
    """
    z, x, y = tile
    text = template.replace("{z}", str(z)).replace("{x}", str(x)).replace("{y}", str(y))
    text = text.replace("{-y}", str(2**z - 1 - y))
    if "{q}" in text:
        text = text.replace("{q}", mercantile.quadkey(x, y, z))
    # the same mirror each time, so that caches on the way see the same URL
    text = text.replace("{s}", "abc"[(x + y) % 3])
    return _SWITCH.sub(lambda m: (names := m[1].split(","))[(x + y) % len(names)], text)


_SWITCH = re.compile(r"\{switch:([^{}]+)\}")


def _check_template(template: str) -> None:
    has = {name for name in ("z", "x", "y", "-y", "q") if f"{{{name}}}" in template}
    if not ("q" in has or ({"z", "x"} <= has and len(has & {"y", "-y"}) == 1)):
        raise SourceError(
            f"a tile template needs {{z}}, {{x}} and {{y}} (or {{-y}}, or {{q}}): "
            f"{Redactor.of(template).public}"
        )
    unknown = set(re.findall(r"\{[^{}]*\}", _SWITCH.sub("", template))) - {
        f"{{{name}}}" for name in ("z", "x", "y", "-y", "q", "s")
    }
    if unknown:
        raise SourceError(
            f"cannot fill {', '.join(sorted(unknown))} in {Redactor.of(template).public}: "
            "put the value there"
        )


def _template_of(folder: Path) -> str:
    """z/x/y template of a folder, from the first file that looks like a tile."""
    for path in sorted(folder.glob("[0-9]*/[0-9]*/[0-9]*.*")):
        if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
            return f"{folder}/{{z}}/{{x}}/{{y}}{path.suffix}"
    raise SourceError(f"{folder} holds no z/x/y.png tiles (nor .jpg or .webp)")


def _bbox_of(zoom: int, left: int, right: int, top: int, bottom: int) -> BBox:
    first, last = mercantile.bounds(left, top, zoom), mercantile.bounds(right, bottom, zoom)
    return first.west, last.south, last.east, first.north


def _common(a: BBox, b: BBox) -> BBox | None:
    west, south, east, north = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return (west, south, east, north) if west < east and south < north else None


def file_identity(path: Path) -> str:
    if not path.is_file():
        raise SourceError(f"there is no file {path}")
    stat = path.stat()
    return hashlib.sha256(f"{path}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()


def check_format(kind: str, location: str) -> None:
    if kind.lower() in ("pbf", "mvt"):
        raise SourceError(f"{location} holds vector tiles: pictures are needed (png, jpg, webp)")
