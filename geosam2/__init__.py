"""geosam2: click a feature on a satellite or aerial scene, get the whole of it as a polygon.

Importing this package does nothing but define names: no torch, no rasterio, no logging set-up.
Each public name is imported from its module when it is first used.
"""

from __future__ import annotations

import importlib
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
    "pan": "geosam2.propagate",
    "write": "geosam2.export",
    "GeoSAM2Error": "geosam2.errors",
}

__all__ = ["__version__", *_EXPORTS]

if TYPE_CHECKING:
    from geosam2.errors import GeoSAM2Error as GeoSAM2Error


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'geosam2' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
