"""Videos and panning: real pixels, figures checked by other definitions."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize
from rasterio.windows import Window
from skimage.morphology import dilation, disk

from geosam2.commands.evaluate import command as evaluate
from geosam2.errors import SourceError
from geosam2.evaluation import find_labelled
from geosam2.evaluation_sequences import find_videos, judge_panning, judge_video
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


@pytest.mark.slow
def test_evaluate_video_ends_with_the_mean_over_objects(video: Path) -> None:
    result = CliRunner().invoke(evaluate, ["video", str(video.parent)], catch_exceptions=False)
    figures = json.loads(result.stdout.splitlines()[-1])
    assert set(figures["sources"]) == {"houses"}
    assert figures["J"] == figures["sources"]["houses"]["J"]
    assert figures["n"] == figures["sources"]["houses"]["n"]


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
