"""Scene: what can be read, whatever it comes from; Frame: one window as the network sees it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import CRS
from pyproj.exceptions import ProjError

from geosam2.enlarging import around, enlarged_part
from geosam2.errors import GeoreferenceError, LevelError, SourceError
from geosam2.levels import (
    CELL,
    EARTH_RADIUS,
    ENLARGED,
    MERCATOR_LIMIT,
    Level,
    Window,
    crs_from,
    enlarged,
    ground_size,
    is_web_mercator,
    odc_crs,
)
from geosam2.prefetch import frames_ahead
from geosam2.sources.bands import IDENTITY, Bands, Stretch, percentile_stretch
from geosam2.sources.base import Picture, Source, blank, paste, sample_windows

if TYPE_CHECKING:
    from geosam2.sources.fetch import Service
    from geosam2.sources.xyz import OnError
    from geosam2.tiling import FrameGrid, FrameIndex, Order

Bounds = tuple[float, float, float, float]
StretchLike = (
    Stretch | Literal["percentile", "none"] | tuple[float, float] | list[tuple[float, float]]
)


@dataclass(frozen=True, eq=False)
class Frame:
    """One window of a scene, ready for the network."""

    pixels: NDArray[np.uint8]
    """(3, H, W) red, green, blue; 0 where not valid."""
    valid: NDArray[np.bool_]
    """(H, W), True = data; False beyond the edge of the scene."""
    geobox: GeoBox
    """Where the pixels are."""
    level: Level | None = None
    """Level that was read; None if the pixels were warped to another grid."""
    corner: tuple[int, int] | None = None
    """(row, col) lattice pixel of the top-left pixel; None off the lattice."""
    index: FrameIndex | None = None
    """Place in the grid, if the frame was read through one."""

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.valid.shape[0], self.valid.shape[1]

    @property
    def origin(self) -> tuple[int, int]:
        """(row, col) of the first lattice cell (stride 16).

        Raises:
            LevelError: If the frame does not start on a lattice cell.
        """
        if self.corner is None or self.corner[0] % CELL or self.corner[1] % CELL:
            raise LevelError(
                f"a frame at lattice pixel {self.corner} has no lattice origin: frames of a "
                f"FrameGrid start on multiples of {CELL} pixels"
            )
        return self.corner[0] // CELL, self.corner[1] // CELL


@dataclass(frozen=True, eq=False)
class Scene:
    """Imagery with a place on the map: lazy, picklable, safe to read in threads.

    Made by `open_scene`. The working area chooses which frames are visited; pixels around it, the
    lattice and the stretch stay those of the whole source, so that a result does not depend on it.
    """

    reader: Source
    """Where pixels come from."""
    area: Bounds | None = None
    """(left, bottom, right, top) worked on; None = all of it."""
    asked_stretch: StretchLike | None = None
    """As given to `open_scene`."""

    def __post_init__(self) -> None:
        if self.area is not None and self.window(self.levels[0]).empty:
            raise GeoreferenceError(
                f"bounds {_short(self.area)} do not touch {self.name} "
                f"({_short(self.levels[0].bounds)}); are they in its CRS? Pass bounds_crs= if not"
            )

    # -- what it is

    @property
    def name(self) -> str:
        """Short name, for people."""
        return self.reader.name

    @property
    def source(self) -> str:
        """Where the imagery is; keys and passwords are left out."""
        return self.reader.location

    @property
    def crs(self) -> CRS | None:
        """Coordinate reference system; None for a picture in pixel coordinates."""
        return self.reader.crs

    @property
    def levels(self) -> tuple[Level, ...]:
        """Resolutions that can be read, finest first."""
        return self.reader.levels

    @property
    def bounds(self) -> Bounds:
        """(left, bottom, right, top) of the working area, in CRS units."""
        native = self.levels[0]
        return native.bounds if self.area is None else native.bounds_of(self.window(native))

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the working area in native pixels."""
        window = self.window(self.levels[0])
        return window.height, window.width

    @property
    def cell_size(self) -> float:
        """CRS units per native pixel."""
        return self.levels[0].cell_size

    @property
    def gsd(self) -> float:
        """Metres on the ground per native pixel, at the centre of `bounds`; nan without a CRS."""
        left, bottom, right, top = self.bounds
        middle = (left + right) / 2, (bottom + top) / 2
        return ground_size(self.crs, *middle, self.levels[0].resolution)

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands that become red, green and blue (or grey)."""
        return self.reader.choice.names

    @property
    def nodata(self) -> float | None:
        """Stored value that means no data."""
        return self.reader.nodata

    @property
    def geobox(self) -> GeoBox:
        """Native grid of the working area."""
        native = self.levels[0]
        return native.geobox(self.window(native))

    @cached_property
    def stretch(self) -> Stretch:
        """The one line per band from stored values to 0 .. 255; read from overviews if needed."""
        asked = self.asked_stretch
        if isinstance(asked, Stretch):
            return asked
        if asked == "none" or (asked is None and self.reader.dtype == np.uint8):
            return IDENTITY
        if asked is None or asked == "percentile":
            return self._measure()
        return _given_stretch(asked)

    @property
    def signature(self) -> str:
        """Hash of content, bands and stretch: the same in every process; holds no secrets."""
        import hashlib

        parts = (self.reader.signature, self.reader.choice.indices, self.stretch)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _measure(self) -> Stretch:
        """2nd to 98th percentile per band over the coarsest stored level that shows texture."""
        stored = [one for one in self.levels if self.reader.stored(one)] or [self.levels[0]]
        level = next((one for one in reversed(stored) if max(one.extent[2:]) >= 512), stored[0])
        raws = [self.reader.read(level, window) for window in sample_windows(level.extent)]
        count = raws[0].pixels.shape[0]
        samples = [np.concatenate([raw.pixels[b][raw.valid] for raw in raws]) for b in range(count)]
        return percentile_stretch(samples)

    # -- where

    def level(self, which: Level | int | str) -> Level:
        """A level by number (below 0: enlarged pixels), by label, or one of the scene's as it is.

        Raises:
            LevelError: If the scene has no such level.
        """
        known = (*self.levels, *self.enlarged_levels)
        for one in known:
            if which == one or str(which) in (one.label, str(one.index)):
                return one
        if isinstance(which, Level):
            raise LevelError(f"level {which.label} belongs to another scene than {self.name}")
        names = ", ".join(f"{one.index} ({one.label})" for one in self.levels)
        larger = ", ".join(one.label for one in reversed(self.enlarged_levels))
        raise LevelError(
            f"there is no level {which!r}: {self.name} has {names}, and {larger} with enlarged "
            "pixels"
        )

    @cached_property
    def enlarged_levels(self) -> tuple[Level, ...]:
        """Levels finer than the source, finest first: its pixels interpolated."""
        return tuple(enlarged(self.levels[0], factor) for factor in ENLARGED)

    def check_requests(self, level: Level, windows: Iterable[Window]) -> None:
        """Refuse what a service would be asked too much for; see `Source.check_requests`.

        Raises:
            LevelError: If reading the windows takes more tiles than `max_tiles` allows.
        """
        if level.index < 0:
            factor, level = 2**-level.index, self.levels[0]
            windows = (window.coarsened(factor) for window in windows)
        self.reader.check_requests(level, windows)

    def window(self, level: Level) -> Window:
        """Lattice pixels of the working area at a level."""
        if self.area is None:
            return level.extent
        return level.window_of(self.area) & self.reader.reach(level)

    def within(self, bounds: Any, *, crs: Any = None) -> Scene:
        """The same scene with another working area; see `open_scene` for `bounds`."""
        return replace(self, area=_bounds_in(bounds, crs, self.crs))

    # -- reading

    def read(self, geobox: GeoBox, *, index: FrameIndex | None = None) -> Frame:
        """Pixels of a grid.

        A grid on the lattice of one of the levels is read as stored (of `enlarged_levels`,
        interpolated), padded with valid=False beyond the edge of the source. Any other grid, in any
        CRS, is warped (bilinear) from the level that is just fine enough.

        Raises:
            SourceError: If the imagery cannot be read.
            GeoreferenceError: If the scene and the grid have no common CRS.
        """
        if self._same_crs(geobox):
            for level in (*self.levels, *self.enlarged_levels):
                window = level.locate(geobox)
                if window is not None:
                    return self._read_window(level, window, geobox, index)
        from geosam2.sources.warp import read_warped

        return read_warped(self, geobox)

    def read_window(self, level: Level, window: Window) -> Frame:
        """Pixels of a window of one of `levels` or `enlarged_levels`.

        Raises:
            SourceError: If the imagery cannot be read.
        """
        return self._read_window(level, window, level.geobox(window), None)

    def read_frame(self, grid: FrameGrid, index: FrameIndex) -> Frame:
        """One frame of a grid."""
        return self._read_window(grid.level, grid.window(index), grid.geobox(index), index)

    def frames(
        self,
        grid: FrameGrid,
        order: Order | Iterable[FrameIndex] = "rows",
        *,
        workers: int | None = None,
        ahead: int = 4,
    ) -> Iterator[Frame]:
        """Frames of a grid in order, read ahead of the consumer.

        Threads are started by the first frame that is asked for, and have ended when the iterator
        is exhausted, closed or forgotten.

        Args:
            grid: Which frames there are.
            order: See `FrameGrid.indices`, or the frames themselves.
            workers: Reading threads; by default one per processor for tiled files, but no more
                than four; one for other files; four over a network.
            ahead: Frames that are read before they are asked for, at most; bounds the memory.

        Raises:
            SourceError: If a frame cannot be read, when its turn comes; or at once, if a service
                would be asked for more tiles than `max_tiles` allows.
        """
        explicit = None if isinstance(order, str) else list(order)
        wanted = grid.indices(order) if isinstance(order, str) else explicit  # type: ignore[arg-type]
        chosen = [grid.covered] if explicit is None else [grid.window(i) for i in explicit]
        self.check_requests(grid.level, chosen)
        stored = grid.level if grid.level.index >= 0 else self.levels[0]
        threads = self.reader.workers_for(stored) if workers is None else workers
        return frames_ahead(self, grid, iter(wanted or ()), threads, ahead)

    def thumbnail(self, size: int = 384) -> Frame:
        """The working area at the finest level whose longer side is at most twice `size`."""
        fitting = [one for one in self.levels if max(self.window(one)[2:]) <= 2 * size]
        level = fitting[0] if fitting else self.levels[-1]
        window = self.window(level)
        step = -(-max(window.height, window.width) // size)
        frame = self.read_window(level, window)
        pixels, valid = frame.pixels[:, ::step, ::step], frame.valid[::step, ::step]
        return Frame(pixels, valid, frame.geobox.zoom_to(valid.shape))

    def thumbnail_png(self, size: int = 384) -> bytes:
        """The thumbnail as a PNG file, transparent where there is no data."""
        import io

        from PIL import Image

        frame = self.thumbnail(size)
        alpha = np.where(frame.valid, 255, 0).astype(np.uint8)
        image = Image.fromarray(np.dstack([*frame.pixels, alpha]))
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()

    def _repr_html_(self) -> str:
        """Table, thumbnail and footprint for notebooks."""
        from geosam2.sources.html import scene_html

        return scene_html(self)

    def _read_window(
        self, level: Level, window: Window, geobox: GeoBox, index: FrameIndex | None
    ) -> Frame:
        picture = self.draw(level, window)
        return Frame(*picture, geobox, level, (window.row, window.col), index)

    def draw(self, level: Level, window: Window) -> Picture:
        """Stretched pixels of a window of a level and where they are valid; no frame around them.

        Raises:
            SourceError: If the imagery cannot be read.
        """
        if level.index < 0:
            factor = 2**-level.index
            place = around(window, factor)
            return enlarged_part(self.draw(self.levels[0], place), place, window, factor)
        inside = window & self.reader.reach(level)
        if inside.empty:
            return blank(window)
        raw = self.reader.read(level, inside)
        pixels = self.stretch.apply(raw.pixels)
        if not raw.valid.all():
            # what is no data is black, whatever the file stores under its mask
            pixels = pixels * raw.valid
        drawn = Picture(pixels, raw.valid)
        if inside == window:
            return drawn
        picture = blank(window)
        paste(drawn, inside, picture, window)
        return picture

    def _same_crs(self, geobox: GeoBox) -> bool:
        return bool(geobox.crs == odc_crs(self.levels[0].crs))

    def release(self) -> None:
        """Give back memory that grows with what was read; nothing is lost, others may be reading.

        GDAL keeps decoded blocks of an open file, up to 5 % of the machine's memory.
        """
        self.reader.release()

    def close(self) -> None:
        """Release files and connections; they are opened again when needed."""
        self.reader.close()

    def __repr__(self) -> str:
        height, width = self.shape
        place = ", pixel coordinates"
        if self.crs is not None:
            place = f" at {self.gsd:.3g} m, {self.crs.name}"
        return (
            f"<Scene {self.name}: {height} x {width} px{place}, "
            f"bands {', '.join(self.bands)}, {len(self.levels)} levels>"
        )


def open_scene(
    x: Any,
    bands: Bands | None = None,
    stretch: StretchLike | None = None,
    bounds: Any = None,
    *,
    bounds_crs: Any = None,
    crs: Any = None,
    pixel_coordinates: bool = False,
    min_zoom: int | None = None,
    max_zoom: int | None = None,
    tile_size: int | None = None,
    on_error: OnError = "raise",
    max_tiles: int = 4096,
    service: Service | None = None,
) -> Scene:
    """Open imagery: nothing but a header is read.

    Never show a pickled scene around: it holds the keys of its URL, or a worker could not read.

    Args:
        x: A path or URL of a raster that GDAL reads (GeoTIFF, COG, VRT ...); tiles as a template
            ("https://.../{z}/{x}/{y}.png", {-y} from the south), a folder of z/x/y files, MBTiles
            or PMTiles; an xarray.DataArray; or a Scene.
        bands: One band (grey) or three (red, green, blue), by number from 1 or by name. Default:
            what the file says, else the usual order for the number of bands.
        stretch: None: 8-bit values as stored, others between the 2nd and 98th percentile.
            "percentile" for 8 bit too, "none" never; (low, high), one such pair per band, or a
            `Stretch`.
        bounds: Working area (left, bottom, right, top) in the scene's CRS, or anything of odc-geo
            with a bounding box and a CRS. It says where prompts may lie and what is looked at
            first; an object that reaches out of it is followed and drawn whole.
        bounds_crs: CRS of `bounds`, if it is another one.
        crs: CRS of imagery that does not say its own.
        pixel_coordinates: Open a picture without a place on the map; x = column, y = -row.
        min_zoom: Tiles: coarsest zoom.
        max_zoom: Tiles: finest zoom, the native level; 19 if the source does not say.
        tile_size: Tiles: pixels along a side; 256 for a web service.
        on_error: Tiles: "nodata" leaves a hole where a tile cannot be had, instead of an error.
        max_tiles: Tiles: the most that one call may ask a web service for; more is refused before
            anything is fetched.
        service: Tiles: connections, pace, headers, retries and cache of a web service.

    Raises:
        SourceError: If it cannot be opened; the message names the remedy.
        GeoreferenceError: If it has no usable place on the map.
    """
    if isinstance(x, Scene):
        return x if bounds is None else x.within(bounds, crs=bounds_crs)
    reader: Source
    if type(x).__name__ == "DataArray":  # xarray is imported only by those who have one
        from geosam2.sources.array import ArraySource

        reader = ArraySource(x, bands=bands, crs=crs, pixel_coordinates=pixel_coordinates)
    elif not isinstance(x, str | os.PathLike):
        raise SourceError(
            f"cannot open {type(x).__name__}: give a path, a URL, a tile template or an "
            "xarray.DataArray"
        )
    elif _is_tiled(os.fspath(x)):
        from geosam2.sources.xyz import XyzSource

        reader = XyzSource(
            os.fspath(x),
            min_zoom=min_zoom,
            max_zoom=max_zoom,
            tile_size=tile_size,
            on_error=on_error,
            max_tiles=max_tiles,
            service=service,
        )
    else:
        from geosam2.sources.geotiff import GeoTiffSource

        reader = GeoTiffSource(x, bands=bands, crs=crs, pixel_coordinates=pixel_coordinates)
    area = None if bounds is None else _bounds_in(bounds, bounds_crs, reader.crs)
    return Scene(reader, area, stretch)


def _is_tiled(path: str) -> bool:
    """True for templates, tile archives and folders; everything else is GDAL's."""
    bare = path.partition("?")[0].lower()
    return "{" in path or bare.endswith((".mbtiles", ".pmtiles")) or Path(path).is_dir()


def _given_stretch(asked: Any) -> Stretch:
    try:
        pairs = [tuple(asked)] if np.ndim(asked) == 1 else [tuple(pair) for pair in asked]
        low, high = zip(*((float(a), float(b)) for a, b in pairs), strict=True)
    except (TypeError, ValueError):
        raise SourceError(
            f'stretch= is "percentile", "none", (low, high) or a pair per band, got {asked!r}'
        ) from None
    return Stretch(tuple(low), tuple(high))


def _bounds_in(bounds: Any, given: Any, crs: CRS | None) -> Bounds:
    """(left, bottom, right, top) in the scene's CRS."""
    box = getattr(bounds, "boundingbox", bounds)
    known = given if given is not None else getattr(box, "crs", None)
    try:
        left, bottom, right, top = (float(v) for v in getattr(box, "bbox", box))
    except (TypeError, ValueError):
        raise GeoreferenceError(
            f"bounds {bounds!r}: give four numbers, (left, bottom, right, top)"
        ) from None
    known = None if known is None else crs_from(str(known), "bounds_crs=")
    if known is not None and known.is_geographic and is_web_mercator(crs):
        return _on_web_map(left, bottom, right, top)
    if not (left < right and bottom < top):
        raise GeoreferenceError(
            f"bounds are (left, bottom, right, top) with left < right and bottom < top, "
            f"got {_short((left, bottom, right, top))}"
        )
    if known is None:
        return left, bottom, right, top
    if crs is None:
        raise GeoreferenceError("bounds of a picture in pixel coordinates have no CRS")
    from pyproj import Transformer

    try:
        moved = Transformer.from_crs(known, crs, always_xy=True)
        return moved.transform_bounds(left, bottom, right, top, densify_pts=21)
    except ProjError as error:
        raise GeoreferenceError(
            f"bounds {_short((left, bottom, right, top))} in {known.name} have no place in "
            f"{crs.name} ({error}): pass bounds_crs= as it is, or bounds in the scene's CRS"
        ) from error


def _on_web_map(west: float, south: float, east: float, north: float) -> Bounds:
    """Degrees to Web Mercator; west > east goes over the antimeridian, as in GeoJSON."""
    import mercantile

    if east <= west:
        east += 360
    _, bottom = mercantile.xy(0, max(south, -MERCATOR_LIMIT))
    _, top = mercantile.xy(0, min(north, MERCATOR_LIMIT))
    return math.radians(west) * EARTH_RADIUS, bottom, math.radians(east) * EARTH_RADIUS, top


def _short(bounds: Bounds) -> str:
    return ", ".join(f"{v:g}" for v in bounds)
