"""SAM 2 in PyTorch: the network of geosam2. Knows no geography.

`load("nano")` gives the embedded model, `load("tiny")` one of Meta's, `load("file.pt")` your own.
"""

from __future__ import annotations

import importlib
from typing import Any

# public name -> module that defines it
_EXPORTS = {
    "SAM2": "geosam2_model.sam2",
    "ModelConfig": "geosam2_model.config",
    "VARIANTS": "geosam2_model.config",
    "Prompts": "geosam2_model.prompt_encoder",
    "ImageFeatures": "geosam2_model.sam2",
    "Decoded": "geosam2_model.sam2",
    "Memory": "geosam2_model.memory_bank",
    "load": "geosam2_model.checkpoints",
    "MemoryBank": "geosam2_model.memory_bank",
    "ImagePredictor": "geosam2_model.image_predictor",
    "VideoPredictor": "geosam2_model.video_predictor",
    "CheckpointError": "geosam2_model.errors",
    "InputError": "geosam2_model.errors",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'geosam2_model' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
