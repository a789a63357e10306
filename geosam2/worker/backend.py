"""What the worker needs from something that can segment.

Two exist: `fake` (colour region growing, numpy only) and `real` (`geosam2.segmenter`). Every method
runs in the worker's main thread. Pixels are fetched through the reader that `open` got; it raises
when the job was cancelled, and the exception must pass through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from geosam2.worker.source import Bounds, Clicks, Reader, SceneInfo


@dataclass(frozen=True)
class Found:
    """One object, or what is known of it so far."""

    wkb: bytes
    """Polygon or MultiPolygon in the scene's CRS; empty bytes when nothing was found."""
    score: float
    """The network's own estimate of the mask's IoU, 0..1."""
    stability: float
    """IoU of the masks at a stricter and a laxer threshold, 0..1."""
    open_edges: int
    """Frame borders where the object goes on but was not followed."""
    frames: int
    """Frames that were looked at."""
    cell: float
    """Cell size of the level in CRS units."""
    extra: dict[str, Any] = field(default_factory=dict)
    """More attributes for the client (JSON)."""

    def header(self) -> dict[str, Any]:
        """The part that goes into a message's JSON line."""
        return {
            "score": round(self.score, 4),
            "stability": round(self.stability, 4),
            "open_edges": self.open_edges,
            "frames": self.frames,
            "cell": self.cell,
            **self.extra,
        }


@dataclass(frozen=True)
class Step:
    """Progress of a long job after one frame."""

    done: int
    """Frames looked at."""
    waiting: int
    """Frames that wait in the queue."""
    found: tuple[Found, ...] = ()
    """Objects that are finished with this step (segmenting everything)."""
    frame: Bounds | None = None
    """Bounds of the frame that was looked at."""


@dataclass(frozen=True)
class Seen:
    """What came of looking for an object at one date of a stack."""

    number: int
    """Of the date, in the order in which the backend was given the scenes."""
    found_by: str
    """As in `geosam2.tracking.Sighting`."""
    agreement: float | None = None
    """IoU of a click's answer with the memory's; None if nothing was clicked."""
    found: Found | None = None
    """The object; None where it is absent or not to be seen."""


class Follower(Protocol):
    """An object being followed over frames: iterate for steps; corrigible between two steps."""

    def __iter__(self) -> Iterator[Step]: ...

    def found(self) -> Found:
        """The object so far; outlining it takes a while, so it is not part of each step."""
        ...

    def correct(self, clicks: Clicks) -> Step:
        """Add clicks to the prompt; what is known is decided again around them."""
        ...

    def save(self, path: Path) -> None:
        """Write everything that `Backend.restore` needs (atomically)."""
        ...


class Backend(Protocol):
    """Something that turns clicks into polygons."""

    name: str

    def describe(self) -> dict[str, Any]:
        """For the `ready` message: device, model, versions. Must not load anything."""
        ...

    def load(self, model: str | None, device: str | None) -> dict[str, Any]:
        """Load a model (None: the default); returns what the client should know of it."""
        ...

    def open(self, scene: SceneInfo, read: Reader, poll: Callable[[], None]) -> None:
        """Work on this scene from now on; `poll` is to be called between two network calls."""
        ...

    def sketch(self, clicks: Clicks, level: int | None) -> Found | None:
        """A first answer to the clicks, soon; None if there is none before `preview`."""
        ...

    def preview(self, clicks: Clicks, level: int | None) -> Iterator[Found]:
        """The object under the clicks on one frame, best first; more than one if ambiguous."""
        ...

    def follow(self, clicks: Clicks, level: int | None, options: dict[str, Any]) -> Follower:
        """Follow the object over the map."""
        ...

    def restore(self, path: Path) -> Follower:
        """Go on with a follower that was saved, perhaps by another process."""
        ...

    def everything(
        self, bounds: Bounds, level: int | None, options: dict[str, Any]
    ) -> Iterator[Step]:
        """Find every object inside the bounds."""
        ...

    def open_stack(
        self,
        scenes: Sequence[SceneInfo],
        dates: Sequence[str],
        read: Reader,
        poll: Callable[[], None],
        options: dict[str, Any],
    ) -> None:
        """Take the dates of one place, for `track`; what `open` got stays open."""
        ...

    def track(self, clicks: Clicks, start: int) -> Iterator[Seen]:
        """Look for the object that was clicked at one date at all of them, that one first."""
        ...
