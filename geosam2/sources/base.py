"""What every reader offers to a Scene."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS

from geosam2.levels import Level, Window

if TYPE_CHECKING:
    from geosam2.sources.bands import BandChoice


class Raw(NamedTuple):
    """Pixels as stored."""

    pixels: NDArray[Any]
    """(B, H, W) of the source's own dtype, B = 1 or 3."""
    valid: NDArray[np.bool_]
    """(H, W), True where there is data."""


class Picture(NamedTuple):
    """Pixels as the network sees them."""

    pixels: NDArray[np.uint8]
    """(3, H, W), 0 where not valid."""
    valid: NDArray[np.bool_]
    """(H, W), True where there is data."""


def blank(window: Window) -> Picture:
    """A picture without data."""
    shape = (window.height, window.width)
    return Picture(np.zeros((3, *shape), np.uint8), np.zeros(shape, bool))


def paste(tile: Picture, place: Window, picture: Picture, window: Window) -> None:
    """Copy what a tile at `place` shows of `window` into the picture of that window."""
    common = place & window
    if common.empty:
        return
    source, target = _slices(common, place), _slices(common, window)
    picture.pixels[(slice(None), *target)] = tile.pixels[(slice(None), *source)]
    picture.valid[target] = tile.valid[source]


def _slices(part: Window, window: Window) -> tuple[slice, slice]:
    """Where a part of a window lies in its array."""
    row, col = part.row - window.row, part.col - window.col
    return slice(row, row + part.height), slice(col, col + part.width)


class Source(ABC):
    """A place that imagery comes from; immutable to the outside, picklable, safe in threads."""

    name: str
    """Short, for people: a file name or a host."""
    location: str
    """Where the imagery is, without keys or passwords."""
    crs: CRS | None
    """None for a picture in pixel coordinates."""
    levels: tuple[Level, ...]
    """The ladder, finest first."""
    dtype: np.dtype[Any]
    """Of the stored bands."""
    nodata: float | None
    """The value that means no data, if there is one."""
    choice: BandChoice
    """Which bands become red, green and blue."""

    workers: int = 1
    """Frames read at a time. One for files: two handles would decode shared blocks twice."""

    def chunk(self, level: Level) -> tuple[int, int] | None:
        """(height, width) of pieces that are best read whole, counted from the corner of the
        extent; None if any window is as good."""
        return None

    def workers_for(self, level: Level) -> int:
        """Threads that are worth it at a level."""
        return self.workers if self.chunk(level) is None else min(4, os.cpu_count() or 1)

    @property
    @abstractmethod
    def signature(self) -> str:
        """Hash that changes when the imagery does, the same in every process; no secrets."""

    def reach(self, level: Level) -> Window:
        """Where pixels can be read: `level.extent`, or more on a map that goes round the Earth."""
        return level.extent

    @abstractmethod
    def read(self, level: Level, window: Window) -> Raw:
        """Pixels of a window that lies within `reach(level)`.

        Raises:
            SourceError: If they cannot be read.
        """

    def stored(self, level: Level) -> bool:
        """True if a level is read as stored, False if it is averaged while reading."""
        return True

    def requests(self, level: Level, windows: Iterable[Window]) -> int:
        """How many network requests reading these windows takes at most; 0 for local imagery."""
        return 0

    def check_requests(  # noqa: B027 - nothing to refuse by default
        self, level: Level, windows: Iterable[Window]
    ) -> None:
        """Refuse, before anything is fetched, what takes more requests than the caller allows."""

    def details(self) -> dict[str, Any]:
        """Further facts for `geosam2 info`; JSON types only."""
        return {}

    def release(self) -> None:  # noqa: B027 - nothing is kept by default
        """Give back memory that grows with what was read; others may be reading meanwhile."""

    def close(self) -> None:
        """Release files and connections; they are opened again when needed."""
        self.release()


SAMPLE_SIDE = 2048
"""Longest side, in pixels, of imagery that is read whole for statistics."""

_WINDOWS_PER_SIDE = 8
_WINDOW_SIDE = 256


def sample_windows(extent: Window) -> Iterator[Window]:
    """Windows that stand for a whole level: all of it if it is small, else 8 x 8 spread evenly.

    They depend on nothing but the extent of the source, so a stretch is the same for everyone.
    """
    if max(extent.height, extent.width) <= SAMPLE_SIDE:
        yield extent
        return
    for row, height in _spread(extent.row, extent.height):
        for col, width in _spread(extent.col, extent.width):
            yield Window(row, col, height, width)


def _spread(start: int, length: int) -> list[tuple[int, int]]:
    """Up to 8 pieces of up to 256 pixels, evenly over a side."""
    side = min(length, _WINDOW_SIDE)
    count = max(1, min(_WINDOWS_PER_SIDE, length // side))
    step = length / count
    return [(start + int((i + 0.5) * step - side / 2), side) for i in range(count)]
