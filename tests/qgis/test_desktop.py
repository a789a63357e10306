"""A real QGIS window under Xvfb: starts it, lets driver.py act, reads what it found."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import scenes

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PYTHON = os.environ.get("GEOSAM2_TEST_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
pytestmark = [pytest.mark.qgis, pytest.mark.timeout(600)]

PLUGIN = [
    "install_from_zip", "no_engine", "click_a_pond", "warm_clicks", "other_project_crs_and_rotation",
    "exclude_take_back_box", "follow_a_lake", "escape_pauses_wherever_the_focus_is",
    "cancel_leaves_nothing", "kill_of_the_engine", "missing_tiles", "slow_model_load",
    "processing_dialog", "processing_batch", "slow_tiles_in_processing", "refine_and_flag", "new_geopackage", "reload_five_times",
    "engine_starts_with_the_dock", "leave_during_a_job",
]  # fmt: skip


def start_qgis(config, out, names, at_most, **more):
    """Run QGIS with the driver; returns (exit code, stderr, report)."""
    setup = {"tests": str(HERE), "out": str(out), "scenarios": names, **more}
    environment = {**os.environ, "GEOSAM2_DRIVE": json.dumps(setup), "HOME": str(config.parent)}
    environment.pop("QT_QPA_PLATFORM", None)
    environment["XDG_DATA_HOME"] = str(config.parent / "data")
    command = [
        "xvfb-run", "-a", "-s", "-screen 0 1400x900x24 -nolisten tcp",
        "/usr/bin/qgis", "--nologo", "--noversioncheck", "--profiles-path", str(config),
        "--profile", "t", "--code", str(HERE / "driver.py"),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=at_most)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        said += f"\nstopped after {at_most} s"
    (out / "qgis.log").write_text(said)
    report = out / "report.json"
    return process.returncode, said, json.loads(report.read_text()) if report.exists() else {}


def profile(folder, more=""):
    """A fresh profile as QGIS would make it."""
    ini = folder / "profiles" / "t" / "QGIS" / "QGIS3.ini"
    ini.parent.mkdir(parents=True)
    ini.write_text(
        "[PythonPlugins]\nprocessing=true\n[qgis]\ncheckVersion=false\n"
        "[app]\naskToSaveMemoryLayers=false\n" + more
    )


def build_zip(folder):
    """The plugin as `make plugin` builds it."""
    build = subprocess.run(
        [sys.executable, str(ROOT / "qgis_plugin" / "build.py"), "--output", str(folder)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert build.returncode == 0, build.stdout + build.stderr


@contextlib.contextmanager
def tile_server(*photo):
    """A tile server in a process of its own; yields its port."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "scenes.py"), *map(str, photo)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield int(process.stdout.readline())
    process.stdin.close()
    process.wait()


def out_folder(name):
    out = Path(os.environ.get("GEOSAM2_QGIS_OUT", str(ROOT / ".ci" / "out" / "qgis"))) / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    return out


@pytest.fixture(scope="module")
def desktop(tmp_path_factory):
    """One QGIS that goes through all scenarios; a second start with the same profile."""
    home = tmp_path_factory.mktemp("home")
    config, out = home / "config", out_folder("desktop")
    profile(config)
    tif = scenes.write_tif(home / "scene.tif")
    old = home / "old-engine"
    old.write_text(
        '#!/bin/sh\necho \'{"op":"ready","id":null,"protocol":99,"version":"9.9"}\'; cat\n'
    )
    old.chmod(0o755)
    build_zip(home)
    chosen = os.environ.get("GEOSAM2_SCENARIOS", "").split() or PLUGIN
    names = list(dict.fromkeys(["install_from_zip", *chosen]))
    more = {"tif": str(tif), "python": PYTHON, "zip": str(home / "geosam2_qgis.zip")}
    more["old"] = str(old)
    with tile_server() as port:
        code, said, report = start_qgis(config, out, names, 500, port=port, **more)
    print(json.dumps(report.get("figures", {})))
    return {"code": code, "said": said, "report": report, "names": names}


REAL = [
    "real_clicks", "real_automatic_detail", "real_pause_and_correct", "real_basemap",
    "real_everything",
]  # fmt: skip


def test_the_embedded_model_on_real_imagery(tmp_path):
    """A second QGIS with the real engine: a house and a road in Banepa."""
    config, out = tmp_path / "home" / "config", out_folder("real")
    profile(config)
    shutil.copy(ROOT / "examples" / "banepa.tif", tmp_path / "banepa.tif")
    build_zip(tmp_path)
    chosen = os.environ.get("GEOSAM2_REAL_SCENARIOS", "").split() or REAL
    with tile_server(tmp_path / "banepa.tif") as port:
        check(
            config, out, ["install_from_zip", *chosen], 560,
            house=(9520087.36, 3202827.04), road=(9520015.70, 3202533.23), limit=250,
            photo=str(tmp_path / "banepa.tif"), photo_port=port,
            zip=str(tmp_path / "geosam2_qgis.zip"), python=PYTHON,
        )  # fmt: skip


def test_a_german_and_dark_window(tmp_path):
    config, out = tmp_path / "home" / "config", out_folder("german")
    profile(config, "[locale]\nuserLocale=de\noverrideFlag=true\n[UI]\nUITheme=Night Mapping\n")
    build_zip(tmp_path)
    check(
        config, out, ["install_from_zip", "german_in_the_dark"], 200, python=PYTHON,
        zip=str(tmp_path / "geosam2_qgis.zip"), tif=str(scenes.write_tif(tmp_path / "scene.tif")),
    )  # fmt: skip


def check(config, out, names, at_most, **more):
    """Run scenarios in a QGIS of their own."""
    code, said, report = start_qgis(config, out, names, at_most, **more)
    print(json.dumps(report.get("figures", {})))
    for name in names:
        found = report.get("scenarios", {}).get(name, {"error": f"not reached: {said[-3000:]}"})
        assert found["error"] is None, found["error"]
    assert code == 0, said[-3000:]


@pytest.mark.parametrize("name", PLUGIN)
def test_scenario(desktop, name):
    scenarios = desktop["report"].get("scenarios", {})
    if name not in desktop["names"]:
        pytest.skip("not chosen")
    assert name in scenarios, f"QGIS ended before {name}:\n{desktop['said'][-3000:]}"
    assert scenarios[name]["error"] is None, scenarios[name]["error"]


def test_qgis_ends_cleanly_and_takes_the_engine_with_it(desktop):
    assert desktop["code"] == 0, desktop["said"][-3000:]
    pid = desktop["report"]["figures"].get("worker_pid")
    if pid is None:
        pytest.skip("not chosen")
    end = time.monotonic() + 10
    while (
        Path(f"/proc/{pid}/cmdline").exists()
        and b"geosam2" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ):
        assert time.monotonic() < end, f"engine {pid} still runs"
        time.sleep(0.1)
