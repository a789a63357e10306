"""Shared by the tests that run inside QGIS's Python (pytest-qgis, offscreen)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

try:
    from qgis.core import Qgis  # noqa: F401
except ImportError:
    collect_ignore_glob = ["*.py"]  # the project's own Python has no QGIS
else:
    sys.path[:0] = [str(ROOT / "qgis_plugin"), str(HERE)]


def worker_python():
    """The Python that has geosam2: never the one that runs these tests."""
    return os.environ.get("GEOSAM2_TEST_PYTHON", str(ROOT / ".venv" / "bin" / "python"))


@pytest.fixture(autouse=True)
def plugin_settings(tmp_path, monkeypatch):
    """Fresh settings: the fake engine, data in a folder of this test."""
    from qgis.core import QgsSettings

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("GEOSAM2_PYTHON", raising=False)
    settings = QgsSettings()
    settings.remove("geosam2")
    settings.setValue("geosam2/python", worker_python())
    settings.setValue("geosam2/engineArguments", "--backend fake")
    yield settings
    settings.remove("geosam2")


@pytest.fixture(autouse=True)
def no_exception_in_a_slot(monkeypatch):
    """PyQt aborts on exceptions in slots unless there is a hook; QGIS has one, and so have we."""
    import traceback

    caught = []
    monkeypatch.setattr(
        sys, "excepthook", lambda *what: caught.append("".join(traceback.format_exception(*what)))
    )
    yield
    assert not caught, caught[0]


@pytest.fixture(scope="session")
def tif(tmp_path_factory):
    """The GeoTIFF with a pond and two touching roofs."""
    import scenes

    return scenes.write_tif(tmp_path_factory.mktemp("tif") / "scene.tif")


@pytest.fixture
def raster(tif, tmp_path, qgis_new_project):
    """The GeoTIFF as a layer of the project."""
    import shutil

    from qgis.core import QgsProject, QgsRasterLayer

    shutil.copy(tif, tmp_path / "scene.tif")  # QGIS writes .aux.xml beside it
    layer = QgsRasterLayer(str(tmp_path / "scene.tif"), "scene")
    assert layer.isValid()
    QgsProject.instance().addMapLayer(layer)
    return layer


@pytest.fixture
def server():
    """A tile server of this test."""
    import scenes

    running, port = scenes.serve()
    running.port = port
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def basemap(server, qgis_new_project):
    """The lake as an XYZ layer."""
    import scenes
    from qgis.core import QgsProject, QgsRasterLayer

    layer = QgsRasterLayer(scenes.xyz_uri(server.port), "basemap", "wms")
    assert layer.isValid()
    QgsProject.instance().addMapLayer(layer)
    return layer


@pytest.fixture
def until(qgis_app):
    """Run the event loop until a condition holds; generous, because machines may be busy."""
    import time

    def wait(condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"still not so after {seconds} s"
            qgis_app.processEvents()
            time.sleep(0.005)

    return wait


@pytest.fixture
def engine(qgis_app):
    """An engine that ends with the test."""
    from geosam2_qgis.core import settings
    from geosam2_qgis.core.engine import Engine

    it = Engine(settings.find_engine)
    yield it
    it.stop()


@pytest.fixture
def session(engine):
    """A session that collects what it announces."""
    from geosam2_qgis.core.session import Session

    it = Session(engine)
    it.results, it.troubles, it.hints, it.steps, it.holes = [], [], [], [], []
    it.finished.connect(it.results.append)
    it.trouble.connect(it.troubles.append)
    it.hint.connect(it.hints.append)
    it.progress.connect(lambda done, waiting: it.steps.append((done, waiting)))
    it.missing.connect(it.holes.append)
    yield it
    it.set_layer(None)


def pytest_sessionfinish(session, exitstatus):
    """Remember the result for the end."""
    session.config.geosam2_status = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """Leave without taking QGIS's libraries down: with Python objects alive that order may crash.

    Ending cleanly is tested where it matters to people, in the real window (test_desktop.py).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if "qgis.core" in sys.modules:
        os._exit(getattr(config, "geosam2_status", 1))
