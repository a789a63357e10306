"""Fine-tuning: polygons become training pictures, some places are held back, a tiny run."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely
import torch
from click.testing import CliRunner, Result
from geosam2_model.errors import InputError
from geosam2_model.training import judge
from geosam2_model.training.data import Picture
from rasterio.transform import from_origin

from geosam2.commands.train import command as train
from geosam2.errors import ExportError, MissingDependencyError, PromptError, SourceError
from geosam2.finetune import (
    FineTune,
    Parts,
    burn,
    cut,
    divide,
    fine_tune,
    pictures_of,
    read_polygons,
    seen,
)

CRS = "EPSG:32631"
EAST, NORTH, CELL = 500000, 5000000, 10


def box(row: int, column: int, height: int = 24, width: int = 24) -> shapely.Polygon:
    """A box of pixels in map coordinates."""
    left, top = EAST + CELL * column, NORTH - CELL * row
    return shapely.box(left, top - CELL * height, left + CELL * width, top)


def write_image(
    path: Path,
    boxes: Sequence[shapely.Polygon],
    corner: tuple[int, int] = (0, 0),
    size: tuple[int, int] = (160, 160),
    **profile: Any,
) -> Path:
    """A dark, rough image with bright boxes; `corner` is its (row, column) on the common grid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    transform = from_origin(EAST + CELL * corner[1], NORTH - CELL * corner[0], CELL, CELL)
    pixels = np.random.default_rng(0).integers(30, 60, size=(3, *size)).astype(np.uint8)
    inside = rasterio.features.rasterize(boxes, out_shape=size, transform=transform)
    pixels[:, inside > 0] += 120
    with rasterio.open(path, "w", driver="GTiff", count=3, dtype="uint8", height=size[0],
                       width=size[1], crs=CRS, transform=transform, **profile) as file:  # fmt: skip
        file.write(pixels)
    return path


def write_polygons(path: Path, shapes: Sequence[shapely.Geometry], crs: str = CRS) -> Path:
    geopandas.GeoDataFrame(geometry=list(shapes), crs=CRS).to_crs(crs).to_file(path)
    return path


GRID = [box(r, c) for r in (12, 62, 112) for c in (12, 62, 112)]


def ids_of(pictures: Sequence[Picture]) -> set[int]:
    return {n for p in pictures for r in p.labels for n in np.unique(r).tolist()} - {0}


def parts_of(images: Path, polygons: Path) -> Parts:
    layer = read_polygons(polygons)
    return divide(pictures_of(images, layer), layer)


# -- polygons


def test_polygons_become_training_pictures(tmp_path: Path) -> None:
    squares = [box(20, 20, 40, 36), box(95, 20, 40, 36), box(95, 115, 40, 36)]
    write_image(tmp_path / "images" / "a.tif", squares)
    layer = read_polygons(write_polygons(tmp_path / "fields.gpkg", squares, "EPSG:4326"))
    (picture,) = pictures_of(tmp_path / "images", layer)
    assert picture.pixels.dtype == np.uint8
    assert sorted(o[2] for o in picture.objects) == pytest.approx([1440] * 3, abs=50)
    far = layer.set_geometry(layer.translate(20))
    with pytest.raises(SourceError, match="georeferenced"):
        pictures_of(tmp_path / "images", far)


def test_polygons_that_overlap_are_whole_each() -> None:
    shapes = [box(10, 10), box(10, 60), box(20, 20), box(15, 15)]
    transform = from_origin(EAST, NORTH, CELL, CELL)
    rasters = burn(list(enumerate(shapes, start=1)), (100, 100), transform)
    assert [sorted(set(np.unique(r)) - {0}) for r in rasters] == [[1, 2], [3], [4]]
    for n, shape in enumerate(shapes, start=1):
        alone = rasterio.features.rasterize([shape], out_shape=(100, 100), transform=transform)
        assert any(np.array_equal(r == n, alone == 1) for r in rasters), n


def test_a_polygon_that_leaves_the_image_is_burnt_as_rasterio_does() -> None:
    transform = from_origin(EAST, NORTH, CELL, CELL)
    shape = shapely.Point(EAST + 50, NORTH - 500).buffer(333)
    (raster,) = burn([(7, shape), (8, box(200, 200))], (80, 60), transform)
    whole = rasterio.features.rasterize([(shape, 7)], out_shape=(80, 60), transform=transform)
    np.testing.assert_array_equal(raster, whole)


def test_nothing_is_learnt_where_there_is_no_data(tmp_path: Path) -> None:
    ids = np.repeat(np.arange(3, dtype=np.int32), 10)[None].repeat(4, axis=0)  # 0, 1, 2
    valid = np.ones((4, 30), bool)
    valid[:, 14:26] = False  # six columns in ten of both
    valid[:, 14:16] = True  # four of 1
    found = seen(ids, valid)
    assert set(np.unique(found)) == {0, 1}
    assert (found == 1).sum() == 24

    path = write_image(tmp_path / "images" / "a.tif", GRID, nodata=0)
    with rasterio.open(path, "r+") as file:
        pixels = file.read()
        pixels[:, :, 70:] = 0
        file.write(pixels)
    layer = read_polygons(write_polygons(tmp_path / "fields.gpkg", GRID))
    assert ids_of(pictures_of(tmp_path / "images", layer)) == {1, 4, 7}


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("notes.gpkg", "not a vector file", "give a GeoPackage"),
        ("table.csv", "name,area\nfield,3\n", "without geometry"),
    ],
)
def test_files_that_hold_no_polygons_are_refused(
    tmp_path: Path, name: str, content: str, remedy: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SourceError, match=remedy):
        read_polygons(tmp_path / name)
    write_polygons(tmp_path / "points.gpkg", [shapely.Point(EAST, NORTH)])
    with pytest.raises(SourceError, match="no polygon among its 1 features"):
        read_polygons(tmp_path / "points.gpkg")


def test_an_image_that_is_too_narrow_is_refused_by_name(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "strip.tif", [box(0, 0)], size=(12, 160))
    layer = read_polygons(write_polygons(tmp_path / "fields.gpkg", [box(0, 0), box(0, 90)]))
    with pytest.raises(InputError, match=r"strip\.tif is 12 x 160 pixels"):
        pictures_of(tmp_path / "images", layer)


# -- what is held back


def check_disjoint(parts: Parts, layer: geopandas.GeoDataFrame) -> None:
    trained, choosing, reported = map(ids_of, (parts.trained, parts.choosing, parts.reported))
    assert trained
    assert not trained & (choosing | reported)
    assert not parts.independent or not choosing & reported
    on, off = (layer.geometry.loc[sorted(ids)] for ids in (trained, choosing | reported))
    assert not shapely.union_all(on.values).intersects(shapely.union_all(off.buffer(-1).values))


def test_a_polygon_across_the_cut_of_few_images_is_in_neither_part(tmp_path: Path) -> None:
    shapes = [*GRID, box(140, 2, 12, 156), box(2, 140, 88, 12)]  # the last two are long
    write_image(tmp_path / "images" / "a.tif", shapes)
    polygons = write_polygons(tmp_path / "fields.gpkg", shapes)
    parts = parts_of(tmp_path / "images", polygons)
    check_disjoint(parts, read_polygons(polygons))
    assert ids_of(parts.choosing) == {1, 2, 3}  # the upper row
    assert ids_of(parts.trained) == set(range(4, 11))  # all others but the one across
    assert not parts.independent


def test_dates_and_tiles_of_one_place_are_on_one_side(tmp_path: Path) -> None:
    """Four images show the same polygons; whole images held back would be trained on elsewhere."""
    shapes = [box(r, c, 16, 16) for r in range(4, 150, 24) for c in range(4, 150, 24)]
    for name, corner in (("2019", (0, 0)), ("2020", (0, 0)), ("tile", (40, 0)), ("e", (0, 30))):
        write_image(tmp_path / "images" / f"{name}.tif", shapes, corner)
    polygons = write_polygons(tmp_path / "fields.gpkg", shapes)
    parts = parts_of(tmp_path / "images", polygons)
    check_disjoint(parts, read_polygons(polygons))
    assert parts.independent
    held = ids_of(parts.choosing) | ids_of(parts.reported)
    assert len(held) / (len(held) + len(ids_of(parts.trained))) == pytest.approx(0.25, abs=0.1)


def test_the_cut_prefers_a_gap_to_an_even_share() -> None:
    tall = [[x, 0, x + 1, 9] for x in range(6)]  # side by side: a line across would cross all
    assert [len(part) for part in cut(np.array(tall, float))] in ([4, 2], [5, 1])
    wide = np.array(tall, float)[:, [1, 0, 3, 2]]
    assert [len(part) for part in cut(wide)] in ([4, 2], [5, 1])
    assert [len(part) for part in cut(wide[:1])] == [0, 0]


def test_too_few_polygons_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.tif", GRID)
    polygons = write_polygons(tmp_path / "fields.gpkg", [box(12, 12), box(20, 20)])
    with pytest.raises(SourceError, match="too few to train on some"):
        parts_of(tmp_path / "images", polygons)


# -- the command


@pytest.fixture
def fields(tmp_path: Path) -> list[str]:
    """Arguments for the smallest run: four images of one place, and where they and the polygons
    are."""
    for name in "abcd":
        write_image(tmp_path / "images" / f"{name}.tif", GRID)
    polygons = write_polygons(tmp_path / "fields.gpkg", GRID)
    return ["--images", str(tmp_path / "images"), "--polygons", str(polygons), "--steps", "1",
            "--size", "64", "--judged", "1"]  # fmt: skip


def run(arguments: list[str], out: Path) -> Result:
    return CliRunner().invoke(train, [*arguments, "-o", str(out)], catch_exceptions=False)


def test_training_gives_a_checkpoint_and_figures_and_a_used_folder_is_refused(
    fields: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    torch.set_num_threads(3)
    try:
        result = run(fields, out)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert result.exit_code == 0
    figures = json.loads(result.stdout.splitlines()[-1])
    assert set(figures) == {"before", "after"}
    assert set(figures["before"]) == set(figures["after"]) == {"iou_1", "iou_3", "iou_5"}
    assert "also chose the checkpoint" in result.stderr
    best = (out / "best.safetensors").read_bytes()
    assert torch.equal(torch.random.get_rng_state(), state)

    with pytest.raises(InputError, match=r"holds another run \(other phases\); choose another -o"):
        run([*fields, "--lr", "0.001"], out)
    write_image(tmp_path / "images" / "d.tif", GRID[:-1])
    with pytest.raises(InputError, match=r"pictures\); choose another -o"):
        run(fields, out)
    assert (out / "best.safetensors").read_bytes() == best


@pytest.mark.slow
def test_the_same_command_again_gives_the_same_answer(fields: list[str], tmp_path: Path) -> None:
    first, again = (run(fields, tmp_path / "out") for _ in range(2))
    assert again.stdout == first.stdout


def test_a_run_that_only_damages_hands_out_the_start(
    fields: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geosam2_model import load

    looks = iter([0.5, 0.9, 0.1, 0.6])  # before, step 0, step 1, after
    monkeypatch.setattr(judge, "dev_figures", lambda *_: dict.fromkeys(["iou_1", "score"],
                                                                      next(looks)))  # fmt: skip
    result = run([*fields, "--lr", "100"], tmp_path / "out")
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "before": {"iou_1": 0.5}, "after": {"iou_1": 0.6}
    }  # fmt: skip
    best = load(tmp_path / "out" / "best.safetensors").state_dict()
    assert all(torch.equal(best[k], v) for k, v in load("nano").state_dict().items())


@pytest.mark.parametrize("wrong", [("--judged", "0"), ("--seed", "-1"), ("--lr", "0")])
def test_numbers_out_of_range_are_refused_in_a_sentence(
    fields: list[str], tmp_path: Path, wrong: tuple[str, str]
) -> None:
    result = run([*fields, *wrong], tmp_path / "out")
    assert result.exit_code == 2
    assert "not in the range" in result.stderr
    with pytest.raises(PromptError, match="judge at least one"):
        FineTune(tmp_path, **{wrong[0][2:]: float(wrong[1])})  # type: ignore[arg-type]


def test_a_folder_that_cannot_be_written_is_refused(fields: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="choose another -o"):
        run(fields, tmp_path / "file" / "out")


def test_the_train_extra_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingDependencyError, match=r"geosam2\[train\]"):
        fine_tune(tmp_path, tmp_path, FineTune(tmp_path / "out"))


def test_help_says_where_training_runs_and_what_the_figures_are() -> None:
    text = " ".join(CliRunner().invoke(train, ["--help"]).output.split())
    assert "Training runs on the CPU" in text
    assert "choose the checkpoint" in text
