"""Which bands become red, green and blue, and how their values become 0 to 255."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geosam2.errors import SourceError

Bands = Sequence[int | str] | int | str

# The usual order of bands in products that come without names.
_BY_COUNT = {
    1: ((1,), "one band, shown grey"),
    2: ((1,), "first of two bands, shown grey"),
    3: ((1, 2, 3), "three bands in order"),
    4: ((1, 2, 3), "four bands: red, green, blue, near infrared"),
    5: ((3, 2, 1), "five bands in the order of RapidEye: blue, green, red ..."),
    6: ((3, 2, 1), "six bands in the order of Landsat: blue, green, red ..."),
    7: ((4, 3, 2), "seven bands in the order of Landsat 8"),
    8: ((5, 3, 2), "eight bands in the order of WorldView"),
    10: ((3, 2, 1), "ten bands in the order of Sentinel-2 without the 60 m ones"),
    12: ((4, 3, 2), "twelve bands in the order of Sentinel-2 L2A"),
    13: ((4, 3, 2), "thirteen bands in the order of Sentinel-2 L1C"),
}
_COLOURS = ("red", "green", "blue")
_STRIP = 2**16  # pixels that are stretched at a time


@dataclass(frozen=True)
class BandChoice:
    """Bands that are read, and why these."""

    indices: tuple[int, ...]
    """One or three band numbers, from 1; one is shown grey."""
    names: tuple[str, ...]
    """Their names in the source, or "band 4"."""
    reason: str
    """How they were chosen, for `geosam2 info`."""
    count: int
    """Bands that the source has."""


def choose_bands(
    count: int, names: Sequence[str | None], colours: Sequence[str], wanted: Bands | None
) -> BandChoice:
    """Bands to read.

    Args:
        count: Bands that the source has (without alpha: `colours` says which those are).
        names: A name or None per band.
        colours: A colour interpretation per band, as rasterio spells it.
        wanted: The caller's wish: numbers from 1 or names, one or three of them.

    Raises:
        SourceError: If a wanted band does not exist.

    >>> choose_bands(4, ["blue", "green", "red", "nir"], ["gray"] + ["undefined"] * 3, None).indices
    (3, 2, 1)
    """
    labels = tuple(name or f"band {i}" for i, name in enumerate(names, 1))
    indices, reason = (
        (_wanted(wanted, count, names, colours), "asked for")
        if wanted is not None
        else _obvious(count, names, colours)
    )
    return BandChoice(indices, tuple(labels[i - 1] for i in indices), reason, count)


def _wanted(
    wanted: Bands, count: int, names: Sequence[str | None], colours: Sequence[str]
) -> tuple[int, ...]:
    items = [wanted] if isinstance(wanted, int | str) else list(wanted)
    if len(items) not in (1, 3):
        raise SourceError(f"bands= takes one band or three (red, green, blue), got {items}")
    return tuple(_find(item, count, names, colours) for item in items)


def _find(item: int | str, count: int, names: Sequence[str | None], colours: Sequence[str]) -> int:
    if isinstance(item, str):
        for known in (names, colours):
            lower = [(name or "").lower() for name in known]
            if item.lower() in lower:
                return lower.index(item.lower()) + 1
        if not item.isdigit():
            known_names = ", ".join(name for name in names if name) or "none has a name"
            raise SourceError(f"no band is called {item!r} ({known_names}); numbers are from 1")
    number = int(item)
    if not 1 <= number <= count:
        raise SourceError(f"band {number} does not exist: there are {count}, numbered from 1")
    return number


def _obvious(
    count: int, names: Sequence[str | None], colours: Sequence[str]
) -> tuple[tuple[int, ...], str]:
    for known, reason in ((colours, "colour interpretation"), (names, "band names")):
        found = _positions(known, _COLOURS)
        if found:
            return found, reason
    found = _positions([_plain(name) for name in names], ("b4", "b3", "b2"))
    if found:
        return found, "band names of Sentinel-2 or Landsat 8/9"
    if "palette" in colours:
        return (colours.index("palette") + 1,), "palette"
    colour_count = count - sum(colour == "alpha" for colour in colours)
    fallback = (tuple(range(1, min(3, colour_count) + 1)), f"first of {colour_count} bands")
    return _BY_COUNT.get(colour_count, fallback)


def _positions(known: Iterable[str | None], wanted: tuple[str, ...]) -> tuple[int, ...]:
    lower = [(name or "").lower() for name in known]
    found = tuple(lower.index(name) + 1 for name in wanted if name in lower)
    return found if len(found) == len(wanted) else ()


def _plain(name: str | None) -> str:
    """ "B04", "SR_B4" and "b4" are the same band.

    >>> _plain("SR_B4"), _plain("B04"), _plain("B8A")
    ('b4', 'b4', 'b8a')
    """
    match = re.search(r"(?:^|[_\W])b0?(\d+a?)$", (name or "").lower())
    return f"b{match[1]}" if match else ""


@dataclass(frozen=True)
class Stretch:
    """Straight line per band from stored values to 0 .. 255, the same for a whole scene.

    >>> Stretch((0.0,), (1000.0,)).apply(np.array([[[0, 500, 2000]]], np.uint16)).tolist()
    [[[0, 128, 255]], [[0, 128, 255]], [[0, 128, 255]]]
    """

    low: tuple[float, ...]
    """Stored value that becomes 0, per band read."""
    high: tuple[float, ...]
    """Stored value that becomes 255; greater than `low`."""
    origin: str = "given"
    """"as stored" (8 bit), "percentiles 2-98", or "given" by the caller."""

    def __post_init__(self) -> None:
        if len(self.low) != len(self.high) or len(self.low) not in (1, 3):
            raise SourceError(f"a stretch has a (low, high) pair per band, got {self}")
        if not all(np.isfinite([*self.low, *self.high])) or any(
            low >= high for low, high in zip(self.low, self.high, strict=True)
        ):
            raise SourceError(f"a stretch needs finite low < high for each band, got {self}")

    @property
    def identity(self) -> bool:
        """True if stored 8-bit values are taken as they are."""
        return set(self.low) == {0.0} and set(self.high) == {255.0}

    def apply(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        """(B, H, W) stored values -> (3, H, W) uint8; halves round up, NaN becomes 0.

        Three bands that need no stretch come back as they are, not copied.
        """
        if self._untouched(pixels):
            return pixels if len(pixels) == 3 else np.repeat(pixels, 3, axis=0)
        out = np.empty((3, *pixels.shape[1:]), np.uint8)
        for i, band in enumerate(pixels):
            _stretch(band, *self._limits(i), out[i])
        out[len(pixels) :] = out[:1]
        return out

    def _untouched(self, pixels: NDArray[Any]) -> bool:
        return self.identity and pixels.dtype == np.uint8

    def _limits(self, band: int) -> tuple[float, float]:
        i = band if len(self.low) > 1 else 0
        return self.low[i], self.high[i]


def _stretch(band: NDArray[Any], low: float, high: float, out: NDArray[np.uint8]) -> None:
    """One band, a strip at a time: the passes over a strip stay in the processor's cache."""
    wide: Any = np.float64 if band.dtype.itemsize > 4 else np.float32
    scale = wide(255.0 / (high - low))
    rows = max(1, _STRIP // max(1, band.shape[1]))
    strip = np.empty((min(rows, band.shape[0]), band.shape[1]), wide)
    for top in range(0, band.shape[0], rows):
        values = band[top : top + rows]
        line = strip[: len(values)]
        line[:] = values
        with np.errstate(over="ignore", invalid="ignore"):  # nodata of -3.4e38 may overflow
            line -= wide(low)
            line *= scale
            line += wide(0.5)
        if band.dtype.kind == "f":
            np.nan_to_num(line, copy=False)
        np.clip(line, 0, 255, out=line)
        out[top : top + rows] = line


IDENTITY = Stretch((0.0,), (255.0,), "as stored")


def percentile_stretch(
    samples: Sequence[NDArray[Any]], low: float = 2.0, high: float = 98.0
) -> Stretch:
    """Stretch between percentiles of each band's valid samples.

    Args:
        samples: A 1-d array of valid values per band.
        low: Percentile that becomes black.
        high: Percentile that becomes white.
    """
    limits = [_limits(band, low, high) for band in samples]
    return Stretch(
        tuple(a for a, _ in limits), tuple(b for _, b in limits), f"percentiles {low:g}-{high:g}"
    )


def _limits(values: NDArray[Any], low: float, high: float) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    a, b = (float(v) for v in np.percentile(finite, [low, high]))
    if a < b:
        return a, b
    # flat between the percentiles: the extremes, else one step around the only value
    a, b = float(finite.min()), float(finite.max())
    return (a, b) if a < b else (a, a + 1.0)
