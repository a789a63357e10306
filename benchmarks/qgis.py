"""Figures of the QGIS plugin, taken in a real QGIS window under Xvfb.

    .venv/bin/python benchmarks/qgis.py [--quick]

Prints a table and, as its last line, one JSON object: load time of the plugin, click to preview,
longest gap of the event loop (idle, while a model loads, while following, during a Processing run),
time from kill -9 of the engine to the message and to the next preview. --quick leaves out the
embedded model. QGIS is prepared by `make test-qgis`.

A click's time ends when the canvas has been painted with the first shape that the model gave for
this very click; `settled` is when the answer that replaces this sketch is there, with alternatives.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
OUT = ROOT / ".ci" / "out" / "qgis"
SCENARIOS = (
    "click_a_pond warm_clicks follow_a_lake kill_of_the_engine slow_model_load processing_dialog "
    "slow_tiles_in_processing"
)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Figures of the QGIS plugin.")
    parser.add_argument("--quick", action="store_true", help="without the embedded model")
    quick = parser.parse_args().quick
    python = ROOT / ".ci" / "qgis-venv" / "bin" / "python"
    if not python.exists():
        sys.exit(f"{python} is missing: run `make test-qgis` once")
    command = [
        str(python), "-m", "pytest", "-q", "-c", "tests/qgis/pytest.ini", "--rootdir", "tests/qgis",
        "-p", "no:pytest_qgis", "tests/qgis/test_desktop.py",
    ]  # fmt: skip
    left_out = ["test_a_german_and_dark_window"]
    left_out += ["test_the_embedded_model_on_real_imagery"] * quick
    for name in left_out:
        command += ["--deselect", f"tests/qgis/test_desktop.py::{name}"]
    environment = {**os.environ, "GEOSAM2_SCENARIOS": SCENARIOS, "GEOSAM2_QGIS_OUT": str(OUT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    figures = {"load_average": os.getloadavg()[0]}
    for name in ("desktop",) if quick else ("desktop", "real"):
        report = OUT / name / "report.json"
        if report.exists():
            figures |= json.loads(report.read_text())["figures"]
    for name, value in figures.items():
        print(f"{name:28} {value}")
    if done.returncode:
        print(done.stdout[-2000:], file=sys.stderr)
    print(json.dumps({"benchmark": "qgis", "passed": done.returncode == 0, **figures}))
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
