"""Memory bank: what has been segmented so far, and which part of it a frame looks at.

Two ways of placing memories, one class. In a video (`positions="frame"`) a place is a frame number
and the frames just before count. On a map (`positions="map"`) a place is the lattice cell (row,
column) of the frame's top-left corner, the nearest frames count, and every token keeps its place
on the lattice, so what was seen in the overlap lies exactly where it is.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from geosam2_model.errors import InputError

Positions = Literal["frame", "map"]
Place = int | tuple[int, int]

CELLS = 4  # stride-4 cells along the side of a lattice cell
PROMPTED = -1  # age of a prompted memory: it has a temporal embedding of its own


@dataclass(frozen=True)
class Memory:
    """What is kept of N objects on one frame."""

    features: Tensor
    """(N, mem_dim, h, w) spatial memory."""
    pointer: Tensor
    """(N, d_model) object pointer."""
    object_score: Tensor
    """(N,) logit; > 0 means the object was visible."""
    sketch: Tensor | None = None
    """(N, H / 4, W / 4) logits to lay on later frames, 0 where nothing is said; only for models
    with dense prompts."""

    def __len__(self) -> int:
        return len(self.pointer)

    def __getitem__(self, rows: slice) -> Memory:
        sketch = None if self.sketch is None else self.sketch[rows]
        return Memory(self.features[rows], self.pointer[rows], self.object_score[rows], sketch)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Memory:
        """Elsewhere, or with spatial features of another type (bfloat16 halves them)."""
        features = self.features.to(device, dtype or self.features.dtype)
        sketch = None if self.sketch is None else self.sketch.to(device)
        return Memory(features, self.pointer.to(device), self.object_score.to(device), sketch)


@dataclass(frozen=True)
class Entry:
    """One frame of the bank."""

    memory: Memory
    place: Place
    prompted: bool
    """A person's prompt is on this frame."""
    step: int
    """How many memories had been added before."""


@dataclass(frozen=True)
class Recall:
    """What one frame looks at."""

    features: tuple[Tensor, ...]
    """Spatial memories (N, mem_dim, h, w)."""
    ages: tuple[int, ...]
    """1 for the last (or nearest) frame, 2 for the one before, PROMPTED for a prompted one."""
    offsets: tuple[tuple[int, int], ...]
    """Lattice cells (rows, columns) from this frame's corner to the memory's."""
    pointers: tuple[Tensor, ...]
    """Object pointers (N, d_model)."""
    times: tuple[float, ...]
    """Frames since each pointer, as a share of the longest span."""
    sketches: tuple[tuple[Tensor, tuple[int, int]], ...] = ()
    """Sketches of the spatial memories and their offsets, the latest last."""

    @property
    def layout(self) -> Hashable:
        """Recalls of the same layout can be stacked over objects."""
        shapes = tuple(x.shape[1:] for x in self.features)
        laid = tuple((x.shape[1:], offset) for x, offset in self.sketches)
        return shapes, self.ages, self.offsets, len(self.pointers), laid

    def sketch(self, height: int, width: int) -> Tensor | None:
        """What is remembered, laid on this frame: (N, 1, height, width) logits at stride 4.

        Later memories cover earlier ones; 0 where none says anything. None without sketches.
        """
        if not self.sketches:
            return None
        canvas = self.sketches[0][0].new_zeros(len(self.sketches[0][0]), height, width)
        for piece, (row, column) in self.sketches:
            paste(canvas, piece, row * CELLS, column * CELLS)
        return canvas[:, None]


class MemoryBank:
    """The memories of one object, or of N objects that share their frames.

    The one mutable thing of the network.

    Args:
        positions: "frame" for video and time series, "map" for panning over a map.
        max_recent: Spatial memories of frames without a prompt that are looked at.
        max_prompted: Prompted frames that are looked at; None looks at all. When there are more,
            the nearest before, the nearest after and the nearest others are taken.
        max_pointers: Object pointers that are looked at.
        history: Frames without a prompt that are kept at all, so that memory use is flat; more
            than `max_recent`, because a correction may come back to an earlier frame.

    >>> bank = MemoryBank(positions="map")
    >>> memory = Memory(torch.zeros(1, 64, 2, 2), torch.zeros(1, 256), torch.ones(1))
    >>> bank.add(memory, (10, 20), prompted=True)
    >>> bank.recall((10, 26)).offsets
    ((0, -6),)
    """

    def __init__(
        self,
        positions: Positions = "frame",
        *,
        max_recent: int = 6,
        max_prompted: int | None = None,
        max_pointers: int = 16,
        history: int = 32,
    ) -> None:
        if positions not in ("frame", "map"):
            raise InputError(f"positions is {positions!r}; it is 'frame' or 'map'.")
        if max_prompted is not None and max_prompted < 2:
            raise InputError(f"max_prompted is {max_prompted}; at least 2, or None for all.")
        self.positions: Positions = positions
        self.max_recent, self.max_prompted = max_recent, max_prompted
        self.max_pointers, self.history = max_pointers, max(history, max_recent, max_pointers)
        self.steps = 0
        self._entries: dict[Hashable, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def add(
        self, memory: Memory, place: Place, *, prompted: bool = False, key: Hashable = None
    ) -> None:
        """Remember a frame.

        Args:
            memory: From `SAM2.remember`.
            place: Frame number, or lattice cell (row, column) of the frame's corner.
            prompted: A person's prompt is on this frame; such memories are never forgotten.
            key: Name of the frame; a memory of the same name is replaced. The place by default,
                so give one to keep several dates of the same place.
        """
        place = self._checked(place)
        key = place if key is None else key
        self._entries.pop(key, None)
        self._entries[key] = Entry(memory, place, prompted, self.steps)
        self.steps += 1
        plain = [k for k, entry in self._entries.items() if not entry.prompted]
        for old in plain[: max(0, len(plain) - self.history)]:
            del self._entries[old]

    def remove(self, key: Hashable) -> None:
        """Forget a frame, by its place or key; nothing happens if it is unknown."""
        self._entries.pop(key, None)

    def get(self, key: Hashable) -> Entry | None:
        """What is remembered of a frame."""
        return self._entries.get(key)

    def recall(
        self, place: Place, *, reverse: bool = False, num_frames: int | None = None
    ) -> Recall:
        """What the frame at `place` looks at.

        Args:
            place: As for `add`.
            reverse: The video runs backwards.
            num_frames: Length of the video if known; short videos have a shorter pointer span.

        Raises:
            InputError: If nothing is remembered, or the place is of the wrong kind.
        """
        place = self._checked(place)
        if not self._entries:
            raise InputError("The memory bank is empty: decode a prompt and remember it first.")
        span = max(1, min(num_frames or self.max_pointers, self.max_pointers) - 1)
        if isinstance(place, int):
            return self._recall_frames(place, -1 if reverse else 1, span)
        return self._recall_map(place, span)

    def _recall_frames(self, now: int, sign: int, span: int) -> Recall:
        """SAM 2's rule: all prompted frames, and those just before by their distance in time."""
        prompted, others = self._split_frames(now)
        before = {(now - t) * sign: entry for t, entry in others.items()}
        recent = [(age, before[age]) for age in range(1, self.max_recent + 1) if age in before]
        # pointers of prompted frames that are still to come are not looked at
        pointers = [((now - t) * sign, e) for t, e in prompted.items() if (now - t) * sign >= 0]
        pointers += [(age, before[age]) for age in range(1, span + 1) if age in before]
        spatial = [(PROMPTED, entry) for entry in prompted.values()] + recent
        return _recall(spatial, pointers, (0, 0), span, local=True)

    def _split_frames(self, now: int) -> tuple[dict[int, Entry], dict[int, Entry]]:
        entries = {int(e.place): e for e in self if isinstance(e.place, int)}
        prompted = [t for t, entry in entries.items() if entry.prompted]
        if self.max_prompted is not None and len(prompted) > self.max_prompted:
            nearest = sorted(prompted, key=lambda t: abs(t - now))
            ends = [next((t for t in nearest if t < now), None),
                    next((t for t in nearest if t >= now), None)]  # fmt: skip
            chosen = [t for t in ends if t is not None]
            chosen += [t for t in nearest if t not in chosen]
            prompted = chosen[: self.max_prompted]
        rest = {t: entry for t, entry in entries.items() if t not in prompted}
        return {t: entries[t] for t in prompted}, rest

    def _recall_map(self, here: tuple[int, int], span: int) -> Recall:
        """The nearest frames on the map; of equally near ones the latest."""

        def far(entry: Entry) -> tuple[int, int]:
            row, column = _offset(entry.place, here)
            return row**2 + column**2, -entry.step

        prompted = sorted((e for e in self if e.prompted), key=far)[: self.max_prompted]
        ranked = list(enumerate(sorted((e for e in self if not e.prompted), key=far), start=1))
        spatial = [(PROMPTED, e) for e in prompted] + ranked[: self.max_recent]
        pointers = [(self.steps - e.step, e) for e in prompted] + ranked[:span]
        return _recall(spatial, pointers, here, span, local=False)

    def _checked(self, place: Place) -> Place:
        fits = isinstance(place, int) if self.positions == "frame" else (
            isinstance(place, tuple) and len(place) == 2 and all(isinstance(v, int) for v in place)
        )  # fmt: skip
        if not fits:
            wanted = "a frame number" if self.positions == "frame" else "a lattice cell (row, col)"
            raise InputError(f"place is {place!r}; positions={self.positions!r} needs {wanted}.")
        return place

    def state_dict(self) -> dict[str, Tensor]:
        """Everything as tensors, for safetensors; keys other than places are not kept."""
        limit = -1 if self.max_prompted is None else self.max_prompted
        numbers = [self.positions == "map", self.max_recent, limit, self.max_pointers]
        state = {"settings": torch.tensor([*map(int, numbers), self.history, self.steps])}
        for i, entry in enumerate(self):
            place = (entry.place, 0) if isinstance(entry.place, int) else entry.place
            state[f"{i}.place"] = torch.tensor([*place, int(entry.prompted), entry.step])
            state[f"{i}.features"] = entry.memory.features.contiguous()
            state[f"{i}.pointer"] = entry.memory.pointer.contiguous()
            state[f"{i}.object_score"] = entry.memory.object_score.contiguous()
            if entry.memory.sketch is not None:
                state[f"{i}.sketch"] = entry.memory.sketch.contiguous()
        return state

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> MemoryBank:
        """The reverse of `state_dict`."""
        on_map, recent, prompted, pointers, history, steps = state["settings"].tolist()
        bank = cls(
            "map" if on_map else "frame",
            max_recent=recent,
            max_prompted=None if prompted < 0 else prompted,
            max_pointers=pointers,
            history=history,
        )
        for i in range(sum(name.endswith(".place") for name in state)):
            row, column, is_prompted, step = state[f"{i}.place"].tolist()
            place: Place = (row, column) if on_map else row
            memory = Memory(
                state[f"{i}.features"],
                state[f"{i}.pointer"],
                state[f"{i}.object_score"],
                state.get(f"{i}.sketch"),
            )
            entry = Entry(memory, place, bool(is_prompted), step)
            bank._entries[place if place not in bank else (place, step)] = entry
        bank.steps = steps
        return bank


def _offset(place: Place, here: tuple[int, int]) -> tuple[int, int]:
    assert isinstance(place, tuple)
    return place[0] - here[0], place[1] - here[1]


def _recall(
    spatial: list[tuple[int, Entry]],
    pointers: list[tuple[int, Entry]],
    here: tuple[int, int],
    span: int,
    local: bool,
) -> Recall:
    return Recall(
        tuple(entry.memory.features for _, entry in spatial),
        tuple(age for age, _ in spatial),
        tuple((0, 0) if local else _offset(entry.place, here) for _, entry in spatial),
        tuple(entry.memory.pointer for _, entry in pointers),
        tuple(age / span for age, _ in pointers),
        tuple(
            (entry.memory.sketch, (0, 0) if local else _offset(entry.place, here))
            for _, entry in sorted(spatial, key=lambda pair: pair[1].step)
            if entry.memory.sketch is not None
        ),
    )


def paste(canvas: Tensor, piece: Tensor, row: int, column: int) -> None:
    """Lay `piece` (N, h, w) on `canvas` (N, H, W) at a row and column, which may be outside.

    Zeros of the piece are left out.

    >>> canvas = torch.zeros(1, 2, 3)
    >>> paste(canvas, torch.tensor([[[1.0, 2.0], [3.0, 0.0]]]), -1, 2)
    >>> canvas
    tensor([[[0., 0., 3.],
             [0., 0., 0.]]])
    """
    (height, width), (h, w) = canvas.shape[-2:], piece.shape[-2:]
    top, left = max(0, row), max(0, column)
    bottom, right = min(height, row + h), min(width, column + w)
    if top >= bottom or left >= right:
        return
    part = piece[..., top - row : bottom - row, left - column : right - column]
    below = canvas[..., top:bottom, left:right]
    canvas[..., top:bottom, left:right] = torch.where(part != 0, part, below)


def stack_recalls(recalls: list[Recall]) -> tuple[Recall, Tensor]:
    """Recalls of the same layout as one of more rows, and the pointers' times (N, P)."""
    first = recalls[0]
    rows = [len(r.features[0]) for r in recalls]
    times = torch.tensor([r.times for r in recalls]).repeat_interleave(torch.tensor(rows), dim=0)
    if len(recalls) == 1:
        return first, times
    features = tuple(torch.cat(x) for x in zip(*(r.features for r in recalls), strict=True))
    pointers = tuple(torch.cat(x) for x in zip(*(r.pointers for r in recalls), strict=True))
    sketches = tuple(
        (torch.cat([piece for piece, _ in same]), same[0][1])
        for same in zip(*(r.sketches for r in recalls), strict=True)
    )
    return replace(first, features=features, pointers=pointers, sketches=sketches), times
