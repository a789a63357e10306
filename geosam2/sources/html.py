"""How a scene shows itself in a notebook."""

from __future__ import annotations

import base64
import html
import math
from typing import TYPE_CHECKING

from pyproj import Transformer

from geosam2.errors import GeoSAM2Error

if TYPE_CHECKING:
    from geosam2.scene import Scene

_LARGEST = 64 * 2**20  # stored pixels that a picture in passing may read
_MOST_TILES = 16


def scene_html(scene: Scene) -> str:
    """Facts, a thumbnail where it is cheap, and the place on a map of the world."""
    height, width = scene.shape
    rows = {
        "source": scene.source,
        "size": f"{height} x {width} px",
        "pixel": "no metres" if math.isnan(scene.gsd) else f"{scene.gsd:.3g} m on the ground",
        "CRS": "pixel coordinates" if scene.crs is None else scene.crs.name,
        "bands": ", ".join(scene.bands),
        "levels": ", ".join(level.label for level in scene.levels),
    }
    table = "".join(
        f"<tr><th style='text-align:left'>{name}</th><td>{html.escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return (
        f"<div><b>{html.escape(scene.name)}</b>"
        f"<div style='display:flex;gap:1em;align-items:flex-start'>"
        f"<table>{table}</table>{_thumbnail(scene)}{_footprint(scene)}</div></div>"
    )


def _thumbnail(scene: Scene) -> str:
    """Picture, or nothing where it would cost a lot or fail: a repr must not."""
    level = scene.levels[-1]
    window = scene.window(level)
    step = round(level.cell_size / scene.cell_size)
    stored = scene.reader.stored(level)
    pixels = window.height * window.width * (1 if stored else step**2)
    if pixels > _LARGEST or scene.reader.requests(level, [window]) > _MOST_TILES:
        return ""
    try:
        picture = base64.b64encode(scene.thumbnail_png(256)).decode()
    except GeoSAM2Error:
        return ""
    return f"<img alt='thumbnail' src='data:image/png;base64,{picture}'/>"


def _footprint(scene: Scene) -> str:
    """Outline on a 2:1 map of the world, with a ring around what would be too small to see."""
    if scene.crs is None:
        return ""
    to_degrees = Transformer.from_crs(scene.crs, 4326, always_xy=True)
    west, south, east, north = to_degrees.transform_bounds(*scene.bounds, densify_pts=21)
    if not all(map(math.isfinite, (west, south, east, north))):
        return ""
    east += 360 * (east < west)
    middle = ((west + east) / 2, -(south + north) / 2)
    grid = "".join(f"<path d='M{x} -90V90'/>" for x in range(-180, 181, 60)) + "".join(
        f"<path d='M-180 {y}H180'/>" for y in range(-90, 91, 30)
    )
    return (
        "<svg width='240' height='120' viewBox='-180 -90 360 180' style='background:#eef3f7'>"
        f"<g stroke='#b8c4cc' stroke-width='0.7'>{grid}</g>"
        f"<g fill='none' stroke='#c0392b' stroke-width='1.5'>"
        f"<rect x='{west:.4f}' y='{-north:.4f}' width='{east - west:.4f}' "
        f"height='{north - south:.4f}'/>"
        f"<circle cx='{middle[0]:.3f}' cy='{middle[1]:.3f}' r='7'/></g></svg>"
    )
