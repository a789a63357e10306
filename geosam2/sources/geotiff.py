"""GeoTIFF, COG, VRT and whatever else GDAL reads from a file or by range requests.

A level is either the file itself, one of its overviews (opened as a dataset of its own, so that
its pixels arrive exactly as stored), or an average over 2^k x 2^k pixels of the coarsest of those.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.crs import CRS as OdcCRS  # noqa: N811 - pyproj has a CRS too
from pyproj import CRS
from rasterio._err import CPLE_BaseError  # some properties let GDAL's own errors through
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import from_bounds
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as FileWindow

from geosam2.errors import GeoreferenceError, SourceError
from geosam2.levels import Level, Window, crs_from, crs_text, ground_size, ladder
from geosam2.sources.bands import BandChoice, Bands, choose_bands
from geosam2.sources.base import Raw, Source
from geosam2.sources.redact import Redactor

log = logging.getLogger(__name__)

Dataset = Any  # rasterio's DatasetReader or WarpedVRT: rasterio has no types

# How GDAL talks to a web server.
_REMOTE = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no listing, no look for side-car files
    "GDAL_INGESTED_BYTES_AT_OPEN": "65536",  # the whole header of a usual COG in one go
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_HTTP_MULTIPLEX": "YES",
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_TIMEOUT": "60",
    "CPL_VSIL_CURL_CACHE_SIZE": str(128 * 2**20),  # shared by the handles of all threads
    "VSI_CACHE": "TRUE",
}
# The same for a file that may have overviews or a mask in a file beside it: looked for by name.
_BESIDE = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".tif,.tiff,.TIF,.ovr,.msk,.aux.xml,.tfw,.wld",
}
_CHUNK = 512  # pixels along the side of what one thread decodes at a time
_GIVEN = 64 * 2**20
"""Bytes that a local file gives before it is opened anew: GDAL keeps what it decoded of an open
one, up to 5 % of all memory. Counted is what was asked for: of long strips many more are decoded,
which the next frames beside want again."""
_MAX_STATS = 1000  # files of a VRT whose sizes and times go into the signature


@dataclass(frozen=True)
class _Base:
    """A stored raster that a level is read from."""

    overview: int | None
    """Number of the overview, None for the file itself."""
    step: int
    """Stored pixels along the side of one pixel of the level."""
    extent: Window
    """Lattice pixels of the stored raster."""
    block: tuple[int, int]
    """(height, width) of its blocks."""


class _Overview(NamedTuple):
    """A reduced copy of the raster in the file."""

    factor: int
    shape: tuple[int, int]
    block: tuple[int, int]


@dataclass(frozen=True)
class _Facts:
    """What opening a file tells; everything else follows from it."""

    crs: CRS | None
    shape: tuple[int, int]
    corner: tuple[float, float]
    resolution: tuple[float, float]
    flipped: bool
    """Rows are stored from south to north."""
    warp: dict[str, Any] | None
    """Arguments of the WarpedVRT that makes the file north-up, if it is not."""
    overviews: tuple[_Overview, ...]
    dtype: np.dtype[Any]
    nodata: float | None
    mask: str
    """"all", "nodata" (from the values), "mask" or "alpha"."""
    palette: NDArray[np.uint8] | None
    """(256, 4) red, green, blue, alpha."""
    compression: str
    driver: str
    block: tuple[int, int]
    """(height, width) of a stored block."""
    files: tuple[str, ...]


class GeoTiffSource(Source):
    """Reader of anything that rasterio opens.

    Args:
        path: A file, "http(s)://", "s3://" or one of GDAL's "/vsi" paths.
        bands: See `choose_bands`.
        crs: What the CRS is where the file does not say; a file that says is believed.
        pixel_coordinates: Ignore the place on the map: x = column, y = -row, as QGIS shows
            pictures without a place.

    Raises:
        SourceError: If it cannot be opened.
        GeoreferenceError: If it has no usable place on the map.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        bands: Bands | None = None,
        crs: Any = None,
        pixel_coordinates: bool = False,
    ) -> None:
        self._path = os.fspath(path)
        self._door = Redactor.of(self._path)
        self._door.guard_logs()
        self.location = self._door.public
        self.name = Path(self.location.partition("?")[0]).name or self.location
        self._remote = is_remote(self._path)
        self.workers = 4 if self._remote else 1
        self._pool = _Pool()
        self._beside = False
        if self._remote:
            with self._translated("cannot open"), self._env(), self._open_file(None) as dataset:
                self._beside = _has_company(dataset, self._path)
        with self._translated("cannot open"), self._env(), self._open_file(None) as dataset:
            facts = _facts(dataset, crs, pixel_coordinates, self.location)
            self.choice = _choose(dataset, bands, facts)
            overviews = _overviews(self, dataset) if facts.warp is None else ()
            self._content = _content_marks(dataset)
        self._facts = facts = replace(facts, overviews=overviews)
        self.crs, self.nodata, self.dtype = facts.crs, facts.nodata, facts.dtype
        self.levels, self._bases = _levels(facts)
        self._signature: str | None = None

    # -- what it is

    @property
    def signature(self) -> str:
        """See `Source.signature`: path, size and time of a file; URL and ETag of a remote one."""
        if self._signature is None:
            how = f"{self._facts.crs}|{self._facts.warp}|{self._facts.corner}"
            what = _remote_marks(self._path) if self._remote else _file_marks(self._facts.files)
            text = "|".join((self._door.identity, *(what or (self._content,)), how))
            self._signature = hashlib.sha256(text.encode()).hexdigest()
        return self._signature

    def stored(self, level: Level) -> bool:
        """See `Source.stored`."""
        return self._bases[level.index].step == 1 and self._facts.warp is None

    def chunk(self, level: Level) -> tuple[int, int] | None:
        """See `Source.chunk`: blocks of a tiled file, several of them if they are small."""
        base, facts = self._bases[level.index], self._facts
        height, width = base.block
        tiled = facts.driver in ("GTiff", "COG") and max(base.block) <= 2 * _CHUNK
        if self._remote or not tiled or facts.flipped or not self.stored(level):
            return None  # requests for neighbouring blocks are better made together
        return height * max(1, _CHUNK // height), width * max(1, _CHUNK // width)

    def requests(self, level: Level, windows: Iterable[Window]) -> int:
        """See `Source.requests`: one a stored block; GDAL asks for neighbours together."""
        if not self._remote:
            return 0
        base = self._bases[level.index]
        return sum(_blocks_under(base, window) for window in windows)

    def details(self) -> dict[str, Any]:
        """See `Source.details`."""
        facts = self._facts
        return {
            "driver": facts.driver,
            "compression": facts.compression,
            "block": list(facts.block),
            "overviews": [overview.factor for overview in facts.overviews],
            "mask": facts.mask,
            "palette": facts.palette is not None,
            "warped_to_north_up": facts.warp is not None,
        }

    # -- reading

    def read(self, level: Level, window: Window) -> Raw:
        """See `Source.read`."""
        base = self._bases[level.index]
        with self._translated("cannot read"), self._env(), self._handle(base.overview) as handle:
            raw = self._read_base(handle.dataset, base, window)
            handle.given += 0 if self._remote else raw.pixels.nbytes
        return raw if self._facts.palette is None else _expand(raw, self._facts.palette)

    def _read_base(self, dataset: Dataset, base: _Base, window: Window) -> Raw:
        extent, step = base.extent, base.step
        rows = _spans(window.row, window.height, extent.row, extent.height, step)
        cols = _spans(window.col, window.width, extent.col, extent.width, step)
        pieces = [[self._read_piece(dataset, base, r, c) for c in cols] for r in rows]
        if len(rows) == len(cols) == 1:
            return pieces[0][0]
        return Raw(
            np.concatenate([np.concatenate([p.pixels for p in row], 2) for row in pieces], 1),
            np.concatenate([np.concatenate([p.valid for p in row], 1) for row in pieces], 0),
        )

    def _read_piece(self, dataset: Dataset, base: _Base, rows: _Span, cols: _Span) -> Raw:
        """Stored pixels of a piece, averaged where a level's pixel is larger than a stored one."""
        start = base.extent.height - rows.start - rows.length if self._facts.flipped else rows.start
        how: dict[str, Any] = {"window": FileWindow(cols.start, start, cols.length, rows.length)}
        shape = (rows.count, cols.count)
        averaged = shape != (rows.length, cols.length)
        if averaged:
            # colours of a palette and complex values have no meaningful mean
            plain = self._facts.palette is None and self.dtype.kind != "c"
            how["resampling"] = Resampling.average if plain else Resampling.nearest
        indices = list(self.choice.indices)
        pixels = dataset.read(indices, out_shape=(len(indices), *shape), **how)
        valid = self._valid(dataset, pixels, shape, averaged, how)
        if pixels.dtype.kind == "c":
            pixels = np.abs(pixels)
        if self._facts.flipped:
            pixels, valid = pixels[:, ::-1], valid[::-1]
        return Raw(pixels, valid)

    def _valid(
        self,
        dataset: Dataset,
        pixels: NDArray[Any],
        shape: tuple[int, int],
        averaged: bool,
        how: dict[str, Any],
    ) -> NDArray[np.bool_]:
        """A pixel has data if any of the bands has (rasterio's `dataset_mask`).

        An averaged one has data if any of the stored pixels has; GDAL averages those alone.
        """
        kind = self._facts.mask
        if kind == "all":
            valid = np.ones(shape, bool)
        elif kind == "alpha":
            # not the mask that GDAL makes of it: that scales 16-bit alpha of 0 .. 255 to nothing
            valid = dataset.read(_alpha_of(dataset), out_shape=shape, **how) != 0
        elif kind == "nodata" and not averaged and pixels.dtype.kind in "iu":
            valid = (pixels != self.nodata).any(axis=0)  # the values are here: no second read
        else:
            indices = list(self.choice.indices) if kind == "nodata" else [1]
            masks = dataset.read_masks(indices, out_shape=(len(indices), *shape), **how)
            valid = (masks > 0).any(axis=0)
        if pixels.dtype.kind in "fc":
            valid &= np.isfinite(pixels).any(axis=0)
        return valid

    # -- handles

    @contextmanager
    def _handle(self, overview: int | None) -> Iterator[_Handle]:
        """A dataset that no other thread uses meanwhile."""
        with self._pool.borrow(overview, self._open_any) as handle:
            yield handle

    def _open_any(self, overview: int | None) -> _Handle:
        stack = ExitStack()
        # not `with`: that binds a GDAL environment to this thread, and another one may close it
        dataset = self._open_file(overview)
        stack.callback(dataset.close)
        if self._facts.warp is not None:
            dataset = WarpedVRT(dataset, **self._facts.warp)
            stack.callback(dataset.close)
        return _Handle(dataset, stack)

    def _open_file(self, overview: int | None) -> Dataset:
        options = {} if overview is None else {"OVERVIEW_LEVEL": overview}
        with warnings.catch_warnings():
            # said better by ourselves, as an error that names the remedy
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return rasterio.open(self._path, **options)

    @contextmanager
    def _env(self) -> Iterator[None]:
        remote = _REMOTE | _BESIDE if self._beside else _REMOTE
        with rasterio.Env(**(remote if self._remote else {})):  # without, GDAL warns on stderr
            yield

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """rasterio's errors as ours. The cause is dropped: it would show the URL with its key."""
        try:
            yield
        except (RasterioError, CPLE_BaseError) as error:
            said = self._door.clean(error).replace(self._path, self.location)
            reason = said.rstrip(". ")
            raise SourceError(f"{what} {self.location}: {reason}. {_remedy(reason)}") from None
        except UnicodeEncodeError:
            raise SourceError(
                f"{what} {self.location}: its name is no UTF-8. Rename the file"
            ) from None

    def release(self) -> None:
        """See `Source.release`: GDAL keeps blocks of open files."""
        self._pool.close()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but open files, which another process opens for itself."""
        return {key: value for key, value in self.__dict__.items() if key != "_pool"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pool = _Pool()
        self._door.guard_logs()


@dataclass
class _Handle:
    """An open dataset. Not frozen: it counts what it gave."""

    dataset: Dataset
    stack: ExitStack
    """Closes it."""
    given: int = 0
    """Bytes of pixels."""


class _Pool:
    """Open datasets that wait for a reader; a handle of GDAL's is for one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[int | None, list[_Handle]] = {}
        self._process = os.getpid()

    @contextmanager
    def borrow(self, key: int | None, opener: Callable[[int | None], _Handle]) -> Iterator[_Handle]:
        with self._lock:
            if self._process != os.getpid():
                # after a fork: the file positions are shared with the parent, so open anew
                self._idle, self._process = {}, os.getpid()
            waiting = self._idle.setdefault(key, [])
            handle = waiting.pop() if waiting else None
        handle = handle or opener(key)
        try:
            yield handle
        except BaseException:
            handle.stack.close()  # a handle that failed may stay in a bad state
            raise
        if handle.given > _GIVEN:
            handle.stack.close()
            return
        with self._lock:
            self._idle.setdefault(key, []).append(handle)

    def close(self) -> None:
        """Close what nobody reads at the moment."""
        with self._lock:
            handles = [handle for waiting in self._idle.values() for handle in waiting]
            self._idle = {}
        for handle in handles:
            handle.stack.close()


@dataclass(frozen=True)
class _Span:
    """Stored pixels `start` .. `start + length` along one axis become `count` pixels."""

    start: int
    length: int
    count: int


def _spans(first: int, count: int, base_first: int, base_count: int, step: int) -> list[_Span]:
    """Split a level's pixels first .. first + count into pieces of equal cells.

    All cells are whole but the first and the last of the raster, which the raster's edge may cut.

    >>> spans = _spans(0, 4, 3, 11, 4)  # stored pixels 3..13 in cells of 4: 1 + 4 + 4 + 2
    >>> [(s.start, s.length, s.count) for s in spans]
    [(0, 1, 1), (1, 8, 2), (9, 2, 1)]
    """

    def cut(i: int) -> int:
        return min(max((first + i) * step - base_first, 0), base_count)

    lead = count > 1 and cut(1) - cut(0) < step
    trail = count > 1 and cut(count) - cut(count - 1) < step
    marks = sorted({0, int(lead), count - int(trail), count})
    return [_Span(cut(a), cut(b) - cut(a), b - a) for a, b in pairwise(marks)]


def _blocks_under(base: _Base, window: Window) -> int:
    """Stored blocks that a window of the level meets."""
    extent, step, (height, width) = base.extent, base.step, base.block
    wanted = Window(*(v * step for v in window)) & extent
    if wanted.empty:
        return 0
    top, left = wanted.row - extent.row, wanted.col - extent.col
    down = (top + wanted.height - 1) // height - top // height + 1
    return down * ((left + wanted.width - 1) // width - left // width + 1)


def is_remote(path: str) -> bool:
    """True if reading the path goes over a network."""
    return path.startswith(("http://", "https://", "s3://", "/vsicurl", "/vsis3"))


def _has_company(dataset: Dataset, path: str) -> bool:
    """True if files beside a remote one are worth asking for: a COG is complete in itself."""
    complete = dataset.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG" or dataset.overviews(1)
    named = path.lower().endswith((".tif", ".tiff"))  # with a query nobody knows their names
    return dataset.driver == "GTiff" and named and not complete


def _facts(dataset: Dataset, crs: Any, pixel_coordinates: bool, location: str) -> _Facts:
    place = _place(dataset, crs, pixel_coordinates, location)
    if dataset.count == 0:
        raise SourceError(f"{location} has no bands of its own: name one of its subdatasets")
    return _Facts(
        **place,
        overviews=(),
        dtype=np.dtype(_DTYPES.get(dataset.dtypes[0], dataset.dtypes[0])),
        nodata=dataset.nodata,
        mask="alpha" if (place["warp"] or {}).get("add_alpha") else _mask_kind(dataset),
        palette=_palette(dataset),
        compression=str(dataset.compression.value) if dataset.compression else "none",
        driver=dataset.driver,
        block=dataset.block_shapes[0],
        files=tuple(dataset.files[:_MAX_STATS]),
    )


def _mask_kind(dataset: Dataset) -> str:
    flags = dataset.mask_flag_enums[0]
    if ColorInterp.alpha in dataset.colorinterp:
        return "alpha"
    if MaskFlags.all_valid in flags:
        return "all"
    return "mask" if MaskFlags.per_dataset in flags else "nodata"


def _alpha_of(dataset: Dataset) -> int:
    """Number of the alpha band; the one that a WarpedVRT adds is the last."""
    colours = dataset.colorinterp
    number = colours.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in colours else dataset.count
    return int(number)


_DTYPES = {"complex_int16": "complex64"}  # rasterio's own names


def _place(dataset: Dataset, crs: Any, pixel_coordinates: bool, location: str) -> dict[str, Any]:
    """Where the pixels are: CRS, north-up corner and cells, and how to get there."""
    if pixel_coordinates:
        return _as_pixels(dataset)
    where = _crs_of(dataset, crs, location)
    transform = dataset.transform
    if where is None:
        raise GeoreferenceError(
            f"{location} has no {_what_is_missing(dataset)}, so its polygons would have no place "
            "on the map: pass crs= if you know it, or pixel_coordinates=True to work in pixels"
        )
    gcps, _ = dataset.gcps
    if transform.is_identity and (gcps or dataset.rpcs):
        return _through_gcps(dataset, where, location)
    if transform.is_identity:
        raise GeoreferenceError(
            f"{location} does not say where its pixels lie: add a world file or georeference it "
            "(gdal_translate -a_ullr), or pass pixel_coordinates=True to work in pixels"
        )
    if transform.b or transform.d or transform.a < 0:
        return _warped(dataset, where, where)
    top = transform.f if transform.e < 0 else transform.f + dataset.height * transform.e
    return {
        "crs": where,
        "shape": dataset.shape,
        "corner": (transform.c, top),
        "resolution": (transform.a, abs(transform.e)),
        "flipped": transform.e > 0,
        "warp": None,
    }


def _as_pixels(dataset: Dataset) -> dict[str, Any]:
    return {
        "crs": None,
        "shape": dataset.shape,
        "corner": (0.0, 0.0),
        "resolution": (1.0, 1.0),
        "flipped": False,
        "warp": None,
    }


def _what_is_missing(dataset: Dataset) -> str:
    return "georeference" if dataset.transform.is_identity else "coordinate reference system"


def _crs_of(dataset: Dataset, given: Any, location: str) -> CRS | None:
    stored = dataset.crs or dataset.gcps[1]
    if stored:
        if given is not None and CRS.from_wkt(stored.to_wkt()) != crs_from(given):
            raise GeoreferenceError(
                f"{location} says that its CRS is {stored.to_string()[:60]}, not {given}: "
                "leave crs= out, or correct the file (gdal_edit.py -a_srs)"
            )
        return CRS.from_wkt(stored.to_wkt())
    if dataset.rpcs and given is None:
        return CRS.from_epsg(4326)
    return None if given is None else crs_from(given)


def _through_gcps(dataset: Dataset, where: CRS, location: str) -> dict[str, Any]:
    """A picture tied down by ground control points is warped to the local UTM zone."""
    points, _ = dataset.gcps
    if not points:
        raise GeoreferenceError(
            f"{location} has only RPCs, which need the height of the ground: orthorectify it first "
            "(gdalwarp -rpc -to RPC_DEM=dem.tif in.tif out.tif)"
        )
    if len(points) < 3:
        raise GeoreferenceError(f"{location} has {len(points)} ground control points: 3 are needed")
    target = where
    if where.is_geographic:
        lon = float(np.mean([p.x for p in points]))
        lat = float(np.mean([p.y for p in points]))
        target = CRS.from_wkt(OdcCRS.utm(lon, lat).to_wkt())
    return _warped(dataset, where, target)


def _warped(dataset: Dataset, where: CRS, target: CRS) -> dict[str, Any]:
    """North-up grid of about the same cells, through GDAL's warper with nearest pixels."""
    options: dict[str, Any] = {"src_crs": where.to_wkt(), "crs": target.to_wkt()}
    if MaskFlags.all_valid in dataset.mask_flag_enums[0]:
        options["add_alpha"] = True  # the corners that the turned picture leaves empty
    if dataset.transform.a < 0 and dataset.transform.is_rectilinear:
        # from east to west: GDAL by itself would leave it so
        (west, east), (south, north) = (sorted(dataset.bounds[i::2]) for i in (0, 1))
        options["height"], options["width"] = height, width = dataset.shape
        options["transform"] = from_bounds(west, south, east, north, width, height)
    else:
        # GDAL else approximates the place of a pixel in a way that depends on the window
        options["tolerance"] = 0
    with WarpedVRT(dataset, **options) as vrt:
        transform, shape = vrt.transform, vrt.shape
    return {
        "crs": target,
        "shape": shape,
        "corner": (transform.c, transform.f),
        "resolution": (transform.a, -transform.e),
        "flipped": False,
        "warp": options,
    }


def _palette(dataset: Dataset) -> NDArray[np.uint8] | None:
    if ColorInterp.palette not in dataset.colorinterp:
        return None
    table = np.zeros((256, 4), np.uint8)
    for value, colour in dataset.colormap(
        dataset.colorinterp.index(ColorInterp.palette) + 1
    ).items():
        if value < 256:
            table[value] = colour
    return table


def _expand(raw: Raw, palette: NDArray[np.uint8]) -> Raw:
    colours = palette[raw.pixels[0]]
    return Raw(np.moveaxis(colours[..., :3], -1, 0), raw.valid & (colours[..., 3] > 0))


def _choose(dataset: Dataset, bands: Bands | None, facts: _Facts) -> BandChoice:
    colours = [c.name for c in dataset.colorinterp]
    return choose_bands(dataset.count, dataset.descriptions, colours, bands)


def _overviews(source: GeoTiffSource, dataset: Dataset) -> tuple[_Overview, ...]:
    factors = dataset.overviews(source.choice.indices[0])
    found = []
    for number, factor in enumerate(factors):
        with source._open_file(number) as overview:
            found.append(_Overview(factor, overview.shape, overview.block_shapes[0]))
    return tuple(found)


def _levels(facts: _Facts) -> tuple[tuple[Level, ...], tuple[_Base, ...]]:
    """The ladder 1, 2, 4 ... of a file: an overview where one is near, else a decimation."""
    stored = [_Overview(1, facts.shape, facts.block), *facts.overviews]
    crs = None if facts.crs is None else crs_text(facts.crs)
    left, top = facts.corner
    middle = (
        left + facts.shape[1] * facts.resolution[0] / 2,
        top - facts.shape[0] * facts.resolution[1] / 2,
    )
    gsd = ground_size(facts.crs, *middle, facts.resolution)
    native = Level.at_corner(left, top, facts.resolution, facts.shape, crs=crs, gsd=gsd)
    levels: list[Level] = []
    bases: list[_Base] = []
    largest = 16 * _power(stored[-1].factor)
    steps = sorted({*ladder(facts.shape, largest=largest), *(_power(one.factor) for one in stored)})
    for wanted in steps:
        number = max(i for i, one in enumerate(stored) if one.factor <= wanted * 1.25)
        factor, shape, block = stored[number]
        step = max(1, round(wanted / factor))
        cells = (
            facts.resolution[0] * facts.shape[1] / shape[1],
            facts.resolution[1] * facts.shape[0] / shape[0],
        )
        base = Level.at_corner(left, top, cells, shape, crs=crs)
        base = replace(base, gsd=gsd * base.cell_size / native.cell_size)
        level = base.decimated(step, len(levels), factor)
        if levels and level.label == levels[-1].label:
            continue
        levels.append(level)
        bases.append(_Base(number - 1 if number else None, step, base.extent, block))
    return tuple(levels), tuple(bases)


def _power(factor: int) -> int:
    """Nearest power of two."""
    return 1 << round(math.log2(factor))


def _content_marks(dataset: Dataset) -> str:
    """What the header tells of the content, for files that have neither time nor ETag."""
    (height, width), (tall, wide) = dataset.shape, dataset.block_shapes[0]
    rows, cols = (height - 1) // tall, (width - 1) // wide
    marks = [
        dataset.get_tag_item(f"BLOCK_{what}_{x}_{y}", "TIFF", bidx=1)
        for what in ("OFFSET", "SIZE")
        for x, y in ((0, 0), (cols, rows))
    ]
    return f"{dataset.profile}|{marks}"


def _file_marks(files: tuple[str, ...]) -> tuple[str, ...]:
    marks = []
    for name in files:
        try:
            stat = Path(name).stat()
        except OSError:
            continue
        marks.append(f"{Path(name).resolve()}|{stat.st_size}|{stat.st_mtime_ns}")
    return tuple(marks)


def _remote_marks(path: str) -> tuple[str, ...]:
    """ETag and size; none where the server does not answer an ordinary request (s3)."""
    import httpx

    if not path.startswith(("http://", "https://")):
        return ()
    try:
        # not HEAD: a signed URL is signed for GET
        answer = httpx.get(path, headers={"Range": "bytes=0-0"}, timeout=20, follow_redirects=True)
    except httpx.HTTPError:
        return ()
    names = ("etag", "last-modified", "content-range")
    marks = tuple(answer.headers[name] for name in names if name in answer.headers)
    return marks if answer.is_success else ()


def _remedy(reason: str) -> str:
    """What a person can do about it."""
    lower = reason.lower()
    if "403" in lower or "401" in lower:
        return "The server refuses: check the key in the URL, or whether a signed URL has expired."
    if "404" in lower or "no such file" in lower or "does not exist" in lower:
        return "Check the spelling of the path."
    if "not recognized" in lower:
        return "It is no raster that GDAL knows; the download may be incomplete."
    if "read" in lower or "tiff" in lower or "block" in lower:
        return "The file seems to be damaged or cut off: fetch it again, or run gdalinfo on it."
    return "Try gdalinfo on it."
