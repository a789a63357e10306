"""`geosam2 info SRC`: what there is to know about a scene before segmenting it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geosam2.commands.options import scene_from, scene_options
from geosam2.errors import ExportError

if TYPE_CHECKING:
    from geosam2.levels import Level
    from geosam2.scene import Scene


@click.command()
@click.argument("src")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a text.")
@click.option(
    "--thumbnail", type=click.Path(dir_okay=False), help="Write a picture of the scene here (PNG)."
)
@click.option("--overwrite", is_flag=True, help="Replace the picture if it is there.")
@click.option("--frame-size", default=512, show_default=True, help="Pixels along a frame's side.")
@click.option("--overlap", default=128, show_default=True, help="Pixels that frames share.")
@scene_options
def command(
    src: str,
    as_json: bool,
    thumbnail: str | None,
    overwrite: bool,
    frame_size: int,
    overlap: int,
    **options: Any,
) -> None:
    """Tell what SRC is: size, CRS, resolution, bands, stretch, levels, frames, requests.

    SRC is a GeoTIFF, COG or VRT (path or URL), a tile template with {z}/{x}/{y}, a folder of
    tiles, an MBTiles or a PMTiles file.
    """
    if thumbnail:
        _check_thumbnail(Path(thumbnail), overwrite=overwrite)
    scene = scene_from(src, options)
    facts = describe(scene, frame_size=frame_size, overlap=overlap)
    if thumbnail:
        write_thumbnail(scene, thumbnail)
    click.echo(json.dumps(facts, indent=2) if as_json else as_text(facts))


def _check_thumbnail(path: Path, *, overwrite: bool) -> None:
    """Before anything is read."""
    from geosam2.export import check_picture

    if path.exists() and not overwrite:
        raise ExportError(f"{path} is there already: pass --overwrite to replace it")
    check_picture(path, (".png",))


def describe(scene: Scene, *, frame_size: int = 512, overlap: int = 128) -> dict[str, Any]:
    """Facts about a scene, of JSON types; reads what the stretch needs, no more."""
    choice, stretch = scene.reader.choice, scene.stretch
    return {
        "name": scene.name,
        "source": scene.source,
        "size": list(scene.shape),
        "crs": None if scene.crs is None else scene.levels[0].crs,
        "crs_name": None if scene.crs is None else scene.crs.name,
        "bounds": list(scene.bounds),
        "bbox": _bbox(scene),
        "resolution": list(scene.levels[0].resolution),
        "gsd": _finite(scene.gsd),
        "bands": {
            "read": list(choice.indices),
            "names": list(choice.names),
            "of": choice.count,
            "why": choice.reason,
        },
        "dtype": str(scene.reader.dtype),
        "nodata": _nodata(scene.nodata),
        "stretch": {
            "low": list(stretch.low),
            "high": list(stretch.high),
            "origin": stretch.origin,
        },
        "frame_size": frame_size,
        "overlap": overlap,
        "levels": [_level(scene, level, frame_size, overlap) for level in scene.levels],
        "signature": scene.signature,
        "reader": scene.reader.details(),
        "hints": hints(scene),
    }


def _level(scene: Scene, level: Level, frame_size: int, overlap: int) -> dict[str, Any]:
    from geosam2.levels import gsd_at
    from geosam2.tiling import FrameGrid

    window = scene.window(level)
    grid = FrameGrid.of(scene, level, frame_size=frame_size, overlap=overlap)
    needed = grid.covered & scene.reader.reach(level)
    return {
        "level": level.index,
        "label": level.label,
        "gsd": _finite(gsd_at(scene, level)),
        "size": [window.height, window.width],
        "frames": len(grid),
        "requests": scene.reader.requests(level, [needed]),
        "stored": scene.reader.stored(level),
    }


def hints(scene: Scene) -> list[str]:
    """What a person might do first."""
    found = []
    coarsest = scene.window(scene.levels[-1])
    averaged = [level for level in scene.levels if not scene.reader.stored(level)]
    if len(averaged) > 2 and max(scene.shape) > 8192:
        found.append(
            "no overviews: coarse levels read the whole file; gdaladdo -r average makes them"
        )
    if scene.crs is None:
        found.append("no place on the map: polygons come in pixel coordinates")
    if coarsest.empty:
        found.append("the working area is smaller than a pixel of the coarsest level")
    width, height = scene.levels[0].resolution
    if not 0.8 < width / height < 1.25 and not (scene.crs is not None and scene.crs.is_geographic):
        found.append(f"pixels are not square ({width:g} x {height:g})")
    return found


def as_text(facts: dict[str, Any]) -> str:
    """A page for people."""
    height, width = facts["size"]
    bands, stretch = facts["bands"], facts["stretch"]
    shown = " ".join(
        f"{low:g}..{high:g}" for low, high in zip(stretch["low"], stretch["high"], strict=True)
    )
    lines = [
        f"{facts['name']}",
        f"  source      {facts['source']}",
        f"  size        {height} x {width} px (height x width)",
        f"  CRS         {_crs_line(facts)}",
        f"  bounds      {', '.join(f'{v:.10g}' for v in facts['bounds'])}",
        f"  pixel       {_metres(facts['gsd'])} on the ground",
        f"  bands       {', '.join(bands['names'])} ({bands['why']}; {bands['of']} in all)",
        f"  values      {facts['dtype']}, nodata {_shown(facts['nodata'])}",
        f"  stretch     {shown} ({stretch['origin']})",
        "",
        f"  level  label   pixel       size (px)            frames of {facts['frame_size']}"
        "  requests",
    ]
    if facts["bbox"]:
        west, south, east, north = facts["bbox"]
        lines.insert(5, f"  degrees     {west:.6f}, {south:.6f}, {east:.6f}, {north:.6f}")
    lines += [_level_line(level) for level in facts["levels"]]
    return "\n".join([*lines, *(f"\n  hint: {hint}" for hint in facts["hints"])])


def _level_line(level: dict[str, Any]) -> str:
    height, width = level["size"]
    return (
        f"  {level['level']:>5}  {level['label']:<7} {_metres(level['gsd']):<11} "
        f"{f'{height} x {width}':<20} {level['frames']:>13}  {level['requests'] or '-':>8}"
    )


def _shown(nodata: float | str | None) -> str:
    return f"{nodata:.10g}" if isinstance(nodata, float) else str(nodata or "none")


def _crs_line(facts: dict[str, Any]) -> str:
    if facts["crs"] is None:
        return "none: pixel coordinates"
    code = facts["crs"] if len(facts["crs"]) < 20 else "no code"
    return f"{facts['crs_name']} ({code})"


def _metres(gsd: float | None) -> str:
    return "no metres" if gsd is None else f"{gsd:.3g} m" if gsd < 1000 else f"{gsd / 1000:.4g} km"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _nodata(value: float | None) -> float | str | None:
    """NaN has no number in JSON."""
    return value if value is None or math.isfinite(value) else str(value)


def _bbox(scene: Scene) -> list[float] | None:
    """(west, south, east, north) in degrees, None where the CRS leaves the Earth."""
    from geosam2.levels import to_degrees

    degrees = None if scene.crs is None else to_degrees(scene.crs)
    if degrees is None:
        return None
    box = degrees.transform_bounds(*scene.bounds, densify_pts=21)
    return list(box) if all(map(math.isfinite, box)) else None


def write_thumbnail(scene: Scene, path: str | Path, size: int = 512) -> None:
    """PNG of the working area, transparent where there is no data.

    Raises:
        ExportError: If it cannot be written.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.part")
    try:
        part.write_bytes(scene.thumbnail_png(size))
        os.replace(part, target)  # noqa: PTH105 - there whole or not at all
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror}") from None
