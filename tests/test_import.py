"""What `import geosam2` does to the process, and what it leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

OPENMP = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def seen(code: str, **environment: str) -> str:
    """What a fresh Python prints."""
    plain = {k: v for k, v in os.environ.items() if k not in OPENMP}
    return subprocess.run(
        [sys.executable, "-c", code], env=plain | environment, capture_output=True, text=True,
        check=True,
    ).stdout.strip()  # fmt: skip


def test_nothing_heavy_is_imported():
    heavy = seen(
        "import geosam2, sys; print({'torch', 'rasterio', 'geopandas', 'numpy'} & set(sys.modules))"
    )
    assert heavy == "set()"


def test_waiting_threads_sleep():
    code = "import os, geosam2; print(os.environ.get('OMP_WAIT_POLICY'))"
    assert seen(code) == "PASSIVE"


@pytest.mark.parametrize(
    ("code", "chosen", "wanted"),
    [
        ("import os, geosam2; print(os.environ['OMP_WAIT_POLICY'])", "ACTIVE", "ACTIVE"),
        (  # torch has read it by then: a change would reach other programs alone
            "import os, torch, geosam2; print(os.environ.get('GOMP_SPINCOUNT'))",
            None,
            "None",
        ),
    ],
)
def test_what_was_chosen_before_stays(code, chosen, wanted):
    assert seen(code, **({"OMP_WAIT_POLICY": chosen} if chosen else {})) == wanted
