"""Videos and panning: real pixels, figures checked by other definitions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from click.testing import CliRunner
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize
from rasterio.windows import Window
from skimage.morphology import dilation, disk

from geosam2.commands.evaluate import command as evaluate
from geosam2.errors import SourceError
from geosam2.evaluation import find_labelled
from geosam2.evaluation_sequences import (
    find_videos,
    judge_panning,
    judge_video,
    ratio_interval,
    ratio_of_means,
)
from geosam2.testing import write_geotiff
from geosam2.testing.colour_model import ColourModel

EXAMPLES = Path(__file__).parents[1] / "examples"
SIDE, FRAMES = 160, 4


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A camera that pans over houses of Banepa; outlines are OpenStreetMap's."""
    folder = tmp_path_factory.mktemp("videos") / "houses"
    with rasterio.open(EXAMPLES / "banepa.tif") as file:
        houses = geopandas.read_file(EXAMPLES / "banepa_buildings.geojson").to_crs(file.crs)
        x, y = file.xy(762, 1080)
        near = houses[houses.distance(geopandas.points_from_xy([x], [y])[0]) < 12]
        shapes = [(shape, n) for n, shape in enumerate(near.geometry, start=1)]
        assert shapes
        for number in range(FRAMES):
            window = Window(1000 + 8 * number, 690 + 5 * number, SIDE, SIDE)  # type: ignore[no-untyped-call]
            affine = file.window_transform(window)
            ids = rasterize(shapes, (SIDE, SIDE), transform=affine, dtype="uint8")
            geobox = GeoBox((SIDE, SIDE), Affine(*affine[:6]), str(file.crs))
            for name, pixels in (
                ("frames", file.read([1, 2, 3], window=window)),
                ("masks", ids[None]),
            ):
                (folder / name).mkdir(parents=True, exist_ok=True)
                write_geotiff(folder / name / f"{number:02d}.tif", pixels, geobox)
    return folder


def davis(found: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """J and F by the published definitions, written down anew."""

    def edge(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
        here = padded[:-1, :-1]
        return (here ^ padded[1:, :-1]) | (here ^ padded[:-1, 1:]) | (here ^ padded[1:, 1:])

    union = np.logical_or(found, truth).sum()
    region = np.logical_and(found, truth).sum() / union if union else 1.0
    reach = disk(int(np.ceil(0.008 * np.hypot(*truth.shape))))
    ours, theirs = edge(found), edge(truth)
    precision = (ours & dilation(theirs, reach)).sum() / max(ours.sum(), 1)
    recall = (theirs & dilation(ours, reach)).sum() / max(theirs.sum(), 1)
    return float(region), float(2 * precision * recall / max(precision + recall, 1e-9))


def test_houses_under_a_moving_camera_are_followed_and_judged_as_davis_does(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import geosam2_model
    from geosam2_model.video_predictor import VideoPredictor

    seen: dict[int, dict[int, np.ndarray]] = {}
    track = VideoPredictor.track

    def spy(self: VideoPredictor, *args: object, **kwargs: object):  # type: ignore[no-untyped-def]
        for result in track(self, *args, **kwargs):  # type: ignore[arg-type]
            for name, mask in zip(result.object_ids, result.masks.numpy(), strict=True):
                seen.setdefault(int(str(name)), {})[result.frame] = mask
            yield result

    monkeypatch.setattr(VideoPredictor, "track", spy)
    figures = judge_video(video, geosam2_model.load("nano"))
    pairs = []
    for number, masks in seen.items():
        judged = []
        for frame in range(1, FRAMES - 1):  # the first is given, DAVIS leaves out the last
            with rasterio.open(video / "masks" / f"{frame:02d}.tif") as file:
                judged.append(davis(masks[frame], file.read(1) == number))
        pairs.append(np.mean(judged, axis=0))
    region, boundary = np.mean(pairs, axis=0)
    assert figures["n"] == len(seen) >= 2
    assert figures["J"] == pytest.approx(region, abs=1e-4)
    assert figures["F"] == pytest.approx(boundary, abs=2e-2)  # ends of the outline at the edge
    assert figures["J&F"] == pytest.approx((figures["J"] + figures["F"]) / 2, abs=1e-4)
    assert figures["J"] > 0.3  # moved by 9 pixels a frame, most of each house is still found


def only_object(video: Path, copy: Path, number: int) -> Path:
    """The same video with one of its objects."""
    shutil.copytree(video, copy)
    for path in sorted((copy / "masks").iterdir()):
        with rasterio.open(path, "r+") as file:
            ids = file.read()
            file.write(np.where(ids == number, ids, 0))
    return copy


@pytest.mark.slow
def test_evaluate_video_ends_with_the_mean_over_objects(video: Path, tmp_path: Path) -> None:
    alone = only_object(video, tmp_path / "alone", 1)
    arguments = ["video", str(video), str(alone)]
    result = CliRunner().invoke(evaluate, arguments, catch_exceptions=False)
    figures = json.loads(result.stdout.splitlines()[-1])
    many, one = figures["sources"]["houses"], figures["sources"]["alone"]
    assert many["n"] > one["n"] == 1
    assert many["J"] != pytest.approx(one["J"], abs=0.01)
    assert figures["n"] == many["n"] + 1
    expected = (many["J"] * many["n"] + one["J"]) / (many["n"] + 1)
    assert figures["J"] == pytest.approx(expected, abs=1e-4)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import geosam2_model

    monkeypatch.setattr(geosam2_model, "load", lambda name: ColourModel(128))


def test_videos_of_one_name_are_kept_apart_and_weighted_by_their_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    known = {"a/v1": (0.2, 1), "b/v1": (0.6, 3), "b/v2": (0.9, 4)}
    for name in known:
        for part in ("frames", "masks"):
            (tmp_path / name / part).mkdir(parents=True)

    def judge(folder: Path, model: object) -> dict[str, float]:
        value, n = known[folder.relative_to(tmp_path).as_posix()]
        return {"J": value, "F": value, "J&F": value, "n": n}

    monkeypatch.setattr("geosam2.evaluation_sequences.judge_video", judge)
    arguments = ["video", str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "a" / "v1")]
    result = CliRunner().invoke(evaluate, arguments, catch_exceptions=False)
    figures = json.loads(result.stdout.splitlines()[-1])
    assert {name: f["J"] for name, f in figures["sources"].items()} == {
        (tmp_path / "a" / "v1").as_posix(): 0.2,
        (tmp_path / "b" / "v1").as_posix(): 0.6,
        "v2": 0.9,
    }
    assert figures["n"] == 8
    assert figures["J"] == pytest.approx((0.2 + 3 * 0.6 + 4 * 0.9) / 8)
    assert figures["fingerprint"] == "colour-model-1"
    assert figures["options"] == {"folders": arguments[1:]}


def test_frames_of_a_video_share_the_stretch_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lamp that is switched on does not make the ground darker."""
    from geosam2_model.video_predictor import VideoPredictor

    class Seen(Exception):  # noqa: N818 - no error, only the way out
        pass

    def spy(self: VideoPredictor, model: object, frames: list[np.ndarray]) -> None:
        raise Seen(frames)

    monkeypatch.setattr(VideoPredictor, "__init__", spy)
    geobox = GeoBox((SIDE, SIDE), Affine(1, 0, 500_000, 0, -1, 4_600_000), "EPSG:32633")
    ground = np.random.default_rng(0).integers(400, 1400, (3, SIDE, SIDE)).astype(np.uint16)
    for number in range(3):
        pixels = ground.copy()
        pixels[:, :80, :80] *= 1 + 20 * number
        (tmp_path / "frames").mkdir(exist_ok=True)
        (tmp_path / "masks").mkdir(exist_ok=True)
        write_geotiff(tmp_path / "frames" / f"{number}.tif", pixels, geobox)
        ids = np.ones((1, SIDE, SIDE), np.uint8)
        write_geotiff(tmp_path / "masks" / f"{number}.tif", ids, geobox)
    with pytest.raises(Seen) as caught:
        judge_video(tmp_path, None)  # type: ignore[arg-type]
    first, *others = caught.value.args[0]
    assert first[80:].std() > 30
    for frame in others:
        np.testing.assert_array_equal(frame[80:], first[80:])
        assert frame[:80, :80].mean() > 1.5 * first[:80, :80].mean()


def test_a_video_without_its_masks_or_objects_is_refused(video: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no frames/ with masks/ beside it"):
        list(find_videos([tmp_path]))
    (tmp_path / "masks").mkdir()
    (tmp_path / "frames").symlink_to(video / "frames")
    with pytest.raises(SourceError, match="4 of them without a mask"):
        judge_video(tmp_path, None)  # type: ignore[arg-type]
    geobox = GeoBox((SIDE, SIDE), Affine(1, 0, 500_000, 0, -1, 4_600_000), "EPSG:32633")
    for number in range(FRAMES):
        empty = np.zeros((1, SIDE, SIDE), np.uint8)
        write_geotiff(tmp_path / "masks" / f"{number:02d}.tif", empty, geobox)
    with pytest.raises(SourceError, match="first frame, 00, is empty"):
        judge_video(tmp_path, None)  # type: ignore[arg-type]
    for number in range(FRAMES):
        small = np.ones((1, SIDE, SIDE - 1), np.uint8)
        there = GeoBox((SIDE, SIDE - 1), geobox.affine, geobox.crs)
        write_geotiff(tmp_path / "masks" / f"{number:02d}.tif", small, there)
    with pytest.raises(SourceError, match="must be on one grid"):
        judge_video(tmp_path, None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def river(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A river that the image's edge cuts, five frames long; beside it a pond that fits in one."""
    folder = tmp_path_factory.mktemp("river")
    ids = np.zeros((160, 448), np.uint8)
    ids[60:90], ids[120:140, 20:40] = 1, 2
    pixels = np.where(ids > 0, 170, 60)[None] + np.array([0, 20, 40])[:, None, None]
    noise = np.random.default_rng(0).integers(-5, 6, pixels.shape)
    geobox = GeoBox(ids.shape, Affine(2, 0, 500_000, 0, -2, 4_600_000), "EPSG:32633")
    for name, data in (("images", (pixels + noise).astype(np.uint8)), ("instances", ids[None])):
        (folder / name).mkdir()
        write_geotiff(folder / name / "a.tif", data, geobox)
    return folder


def test_panning_over_a_river_keeps_what_single_clicks_find(river: Path) -> None:
    images = find_labelled([river])
    figures = judge_panning(images, ColourModel(128), frames=12, limit=None, seed=0)  # type: ignore[arg-type]
    assert figures["n"] == 1  # the pond is no larger than a frame
    assert figures["reached"] == 1
    assert figures["iou_pan"] > 0.9
    assert figures["iou_single"] > 0.9
    assert figures["kept"] == pytest.approx(figures["iou_pan"] / figures["iou_single"], abs=1e-3)


def test_panning_that_stops_early_reaches_less(
    river: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that denies all but the clicked frame is told to have reached little."""
    from dataclasses import replace

    class Shy(ColourModel):
        def attend(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            return replace(super().attend(*args, **kwargs), conditioned=None)

        def decode(self, features, prompts=None, multimask=False):  # type: ignore[no-untyped-def]
            out = super().decode(features, prompts, multimask)
            known = prompts is not None and prompts.masks is not None
            return replace(out, object_score=out.object_score * (-1 if known else 1))

    figures = judge_panning(find_labelled([river]), Shy(128), frames=12, limit=None, seed=0)  # type: ignore[arg-type]
    assert figures["reached"] < 0.5
    assert figures["n"] == 0


def told(monkeypatch: pytest.MonkeyPatch, *answers: list[tuple[float, float]]) -> None:
    """(IoU when panned, IoU when clicked) of the frames of one object after the other."""
    left = iter(answers)
    monkeypatch.setattr(
        "geosam2.evaluation_sequences._pan_and_click", lambda *some: (next(left), 1.0)
    )


def test_the_limit_is_of_each_source(
    river: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(river, tmp_path / "other")
    with rasterio.open(tmp_path / "other" / "instances" / "a.tif", "r+") as file:
        ids = file.read()
        ids[:, 100:110] = 3  # a second long object there
        file.write(ids)
    images = find_labelled([river, tmp_path / "other"])
    for limit, wanted in ((None, 3), (1, 2), (2, 3)):
        told(monkeypatch, *[[(0.5, 0.5)]] * wanted)
        figures = judge_panning(images, ColourModel(128), frames=2, limit=limit, seed=0)  # type: ignore[arg-type]
        assert figures["n"] == wanted


def test_one_object_that_no_click_finds_does_not_decide_what_is_kept() -> None:
    good = [(0.8, 0.8)] * 9
    pairs = [*good, (0.5, 0.0)]
    ratio = ratio_of_means(pairs)
    low, high = ratio_interval(pairs)
    assert ratio == pytest.approx((9 * 0.8 + 0.5) / (9 * 0.8))
    assert low is not None
    assert high is not None
    assert 1 <= low <= ratio <= high < 1.5
    assert ratio_interval(good) == pytest.approx((1, 1))


def test_interval_of_a_ratio_is_close_to_theory() -> None:
    rng = np.random.default_rng(0)
    below = rng.uniform(0.5, 0.9, 400)
    above = 0.9 * below + rng.normal(0, 0.05, 400)
    low, high = ratio_interval(list(zip(above, below, strict=True)))
    error = np.std(above - above.mean() / below.mean() * below) / below.mean() / 20
    assert low is not None
    assert high is not None
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)  # delta method
    assert low < 0.9 < high


def test_nothing_to_divide_by_is_null_in_the_line_of_json(
    river: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    told(monkeypatch, [(0.5, 0.0)])
    result = CliRunner().invoke(evaluate, ["sequence", str(river)], catch_exceptions=False)
    figures = json.loads(result.stdout.splitlines()[-1], parse_constant=pytest.fail)
    assert figures["kept"] is None
    assert figures["kept_interval"] == [None, None]
    assert (figures["iou_pan"], figures["iou_single"], figures["n"]) == (0.5, 0.0, 1)
    assert figures["options"] == {
        "folders": [str(river)], "frames": 12, "limit": None, "seed": 0, "split": None, "part": None
    }  # fmt: skip


# -- benchmarks/seams.py


@pytest.fixture(scope="module")
def seams(benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark("seams")


@pytest.mark.parametrize(
    ("parts", "wanted"),
    [
        ([], None),  # nothing at all
        ([(200, 0, 300, 100)], None),  # something else
        ([(0, 0, 10, 100)], None),  # a tenth of it is a crumb
        ([(0, 0, 60, 100)], 0.0),
        ([(0, 0, 60, 100), (90, 0, 100, 100)], 0.0),  # one part and a crumb
        ([(0, 0, 60, 100), (80, 0, 100, 100)], 1.0),
    ],
)
def test_only_what_was_found_can_be_split(
    seams: ModuleType, parts: list[tuple[float, ...]], wanted: float | None
) -> None:
    case = seams.Case("square", Path(), shapely.box(0, 0, 100, 100), 4)
    outline = shapely.MultiPolygon([shapely.box(*part) for part in parts])
    assert seams.split(seams.Found([], outline, []), case) == wanted


def test_what_was_not_found_is_counted_and_left_out_of_the_split_rate(seams: ModuleType) -> None:
    def row(found: bool, split: float | None) -> dict[str, Any]:
        nothing = dict.fromkeys(("straight_edge", "agreement", "phase_iou", "swallowed"))
        return {"frames": 4, "iou": 0.5, "seconds": 1.0, "looks": 4, "found": found, "split": split,
                **nothing}  # fmt: skip

    figures = seams.means([row(True, 1.0), row(True, 0.0), row(False, None), row(False, None)])
    assert figures["split_rate"] == 0.5
    assert figures["not_found"] == 2


def test_kept_rows_of_the_old_split_are_measured_again(seams: ModuleType, tmp_path: Path) -> None:
    rows = [{"case": "a", "model": "m", "split": 0.0},
            {"case": "b", "model": "m", "split": 0.0, "found": True}]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [row["case"] for row in seams.kept_rows(tmp_path / "rows.jsonl", "m")] == ["b"]
