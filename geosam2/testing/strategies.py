"""Hypothesis strategies; hypothesis is imported when one is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox
from shapely.geometry import Polygon

from geosam2.errors import import_optional
from geosam2.testing import shapes

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

_PLACES = {  # CRS -> (left, right, bottom, top, finest cell, coarsest cell)
    "EPSG:32633": (2e5, 8e5, 1e5, 9e6, 0.05, 30.0),
    "EPSG:3857": (-1.9e7, 1.9e7, -1.5e7, 1.5e7, 0.1, 100.0),
    "EPSG:4326": (-170.0, 170.0, -75.0, 75.0, 1e-6, 1e-3),
}


def geoboxes(max_side: int = 64) -> SearchStrategy[GeoBox]:
    """North-up grids in UTM, Web Mercator or degrees, anywhere their CRS is at home."""
    st = _strategies()

    @st.composite  # type: ignore[untyped-decorator]
    def build(draw: Any) -> GeoBox:
        crs = draw(st.sampled_from(sorted(_PLACES)))
        left, right, bottom, top, fine, coarse = _PLACES[crs]
        cell = draw(st.floats(fine, coarse))
        corner = draw(st.floats(left, right)), draw(st.floats(bottom, top))
        shape = draw(st.tuples(st.integers(1, max_side), st.integers(1, max_side)))
        return GeoBox(shape, Affine(cell, 0, corner[0], 0, -cell, corner[1]), crs)

    return build()  # type: ignore[no-any-return]


def masks(max_side: int = 24) -> SearchStrategy[npt.NDArray[np.bool_]]:
    """(H, W) bool: pure noise, or blocks of noise, so that holes and single pixels occur."""
    st = _strategies()

    @st.composite  # type: ignore[untyped-decorator]
    def build(draw: Any) -> npt.NDArray[np.bool_]:
        height, width = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        block = draw(st.integers(1, 4))
        share = draw(st.floats(0, 1))
        coarse = rng.random((-(-height // block), -(-width // block))) < share
        fine = np.repeat(np.repeat(coarse, block, axis=0), block, axis=1)
        return np.ascontiguousarray(fine[:height, :width])

    return build()  # type: ignore[no-any-return]


def polygons(min_diameter: float = 10, max_diameter: float = 500) -> SearchStrategy[Polygon]:
    """Valid polygons around (0, 0): blobs, lakes with islands, fields, buildings."""
    st = _strategies()
    makers = (shapes.blob, shapes.lake, shapes.field, shapes.building)

    @st.composite  # type: ignore[untyped-decorator]
    def build(draw: Any) -> Polygon:
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        return draw(st.sampled_from(makers))(rng, draw(st.floats(min_diameter, max_diameter)))

    return build()  # type: ignore[no-any-return]


def _strategies() -> Any:
    return import_optional("hypothesis.strategies", "test")
