"""xarray.DataArray as a scene: eager or dask-backed, located the rioxarray, odc-geo or CF way."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS
from pyproj.exceptions import CRSError

from geosam2.errors import GeoreferenceError, SourceError
from geosam2.levels import Level, Window, crs_from, crs_text, ground_size, ladder
from geosam2.sources.bands import Bands, choose_bands
from geosam2.sources.base import Raw, Source

if TYPE_CHECKING:
    import xarray

_X_NAMES = ("x", "longitude", "lon", "projection_x_coordinate")
_Y_NAMES = ("y", "latitude", "lat", "projection_y_coordinate")
_BAND_NAMES = ("band", "bands", "channel", "wavelength", "variable")


class ArraySource(Source):
    """Reader of a DataArray with dimensions y and x, and perhaps one of bands.

    Args:
        array: Its pixels are read window by window; a dask array computes only what is asked for.
        bands: See `choose_bands`; names are the coordinates of the band dimension.
        crs: What the CRS is where the array does not say.
        pixel_coordinates: Ignore the place on the map: x = column, y = -row.

    Raises:
        SourceError: If it has other dimensions.
        GeoreferenceError: If it has no usable place on the map.
    """

    def __init__(
        self,
        array: xarray.DataArray,
        *,
        bands: Bands | None = None,
        crs: Any = None,
        pixel_coordinates: bool = False,
    ) -> None:
        y, x, band = _dimensions(array)
        self.name = str(array.name or "array")
        self.location = f"xarray.DataArray {self.name}"
        self.crs = None if pixel_coordinates else _crs_of(array, crs, self.name)
        transform = Affine.identity() if pixel_coordinates else _transform_of(array, y, x)
        array = array.transpose(*([band] if band else []), y, x)
        if not pixel_coordinates:
            array, transform = _north_up(array, transform, y, x)
        self._array = array if band else array.expand_dims("_band")
        if self._array.dtype.kind not in "buifc":
            raise SourceError(f"{self.name} holds {array.dtype}, not numbers")
        self.dtype = _dtype_read(self._array.dtype)
        self.nodata = _nodata(array)
        count = self._array.shape[0]
        names = _band_names(array, band, count)
        self.choice = choose_bands(count, names, ["undefined"] * count, bands)
        self.levels, self._steps = _levels(self.crs, transform, self._array.shape[1:])
        self._signature: str | None = None

    @property
    def signature(self) -> str:
        """See `Source.signature`: of the values, or of the recipe of a dask array."""
        if self._signature is None:
            import hashlib

            from dask.base import tokenize

            native = self.levels[0]
            text = f"{tokenize(self._array.data)}|{native}|{self.nodata}"
            self._signature = hashlib.sha256(text.encode()).hexdigest()
        return self._signature

    def stored(self, level: Level) -> bool:
        """See `Source.stored`."""
        return self._steps[level.index] == 1

    def details(self) -> dict[str, Any]:
        """See `Source.details`."""
        chunks = getattr(self._array, "chunks", None)
        return {"driver": "xarray", "chunks": None if chunks is None else [c[0] for c in chunks]}

    def read(self, level: Level, window: Window) -> Raw:
        """See `Source.read`."""
        step, native = self._steps[level.index], self.levels[0].extent
        wanted = Window(*(v * step for v in window))
        inside = wanted & native
        row, col = inside.row - native.row, inside.col - native.col
        part = self._array.data[:, row : row + inside.height, col : col + inside.width]
        try:
            stored = np.asarray(part[[i - 1 for i in self.choice.indices]])
        except Exception as error:  # whatever the graph of a dask array raises
            raise SourceError(f"cannot compute a part of {self.name}: {error}") from error
        valid = self._valid(stored)
        pixels = np.abs(stored) if stored.dtype.kind == "c" else stored
        pixels = pixels.astype(self.dtype, copy=False)
        if step > 1:
            return _means(pixels, valid, inside, wanted, step)
        return Raw(pixels, np.asarray(valid.any(axis=0)))

    def _valid(self, stored: NDArray[Any]) -> NDArray[np.bool_]:
        """(B, H, W), True where a band has data."""
        valid: NDArray[np.bool_] = np.ones(stored.shape, bool)
        if stored.dtype.kind in "fc":
            valid &= np.isfinite(stored)
        if self.nodata is not None and not math.isnan(self.nodata):
            valid &= stored != np.asarray(self.nodata).astype(stored.dtype)
        return valid


def _dimensions(array: xarray.DataArray) -> tuple[str, str, str | None]:
    """Names of the y, x and band dimensions."""
    names = [str(d) for d in array.dims]
    y = next((n for n in names if n.lower() in _Y_NAMES), None)
    x = next((n for n in names if n.lower() in _X_NAMES), None)
    rest = [n for n in names if n not in (x, y)]
    if y is None or x is None:
        raise SourceError(f"dimensions must include y and x (or latitude, longitude), got {names}")
    if len(rest) > 1 or (rest and rest[0].lower() not in _BAND_NAMES and "time" in rest[0].lower()):
        raise SourceError(
            f"one date is needed, with dimensions (band, y, x), got {names}: "
            f"choose one with .isel({rest[0]}=0), or follow an object through all with "
            "geosam2.track"
        )
    return y, x, rest[0] if rest else None


def _band_names(array: xarray.DataArray, band: str | None, count: int) -> list[str | None]:
    """Coordinates along the band dimension; mere numbers are no names."""
    if band is None or band not in array.coords:
        return [None] * count
    return [None if str(v).isdigit() else str(v) for v in array[band].values]


def _crs_of(array: xarray.DataArray, given: Any, name: str) -> CRS:
    """From a CF grid mapping (rioxarray, odc-geo and CF write it), else from the attributes."""
    for attributes in _grid_mappings(array):
        for key in ("crs_wkt", "spatial_ref", "crs"):
            if attributes.get(key):
                return crs_from(attributes[key], f"{key} of {name}: ")
        if attributes.get("grid_mapping_name"):
            try:
                return CRS.from_cf(dict(attributes))
            except (CRSError, KeyError) as error:
                raise GeoreferenceError(f"the grid mapping of {name} is not CF: {error}") from error
    if array.attrs.get("crs"):
        return crs_from(array.attrs["crs"], f"attribute crs of {name}: ")
    if given is not None:
        return crs_from(given)
    raise GeoreferenceError(
        f"{name} has no coordinate reference system, so its polygons would have no place on the "
        "map: pass crs= if you know it, or pixel_coordinates=True to work in pixels"
    )


def _grid_mappings(array: xarray.DataArray) -> list[dict[str, Any]]:
    """Attributes of coordinates that may describe the CRS, the named one first."""
    named = array.encoding.get("grid_mapping", array.attrs.get("grid_mapping"))
    scalars = [str(n) for n, c in array.coords.items() if c.ndim == 0]
    order = [named] if named in scalars else []
    order += [n for n in scalars if n in ("spatial_ref", "crs") and n != named]
    order += [n for n in scalars if "grid_mapping_name" in array[n].attrs and n not in order]
    return [dict(array[n].attrs) for n in order]


def _transform_of(array: xarray.DataArray, y: str, x: str) -> Affine:
    """From the coordinates; from GeoTransform where there are none, or where they are single."""
    stored = next((a["GeoTransform"] for a in _grid_mappings(array) if "GeoTransform" in a), None)
    have = x in array.coords and y in array.coords
    if have and min(array.sizes[x], array.sizes[y]) > 1:
        return _from_coordinates(array[x].values, array[y].values)
    if stored is not None:
        return Affine.from_gdal(*(float(v) for v in str(stored).split()))
    raise GeoreferenceError(
        f"{array.name or 'the array'} has no {'spacing' if have else 'coordinates'} along {x} and "
        f"{y}: add coordinates of pixel centres or a GeoTransform (rio.write_transform)"
    )


def _from_coordinates(xs: NDArray[Any], ys: NDArray[Any]) -> Affine:
    steps = []
    for values, axis in ((xs, "x"), (ys, "y")):
        numbers = np.asarray(values, float)
        step = (numbers[-1] - numbers[0]) / (len(numbers) - 1)
        even = numbers[0] + step * np.arange(len(numbers))
        # float32 coordinates are rounded: a tenth of a pixel, but no more
        if step == 0 or np.abs(numbers - even).max() > abs(step) * 0.1:
            raise GeoreferenceError(
                f"coordinates along {axis} are not evenly spaced: bring the array to a regular "
                "grid first (rio.reproject or odc.reproject)"
            )
        steps.append(step)
    left, top = float(xs[0]) - steps[0] / 2, float(ys[0]) - steps[1] / 2
    return Affine(steps[0], 0, left, 0, steps[1], top)


def _north_up(
    array: xarray.DataArray, transform: Affine, y: str, x: str
) -> tuple[xarray.DataArray, Affine]:
    if transform.b or transform.d:
        raise GeoreferenceError("a rotated array: bring it to a north-up grid (rio.reproject)")
    a = transform
    if a.a < 0:
        array = array.isel({x: slice(None, None, -1)})
        a = Affine(-a.a, 0, a.c + a.a * array.sizes[x], 0, a.e, a.f)
    if a.e > 0:
        array = array.isel({y: slice(None, None, -1)})
        a = Affine(a.a, 0, a.c, 0, -a.e, a.f + a.e * array.sizes[y])
    return array, a


def _levels(
    crs: CRS | None, transform: Affine, shape: tuple[int, ...]
) -> tuple[tuple[Level, ...], tuple[int, ...]]:
    height, width = shape
    resolution = (transform.a, abs(transform.e))
    left, top = transform.c, transform.f
    middle = (left + width * resolution[0] / 2, top - height * resolution[1] / 2)
    text = None if crs is None else crs_text(crs)
    gsd = ground_size(crs, *middle, resolution)
    native = Level.at_corner(left, top, resolution, (height, width), crs=text, gsd=gsd)
    steps = ladder((height, width))
    return tuple(native.decimated(step, index) for index, step in enumerate(steps)), tuple(steps)


def _means(
    pixels: NDArray[Any], valid: NDArray[np.bool_], inside: Window, wanted: Window, step: int
) -> Raw:
    """Mean of the valid pixels under each cell of `step` x `step`."""
    lead = ((inside.row - wanted.row), (inside.col - wanted.col))
    pad = (
        (0, 0),
        (lead[0], wanted.height - inside.height - lead[0]),
        (lead[1], wanted.width - inside.width - lead[1]),
    )
    cells = (pixels.shape[0], wanted.height // step, step, wanted.width // step, step)
    weights = np.pad(valid, pad).reshape(cells).sum(axis=(2, 4), dtype=np.float64)
    kept = np.pad(np.where(valid, pixels, 0), pad).reshape(cells)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.nan_to_num(kept.sum(axis=(2, 4), dtype=np.float64) / weights)
    if pixels.dtype.kind in "iu":
        means = np.floor(means + 0.5)
    return Raw(means.astype(pixels.dtype), (weights > 0).any(axis=0))


def _dtype_read(stored: np.dtype[Any]) -> np.dtype[Any]:
    """Native byte order; bool as 8 bit, complex as its magnitude."""
    if stored.kind == "b":
        return np.dtype(np.uint8)
    if stored.kind == "c":
        return np.dtype(np.float32 if stored.itemsize == 8 else np.float64)
    return stored.newbyteorder("=")


def _nodata(array: xarray.DataArray) -> float | None:
    """rioxarray's and CF's names; `_FillValue` moves to the encoding once it was applied."""
    for place in (array.attrs, array.encoding):
        for key in ("_FillValue", "nodata", "missing_value"):
            value = place.get(key)
            if value is not None and np.isscalar(value):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return float(value)  # type: ignore[arg-type]
    return None
