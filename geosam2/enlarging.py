"""Pixels between pixels: pictures several times as large as what is stored, bilinear."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geosam2.levels import Window
from geosam2.sources.base import Picture


def around(window: Window, factor: int) -> Window:
    """The native pixels that `enlarged_part` needs for a window of pixels `factor` times smaller.

    >>> around(Window(0, 8, 16, 16), 4)
    Window(row=-1, col=1, height=6, width=6)
    """
    inner = window.coarsened(factor)
    return Window(inner.row - 1, inner.col - 1, inner.height + 2, inner.width + 2)


def enlarged_part(native: Picture, place: Window, window: Window, factor: int) -> Picture:
    """A window of smaller pixels, from native ones.

    Only pixels with data are mixed, as GDAL does: none grows darker beside nodata.

    Args:
        native: Pixels of `place`.
        place: At least `around(window, factor)`, on the native lattice.
        window: On the lattice of pixels `factor` times smaller.
        factor: A whole number.
    """
    top, left = window.row - place.row * factor, window.col - place.col * factor
    rows, cols = slice(top, top + window.height), slice(left, left + window.width)
    large = _bilinear(native.pixels, factor)[:, rows, cols]
    valid = native.valid.repeat(factor, 0).repeat(factor, 1)[rows, cols]
    if not native.valid.all():  # a window may end where the data does, and is whole itself
        share = _bilinear(native.valid[None], factor)[:, rows, cols]
        large = np.where(valid, large / np.maximum(share, 0.1), 0)  # where valid, 1/4 at least is
    return Picture(np.rint(large).astype(np.uint8), valid)


def _bilinear(values: NDArray[Any], factor: int) -> NDArray[np.float32]:
    """(C, H, W) enlarged."""
    import torch
    from torch.nn import functional as F

    small = torch.from_numpy(values.astype(np.float32))[None]
    return np.asarray(F.interpolate(small, scale_factor=float(factor), mode="bilinear")[0])
