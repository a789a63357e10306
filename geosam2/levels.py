"""The ladder of resolutions: what a scene can be read at, and which level a question needs.

Every level is a lattice of square-ish cells that covers the whole plane of the CRS. Its anchor is
the cell corner nearest the CRS origin, so a cell has the same (row, col) whatever part of a scene
was opened. The sub-cell phase is the file's own: pixels are never warped onto a rounder grid.
"""

from __future__ import annotations

import math
import warnings
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from affine import Affine
from odc.geo.crs import CRS as OdcCRS  # noqa: N811 - pyproj has a CRS too
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError, ProjError

from geosam2.errors import GeoreferenceError, LevelError, ResolutionWarning

if TYPE_CHECKING:
    from geosam2.scene import Scene

Strategy = Literal["nearest", "finer", "coarser"]

CELL = 16
"""Pixels along one side of a lattice cell: the stride of the network's coarse features."""

# Where a phase is cut when a coordinate is split into whole cells + phase. Common phases are 0
# (pixel corners on multiples), 1/2 (pixel centres on multiples), 1/4, 1/3 ... and rounding noise
# must not move any of them across the cut: 1/sqrt(2) is far from all of them.
_PHASE_CUT = 1 - math.sqrt(0.5)

EARTH_RADIUS = 6378137.0
ENLARGED = (8, 4, 2)
"""How many times native pixels may be enlarged, finest first."""
MERCATOR_LIMIT = 85.0511287798066
_WORLD = 2 * math.pi * EARTH_RADIUS


class Window(NamedTuple):
    """Rectangle of lattice pixels; rows grow southwards, half open at the far ends."""

    row: int
    col: int
    height: int
    width: int

    @property
    def row_stop(self) -> int:
        """First row below the window."""
        return self.row + self.height

    @property
    def col_stop(self) -> int:
        """First column right of the window."""
        return self.col + self.width

    @property
    def empty(self) -> bool:
        """True if no pixel is inside."""
        return self.height <= 0 or self.width <= 0

    def __and__(self, other: Window) -> Window:
        """Common part; `empty` if there is none.

        >>> Window(0, 0, 4, 4) & Window(2, -1, 9, 3)
        Window(row=2, col=0, height=2, width=2)
        """
        row, col = max(self.row, other.row), max(self.col, other.col)
        height = min(self.row_stop, other.row_stop) - row
        width = min(self.col_stop, other.col_stop) - col
        return Window(row, col, max(height, 0), max(width, 0))

    def coarsened(self, factor: int) -> Window:
        """Smallest window of cells `factor` times as large that covers this one.

        >>> Window(-3, 5, 6, 3).coarsened(4)
        Window(row=-1, col=1, height=2, width=1)
        """
        row, col = self.row // factor, self.col // factor
        height = -(-self.row_stop // factor) - row
        width = -(-self.col_stop // factor) - col
        return Window(row, col, height, width)


@dataclass(frozen=True)
class Level:
    """One step of a scene's resolution ladder.

    >>> level = Level.at_corner(300000.0, 4100040.0, (10.0, 10.0), (512, 768), crs="EPSG:32612")
    >>> level.extent
    Window(row=-410004, col=30000, height=512, width=768)
    >>> level.geobox(Window(-410004, 30000, 16, 16)).affine.c
    300000.0
    """

    index: int
    """Position in `Scene.levels`; 0 is the finest."""
    label: str
    """"native", "1/4" or "z17"."""
    resolution: tuple[float, float]
    """Width and height of a pixel in CRS units, both > 0."""
    anchor: tuple[float, float]
    """CRS coordinates of the corner of lattice pixel (0, 0), within a pixel of the CRS origin."""
    extent: Window
    """Lattice pixels that the source has at this level."""
    gsd: float = field(compare=False)  # the rest decides it, and nan is equal to nothing
    """Metres on the ground per pixel at the centre of the source; nan without a CRS."""
    crs: str | None
    """CRS as text (authority code or WKT); None for pixel coordinates."""

    @classmethod
    def at_corner(
        cls,
        left: float,
        top: float,
        resolution: tuple[float, float],
        shape: tuple[int, int],
        *,
        crs: str | None,
        index: int = 0,
        label: str = "native",
        gsd: float = math.nan,
    ) -> Level:
        """Level of a north-up raster of `shape` (H, W) whose top-left corner is (left, top)."""
        width, height = resolution
        col, row = whole_cells(left, width), whole_cells(-top, height)
        anchor = (left - col * width, top + row * height)
        return cls(index, label, resolution, anchor, Window(row, col, *shape), gsd, crs)

    def decimated(self, step: int, index: int, factor: int = 1) -> Level:
        """Level of `step` x `step` of this one's pixels; this one is 1/`factor` of native."""
        total = factor * step
        return replace(
            self,
            index=index,
            label="native" if total == 1 else f"1/{total}",
            resolution=(self.resolution[0] * step, self.resolution[1] * step),
            extent=self.extent.coarsened(step),
            gsd=self.gsd * step,
        )

    @property
    def cell_size(self) -> float:
        """Side of a square of the same area as a pixel, in CRS units."""
        return math.sqrt(self.resolution[0] * self.resolution[1])

    @property
    def transform(self) -> Affine:
        """(col, row) of the lattice -> (x, y) of the CRS."""
        return Affine(self.resolution[0], 0, self.anchor[0], 0, -self.resolution[1], self.anchor[1])

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) of `extent`."""
        return self.bounds_of(self.extent)

    def bounds_of(self, window: Window) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) of a window, in CRS units."""
        (x0, y0), (width, height) = self.anchor, self.resolution
        left, right = x0 + window.col * width, x0 + window.col_stop * width
        top, bottom = y0 - window.row * height, y0 - window.row_stop * height
        return left, bottom, right, top

    def geobox(self, window: Window) -> GeoBox:
        """Grid of a window."""
        left, _, _, top = self.bounds_of(window)
        moved = Affine(self.resolution[0], 0, left, 0, -self.resolution[1], top)
        return GeoBox((window.height, window.width), moved, odc_crs(self.crs))

    def pixel_at(self, x: float, y: float) -> tuple[float, float]:
        """(row, col) of a point, whole numbers at pixel corners."""
        col = (x - self.anchor[0]) / self.resolution[0]
        row = (self.anchor[1] - y) / self.resolution[1]
        return row, col

    def window_of(self, bounds: tuple[float, float, float, float], slack: float = 1e-3) -> Window:
        """Smallest window that covers (left, bottom, right, top), but for `slack` of a pixel."""
        top, left = self.pixel_at(bounds[0], bounds[3])
        bottom, right = self.pixel_at(bounds[2], bounds[1])
        row, col = math.floor(top + slack), math.floor(left + slack)
        return Window(row, col, math.ceil(bottom - slack) - row, math.ceil(right - slack) - col)

    def locate(self, geobox: GeoBox) -> Window | None:
        """Window of a grid that lies on this lattice, or None if it does not."""
        a = geobox.affine
        if a.b or a.d or not self._same_cells(a.a, -a.e, max(*geobox.shape, 1)):
            return None
        row, col = self.pixel_at(a.c, a.f)
        if abs(row - round(row)) > 1e-3 or abs(col - round(col)) > 1e-3:
            return None
        return Window(round(row), round(col), *geobox.shape)

    def _same_cells(self, width: float, height: float, count: int) -> bool:
        """True if `count` pixels of that size drift from ours by less than a thousandth."""
        drift = max(abs(width / self.resolution[0] - 1), abs(height / self.resolution[1] - 1))
        return drift * count < 1e-3


def enlarged(native: Level, factor: int) -> Level:
    """A level finer than the source, `factor` pixels for one; its pixels are interpolated.

    >>> level = Level.at_corner(0.0, 640.0, (10.0, 10.0), (64, 64), crs="EPSG:32612")
    >>> finer = enlarged(level, 4)
    >>> finer.label, finer.index, finer.resolution, finer.extent == Window(-256, 0, 256, 256)
    ('x4', -2, (2.5, 2.5), True)
    """
    return replace(
        native,
        index=-round(math.log2(factor)),
        label=f"x{factor}",
        resolution=(native.resolution[0] / factor, native.resolution[1] / factor),
        extent=Window(*(side * factor for side in native.extent)),
        gsd=native.gsd / factor,
    )


def whole_cells(coordinate: float, cell: float) -> int:
    """Whole cells between the CRS origin and a cell corner, stable under rounding noise.

    >>> whole_cells(15.0, 30.0), whole_cells(45.0 - 1e-9, 30.0), whole_cells(45.0 + 1e-9, 30.0)
    (0, 1, 1)
    """
    return math.floor(coordinate / cell + _PHASE_CUT)


@lru_cache(maxsize=64)
def odc_crs(text: str | None) -> OdcCRS | None:
    """odc-geo's CRS object; parsing one costs as much as reading a small frame."""
    return None if text is None else OdcCRS(text)


def crs_text(crs: CRS) -> str:
    """Short if the CRS carries the code of an authority, exact otherwise."""
    known = crs.to_json_dict().get("id")  # `to_authority` searches the whole database: 0.3 s
    if known:
        text = f"{known['authority']}:{known['code']}"
        with suppress(CRSError):
            if CRS.from_user_input(text) == crs:
                return text
    return crs.to_wkt()


def ladder(shape: tuple[int, int], smallest: int = 256, largest: int = 16) -> list[int]:
    """Decimations 1, 2, 4 ... until the longer side of `shape` would fall below `smallest`.

    No more than `largest`: one frame of 512 px at 1/16 already reads 67 million stored pixels.

    >>> ladder((900, 1100))
    [1, 2, 4]
    """
    steps = [1]
    while max(shape) / (steps[-1] * 2) >= smallest and steps[-1] < largest:
        steps.append(steps[-1] * 2)
    return steps


def ground_size(crs: CRS | None, x: float, y: float, resolution: tuple[float, float]) -> float:
    """Metres on the ground along the side of a pixel at (x, y); nan without a CRS.

    In Web Mercator this is the cell size times the cosine of the latitude (the convention of web
    maps, on the sphere); elsewhere it is measured along the geodesic in x and in y.

    >>> round(ground_size(CRS(3857), 0, 8399737.89, (0.6, 0.6)), 3)
    0.3
    """
    if crs is None:
        return math.nan
    if is_web_mercator(crs):
        return math.sqrt(resolution[0] * resolution[1]) / math.cosh(y / EARTH_RADIUS)
    half_x, half_y = resolution[0] / 2, resolution[1] / 2
    to_degrees, geod = _to_geodetic(crs.to_wkt()), crs.get_geod()
    if to_degrees is not None and geod is not None:
        xs, ys = [x - half_x, x + half_x, x, x], [y, y, y - half_y, y + half_y]
        lon, lat = to_degrees.transform(xs, ys)
        if all(map(math.isfinite, [*lon, *lat])):
            _, _, metres = geod.inv(lon[0::2], lat[0::2], lon[1::2], lat[1::2])
            return math.sqrt(metres[0] * metres[1])
    # the centre is off the Earth (a geostationary full disc has corners in space), or the CRS is a
    # local one that nobody placed on it: nominal units
    factor = float(crs.axis_info[0].unit_conversion_factor) * (
        EARTH_RADIUS if crs.is_geographic else 1.0
    )
    return math.sqrt(resolution[0] * resolution[1]) * factor


@lru_cache(maxsize=64)
def _to_geodetic(wkt: str) -> Transformer | None:
    """To longitude and latitude; None for a local CRS, which has no place on the Earth."""
    crs = CRS.from_wkt(wkt)
    try:
        return Transformer.from_crs(crs, crs.geodetic_crs or crs, always_xy=True)
    except ProjError:
        return None


@lru_cache(maxsize=16)
def to_degrees(crs: CRS) -> Transformer | None:
    """To longitude and latitude in WGS 84; None for a local CRS: it has no place on the Earth."""
    try:
        return Transformer.from_crs(crs, 4326, always_xy=True)
    except ProjError:
        return None


def crs_from(given: Any, what: str = "crs=") -> CRS:
    """A CRS from whatever a person or a file says.

    Raises:
        GeoreferenceError: If it is not known.
    """
    try:
        return CRS.from_user_input(given)
    except CRSError as error:
        raise GeoreferenceError(
            f"{what}{str(given)[:60]!r} is not known: use for example 'EPSG:4326' (longitude, "
            "latitude) or WKT"
        ) from error


def whole_turn(crs: CRS | None) -> float | None:
    """How far apart the same place is in x, once round the Earth; None in most projections.

    >>> whole_turn(CRS(4326)), whole_turn(CRS(32633))
    (360.0, None)
    """
    if crs is None:
        return None
    if is_web_mercator(crs):
        return _WORLD
    if not crs.is_geographic:
        return None
    return round(2 * math.pi / crs.axis_info[0].unit_conversion_factor, 9)


def is_web_mercator(crs: CRS | None) -> bool:
    """True for EPSG:3857 under any of its names (900913, ESRI:102100 ...).

    >>> is_web_mercator(CRS(3857)), is_web_mercator(CRS(3395))
    (True, False)
    """
    if crs is None or crs.coordinate_operation is None:
        return False
    name = crs.coordinate_operation.method_name.lower()
    return "pseudo mercator" in name or "pseudo-mercator" in name or "auxiliary_sphere" in name


def level_for(
    scene: Scene,
    *,
    gsd: float | None = None,
    object_size: float | None = None,
    strategy: Strategy = "nearest",
    latitude: float | None = None,
    frame_size: int = 512,
) -> Level:
    """Level of a scene for a ground sample distance or for objects of a known size.

    A distance finer than the source's takes a level of enlarged pixels, of `ENLARGED`.

    Args:
        scene: What will be read.
        gsd: Metres per pixel wanted on the ground, > 0.
        object_size: Metres across the object; it will cover about a tenth of a frame's area,
            the middle (on a log scale) of the 2 to 50 % that the network is at ease with.
        strategy: "finer" never loses detail, "coarser" never reads more than asked.
        latitude: Degrees north where it is needed; counts in Web Mercator and in geographic
            CRSs. Default: the centre of the scene.
        frame_size: Pixels along a frame's side, for `object_size`.

    Raises:
        LevelError: If not exactly one of `gsd` and `object_size` is given, if it is not positive,
            or if the scene has no CRS and so no metres.

    Warns:
        ResolutionWarning: If more detail is asked for than the source holds.
    """
    if (gsd is None) == (object_size is None):
        raise LevelError(f"give either gsd= or object_size=, got gsd={gsd}, {object_size=}")
    wanted = gsd if gsd is not None else (object_size or 0.0) / (frame_size * math.sqrt(0.1))
    _check_gsd(wanted)
    sizes = [gsd_at(scene, level, latitude) for level in scene.levels]
    if math.isnan(sizes[0]):
        raise LevelError(
            f"{scene.name} has no CRS, so pixels have no size in metres: choose a level by number"
        )
    if gsd is None or gsd >= sizes[0] * 0.99:
        return scene.levels[_pick(sizes, wanted, strategy)]
    ladder = (*scene.enlarged_levels, scene.levels[0])
    level = ladder[_pick([sizes[0] / n for n in (*ENLARGED, 1)], gsd, strategy)]
    warnings.warn(
        f"{gsd:g} m per pixel is finer than {scene.name} holds ({sizes[0]:g} m): looking at its "
        + ("finest level" if level.index == 0 else f"pixels enlarged {2**-level.index} times"),
        ResolutionWarning,
        stacklevel=2,
    )
    return level


def level_from(scene: Scene, level: Any = "auto", gsd: float | None = None) -> Any:
    """The level that a person means: "auto", a number, a label ("native", "x2", "z17") or a gsd.

    Raises:
        LevelError: If the scene has no such level, or both `level` and `gsd` are given.
    """
    if gsd is not None:
        if level not in (None, "auto"):
            raise LevelError(f"give a level ({level}) or a gsd ({gsd} m), not both")
        return level_for(scene, gsd=gsd)
    if level in (None, "auto"):
        return "auto"
    return scene.level(level)


def one_level(
    scene: Scene, level: Level | int | str | None = None, gsd: float | None = None
) -> Level:
    """`level_from` for what is looked for everywhere, at one level: the native one by default.

    Raises:
        LevelError: As there, or if "auto" is asked for.
    """
    if level == "auto":
        raise LevelError("everything is looked for at one level: give its number or label")
    return cast(Level, level_from(scene, 0 if level is None and gsd is None else level, gsd))


def gsd_at(scene: Scene, level: Level, latitude: float | None = None) -> float:
    """Metres per pixel of a level, at a latitude or at the centre of the working area."""
    crs = scene.crs
    if latitude is None or crs is None:
        return scene.gsd * level.cell_size / scene.cell_size
    if is_web_mercator(crs):
        _check_latitude(latitude)
        return level.cell_size * math.cos(math.radians(latitude))
    if crs.is_geographic:
        left, _, right, _ = scene.bounds
        return ground_size(crs, (left + right) / 2, latitude, level.resolution)
    return gsd_at(scene, level)


def zoom_for_gsd(
    gsd: float, latitude: float, *, strategy: Strategy = "nearest", tile_size: int = 256
) -> int:
    """Web Mercator zoom whose pixels come closest to `gsd` on the ground.

    Args:
        gsd: Metres per pixel on the ground, > 0.
        latitude: Degrees north; the projection stretches by 1 / cos(latitude).
        strategy: "finer" never loses detail, "coarser" never fetches more than asked.
        tile_size: Pixels along a tile's side.

    Raises:
        LevelError: If `gsd` is not positive or |latitude| exceeds 85.0511.

    References:
        OGC 17-083r4, WebMercatorQuad; ZOOM_LEVEL_STRATEGY of GDAL's COG driver.

    >>> zoom_for_gsd(0.6, latitude=0.0), zoom_for_gsd(0.3, latitude=60.0)
    (18, 18)
    """
    _check_gsd(gsd)
    _check_latitude(latitude)
    sizes = [
        zoom_cell_size(z, tile_size) * math.cos(math.radians(latitude)) for z in range(30, -1, -1)
    ]
    return 30 - _pick(sizes, gsd, strategy)


def zoom_cell_size(zoom: int, tile_size: int = 256) -> float:
    """Web Mercator units per pixel at a zoom.

    >>> round(zoom_cell_size(0), 3)
    156543.034
    """
    return _WORLD / (tile_size << zoom)


def _check_gsd(gsd: float) -> None:
    if not (gsd > 0 and math.isfinite(gsd)):
        raise LevelError(f"metres per pixel must be a positive number, got {gsd}")


def _check_latitude(latitude: float) -> None:
    if not abs(latitude) <= MERCATOR_LIMIT:
        raise LevelError(
            f"latitude {latitude} is outside Web Mercator (-85.0511 to 85.0511 degrees)"
        )


def _pick(sizes: list[float], wanted: float, strategy: Strategy) -> int:
    """Index into `sizes` (finest first) by strategy; clamps at both ends."""
    # a percent of slack: 0.597 m is what a person means by "0.6 m or finer"
    if strategy == "finer":
        return max((i for i, size in enumerate(sizes) if size <= wanted * 1.01), default=0)
    if strategy == "coarser":
        last = len(sizes) - 1
        return min((i for i, size in enumerate(sizes) if size >= wanted * 0.99), default=last)
    if strategy != "nearest":
        raise LevelError(f'strategy is "nearest", "finer" or "coarser", got {strategy!r}')
    return min(range(len(sizes)), key=lambda i: abs(math.log(sizes[i] / wanted)))
