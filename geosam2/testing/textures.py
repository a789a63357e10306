"""Surfaces of synthetic scenes: (3, H, W) float32 reflectance, roughly 0..1."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

Array: TypeAlias = npt.NDArray[np.float32]
Rng = np.random.Generator
Shape = tuple[int, int]


def noise(rng: Rng, shape: Shape, scale: float, octaves: int = 4) -> Array:
    """Smooth random surface, about zero mean and unit range; `scale` is its longest wavelength."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        step = max(scale / 2**octave, 1.0)
        grid = tuple(int(side / step) + 4 for side in shape)
        coarse = rng.normal(size=grid).astype(np.float32)
        total += _enlarge(coarse, shape, step) * np.float32(0.5**octave)
        if step == 1.0:
            break
    return total * np.float32(0.5)


def ground(rng: Rng, shape: Shape) -> Array:
    """Grass, scrub and bare soil that grade into each other."""
    dryness: Array = np.float32(0.5) * (1 + np.tanh(2 * noise(rng, shape, 300, 6)))
    grass, soil = _colour(0.30, 0.37, 0.22), _colour(0.50, 0.44, 0.34)
    return _mix(grass, soil, dryness) * (1 + 0.22 * noise(rng, shape, 12, 4))


def water(rng: Rng, shape: Shape, depth: Array | None = None) -> Array:
    """Dark and smooth, lighter where shallow, with faint ripples and sediment."""
    turbid = rng.uniform(0, 1)
    deep = _colour(0.07, 0.14, 0.19) * (1 + 0.3 * turbid)
    shallow = _colour(0.24, 0.30, 0.25) + 0.06 * turbid
    if depth is None:
        depth = 0.6 + 0.3 * noise(rng, shape, 200, 3)
    ripples = _stripes(shape, rng.uniform(0, np.pi), 5.0 + 3 * noise(rng, shape, 60, 2))
    return _mix(shallow, deep, depth) * (1 + 0.03 * ripples + 0.08 * noise(rng, shape, 180, 4))


def crop(rng: Rng, shape: Shape) -> Array:
    """One field: its own colour, rows in its own direction, patchy growth."""
    palette = ((0.27, 0.37, 0.22), (0.43, 0.45, 0.28), (0.55, 0.48, 0.36), (0.44, 0.36, 0.29))
    base = _colour(*palette[rng.integers(len(palette))]) * rng.uniform(0.8, 1.2)
    rows = _stripes(shape, rng.uniform(0, np.pi), np.float32(rng.uniform(3.5, 9)))
    growth = noise(rng, shape, 150, 5)
    return _shade(base, 1 + 0.05 * rows + 0.13 * growth + 0.08 * noise(rng, shape, 4, 2))


def canopy(rng: Rng, shape: Shape) -> Array:
    """Tree crowns: lit on the upper left, dark gaps between them."""
    bumps = noise(rng, shape, 14, 3)
    light = np.zeros(shape, np.float32)
    light[1:, 1:] = bumps[1:, 1:] - bumps[:-1, :-1]
    tone = _colour(0.17, 0.25, 0.13) * (1 + 0.2 * noise(rng, shape, 120, 3))
    return _shade(tone, np.clip(1 + 0.5 * bumps + 1.6 * light, 0.3, 2.0))


def asphalt(rng: Rng, shape: Shape) -> Array:
    """Grey with stains and repairs."""
    tone = _colour(0.46, 0.45, 0.44) * rng.uniform(0.85, 1.15)
    return _shade(tone, 1 + 0.08 * noise(rng, shape, 60, 4) + 0.05 * noise(rng, shape, 3, 2))


def roof(rng: Rng, shape: Shape) -> Array:
    """Two slopes of tiles or sheet metal under one sun."""
    palette = ((0.58, 0.32, 0.25), (0.62, 0.62, 0.64), (0.42, 0.46, 0.54), (0.74, 0.70, 0.62))
    angle = rng.uniform(0, np.pi)
    rows, columns = np.ogrid[-0.5 : 0.5 : shape[0] * 1j, -0.5 : 0.5 : shape[1] * 1j]
    side = np.sign(np.cos(angle) * columns + np.sin(angle) * rows).astype(np.float32)
    base = _colour(*palette[rng.integers(len(palette))])
    return _shade(base, 1 + 0.12 * side + 0.05 * noise(rng, shape, 6, 2))


SURFACES: dict[str, Callable[[Rng, Shape], Array]] = {
    "lake": water,
    "river": water,
    "road": asphalt,
    "field": crop,
    "wood": canopy,
    "building": roof,
}
"""Kind of object -> its surface."""


def _enlarge(coarse: Array, shape: Shape, step: float) -> Array:
    """Bicubic resize; the surface does not depend on the shape beyond its origin."""
    window = (1.0, 1.0, 1.0 + shape[1] / step, 1.0 + shape[0] / step)
    large = Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC, box=window)
    return np.asarray(large)


def _stripes(shape: Shape, angle: float, wavelength: Array | np.float32) -> Array:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    along = np.cos(angle) * columns + np.sin(angle) * rows
    waves: Array = np.sin(2 * np.pi * along / np.maximum(wavelength, 3)).astype(np.float32)
    return waves


def _colour(red: float, green: float, blue: float) -> Array:
    return np.array([red, green, blue], np.float32)[:, None, None]


def _shade(colour: Array, factor: Array) -> Array:
    shaded: Array = colour * factor
    return shaded


def _mix(first: Array, second: Array, share: Array) -> Array:
    share = np.clip(share, 0, 1)
    return first * (1 - share) + second * share
