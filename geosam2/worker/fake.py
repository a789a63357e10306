"""A backend without a network: grows regions of similar colour; for tests of the rest.

It behaves like the real one where it matters to a client (windows on one lattice, frames visited
one by one, negative clicks, boxes, alternatives, open edges, checkpoints) and needs numpy only.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from geosam2.errors import InterruptedRunError, PromptError
from geosam2.worker.backend import Found, Seen, Step
from geosam2.worker.source import Bounds, Clicks, Reader, SceneInfo

FRAME = 512
TOLERANCE = 24  # largest difference per channel that still counts as the same colour
CACHED_FRAMES = 64

Mask = NDArray[np.bool_]


class Key(NamedTuple):
    """A frame of the fake: frames tile the lattice without overlap."""

    level: int
    row: int
    col: int


class FakeBackend:
    """Region growing behind the interface of `Backend`.

    Args:
        delay: Seconds that each frame takes longer, so that tests can interrupt.
        load_delay: Seconds that loading the model takes.
    """

    name = "fake"

    def __init__(self, delay: float = 0.0, load_delay: float = 0.0) -> None:
        self._delay, self._load_delay = delay, load_delay
        self._scene: SceneInfo | None = None
        self._read: Reader | None = None
        self._frames: OrderedDict[Key, tuple[NDArray[np.int16], Mask]] = OrderedDict()
        self._stack: list[FakeBackend] = []
        self._stack_frames = 0

    def describe(self) -> dict[str, Any]:
        return {"device": "cpu", "model": None}

    def load(self, model: str | None, device: str | None) -> dict[str, Any]:
        time.sleep(self._load_delay)
        return {"model": model or "fake", "device": "cpu", "frame_size": FRAME}

    def open(self, scene: SceneInfo, read: Reader, poll: Callable[[], None]) -> None:
        self._scene, self._read = scene, read
        self._frames.clear()

    @property
    def scene(self) -> SceneInfo:
        assert self._scene is not None  # the worker refuses jobs before `open`
        return self._scene

    def frame(self, key: Key) -> tuple[NDArray[np.int16], Mask]:
        """Colours (H, W, 3) and valid pixels of a frame, fetched once."""
        if key not in self._frames:
            assert self._read is not None
            bounds = self.scene.window(key.level, key.row * FRAME, key.col * FRAME, FRAME, FRAME)
            pixels, valid = self._read(self.scene, bounds, FRAME, FRAME, key.level)
            left, bottom, right, top = self.scene.bounds
            cell = self.scene.resolutions[key.level]
            x = bounds[0] + (np.arange(FRAME) + 0.5) * cell
            y = bounds[3] - (np.arange(FRAME) + 0.5) * cell
            inside = ((y > bottom) & (y < top))[:, None] & ((x > left) & (x < right))[None, :]
            self._frames[key] = (pixels.astype(np.int16), valid & inside)
            while len(self._frames) > CACHED_FRAMES:
                self._frames.popitem(last=False)
        return self._frames[key]

    def sketch(self, clicks: Clicks, level: int | None) -> Found | None:
        """The object without what differs a little in colour."""
        region = Region(self, clicks, level or 0, TOLERANCE // 3)
        region.visit(region.start)
        return region.found()

    def preview(self, clicks: Clicks, level: int | None) -> Iterator[Found]:
        chosen = self._level(clicks) if level is None else level
        for tolerance in (TOLERANCE, TOLERANCE // 3, TOLERANCE * 2):
            region = Region(self, clicks, chosen, tolerance)
            region.visit(region.start)
            yield region.found()

    def follow(self, clicks: Clicks, level: int | None, options: dict[str, Any]) -> FakeFollower:
        chosen = self._level(clicks) if level is None else level
        region = Region(self, clicks, chosen, TOLERANCE)
        return FakeFollower(region, int(options.get("max_frames", 50)), self._delay)

    def restore(self, path: Path) -> FakeFollower:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                state = json.loads(bytes(stored["state"]).decode())
                masks = {name: np.asarray(stored[name]) for name in state["masks"]}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise InterruptedRunError(f"{path.name} holds no paused run: {error}") from error
        region = Region(self, Clicks.from_message(state["clicks"]), state["level"], TOLERANCE)
        for name, packed in masks.items():
            row, col = map(int, name[1:].split("_"))
            bits = np.unpackbits(packed, count=FRAME * FRAME).astype(bool)
            region.masks[Key(region.level, row, col)] = bits.reshape(FRAME, FRAME)
        region.queue = deque(Key(*key) for key in state["queue"])
        return FakeFollower(region, state["max_frames"], self._delay, started=True)

    def everything(
        self, bounds: Bounds, level: int | None, options: dict[str, Any]
    ) -> Iterator[Step]:
        level = 0 if level is None else level
        top, left = self.scene.pixel(level, bounds[0], bounds[3])
        bottom, right = self.scene.pixel(level, bounds[2], bounds[1])
        keys = [
            Key(level, row, col)
            for row in range(top // FRAME, bottom // FRAME + 1)
            for col in range(left // FRAME, right // FRAME + 1)
        ]
        claimed: dict[Key, Mask] = {}
        for done, key in enumerate(keys, 1):
            time.sleep(self._delay)
            found = tuple(self._unclaimed(key, bounds, claimed))
            yield Step(done, len(keys) - done, found, self._bounds(key))

    def open_stack(
        self,
        scenes: Sequence[SceneInfo],
        dates: Sequence[str],
        read: Reader,
        poll: Callable[[], None],
        options: dict[str, Any],
    ) -> None:
        self._stack = [FakeBackend(self._delay) for _ in scenes]
        self._stack_frames = int(options.get("max_frames", 50))
        for backend, scene in zip(self._stack, scenes, strict=True):
            backend.open(scene, read, poll)

    def track(self, clicks: Clicks, start: int) -> Iterator[Seen]:
        """The region under the clicks at each date, while it has the colour that it began with."""
        colour = Region(self._stack[start], clicks, 0, TOLERANCE).colour()
        later, earlier = range(start + 1, len(self._stack)), range(start - 1, -1, -1)
        for number in (start, *later, *earlier):
            region = Region(self._stack[number], clicks, 0, TOLERANCE)
            try:
                same = (np.abs(region.colour() - colour) <= TOLERANCE).all()
            except PromptError:
                yield Seen(number, "no data")
                continue
            if not same:
                yield Seen(number, "absent")
                continue
            follower = FakeFollower(region, self._stack_frames, self._delay)
            for _ in follower:
                pass
            if number == start:
                yield Seen(number, "prompt", None, follower.found())
            else:
                yield Seen(number, "click", 1.0, follower.found())

    def _unclaimed(self, key: Key, bounds: Bounds, claimed: dict[Key, Mask]) -> Iterator[Found]:
        """Grow a region from each point of a 16 x 16 grid that no earlier region holds."""
        cell = self.scene.resolutions[key.level]
        area = (bounds[2] - bounds[0]) * (bounds[3] - bounds[1])
        x0, _, _, y0 = self._bounds(key)
        for row, col in np.ndindex(16, 16):
            r, c = row * 32 + 16, col * 32 + 16
            x, y = x0 + (c + 0.5) * cell, y0 - (r + 0.5) * cell
            if not (bounds[0] < x < bounds[2] and bounds[1] < y < bounds[3]):
                continue
            seen = claimed.get(key)
            if (seen is not None and seen[r, c]) or not self.frame(key)[1][r, c]:
                continue
            region = Region(self, Clicks(((x, y),), (1,), None), key.level, TOLERANCE, bounds)
            while region.queue:
                region.advance(region.queue[0])
            for other, mask in region.masks.items():
                claimed[other] = claimed.get(other, np.zeros_like(mask)) | mask
            if region.pixels() * cell**2 < area / 2:  # the background is no object
                yield region.found()

    def _bounds(self, key: Key) -> Bounds:
        return self.scene.window(key.level, key.row * FRAME, key.col * FRAME, FRAME, FRAME)

    def _level(self, clicks: Clicks) -> int:
        """The coarsest level where the object covers 2 % to 50 % of one frame; else the finest."""
        for level in reversed(range(len(self.scene.resolutions))):
            region = Region(self, clicks, level, TOLERANCE)
            region.visit(region.start)
            if 0.02 <= region.pixels() / FRAME**2 <= 0.5:
                return level
        return 0


class Region:
    """One object on the lattice: masks of the frames it reaches, and what is still to visit."""

    def __init__(
        self,
        backend: FakeBackend,
        clicks: Clicks,
        level: int,
        tolerance: int,
        bounds: Bounds | None = None,
    ) -> None:
        self.backend, self.clicks, self.level, self.tolerance = backend, clicks, level, tolerance
        self.bounds = bounds
        self.masks: dict[Key, Mask] = {}
        self.start = self._key(*self._seed())
        homes = [
            self._key(*p) for p, label in zip(clicks.points, clicks.labels, strict=True) if label
        ]
        self.queue: deque[Key] = deque(dict.fromkeys([self.start, *homes]))
        self._colour: NDArray[np.int16] | None = None
        self._candidates: dict[Key, Mask] = {}
        self._spreads: dict[Key, tuple[int, int, int]] = {}

    def _seed(self) -> tuple[float, float]:
        """Where growing starts: the first point to include, or the centre of the box."""
        for point, label in zip(self.clicks.points, self.clicks.labels, strict=True):
            if label:
                return point
        assert self.clicks.box is not None
        left, bottom, right, top = self.clicks.box
        return ((left + right) / 2, (bottom + top) / 2)

    def _pixel(self, x: float, y: float) -> tuple[Key, int, int]:
        row, col = self.backend.scene.pixel(self.level, x, y)
        return Key(self.level, row // FRAME, col // FRAME), row % FRAME, col % FRAME

    def _key(self, x: float, y: float) -> Key:
        return self._pixel(x, y)[0]

    def colour(self) -> NDArray[np.int16]:
        """The colour under the first click.

        Raises:
            PromptError: If there is no imagery.
        """
        if self._colour is None:
            x, y = self._seed()
            key, row, col = self._pixel(x, y)
            pixels, valid = self.backend.frame(key)
            if not valid[row, col]:
                raise PromptError(
                    f"point ({x:.10g}, {y:.10g}) has no imagery under it. Click where you see some."
                )
            self._colour = pixels[row, col]
        return self._colour

    def visit(self, key: Key) -> list[Key]:
        """Grow inside one frame; returns the neighbours that the object enters anew."""
        similar = self._similar(key)
        seeds = self._seeds(key) & similar
        mask = grow(seeds | (self.masks.get(key, seeds) & similar), similar)
        self.masks[key] = mask
        return [other for other in self._neighbours(key) if self._enters(other)]

    def advance(self, key: Key) -> None:
        """Visit a frame of the queue and queue what the object enters from it."""
        entered = self.visit(key)
        self.queue.remove(key)  # only now: a cancelled read must find the frame again
        self.queue.extend(k for k in entered if k not in self.queue)

    def _enters(self, key: Key) -> bool:
        """Would growing in this frame add pixels that come from a neighbour?"""
        border = self._from_neighbours(key)
        seen = self.masks.get(key)
        if seen is None:
            return bool(border.any())
        return bool((border & self._similar(key) & ~seen).any())

    def _similar(self, key: Key) -> Mask:
        """Pixels of the frame that the object may consist of."""
        if key not in self._candidates:
            pixels, valid = self.backend.frame(key)
            near = (np.abs(pixels - self.colour()) <= self.tolerance).all(axis=2)
            self._candidates[key] = valid & near & self._allowed(key)
        return self._candidates[key]

    def _allowed(self, key: Key) -> Mask:
        """Inside the box and the bounds, and nearer to an including than to an excluding click."""
        left, _, _, top = self.backend._bounds(key)
        cell = self.backend.scene.resolutions[self.level]
        if not (self.clicks.box or self.bounds or 0 in self.clicks.labels):
            return np.ones((FRAME, FRAME), bool)
        x = (left + (np.arange(FRAME) + 0.5) * cell)[None, :]
        y = (top - (np.arange(FRAME) + 0.5) * cell)[:, None]
        allowed = np.ones((FRAME, FRAME), bool)
        for area in (self.clicks.box, self.bounds):
            if area:
                allowed &= (x >= area[0]) & (x <= area[2]) & (y >= area[1]) & (y <= area[3])
        excluded = [
            p for p, label in zip(self.clicks.points, self.clicks.labels, strict=True) if not label
        ]
        if excluded:
            included = [p for p in self.clicks.points if p not in excluded] or [self._seed()]
            near = np.min([np.hypot(x - px, y - py) for px, py in included], axis=0)
            far = np.min([np.hypot(x - px, y - py) for px, py in excluded], axis=0)
            allowed &= near < far
        return allowed

    def _seeds(self, key: Key) -> Mask:
        seeds = self._from_neighbours(key)
        places = [
            p for p, label in zip(self.clicks.points, self.clicks.labels, strict=True) if label
        ]
        for x, y in [*places, self._seed()]:
            home, row, col = self._pixel(x, y)
            if home == key:
                seeds[row, col] = True
        return seeds

    def _from_neighbours(self, key: Key) -> Mask:
        """Border pixels of this frame that touch the object in the frame beside it."""
        seeds = np.zeros((FRAME, FRAME), bool)
        for (row, col), (here, there) in _SIDES.items():
            mask = self.masks.get(Key(key.level, key.row + row, key.col + col))
            if mask is not None:
                seeds[here] |= mask[there]
        return seeds

    def _neighbours(self, key: Key) -> list[Key]:
        """Frames beside this one that the object touches and that the scene holds."""
        mask, found = self.masks[key], []
        for (row, col), (here, _) in _SIDES.items():
            other = Key(key.level, key.row + row, key.col + col)
            if mask[here].any() and self._on_scene(other):
                found.append(other)
        return found

    def _on_scene(self, key: Key) -> bool:
        left, bottom, right, top = self.backend._bounds(key)
        a, b, c, d = self.bounds or self.backend.scene.bounds
        return left < c and right > a and bottom < d and top > b

    def pixels(self) -> int:
        """Number of pixels so far."""
        return sum(int(mask.sum()) for mask in self.masks.values())

    def open_edges(self) -> int:
        """Borders where the object goes on into a frame that was not visited."""
        return sum(other not in self.masks for key in self.masks for other in self._neighbours(key))

    def found(self) -> Found:
        """The object so far as a polygon with its figures."""
        scene = self.backend.scene
        cell, (x0, y0) = scene.resolutions[self.level], scene.anchor(self.level)
        rows = [key.row for key in self.masks] or [0]
        cols = [key.col for key in self.masks] or [0]
        top, left = min(rows), min(cols)
        canvas = np.zeros(((max(rows) - top + 1) * FRAME, (max(cols) - left + 1) * FRAME), bool)
        for key, mask in self.masks.items():
            row, col = (key.row - top) * FRAME, (key.col - left) * FRAME
            canvas[row : row + FRAME, col : col + FRAME] = mask
        corner = (x0 + left * FRAME * cell, y0 - top * FRAME * cell)
        polygons = trace(canvas)
        score, stability = self._figures()
        return Found(
            polygons_wkb(polygons, corner, cell),
            score,
            stability,
            self.open_edges(),
            len(self.masks),
            cell,
            {"level": self.level, "model": "fake"},
        )

    def _figures(self) -> tuple[float, float]:
        """(score, stability): colour spread, and how much a stricter tolerance takes away."""
        inside, spread, strict = np.sum([self._spread(key) for key in self.masks], axis=0)
        if not inside:
            return 0.0, 0.0
        return 1.0 - spread / inside / (2 * self.tolerance), strict / inside

    def _spread(self, key: Key) -> tuple[int, int, int]:
        """Pixels of one frame's mask, the sum of their distances in colour, and how many are near.

        Remembered until the mask grows; a fourth of the pixels is enough.
        """
        mask = self.masks[key]
        size = int(mask.sum())
        if self._spreads.get(key, (-1, 0, 0))[0] != size:
            chosen = mask[::2, ::2]
            difference = np.abs(self.backend.frame(key)[0][::2, ::2][chosen] - self.colour())
            distance = np.maximum.reduce(difference.T, initial=0)
            near = int((distance <= self.tolerance / 2).sum())
            scale = size / max(1, distance.size)
            self._spreads[key] = (size, int(scale * distance.sum()), int(scale * near))
        return self._spreads[key]


class FakeFollower:
    """Visits the frames that the object enters, first come first served."""

    def __init__(
        self, region: Region, max_frames: int, delay: float, started: bool = False
    ) -> None:
        self.region, self.max_frames, self._delay, self._started = (
            region,
            max_frames,
            delay,
            started,
        )

    def __iter__(self) -> Iterator[Step]:
        if self._started:
            yield self._step(None)
        while self._may_go_on():
            region = self.region  # a correction puts another one in its place
            key = region.queue[0]
            fresh = key not in region.masks
            if fresh:
                time.sleep(self._delay)
            region.advance(key)
            if fresh:
                yield self._step(key)

    def _may_go_on(self) -> bool:
        region = self.region
        if not region.queue:
            return False
        return len(region.masks) < self.max_frames or region.queue[0] in region.masks

    def correct(self, clicks: Clicks) -> Step:
        old = self.region
        points = (*old.clicks.points, *clicks.points)
        labels = (*old.clicks.labels, *clicks.labels)
        region = Region(
            old.backend, Clicks(points, labels, clicks.box or old.clicks.box), old.level,
            old.tolerance, old.bounds,
        )  # fmt: skip
        while known := [key for key in region.queue if key in old.masks]:
            region.advance(known[0])  # no new frames now: the answer must come at once
        self.region = region
        return self._step(None)

    def save(self, path: Path) -> None:
        region = self.region
        arrays = {f"m{k.row}_{k.col}": np.packbits(mask) for k, mask in region.masks.items()}
        clicks = region.clicks
        state = {
            "clicks": {"points": clicks.points, "labels": clicks.labels, "box": clicks.box},
            "level": region.level,
            "queue": list(region.queue),
            "max_frames": self.max_frames,
            "masks": list(arrays),
        }
        arrays["state"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
        partial = path.with_name(path.name + ".part")
        with partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        partial.replace(path)

    def _step(self, key: Key | None) -> Step:
        frame = self.region.backend._bounds(key) if key else None
        return Step(len(self.region.masks), len(self.region.queue), frame=frame)

    def found(self) -> Found:
        return self.region.found()


# neighbour (row, col) -> (border pixels here, the pixels there that touch them)
_SIDES: dict[tuple[int, int], tuple[Any, Any]] = {
    (-1, 0): (np.s_[0, :], np.s_[-1, :]),
    (1, 0): (np.s_[-1, :], np.s_[0, :]),
    (0, -1): (np.s_[:, 0], np.s_[:, -1]),
    (0, 1): (np.s_[:, -1], np.s_[:, 0]),
}


def grow(seeds: Mask, allowed: Mask) -> Mask:
    """All allowed pixels that are connected to a seed over edges.

    >>> allowed = np.array([[1, 1, 0, 1], [0, 1, 0, 1]], bool)
    >>> seeds = np.zeros_like(allowed); seeds[0, 0] = True
    >>> grow(seeds, allowed).astype(int)
    array([[1, 1, 0, 0],
           [0, 1, 0, 0]])
    """
    mask = seeds & allowed
    size = -1
    while size != (size := int(mask.sum())):
        mask = _fill_runs(mask, allowed)
        mask = _fill_runs(mask.T, allowed.T).T
    return mask


def _fill_runs(mask: Mask, allowed: Mask) -> Mask:
    """Fill each horizontal run of allowed pixels that holds a pixel of the mask."""
    starts = allowed.copy()
    starts[:, 1:] &= ~allowed[:, :-1]
    runs = np.cumsum(starts, axis=None).reshape(allowed.shape)
    hit = np.zeros(int(runs[-1, -1]) + 1, bool)
    hit[runs[mask & allowed]] = True
    filled: Mask = hit[runs] & allowed
    return filled


Ring = list[tuple[int, int]]


def trace(mask: Mask) -> list[list[Ring]]:
    """Outlines of a mask along pixel edges: per polygon the outer ring, then its holes.

    Rings are closed lists of (column, row) pixel corners. Diagonal touches are filled first, so
    that every polygon is valid.

    >>> trace(np.ones((1, 2), bool))
    [[[(0, 0), (2, 0), (2, 1), (0, 1), (0, 0)]]]
    """
    rings = [_corners(ring) for ring in _walk(_edges(_without_diagonals(mask)))]
    outer = [ring for ring in rings if _signed_area(ring) > 0]
    holes = [ring for ring in rings if _signed_area(ring) < 0]
    polygons = [[ring] for ring in outer]
    for hole in holes:
        around = [p for p in polygons if _encloses(p[0], hole)]
        min(around, key=lambda p: _signed_area(p[0])).append(hole)
    return polygons


def _without_diagonals(mask: Mask) -> Mask:
    mask = mask.copy()
    while True:
        a, b, c, d = mask[:-1, :-1], mask[:-1, 1:], mask[1:, :-1], mask[1:, 1:]
        falling, rising = a & d & ~b & ~c, b & c & ~a & ~d
        if not falling.any() and not rising.any():
            return mask
        b[falling] = True
        a[rising] = True


_MOVES = ((1, 0), (0, 1), (-1, 0), (0, -1))  # east, south, west, north as (column, row)


def _edges(mask: Mask) -> dict[tuple[int, int], int]:
    """Directed pixel edges with the object to their right: corner -> direction out of it.

    Without diagonal touches each corner has one edge out.
    """
    padded = np.pad(mask, 1)
    core = padded[1:-1, 1:-1]
    edges: dict[tuple[int, int], int] = {}
    sides = (
        (core & ~padded[:-2, 1:-1], 0, (0, 0)),
        (core & ~padded[1:-1, 2:], 1, (0, 1)),
        (core & ~padded[2:, 1:-1], 2, (1, 1)),
        (core & ~padded[1:-1, :-2], 3, (1, 0)),
    )
    for side, direction, (row_shift, col_shift) in sides:
        rows, cols = np.nonzero(side)
        corners = zip((cols + col_shift).tolist(), (rows + row_shift).tolist(), strict=True)
        edges.update(dict.fromkeys(corners, direction))
    return edges


def _walk(edges: dict[tuple[int, int], int]) -> Iterator[list[tuple[tuple[int, int], int]]]:
    """Follow the edges round; yields rings of (corner, direction out of it)."""
    while edges:
        start = corner = next(iter(edges))
        ring = []
        while corner in edges:
            direction = edges.pop(corner)
            ring.append((corner, direction))
            corner = (corner[0] + _MOVES[direction][0], corner[1] + _MOVES[direction][1])
        assert corner == start
        yield ring


def _corners(ring: list[tuple[tuple[int, int], int]]) -> Ring:
    """Only the corners where the ring turns, closed."""
    turns = [c for (c, d), (_, before) in zip(ring, [ring[-1], *ring], strict=False) if d != before]
    return [*turns, turns[0]]


def _signed_area(ring: Ring) -> float:
    """Positive for outer rings (rows grow downwards)."""
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in itertools.pairwise(ring)) / 2


def _encloses(outer: Ring, hole: Ring) -> bool:
    """Even-odd rule for the centre of the pixel just inside the hole's topmost-left corner."""
    col, row = min(hole, key=lambda p: (p[1], p[0]))
    x, y = col + 0.5, row + 0.5
    crossings = sum((a[1] <= y) != (b[1] <= y) and a[0] > x for a, b in itertools.pairwise(outer))
    return crossings % 2 == 1


def polygons_wkb(polygons: list[list[Ring]], corner: tuple[float, float], cell: float) -> bytes:
    """Pixel corners as a little-endian WKB MultiPolygon in map coordinates; b"" for none."""
    if not polygons:
        return b""
    parts = [struct.pack("<BII", 1, 6, len(polygons))]
    for rings in polygons:
        parts.append(struct.pack("<BII", 1, 3, len(rings)))
        for ring in rings:
            parts.append(struct.pack("<I", len(ring)))
            # map y grows upwards: turning the ring round keeps outer rings anticlockwise
            places = ((corner[0] + c * cell, corner[1] - r * cell) for c, r in reversed(ring))
            parts.extend(struct.pack("<dd", x, y) for x, y in places)
    return b"".join(parts)


def wkb_area(wkb: bytes) -> float:
    """Planar area of a polygon written by `polygons_wkb`, in squared map units.

    >>> wkb_area(polygons_wkb(trace(np.ones((2, 3), bool)), (10.0, 20.0), 2.0))
    24.0
    """
    if not wkb:
        return 0.0
    (count,), place, area = struct.unpack_from("<I", wkb, 5), 9, 0.0
    for _ in range(count):
        (rings,), place = struct.unpack_from("<I", wkb, place + 5), place + 9
        for _ in range(rings):
            (points,), place = struct.unpack_from("<I", wkb, place), place + 4
            xy = np.frombuffer(wkb, "<f8", 2 * points, place).reshape(-1, 2)
            xy = xy - xy[0]
            area += float(np.sum(xy[:-1, 0] * xy[1:, 1] - xy[1:, 0] * xy[:-1, 1])) / 2
            place += 16 * points
    return math.fabs(area)
