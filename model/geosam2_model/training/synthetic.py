"""Scenes that never were: shapes cut out of one texture and laid on another.

What belongs together is known exactly, which no label drawn by hand is. Textures are pieces of real
pictures or made of noise; shapes are roofs, fields, ponds, roads and vehicles in rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from geosam2_model.training.augment import smooth_noise
from geosam2_model.training.data import Picture

Array = npt.NDArray[Any]


def scene(rng: np.random.Generator, textures: Sequence[Array], size: int = 352) -> Picture:
    """One scene with 1 to 40 objects.

    Args:
        rng: All randomness.
        textures: (H, W, 3) uint8 pictures at least `size` / 2 wide to cut pieces from.
        size: Side in pixels.
    """
    pixels = _texture(rng, textures, size).astype(np.float32)
    labels = np.zeros((size, size), np.int32)
    if rng.random() < 0.2:
        _patchwork(rng, textures, pixels, labels)
    shapes = _row_of_likes(rng, size) if rng.random() < 0.25 else []
    few = rng.random() < 0.3  # large things are seen whole only where little lies on them
    shapes += [(_shape(rng, size), False) for _ in range(rng.integers(1, 4 if few else 14))]
    fill = None
    for n, (shape, alike) in enumerate(shapes, start=int(labels.max()) + 1):
        if fill is None or not alike:
            fill = _texture(rng, textures, size).astype(np.float32)
        _lay(rng, pixels, shape, fill)
        labels[np.asarray(shape) > 127] = n
    for _ in range(int(rng.integers(1, 3)) if rng.random() < 0.45 else 0):
        _road(rng, pixels, labels, _texture(rng, textures, size).astype(np.float32))
    image = np.clip(pixels, 0, 255).astype(np.uint8)
    return Picture("synthetic", image, (labels,))


def _patchwork(
    rng: np.random.Generator, textures: Sequence[Array], pixels: Array, labels: Array
) -> None:
    """Fields that touch, some with all but the same crop, over the whole scene."""
    size, count = len(labels), int(rng.integers(4, 24))
    centres = rng.uniform(0, size, size=(count, 2))
    rows, columns = np.mgrid[:size, :size]
    stretch = np.exp(rng.uniform(-0.7, 0.7))  # fields are longer than wide
    far = (rows[..., None] - centres[:, 0]) ** 2 + stretch * (
        columns[..., None] - centres[:, 1]
    ) ** 2
    nearest = far.argmin(2)
    crops = [_texture(rng, textures, size).astype(np.float32) for _ in range(rng.integers(2, 5))]
    for n in range(count):
        inside = nearest == n
        tint = rng.normal(0, 10, size=3).astype(np.float32)
        pixels[inside] = (crops[int(rng.integers(len(crops)))] + tint)[inside]
    labels[:] = nearest + 1
    if rng.random() < 0.7:  # balks and hedges
        two = np.partition(np.sqrt(far), 1, axis=2)
        balk = two[..., 1] - two[..., 0] < rng.uniform(1, 6)
        pixels[balk] = rng.uniform(20, 220, size=3) + rng.normal(0, 8, size=(int(balk.sum()), 1))
        labels[balk] = 0


def _road(rng: np.random.Generator, pixels: Array, labels: Array, surface: Array) -> None:
    """A road, a river or a net of roads from border to border, with what lies and drives on it."""
    size = len(labels)
    width = max(3, int(size * np.exp(rng.uniform(np.log(0.012), np.log(0.2)))))
    lines = [_wander(rng, size) for _ in range(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1]))]
    if rng.random() < 0.35:  # a dusty verge of nearly the same colour, which is not the road
        verge = _along(lines, size, width * rng.uniform(1.3, 2.5))
        _lay(rng, pixels, verge, surface + rng.normal(0, 15, size=3).astype(np.float32))
        labels[np.asarray(verge) > 127] = 0
    image = _along(lines, size, width)
    _lay(rng, pixels, image, surface)
    labels[np.asarray(image) > 127] = int(labels.max()) + 1
    if width < 7 or rng.random() < 0.4:
        return
    for line in lines:
        for marks in (_paint(rng, line, size, width), _traffic(rng, line, size, width)):
            share = np.asarray(marks, np.float32)[..., None] / 255
            pixels += (rng.uniform(0, 255, size=3).astype(np.float32) - pixels) * share


def _along(lines: list[list[tuple[float, float]]], size: int, width: float) -> Image.Image:
    """Strokes with round joints."""
    image = Image.new("L", (size, size))
    draw = ImageDraw.Draw(image)
    for line in lines:
        draw.line(line, fill=255, width=round(width))
        for x, y in line:
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
    return image


def _paint(
    rng: np.random.Generator, line: list[tuple[float, float]], size: int, width: int
) -> Image.Image:
    """Dashes along the middle of a road, and zebra crossings, which do not end it."""
    marks = Image.new("L", (size, size))
    draw = ImageDraw.Draw(marks)
    for start, stop in zip(line[::2], line[1::2], strict=False):
        draw.line([start, stop], fill=255, width=max(1, width // 16))
    points = np.array(line)
    for i in rng.choice(len(line) - 1, size=rng.integers(0, 3), replace=False):
        step = points[i + 1] - points[i]
        angle = float(np.arctan2(step[1], step[0]))
        across = np.array([-np.sin(angle), np.cos(angle)]) * width
        length, bars = width * rng.uniform(0.25, 0.7), int(rng.integers(4, 9))
        for k in np.linspace(-0.45, 0.45, bars):
            bar = _rectangle(points[i] + k * across, length, 0.45 * width / bars, angle)
            draw.polygon(bar, fill=255)
    return marks


def _traffic(
    rng: np.random.Generator, line: list[tuple[float, float]], size: int, width: int
) -> Image.Image:
    """Vehicles on a road."""
    image = Image.new("L", (size, size))
    for place in rng.permutation(line)[: rng.integers(0, 12)]:
        centre = place + rng.uniform(-0.35, 0.35, size=2) * width
        corners = _rectangle(centre, width / 3, width / 6, rng.uniform(0, np.pi))
        ImageDraw.Draw(image).polygon(corners, fill=255)
    return image


def _lay(rng: np.random.Generator, pixels: Array, shape: Image.Image, fill: Array) -> None:
    """Draw a shape with soft edges; sometimes with a shadow beside it and a rim."""
    soft = shape.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.2))))
    alpha = np.asarray(soft, np.float32)[..., None] / 255
    if rng.random() < 0.35:
        down, right = rng.integers(-5, 6, size=2)
        shadow = ndimage.shift(alpha, (down, right, 0), order=0)
        pixels *= 1 - shadow * np.float32(rng.uniform(0.3, 0.7))
    if rng.random() < 0.2:
        rim = np.asarray(soft.filter(ImageFilter.MaxFilter(3)), np.float32)[..., None] / 255
        tone = rng.uniform(0, 255, size=3).astype(np.float32)
        pixels += (tone - pixels) * np.clip(rim - alpha, 0, 1)
    pixels += (fill - pixels) * alpha


def _texture(rng: np.random.Generator, textures: Sequence[Array], size: int) -> Array:
    """A real piece, enlarged and recoloured, or noise on a plain colour: (size, size, 3)."""
    if len(textures) and rng.random() < 0.6:
        source = textures[int(rng.integers(len(textures)))]
        side = int(rng.integers(size // 8, min(size, *source.shape[:2]) + 1))
        top, left = (int(rng.integers(0, n - side + 1)) for n in source.shape[:2])
        piece = Image.fromarray(np.ascontiguousarray(source[top : top + side, left : left + side]))
        x = np.asarray(piece.resize((size, size), Image.Resampling.BILINEAR), np.float32)
        tone, mean = rng.uniform(20, 235, size=3), x.mean((0, 1))
        pull = rng.uniform(0, 0.8)
        piece_like: Array = (x - mean) * rng.uniform(0.3, 1.1) + mean * (1 - pull) + tone * pull
        return piece_like
    tone = rng.uniform(15, 240, size=3)
    x = np.broadcast_to(tone, (size, size, 3)).astype(np.float32)
    rough = rng.normal(0, rng.uniform(1, 14), size=(size, size, 1))
    waves = (smooth_noise(rng, size, int(rng.integers(3, 60)))[..., None] - 0.5) * rng.uniform(
        0, 60
    )
    return x + rough + waves + _stripes(rng, size)


def _stripes(rng: np.random.Generator, size: int) -> Array:
    """Plough lines, or nothing; (size, size, 1)."""
    if rng.random() < 0.75:
        return np.zeros((1, 1, 1))
    angle, period = rng.uniform(0, np.pi), rng.uniform(3, 16)
    y, x = np.mgrid[:size, :size]
    phase = (x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period
    lines: Array = np.sin(phase) * rng.uniform(4, 25)
    return lines[..., None]


def _shape(rng: np.random.Generator, size: int) -> Image.Image:
    """The mask of one thing that stands alone."""
    image = Image.new("L", (size, size))
    draw = ImageDraw.Draw(image)
    kind = rng.choice(["roof", "field", "pond", "blob"], p=[0.35, 0.2, 0.25, 0.2])
    centre = rng.uniform(0, size, size=2)
    reach = size * np.exp(rng.uniform(np.log(0.03), np.log(0.45)))
    if kind == "roof":
        for corners in _roof(rng, centre, reach):
            draw.polygon(corners, fill=255)
    else:
        wobble = {"field": 0.15, "pond": 0.3, "blob": 0.6}[str(kind)]
        count = int(rng.integers(4, 7)) if kind == "field" else 40
        draw.polygon(_loop(rng, centre, reach, count, wobble), fill=255)
    if kind == "pond" and rng.random() < 0.3:  # an island
        draw.polygon(_loop(rng, centre, reach * 0.3, 20, 0.3), fill=0)
    return image


def _row_of_likes(rng: np.random.Generator, size: int) -> list[tuple[Image.Image, bool]]:
    """Equal things side by side, as in a car park or a marina: masks, and who looks as the last."""
    length, width = rng.uniform(10, 40), rng.uniform(6, 20)
    angle, gap = rng.uniform(0, np.pi), rng.uniform(1.2, 2.0)
    start = rng.uniform(0.1, 0.5, size=2) * size
    step = np.array([np.cos(angle), np.sin(angle)]) * width * gap
    row = []
    for i in range(int(rng.integers(3, 12))):
        image = Image.new("L", (size, size))
        ImageDraw.Draw(image).polygon(_rectangle(start + i * step, width, length, angle), fill=255)
        row.append((image, i > 0))
    return row


def _rectangle(
    centre: Array, width: float, length: float, angle: float
) -> list[tuple[float, float]]:
    along = np.array([np.cos(angle), np.sin(angle)]) * width / 2
    across = np.array([-np.sin(angle), np.cos(angle)]) * length / 2
    corners = (along + across, along - across, -along - across, -along + across)
    return [(float(p[0]), float(p[1])) for p in (centre + c for c in corners)]


def _roof(rng: np.random.Generator, centre: Array, reach: float) -> list[list[tuple[float, float]]]:
    """One to three joined rectangles."""
    angle = rng.uniform(0, np.pi)
    parts = []
    for _ in range(int(rng.integers(1, 4))):
        width, length = rng.uniform(0.5, 1.6, size=2) * reach
        parts.append(_rectangle(centre + rng.uniform(-0.4, 0.4, 2) * reach, width, length, angle))
    return parts


def _loop(
    rng: np.random.Generator, centre: Array, reach: float, corners: int, wobble: float
) -> list[tuple[float, float]]:
    """A closed outline around a centre, its radius wavering by `wobble`."""
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False) + rng.uniform(0, 2 * np.pi)
    radius = np.ones(corners)
    for k in range(1, 5):
        radius += wobble / k * rng.normal() * np.cos(k * angles + rng.uniform(0, 2 * np.pi))
    stretch = np.exp(rng.uniform(-0.6, 0.6))
    radius = np.maximum(radius, 0.15) * reach
    x, y = centre[0] + radius * np.cos(angles) * stretch, centre[1] + radius * np.sin(angles)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _wander(rng: np.random.Generator, size: int) -> list[tuple[float, float]]:
    """A road or river from one side to another."""
    t = np.linspace(-0.1, 1.1, 24)
    bend = sum(
        rng.normal(0, 0.12 / k) * np.sin(np.pi * k * t + rng.uniform(0, np.pi)) for k in (1, 2, 3)
    )
    a, b = rng.uniform(0, 1, size=2)
    across = a + (b - a) * t + bend
    points = np.stack([t, across] if rng.random() < 0.5 else [across, t], axis=1) * size
    return [(float(x), float(y)) for x, y in points]
