"""`geosam2 demo`: the main job on the example scene, from a COG and from XYZ tiles."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from geosam2.commands.options import max_frames_option

if TYPE_CHECKING:
    import geopandas

    from geosam2.masklet import Masklet
    from geosam2.segmenter import Segmenter

TILE, ZOOM = (773380, 440482), 20  # web tile of the scene's upper left corner, at its native zoom


@dataclass(frozen=True)
class _Target:
    """Something to click on in the example scene."""

    name: str
    click: tuple[float, float]
    """Column and row of the scene's native pixels."""
    level: int | Literal["auto"] = "auto"
    """Where it is followed, and then refined; "auto" = the zoom that shows it best."""
    building: bool = False
    """OpenStreetMap knows its outline."""


TARGETS = (
    _Target("house", (1080, 762), building=True),
    _Target("sports hall", (128, 400), building=True),
    # zebra crossings may end it at finer pixels; eight times coarser they are specks
    _Target("highway", (600, 2730), level=3),
)


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo_output"),
    show_default=True,
    help="Folder for polygons, pictures and tiles; made if missing.",
)
@click.option("--model", default="nano", show_default=True, help="Name or path of weights.")
@max_frames_option(30)
def command(output: Path, model: str, max_frames: int) -> None:
    """Segment the example scene: a house, a sports hall and a highway, one click each.

    The same clicks are answered from a COG and from a folder of XYZ tiles. Writes GeoJSON and
    pictures and prints a table. `truth` is the IoU with OpenStreetMap's outline, where it has one.
    """
    from geosam2 import export, viz
    from geosam2.cache import EmbeddingCache
    from geosam2.export import make_folder
    from geosam2.segmenter import Segmenter

    scene = example("banepa.tif")
    make_folder(output)
    click.echo(_LINE.format(*_HEAD))
    for source, name in ((scene, "COG"), (_tiles(scene, output / "tiles"), "XYZ")):
        # nothing from an earlier run: seconds are those of a first click
        segmenter = Segmenter(str(source), model, cache=EmbeddingCache(folder=None))
        rows = []
        for number, target in enumerate(TARGETS, start=1):
            started = time.perf_counter()
            masklet = _follow(segmenter, target, number, max_frames)
            seconds = time.perf_counter() - started
            found = segmenter.to_frame([masklet]).assign(name=target.name)
            rows.append(found)
            click.echo(_line(target, name, found, seconds))
        result = _joined(rows)
        stem = output / f"banepa_{name.lower()}"
        export.write(result, stem.with_suffix(".geojson"), overwrite=True)
        viz.save_preview(segmenter.scene, result, stem.with_suffix(".png"), label="name")
        for target, found in zip(TARGETS, rows, strict=True):
            picture = output / f"{stem.name}_{target.name.replace(' ', '_')}.png"
            viz.save_preview(segmenter.scene, found, picture, label="name")
    click.echo(f"weights: {segmenter.model.name} {segmenter.model.fingerprint[:12]}")
    click.echo(f"polygons and pictures are in {output}")


_HEAD = ("object", "source", "frames", "level", "area m2", "score", "open", "seconds", "truth")
_LINE = "{:<12} {:<6} {:>6} {:>7} {:>9} {:>6} {:>5} {:>8} {:>6}"


def _line(target: _Target, source: str, found: geopandas.GeoDataFrame, seconds: float) -> str:
    row = found.iloc[0]
    truth = f"{_truth_iou(found):.2f}" if target.building else "-"
    return _LINE.format(
        target.name,
        source,
        row.frames,
        row.level,
        f"{row.area_m2:.0f}",
        f"{row.score:.2f}",
        row.open_edges,
        f"{seconds:.1f}",
        truth,
    )


def example(name: str) -> Path:
    """A file of the examples: beside the package in an installation, above it in a checkout.

    Raises:
        SourceError: If it is in neither place.
    """
    from geosam2.errors import SourceError

    package = Path(__file__).parents[1]
    for folder in (package / "examples", package.parent / "examples"):
        if (folder / name).is_file():
            return folder / name
    raise SourceError(f"{name} is not installed: get it from the examples folder of the source")


def _follow(segmenter: Segmenter, target: _Target, number: int, max_frames: int) -> Masklet:
    from geosam2.masklet import PanOptions
    from geosam2.prompts import Prompt

    options = PanOptions(max_frames=max_frames)
    prompt = Prompt((_on_map(*target.click),), crs="EPSG:3857", object_id=number)
    found = segmenter.objects([prompt], level=target.level, options=options, refine=True)
    return next(found)


def _on_map(column: float, row: float) -> tuple[float, float]:
    """Web Mercator coordinates of a pixel of the example scene."""
    half_world = 20037508.342789244
    cell = 2 * half_world / 2**ZOOM / 256
    x = -half_world + (TILE[0] * 256 + column) * cell
    return x, half_world - (TILE[1] * 256 + row) * cell


def _tiles(scene: Path, folder: Path) -> Path:
    """The scene as a folder of z/x/y tiles, as a web service would give them."""
    import rasterio

    from geosam2.testing.files import write_xyz_tiles

    if not (folder / str(ZOOM)).is_dir():
        with rasterio.open(scene) as file:
            pixels = file.read()
        write_xyz_tiles(folder, pixels, *TILE, ZOOM, levels=5, suffix="png")
    return folder


def _truth_iou(found: geopandas.GeoDataFrame) -> float:
    """IoU with the OpenStreetMap building that fits best."""
    import geopandas

    from geosam2.quality import polygon_iou

    shape = found.geometry.iloc[0]
    buildings = geopandas.read_file(example("banepa_buildings.geojson")).to_crs(found.crs)
    near = buildings.geometry[buildings.intersects(shape)]
    return max((polygon_iou(shape, other) for other in near), default=0.0)


def _joined(rows: list[geopandas.GeoDataFrame]) -> geopandas.GeoDataFrame:
    import geopandas
    import pandas

    return geopandas.GeoDataFrame(pandas.concat(rows, ignore_index=True), crs=rows[0].crs)
