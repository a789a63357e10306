"""Settings of the plugin, in QGIS's own store, with defaults that need no visit."""

import os
from pathlib import Path

from qgis.core import QgsSettings
from qgis.PyQt.QtCore import QStandardPaths

from .engine import worker_command
from .i18n import tr
from .trouble import Trouble

DEFAULTS = {
    "python": "",  # interpreter that has geosam2; empty: GEOSAM2_PYTHON, then the managed one
    "engineArguments": "",  # more arguments for the worker, for tests and debugging
    "engineFolder": "",  # where the managed environment lives; empty: user data folder
    "packages": "geosam2",  # what pip installs into the managed environment
    "wheels": "",  # a folder of wheels for installing without a network
    "preset": "rapid",
    "detail": "view",
    "follow": True,
    "maxFrames": 50,
    "minScore": 0.7,
    "minStability": 0.85,
    "device": "",
    "pixelTimeout": 60,
}


def get(name):
    """A setting, in the type of its default."""
    default = DEFAULTS[name]
    return QgsSettings().value(f"geosam2/{name}", default, type=type(default))


def put(name, value):
    """Store a setting."""
    if name not in DEFAULTS:
        raise KeyError(name)
    QgsSettings().setValue(f"geosam2/{name}", value)


def engine_folder():
    """The managed environment: outside the plugin folder, which an upgrade replaces."""
    chosen = get("engineFolder")
    if chosen:
        return Path(chosen)
    base = QStandardPaths.writableLocation(QStandardPaths.StandardLocation.GenericDataLocation)
    return Path(base) / "geosam2" / "engine"


def managed_python(folder):
    """The interpreter inside a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def find_python():
    """The interpreter to use: setting, GEOSAM2_PYTHON, managed environment; "" if there is none."""
    managed = managed_python(engine_folder())
    marked = engine_folder() / "geosam2-ready"  # written when set-up has finished
    candidates = [get("python"), os.environ.get("GEOSAM2_PYTHON", "")]
    if managed.exists() and marked.exists():
        candidates.append(str(managed))
    return next((c for c in candidates if c), "")


def find_engine():
    """Command of the engine, or a Trouble that says what to do."""
    python = find_python()
    if not python:
        return Trouble(
            "engine_missing",
            tr("GeoSAM2 has no engine yet."),
            tr("Press Set up: it takes a few minutes, once."),
        )
    return worker_command(python, get("engineArguments").split())


def checkpoint_path():
    """Where a running job is kept, so that it can be resumed after a crash."""
    base = QStandardPaths.writableLocation(QStandardPaths.StandardLocation.GenericDataLocation)
    folder = Path(base) / "geosam2"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "paused-run.npz"
