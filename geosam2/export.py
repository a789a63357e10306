"""Polygons and masks to files: whole or not at all.

Everything is written under a temporary name in the same folder and moved into place, so a full disk
or a killed process leaves what was there before.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyogrio
import pyproj
import rasterio
import rasterio.errors
from affine import Affine
from pyogrio.errors import DataSourceError

from geosam2.errors import ExportError, ExportWarning
from geosam2.geojson import plain, to_rfc7946, write_features, write_geojson


@dataclass(frozen=True)
class Format:
    """A vector format."""

    driver: str
    """GDAL's name, or "Parquet" which geopandas writes by itself."""
    layers: bool = False
    """Whether a file is a database: it holds several layers and takes more rows."""
    wgs84: bool = False
    """Whether the format is defined in WGS 84 longitude and latitude."""


FORMATS = {
    ".geojson": Format("GeoJSON", wgs84=True),
    ".json": Format("GeoJSON", wgs84=True),
    ".geojsonl": Format("GeoJSONSeq", wgs84=True),
    ".geojsons": Format("GeoJSONSeq", wgs84=True),
    ".ndjson": Format("GeoJSONSeq", wgs84=True),
    ".gpkg": Format("GPKG", layers=True),
    ".fgb": Format("FlatGeobuf"),
    ".parquet": Format("Parquet"),
    ".geoparquet": Format("Parquet"),
    ".shp": Format("ESRI Shapefile"),
}
"""Suffix -> format."""

PICTURES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")
"""Suffixes of pictures; `viz.save_preview` writes them."""


def write(
    gdf: geopandas.GeoDataFrame,
    path: str | Path,
    *,
    overwrite: bool = False,
    append: bool = False,
    layer: str | None = None,
) -> None:
    """Write polygons in the format that the suffix names.

    GeoJSON follows RFC 7946: WGS 84, right-hand rule, cut at the antimeridian, 7 decimals. Other
    formats keep the CRS of `gdf`. Without a CRS the coordinates are written as they are.

    Args:
        gdf: Any geometries and columns.
        path: .geojson, .geojsonl, .gpkg, .fgb, .parquet or .shp; "-" is GeoJSON on standard output.
        overwrite: Replace an existing file, or in a GeoPackage an existing layer.
        append: Add rows to an existing file (or layer) with the same columns, types and CRS.
        layer: Name in a GeoPackage; default the file's stem.

    Raises:
        ExportError: If the file exists and neither `overwrite` nor `append` was said, does not fit
            for appending, the suffix is unknown, or the disk does not take it.

    Warns:
        ExportWarning: If the format cannot hold everything.
    """
    if not isinstance(gdf, geopandas.GeoDataFrame):
        raise ExportError(
            f"{type(gdf).__name__} cannot be written: give a GeoDataFrame, such as segment returns"
        )
    if str(path) == "-":
        write_geojson(gdf, sys.stdout)
        return
    if overwrite and append:
        raise ExportError("overwrite and append exclude each other: choose one")
    path, form = Path(path), format_of(path)
    layer = layer or path.stem
    present = _present(path, form, layer, allowed=overwrite or append)
    stored, more = _as_stored(gdf, form), present and append
    if more:
        stored = _fitting(stored, path, form, layer)
    with _replacing(path, copy=form.layers) as temporary:
        _write(stored, temporary, form, layer, append=more and form.layers)


def write_many(
    tables: Iterable[geopandas.GeoDataFrame],
    path: str | Path,
    *,
    overwrite: bool = False,
    layer: str | None = None,
) -> int:
    """Write tables of the same columns one after the other into one new file.

    GeoPackage and GeoJSON hold one table in memory at a time, the other formats all of them.

    Args:
        tables: At least one, which may be empty.
        path: As of `write`.
        overwrite: Replace an existing file, or in a GeoPackage an existing layer.
        layer: Name in a GeoPackage; default the file's stem.

    Returns:
        Number of rows.

    Raises:
        ExportError: As `write`; if there is no table at all.
    """
    path, form = Path(path), format_of(path)
    layer = layer or path.stem
    _present(path, form, layer, allowed=overwrite)
    source = iter(tables)
    first = next(source, None)
    if first is None:
        raise ExportError(f"there is nothing to write to {path}: not even an empty table")
    every = chain([first], source)
    count = 0
    with _replacing(path, copy=form.layers) as temporary:
        if form.wgs84:
            with temporary.open("w", encoding="utf-8") as stream:
                return write_features(every, stream, lines=form.driver == "GeoJSONSeq")
        for table in every if form.layers else [_joined(list(every))]:
            rows = _as_stored(table, form)
            _write(rows, temporary, form, layer, append=table is not first and form.layers)
            count += len(rows)
    return count


def write_mask(
    mask: npt.NDArray[Any],
    path: str | Path,
    transform: Affine,
    crs: Any = None,
    *,
    overwrite: bool = False,
    cog: bool = True,
) -> None:
    """Write a mask or ids as a GeoTIFF, 0 = no object.

    Args:
        mask: (H, W) bool, or integers with one id an object.
        path: .tif or .tiff.
        transform: Pixel corner to map.
        crs: Of the map, or None.
        overwrite: Replace an existing file.
        cog: Cloud-optimised, with overviews that keep ids (nearest, not averaged).

    Raises:
        ExportError: As `write`.
    """
    path = Path(path)
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise ExportError(f"a mask is written as .tif, not {path.suffix or path.name!r}")
    if path.exists() and not overwrite:
        raise ExportError(f"{path} exists: pass overwrite, or choose another name")
    if mask.ndim != 2 or mask.dtype.kind not in "bui":
        raise ExportError(f"a mask is (H, W) of bool or int, got {mask.dtype} {mask.shape}")
    pixels = mask.astype(_smallest(mask))
    profile = {
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "count": 1,
        "dtype": pixels.dtype,
        "transform": transform,
        "crs": pyproj.CRS(crs).to_wkt() if crs is not None else None,
        "compress": "deflate",
        "nodata": 0,
    }
    how = (
        {"driver": "COG", "overview_resampling": "nearest"}
        if cog
        else {"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256}
    )
    with _replacing(path) as temporary, warnings.catch_warnings():
        # pixel coordinates are what the caller wants then
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(temporary, "w", **profile, **how) as file:
            file.write(pixels, 1)
        with rasterio.open(temporary) as file:  # GDAL cannot report a full disk when it closes
            if not np.array_equal(file.read(1), pixels):
                raise OSError("not all pixels arrived")


def format_of(path: str | Path) -> Format:
    """The format that a suffix names.

    >>> format_of("lakes.gpkg").driver
    'GPKG'
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ExportError(
            f"{Path(path).name!r} names no known format: use one of {', '.join(FORMATS)}"
        )
    return FORMATS[suffix]


def check_output(path: Path, *, replaceable: bool, or_else: str = "choose another name") -> None:
    """Refuse before hours of work what could not be written after them.

    Args:
        path: A vector file to be.
        replaceable: It may be there already.
        or_else: What else than to replace it can be done, for the message.

    Raises:
        ExportError: If the suffix is unknown, the folder is missing or cannot be written, or the
            file is there.
    """
    format_of(path)
    if path.exists() and not replaceable:
        raise ExportError(f"{path} exists: replace it with --overwrite or {or_else}")
    check_place(path)


def check_crs(path: str | Path, crs: Any) -> None:
    """Refuse before the work a CRS that the format of a file (or "-") cannot hold.

    Raises:
        ExportError: If it is GeoJSON, and the CRS a local one.
    """
    if str(path) == "-" or format_of(path).wgs84:
        to_rfc7946(np.empty(0, dtype=object), crs)


def check_picture(path: Path, suffixes: tuple[str, ...] = PICTURES) -> None:
    """The same for a picture; one that is there already is replaced.

    Raises:
        ExportError: If the suffix is another one, or the folder is missing or cannot be written.
    """
    if path.suffix.lower() not in suffixes:
        raise ExportError(f"a picture is written as {' or '.join(suffixes)}, not {path.name!r}")
    check_place(path)


def check_place(path: Path) -> None:
    """Refuse a folder in which nothing can be made: found by trying, whoever has which rights.

    Raises:
        ExportError: If it is missing or cannot be written, or if `path` is a folder.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ExportError(f"there is no folder {folder} to write {path.name} in")
    if path.is_dir():
        raise ExportError(f"{path} is a folder: name a file in it")
    _check_writable(folder)


def make_folder(folder: Path, *, or_else: str = "name another with --output") -> None:
    """Make a folder for several files; refuse it before the work if that does not go.

    Args:
        folder: With any that it lies in.
        or_else: What can be done then, for the message.

    Raises:
        ExportError: If it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(
            f"the folder {folder} cannot be made ({error.strerror}): {or_else}"
        ) from error
    _check_writable(folder)


def _check_writable(folder: Path) -> None:
    try:
        with tempfile.TemporaryDirectory(prefix=".geosam2.", suffix=".part", dir=folder):
            pass
    except OSError as error:
        raise ExportError(
            f"nothing can be written in {folder} ({error.strerror}): name another folder"
        ) from error


def ids_in(path: Path) -> set[int]:
    """Numbers in the column `id` of a file that is appended to; none if there is no such file.

    Raises:
        ExportError: If it is there and cannot be read.
    """
    form = format_of(path)
    if not path.exists():
        return set()
    try:
        if form.driver == "Parquet":
            ids = pd.read_parquet(path, columns=["id"])["id"]
        else:
            layer = path.stem if form.layers else None
            if form.layers and layer not in pyogrio.list_layers(path)[:, 0]:
                return set()
            table = pyogrio.read_dataframe(path, layer=layer, columns=["id"], read_geometry=False)
            ids = table.get("id", pd.Series(dtype=int))
        return {int(number) for number in pd.to_numeric(ids).dropna()}
    except (ValueError, KeyError, TypeError, OSError, DataSourceError) as error:
        raise ExportError(f"{path} cannot be read, so nothing is appended: {error}") from error


def _write(
    stored: geopandas.GeoDataFrame, path: Path, form: Format, layer: str, *, append: bool = False
) -> None:
    """Write rows that are `_as_stored`, and make sure that they arrived."""
    if form.wgs84:
        with path.open("w", encoding="utf-8") as stream:
            write_geojson(stored, stream, lines=form.driver == "GeoJSONSeq")
        return
    if form.driver == "Parquet":
        stored.to_parquet(path, index=False, compression="zstd")
        return
    options: dict[str, Any] = {"promote_to_multi": True}
    if form.layers:
        options["layer"] = layer
    if form.driver == "FlatGeobuf" and (stored.empty or stored.geometry.isna().any()):
        options["SPATIAL_INDEX"] = "NO"
    name = layer if form.layers else None
    before = pyogrio.read_info(path, layer=name)["features"] if append else 0
    with warnings.catch_warnings():
        # that there is no CRS is known: pixel coordinates are what the caller wants then
        warnings.filterwarnings("ignore", "'crs' was not provided")
        pyogrio.write_dataframe(stored, path, driver=form.driver, append=append, **options)
    # GDAL writes some formats when it closes them, where it cannot report a full disk
    arrived = pyogrio.read_info(path, layer=name, force_feature_count=True)["features"] - before
    if arrived != len(stored):
        raise OSError(f"{arrived} of {len(stored)} features arrived")


def _as_stored(gdf: geopandas.GeoDataFrame, form: Format) -> geopandas.GeoDataFrame:
    """Rows as the format holds them."""
    if form.driver == "Parquet":
        return gdf
    if form.wgs84:
        degrees = None if gdf.crs is None else 4326
        stored = gdf.set_geometry(to_rfc7946(gdf.geometry.to_numpy(), gdf.crs), crs=degrees)
        for column in stored.columns.drop(stored.geometry.name):
            if _sort(stored[column]) in ("text", "date"):
                stored[column] = [plain(value) for value in stored[column]]
        return stored
    return _for_shapefile(_flat(gdf)) if form.driver == "ESRI Shapefile" else _flat(gdf)


def _read(path: Path, form: Format, layer: str) -> geopandas.GeoDataFrame:
    if form.driver == "Parquet":
        return geopandas.read_parquet(path)
    if form.layers:  # a few rows tell what the columns hold
        return pyogrio.read_dataframe(path, layer=layer, max_features=1000)
    if not form.wgs84:
        return pyogrio.read_dataframe(path)
    # not by GDAL, which makes dates of text that looks like one
    text = path.read_text(encoding="utf-8")
    lines = form.driver == "GeoJSONSeq"
    features = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    return geopandas.GeoDataFrame.from_features(features, crs=4326)


def _present(path: Path, form: Format, layer: str, *, allowed: bool) -> bool:
    """Whether the file or layer is there; an error if it is and must not be."""
    if not path.parent.is_dir():
        raise ExportError(f"folder {path.parent} does not exist: create it first")
    there = path.exists() and (not form.layers or layer in pyogrio.list_layers(path)[:, 0])
    if there and not allowed:
        what = f"layer {layer!r} of {path}" if form.layers else str(path)
        raise ExportError(f"{what} exists: pass overwrite or append, or choose another name")
    return there


def _fitting(
    new: geopandas.GeoDataFrame, path: Path, form: Format, layer: str
) -> geopandas.GeoDataFrame:
    """New rows if they fit to the file; with its old ones if it must be written anew."""
    try:
        old = _read(path, form, layer)
    except (ValueError, KeyError, TypeError, OSError, DataSourceError) as error:
        raise ExportError(f"{path} cannot be read, so nothing is appended: {error}") from error
    if not _same_crs(old.crs, new.crs):
        raise ExportError(
            f"{path} is in {_name(old.crs)}, the new polygons are in {_name(new.crs)}: "
            "reproject them with to_crs, or write another file"
        )
    if new.geometry.name != old.geometry.name:
        new = new.rename_geometry(old.geometry.name)
    missing, extra = sorted(set(old) - set(new)), sorted(set(new) - set(old))
    if missing or extra:
        raise ExportError(
            f"columns do not fit {path}: missing {missing or 'none'}, not in the file "
            f"{extra or 'none'}. Rename or drop columns, or write another file"
        )
    for column in old.columns.drop(old.geometry.name):
        held, given = _sort(old[column]), _sort(new[column])
        if held != given and old[column].notna().any() and new[column].notna().any():
            raise ExportError(
                f"column {column!r} of {path} holds {held}, the new rows hold {given}: "
                "convert it first"
            )
    new = new[old.columns].set_crs(old.crs, allow_override=True)
    return new if form.layers else _joined([old, new])


def _joined(tables: list[geopandas.GeoDataFrame]) -> geopandas.GeoDataFrame:
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else tables[0]


def _same_crs(first: pyproj.CRS | None, second: pyproj.CRS | None) -> bool:
    if first is None or second is None:
        return first is second
    return bool(first.equals(second, ignore_axis_order=True))


@contextmanager
def _replacing(path: Path, *, copy: bool = False) -> Iterator[Path]:
    """A temporary path in the same folder; what is written there takes the place of `path`.

    A folder of its own, because a shapefile is several files and a GeoPackage has a journal.
    `copy` starts with what is there, so that other layers stay.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.stem}.", suffix=".part", dir=path.parent))
    except OSError as error:
        raise ExportError(f"cannot write to {path.parent}: {error.strerror}") from error
    try:
        if copy and path.exists():
            shutil.copy2(path, folder / path.name)
        yield folder / path.name
        for part in sorted(folder.iterdir(), key=lambda part: part.suffix == path.suffix):
            _sync(part)
            part.replace(path.with_name(part.name))
        for stale in (".qix", ".sbn", ".sbx") if path.suffix.lower() == ".shp" else ():
            path.with_suffix(stale).unlink(missing_ok=True)  # indexes of what was replaced
    except ExportError:
        raise
    except Exception as error:  # a full disk is an error of another kind in each library
        raise ExportError(
            f"{path} could not be written ({error}); what was there before is untouched"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    """To the disk before the name changes, or a power cut could leave an empty file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _flat(gdf: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
    """Lists and dictionaries as JSON text, which all drivers can hold."""
    flat = gdf.copy()
    for column in flat.columns.drop(flat.geometry.name):
        values = flat[column]
        if (
            values.dtype == object
            and values.map(lambda v: isinstance(v, (list, tuple, dict))).any()
        ):
            flat[column] = [json.dumps(plain(value)) for value in values]
    return flat


def _for_shapefile(gdf: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
    """What remains of a table in a shapefile, with one warning about the rest."""
    losses = []
    names = _short_names(gdf.columns.drop(gdf.geometry.name))
    cut = [f"{column} to {short}" for column, short in names.items() if str(column) != short]
    if cut:
        losses.append(f"names are cut to 10 characters ({', '.join(cut)})")
    long_text = [
        column
        for column in names
        if _sort(gdf[column]) == "text" and gdf[column].astype(str).str.len().max() > 254
    ]
    if long_text:
        losses.append(f"text is cut to 254 characters ({', '.join(map(str, long_text))})")
    gdf = gdf.rename(columns=names)
    for column in names.values():
        if _sort(gdf[column]) == "text":
            gdf[column] = gdf[column].where(gdf[column].isna(), gdf[column].astype(str).str[:254])
        elif _sort(gdf[column]) == "date":
            gdf[column] = gdf[column].astype(str)
            losses.append(f"dates become text ({column})")
        elif _sort(gdf[column]) == "bool":
            gdf[column] = gdf[column].astype(int)
            losses.append(f"true and false become 1 and 0 ({column})")
    if losses:
        warnings.warn(
            f"a shapefile cannot hold everything: {'; '.join(losses)}. GeoPackage (.gpkg) can",
            ExportWarning,
            stacklevel=4,
        )
    return gdf


def _short_names(columns: Iterable[Any]) -> dict[Any, str]:
    """At most ten characters each, all different whatever the case of their letters."""
    names: dict[Any, str] = {}
    taken: set[str] = set()
    for column in columns:
        short, number = str(column)[:10], 1
        while short.lower() in taken:
            short, number = f"{str(column)[:7]}_{number:02d}", number + 1
        taken.add(short.lower())
        names[column] = short
    return names


def _sort(values: pd.Series[Any]) -> str:
    """What a column holds, in words that survive a round trip through any format."""
    if pd.api.types.is_bool_dtype(values):
        return "bool"
    if pd.api.types.is_numeric_dtype(values):
        return "numbers"
    if pd.api.types.is_datetime64_any_dtype(values):
        return "date"
    return "text"


def _smallest(mask: npt.NDArray[Any]) -> npt.DTypeLike:
    top = int(mask.max(initial=0))
    if mask.dtype.kind == "i" and mask.min(initial=0) < 0:
        raise ExportError(f"ids must not be negative, got {mask.min()}")
    return next(dtype for dtype in (np.uint8, np.uint16, np.uint32) if top <= np.iinfo(dtype).max)


def _name(crs: pyproj.CRS | None) -> str:
    if crs is None:
        return "no CRS"
    authority = crs.to_authority()
    return ":".join(authority) if authority else crs.name
