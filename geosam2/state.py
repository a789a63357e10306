"""The state of a run in one safetensors file: arrays, and JSON about them in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geosam2.errors import InterruptedRunError
from geosam2.files import write_atomically
from geosam2.masklet import FrameReport
from geosam2.tiling import FrameIndex

if TYPE_CHECKING:
    from torch import Tensor


def write_state(path: Path, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Store a state whole or not at all."""
    from safetensors.torch import save

    write_atomically(path, save(dict(tensors), {"geosam2": json.dumps(about)}))


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write_state` stored.

    Raises:
        InterruptedRunError: If the file is missing, damaged or no state at all.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {})["geosam2"])
            return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InterruptedRunError(
            f"state {path} cannot be read ({error}): start anew without --resume"
        ) from error


def report_from(stored: Mapping[str, Any]) -> FrameReport:
    """A report of a frame from what `dataclasses.asdict` and JSON made of it.

    >>> from dataclasses import asdict
    >>> report = FrameReport(FrameIndex(3, 4), accepted=True, predicted_iou=0.9, agreement=1.0)
    >>> stored = json.loads(json.dumps(asdict(report)))
    >>> report_from(stored).index
    FrameIndex(row=3, col=4)
    """
    return FrameReport(**{**stored, "index": FrameIndex(*stored["index"])})
