"""The algorithms from a shell, as qgis_process runs them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import scenes

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.qgis, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Call qgis_process.bin (Debian's wrapper hands it an option that it does not know)."""
    home = tmp_path_factory.mktemp("home")
    python = os.environ.get("GEOSAM2_TEST_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
    ini = home / "config" / "profiles" / "default" / "QGIS" / "QGIS3.ini"
    ini.parent.mkdir(parents=True)

    def call(*words, python=python, arguments="--backend fake"):
        ini.write_text(
            "[PythonPlugins]\ngeosam2_qgis=true\n"
            f"[geosam2]\npython={python}\nengineArguments={arguments}\n"
        )
        environment = {
            **os.environ, "HOME": str(home), "QGIS_PLUGINPATH": str(ROOT / "qgis_plugin"),
            "QGIS_CUSTOM_CONFIG_PATH": str(home / "config"), "QT_QPA_PLATFORM": "offscreen",
            "XDG_RUNTIME_DIR": str(home),
        }  # fmt: skip
        environment.pop("GEOSAM2_PYTHON", None)
        return subprocess.run(
            ["qgis_process.bin", *words], env=environment, capture_output=True, text=True, timeout=200
        )  # fmt: skip

    call.tif = scenes.write_tif(home / "scene.tif")
    call.home = home
    return call


def count(path):
    from osgeo import ogr

    data = ogr.Open(str(path))  # the layer is gone when nobody holds its file
    return data.GetLayer(0).GetFeatureCount()


def test_segment_everything_writes_a_file(run):
    out = run.home / "out.gpkg"
    done = run("run", "geosam2:segmentraster", "--json", f"--INPUT={run.tif}", f"--OUTPUT={out}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout[done.stdout.index("{") :])["results"]["COUNT"] == 2
    assert count(out) == 2


def test_segment_from_points(run):
    x, y = scenes.POND[:2]
    points = run.home / "points.geojson"
    feature = {
        "type": "Feature",
        "properties": {},
        "geometry": {"type": "Point", "coordinates": [x, y]},
    }
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    points.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]}))
    out = run.home / "points.gpkg"
    done = run(
        "run",
        "geosam2:segmentpoints",
        f"--INPUT={run.tif}",
        f"--PROMPTS={points}",
        f"--OUTPUT={out}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert count(out) == 1


def test_status(run):
    done = run("run", "geosam2:enginestatus")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "backend fake" in done.stdout


def test_a_missing_engine_and_bad_input_end_with_a_sentence(run):
    done = run("run", "geosam2:enginestatus", python="/no/such/python")
    assert done.returncode != 0
    assert "cannot be started" in done.stdout + done.stderr
    done = run(
        "run", "geosam2:segmentraster", "--INPUT=/no/such.tif", f"--OUTPUT={run.home / 'x.gpkg'}"
    )
    assert done.returncode != 0
