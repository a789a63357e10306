"""What the client says about its imagery, and how the worker asks for pixels of it.

The client (QGIS) draws; the worker decides which windows it needs. All windows of a level lie on
one pixel lattice that is anchored next to the origin of the CRS, so repeated clicks ask for the
same windows and masks of neighbouring windows fit pixel by pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geosam2.errors import PromptError, SourceError

MAX_LEVELS = 40
MAX_POINTS = 1000

Bounds = tuple[float, float, float, float]
Pixels = NDArray[np.uint8]
Valid = NDArray[np.bool_]


@dataclass(frozen=True)
class SceneInfo:
    """A scene as the client describes it: place and resolutions, no pixels."""

    crs: str
    """Anything pyproj.CRS understands; the fake backend never looks at it."""
    bounds: Bounds
    """(left, bottom, right, top) in CRS units."""
    resolutions: tuple[float, ...]
    """Cell sizes in CRS units, finest first: the levels."""
    origin: tuple[float, float]
    """Some pixel corner (x, y) of the source; gives the phase of the lattice."""
    name: str = "map"
    """For people."""
    source: str = ""
    """Where the pixels come from, without passwords; written into results."""
    path: str | None = None
    """A local file that the worker may read itself instead of asking the client."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What else the client said (bands, stretch); for the reader of `path`."""
    number: int = 0
    """Which of the client's scenes, if there are many; pixels are asked for by it."""

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> SceneInfo:
        """Check what came over the wire.

        Raises:
            SourceError: With the value that is wrong.
        """
        bounds = numbers(message.get("bounds"), 4, "bounds")
        origin = numbers(message.get("origin", (bounds[0], bounds[3])), 2, "origin")
        raw = message.get("resolutions")
        if not isinstance(raw, list) or not 1 <= len(raw) <= MAX_LEVELS:
            raise SourceError(
                f"resolutions must be a list of 1 to {MAX_LEVELS} cell sizes: {raw!r:.80}"
            )
        resolutions = tuple(sorted(numbers(raw, len(raw), "resolutions")))
        if resolutions[0] <= 0:
            raise SourceError(f"resolutions must be positive: {resolutions[0]}")
        left, bottom, right, top = bounds
        if left >= right or bottom >= top:
            raise SourceError(f"bounds {bounds} are empty: give left, bottom, right, top")
        if max(right - left, top - bottom) / resolutions[0] > 2**31:
            raise SourceError(f"bounds {bounds} hold too many cells of {resolutions[0]}")
        crs, path = message.get("crs"), message.get("path")
        if not isinstance(crs, str) or not crs:
            raise SourceError(f"crs must be a text (EPSG code or WKT): {crs!r:.80}")
        if path is not None and not isinstance(path, str):
            raise SourceError(f"path must be a text: {path!r:.80}")
        options = message.get("options")
        return cls(
            crs,
            (left, bottom, right, top),
            resolutions,
            (origin[0], origin[1]),
            str(message.get("name", "map"))[:200],
            str(message.get("source", ""))[:2000],
            path,
            options if isinstance(options, dict) else {},
        )

    def anchor(self, level: int) -> tuple[float, float]:
        """Corner of lattice pixel (0, 0): the pixel corner nearest to the origin of the CRS.

        >>> SceneInfo("EPSG:3857", (0, 0, 9, 9), (2.0,), (5.0, 8.5)).anchor(0)
        (1.0, 0.5)
        """
        cell = self.resolutions[level]
        return (_phase(self.origin[0], cell), _phase(self.origin[1], cell))

    def pixel(self, level: int, x: float, y: float) -> tuple[int, int]:
        """Row and column on the lattice of the pixel that holds the map position."""
        (x0, y0), cell = self.anchor(level), self.resolutions[level]
        return (math.floor((y0 - y) / cell), math.floor((x - x0) / cell))

    def window(self, level: int, row: int, col: int, height: int, width: int) -> Bounds:
        """Bounds in CRS units of a rectangle of lattice pixels."""
        (x0, y0), cell = self.anchor(level), self.resolutions[level]
        return (
            x0 + col * cell,
            y0 - (row + height) * cell,
            x0 + (col + width) * cell,
            y0 - row * cell,
        )

    def contains(self, x: float, y: float) -> bool:
        """Is the map position inside the bounds?"""
        left, bottom, right, top = self.bounds
        return left <= x <= right and bottom <= y <= top


Reader = Callable[[SceneInfo, Bounds, int, int, int], tuple[Pixels, Valid]]
"""(scene, bounds, height, width, level) -> pixels (H, W, 3) uint8 and valid (H, W) bool."""


@dataclass(frozen=True)
class Clicks:
    """The prompt of one object, in the scene's CRS."""

    points: tuple[tuple[float, float], ...] = ()
    """Map positions (x, y)."""
    labels: tuple[int, ...] = ()
    """1 include, 0 exclude; one per point."""
    box: Bounds | None = None
    """(left, bottom, right, top), or None."""

    @classmethod
    def from_message(
        cls, message: Any, scene: SceneInfo | None = None, *, correction: bool = False
    ) -> Clicks:
        """Check a prompt that came over the wire; a correction may only exclude.

        Raises:
            PromptError: If it is empty, not finite, outside the scene, or labels do not fit.
        """
        if not isinstance(message, dict):
            raise PromptError(
                f"prompt must be an object with points, labels and box: {message!r:.80}"
            )
        points, box = message.get("points") or [], message.get("box")
        if not isinstance(points, list) or len(points) > MAX_POINTS:
            raise PromptError(
                f"points must be a list of at most {MAX_POINTS} pairs: {points!r:.80}"
            )
        places = tuple((x, y) for x, y in (numbers(p, 2, "point", PromptError) for p in points))
        labels = message.get("labels", [1] * len(places))
        if not isinstance(labels, list) or any(label not in (0, 1) for label in labels):
            raise PromptError(f"labels must be 1 (include) or 0 (exclude): {labels!r:.80}")
        if len(labels) != len(places):
            raise PromptError(f"{len(places)} points need as many labels, not {len(labels)}")
        if box is not None:
            a, b, c, d = numbers(box, 4, "box", PromptError)
            box = (min(a, c), min(b, d), max(a, c), max(b, d))
            if box[0] == box[2] or box[1] == box[3]:
                raise PromptError(f"box {box} is empty: give left, bottom, right, top")
        clicks = cls(places, tuple(int(label) for label in labels), box)
        if 1 not in clicks.labels and box is None and not (correction and places):
            raise PromptError("the prompt needs at least one point to include, or a box")
        clicks._inside(scene)
        return clicks

    def _inside(self, scene: SceneInfo | None) -> None:
        places = [p for p, label in zip(self.points, self.labels, strict=True) if label]
        if self.box:
            places.append(((self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2))
        for x, y in places:
            if scene and not scene.contains(x, y):
                raise PromptError(
                    f"point ({x:.10g}, {y:.10g}) is outside the scene (bounds "
                    f"{', '.join(f'{v:.10g}' for v in scene.bounds)}). Click inside the imagery."
                )


def numbers(
    raw: Any, count: int, what: str, error: type[Exception] = SourceError
) -> tuple[float, ...]:
    """`count` finite numbers from a JSON value, or an error that names `what`."""
    good = isinstance(raw, list | tuple) and len(raw) == count
    if not good or any(isinstance(v, bool) or not isinstance(v, int | float) for v in raw):
        raise error(f"{what} must be {count} numbers: {raw!r:.80}")
    try:
        values = tuple(float(v) for v in raw)
    except OverflowError:
        values = (math.inf,)
    if not all(map(math.isfinite, values)):
        raise error(f"{what} must be finite: {raw!r:.80}")
    return values


def rgba(payload: bytes, height: int, width: int) -> tuple[Pixels, Valid]:
    """Pixels of a client's answer: RGBA bytes, row by row; transparent means no data.

    Raises:
        SourceError: If the number of bytes does not fit.
    """
    if len(payload) != 4 * height * width:
        raise SourceError(
            f"{len(payload)} bytes of pixels for a window of {height} x {width}; "
            f"RGBA needs {4 * height * width}"
        )
    image = np.frombuffer(payload, np.uint8).reshape(height, width, 4)
    return image[..., :3].copy(), image[..., 3] > 0


def _phase(position: float, cell: float) -> float:
    remainder = math.fmod(position, cell)
    if remainder > cell / 2:
        remainder -= cell
    elif remainder < -cell / 2:
        remainder += cell
    # a corner within a millionth of a pixel of the origin is the origin, whatever rounding says
    return 0.0 if abs(remainder) < 1e-6 * cell else remainder
