"""Runs that fail, are killed, and go on: the result is that of the undisturbed run."""

from __future__ import annotations

import itertools
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from geosam2 import cluster, steps
from geosam2.cluster import InProcess, threads_per_worker
from geosam2.errors import GeoSAM2Error, LeftOutWarning
from geosam2.everything import collect, plan, segment_everything, start
from geosam2.testing import write_geotiff
from geosam2.testing.oracle import ColourOracle, colour_scene

SCRIPT = Path(__file__).with_name("everything_run.py")
CHOICES = runpy.run_path(str(SCRIPT))["CHOICES"]  # those of the runs that are killed
SHAPE = (250, 330)
GEOBOX = GeoBox(SHAPE, Affine(0.5, 0, 500000, 0, -0.5, 4600000), "EPSG:32633")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    pixels, _ = colour_scene(SHAPE, 12, seed=4, size=(30, 160))
    return write_geotiff(tmp_path_factory.mktemp("scene") / "s.tif", pixels, GEOBOX)


@pytest.fixture(scope="module")
def undisturbed(path):
    return segment_everything(path, model=ColourOracle(), **CHOICES)


def same(a, b) -> bool:
    """Equal to the last coordinate, in the same order."""
    shapes = np.asarray(a.geometry), np.asarray(b.geometry)
    return len(a) == len(b) and bool(shapely.equals_exact(*shapes).all())


def finish(job, **how):
    *_, last = start(job, InProcess(), **how)
    return collect(job), last


# --- failing


@dataclass(frozen=True)
class Failing:
    """Wraps a step so that it fails for one block, some times."""

    block: str
    times: int
    counter: list[int]

    def __call__(self, real, job, node):
        if node.name == self.block and len(self.counter) < self.times:
            self.counter.append(1)
            raise OSError("the disk is on fire")
        return real(job, node)


def let_fail(monkeypatch, kind: str, block: str, times: int) -> list[int]:
    counter: list[int] = []
    failing, real = Failing(block, times, counter), steps.STEPS[kind]
    monkeypatch.setitem(steps.STEPS, kind, lambda job, node: failing(real, job, node))
    return counter


@pytest.mark.parametrize("kind", ["find", "settle", "draw"])
def test_a_step_that_fails_once_is_tried_again(path, undisturbed, tmp_path, monkeypatch, kind):
    counter = let_fail(monkeypatch, kind, "0_1_0", 1)
    table, last = finish(plan(path, tmp_path, model=ColourOracle(), **CHOICES))
    assert len(counter) == 1
    assert last.failed == ()
    assert same(table, undisturbed)


def test_a_block_that_keeps_failing_is_left_out_by_name(path, undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        let_fail(patch, "find", "0_1_0", 99)
        job = plan(path, tmp_path, model=ColourOracle(), **CHOICES)
        table, last = finish(job)
    assert last.failed == ("block 0_1_0 (find: the disk is on fire)",)
    assert table.attrs["left_out"] == list(last.failed)
    assert 0 < len(table) < len(undisturbed)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["failed"] == {"0_1_0": "find: the disk is on fire"}
    # and gets another chance, after which nothing tells that it ever failed
    table, last = finish(job, resume=True)
    assert last.failed == ()
    assert same(table, undisturbed)


def test_a_run_stopped_after_a_block_was_left_out_finds_all_of_it_later(
    path, undisturbed, tmp_path, monkeypatch
):
    """Whatever its neighbours made without it is made again."""
    for count in itertools.count(1):
        folder = tmp_path / str(count)
        job = plan(path, folder, model=ColourOracle(), **CHOICES)
        with monkeypatch.context() as patch:
            let_fail(patch, "find", "0_1_0", 99)
            run = start(job, InProcess())
            done = list(itertools.islice(run, 4 * count))
            run.close()
        assert same(finish(job, resume=True)[0], undisturbed)
        if len(done) < 4 * count:
            break


@pytest.mark.filterwarnings("ignore::geosam2.errors.LeftOutWarning")
def test_a_run_of_which_all_blocks_fail_says_so(path, tmp_path):
    class Broken(ColourOracle):
        def encode(self, pixels):
            raise OSError("out of paper")

    with pytest.raises(GeoSAM2Error, match=r"all blocks failed .* out of paper"):
        segment_everything(path, model=Broken(), **CHOICES)


def test_left_out_blocks_are_warned_of(path, monkeypatch):
    let_fail(monkeypatch, "find", "0_1_0", 99)
    with pytest.warns(LeftOutWarning, match=r"1 blocks were left out.*the disk is on fire"):
        segment_everything(path, model=ColourOracle(), **CHOICES)


def test_a_finished_run_tells_what_it_told_before(path, tmp_path):
    job = plan(path, tmp_path, model=ColourOracle(), **CHOICES)
    table, _ = finish(job)
    assert list(start(job, InProcess(), resume=True)) == []
    assert collect(job).attrs == table.attrs
    assert table.attrs["coverage"] > 0.5


def test_somebodys_own_folders_are_left_alone(path, tmp_path):
    mine = tmp_path / "find" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("of a life's work")
    job = plan(path, tmp_path, model=ColourOracle(), **CHOICES)
    with pytest.raises(GeoSAM2Error, match=r"no run's folder and has find in it"):
        finish(job)
    assert mine.exists()


def test_workers_that_do_not_see_the_folder_are_noticed(path, tmp_path, monkeypatch):
    """Each process has a disk of its own here: what is written is seen by nobody else."""
    monkeypatch.setattr(cluster, "PATIENCE", 0.1)

    class Elsewhere(InProcess):
        def submit(self, job, step):
            away = job.folder.with_name("another computer")
            away.mkdir(exist_ok=True)
            super().submit(replace(job, folder=away), step)

    job = plan(path, tmp_path / "here", model=ColourOracle(), **CHOICES)
    with pytest.raises(GeoSAM2Error, match="under the same path"):
        list(start(job, Elsewhere()))


def test_a_tree_that_cannot_be_merged_ends_the_run_resumably(
    path, undisturbed, tmp_path, monkeypatch
):
    job = plan(path, tmp_path, model=ColourOracle(), **CHOICES)
    with monkeypatch.context() as patch:
        let_fail(patch, "settle", "1_0_0", 99)
        with pytest.raises(GeoSAM2Error, match="run again with --resume"):
            finish(job)
    assert same(finish(job, resume=True)[0], undisturbed)


# --- stopping


@pytest.mark.parametrize("seed", range(3))
def test_a_run_stopped_after_any_step_goes_on(path, undisturbed, tmp_path, seed):
    job = plan(path, tmp_path, model=ColourOracle(), **CHOICES)
    rng = random.Random(seed)
    resume = False
    while True:
        run = start(job, InProcess(), resume=resume)
        steps_allowed = rng.randint(3, 12)
        found = list(itertools.islice(run, steps_allowed))
        if len(found) < steps_allowed:
            break
        run.close()
        resume = True
    assert same(collect(job), undisturbed)


@pytest.mark.parametrize("seed", range(4))
def test_files_lost_at_random_are_made_again(path, undisturbed, tmp_path, seed):
    """Later steps vanish with the earlier ones that they came from."""
    job = plan(path, tmp_path, model=ColourOracle(), **CHOICES)
    finish(job)
    rng = random.Random(seed)
    files = sorted(tmp_path.rglob("*.parquet"))
    for victim in rng.sample(files, k=5):
        if rng.random() < 0.5:
            victim.unlink()
        else:
            victim.write_bytes(victim.read_bytes()[:50])  # torn, as by a power cut
    for kind in ("join", "draw", "settle", "find")[:seed]:
        shutil.rmtree(tmp_path / kind)
    assert same(finish(job, resume=True)[0], undisturbed)


def test_no_half_files_are_left(path, tmp_path):
    job = plan(path, tmp_path, model=ColourOracle(), **CHOICES)
    finish(job)
    names = [p.name for p in tmp_path.rglob("*") if p.is_file()]
    assert not [name for name in names if name.startswith(".") or name.endswith(".part")]


def test_cores_are_shared_out():
    cores = len(os.sched_getaffinity(0))
    assert threads_per_worker(1) == cores
    assert threads_per_worker(cores) == 1


def test_a_job_that_cannot_travel_is_refused(path, tmp_path):
    network = ColourOracle()

    def maker():
        return network

    maker.lock = __import__("threading").Lock()
    with pytest.raises(GeoSAM2Error, match="work in this process"):
        segment_everything(path, model=maker, workers=1, **CHOICES)


def test_a_scheduler_that_does_not_answer_is_named(path, tmp_path):
    from geosam2.everything import executor_for

    job = plan(path, tmp_path, model=ColourOracle(), **CHOICES)
    with (
        pytest.raises(GeoSAM2Error, match=r"no dask scheduler answers at tcp://127.0.0.1:9"),
        executor_for(job, scheduler="tcp://127.0.0.1:9"),
    ):
        pass


def test_a_dask_client_gives_what_this_process_gives(path, undisturbed, dask_client):
    found = segment_everything(path, model=ColourOracle(), client=dask_client, **CHOICES)
    assert same(found, undisturbed)


# --- processes


def process(*args: object) -> subprocess.Popen[str]:
    """A run in a process group of its own, so that all of it can be killed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def read(output: Path):
    import geopandas

    return geopandas.read_file(output)


def children_of(pid: int) -> list[int]:
    """Python processes below a process that do dask's work, newest last."""
    import psutil

    below = psutil.Process(pid).children(recursive=True)
    return [p.pid for p in below if "spawn_main" in " ".join(p.cmdline())]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_does_not_grow_with_the_file(benchmark, tmp_path):
    """GDAL would keep the 400 MB that the larger file decodes to."""
    figures = benchmark("everything").memory(tmp_path, quick=True)
    assert figures["memory_growth"] < 0.25, figures


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_give_what_one_process_gives(path, undisturbed, tmp_path):
    done = process(path, tmp_path / "run", tmp_path / "out.geojson", "--workers", 2)
    _, errors = done.communicate(timeout=800)
    assert done.returncode == 0, errors
    found = read(tmp_path / "out.geojson")
    assert len(found) == len(undisturbed)
    assert found.id.tolist() == undisturbed.id.tolist()
    close = [
        a.equals_exact(b, 1e-6)
        for a, b in zip(found.geometry, undisturbed.to_crs(found.crs).geometry, strict=True)
    ]
    assert all(close)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(2))
def test_after_killing_a_client_the_run_goes_on(path, tmp_path, undisturbed, seed):
    """kill -9 of the process that holds client and scheduler; its workers are left alone."""
    rng = random.Random(seed)
    arguments = (path, tmp_path / "run", tmp_path / "out.geojson", "--workers", 2, "--slow", 0.2)
    victim = process(*arguments)
    assert victim.stdout is not None
    for _ in range(rng.randint(2, 8)):
        victim.stdout.readline()
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    for pipe in (victim.stdout, victim.stderr):
        assert pipe is not None
        pipe.close()
    done = process(*arguments, "--resume")
    _, errors = done.communicate(timeout=800)
    assert done.returncode == 0, errors
    assert len(read(tmp_path / "out.geojson")) == len(undisturbed)
    with __import__("contextlib").suppress(ProcessLookupError):
        os.killpg(victim.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_worker_is_replaced_within_the_run(path, tmp_path, undisturbed):
    done = process(path, tmp_path / "run", tmp_path / "out.geojson", "--workers", 2, "--slow", 0.2)
    assert done.stdout is not None
    done.stdout.readline()
    workers = children_of(done.pid)
    assert workers
    os.kill(workers[-1], signal.SIGKILL)
    _, errors = done.communicate(timeout=800)
    assert done.returncode == 0, errors
    assert len(read(tmp_path / "out.geojson")) == len(undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_scheduler_ends_the_run_with_a_way_on(path, tmp_path, undisturbed):
    commands = [
        [
            sys.executable,
            "-m",
            "distributed.cli.dask_scheduler",
            "--port",
            "8797",
            "--no-dashboard",
        ],
        [
            sys.executable,
            "-m",
            "distributed.cli.dask_worker",
            "tcp://127.0.0.1:8797",
            "--nthreads",
            "1",
        ],
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    cluster = [subprocess.Popen(c, start_new_session=True, **quiet) for c in commands]
    arguments = (path, tmp_path / "run", tmp_path / "out.geojson")
    try:
        time.sleep(6)
        victim = process(*arguments, "--scheduler", "tcp://127.0.0.1:8797", "--slow", 0.2)
        assert victim.stdout is not None
        for _ in range(3):
            assert victim.stdout.readline()
        cluster[0].kill()
        _, errors = victim.communicate(timeout=800)
        assert victim.returncode != 0
        assert "run again with --resume" in errors
    finally:
        for one in cluster:
            one.kill()
            one.wait()
    done = process(*arguments, "--resume", "--slow", 0.2)
    _, errors = done.communicate(timeout=800)
    assert done.returncode == 0, errors
    assert len(read(tmp_path / "out.geojson")) == len(undisturbed)
