"""What following an object gives: its masklet, a report of every frame, the borders left open."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray

from geosam2.errors import InterruptedRunError, OptionError
from geosam2.mosaic import LogitMosaic
from geosam2.tiling import FrameIndex

if TYPE_CHECKING:
    from geosam2.levels import Level
    from geosam2.prompts import Prompt

FloatArray = NDArray[np.float32]
Side = Literal["north", "east", "south", "west"]

UNREAD = "could not be read"
"""How the reason of a frame begins whose pixels the source did not give."""


@dataclass(frozen=True)
class Gate:
    """What a frame must show before it is believed."""

    object_score: float = 0.0
    """Logit of the network's "the object is here"."""
    agreement: float = 0.5
    """IoU with what is known in the overlap, each cell weighted by how firmly it is known."""
    predicted_iou: float = 0.3
    """The network's own guess of the mask's IoU."""


@dataclass(frozen=True)
class FrameReport:
    """What came of looking at one frame."""

    index: FrameIndex
    """Which frame."""
    accepted: bool
    """Its mask is part of the object."""
    prompted: bool = False
    """A point, box or mask of the user is on it."""
    predicted_iou: float = math.nan
    """The network's guess, 0..1."""
    stability: float = math.nan
    """IoU of the masks at logit +1 and -1."""
    object_score: float = math.nan
    """Logit, > 0 = the object is visible."""
    agreement: float = math.nan
    """IoU with what was known in the overlap; nan if nothing was."""
    contact: int = 0
    """Cells of border by which the frame was reached."""
    cells: int = 0
    """Cells (4 x 4 px) of the mask."""
    looks: int = 1
    """How often it was looked at so far."""
    visit: int = 0
    """0 for the first frame that was looked at, and so on."""
    reason: str = ""
    """Why it was not accepted."""

    @property
    def unread(self) -> bool:
        """True if the source did not give its pixels."""
        return self.reason.startswith(UNREAD)


@dataclass(frozen=True)
class OpenBorder:
    """A stretch of frame border where the object goes on but was not followed."""

    frame: FrameIndex
    """Frame whose mask touches the border."""
    beyond: FrameIndex
    """Frame on the other side."""
    side: Side
    """Which border of `frame`."""
    contact: int
    """Cells (4 px) of contact."""
    reason: str
    """"not visited", or what the gate said."""
    geometry: shapely.LineString
    """The stretch in the scene's CRS."""


@dataclass(frozen=True)
class Masklet:
    """One object over its frames."""

    object_id: int
    """As in the prompt."""
    mosaic: LogitMosaic
    """Its logits."""
    level: Level
    """Resolution of the mosaic."""
    frames: tuple[FrameReport, ...]
    """Accepted frames in the order of their visits."""
    open_edges: tuple[OpenBorder, ...]
    """Where the object goes on but was not followed."""
    prompts: tuple[Prompt, ...]
    """What the user said, corrections included, in the scene's CRS."""

    @property
    def score(self) -> float:
        """Mean predicted IoU, each frame weighted by its share of the object; 0 if empty."""
        return self._mean("predicted_iou")

    @property
    def stability(self) -> float:
        """Mean stability, weighted as `score`."""
        return self._mean("stability")

    def _mean(self, name: str) -> float:
        cells = sum(report.cells for report in self.frames)
        total = sum(getattr(report, name) * report.cells for report in self.frames)
        return float(total / cells) if cells else 0.0


@dataclass(frozen=True)
class Step:
    """One frame further: what a progress bar and a live preview need."""

    report: FrameReport
    """What came of the frame."""
    logits: FloatArray | None
    """(H/4, W/4) of the frame, whether accepted or not; None if it could not be read."""
    done: int
    """Looks at frames so far."""
    accepted: int
    """Frames of the object so far."""
    open_borders: int
    """Frames that are still to be looked at."""
    area: float
    """Square metres so far, on the scene's mean pixel size; CRS-less scenes: pixels."""

    @property
    def index(self) -> FrameIndex:
        """The frame."""
        return self.report.index


@dataclass(frozen=True)
class PanOptions:
    """How an object is followed."""

    max_frames: int = 50
    """Looks at frames, at most."""
    use_memory: bool = True
    """Attend to what was segmented on other frames."""
    use_known: bool = True
    """Show the network what was decided in the overlap, as a mask and points."""
    positions: Literal["map", "frame"] = "map"
    """Where memories are: on the map, or (the plain video way) all in the same place."""
    rounds: int = 16
    """Times, at most, that the network is asked again with its own answer told; see `looking`."""
    gate: Gate = field(default_factory=Gate)
    """What a frame must show."""
    alternative: int | None = None
    """Which of the three masks of an ambiguous first click; None = the best."""

    def __post_init__(self) -> None:
        """Refuse what would follow nothing.

        Raises:
            OptionError: If `max_frames` is not a whole number of at least 1.
        """
        if not isinstance(self.max_frames, numbers.Integral) or self.max_frames < 1:
            raise OptionError(f"max_frames={self.max_frames!r}: give a whole number from 1")

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> PanOptions:
        """Read what `dataclasses.asdict` gave.

        Raises:
            InterruptedRunError: If it is of a version with other options.
        """
        try:
            return cls(**{**stored, "gate": Gate(**stored["gate"])})
        except (TypeError, KeyError) as error:
            raise InterruptedRunError(
                f"the run was stored by another version of geosam2 ({error}): start it anew "
                "without --resume"
            ) from error
