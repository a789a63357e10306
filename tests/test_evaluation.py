"""Evaluation: metrics against independent definitions, the simulated person, whole runs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from PIL import Image
from rasterio.transform import from_origin
from scipy import ndimage
from skimage.morphology import dilation, disk

from geosam2.commands.evaluate import command as evaluate
from geosam2.errors import MissingDependencyError, SourceError
from geosam2.evaluation import (
    Click,
    ClickOptions,
    ClickReport,
    Verdict,
    boundary_f,
    boundary_f_of_object,
    choose,
    clicks_needed,
    converse,
    depths,
    find_labelled,
    first_click,
    frame_at,
    interval,
    judge_clicks,
    next_click,
    open_plain,
    read_raster,
    square_around,
    usable_ids,
)
from geosam2.evaluation_pictures import worst
from geosam2.quality import mask_iou
from geosam2.testing.colour_model import ColourModel


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


def placed(mask: np.ndarray, side: int, row: int, column: int) -> np.ndarray:
    """The mask in an empty image of `side` pixels."""
    image = np.zeros((side, side), bool)
    image[row : row + mask.shape[0], column : column + mask.shape[1]] = mask
    return image


def test_boundary_f_of_an_object_does_not_depend_on_the_size_of_the_scene() -> None:
    found, truth = np.zeros((2, 40, 40), bool)
    truth[10:30, 10:30] = found[10:30, 13:33] = True  # 3 px aside, of 20
    small, large = ((placed(m, s, 0, 0) for m in (found, truth)) for s in (40, 1000))
    inside = [placed(m, 1000, 500, 300) for m in (found, truth)]
    figures = [boundary_f_of_object(*pair) for pair in (small, large, inside)]
    assert figures == [figures[0]] * 3
    assert figures[0] < 0.7
    assert boundary_f(*inside) == 1.0  # DAVIS's rule lets 12 px pass in this scene


@pytest.mark.parametrize("seed", range(4))
def test_boundary_f_of_an_object_is_that_of_davis_in_a_square_around_it(seed: int) -> None:
    found, truth = (np.pad(mask[20:45, 20:50], 3) for mask in masks(seed))
    image = [placed(mask, 300, 120, 140) for mask in (found, truth)]
    rows, columns = (np.flatnonzero(image[1].any(axis)) for axis in (1, 0))
    side = int(np.ceil(2.5 * max(rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1)))
    top, left = ((n[0] + n[-1] + 1 - side) // 2 for n in (rows, columns))
    square = [mask[top : top + side, left : left + side] for mask in image]
    assert boundary_f_of_object(*image) == pytest.approx(davis_f(*square), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_iou_follows_from_precision_and_recall_of_pairs(seed: int) -> None:
    found, truth = masks(seed)
    tp, fp, fn = (found & truth).sum(), (found & ~truth).sum(), (truth & ~found).sum()
    assert mask_iou(found, truth) == pytest.approx(tp / (tp + fp + fn))
    assert mask_iou(truth, truth) == 1.0
    assert mask_iou(np.zeros_like(truth), np.zeros_like(truth)) == 1.0


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


def test_ids_below_zero_are_no_object() -> None:
    ids = np.full((30, 30), -9999, np.int32)
    ids[15:25, 15:25] = 3
    assert usable_ids(ids) == ([3], 0)


@pytest.mark.parametrize(("dtype", "outside"), [("int16", -9999), ("float32", np.nan)])
@pytest.mark.parametrize("declared", [True, False])
def test_no_data_of_a_raster_is_no_object(
    tmp_path: Path, dtype: str, outside: float, declared: bool
) -> None:
    ids = np.full((30, 30), outside, dtype)
    ids[15:25, 15:25], ids[2:4, 2:4] = 3, 0
    profile = {"height": 30, "width": 30, "count": 1, "dtype": dtype,
               "transform": from_origin(0, 30, 1, 1),
               "nodata": outside if declared else None}  # fmt: skip
    with rasterio.open(tmp_path / "a.tif", "w", **profile) as file:
        file.write(ids[None])
    read = read_raster(tmp_path / "a.tif")
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, np.where(ids == 3, 3, 0))


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


def test_intervals_are_drawn_with_the_seed_of_the_run() -> None:
    report = ClickReport("", seed=7)
    values = list(np.random.default_rng(0).uniform(size=9))
    for value in values:
        report.add("model", Verdict("town", True, (value,), value, value))
    wanted = [round(x, 4) for x in interval(values, seed=7)]
    assert wanted != [round(x, 4) for x in interval(values, seed=0)]
    figures = report.figures()
    for some in (figures, figures["human"], figures["sources"]["town"]):
        assert some["iou_1_interval"] == wanted


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


def test_a_folder_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="instances_derived"):
        find_labelled([tmp_path])


def test_folders_of_one_name_are_sources_of_their_own(folder: Path, tmp_path: Path) -> None:
    other, third = tmp_path / "other" / "town", tmp_path / "village"
    for copy in (other, third):
        shutil.copytree(folder, copy)
    images = find_labelled([folder, other, third, folder / ".." / "town"])
    assert [one.source for one in images] == [folder.as_posix(), other.as_posix(), "village"]
    chosen = choose(images, ClickOptions(limit=2), ClickReport(""))
    assert {one.source: len(ids) for one, ids in chosen.items()} == {
        folder.as_posix(): 2, other.as_posix(): 2, "village": 2
    }  # fmt: skip


def test_derived_labels_of_a_folder_do_not_use_up_the_limit_of_human_ones(folder: Path) -> None:
    shutil.copytree(folder / "instances", folder / "instances_derived")
    chosen = choose(find_labelled([folder]), ClickOptions(limit=2), ClickReport(""))
    assert {one.human: len(ids) for one, ids in chosen.items()} == {True: 2, False: 2}


def test_what_the_image_does_not_show_is_not_asked_for(folder: Path) -> None:
    with rasterio.open(folder / "images" / "a.tif", "r+") as file:
        file.nodata = 0
        pixels = file.read()
        pixels[:, 20:60, 20:56] = 0  # all of one
        pixels[:, 20:60, 90:115] = 0  # most of another
        pixels[:, 95:135, 20:30] = 0  # some of the third
        file.write(pixels)
    (*_, report) = judge_clicks(find_labelled([folder]), ColourModel(128), ClickOptions(clicks=1))  # type: ignore[arg-type]
    assert report.figures()["n"] == report.left_out == 2
    assert report.totals()["iou_1"] > 0.95  # judged on what is shown


def test_rivals_see_no_black_border(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from geosam2 import rivals

    seen = []

    def solve(pixels: np.ndarray):  # type: ignore[no-untyped-def]
        seen.append(pixels)
        return lambda clicks: (pixels > 128).all(0)

    monkeypatch.setattr(rivals, "everybody", lambda: {"bright": rivals.Rival(solve)})
    monkeypatch.setattr("geosam2.evaluation.random_twin", lambda model: model)
    options = ClickOptions(clicks=1, rivals=True)
    (*_, report) = judge_clicks(find_labelled([folder]), ColourModel(128), options)  # type: ignore[arg-type]
    scene = open_plain(folder / "images" / "a.tif")
    for pixels in seen:
        np.testing.assert_array_equal(pixels, scene.read(scene.geobox).pixels)
    assert len(seen) == report.totals("bright")["n"] == 4
    assert report.totals("bright")["iou_1"] == pytest.approx(0.25, abs=0.01)  # of four squares


@pytest.mark.parametrize("shape", [(600, 700), (256, 256), (100, 900)])
def test_what_rivals_see_is_around_the_click_and_inside_the_image(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    corners: Sequence[Click] = [(0.5, 0.5, 1), (shape[1] - 0.5, shape[0] - 0.5, 1)]
    anywhere = [(float(x), float(y), 1) for y, x in rng.uniform(0, shape, (20, 2))]
    for click in [*corners, *anywhere]:
        square = frame_at(click, shape)
        assert square.side == min(512, *shape)
        assert square.cut(np.ones(shape, bool)).all()
        x, y, _ = square.local(click)
        assert 0 <= x < square.side
        assert 0 <= y < square.side


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
    assert (figures["model"], figures["name"]) == ("nano", "nano")
    assert len(figures["fingerprint"]) == 64
    assert figures["options"] == {
        "folders": [str(folder)], "crop": crop, "clicks": 2, "limit": 1, "rivals": False, "seed": 0,
        "split": None, "part": None,
    }  # fmt: skip


def test_rivals_have_the_figures_that_the_model_has(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import geosam2_model

    monkeypatch.setattr(geosam2_model, "load", lambda name: ColourModel(128))
    monkeypatch.setattr("geosam2.evaluation.random_twin", lambda model: model)
    split = folder / "split.json"
    split.write_text(json.dumps({"town": {"a": "dev"}}))
    arguments = ["clicks", str(folder), "--rivals", "--limit", "1", "--split", str(split)]
    result = CliRunner().invoke(evaluate, arguments, catch_exceptions=False)
    figures = json.loads(result.stdout.splitlines()[-1])
    assert set(figures["rivals"]) == {
        "random weights", "GrabCut", "region growing", "Felzenszwalb", "random walker"
    }  # fmt: skip
    for rival in figures["rivals"].values():
        assert set(rival) == set(figures["sources"]["town"]) | {"human"}
        assert all(0 <= rival[f"iou_{n}"] <= 1 for n in (1, 3, 5))
    twin = figures["rivals"]["random weights"]  # here the same network
    assert [twin[f"iou_{n}"] for n in (1, 3, 5)] == [figures[f"iou_{n}"] for n in (1, 3, 5)]
    assert figures["fingerprint"] == "colour-model-1"
    assert (figures["options"]["split"], figures["options"]["part"]) == (str(split), "dev")


@pytest.mark.parametrize(
    ("command", "missing"),
    [("clicks", "scipy.ndimage"), ("video", "scipy.ndimage"), ("sequence", "scipy.ndimage"),
     ("clicks --rivals", "skimage"), ("clicks --rivals", "cv2")],
)  # fmt: skip
def test_a_missing_package_is_told_before_any_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr("geosam2_model.load", lambda name: pytest.fail("a model was loaded"))
    with pytest.raises(MissingDependencyError, match=r"pip install 'geosam2\[evaluate\]'"):
        CliRunner().invoke(evaluate, [*command.split(), str(folder)], catch_exceptions=False)


@pytest.mark.parametrize(
    "more",
    [["clicks", "--seed", "-1"], ["clicks", "--limit", "0"], ["clicks", "--clicks", "0"],
     ["sequence", "--seed", "-1"], ["sequence", "--limit", "-2"]],
)  # fmt: skip
def test_numbers_out_of_range_are_refused_in_one_sentence(folder: Path, more: list[str]) -> None:
    result = CliRunner().invoke(evaluate, [*more, str(folder)])
    assert result.exit_code == 2
    assert "is not in the range" in result.output


@pytest.mark.parametrize("text", ["no JSON", "[1]", '{"town": "dev"}'])
def test_a_split_of_another_form_is_refused(folder: Path, text: str) -> None:
    (folder / "split.json").write_text(text)
    arguments = ["clicks", str(folder), "--split", str(folder / "split.json")]
    result = CliRunner().invoke(evaluate, arguments)
    assert result.exit_code == 2
    assert "is not JSON of the form {folder: {image stem: part}}" in result.output


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
        assert mask_iou(found, truth) > 0.2, name  # GrabCut also takes the other squares
