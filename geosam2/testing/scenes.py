"""Textured scenes whose objects are known exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import geopandas
import numpy as np
import numpy.typing as npt
import rasterio.features
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image, ImageFilter
from shapely import affinity
from shapely.geometry import Polygon, box

from geosam2.testing import shapes, textures

FRAME, OVERLAP = 512, 128
"""Frame size and overlap, in pixels, by which the `frames` of a scene are counted."""

KINDS = ("lake", "river", "road", "field", "wood", "building")

_MAKERS: dict[str, Callable[[np.random.Generator, float], Polygon]] = {
    "lake": shapes.lake,
    "wood": shapes.blob,
    "field": shapes.field,
    "building": shapes.building,
    "river": shapes.band(width=34, wander=0.07, spread=0.25),
    "road": shapes.band(width=13, wander=0.03, spread=0.0),
}
# what is drawn later covers what is drawn earlier: fields lie under everything
_ORDER = ("field", "wood", "road", "river", "lake", "building")
_SHADOW = {"wood": 4, "building": 6}  # length in pixels, towards the lower right


class SyntheticScene(NamedTuple):
    """A scene and the truth about it."""

    pixels: npt.NDArray[np.uint8]
    """(3, H, W) red, green, blue."""
    truth: geopandas.GeoDataFrame
    """Columns id (1...), kind, main (the object asked for by `frames`), twin (its look-alike),
    geometry in the CRS. No two overlap; fields touch."""
    labels: npt.NDArray[np.int32]
    """(H, W) id of the object at each pixel centre, 0 = none."""
    geobox: GeoBox
    """Where the pixels are."""


class _Thing(NamedTuple):
    kind: str
    outline: Polygon  # pixels, x right, y down
    main: bool = False
    twin: bool = False


def synthetic_scene(
    seed: int = 0,
    size: int | tuple[int, int] | None = None,
    kinds: Sequence[str] = KINDS,
    *,
    gsd: float = 0.5,
    crs: str = "EPSG:32633",
    frames: int | None = None,
    twin: bool = False,
) -> SyntheticScene:
    """Draw a scene of lakes with islands, rivers, roads, touching fields, woods and buildings.

    Rivers and roads cross the whole scene; an object that is cut by another becomes several. The
    upper left corner lies on the lattice of 512-pixel frames with 128 pixels overlap.

    Args:
        seed: Same seed and arguments, same scene.
        size: Side, or (height, width), in pixels; default 1024, or what `frames` needs.
        kinds: Which of "lake", "river", "road", "field", "wood", "building" to draw.
        gsd: Cell size in units of `crs`, > 0.
        crs: A projected CRS in which (500000, 4600000) is a good place, such as any UTM zone north.
        frames: Draw an object of the first kind in the middle that touches about this many frames;
            nothing cuts it.
        twin: Draw a look-alike beside the main object: same surface, a dozen pixels away.

    Raises:
        ValueError: If a kind is unknown or the size is not positive.

    >>> scene = synthetic_scene(1, 256, kinds=["river", "road"])
    >>> scene.pixels.shape, sorted(set(scene.truth.kind))
    ((3, 256, 256), ['river', 'road'])
    """
    unknown = set(kinds) - set(KINDS)
    if unknown or not kinds:
        raise ValueError(f"kinds must be some of {', '.join(KINDS)}; got {list(kinds)}")
    rng = np.random.default_rng(seed)
    main = _main_object(rng, kinds[0], frames) if frames else None
    shape = _shape(size, main)
    if main is not None:
        main = main._replace(outline=_centred(main.outline, shape))
    things = _clutter(rng, shape, kinds, main)
    if main is not None:
        things.append(main)
        if twin:
            things.append(_Thing(main.kind, _twin(rng, main, shape), twin=True))
    things = _visible(things, shape)
    labels = _labels(things, shape)
    geobox = GeoBox(shape, _transform(gsd), crs)
    return SyntheticScene(_render(rng, things, labels), _truth(things, geobox), labels, geobox)


def frames_touched(outline: shapely.Geometry) -> int:
    """How many lattice frames a geometry in pixels touches, if frame (0, 0) starts at (0, 0).

    >>> frames_touched(box(200, 200, 300, 300)), frames_touched(box(200, 200, 450, 300))
    (1, 2)
    """
    stride = FRAME - OVERLAP
    left, top, right, bottom = outline.bounds
    columns = np.arange((left - FRAME) // stride, right // stride + 1) * stride
    rows = np.arange((top - FRAME) // stride, bottom // stride + 1) * stride
    x, y = (grid.ravel() for grid in np.meshgrid(columns, rows))
    cells = shapely.box(x, y, x + FRAME, y + FRAME)
    return int((shapely.area(shapely.intersection(cells, outline)) > 0).sum())


def _main_object(rng: np.random.Generator, kind: str, frames: int) -> _Thing:
    """The outline whose count of frames, over sizes and two positions, comes closest."""
    own_seed = int(rng.integers(2**32))
    best: tuple[float, Polygon] | None = None
    longest = 420 * frames if kind in ("river", "road") else 420 * (frames**0.5 + 0.5)
    for diameter in np.geomspace(100, longest, 40):
        outline = _MAKERS[kind](np.random.default_rng(own_seed), float(diameter))
        for centre in (FRAME / 2, OVERLAP / 2):  # of a frame, or of a crossing of seams
            placed = affinity.translate(outline, centre, centre)
            miss = abs(frames_touched(placed) - frames) - 1e-6 * diameter  # the larger wins
            if best is None or miss < best[0]:
                best = (miss, placed)
    assert best is not None
    return _Thing(kind, best[1], main=True)


def _shape(size: int | tuple[int, int] | None, main: _Thing | None) -> tuple[int, int]:
    if size is None and main is None:
        size = 1024
    if size is None:
        assert main is not None
        left, top, right, bottom = main.outline.bounds
        stride = FRAME - OVERLAP
        sides = (bottom - top, right - left)
        size = tuple(int(np.ceil((side + 300) / stride)) * stride + OVERLAP for side in sides)  # type: ignore[assignment]
    height, width = (size, size) if isinstance(size, int) else size  # type: ignore[misc]
    if height < 1 or width < 1:
        raise ValueError(f"size must be positive, got {height} x {width}")
    return height, width


def _centred(outline: Polygon, shape: tuple[int, int]) -> Polygon:
    """Move to the middle by whole strides, which keeps the count of frames."""
    stride = FRAME - OVERLAP
    left, top, right, bottom = outline.bounds
    shift_x = round((shape[1] / 2 - (left + right) / 2) / stride) * stride
    shift_y = round((shape[0] / 2 - (top + bottom) / 2) / stride) * stride
    return affinity.translate(outline, shift_x, shift_y)


def _clutter(
    rng: np.random.Generator, shape: tuple[int, int], kinds: Sequence[str], main: _Thing | None
) -> list[_Thing]:
    """Objects of each kind over the whole scene, clear of the main one."""
    height, width = shape
    whole = box(0, 0, width, height)
    keep_out = main.outline.buffer(24) if main else Polygon()
    things: list[_Thing] = []
    if "field" in kinds:
        plots = shapes.patchwork(rng, whole, side=220)
        things += [_Thing("field", plot) for plot in plots if rng.random() < 0.75]
    per_area = height * width / 1024**2
    for kind in ("road", "river"):
        if kind in kinds:
            # what crosses without a visible border is one object
            lines = [_crossing(rng, kind, shape) for _ in range(max(1, round(1.5 * per_area**0.5)))]
            things.append(_Thing(kind, shapely.union_all(lines).difference(keep_out)))
    taken = [thing.outline for thing in things if thing.kind != "field"]
    for kind, density, low, high in (
        ("lake", 2.5, 90, 360),
        ("wood", 3, 80, 320),
        ("building", 14, 24, 60),
    ):
        if kind in kinds:
            for _ in range(max(1, rng.poisson(density * per_area))):
                outline = _MAKERS[kind](rng, float(rng.uniform(low, high)))
                place = (rng.uniform(0, width), rng.uniform(0, height))
                outline = affinity.translate(outline, *place)
                near = [*taken, keep_out]
                if kind == "wood":  # roads and rivers run through woods
                    near = [thing.outline for thing in things if thing.kind == kind] + [keep_out]
                if not shapely.intersects(near, outline.buffer(8)).any():
                    things.append(_Thing(kind, outline))
                    taken.append(outline)
    return sorted(things, key=lambda thing: _ORDER.index(thing.kind))


def _crossing(rng: np.random.Generator, kind: str, shape: tuple[int, int]) -> Polygon:
    """A road or river from side to side."""
    height, width = shape
    outline = _MAKERS[kind](rng, 1.6 * float(np.hypot(height, width)))
    outline = affinity.rotate(outline, 90 * rng.integers(0, 2), origin=(0, 0))
    place = (width * rng.uniform(0.2, 0.8), height * rng.uniform(0.2, 0.8))
    return affinity.translate(outline, *place)


def _twin(rng: np.random.Generator, main: _Thing, shape: tuple[int, int]) -> Polygon:
    """A second outline of the same kind on the right, kept a dozen pixels away."""
    left, top, right, bottom = main.outline.bounds
    size = 0.6 * max(right - left, bottom - top)
    outline = _MAKERS[main.kind](rng, min(size, 700.0))
    reach = outline.bounds[2] - outline.bounds[0]
    beside = affinity.translate(outline, right + 0.3 * reach, (top + bottom) / 2)
    return shapes.largest(beside.difference(main.outline.buffer(12)))


def _visible(things: list[_Thing], shape: tuple[int, int]) -> list[_Thing]:
    """What remains in sight of each object, one polygon a part; slivers dropped."""
    whole = box(0, 0, shape[1], shape[0])
    shapely.prepare(whole)
    outlines = [thing.outline.intersection(whole) for thing in things]
    tree = shapely.STRtree(outlines)
    seen: list[_Thing] = []
    for number in reversed(range(len(things))):
        thing, outline = things[number], outlines[number]
        above = [outlines[other] for other in tree.query(outline) if other > number]
        outline = outline.difference(shapely.union_all(above)) if above else outline
        for part in shapely.get_parts(outline):
            if part.geom_type == "Polygon" and part.buffer(-3).area > 40:
                seen.append(thing._replace(outline=part))
    return seen[::-1]


def _labels(things: list[_Thing], shape: tuple[int, int]) -> npt.NDArray[np.int32]:
    pairs = [(thing.outline, number) for number, thing in enumerate(things, start=1)]
    if not pairs:
        return np.zeros(shape, np.int32)
    return np.asarray(rasterio.features.rasterize(pairs, shape, dtype="int32"))


def _transform(gsd: float) -> Affine:
    """A corner in the middle of a UTM zone, on the lattice of frames."""
    if not gsd > 0:
        raise ValueError(f"gsd must be positive, got {gsd}")
    step = (FRAME - OVERLAP) * gsd
    left, top = round(500_000 / step) * step, round(4_600_000 / step) * step
    return Affine(gsd, 0, left, 0, -gsd, top)


def _truth(things: list[_Thing], geobox: GeoBox) -> geopandas.GeoDataFrame:
    matrix = geobox.transform
    to_map = [matrix.a, matrix.b, matrix.d, matrix.e, matrix.c, matrix.f]
    geometry = [
        shapely.orient_polygons(affinity.affine_transform(thing.outline, to_map))
        for thing in things
    ]
    columns = {
        "id": np.arange(1, len(things) + 1),
        "kind": [thing.kind for thing in things],
        "main": [thing.main for thing in things],
        "twin": [thing.twin for thing in things],
    }
    return geopandas.GeoDataFrame(columns, geometry=geometry, crs=str(geobox.crs))


def _render(
    rng: np.random.Generator, things: list[_Thing], labels: npt.NDArray[np.int32]
) -> npt.NDArray[np.uint8]:
    """Paint, cast shadows, light, blur as optics do, add sensor noise."""
    shape = labels.shape
    image = textures.ground(rng, shape)  # type: ignore[arg-type]
    surfaces: dict[str, int] = {}
    for number, thing in enumerate(things, start=1):
        window = _window(thing.outline, shape)  # type: ignore[arg-type]
        inside = labels[window] == number
        if inside.any():
            # one seed a kind for water and asphalt: a cut river looks alike on both sides
            alike = thing.kind in ("lake", "river", "road")
            seed = surfaces.setdefault(thing.kind, int(rng.integers(2**32))) if alike else None
            own = np.random.default_rng(seed if alike else rng.integers(2**32))
            surface = _surface(own, thing.kind, inside)
            np.copyto(image[(slice(None), *window)], surface, where=inside)
    image *= _light(rng, things, labels)
    brightness = np.float32(rng.uniform(0.9, 1.15))
    sharp = np.clip(255 * (image * brightness).transpose(1, 2, 0) ** 0.9, 0, 255).astype(np.uint8)
    blurred = np.asarray(Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(0.7)), np.float32)
    blurred += 2.5 * rng.standard_normal(blurred.shape, dtype=np.float32)
    return np.ascontiguousarray(np.clip(blurred, 0, 255).astype(np.uint8).transpose(2, 0, 1))


def _surface(
    rng: np.random.Generator, kind: str, inside: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    if kind != "lake":
        return textures.SURFACES[kind](rng, inside.shape)  # type: ignore[arg-type]
    # depth grows away from the shore: a wide blur of the mask does, at a coarse scale
    height, width = inside.shape
    coarse = Image.fromarray(inside.astype(np.uint8) * 255).resize(
        (max(1, width // 4), max(1, height // 4)), Image.Resampling.BOX
    )
    soft = coarse.filter(ImageFilter.GaussianBlur(7)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    depth = np.clip(np.asarray(soft, np.float32) / 127.5 - 0.9, 0, 1)
    return textures.water(rng, inside.shape, depth)  # type: ignore[arg-type]


def _light(
    rng: np.random.Generator, things: list[_Thing], labels: npt.NDArray[np.int32]
) -> npt.NDArray[np.float32]:
    """Shadows of trees and houses, uneven illumination, vignetting: (H, W) factors."""
    height, width = labels.shape
    light = 1 + 0.10 * textures.noise(rng, (height, width), 900, 2)
    slope = rng.normal(scale=0.06, size=2)
    rows, columns = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light *= (1 + slope[0] * rows + slope[1] * columns).astype(np.float32)
    heights = np.zeros(len(things) + 1, np.uint8)
    for number, thing in enumerate(things, start=1):
        heights[number] = _SHADOW.get(thing.kind, 0)
    tall = heights[labels]
    dark = np.zeros(labels.shape, bool)
    for step in range(1, max(_SHADOW.values()) + 1):
        dark[step:, step:] |= (tall[:-step, :-step] >= step) & (tall[step:, step:] < step)
    light[dark] *= 0.6
    return light


def _window(outline: Polygon, shape: tuple[int, int]) -> tuple[slice, slice]:
    left, top, right, bottom = outline.bounds
    rows = slice(max(0, int(top)), min(shape[0], int(bottom) + 1))
    columns = slice(max(0, int(left)), min(shape[1], int(right) + 1))
    return rows, columns
