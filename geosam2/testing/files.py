"""Rasters on disk: GeoTIFF, COG, a VRT of any size, XYZ tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt
import rasterio
from odc.geo.geobox import GeoBox
from PIL import Image
from rasterio.enums import Resampling


def write_geotiff(
    path: str | Path,
    pixels: npt.NDArray[Any],
    geobox: GeoBox,
    *,
    cog: bool = False,
    overviews: bool = True,
    block: int = 256,
    nodata: float | None = None,
    **profile: Any,
) -> Path:
    """Write a tiled GeoTIFF, or a COG, with averaged overviews down to one block.

    Args:
        path: Where to; its folder exists.
        pixels: (C, H, W) or (H, W) of any dtype that GeoTIFF knows.
        geobox: Grid of the pixels; its shape must be theirs.
        cog: Let GDAL's COG driver lay the file out.
        overviews: False for a file without reduced levels.
        block: Side of the tiles, a multiple of 16.
        nodata: Declared in the file; the pixels are written as they are.
        profile: Further creation options, such as compress="jpeg".
    """
    bands = np.atleast_3d(pixels) if pixels.ndim == 3 else pixels[None]
    if bands.shape[1:] != tuple(geobox.shape):
        raise ValueError(f"pixels are {bands.shape[1:]}, the geobox is {tuple(geobox.shape)}")
    options: dict[str, Any] = {
        "count": bands.shape[0],
        "height": bands.shape[1],
        "width": bands.shape[2],
        "dtype": bands.dtype,
        "crs": str(geobox.crs) if geobox.crs is not None else None,
        "transform": geobox.transform,
        "nodata": nodata,
        "compress": "deflate",
        **profile,
    }
    if cog:
        options |= {"driver": "COG", "blocksize": block, "resampling": "average"}
        options["overviews"] = "AUTO" if overviews else "NONE"
    else:
        options |= {"driver": "GTiff", "tiled": True, "blockxsize": block, "blockysize": block}
    with rasterio.open(path, "w", **options) as target:
        target.write(bands)
    if overviews and not cog:
        with rasterio.open(path, "r+") as target:
            target.build_overviews(_factors(bands.shape[1:], block), Resampling.average)
    return Path(path)


def write_repeated_vrt(
    path: str | Path, source: str | Path, size: tuple[int, int], *, seed: int = 0
) -> Path:
    """A VRT of `size` (height, width) that repeats a raster with random flips.

    Billions of pixels on a few megabytes of disk: the four flips of `source` are written beside
    the VRT, and it refers to them. For tests of memory and of scaling.
    """
    path = Path(path)
    with rasterio.open(source) as file:
        pixels, transform, crs, dtype = file.read(), file.transform, file.crs, file.dtypes[0]
    geobox = GeoBox(pixels.shape[1:], transform, crs)
    flips = []
    for number in range(4):
        flipped = pixels[:, :: -1 if number & 1 else 1, :: -1 if number & 2 else 1]
        name = f"{path.stem}_flip{number}.tif"
        write_geotiff(path.with_name(name), np.ascontiguousarray(flipped), geobox)
        flips.append(name)
    choice = np.random.default_rng(seed)
    count, height, width = pixels.shape
    places = [
        (row, column, flips[choice.integers(4)])
        for row in range(0, size[0], height)
        for column in range(0, size[1], width)
    ]
    gdal_type = {"uint8": "Byte", "uint16": "UInt16", "float32": "Float32"}[dtype]
    bands = "".join(
        _vrt_band(band, gdal_type, places, height, width) for band in range(1, count + 1)
    )
    factors = " ".join(map(str, _factors(size, 256)))
    origin = ", ".join(map(repr, transform.to_gdal()))
    path.write_text(
        f'<VRTDataset rasterXSize="{size[1]}" rasterYSize="{size[0]}">'
        f"<SRS>{escape(crs.to_wkt())}</SRS><GeoTransform>{origin}</GeoTransform>"
        f'<OverviewList resampling="average">{factors}</OverviewList>{bands}</VRTDataset>'
    )
    return path


def write_xyz_tiles(
    folder: str | Path,
    pixels: npt.NDArray[np.uint8],
    x: int,
    y: int,
    zoom: int,
    *,
    levels: int = 3,
    suffix: str = "png",
) -> Path:
    """Cut pixels whose corner is that of web tile (x, y, zoom) into a z/x/y folder.

    Args:
        folder: Created if missing.
        pixels: (3, H, W); what is cut off a tile at the right and bottom is black.
        x: Tile column of the upper left corner.
        y: Tile row of the upper left corner.
        zoom: Web zoom of the pixels.
        levels: How many zooms to write, the coarser ones by averaging.
        suffix: "png" or "jpg".
    """
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    for step in range(levels):
        side = 256 << step
        columns = range(x >> step, (x + -(-image.width // 256) - 1 >> step) + 1)
        rows = range(y >> step, (y + -(-image.height // 256) - 1 >> step) + 1)
        for column in columns:
            for row in rows:
                left, top = (column << step) - x, (row << step) - y
                corner = (256 * left, 256 * top)
                tile = image.crop((*corner, corner[0] + side, corner[1] + side))
                target = Path(folder, str(zoom - step), str(column), f"{row}.{suffix}")
                target.parent.mkdir(parents=True, exist_ok=True)
                tile.resize((256, 256), Image.Resampling.BOX).save(target)
    return Path(folder)


def _factors(shape: tuple[int, ...], block: int) -> list[int]:
    factors = [2]
    while max(shape) / factors[-1] > block:
        factors.append(factors[-1] * 2)
    return factors


def _vrt_band(
    band: int, dtype: str, places: list[tuple[int, int, str]], height: int, width: int
) -> str:
    sources = "".join(
        f'<SimpleSource><SourceFilename relativeToVRT="1">{escape(name)}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand>"
        f'<SourceProperties RasterXSize="{width}" RasterYSize="{height}" DataType="{dtype}"'
        f' BlockXSize="256" BlockYSize="256"/>'
        f'<SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/>'
        f'<DstRect xOff="{column}" yOff="{row}" xSize="{width}" ySize="{height}"/></SimpleSource>'
        for row, column, name in places
    )
    colour = ("Red", "Green", "Blue")[band - 1] if band <= 3 else "Undefined"
    return (
        f'<VRTRasterBand dataType="{dtype}" band="{band}">'
        f"<ColorInterp>{colour}</ColorInterp>{sources}</VRTRasterBand>"
    )
