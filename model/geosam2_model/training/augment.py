"""Changes that a place may show between sensors, seasons and hours, and that leave it the place."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[Any]


def to_uint8(pixels: Array, limits: Array) -> Array:
    """Stretch (H, W, bands) linearly so that limits (2, bands) become 0 and 255."""
    if pixels.dtype == np.uint8 and (limits[0] == 0).all() and (limits[1] == 255).all():
        return pixels
    low, high = limits
    scaled = (pixels.astype(np.float32) - low) * (255.0 / np.maximum(high - low, 1e-6))
    result: Array = np.clip(scaled, 0, 255).astype(np.uint8)
    return result


def jitter_limits(rng: np.random.Generator, limits: Array) -> Array:
    """Another plausible stretch: each end moved by up to a tenth of the range."""
    if rng.random() < 0.5:
        return limits
    low, high = limits
    reach = 0.1 * (high - low)
    return np.stack([low + rng.uniform(-1, 1) * reach, high + rng.uniform(-1, 1) * reach])


def choose_bands(rng: np.random.Generator, count: int, natural: tuple[int, int, int]) -> list[int]:
    """Three bands: mostly the natural ones, sometimes swapped, false colour, or one band alone."""
    chance = rng.random()
    if chance < 0.72:
        return list(natural)
    if chance < 0.84:
        return [int(i) for i in rng.permutation(natural)]
    if chance < 0.94:
        return [int(i) for i in rng.choice(count, size=3, replace=count < 3)]
    return [int(rng.integers(count))] * 3


def dihedral(rng: np.random.Generator, rgb: Array, masks: Array) -> tuple[Array, Array]:
    """One of the eight rotations and reflections of (H, W, 3) and (K, H, W)."""
    turns, mirror = int(rng.integers(4)), bool(rng.random() < 0.5)
    rgb, masks = np.rot90(rgb, turns, (0, 1)), np.rot90(masks, turns, (1, 2))
    if mirror:
        rgb, masks = rgb[:, ::-1], masks[:, :, ::-1]
    return rgb, np.ascontiguousarray(masks)


def colours(rng: np.random.Generator, rgb: Array) -> Array:
    """Exposure, contrast, gamma, colour cast, haze, shadow, blur and noise; (H, W, 3) uint8."""
    x = rgb.astype(np.float32) / 255.0
    if rng.random() < 0.8:
        mean = x.mean()
        x = (x - mean) * rng.uniform(0.6, 1.4) + mean * rng.uniform(0.75, 1.25)
    if rng.random() < 0.4:
        x = x * rng.uniform(0.85, 1.15, size=3).astype(np.float32)
    if rng.random() < 0.3:
        gray = x.mean(2, keepdims=True)
        x = gray + (x - gray) * np.float32(rng.uniform(0.0, 1.6))
    x = np.clip(x, 0, 1)
    if rng.random() < 0.3:
        x = x ** np.float32(np.exp(rng.uniform(-0.5, 0.5)))
    if rng.random() < 0.12:  # haze
        veil = smooth_noise(rng, x.shape[0])[..., None] * np.float32(rng.uniform(0.1, 0.5))
        x = x * (1 - veil) + np.float32(rng.uniform(0.7, 1.0)) * veil
    if rng.random() < 0.12:  # shadow of a cloud
        dark = smooth_noise(rng, x.shape[0])[..., None] > np.float32(rng.uniform(0.4, 0.8))
        x = np.where(dark, x * np.float32(rng.uniform(0.4, 0.8)), x)
    x = (np.clip(x, 0, 1) * 255).astype(np.uint8)
    if rng.random() < 0.15:
        x = _blur(rng, x)
    if rng.random() < 0.25:
        noise = rng.normal(0, rng.uniform(1, 8), size=x.shape).astype(np.float32)
        x = np.clip(x + noise, 0, 255).astype(np.uint8)
    return x


def smooth_noise(rng: np.random.Generator, size: int, cells: int | None = None) -> Array:
    """A soft random surface, (size, size) float32 in 0..1."""
    cells = int(rng.integers(2, 7)) if cells is None else cells
    coarse = Image.fromarray(rng.random((cells + 3, cells + 3), dtype=np.float32), mode="F")
    surface: Array = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    return surface.clip(0, 1)


def _blur(rng: np.random.Generator, rgb: Array) -> Array:
    height, width = rgb.shape[:2]
    factor = rng.uniform(1.3, 3.0)
    image = Image.fromarray(np.ascontiguousarray(rgb))
    small = image.resize((int(width / factor), int(height / factor)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
