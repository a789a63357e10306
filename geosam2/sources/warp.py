"""Reading a scene on a grid that is not its own: the only place where pixels are resampled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from odc.geo.crs import CRS as OdcCRS  # noqa: N811 - pyproj has a CRS too
from odc.geo.geobox import GeoBox
from pyproj import CRS
from rasterio.enums import Resampling
from rasterio.warp import reproject

from geosam2.errors import GeoreferenceError, LevelError
from geosam2.levels import Level, Window

if TYPE_CHECKING:
    from geosam2.scene import Frame, Scene

_MARGIN = 2  # source pixels around the grid that bilinear weights may reach
_LARGEST = 64 * 2**20  # source pixels that one grid may take


def read_warped(scene: Scene, geobox: GeoBox) -> Frame:
    """Frame on any grid in any CRS: bilinear colours, nearest mask.

    Raises:
        GeoreferenceError: If the scene or the grid has no CRS, or they cannot be brought together.
        LevelError: If it would take far more pixels than the grid has.
    """
    from geosam2.scene import Frame

    if scene.crs is None or geobox.crs is None:
        raise GeoreferenceError(
            f"{scene.name} or the grid has no CRS: only grids of the scene's own pixels can be read"
        )
    needed = _footprint(scene.crs, geobox)
    level = _level_of(scene, needed, geobox)
    inner = level.window_of(needed)
    window = Window(
        inner.row - _MARGIN,
        inner.col - _MARGIN,
        inner.height + 2 * _MARGIN,
        inner.width + 2 * _MARGIN,
    )
    if window.height * window.width > _LARGEST:
        raise LevelError(
            f"this grid covers {window.height} x {window.width} px of {scene.name} at its coarsest "
            "level: ask for a smaller one"
        )
    frame = scene.read(level.geobox(window))
    pixels = np.zeros((3, *geobox.shape), np.uint8)
    valid = np.zeros(geobox.shape, np.uint8)
    grids = {
        "src_transform": frame.geobox.affine,
        "src_crs": str(frame.geobox.crs),
        "dst_transform": geobox.affine,
        "dst_crs": str(geobox.crs),
    }
    mask = frame.valid.astype(np.uint8)
    reproject(mask, valid, resampling=Resampling.nearest, **grids)
    reproject(frame.pixels, pixels, resampling=Resampling.bilinear, **grids)
    return Frame(pixels * valid, valid.astype(bool), geobox)


def _footprint(crs: CRS, geobox: GeoBox) -> tuple[float, float, float, float]:
    """Bounds of a grid in the scene's CRS."""
    outline = geobox.extent.to_crs(OdcCRS(crs.to_wkt()), resolution=geobox.resolution.x * 16)
    box = outline.boundingbox
    if not np.isfinite([*box]).all():
        raise GeoreferenceError(f"a grid in {geobox.crs} has no place in the scene's CRS")
    left, bottom, right, top = box.bbox
    return left, bottom, right, top


def _level_of(scene: Scene, needed: tuple[float, float, float, float], geobox: GeoBox) -> Level:
    """Coarsest level that still has a pixel for each of the grid's."""
    left, bottom, right, top = needed
    pixels = geobox.shape[0] * geobox.shape[1]
    cell = ((right - left) * (top - bottom) / pixels) ** 0.5
    fine_enough = [level for level in scene.levels if level.cell_size <= cell * 1.01]
    return fine_enough[-1] if fine_enough else scene.levels[0]
