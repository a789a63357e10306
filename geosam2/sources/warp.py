"""Reading a scene on a grid that is not its own: the only place where pixels are resampled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from rasterio.enums import Resampling
from rasterio.warp import reproject

from geosam2.errors import GeoreferenceError, LevelError
from geosam2.levels import Level, Window

if TYPE_CHECKING:
    from geosam2.scene import Frame, Scene

_MARGIN = 2  # source pixels around the grid that bilinear weights may reach
_POINTS = 33  # along each side of the grid, to find its bounds in another CRS
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
    needed, cell = _footprint(scene.crs, geobox)
    level = _level_of(scene, cell)
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
    frame = scene.read_window(level, window)
    scale = min(1.0, level.cell_size / cell)
    pixels = np.zeros((3, *geobox.shape), np.uint8)
    valid = np.zeros(geobox.shape, np.uint8)
    grids = {
        "src_transform": frame.geobox.affine,
        "src_crs": str(frame.geobox.crs),
        "dst_transform": geobox.affine,
        "dst_crs": str(geobox.crs),
        # grid pixels per source pixel; GDAL's own guess depends on the window that is read
        "XSCALE": scale,
        "YSCALE": scale,
    }
    mask = frame.valid.astype(np.uint8)
    reproject(mask, valid, resampling=Resampling.nearest, **grids)
    reproject(frame.pixels, pixels, resampling=Resampling.bilinear, **grids)
    return Frame(pixels * valid, valid.astype(bool), geobox)


def _footprint(crs: CRS, geobox: GeoBox) -> tuple[tuple[float, float, float, float], float]:
    """Bounds of a grid and the side of its pixels, in the scene's CRS.

    Points all over the grid are looked at: its borders may bulge.
    """
    height, width = geobox.shape
    rows, cols = np.meshgrid(np.linspace(0, height, _POINTS), np.linspace(0, width, _POINTS))
    a = geobox.affine
    xs, ys = a.a * cols + a.b * rows + a.c, a.d * cols + a.e * rows + a.f
    source = CRS.from_wkt(geobox.crs.to_wkt()) if geobox.crs is not None else crs
    x, y = Transformer.from_crs(source, crs, always_xy=True).transform(xs, ys)
    if not np.isfinite([x, y]).all():
        raise GeoreferenceError(f"the grid in {geobox.crs} has no place in the scene's CRS")
    # sides of the quadrangles between the points, and from them the mean area of a pixel
    along, down = np.diff([x, y], axis=1)[:, :, :-1], np.diff([x, y], axis=2)[:, :-1, :]
    area = np.abs(along[0] * down[1] - along[1] * down[0]).mean()
    cell = float(np.sqrt(area * (_POINTS - 1) ** 2 / (height * width)))
    return (float(x.min()), float(y.min()), float(x.max()), float(y.max())), cell


def _level_of(scene: Scene, cell: float) -> Level:
    """Coarsest level that still has a pixel for each of the grid's."""
    fine_enough = [level for level in scene.levels if level.cell_size <= cell * 1.01]
    return fine_enough[-1] if fine_enough else scene.levels[0]
