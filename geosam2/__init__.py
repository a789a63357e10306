"""geosam2: click a feature on a satellite or aerial scene, get the whole of it as a polygon.

Importing this package does little but define names: no torch, no rasterio, no logging set-up.
Each public name is imported from its module when it is first used.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> module that defines it
_EXPORTS = {
    "open_scene": "geosam2.scene",
    "Scene": "geosam2.scene",
    "Frame": "geosam2.scene",
    "FrameGrid": "geosam2.tiling",
    "Prompt": "geosam2.prompts",
    "Segmenter": "geosam2.segmenter",
    "segment": "geosam2.api",
    "segment_everything": "geosam2.everything",
    "segment_prompts": "geosam2.bulk",
    "find_similar": "geosam2.similar",
    "pan": "geosam2.propagate",
    "open_stack": "geosam2.stack",
    "track": "geosam2.tracking",
    "write": "geosam2.export",
    "GeoSAM2Error": "geosam2.errors",
}

__all__ = ["__version__", *_EXPORTS]

if TYPE_CHECKING:
    from geosam2.errors import GeoSAM2Error as GeoSAM2Error


def _let_waiting_threads_sleep() -> None:
    """Tell OpenMP, before torch reads it, that threads without work leave the core to others.

    By default they spin until every thread has done its share. Where something else needs the
    cores, the one at work then waits for those that wait: a click takes three to six times as
    long. A short spin stays, for on an idle machine it is faster than to sleep at once.
    """
    chosen = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys()
    if "torch" not in sys.modules and not chosen:
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}


_let_waiting_threads_sleep()


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'geosam2' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
