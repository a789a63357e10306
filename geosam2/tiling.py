"""FrameGrid: frames of one size on one lattice.

Frame (r, c) starts at lattice pixel (r * stride, c * stride), counted from the anchor of the level
next to the CRS origin. Which frames exist depends on the part of the scene that is worked on; what
a frame holds does not. Around each frame's centre lies its core, stride x stride pixels; the cores
tile the plane, so every point belongs to exactly one frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import shapely
from odc.geo.geobox import GeoBox

from geosam2.errors import GeoreferenceError, LevelError
from geosam2.levels import CELL, Level, Window

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from geosam2.scene import Scene

Order = Literal["rows", "snake", "spiral"]


class FrameIndex(NamedTuple):
    """Place of a frame in its grid; rows grow southwards, both may be negative."""

    row: int
    col: int


@dataclass(frozen=True)
class FrameGrid:
    """The frames of a level that cover a part of a scene.

    >>> level = Level.at_corner(0.0, 10240.0, (10.0, 10.0), (1024, 1024), crs="EPSG:32612")
    >>> grid = FrameGrid(level, level.extent, frame_size=512, overlap=128)
    >>> grid.shape, grid.origin(FrameIndex(-3, 0))
    ((3, 4), (-72, 0))
    """

    level: Level
    """Resolution and lattice."""
    extent: Window
    """Lattice pixels that are worked on."""
    frame_size: int = 512
    """Pixels along the side of a frame, a multiple of 16."""
    overlap: int = 128
    """Pixels that neighbours share, a multiple of 16."""

    def __post_init__(self) -> None:
        if self.frame_size % CELL or self.overlap % CELL or self.frame_size <= 0:
            raise LevelError(
                f"frame size and overlap must be multiples of {CELL} pixels, "
                f"got {self.frame_size} and {self.overlap}"
            )
        if not 0 <= self.overlap < self.frame_size:
            raise LevelError(
                f"the overlap must be less than the frame size, "
                f"got {self.overlap} of {self.frame_size}"
            )
        if self.extent.empty:
            raise LevelError(f"there are no pixels to cover in {self.extent}")

    @classmethod
    def of(
        cls,
        scene: Scene,
        level: Level | int | str = 0,
        *,
        frame_size: int = 512,
        overlap: int = 128,
    ) -> FrameGrid:
        """Frames that cover a scene's working area at a level (or at a level's number)."""
        level = scene.level(level)
        return cls(level, scene.window(level), frame_size, overlap)

    # -- which frames there are

    @property
    def stride(self) -> int:
        """Pixels from one frame's start to the next one's."""
        return self.frame_size - self.overlap

    @property
    def first(self) -> FrameIndex:
        """North-western frame."""
        return FrameIndex(self._core_of(self.extent.row), self._core_of(self.extent.col))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of frames."""
        first = self.first
        last_row = self._core_of(self.extent.row_stop - 1)
        last_col = self._core_of(self.extent.col_stop - 1)
        return last_row - first.row + 1, last_col - first.col + 1

    def __len__(self) -> int:
        rows, cols = self.shape
        return rows * cols

    def __contains__(self, index: object) -> bool:
        if not (isinstance(index, tuple) and len(index) == 2):
            return False
        first, (rows, cols) = self.first, self.shape
        return bool(0 <= index[0] - first.row < rows and 0 <= index[1] - first.col < cols)

    def __iter__(self) -> Iterator[FrameIndex]:
        return self.indices()

    def indices(
        self, order: Order = "rows", start: FrameIndex | None = None
    ) -> Iterator[FrameIndex]:
        """All frames, one after the other.

        Args:
            order: "rows" from north to south; "snake" turns round at the end of each row, so that
                each frame touches the one before; "spiral" from `start` outwards.
            start: Where the spiral begins; the middle of the grid by default.
        """
        if order == "spiral":
            yield from self._spiral(start or self._middle())
            return
        if order not in ("rows", "snake"):
            raise LevelError(f'order is "rows", "snake" or "spiral", got {order!r}')
        first, (rows, cols) = self.first, self.shape
        for r in range(rows):
            turn = order == "snake" and r % 2 == 1
            for c in reversed(range(cols)) if turn else range(cols):
                yield FrameIndex(first.row + r, first.col + c)

    def _middle(self) -> FrameIndex:
        first, (rows, cols) = self.first, self.shape
        return FrameIndex(first.row + rows // 2, first.col + cols // 2)

    def _spiral(self, start: FrameIndex) -> Iterator[FrameIndex]:
        """Square rings around `start`, each clockwise from its north-western corner."""
        first, (rows, cols) = self.first, self.shape
        reach = max(
            start.row - first.row,
            first.row + rows - 1 - start.row,
            start.col - first.col,
            first.col + cols - 1 - start.col,
        )
        for radius in range(reach + 1):
            yield from (index for index in _ring(start, radius) if index in self)

    # -- where they are

    @property
    def covered(self) -> Window:
        """Lattice pixels of all frames together."""
        row, col, _, _ = self.window(self.first)
        rows, cols = self.shape
        return Window(
            row, col, rows * self.stride + self.overlap, cols * self.stride + self.overlap
        )

    def window(self, index: FrameIndex) -> Window:
        """Lattice pixels of a frame."""
        row, col = index
        return Window(row * self.stride, col * self.stride, self.frame_size, self.frame_size)

    def core(self, index: FrameIndex) -> Window:
        """The part of a frame that is nearer to its centre than to any other frame's."""
        row, col, _, _ = self.window(index)
        margin = self.overlap // 2
        return Window(row + margin, col + margin, self.stride, self.stride)

    def origin(self, index: FrameIndex) -> tuple[int, int]:
        """(row, col) of a frame's first lattice cell (stride 16)."""
        row, col, _, _ = self.window(index)
        return row // CELL, col // CELL

    def geobox(self, index: FrameIndex) -> GeoBox:
        """Grid of a frame."""
        return self.level.geobox(self.window(index))

    def bounds(self, index: FrameIndex) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) of a frame."""
        return self.level.bounds_of(self.window(index))

    def index_at(self, x: float, y: float) -> FrameIndex:
        """Frame whose centre is nearest to a point, in the scene's CRS.

        Raises:
            GeoreferenceError: If the point is outside the working area.
        """
        row, col = self.level.pixel_at(x, y)
        extent = self.extent
        if not (extent.row <= row <= extent.row_stop and extent.col <= col <= extent.col_stop):
            left, bottom, right, top = self.level.bounds_of(extent)
            raise GeoreferenceError(
                f"({x:g}, {y:g}) is outside the working area "
                f"({left:g}, {bottom:g}, {right:g}, {top:g}); is it in the scene's CRS?"
            )
        # a point on the far border belongs to the last pixel
        last_row, last_col = extent.row_stop - 1, extent.col_stop - 1
        return FrameIndex(
            self._core_of(min(int(np.floor(row)), last_row)),
            self._core_of(min(int(np.floor(col)), last_col)),
        )

    def centred(self, x: float, y: float) -> GeoBox:
        """A frame around a point, on lattice cells but between the frames of the grid."""
        row, col = self.level.pixel_at(x, y)
        half = self.frame_size / 2
        start = (round((row - half) / CELL) * CELL, round((col - half) / CELL) * CELL)
        return self.level.geobox(Window(*start, self.frame_size, self.frame_size))

    def neighbours(self, index: FrameIndex, *, diagonal: bool = False) -> list[FrameIndex]:
        """Frames beside this one (4, or 8 with `diagonal`), clockwise from the north."""
        steps = [(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]
        found = [FrameIndex(index.row + r, index.col + c) for r, c in steps[:: 2 - diagonal]]
        return [neighbour for neighbour in found if neighbour in self]

    def crossing(self, geometry: BaseGeometry) -> list[FrameIndex]:
        """Frames whose core meets a geometry in the scene's CRS, row by row.

        Give a polygon for the frames that cover it, its `.boundary` for those that its edge
        crosses.
        """
        if geometry.is_empty:
            return []
        touched = self.level.window_of(geometry.bounds) & self.extent
        # a point or a vertical line has no width: count the pixel that it lies in
        if touched.empty:
            touched = self._pixels_under(geometry)
        if touched.empty:
            return []
        rows = range(self._core_of(touched.row), self._core_of(touched.row_stop - 1) + 1)
        cols = range(self._core_of(touched.col), self._core_of(touched.col_stop - 1) + 1)
        indices = [FrameIndex(r, c) for r in rows for c in cols]
        boxes = shapely.box(*np.array([self.level.bounds_of(self.core(i)) for i in indices]).T)
        shapely.prepare(geometry)
        meets = shapely.intersects(geometry, boxes)
        return [index for index, hit in zip(indices, meets, strict=True) if hit]

    def _pixels_under(self, geometry: BaseGeometry) -> Window:
        left, bottom, right, top = geometry.bounds
        window = self.level.window_of((left, bottom, right, top))
        return Window(*window[:2], max(window.height, 1), max(window.width, 1)) & self.extent

    def _core_of(self, pixel: int) -> int:
        """Row (or column) of the frame whose core holds a lattice row (or column)."""
        return (pixel - self.overlap // 2) // self.stride


def _ring(centre: FrameIndex, radius: int) -> Iterator[FrameIndex]:
    if radius == 0:
        yield centre
        return
    (row, col), side = centre, range(-radius, radius)
    yield from (FrameIndex(row - radius, col + i) for i in side)
    yield from (FrameIndex(row + i, col + radius) for i in side)
    yield from (FrameIndex(row + radius, col - i) for i in side)
    yield from (FrameIndex(row - i, col - radius) for i in side)
