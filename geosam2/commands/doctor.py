"""`geosam2 doctor`: what works on this machine, found by trying it."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import click

from geosam2 import __version__

State = Literal["ok", "warning", "problem"]
SIGNS = {"ok": "ok     ", "warning": "warning", "problem": "PROBLEM"}
PACKAGES = (
    "numpy", "torch", "rasterio", "pyproj", "shapely", "geopandas", "pyogrio", "odc-geo",
    "contourpy", "safetensors", "xarray", "dask",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    """What was looked at."""
    state: State
    """problem: geosam2 will not work; warning: a part of it will not, or slowly."""
    text: str
    """What was found, in one sentence."""
    remedy: str = ""
    """What to do about it."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--weights", default="nano", show_default=True, help="Model to look for and run.")
def command(as_json: bool, weights: str) -> None:
    """Explain what works on this machine and what does not.

    The device is found by running a network on it. Exit code 0: all is well; 1: something will not
    work; warnings do not count.
    """
    findings = examine(weights)
    if as_json:
        report = {
            "version": __version__,
            "ok": not any(f.state == "problem" for f in findings),
            "findings": [asdict(finding) for finding in findings],
        }
        click.echo(json.dumps(report, indent=1))
    else:
        for finding in findings:
            click.echo(f"{SIGNS[finding.state]}  {finding.name}: {finding.text}")
            if finding.remedy:
                click.echo(f"         -> {finding.remedy}")
    if any(finding.state == "problem" for finding in findings):
        sys.exit(1)


def examine(weights: str = "nano") -> list[Finding]:
    """Look at everything; a check that breaks is a finding too."""
    checks: tuple[tuple[str, Callable[[], list[Finding]]], ...] = (
        ("Python", _python),
        ("packages", _packages),
        ("device", _devices),
        ("model", lambda: _model(weights)),
        ("folders", _folders),
        ("QGIS engine", _qgis),
    )
    found = []
    for name, check in checks:
        try:
            found += check()
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            found.append(
                Finding(name, "problem", text, "Please report this with the whole output.")
            )
    return found


def _python() -> list[Finding]:
    text = f"{platform.python_version()} at {sys.executable}, {platform.platform()}"
    found = [Finding("Python", "ok", text), Finding("geosam2", "ok", __version__)]
    if any(name in os.environ for name in ("PYTHONHOME", "PYTHONPATH")):
        remedy = "Unset them, or start Python with -I."
        found.append(Finding("environment", "warning", "PYTHONHOME or PYTHONPATH is set", remedy))
    return found


def _packages() -> list[Finding]:
    """Importing says more than a list of versions: a broken library shows here."""
    versions, found = [], []
    for name in PACKAGES:
        try:
            importlib.import_module(name.replace("-", "."))
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except (ImportError, OSError, RuntimeError) as error:
            remedy = f"pip install --force-reinstall {name}"
            found.append(Finding(name, "problem", f"cannot be imported: {error}", remedy))
    return [Finding("packages", "ok", ", ".join(versions)), *found]


def _devices() -> list[Finding]:
    """Run a convolution and a matrix product on each device that torch names."""
    import torch

    names = ["cpu"]
    if torch.cuda.is_available():
        names += [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    found = [_run_kernel(name) for name in names]
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    return [*found, Finding("threads", "ok", threads)]


def _run_kernel(name: str) -> Finding:
    import torch

    try:
        image = torch.ones(1, 8, 64, 64, device=name)
        kernel = torch.ones(8, 8, 3, 3, device=name)
        result = torch.nn.functional.conv2d(image, kernel)
        side = torch.ones(256, 256, device=name)
        started = time.perf_counter()
        total = float((side @ side).sum() + result.sum())
        milliseconds = 1000 * (time.perf_counter() - started)
        if total != 256**3 + 62 * 62 * 8 * 72:
            remedy = "Update the driver and torch, or choose another device."
            return Finding(f"device {name}", "problem", "computes wrong numbers", remedy)
        return Finding(f"device {name}", "ok", f"works, {milliseconds:.1f} ms for a small product")
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        state: State = "problem" if name == "cpu" else "warning"
        remedy = "Install a torch that fits the driver, or choose the device cpu."
        return Finding(f"device {name}", state, str(error).splitlines()[0], remedy)


def _model(weights: str) -> list[Finding]:
    """Load the weights and encode one grey picture."""
    import geosam2_model
    import torch

    started = time.perf_counter()
    try:
        model = geosam2_model.load(weights)
    except (OSError, ValueError) as error:
        return [Finding(f"model {weights}", "problem", str(error), "geosam2 models list")]
    loaded = time.perf_counter() - started
    side = model.config.image_size
    started = time.perf_counter()
    with torch.no_grad():
        model.encode(torch.full((1, 3, side, side), 127, dtype=torch.uint8))
    text = (
        f"loaded in {loaded:.1f} s on {model.device}; a frame of {side} px takes "
        f"{time.perf_counter() - started:.2f} s"
    )
    return [Finding(f"model {weights}", "ok", text)]


def _folders() -> list[Finding]:
    from geosam2.cache import default_folder

    return [
        _writable("cache of encoded frames", default_folder()),
        _writable("temporary files", Path(tempfile.gettempdir())),
    ]


def _writable(name: str, folder: Path) -> Finding:
    """Write and remove a file in the folder, or in the nearest parent that exists."""
    place = folder
    while not place.exists():
        place = place.parent
    try:
        with tempfile.NamedTemporaryFile(dir=place):
            free = shutil.disk_usage(place).free / 2**30
    except OSError as error:
        remedy = "Set GEOSAM2_CACHE to a folder that can be written."
        return Finding(name, "warning", f"{folder} cannot be written: {error.strerror}", remedy)
    state: State = "ok" if free > 1 else "warning"
    used = sum(path.stat().st_size for path in folder.glob("*")) / 2**20 if folder.exists() else 0
    return Finding(name, state, f"{folder}, {used:.0f} MB used, {free:.1f} GB free on the disk")


def _qgis() -> list[Finding]:
    """What to enter in QGIS, and whether the plugin's protocol answers here."""
    from geosam2.worker.protocol import PROTOCOL

    text = f"protocol {PROTOCOL}; in QGIS: Settings > Options > GeoSAM2 > Python = {sys.executable}"
    return [Finding("QGIS engine", "ok", text)]


def as_dict(findings: list[Finding]) -> dict[str, Any]:
    """Findings by name, for tests and scripts.

    >>> as_dict([Finding("Python", "ok", "3.11")])["Python"].state
    'ok'
    """
    return {finding.name: finding for finding in findings}
