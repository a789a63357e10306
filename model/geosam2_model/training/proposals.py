"""Regions that nobody labelled: the clear ones of a superpixel hierarchy.

Graph-based segmentation (Felzenszwalb and Huttenlocher 2004, https://doi.org/10.1023/B:VISI.0000022288.19776.77)
at several scales gives fields, roofs, lakes, and also much that is no thing at all; regions whose
outline does not follow edges are dropped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[Any]
LONGEST = 1024
"""Larger images are segmented at a reduced size."""
SCALES = (120.0, 500.0)
"""Felzenszwalb's scale; larger means larger regions."""
CLEAR = 1.5
"""An outline's mean gradient must exceed the interior's by this factor."""


def region_hierarchy(rgb: Array) -> tuple[Array, ...]:
    """Rasters of clear regions, one a scale.

    Args:
        rgb: (H, W, 3) uint8.

    Returns:
        (H, W) int32 rasters, 0 where no region is clear.
    """
    from skimage.segmentation import felzenszwalb

    height, width = rgb.shape[:2]
    factor = min(1.0, LONGEST / max(height, width))
    small = np.asarray(
        Image.fromarray(np.ascontiguousarray(rgb)).resize(
            (max(1, round(width * factor)), max(1, round(height * factor))), Image.Resampling.BOX
        )
    )
    rasters = []
    for scale in SCALES:
        found = felzenszwalb(small, scale=scale, sigma=0.8, min_size=int(scale / 2))
        kept = keep_clear(small, found.astype(np.int32) + 1)
        stretched = Image.fromarray(kept).resize((width, height), Image.Resampling.NEAREST)
        rasters.append(np.asarray(stretched).astype(np.int32))
    return tuple(rasters)


def keep_clear(rgb: Array, raster: Array) -> Array:
    """Set regions to 0 whose outline follows no edge, that are ragged, or very large."""
    from skimage.measure import regionprops
    from skimage.segmentation import find_boundaries

    gray = rgb.astype(np.float32)
    gradient = sum(np.hypot(*np.gradient(gray[..., i])) for i in range(3))
    outline = find_boundaries(raster, mode="inner")  # type: ignore[no-untyped-call]
    count = int(raster.max()) + 1

    def mean(where: Array) -> Array:
        total = np.bincount(raster[where], weights=gradient[where], minlength=count)
        return total / np.maximum(np.bincount(raster[where], minlength=count), 1)

    clear = mean(outline) > CLEAR * mean(~outline)
    for region in regionprops(raster):  # type: ignore[no-untyped-call]
        if region.extent < 0.25 or region.area > 0.4 * raster.size or region.area < 40:
            clear[region.label] = False
    clear[0] = False
    return np.where(clear[raster], raster, 0)
