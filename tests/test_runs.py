"""Runs of many prompts: stopped, killed at any moment, resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize

from geosam2 import runs, vectorize
from geosam2.api import segment
from geosam2.cache import EmbeddingCache
from geosam2.errors import InterruptedRunError, OptionError
from geosam2.prompts import Prompt, locate
from geosam2.refine import Refining
from geosam2.runs import PromptedRun, Task
from geosam2.segmenter import Segmenter
from geosam2.testing import write_geotiff
from geosam2.testing.colour_model import ColourModel
from geosam2.tiling import FrameIndex

LEFT, TOP = 500_000.0, 4_600_000.0
LAKE = shapely.Point(320, 300).buffer(180).difference(shapely.Point(380, 250).buffer(40))
CLICK = Prompt(points=((LEFT + 200, TOP - 300),))


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    pixels = np.empty((3, 640, 640), np.uint8)
    pixels[:] = np.array((60, 110, 50), np.uint8)[:, None, None]
    pixels[:, rasterize([LAKE], (640, 640)).astype(bool)] = np.array((40, 70, 170))[:, None]
    geobox = GeoBox((640, 640), Affine(1, 0, LEFT, 0, -1, TOP), "EPSG:32633")
    return write_geotiff(tmp_path_factory.mktemp("scene") / "scene.tif", pixels, geobox)


def segmenter(scene: Path) -> Segmenter:
    return Segmenter(scene, ColourModel(128), cache=EmbeddingCache(folder=None))


def outline(run: PromptedRun) -> shapely.Geometry:
    return run.result().geometry.iloc[0]


@pytest.fixture(scope="module")
def straight(scene) -> tuple[shapely.Geometry, int]:
    """The whole object without an interruption, and how many frames were refined."""
    run = PromptedRun(segmenter(scene), Task((CLICK,)))
    refined = sum(phase == "refine" for _, phase, _ in run)
    return outline(run), refined


def stopped_while_refining(scene: Path, folder: Path, frames: int) -> PromptedRun:
    run = PromptedRun(segmenter(scene), Task((CLICK,)), folder)
    for _, phase, _ in run:
        frames -= phase == "refine"
        if frames == 0:
            break
    return run


def test_refined_frames_are_not_refined_again_after_a_stop(scene, straight, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SAVE_EVERY", 0.0)
    whole, refined = straight
    assert refined > 8
    stopped_while_refining(scene, tmp_path, 7)
    later = PromptedRun(segmenter(scene), Task((CLICK,)), tmp_path, resume=True)
    phases = [phase for _, phase, _ in later]
    # the state is stored before a frame is handed out: the last one may be done twice
    assert phases.count("refine") in (refined - 7, refined - 6)
    assert "follow" not in phases
    assert outline(later).equals(whole)


def test_what_is_refined_so_far_is_the_partial_result(scene, straight, tmp_path):
    run = stopped_while_refining(scene, tmp_path, 4)
    part = run.result(partial=True).geometry.iloc[0]
    assert part.intersection(straight[0]).area > 0.95 * straight[0].area


def refining_again(run: PromptedRun, prompt: Prompt = CLICK) -> Refining:
    """Another process on the same object, or one that says it is of another prompt."""
    assert run._refining is not None
    coarse = replace(run._refining.coarse, prompts=(locate(prompt, run.segmenter.scene),))
    return next(iter(run.segmenter.refinements(coarse)))


def test_a_refinement_of_another_object_is_refused(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SAVE_EVERY", 0.0)
    run = stopped_while_refining(scene, tmp_path, 3)
    other = refining_again(run, Prompt(points=((LEFT + 210, TOP - 300),)))
    (state,) = tmp_path.glob("refined-*.safetensors")
    with pytest.raises(InterruptedRunError, match="without --resume"):
        other.restore(state)


def test_a_frame_more_or_less_on_the_outline_does_not_stop_a_resume(scene, tmp_path, monkeypatch):
    """What was found anew may cross other frames by a rounding error."""
    monkeypatch.setattr(runs, "SAVE_EVERY", 0.0)
    run = stopped_while_refining(scene, tmp_path, 3)
    assert run._refining is not None
    later = refining_again(run)
    later.frames = [FrameIndex(-99, -99), *later.frames[:-1]]
    (state,) = tmp_path.glob("refined-*.safetensors")
    later.restore(state)
    assert later.frames == run._refining.frames
    list(later)
    straight = refining_again(run)
    list(straight)
    patches = straight.masklet.mosaic.patches
    assert patches.keys() == later.masklet.mosaic.patches.keys()
    for key, patch in later.masklet.mosaic.patches.items():
        assert np.array_equal(patch.logits, patches[key].logits)


def test_a_finished_run_leaves_nothing_behind(scene, tmp_path):
    folder = tmp_path / "run"
    run = PromptedRun(segmenter(scene), Task((CLICK,)), folder)
    list(run)
    assert sorted(path.name for path in folder.iterdir()) == ["finished.jsonl", "run.json"]
    (folder / ".current.safetensors.0123.part").touch()  # of a process killed while writing
    run.clean_up()
    assert not folder.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_costs_the_state_and_not_the_run(
    scene, straight, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(runs, "SAVE_EVERY", 0.0)
    run = PromptedRun(segmenter(scene), Task((CLICK,)), tmp_path)
    steps = iter(run)
    next(steps)
    (tmp_path / "finished.jsonl").symlink_to("/dev/full")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    list(steps)
    assert outline(run).equals(straight[0])
    assert f"the state in {tmp_path} cannot be written ([Errno 28] No space left" in caplog.text


def test_half_a_line_is_taken_back(tmp_path):
    """The system lets no file grow beyond 6 bytes here."""
    code = "import resource as r, signal, sys; from pathlib import Path; from geosam2 import runs; "
    code += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    code += "runs._append(Path(sys.argv[1]), 'one\\n'); r.setrlimit(r.RLIMIT_FSIZE, (6, 6)); "
    code += "runs._append(Path(sys.argv[1]), 'another\\n')"
    path = tmp_path / "finished.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=False
    )
    assert "File too large" in done.stderr
    assert path.read_text() == "one\n"


def test_options_of_another_version_are_refused(scene, tmp_path):
    PromptedRun(segmenter(scene), Task((CLICK,)), tmp_path)
    stored = runs.read_about(tmp_path)["task"]
    stored["options"]["forgotten"] = 1
    with pytest.raises(InterruptedRunError, match="another version"):
        Task.from_json(stored)


# killed when it has looked at so many frames, or half-way through so many writes
KILLED = """
import os, signal, sys, tempfile
from pathlib import Path
import geosam2.files, geosam2.runs, geosam2.state
from tests_runs import CLICK, segmenter
from geosam2.runs import PromptedRun, Task

scene, folder, when, left = sys.argv[1], Path(sys.argv[2]), sys.argv[3], [int(sys.argv[4])]
geosam2.runs.SAVE_EVERY = 0.0
whole = geosam2.files.write_atomically

def die(path, data):
    left[0] -= 1
    if left[0] == 0:
        (path.parent / f".{path.name}.x.part").write_bytes(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    whole(path, data)

if when == "write":
    geosam2.runs.write_atomically = geosam2.state.write_atomically = die
run = PromptedRun(segmenter(scene), Task((CLICK,)), folder, resume=(folder / "run.json").exists())
for _ in run:
    left[0] -= when == "run"
    if when == "run" and left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_runs_killed_at_random_moments_end_with_the_same_object(scene, straight, tmp_path, seed):
    rng = np.random.default_rng(seed)
    folder = tmp_path / "run"
    (tmp_path / "tests_runs.py").write_text(Path(__file__).read_text())
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    for when in ("run", "write"):
        moment = str(rng.integers(1, 9))
        command = [sys.executable, "-c", textwrap.dedent(KILLED), scene, folder, when, moment]
        killed = subprocess.run(command, env=environment, check=False)
        assert killed.returncode in (-signal.SIGKILL, 0)  # 0: it was done before
    # killed before the very first write there is nothing to resume
    later = PromptedRun(
        segmenter(scene), Task((CLICK,)), folder, resume=(folder / "run.json").exists()
    )
    list(later)
    assert outline(later).equals(straight[0])


@pytest.mark.parametrize("name", ["run.json", "finished.jsonl", "current.safetensors"])
def test_files_of_somebody_else_are_not_replaced(scene, tmp_path, name):
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(InterruptedRunError, match=f"has {name} .* name another folder"):
        PromptedRun(segmenter(scene), Task((CLICK,)), tmp_path)
    assert (tmp_path / name).read_text() == '{"mine": 1}'


def test_a_run_of_ours_is_replaced_and_other_files_stay(scene, tmp_path):
    mine = [tmp_path / name for name in ("notes.txt", ".mine.part")]
    for path in mine:
        path.touch()
    PromptedRun(segmenter(scene), Task((CLICK,)), tmp_path)
    PromptedRun(segmenter(scene), Task((CLICK,)), tmp_path).clean_up()
    assert sorted(tmp_path.iterdir()) == sorted(mine)


def test_a_folder_of_another_run_cannot_be_resumed(scene, tmp_path):
    (tmp_path / "run.json").write_text('{"job": "find everything"}')
    with pytest.raises(InterruptedRunError, match="not of a run of geosam2 segment"):
        PromptedRun(segmenter(scene), Task((CLICK,)), tmp_path, resume=True)


def test_a_run_that_found_nothing_leaves_no_folder(scene, tmp_path):
    folder = tmp_path / "run"
    run = PromptedRun(segmenter(scene), Task((CLICK,)), folder)
    run.clean_up_if_empty()
    assert not folder.exists()
    begun = stopped_while_refining(scene, folder, 1)
    begun.clean_up_if_empty()
    assert folder.exists()


@pytest.mark.parametrize(
    "geometry",
    [
        {"min_area_m2": float("nan")},
        {"min_area_m2": -1},
        {"simplify_m": float("nan")},
        {"simplify_m": -1.0},
        {"orthogonal": True, "smooth": True},
    ],
)
def test_options_without_sense_are_refused_before_the_work(scene, geometry):
    with pytest.raises(OptionError, match=r"give a number from 0|choose one"):
        Task((CLICK,), geometry=geometry)
    with pytest.raises(OptionError, match=r"give a number from 0|choose one"):
        vectorize.polygons(np.ones((4, 4)), Affine.identity(), **geometry)
    with pytest.raises(OptionError, match=r"give a number from 0|choose one"):
        segment(scene, [CLICK.points[0]], model="never loaded", **geometry)


def test_the_python_function_refuses_before_the_network_is_loaded(scene):
    with pytest.raises(OptionError, match="max_frames=0: give a whole number from 1"):
        segment(scene, [CLICK.points[0]], model="never loaded", max_frames=0)
    with pytest.raises(TypeError, match="min_area_m2, simplify_m"):
        segment(scene, [CLICK.points[0]], model="never loaded", foo=1)
    with pytest.raises(OptionError, match="a path of weights"):
        segment(scene, [CLICK.points[0]], model=3)
