"""Stack: scenes of one place on one grid, each with a date."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geosam2.dates import chronological, date_in, repeated
from geosam2.errors import GeoreferenceError, OptionError, SourceError
from geosam2.scene import Scene, open_scene
from geosam2.zoom import ladder

if TYPE_CHECKING:
    import xarray

    from geosam2.levels import Level

TIMES = ("time", "date", "datetime", "year", "t")
"""What the dimension of dates is called in an xarray.DataArray."""


@dataclass(frozen=True)
class Stack:
    """Scenes of one place, oldest first if their dates can be compared."""

    dates: tuple[str, ...]
    """Names of the dates, ISO 8601 where they are known: "2020-03-17", "2020"."""
    scenes: tuple[Scene, ...]
    """One each; their extents may differ, their grids may not."""

    def __post_init__(self) -> None:
        """Refuse what cannot be followed from date to date."""
        if len(self.scenes) < 2:
            raise OptionError(f"a stack of {len(self.scenes)} dates: give at least two scenes")
        if len(self.dates) != len(self.scenes):
            raise OptionError(f"{len(self.dates)} dates= for {len(self.scenes)} scenes: one each")
        if (twice := repeated(self.dates)) is not None:
            raise OptionError(f"two scenes are of {twice!r}: tell them apart with dates=")
        for scene in self.scenes[1:]:
            self._check_grid(scene)

    def _check_grid(self, other: Scene) -> None:
        first = self.scenes[0]
        if first.crs != other.crs or not _same_grid(first.levels[0], other.levels[0]):
            raise GeoreferenceError(
                f"{other.name} does not lie on the grid of {first.name} ({_grid(other)}; "
                f"{_grid(first)}): bring all dates to one grid first, with gdalwarp -t_srs -tr "
                "-tap or rioxarray's reproject_match"
            )

    def __len__(self) -> int:
        return len(self.scenes)

    def number(self, which: int | str) -> int:
        """Place of a date, by its name or by a number from 0 (from -1 backwards).

        Raises:
            OptionError: If there is no such date.
        """
        if isinstance(which, str) and which in self.dates:
            return self.dates.index(which)
        if isinstance(which, int) and -len(self) <= which < len(self):
            return which % len(self)
        raise OptionError(f"there is no date {which!r}: the stack has {', '.join(self.dates)}")

    @property
    def levels(self) -> list[Level]:
        """Resolutions that every date has, finest first, enlarged ones included."""
        found = ladder(self.scenes[0])
        for scene in self.scenes[1:]:
            others = {level.index: level for level in ladder(scene)}
            found = [x for x in found if x.index in others and _same_grid(x, others[x.index])]
        return found


def open_stack(x: Any, dates: Sequence[Any] | None = None, **options: Any) -> Stack:
    """Open the dates of one place.

    Args:
        x: Scenes, or what `open_scene` takes, in a list; a mapping of dates to such; or an
            xarray.DataArray with a dimension of time.
        dates: Names of the dates; default what the DataArray or the mapping says, else the date
            in each file's name, else the name.
        **options: See `open_scene`; for all dates.

    Raises:
        OptionError: If there are not two dates with names of their own.
        GeoreferenceError: If the scenes do not lie on one grid.
        SourceError: If one of them cannot be opened.

    >>> import numpy as np, pandas, xarray
    >>> array = xarray.DataArray(
    ...     np.zeros((2, 32, 32), np.uint8),
    ...     {"time": pandas.to_datetime(["2020-07-01", "2019-07-01"])},
    ...     ("time", "y", "x"),
    ... )
    >>> open_stack(array, pixel_coordinates=True).dates
    ('2019-07-01', '2020-07-01')
    """
    if isinstance(x, Stack):
        return x
    if type(x).__name__ == "DataArray":
        names, given = _slices(x)
    elif isinstance(x, Mapping):
        names, given = [_text(key) for key in x], list(x.values())
    elif isinstance(x, Iterable) and not isinstance(x, str | bytes):
        given = list(x)
        names = []
    else:
        raise SourceError(
            f"cannot open {type(x).__name__} as a stack of dates: give a list of scenes, a "
            "mapping of dates to scenes or an xarray.DataArray with a dimension of time"
        )
    scenes = [open_scene(one, **options) for one in given]
    names = names or [date_in(Path(scene.name).stem) or scene.name for scene in scenes]
    names = names if dates is None else [_text(date) for date in dates]
    if len(names) == len(scenes):
        order = chronological(names)
        names, scenes = [names[n] for n in order], [scenes[n] for n in order]
    return Stack(tuple(names), tuple(scenes))


def _slices(array: xarray.DataArray) -> tuple[list[str], list[xarray.DataArray]]:
    time = next((d for d in array.dims if str(d).lower() in TIMES), None)
    if time is None:
        raise SourceError(
            f"a stack needs a dimension of time, one of {', '.join(TIMES)}; "
            f"the array has {', '.join(map(str, array.dims))}"
        )
    values = array[time].values if time in array.coords else range(array.sizes[time])
    return [_text(v) for v in values], [array.isel({time: n}) for n in range(array.sizes[time])]


def _text(date: Any) -> str:
    """A date as text; without the time of day if that is midnight.

    >>> import datetime
    >>> _text(datetime.date(2020, 3, 17)), _text(1985)
    ('2020-03-17', '1985')
    """
    import numpy as np

    if isinstance(date, np.datetime64):
        date = np.datetime_as_string(date, unit="s")
    text = date.isoformat() if hasattr(date, "isoformat") else str(date)
    return text.removesuffix("T00:00:00")


def _same_grid(a: Level, b: Level) -> bool:
    """Whether pixels of one lattice are those of the other, with the same numbers."""
    return a.locate(b.geobox(b.extent)) == b.extent


def _grid(scene: Scene) -> str:
    native = scene.levels[0]
    crs = "no CRS" if scene.crs is None else native.crs
    return f"{crs}, cells of {native.resolution[0]:.10g} x {native.resolution[1]:.10g}"
