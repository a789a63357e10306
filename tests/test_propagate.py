"""Following one object over the map: the algorithm with a stand-in network that knows colours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize

import geosam2
from geosam2.errors import InterruptedRunError, SourceError
from geosam2.masklet import Gate, PanOptions
from geosam2.prompts import Prompt
from geosam2.propagate import Panning, pan
from geosam2.testing import write_geotiff
from geosam2.testing.colour_model import ColourModel
from geosam2.vectorize import from_mosaic

GROUND, OBJECT, OTHER = (60, 110, 50), (40, 70, 170), (190, 60, 60)
CELL = 2.0
LEFT, TOP = 500_000.0, 4_600_000.0


def draw(path: Path, shapes: dict[tuple[int, int, int], shapely.Geometry], size=(640, 640)) -> Path:
    """A GeoTIFF with shapes (pixel coordinates, y down) in flat colours under light noise."""
    pixels = np.empty((3, *size), np.uint8)
    pixels[:] = np.array(GROUND, np.uint8)[:, None, None]
    for colour, shape in shapes.items():
        inside = rasterize([shape], size).astype(bool)
        pixels[:, inside] = np.array(colour, np.uint8)[:, None]
    noise = np.random.default_rng(0).integers(-6, 7, pixels.shape)
    noisy = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    affine = Affine(CELL, 0, LEFT, 0, -CELL, TOP)
    return write_geotiff(path, noisy, GeoBox(size, affine, "EPSG:32633"))


def on_map(x: float, y: float) -> tuple[float, float]:
    return LEFT + x * CELL, TOP - y * CELL


def blob() -> shapely.Geometry:
    """A lake with two islands, over about 20 frames of 128 pixels."""
    lake = shapely.Point(320, 300).buffer(230)
    lake = lake.union(shapely.box(300, 400, 360, 620))
    return lake.difference(shapely.Point(380, 250).buffer(50)).difference(
        shapely.box(180, 300, 240, 330)
    )


def follow(path: Path, x: float, y: float, **options) -> Panning:
    run = Panning(
        geosam2.open_scene(path),
        ColourModel(128),
        Prompt(points=(on_map(x, y),)),
        options=PanOptions(**options),
    )
    for _ in run:
        pass
    return run


def mask_of(run: Panning, size=(640, 640)) -> np.ndarray:
    """The object on the file's own pixels."""
    row, col = (round(v) for v in run.grid.level.pixel_at(LEFT, TOP))
    return run.mosaic.window(row, col, *size) > 0


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.fixture
def lake(tmp_path):
    return draw(tmp_path / "lake.tif", {OBJECT: blob()})


def test_one_click_gives_the_whole_object(lake):
    run = follow(lake, 150, 200)
    truth = rasterize([blob()], (640, 640)).astype(bool)
    assert iou(mask_of(run), truth) > 0.97
    assert len(run.masklet.frames) > 15
    assert run.masklet.open_edges == ()


def test_the_result_does_not_depend_on_where_one_starts(lake):
    first, second = follow(lake, 150, 200), follow(lake, 330, 610)
    assert {r.index for r in first.masklet.frames} == {r.index for r in second.masklet.frames}
    assert iou(mask_of(first), mask_of(second)) > 0.999


def test_the_result_does_not_depend_on_the_extent(lake, tmp_path):
    """The same object from two crops of the scene: the same polygon within a pixel."""
    whole = follow(lake, 320, 150)
    scene = geosam2.open_scene(lake)
    part = scene.within((*on_map(20, 560), *on_map(600, 10)))
    run = Panning(part, ColourModel(128), Prompt(points=(on_map(320, 150),)))
    list(run)
    a, b = mask_of(whole)[:500, 20:600], mask_of(run)[:500, 20:600]
    assert iou(a, b) > 0.999
    inner = shapely.box(*on_map(60, 500), *on_map(560, 50))  # away from the crop's edge
    outlines = [from_mosaic(r.mosaic).boundary.intersection(inner) for r in (whole, run)]
    assert outlines[0].length > 500 * CELL
    assert shapely.hausdorff_distance(*outlines) < CELL


def test_a_look_alike_that_does_not_touch_is_left_alone(tmp_path):
    pair = {OBJECT: shapely.union(shapely.box(20, 20, 300, 300), shapely.box(340, 20, 620, 300))}
    run = follow(draw(tmp_path / "pair.tif", pair), 100, 100)
    truth = rasterize([shapely.box(20, 20, 300, 300)], (640, 640)).astype(bool)
    assert iou(mask_of(run), truth) > 0.97


def test_an_object_that_comes_back_into_a_frame_is_found_whole(tmp_path):
    """A horseshoe: its second arm is in the first frame but does not hang together there."""
    shoe = shapely.LineString([(90, 40), (90, 500), (170, 500), (170, 40)]).buffer(
        18, cap_style="flat", join_style="mitre"
    )
    run = follow(draw(tmp_path / "shoe.tif", {OBJECT: shoe}), 90, 100)
    assert iou(mask_of(run), rasterize([shoe], (640, 640)).astype(bool)) > 0.93
    assert run.masklet.open_edges == ()


def test_a_narrow_bridge_does_not_end_a_river(tmp_path):
    shapes = {OBJECT: shapely.box(0, 300, 640, 340), OTHER: shapely.box(300, 200, 312, 440)}
    run = follow(draw(tmp_path / "river.tif", shapes), 50, 320)
    mask = mask_of(run)
    assert mask[320, 620]
    assert not mask[320, 306]


def test_max_frames_stops_and_says_what_is_open(lake):
    run = follow(lake, 150, 200, max_frames=4)
    assert run.done == 4
    edges = run.masklet.open_edges
    assert edges
    assert {edge.reason for edge in edges} == {"not visited"}
    assert all(edge.geometry.length >= 4 * CELL for edge in edges)


def test_a_strict_gate_leaves_borders_open_and_reports_why(lake):
    run = follow(lake, 150, 200, gate=Gate(predicted_iou=0.99))
    assert len(run.masklet.frames) == 1  # the user's own frame needs no gate
    assert {edge.reason for edge in run.masklet.open_edges} == {"unsure (predicted IoU 0.95)"}


def test_steps_carry_what_a_progress_bar_needs(lake):
    steps = list(
        pan(geosam2.open_scene(lake), ColourModel(128), Prompt(points=(on_map(150, 200),)))
    )
    assert [step.done for step in steps] == list(range(1, len(steps) + 1))
    assert steps[-1].open_borders == 0
    assert steps[0].logits is not None
    assert steps[0].logits.shape == (32, 32)
    assert steps[-1].area == pytest.approx(blob().area * CELL**2, rel=0.03)


def test_a_run_that_is_saved_goes_on_as_if_nothing_had_happened(lake, tmp_path):
    straight = follow(lake, 150, 200)
    run = Panning(geosam2.open_scene(lake), ColourModel(128), Prompt(points=(on_map(150, 200),)))
    for _ in range(7):
        run.step()
    run.save(tmp_path / "run.safetensors")
    later = Panning.load(tmp_path / "run.safetensors", geosam2.open_scene(lake), ColourModel(128))
    assert later.done == 7
    list(later)
    assert np.array_equal(mask_of(straight), mask_of(later))
    assert [r.index for r in straight.masklet.frames] == [r.index for r in later.masklet.frames]


def test_a_state_of_another_scene_is_refused(lake, tmp_path):
    run = follow(lake, 150, 200, max_frames=2)
    run.save(tmp_path / "run.safetensors")
    other = draw(tmp_path / "other.tif", {OTHER: blob()})
    with pytest.raises(InterruptedRunError, match="start anew without --resume"):
        Panning.load(tmp_path / "run.safetensors", geosam2.open_scene(other), ColourModel(128))


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_state_is_refused(lake, tmp_path, content):
    path = tmp_path / "run.safetensors"
    path.write_bytes(content)
    with pytest.raises(InterruptedRunError, match="cannot be read"):
        Panning.load(path, geosam2.open_scene(lake), ColourModel(128))


class Failing(ColourModel):
    """The source of frame number `fails` cannot be read."""


def failing_scene(path: Path, fails: int):
    """A scene whose n-th read fails, as a service may."""
    scene = geosam2.open_scene(path)
    count = 0

    class Flaky:
        def __getattr__(self, name):
            return getattr(scene, name)

        def read_window(self, level, window):
            nonlocal count
            count += 1
            if count == fails:
                raise SourceError("HTTP 500 from tiles.example")
            return scene.read_window(level, window)

    return Flaky()


def test_a_frame_that_cannot_be_read_stays_open_and_is_tried_again_on_resume(lake, tmp_path):
    whole = follow(lake, 150, 200)
    run = Panning(failing_scene(lake, 5), ColourModel(128), Prompt(points=(on_map(150, 200),)))
    steps = list(run)
    assert steps[4].logits is None
    reasons = {edge.reason for edge in run.masklet.open_edges}
    assert reasons == {"could not be read: HTTP 500 from tiles.example"}
    assert len(run.masklet.frames) == len(whole.masklet.frames) - 1
    run.save(tmp_path / "run.safetensors")
    again = Panning.load(tmp_path / "run.safetensors", geosam2.open_scene(lake), ColourModel(128))
    list(again)
    assert again.masklet.open_edges == ()
    assert iou(mask_of(again), mask_of(whole)) > 0.999


def test_a_negative_click_takes_back_what_leaked(tmp_path):
    """A field of nearly the lake's colour touches it; a click on it removes it, frame by frame."""
    lake, field = shapely.box(30, 30, 330, 330), shapely.box(330, 100, 620, 300)
    near = (52, 82, 180)  # within the stand-in's tolerance
    path = draw(tmp_path / "leak.tif", {OBJECT: lake, near: field})
    run = follow(path, 100, 100)
    leaked = len(run.masklet.frames)
    assert mask_of(run)[200, 600]
    before = run.encoder.model.encoded
    run.correct(Prompt(points=(on_map(400, 200),), labels=(0,)))
    looks = len(list(run))
    mask = mask_of(run)
    truth = rasterize([lake], (640, 640)).astype(bool)
    assert iou(mask, truth) > 0.93
    assert not mask[200, 600]
    assert len(run.masklet.frames) < leaked
    assert looks < leaked  # frames that the click does not touch are not looked at again
    assert run.encoder.model.encoded >= before


def test_a_positive_click_joins_a_second_part(tmp_path):
    """Two halves with a gap too wide to step over: the second click starts there."""
    halves = shapely.union(shapely.box(30, 30, 290, 200), shapely.box(370, 30, 610, 200))
    run = follow(draw(tmp_path / "halves.tif", {OBJECT: halves}), 100, 100)
    assert not mask_of(run)[100, 500]
    run.correct(Prompt(points=(on_map(500, 100),)))
    list(run)
    assert iou(mask_of(run), rasterize([halves], (640, 640)).astype(bool)) > 0.95


@pytest.mark.parametrize("use_memory", [True, False])
@pytest.mark.parametrize("use_known", [True, False])
@pytest.mark.parametrize("positions", ["map", "frame"])
def test_every_ablation_runs(lake, use_memory, use_known, positions):
    if not use_memory and not use_known:
        pytest.skip("nothing to go by; plain merging is the benchmark's own")
    run = follow(
        lake,
        150,
        200,
        use_memory=use_memory,
        use_known=use_known,
        positions=positions,
        max_frames=6,
    )
    assert len(run.masklet.frames) == 6


def test_nodata_is_no_open_border(tmp_path):
    path = draw(tmp_path / "edge.tif", {OBJECT: shapely.box(0, 200, 640, 400)})
    import rasterio

    with rasterio.open(path, "r+") as file:
        data = file.read()
        data[:, :, 400:] = 0
        file.nodata = 0
        file.write(data)
    run = follow(path, 100, 300)
    assert run.masklet.open_edges == ()
    assert not mask_of(run)[:, 400:].any()


KILLED = """
import os, signal, sys
import geosam2
from geosam2.prompts import Prompt
from geosam2.propagate import Panning
from geosam2.testing.colour_model import ColourModel
run = Panning(geosam2.open_scene(sys.argv[1]), ColourModel(128),
              Prompt(points=((float(sys.argv[3]), float(sys.argv[4])),)))
for step in run:
    run.save(sys.argv[2])
    if step.done == 6:
        import geosam2.propagate as p
        if sys.argv[5] == "write":
            def half(path, about, tensors):
                from safetensors.torch import save
                data = save(tensors)
                with open(str(path) + ".half.tmp", "wb") as file:
                    file.write(data[: len(data) // 2])
                    file.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
            p.write_state = half
            run.save(sys.argv[2])
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["run", "write"])
def test_a_killed_run_resumes_to_the_same_object(lake, tmp_path, when):
    state = tmp_path / "run.safetensors"
    x, y = on_map(150, 200)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), lake, state, str(x), str(y), when],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    later = Panning.load(state, geosam2.open_scene(lake), ColourModel(128))
    assert later.done == 6
    list(later)
    assert np.array_equal(mask_of(later), mask_of(follow(lake, 150, 200)))


def test_a_full_disk_leaves_the_old_state(lake, tmp_path, monkeypatch):
    run = follow(lake, 150, 200, max_frames=3)
    path = tmp_path / "run.safetensors"
    run.save(path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        run.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.glob("*.part")] == []
