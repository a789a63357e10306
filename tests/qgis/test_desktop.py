"""A real QGIS window under Xvfb: starts it, lets driver.py act, reads what it found."""

from __future__ import annotations

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
pytestmark = [pytest.mark.qgis, pytest.mark.timeout(600)]

PLUGIN = [
    "install_from_zip", "no_engine", "click_a_pond", "warm_clicks", "other_project_crs_and_rotation",
    "exclude_take_back_box", "follow_a_lake", "escape_pauses_wherever_the_focus_is",
    "cancel_leaves_nothing", "kill_of_the_engine", "missing_tiles", "slow_model_load",
    "processing_dialog", "slow_tiles_in_processing", "refine_and_flag", "new_geopackage", "reload_five_times",
    "leave_during_a_job",
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


def profile(folder):
    """A fresh profile as QGIS would make it."""
    ini = folder / "profiles" / "t" / "QGIS" / "QGIS3.ini"
    ini.parent.mkdir(parents=True)
    ini.write_text(
        "[PythonPlugins]\nprocessing=true\n[qgis]\ncheckVersion=false\n"
        "[app]\naskToSaveMemoryLayers=false\n"
    )


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
    build = subprocess.run(
        [sys.executable, str(ROOT / "qgis_plugin" / "build.py"), "--output", str(home)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert build.returncode == 0, build.stdout + build.stderr
    tiles = subprocess.Popen(
        [sys.executable, str(HERE / "scenes.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    port = int(tiles.stdout.readline())
    python = os.environ.get("GEOSAM2_TEST_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
    chosen = os.environ.get("GEOSAM2_SCENARIOS", "").split() or PLUGIN
    names = list(dict.fromkeys(["install_from_zip", *chosen]))
    more = {
        "tif": str(tif),
        "port": port,
        "python": python,
        "zip": str(home / "geosam2_qgis.zip"),
        "old": str(old),
    }
    code, said, report = start_qgis(config, out, names, 500, **more)
    figures = report.get("figures", {})
    print(json.dumps(figures))
    yield {
        "code": code,
        "said": said,
        "report": report,
        "config": config,
        "more": more,
        "names": names,
    }
    tiles.stdin.close()
    tiles.wait()


def test_the_embedded_model_on_real_imagery(tmp_path):
    """A second QGIS with the real engine: a house in Banepa, its roof as a polygon."""
    config, out = tmp_path / "home" / "config", out_folder("real")
    profile(config)
    shutil.copy(ROOT / "examples" / "banepa.tif", tmp_path / "banepa.tif")
    subprocess.run(
        [sys.executable, str(ROOT / "qgis_plugin" / "build.py"), "--output", str(tmp_path)], check=True
    )  # fmt: skip
    house = (9520087.36, 3202827.04)
    road = (9520015.70, 3202533.23)
    view = [house[0] - 50, house[1] - 40, house[0] + 50, house[1] + 40]
    python = os.environ.get("GEOSAM2_TEST_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
    more = {
        "python": python,
        "zip": str(tmp_path / "geosam2_qgis.zip"),
        "real": str(tmp_path / "banepa.tif"),
    }
    names = ["install_from_zip", "real_model"]
    code, said, report = start_qgis(
        config, out, names, 400, real_click=house, real_view=view, real_road=road, limit=200, **more
    )
    print(json.dumps(report.get("figures", {})))
    assert code == 0, said[-3000:]
    for name in names:
        assert report["scenarios"][name]["error"] is None, report["scenarios"][name]["error"]


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
