"""Evaluation: metrics against independent definitions, the simulated person, whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from click.testing import CliRunner
from PIL import Image
from rasterio.transform import from_origin
from scipy import ndimage
from skimage.metrics import adapted_rand_error
from skimage.morphology import dilation, disk

from geosam2.commands.evaluate import command as evaluate
from geosam2.commands.train import command as train
from geosam2.errors import SourceError
from geosam2.evaluation import (
    ClickReport,
    Verdict,
    boundary_f,
    clicks_needed,
    converse,
    depths,
    find_labelled,
    first_click,
    interval,
    iou,
    next_click,
    open_plain,
    square_around,
    usable_ids,
)
from geosam2.evaluation_pictures import worst
from geosam2.finetune import divide, pictures_of


def masks(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    soft = ndimage.gaussian_filter(rng.normal(size=(60, 70)), 6)
    moved = soft + ndimage.gaussian_filter(rng.normal(size=(60, 70)), 5) * 0.3
    return soft > 0.02, moved > 0.02


def davis_f(found: np.ndarray, truth: np.ndarray, share: float = 0.008) -> float:
    """The published definition: outlines matched by dilation with a disc."""

    def seg2bmap(mask: np.ndarray) -> np.ndarray:
        e, s, se = (np.zeros_like(mask) for _ in range(3))
        e[:, :-1], s[:-1], se[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
        b = mask ^ e | mask ^ s | mask ^ se
        b[-1], b[:, -1] = mask[-1] ^ e[-1], mask[:, -1] ^ s[:, -1]
        b[-1, -1] = False
        return b

    reach = int(np.ceil(share * np.linalg.norm(truth.shape)))
    ours, theirs = seg2bmap(found), seg2bmap(truth)
    precision = (ours & dilation(theirs, disk(reach))).sum() / ours.sum()
    recall = (theirs & dilation(ours, disk(reach))).sum() / theirs.sum()
    return float(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize("seed", range(6))
def test_boundary_f_is_that_of_davis(seed: int) -> None:
    found, truth = masks(seed)
    inner = found.copy(), truth.copy()
    for mask in inner:  # the published code and ours differ only along the image's edge
        mask[:2] = mask[-2:] = mask[:, :2] = mask[:, -2:] = False
    assert boundary_f(*inner) == pytest.approx(davis_f(*inner), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_iou_follows_from_precision_and_recall_of_pairs(seed: int) -> None:
    found, truth = masks(seed)
    tp, fp, fn = (found & truth).sum(), (found & ~truth).sum(), (truth & ~found).sum()
    assert iou(found, truth) == pytest.approx(tp / (tp + fp + fn))
    error, _, _ = adapted_rand_error(truth.astype(int) + 1, truth.astype(int) + 1)
    assert error == pytest.approx(0)
    assert iou(truth, truth) == 1.0
    assert iou(np.zeros_like(truth), np.zeros_like(truth)) == 1.0


def test_depth_is_the_distance_to_the_outside_and_to_the_edge_of_the_image() -> None:
    mask, _ = masks(3)
    padded = np.pad(mask, 1)
    np.testing.assert_allclose(depths(mask), ndimage.distance_transform_edt(padded)[1:-1, 1:-1])


def test_bootstrap_interval_is_close_to_theory() -> None:
    values = np.random.default_rng(0).normal(0.6, 0.1, size=400)
    low, high = interval(list(values))
    half = 1.96 * values.std() / 20
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert low < values.mean() < high


def test_clicks_go_inside_first_and_then_to_the_largest_error() -> None:
    truth = np.zeros((40, 50), bool)
    truth[5:30, 10:40] = True
    rng = np.random.default_rng(0)
    for how in ("jittered", "centre"):
        x, y, label = first_click(truth, rng, how)  # type: ignore[arg-type]
        assert truth[int(y), int(x)]
        assert label == 1
    half = truth.copy()
    half[:, 25:] = False
    x, y, label = next_click(half, truth)  # type: ignore[misc]
    assert label == 1
    assert 25 <= x < 40
    x, y, label = next_click(np.ones_like(truth), truth)  # type: ignore[misc]
    assert label == 0
    assert not truth[int(y), int(x)]
    assert next_click(truth, truth) is None


def test_a_perfect_answer_ends_the_conversation() -> None:
    truth, other = masks(1)
    answers = iter([other, truth])
    ious, opening = converse(lambda clicks: next(answers), truth, (0.0, 0.0, 1), 5)
    assert ious[1:] == [1.0] * 4
    assert opening is other
    assert clicks_needed(ious, 0.999) == 2


def test_small_and_cut_objects_are_left_out_and_counted() -> None:
    ids = np.zeros((30, 30), np.int32)
    ids[0:8, 5:9], ids[10:13, 10:13], ids[15:25, 15:25] = 1, 2, 3
    assert usable_ids(ids) == ([3], 2)


def test_crops_contain_the_object() -> None:
    truth = np.zeros((300, 400), bool)
    truth[100:120, 200:260] = True
    for seed in range(20):
        square = square_around(truth, np.random.default_rng(seed))
        assert square.cut(truth).sum() == truth.sum()
        assert 2 * 60 <= square.side <= 6 * 60


def test_human_and_derived_labels_share_no_figure() -> None:
    report = ClickReport("as told")
    report.add("model", Verdict("town", True, (0.5,) * 5, 0.5, 0.5))
    report.add("model", Verdict("town", False, (1.0,) * 5, 1.0, 1.0))
    figures = report.figures()
    assert figures["human"]["iou_1"] == 0.5
    assert {k: v["iou_1"] for k, v in figures["sources"].items()} == {
        "town": 0.5,
        "town (derived)": 1.0,
    }
    assert "town (derived)" in report.table()


# -- whole runs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One georeferenced uint16 image with four objects, and their raster of ids."""
    rng = np.random.default_rng(0)
    image = rng.integers(400, 600, size=(3, 160, 160)).astype(np.uint16)
    ids = np.zeros((160, 160), np.uint16)
    for n, (top, left) in enumerate(((20, 20), (20, 90), (95, 20), (95, 100)), start=1):
        image[:, top : top + 40, left : left + 36] += np.uint16(900)
        ids[top : top + 40, left : left + 36] = n
    profile = {
        "driver": "GTiff", "height": 160, "width": 160, "crs": "EPSG:32631",
        "transform": from_origin(500000, 5000000, 10, 10),
    }  # fmt: skip
    for name, data in (("images", image), ("instances", ids[None])):
        (tmp_path / "town" / name).mkdir(parents=True)
        path = tmp_path / "town" / name / "a.tif"
        with rasterio.open(path, "w", count=len(data), dtype=data.dtype, **profile) as file:
            file.write(data)
    return tmp_path / "town"


def three_boxes() -> list[shapely.Polygon]:
    """40 rows by 36 columns each, in map coordinates of the image; one on its right side."""
    return [
        shapely.box(
            500000 + 10 * c, 5000000 - 10 * (r + 40), 500000 + 10 * (c + 36), 5000000 - 10 * r
        )
        for r, c in ((20, 20), (95, 20), (95, 115))
    ]


def test_a_folder_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="instances_derived"):
        find_labelled([tmp_path])


@pytest.mark.parametrize("crop", ["object", "scene"])
def test_evaluate_clicks_ends_with_a_line_of_json(folder: Path, crop: str) -> None:
    arguments = ["clicks", str(folder), "--crop", crop, "--limit", "1", "--clicks", "2"]
    result = CliRunner().invoke(evaluate, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["n"] == 1
    assert 0.2 < figures["iou_1"] <= 1  # a bright square on a dark ground
    assert figures["iou_3"] is None
    assert set(figures["sources"]) == {"town"}


def test_the_worst_objects_are_drawn_as_they_were_judged(folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "worst.png"
    arguments = ["clicks", str(folder), "--limit", "2", "--clicks", "3", "--pictures", str(picture)]
    result = CliRunner().invoke(evaluate, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.glob("worst*")] == ["worst.png"]
    pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    for colour in ((255, 0, 255), (255, 255, 0)):  # answer, which hides the truth, and click
        assert (pixels == colour).all(1).sum() > 8, colour


@pytest.mark.parametrize(
    ("more", "remedy"),
    [(["--pictures", "x.gif"], "must end in .png"), (["--pictures", "x.png", "--crop", "object"],
                                                     "leave out --crop object")],
)  # fmt: skip
def test_pictures_that_cannot_be_drawn_are_refused_before_the_work(
    folder: Path, more: list[str], remedy: str
) -> None:
    result = CliRunner().invoke(evaluate, ["clicks", str(folder), *more])
    assert result.exit_code == 2
    assert remedy in result.output


def test_the_worst_of_each_source_come_worst_first() -> None:
    report = ClickReport("")
    for source, value in (("a", 0.5), ("b", 0.9), ("a", 0.2), ("a", 0.7), ("b", 0.8)):
        report.add("model", Verdict(source, True, (value,), value, value))
    assert [(v.source, v.ious[0]) for v in worst(report, 2)] == [
        ("a", 0.2), ("a", 0.5), ("b", 0.8), ("b", 0.9)
    ]  # fmt: skip


def test_rivals_answer_the_same_clicks(folder: Path) -> None:
    from geosam2.rivals import everybody

    scene = open_plain(folder / "images" / "a.tif")
    pixels = scene.read(scene.geobox).pixels
    truth = np.zeros((160, 160), bool)
    truth[20:60, 20:56] = True
    for name, rival in everybody().items():
        found = rival.solve(pixels)([(38.0, 40.0, 1), (73.0, 40.0, 0), (38.0, 80.0, 0)])
        assert found.shape == truth.shape
        assert found[40, 38], name
        assert not found[40, 73], name
        assert iou(found, truth) > 0.2, name  # GrabCut also takes the other squares


def test_polygons_become_training_pictures_with_a_part_held_back(folder: Path) -> None:
    squares = three_boxes()
    layer = geopandas.GeoDataFrame(geometry=squares, crs="EPSG:32631").to_crs("EPSG:4326")
    layer.to_file(folder / "fields.gpkg")
    (picture,) = pictures_of(folder / "images", folder / "fields.gpkg")
    assert picture.pixels.dtype == np.uint8
    assert sorted(o[2] for o in picture.objects) == pytest.approx([1440] * 3, abs=50)
    kept, held = divide([picture], 0)
    assert (len(kept[0].objects), len(held[0].objects)) == (3, 1)
    far = layer.set_geometry(layer.translate(20))
    far.to_file(folder / "far.gpkg")
    with pytest.raises(SourceError, match="are both georeferenced"):
        pictures_of(folder / "images", folder / "far.gpkg")


@pytest.mark.slow
def test_fine_tuning_gives_a_checkpoint_and_figures(folder: Path, tmp_path: Path) -> None:
    geopandas.GeoDataFrame(geometry=three_boxes(), crs="EPSG:32631").to_file(folder / "fields.gpkg")
    arguments = ["--images", str(folder / "images"), "--polygons", str(folder / "fields.gpkg"),
                 "-o", str(tmp_path / "out"), "--steps", "2", "--size", "64",
                 "--judged", "2"]  # fmt: skip
    result = CliRunner().invoke(train, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    figures = json.loads(result.stdout.splitlines()[-1])
    assert set(figures) == {"before", "after"}
    assert (tmp_path / "out" / "best.safetensors").exists()
