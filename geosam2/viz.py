"""Results over the imagery, as matplotlib figures; no global state, no window is opened."""

from __future__ import annotations

import colorsys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas
import numpy as np
import shapely
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline

from geosam2.errors import ExportError, GeoreferenceError
from geosam2.export import PICTURES
from geosam2.scene import Frame, Scene, open_scene
from geosam2.vectorize import metres_per_unit

if TYPE_CHECKING:
    from geosam2.prompts import Prompt
    from geosam2.stack import Stack

Bounds = tuple[float, float, float, float]

_DPI = 100
# Okabe and Ito 2008, told apart by colour-blind eyes too, without black and in an order that
# stands out from vegetation, soil and water first
_COLOURS = ("#F0E442", "#E69F00", "#56B4E9", "#CC79A7", "#D55E00", "#009E73", "#0072B2")


def overlay(
    scene: Scene | Any,
    gdf: geopandas.GeoDataFrame,
    *,
    bounds: Bounds | None = None,
    size: int = 1200,
    label: str | None = "id",
    fill: float = 0.15,
    prompts: tuple[Prompt, ...] | list[Prompt] = (),
) -> Figure:
    """Polygons over the imagery that they were found in.

    The imagery is read at the coarsest level that still has enough pixels, so a picture of a whole
    country costs no more than one of a house.

    Args:
        scene: A scene, or what `open_scene` takes.
        gdf: Result, in any CRS; drawn in the scene's. May be empty.
        bounds: (left, bottom, right, top) in the scene's CRS; default the objects with a margin,
            or the whole scene if there are none.
        size: Longer side of the imagery in the picture, pixels, >= 64.
        label: Column whose values are written at the objects if there are at most 40; None = none.
        fill: Opacity of the areas, 0..1; outlines are always solid.
        prompts: Clicks and boxes to show: green = foreground, red = background.

    Raises:
        GeoreferenceError: If the objects are somewhere else than the scene.

    Returns:
        A figure; `figure.savefig("x.png")` or `save_preview` writes it.
    """
    scene = open_scene(scene)
    shapes = _drawable(gdf, scene, size)
    view = bounds or _view(scene, shapes)
    frame = _imagery(scene, view, size)
    figure = _figure(_size_of(frame, size))
    axes = figure.add_axes((0, 0, 1, 1))
    _draw(axes, frame, shapes, fill)
    _draw_labels(axes, shapes, label, _extent(frame))
    for prompt in prompts:
        _draw_prompt(axes, prompt.to_crs(scene.crs))
    _draw_scale_bar(axes, scene, _extent(frame))
    return figure


def by_date(
    stack: Stack,
    gdf: geopandas.GeoDataFrame,
    *,
    bounds: Bounds | None = None,
    size: int = 360,
    columns: int = 4,
    fill: float = 0.15,
) -> Figure:
    """What `track` found over the imagery of each date, beside each other; one colour an object.

    Args:
        stack: Of the result.
        gdf: Result, with a column `date`; any CRS.
        bounds: (left, bottom, right, top) in the stack's CRS; default all outlines with a margin.
        size: Longer side of the imagery of a date, pixels, >= 64.
        columns: Dates side by side, at most.
        fill: Opacity of the areas, 0..1.

    Raises:
        GeoreferenceError: If the objects are somewhere else than the scenes.
    """
    first = stack.scenes[0]
    shapes = _drawable(gdf, first, size)
    view = bounds or _view(first, shapes)
    frames = [_imagery(scene, view, size) for scene in stack.scenes]
    width, height = _size_of(frames[0], size)
    columns = min(columns, len(stack))
    rows = -(-len(stack) // columns)
    title = 0.25  # inches above each
    figure = _figure((columns * width, rows * (height + title)))
    for number, (date, frame) in enumerate(zip(stack.dates, frames, strict=True)):
        row, column = divmod(number, columns)
        bottom = 1 - (row + 1) / rows
        share = height / (height + title)
        axes = figure.add_axes((column / columns, bottom, 0.985 / columns, share / rows))
        _draw(axes, frame, shapes[shapes["date"] == date], fill)
        axes.set_title(date, fontsize=10, pad=3)
    return figure


def _drawable(gdf: geopandas.GeoDataFrame, scene: Scene, size: int) -> geopandas.GeoDataFrame:
    """Shapes in the CRS of the scene, for a picture of so many pixels."""
    if size < 64:
        raise ValueError(f"a picture of {size} pixels shows nothing: size must be at least 64")
    return gdf if scene.crs is None or gdf.crs is None else gdf.to_crs(scene.crs)


def _figure(inches: tuple[float, float]) -> Figure:
    figure = Figure(figsize=inches, dpi=_DPI)  # not by pyplot, which would keep it forever
    FigureCanvasAgg(figure)
    return figure


def _size_of(frame: Frame, longer: int) -> tuple[float, float]:
    """Width and height in inches at which the longer side has so many pixels."""
    height, width = frame.shape
    scale = longer / max(height, width) / _DPI
    return width * scale, height * scale


def _draw(axes: Axes, frame: Frame, shapes: geopandas.GeoDataFrame, fill: float) -> None:
    left, bottom, right, top = _extent(frame)
    image = np.where(frame.valid, frame.pixels, 60).transpose(1, 2, 0)
    axes.imshow(image, extent=(left, right, bottom, top), interpolation="bilinear", aspect="auto")
    _draw_shapes(axes, shapes, fill)
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.set_axis_off()


def save_preview(
    scene: Scene | Any, gdf: geopandas.GeoDataFrame, path: str | Path, **options: Any
) -> Path:
    """Write `overlay(scene, gdf, **options)` as a picture; whole or not at all.

    Raises:
        ExportError: If it cannot be written.
    """
    path = _picture_path(path)
    return _save(overlay(scene, gdf, **options), path)


def save_dates(stack: Stack, gdf: geopandas.GeoDataFrame, path: str | Path, **options: Any) -> Path:
    """Write `by_date(stack, gdf, **options)` as a picture; whole or not at all.

    Raises:
        ExportError: If it cannot be written.
    """
    path = _picture_path(path)
    return _save(by_date(stack, gdf, **options), path)


def _picture_path(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix.lower() not in PICTURES:
        raise ExportError(f"a preview is written as .png, .jpg, .pdf or .svg, not {path.name!r}")
    return path


def _save(figure: Figure, path: Path) -> Path:
    try:
        with tempfile.TemporaryDirectory(prefix=".preview.", dir=path.parent) as folder:
            temporary = Path(folder, path.name)
            figure.savefig(temporary)
            temporary.replace(path)
    except OSError as error:
        raise ExportError(f"{path} could not be written: {error}") from error
    return path


def colours(count: int) -> list[tuple[float, float, float]]:
    """So many colours that differ from their predecessors, red, green, blue in 0..1.

    >>> len(set(colours(200)))
    200
    """
    named: list[tuple[float, float, float]] = [to_rgb(code) for code in _COLOURS]
    # beyond the named ones: hues a golden section of the circle apart, in three brightnesses
    tones = ((0.9, 1.0), (0.6, 0.95), (0.75, 0.8))
    more = [
        colorsys.hsv_to_rgb((0.13 + 0.618034 * k) % 1, *tones[k % 3])
        for k in range(count - len(named))
    ]
    return [*named, *more][:count]


def _view(scene: Scene, shapes: geopandas.GeoDataFrame) -> Bounds:
    """The objects with some ground around them, within the scene."""
    scene_left, scene_bottom, scene_right, scene_top = scene.bounds
    left, bottom, right, top = shapes.total_bounds
    if np.isnan(left):
        return scene.bounds
    margin = max(0.15 * max(right - left, top - bottom), 24 * scene.cell_size)
    view = (
        max(left - margin, scene_left),
        max(bottom - margin, scene_bottom),
        min(right + margin, scene_right),
        min(top + margin, scene_top),
    )
    if view[0] >= view[2] or view[1] >= view[3]:
        raise GeoreferenceError(
            f"the objects ({left:g}, {bottom:g}, {right:g}, {top:g}) are outside the scene "
            f"({scene_left:g}, {scene_bottom:g}, {scene_right:g}, {scene_top:g}): do they belong "
            "to another scene, or lack their CRS?"
        )
    return view


def _imagery(scene: Scene, view: Bounds, size: int) -> Frame:
    """The view from the coarsest level with at least `size` pixels along its longer side."""
    level = scene.levels[0]
    for coarser in scene.levels[1:]:
        window = coarser.window_of(view)
        if max(window.height, window.width) < size:
            break
        level = coarser
    window = level.window_of(view)
    if window.empty:
        raise GeoreferenceError(f"bounds {view} hold no pixel: (left, bottom, right, top), please")
    grid = level.geobox(window)
    # where no overview is coarse enough, the reader makes one
    return scene.read(grid if max(grid.shape) <= 4 * size else grid.zoom_to(size))


def _extent(frame: Frame) -> Bounds:
    box = frame.geobox.extent.boundingbox
    return box.left, box.bottom, box.right, box.top


def _draw_shapes(axes: Axes, shapes: geopandas.GeoDataFrame, fill: float) -> None:
    halo = [patheffects.Stroke(linewidth=3.2, foreground=(0, 0, 0, 0.55)), patheffects.Normal()]
    for geometry, colour in zip(shapes.geometry, colours(len(shapes)), strict=True):
        outline = _outline(geometry)
        if outline is not None:
            # a hole is a hole: rings of opposite direction, filled by winding number
            axes.add_patch(PathPatch(outline, facecolor=(*colour, fill), edgecolor="none"))
            line = PathPatch(outline, facecolor="none", edgecolor=colour, linewidth=1.6)
            line.set_path_effects(halo)
            axes.add_patch(line)


def _outline(geometry: shapely.Geometry) -> Outline | None:
    """One path of all rings, shells and holes in opposite directions."""
    if geometry is None or geometry.is_empty:
        return None
    parts = [part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon"]
    rings = [
        shapely.get_coordinates(ring)
        for part in shapely.orient_polygons(np.array(parts, dtype=object))
        for ring in (part.exterior, *part.interiors)
    ]
    if not rings:
        return None
    codes = [[Outline.MOVETO, *[Outline.LINETO] * (len(r) - 2), Outline.CLOSEPOLY] for r in rings]
    return Outline(np.concatenate(rings), np.concatenate(codes))


def _draw_labels(
    axes: Axes, shapes: geopandas.GeoDataFrame, label: str | None, view: Bounds
) -> None:
    seen = shapes[shapely.intersects(shapes.geometry.to_numpy(), shapely.box(*view))]
    if label is None or label not in shapes or len(seen) > 40:
        return
    halo = [patheffects.withStroke(linewidth=2.5, foreground="black")]
    for value, geometry in zip(seen[label], seen.geometry, strict=True):
        place = shapely.intersection(geometry, shapely.box(*view)).representative_point()
        if not place.is_empty:
            text = f"{value:.3g}" if isinstance(value, float) else str(value)
            axes.annotate(
                text,
                (place.x, place.y),
                color="white",
                fontsize=10,
                ha="center",
                va="center",
                path_effects=halo,
            )


def _draw_prompt(axes: Axes, prompt: Prompt) -> None:
    for (x, y), sign in zip(prompt.points, prompt.labels, strict=True):
        colour = "#00E676" if sign else "#FF1744"
        axes.plot(x, y, "o", ms=8, mfc=colour, mec="white", mew=1.6)
    if prompt.box is not None:
        left, bottom, right, top = prompt.box
        corner, sides = (left, bottom), (right - left, top - bottom)
        axes.add_patch(Rectangle(corner, *sides, fill=False, ec="#00E676", lw=1.6, ls="--"))


def _draw_scale_bar(axes: Axes, scene: Scene, view: Bounds) -> None:
    """A round number of metres (pixels without a CRS), about a fifth of the width."""
    left, bottom, right, top = view
    metres, _ = metres_per_unit(scene.crs, (left + right) / 2, (bottom + top) / 2)
    length = _round_length((right - left) * metres / 5)
    unit = "px" if scene.crs is None else "m"
    text = f"{length / 1000:g} km" if unit == "m" and length >= 1000 else f"{length:g} {unit}"
    share = length / metres / (right - left)
    halo = [patheffects.withStroke(linewidth=5, foreground="black")]
    axes.plot(
        [0.025, 0.025 + share],
        [0.03, 0.03],
        transform=axes.transAxes,
        color="white",
        lw=3,
        solid_capstyle="butt",
        path_effects=halo,
    )
    axes.text(
        0.025 + share / 2,
        0.04,
        text,
        transform=axes.transAxes,
        color="white",
        fontsize=10,
        ha="center",
        va="bottom",
        path_effects=[patheffects.withStroke(linewidth=2.5, foreground="black")],
    )


def _round_length(longest: float) -> float:
    """The largest 1, 2 or 5 times a power of ten that is not longer.

    >>> _round_length(87.0), _round_length(0.3)
    (50.0, 0.2)
    """
    power = 10.0 ** np.floor(np.log10(longest))
    return float(max(step for step in (1, 2, 5) if step * power <= longest) * power)
