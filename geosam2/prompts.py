"""Prompts in map coordinates, and the one place where map becomes network pixels.

Conventions: (0, 0) is the top-left corner of the top-left pixel. The network counts pixel *centres*
and its prompt encoder adds the half pixel back, so half a pixel is taken off here and nowhere else.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import shapely
import shapely.affinity
import shapely.ops
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError, ProjError

from geosam2.errors import PromptError
from geosam2.levels import whole_turn
from geosam2.vector_files import read_vector

if TYPE_CHECKING:
    from geosam2_model import Prompts
    from odc.geo.geobox import GeoBox

    from geosam2.scene import Scene


class Placed(Protocol):
    """A frame, encoded or not: all that matters here is where it is and where it has data."""

    @property
    def geobox(self) -> GeoBox:
        """Grid of the frame."""

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(H, W), True = data."""


Point = tuple[float, float]
Bounds = tuple[float, float, float, float]

PIXEL_COORDINATES = "x = column and y = -row, so y is negative below the top of the picture"
"""Where a scene without a CRS has its places."""

MASK_LOGIT = 8.0
"""Logit that a drawn mask has inside (and minus that outside) when it is shown to the network."""

MASK_STEP = 4
"""Network pixels per cell of a mask prompt."""


@dataclass(frozen=True)
class Prompt:
    """What a person points at: points, a box or a drawn mask, in map coordinates.

    >>> Prompt(points=[(85.52, 27.63)], crs="EPSG:4326").labels
    (1,)
    """

    points: tuple[Point, ...] = ()
    """(x, y) in `crs`; x is easting or longitude, whatever the CRS's official axis order."""
    labels: tuple[int, ...] = ()
    """1 = foreground, 0 = background, one a point; empty = all foreground."""
    box: Bounds | None = None
    """(left, bottom, right, top) in `crs`."""
    mask: shapely.Geometry | None = None
    """A polygon or multipolygon in `crs` that roughly covers the object."""
    crs: Any = None
    """Anything that `CRS.from_user_input` takes, kept as a CRS; None = the scene's own CRS."""
    object_id: int = 1
    """Number of the object; it becomes the `id` column."""

    def __post_init__(self) -> None:
        set_ = functools.partial(object.__setattr__, self)
        set_("points", _as_points(self.points))
        set_("labels", _as_labels(self.labels) or (1,) * len(self.points))
        set_("crs", _crs(self.crs))
        if self.box is not None:
            set_("box", _as_box(self.box))
        if isinstance(self.mask, shapely.Geometry) and not self.mask.is_valid:
            # drawn by hand: the outline may cross itself
            set_("mask", shapely.make_valid(self.mask))
        self._check()

    def _check(self) -> None:
        if not self.points and self.box is None and self.mask is None:
            raise PromptError("prompt has no point, no box and no mask: give at least one of them")
        if len(self.points) != len(self.labels):
            raise PromptError(
                f"{len(self.points)} points but {len(self.labels)} labels: give one label (1 or 0) "
                "for each point, or none at all"
            )
        if not all(math.isfinite(v) for point in self.points for v in point):
            raise PromptError(f"prompt {self.points} is not finite: give numbers in map units")
        if self.box is not None:
            _check_box(self.box)
        if self.mask is not None and not isinstance(self.mask, shapely.Geometry):
            raise PromptError(f"mask {self.mask!r}: give a shapely polygon or multipolygon")
        if self.mask is not None and (self.mask.is_empty or self.mask.area == 0):
            raise PromptError("mask prompt is empty: give a polygon with an area")

    def check_start(self) -> None:
        """Refuse a prompt that only says where the object is not; fine as a correction.

        Raises:
            PromptError: If there is no foreground point, no box and no mask.
        """
        if self.box is None and self.mask is None and 1 not in self.labels:
            raise PromptError("every point is background: give at least one point on the object")

    @property
    def anchor(self) -> Point:
        """(x, y) of the place on the object where segmenting starts."""
        if 1 in self.labels:
            return self.points[self.labels.index(1)]
        if self.box is not None:
            left, bottom, right, top = self.box
            return (left + right) / 2, (bottom + top) / 2
        if self.mask is None:  # background points only: a correction
            return self.points[0]
        inner = self.mask.representative_point()
        return float(inner.x), float(inner.y)

    @property
    def bounds(self) -> Bounds:
        """(left, bottom, right, top) around everything in the prompt."""
        corners = list(self.points)
        for part in (self.box, self.mask.bounds if self.mask is not None else None):
            if part is not None:
                corners += [(part[0], part[1]), (part[2], part[3])]
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def to_crs(self, crs: Any) -> Prompt:
        """The same prompt in another CRS; the box becomes the bounds of the warped box.

        Raises:
            PromptError: If a coordinate has no place in the other CRS.
        """
        target = _crs(crs)
        if target is None or self.crs is None or self.crs == target:
            return self
        try:
            transformer = _transformer(self.crs, target)
            points = _warp(transformer, self.points)
            box = transformer.transform_bounds(*self.box) if self.box else None
            mask = shapely.ops.transform(transformer.transform, self.mask) if self.mask else None
        except ProjError as error:
            raise PromptError(
                f"prompt {_short(self)} has no place in {_name(target)} ({error}). "
                f"Pass crs= if it is not in {_name(self.crs)}."
            ) from error
        return replace(self, points=points, box=box, mask=mask, crs=target)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `Prompt.from_json` is its inverse."""
        found: dict[str, Any] = {"object_id": self.object_id}
        if self.points:
            found |= {"points": [list(p) for p in self.points], "labels": list(self.labels)}
        if self.box is not None:
            found["box"] = list(self.box)
        if self.mask is not None:
            found["mask"] = shapely.geometry.mapping(self.mask)
        if self.crs is not None:
            found["crs"] = _name(self.crs) if self.crs.to_authority() else self.crs.to_wkt()
        return found

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Prompt:
        """Read what `to_json` gave.

        >>> prompt = Prompt(box=(0, 0, 2, 1), crs=3857)
        >>> Prompt.from_json(prompt.to_json()) == prompt
        True
        """
        mask = stored.get("mask")
        return cls(
            points=tuple((p[0], p[1]) for p in stored.get("points", ())),
            labels=tuple(stored.get("labels", ())),
            box=tuple(stored["box"]) if stored.get("box") else None,
            mask=shapely.geometry.shape(mask) if mask else None,
            crs=stored.get("crs"),
            object_id=stored.get("object_id", 1),
        )


def as_prompts(
    points: Any = None,
    labels: Any = None,
    boxes: Any = None,
    masks: Any = None,
    *,
    crs: Any = None,
) -> list[Prompt]:
    """One prompt for each object, from the arguments of `geosam2.segment`.

    Args:
        points: `[(x, y), ...]`: one object a point; or `[[(x, y), ...], ...]`: several points of
            one object in each inner list. A point layer (anything with `.geometry`) works as well,
            and so does a single (x, y).
        labels: Same nesting as `points`; 1 foreground, 0 background.
        boxes: `[(left, bottom, right, top), ...]`, one object each, or a single box; of polygons,
            alone or as a layer, their bounds.
        masks: Polygons, one object each; or a single one, or a layer.
        crs: CRS of all of them; None = a layer's own CRS, else the scene's.

    Raises:
        PromptError: If they cannot be read as such.

    >>> [len(p.points) for p in as_prompts([(1, 2), (3, 4)])], len(as_prompts((1, 2)))
    ([1, 1], 1)
    >>> [p.labels for p in as_prompts([[(1, 2), (3, 4)]], [[1, 0]])]
    [(1, 0)]
    """
    points, of_points = _from_layer(points, crs)
    boxes, of_boxes = _from_layer(boxes, crs)
    masks, of_masks = _from_layer(masks, crs)
    groups = [_group(item) for item in _each(points, "points", "[(x, y), ...]", alone=2)]
    signs = _label_groups(labels, groups)
    found = [Prompt(tuple(g), tuple(s), crs=of_points) for g, s in zip(groups, signs, strict=True)]
    corners = "[(left, bottom, right, top), ...]"
    found += [Prompt(box=b, crs=of_boxes) for b in _each(boxes, "boxes", corners, alone=4)]
    found += [Prompt(mask=shape, crs=of_masks) for shape in _each(masks, "masks", "[polygon, ...]")]
    return [replace(prompt, object_id=n) for n, prompt in enumerate(found, start=1)]


def read_prompts(path: str | Path, *, crs: Any = None, pixels: bool = False) -> list[Prompt]:
    """Prompts from a vector file, or from GeoJSON as text, which starts with `{`.

    A Point is a click (property `label` 0 = background), a MultiPoint several clicks, a Polygon a
    drawn mask, or a box with `"kind": "box"`. Features with the same property `object` are one
    object; without it each feature is its own.

    Args:
        path: GeoJSON or another file that `read_vector` reads, or text.
        crs: CRS of coordinates whose file does not say its own; None = longitude and latitude for
            GeoJSON and the scene's for others.
        pixels: They are for a scene without CRS: a file that does not say its CRS holds pixels.

    Raises:
        PromptError: If it is no GeoJSON or a feature cannot be used.
        SourceError: If another file cannot be read.
    """
    stored, crs = _stored(str(path), crs, pixels)
    name = str(path)[:80]
    kind = stored.get("type") if isinstance(stored, dict) else None
    if kind not in ("FeatureCollection", "Feature"):
        raise PromptError(f"prompts {name}: want a FeatureCollection or a Feature, not {kind}")
    features = stored.get("features") if kind == "FeatureCollection" else [stored]
    if not isinstance(features, list) or not all(isinstance(one, dict) for one in features):
        raise PromptError(f"prompts {name}: want a list of GeoJSON features in `features`")
    return _merge_features(features, crs)


_JSON = (".geojson", ".json", "")
"""Suffixes of files that are GeoJSON or nothing; a pipe has none."""


def _stored(path: str, crs: Any, pixels: bool) -> tuple[Any, Any]:
    """What a file, or text, holds as GeoJSON, and the CRS of its coordinates."""
    is_text = path.lstrip().startswith("{")
    try:
        stored = json.loads(path if is_text else Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        if not is_text and Path(path).suffix.lower() not in _JSON:
            layer = read_vector(path, pixels=pixels)
            return json.loads(layer.to_json(default=str)), crs if layer.crs is None else layer.crs
        raise PromptError(f"prompts {path[:80]}: not a readable GeoJSON file ({error})") from error
    own = _own_crs(stored) if isinstance(stored, dict) else None
    return stored, own or crs or (None if pixels else "EPSG:4326")


def _own_crs(stored: dict[str, Any]) -> str | None:
    """The CRS that GeoJSON of before RFC 7946 names."""
    for name in ("crs", "properties"):
        inner = stored.get(name)
        stored = inner if isinstance(inner, dict) else {}
    return stored.get("name")


def locate(prompt: Prompt, scene: Scene) -> Prompt:
    """The prompt in the scene's CRS, checked to lie inside.

    A place a whole turn round the Earth away is the same place: a scene may go on beyond 180
    degrees where the prompt counts from -180.

    Raises:
        PromptError: If it lies outside; the message says in which CRS it would be inside.
    """
    if prompt.crs is not None and scene.crs is None:
        raise PromptError(
            f"prompt {_short(prompt)} has a CRS ({_name(prompt.crs)}) but the scene has none: "
            f"give pixel coordinates ({PIXEL_COORDINATES}) and no crs="
        )
    inside = _turned(prompt.to_crs(scene.crs), scene)
    left, bottom, right, top = scene.bounds
    x, y = inside.anchor
    within = left <= x <= right and bottom <= y <= top
    if within and _overlaps(inside.bounds, scene.bounds):
        return replace(inside, crs=scene.crs)
    raise PromptError(_outside(prompt, scene))


def _turned(prompt: Prompt, scene: Scene) -> Prompt:
    """What lies beside the scene is moved by whole turns round the Earth, as near as it gets."""
    turn, (left, _, right, _) = whole_turn(scene.crs), scene.bounds
    if turn is None:
        return prompt

    def away(x: float) -> float:
        return 0.0 if left <= x <= right else turn * round(((left + right) / 2 - x) / turn)

    if not any(away(x) for x in prompt.bounds[::2]):
        return prompt
    points = tuple((x + away(x), y) for x, y in prompt.points)
    box, mask = prompt.box, prompt.mask
    if box is not None:
        far = away((box[0] + box[2]) / 2)
        box = (box[0] + far, box[1], box[2] + far, box[3])
    if mask is not None:
        far = away((mask.bounds[0] + mask.bounds[2]) / 2)
        mask = shapely.affinity.translate(mask, far)
    return replace(prompt, points=points, box=box, mask=mask)


def apply_affine(affine: Affine, x: Any, y: Any) -> tuple[Any, Any]:
    """Transform coordinates or arrays; the operator for it differs between versions of affine.

    >>> apply_affine(Affine(2, 0, 1, 0, -2, 5), 1, 1)
    (3.0, 3.0)
    """
    return affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f


def network_points(points: Sequence[Point], frame: Placed) -> NDArray[Any]:
    """Points in the frame's CRS as network pixels.

    Returns:
        (P, 2) float32 x, y; (0, 0) is the *centre* of the top-left pixel, as SAM counts.
    """
    if not points:
        return np.zeros((0, 2), np.float32)
    columns, rows = apply_affine(~frame.geobox.affine, *np.asarray(points, float).T)
    return np.stack([columns - 0.5, rows - 0.5], axis=1).astype(np.float32)


def network_box(box: Bounds, frame: Placed) -> NDArray[Any]:
    """A box in the frame's CRS as network pixels: (4,) float32 x0, y0, x1, y1, clipped to it."""
    left, bottom, right, top = box
    x_, y_ = np.array([[left, right], [top, bottom]])
    columns, rows = apply_affine(~frame.geobox.affine, x_, y_)
    height, width = frame.valid.shape
    x = np.clip(np.sort(columns), 0, width) - 0.5
    y = np.clip(np.sort(rows), 0, height) - 0.5
    return np.array([x[0], y[0], x[1], y[1]], np.float32)


def network_mask(mask: shapely.Geometry, frame: Placed) -> NDArray[Any]:
    """A polygon in the frame's CRS as logits (H/4, W/4) float32: plus or minus `MASK_LOGIT`."""
    from rasterio.features import rasterize

    height, width = frame.valid.shape
    full = rasterize([mask], (height, width), transform=frame.geobox.affine, dtype="uint8")
    cells = full.reshape(height // MASK_STEP, MASK_STEP, width // MASK_STEP, MASK_STEP)
    logits: NDArray[Any] = ((cells.mean((1, 3)) - 0.5) * 2 * MASK_LOGIT).astype(np.float32)
    return logits


@dataclass(frozen=True)
class FramePrompt:
    """What is said about one object on one frame, in the frame's CRS; may be nothing at all."""

    points: tuple[Point, ...] = ()
    """(x, y), all on the frame."""
    labels: tuple[int, ...] = ()
    """1 or 0 for each point."""
    box: Bounds | None = None
    """(left, bottom, right, top)."""
    logits: NDArray[np.float32] | None = None
    """(H/4, W/4), 0 = unknown: a drawn mask, or what was decided before."""

    @property
    def empty(self) -> bool:
        """True if nothing is said."""
        return not self.points and self.box is None and self.logits is None

    @property
    def ambiguous(self) -> bool:
        """One click and nothing else, or nothing: a part, the whole and a group all fit."""
        return len(self.points) <= 1 and self.box is None and self.logits is None

    @classmethod
    def of(cls, prompt: Prompt, frame: Placed) -> FramePrompt:
        """A user's prompt as it is seen from a frame; points elsewhere are left out."""
        left, bottom, right, top = frame.geobox.boundingbox.bbox
        inside = [
            (point, label)
            for point, label in zip(prompt.points, prompt.labels, strict=True)
            if left < point[0] < right and bottom < point[1] < top
        ]
        logits = None if prompt.mask is None else network_mask(prompt.mask, frame)
        return cls(
            tuple(point for point, _ in inside),
            tuple(label for _, label in inside),
            prompt.box,
            logits,
        )

    def kind(self) -> tuple[bool, bool]:
        """Prompts of one kind (with or without a box, a mask) can share a batch."""
        return self.box is not None, self.logits is not None


def network_prompts(prompts: Sequence[FramePrompt], frames: Sequence[Placed]) -> Prompts:
    """One batch of network prompts for N objects of one kind, each on its frame."""
    import torch
    from geosam2_model import Prompts

    assert len({prompt.kind() for prompt in prompts}) == 1, "prompts of different kinds"
    points, labels = _padded(prompts, frames)
    boxes = [
        network_box(p.box, frame)
        for p, frame in zip(prompts, frames, strict=True)
        if p.box is not None
    ]
    masks = [p.logits[None] for p in prompts if p.logits is not None]
    return Prompts(
        points=torch.from_numpy(points) if points.shape[1] else None,
        labels=torch.from_numpy(labels) if points.shape[1] else None,
        boxes=torch.from_numpy(np.stack(boxes)) if boxes else None,
        masks=torch.from_numpy(np.stack(masks)) if masks else None,
    )


def _padded(
    prompts: Sequence[FramePrompt], frames: Sequence[Placed]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Points (N, P, 2) and labels (N, P), padded with label -1 to the longest prompt."""
    longest = max(len(p.points) for p in prompts)
    points = np.zeros((len(prompts), longest, 2), np.float32)
    labels = np.full((len(prompts), longest), -1, np.int64)
    for row, (prompt, frame) in enumerate(zip(prompts, frames, strict=True)):
        count = len(prompt.points)
        points[row, :count] = network_points(prompt.points, frame)
        labels[row, :count] = prompt.labels
    return points, labels


def check_valid(prompt: FramePrompt, frame: Placed) -> None:
    """Refuse a click on nodata: there is nothing under it to segment.

    Raises:
        PromptError: If a foreground point lies on nodata.
    """
    height, width = frame.valid.shape
    places = network_points(prompt.points, frame)
    for (x, y), label, place in zip(prompt.points, prompt.labels, places, strict=True):
        column = min(max(math.floor(place[0] + 0.5), 0), width - 1)
        row = min(max(math.floor(place[1] + 0.5), 0), height - 1)
        if label == 1 and not frame.valid[row, column]:
            raise PromptError(
                f"prompt ({x:.10g}, {y:.10g}) is on nodata: the scene has no image there. "
                "Click where there are pixels."
            )


def _crs(value: Any) -> CRS | None:
    if value is None or isinstance(value, CRS):
        return value
    try:
        return CRS.from_user_input(value)
    except CRSError as error:
        raise PromptError(
            f"crs={value!r} is not known: use for example 'EPSG:4326' (longitude, latitude)"
        ) from error


def _as_points(values: Any) -> tuple[Point, ...]:
    try:
        return tuple((float(x), float(y)) for x, y in values)
    except (TypeError, ValueError):
        raise PromptError(f"points {values!r}: want [(x, y), ...] in map units") from None


def _as_labels(values: Any) -> tuple[int, ...]:
    """1 and 0; half a label is a mistake rather than background."""
    try:
        found = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        found = (math.nan,)
    if set(found) - {0.0, 1.0}:
        wrong = values[0] if isinstance(values, Sequence) and len(values) == 1 else values
        raise PromptError(f"label {wrong!r}: use 1 for foreground and 0 for background")
    return tuple(int(value) for value in found)


def _as_box(values: Any) -> Bounds:
    if isinstance(values, shapely.Geometry):
        values = values.bounds
    try:
        left, bottom, right, top = (float(value) for value in values)
    except (TypeError, ValueError):
        raise PromptError(f"box {values!r}: want (left, bottom, right, top) in map units") from None
    return left, bottom, right, top


def _check_box(box: Bounds) -> None:
    left, bottom, right, top = box
    if not all(math.isfinite(v) for v in box):
        raise PromptError(f"box {box} is not finite: give left, bottom, right, top in map units")
    if left >= right or bottom >= top:
        raise PromptError(f"box {box} is empty: the order is left, bottom, right, top")


@functools.lru_cache(maxsize=32)
def _transformer(source: CRS, target: CRS) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


def _warp(transformer: Transformer, points: Iterable[Point]) -> tuple[Point, ...]:
    points = tuple(points)
    if not points:
        return ()
    x, y = np.asarray(points, float).T
    xs, ys = transformer.transform(x, y, errcheck=True)
    return tuple(zip(xs.tolist(), ys.tolist(), strict=True))


def _overlaps(a: Bounds, b: Bounds) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _outside(prompt: Prompt, scene: Scene) -> str:
    bounds = ", ".join(f"{v:.10g}" for v in scene.bounds)
    where = f"bounds {bounds}; {_name(scene.crs)}" if scene.crs else f"columns, rows {bounds}"
    said = f" as {_name(prompt.crs)}" if prompt.crs is not None else ""
    text = f"prompt {_short(prompt)}{said} is outside the scene ({where})."
    if scene.crs is None:
        return f"{text} Give pixel coordinates inside it: {PIXEL_COORDINATES}."
    fits = _fitting_crs(prompt, scene)
    return text + (f" {fits}" if fits else " Pass crs= if it is not in the scene's CRS.")


def _fitting_crs(prompt: Prompt, scene: Scene) -> str | None:
    """The remedy, when the same numbers would be inside in another common CRS or axis order."""
    x, y = prompt.anchor
    for crs in dict.fromkeys((scene.crs, CRS(4326), CRS(3857), *_utm_of(scene))):
        for first, second, order in ((x, y, ""), (y, x, "swapped")):
            if _inside_as(first, second, crs, scene):
                if order:
                    return (
                        f"As ({y:.10g}, {x:.10g}) in {_name(crs)} it would be inside: "
                        f"x (longitude) comes first, and pass crs='{_name(crs)}'."
                    )
                return f"In {_name(crs)} it would be inside: pass crs='{_name(crs)}'."
    return None


def _inside_as(x: float, y: float, crs: CRS | None, scene: Scene) -> bool:
    assert crs is not None
    left, bottom, right, top = scene.bounds
    try:
        px, py = _transformer(crs, scene.crs).transform(x, y)
    except ProjError:  # the scene is in a local CRS
        return False
    return bool(left <= px <= right and bottom <= py <= top)


def _utm_of(scene: Scene) -> tuple[CRS, ...]:
    left, bottom, right, top = scene.bounds
    middle = (left + right) / 2, (bottom + top) / 2
    try:
        lon, lat = _transformer(scene.crs, CRS(4326)).transform(*middle)
    except ProjError:
        return ()
    if not math.isfinite(lon) or abs(lat) > 84:
        return ()
    zone = int((lon + 180) // 6) % 60 + 1
    return (CRS((32600 if lat >= 0 else 32700) + zone),)


def _name(crs: CRS | None) -> str:
    if crs is None:
        return "no CRS"
    authority = crs.to_authority()
    return ":".join(authority) if authority else str(crs.name)


def _short(prompt: Prompt) -> str:
    x, y = prompt.anchor
    return f"({x:.10g}, {y:.10g})"


def _from_layer(value: Any, crs: Any) -> tuple[Any, Any]:
    """Geometries of a GeoSeries or GeoDataFrame, with its own CRS unless another was given."""
    geometry = getattr(value, "geometry", None)
    if geometry is None or isinstance(value, shapely.Geometry):
        return value, crs
    shapes = list(geometry)
    missing = [number for number, shape in enumerate(shapes) if shape is None or shape.is_empty]
    if missing:
        raise PromptError(f"row {missing[0]} of the layer has no geometry: drop it (dropna)")
    if shapes and shapes[0].geom_type in ("Point", "MultiPoint"):
        shapes = [shapely.get_coordinates(shape).tolist() for shape in shapes]
    return shapes, crs if crs is not None else geometry.crs


def _each(given: Any, name: str, want: str, *, alone: int = 0) -> list[Any]:
    """A list of what was given; a single geometry, or so many plain numbers, is a list of one."""
    if given is None:
        return []
    if isinstance(given, shapely.Geometry):
        return [given]
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise PromptError(f"{name}={given!r}: want {want}")
    items = list(given)
    single = alone and len(items) == alone and all(isinstance(v, numbers.Real) for v in items)
    return [tuple(items)] if single else items


def _group(item: Any) -> list[Point]:
    """One object's points: a bare (x, y) is a group of one."""
    if isinstance(item, shapely.Geometry):
        item = shapely.get_coordinates(item)
    try:
        values = np.asarray(item, float)
    except (TypeError, ValueError):
        values = np.empty((0, 2))
    if not values.ndim:
        raise PromptError(f"point {item!r}: want (x, y)")
    if values.size == 0 or values.shape[-1] != 2 or values.ndim > 2:
        raise PromptError(f"point {item!r}: want (x, y), or a list of (x, y) for one object")
    return [(float(x), float(y)) for x, y in values.reshape(-1, 2)]


def _label_groups(labels: Any, groups: list[list[Point]]) -> list[list[int]]:
    if labels is None:
        return [[1] * len(group) for group in groups]
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        labels = [labels]  # of a single point
    nested = [list(item) if np.ndim(item) else [item] for item in labels]
    if len(nested) != len(groups):
        raise PromptError(
            f"{len(groups)} point groups but {len(nested)} label groups: nest labels as points are"
        )
    return nested


def _merge_features(features: Sequence[dict[str, Any]], crs: Any) -> list[Prompt]:
    merged: dict[Any, dict[str, Any]] = {}
    for number, feature in enumerate(features):
        properties = feature.get("properties") or {}
        if not isinstance(properties, dict):
            raise PromptError(f"prompts: the properties of feature {number} are no JSON object")
        key = properties.get("object")
        if isinstance(key, list | dict):
            raise PromptError(f"prompts: object {key!r} of feature {number}: want a number or name")
        key = ("feature", number) if key is None else key
        entry = merged.setdefault(key, {"points": [], "labels": [], "box": None, "mask": None})
        _add_feature(entry, feature, properties, number)
    if not merged:
        raise PromptError("the prompts file has no feature: put at least one point in it")
    free = (n for n in itertools.count(1) if n not in merged)
    return [
        Prompt(crs=crs, object_id=key if isinstance(key, int) else next(free), **entry)
        for key, entry in merged.items()
    ]


def _label_of(value: Any, number: int) -> int:
    try:
        (label,) = _as_labels([value])
    except PromptError as error:
        raise PromptError(f"prompts: feature {number}: {error}") from None
    return label


def _add_feature(
    entry: dict[str, Any], feature: dict[str, Any], properties: dict[str, Any], number: int
) -> None:
    try:
        shape = shapely.geometry.shape(feature["geometry"])
    except Exception as error:  # shapely's errors for bad GeoJSON are of many kinds
        why = "it is empty" if feature.get("geometry") is None else error
        raise PromptError(f"prompts: feature {number} has no usable geometry ({why})") from error
    if shape.geom_type in ("Point", "MultiPoint"):
        places = shapely.get_coordinates(shape).tolist()
        entry["points"] += places
        label = properties.get("label")  # null, as a table in a GIS has it, is no label
        entry["labels"] += [1 if label is None else _label_of(label, number)] * len(places)
    elif shape.geom_type in ("Polygon", "MultiPolygon"):
        is_box = properties.get("kind") == "box"
        entry["box" if is_box else "mask"] = shape.bounds if is_box else shape
    else:
        raise PromptError(
            f"prompts: feature {number} is a {shape.geom_type}: use points and polygons"
        )
