"""Zoom: how large a click is shown to the network when nobody says how large the object is.

The network answers best when an object is some 35 pixels across; a ship of ten pixels must be
enlarged for it, a stadium shrunk. So a click is looked at through windows of one size at every step
of a ladder that begins *finer* than the source. A mask that comes back at several zooms is probably
an object, one that only a single zoom believes in probably is not: each mask is scored by how far
the others, weighted by their predicted IoU, agree with it. `benchmarks/zoom.py` measures what each
part of the score is worth and fits its weights anew for other network weights.

Windows start on lattice cells, so answers do not depend on the extent that was opened.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from geosam2 import regions
from geosam2.levels import Level, Window
from geosam2.prompts import MASK_STEP, Prompt

if TYPE_CHECKING:
    from geosam2.scene import Scene

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

MOST_LEVELS = 5
"""Levels of the scene that are looked at: the finest and up to 16 times coarser."""
SHARE = 2
"""A window's side is the network's frame size divided by this: cheaper, and as good."""
SNAP = 4
"""Windows start on multiples of a window's side divided by this, so that near clicks share them."""
NARROW = 16.0
"""Objects are followed through enlarged pixels until they are so many of these wide."""
NEAR = 1
"""A further click is looked at so many zooms finer and coarser than the answer before it."""
FITS = (0.06, 0.5)
"""Share of a window's side that a prompted box or mask should take."""
CUT = 0.5
"""A mask with more of its outline on the window's edge is not seen whole."""
WEIGHTS = {"agreement": 0.409, "predicted_iou": 0.187, "stability": 0.182, "edge": -0.222}
"""What counts for a mask, fitted by `benchmarks/zoom.py`; see `scores`."""


class Look(Protocol):
    """A mask as seen at one zoom."""

    @property
    def level(self) -> Level:
        """Resolution."""

    @property
    def window(self) -> Window:
        """Place on the level's lattice."""

    @property
    def logits(self) -> FloatArray:
        """(h, w), `MASK_STEP` pixels a cell, > 0 = the object."""

    @property
    def predicted_iou(self) -> float:
        """The network's guess, 0..1."""

    @property
    def stability(self) -> float:
        """IoU of the masks at logit +1 and -1."""


# -- the ladder


def ladder(scene: Scene) -> list[Level]:
    """Zooms at which a click is looked at, finest first: enlarged, native, and coarser ones."""
    return [*scene.enlarged_levels, *scene.levels[:MOST_LEVELS]]


# -- what is looked at


def windows(
    scene: Scene, prompt: Prompt, side: int, before: Level | None = None
) -> list[tuple[Level, Window]]:
    """Every look at a prompt that may show its object whole, finest first.

    Args:
        scene: What is clicked on.
        prompt: In the scene's CRS.
        side: Pixels along a window's side.
        before: Zoom of the answer that the last click corrects: only those near to it are tried.
    """
    x, y = centre(prompt)
    found = []
    for level in ladder(scene):
        if level.index > 0 and max(level.extent[2:]) < side / 2:  # a stamp in an empty window
            continue
        window = window_around(level, x, y, side)
        if fits(prompt, level, window):
            found.append((level, window))
    near = [] if before is None else [one for one in found if _near(one[0], before)]
    return near or found


def followed_at(scene: Scene, look: Look) -> Level:
    """Level at which an object is followed that goes on beyond its window.

    Not finer than the source, but for narrow things, which the network would lose there.
    """
    level = look.level
    width = widest(look.logits > 0) * MASK_STEP
    while level.index < 0 and width / 2 >= NARROW:
        level, width = scene.level(level.index + 1), width / 2
    return level


def widest(mask: BoolArray) -> float:
    """Cells across a mask where it is widest.

    >>> widest(np.pad(np.ones((3, 40), bool), 9))
    3.0
    """
    return 2 * float(regions.depth(mask).max()) - 1


def _near(level: Level, other: Level) -> bool:
    return abs(level.index - other.index) <= NEAR


def centre(prompt: Prompt) -> tuple[float, float]:
    """(x, y) of the middle of a prompted box or mask, else of the first foreground click."""
    if prompt.box is None and prompt.mask is None:
        return prompt.anchor
    left, bottom, right, top = _extent(prompt)
    return (left + right) / 2, (bottom + top) / 2


def window_around(level: Level, x: float, y: float, side: int) -> Window:
    """A square window with a point in its middle half, on lattice cells.

    >>> level = Level.at_corner(0.0, 0.0, (1.0, 1.0), (512, 512), crs=None)
    >>> window_around(level, 300.0, -70.0, 256)
    Window(row=-64, col=192, height=256, width=256)
    """
    step = side // SNAP
    row, col = level.pixel_at(x, y)
    top, left = (math.floor((place - side / 2) / step + 0.5) * step for place in (row, col))
    return Window(top, left, side, side)


def fits(prompt: Prompt, level: Level, window: Window) -> bool:
    """True if a window shows all foreground clicks, and a box or mask at a good size."""
    left, bottom, right, top = level.bounds_of(window)
    clicks = (p for p, label in zip(prompt.points, prompt.labels, strict=True) if label == 1)
    if not all(left < x < right and bottom < y < top for x, y in clicks):
        return False
    if prompt.box is None and prompt.mask is None:
        return True
    west, south, east, north = _extent(prompt)
    share = max((east - west) / (right - left), (north - south) / (top - bottom))
    return FITS[0] <= share <= FITS[1]


def _extent(prompt: Prompt) -> tuple[float, float, float, float]:
    if prompt.box is not None:
        return prompt.box
    assert prompt.mask is not None
    left, bottom, right, top = prompt.mask.bounds
    return left, bottom, right, top


# -- which look is believed


def scores(looks: Sequence[Look], shared: FloatArray | None = None) -> FloatArray:
    """How far each mask of one object is to be believed, (n,).

    The parts, weighted by `WEIGHTS`: agreement with the other masks, predicted IoU, stability, and
    the share of the outline that lies on the window's edge. A mask that is mostly cut by its window
    scores below all others, the coarsest first: there the object is most nearly whole. An empty
    mask scores -2. `shared`: what `agreements` gave, if it is known.
    """
    table = features(looks, shared)
    found = sum(WEIGHTS[name] * table[name] for name in WEIGHTS)
    found = np.where(table["edge"] > CUT, [look.level.index / 100 - 1 for look in looks], found)
    empty = np.array([not (look.logits > 0).any() for look in looks])
    return np.where(empty, -2.0, found).astype(np.float32)


def features(looks: Sequence[Look], shared: FloatArray | None = None) -> dict[str, FloatArray]:
    """The parts of the score, each (n,)."""
    trust = np.array([max(look.predicted_iou, 0.01) for look in looks])
    shared = agreements(looks) if shared is None else shared
    return {
        "agreement": (shared @ trust / trust.sum()).astype(np.float32),
        "predicted_iou": trust.astype(np.float32),
        "stability": np.array([look.stability for look in looks], np.float32),
        "edge": np.array([on_edge(look.logits > 0) for look in looks], np.float32),
    }


def on_edge(mask: BoolArray) -> float:
    """About the share of a mask's outline that lies on its window's edge, 0..1.

    >>> on_edge(np.pad(np.ones((4, 4), bool), 2)), on_edge(np.ones((4, 4), bool))
    (0.0, 1.0)
    """
    edge = mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum()
    return float(min(edge / max(4 * math.sqrt(mask.sum()), 1.0), 1.0))


def agreements(looks: Sequence[Look]) -> FloatArray:
    """IoU of each two masks on the ground, (n, n), 0 of a mask with itself.

    Cells of the coarser one are looked up under the middles of the finer one's cells. All masks of
    one window are compared with all of another at once.
    """
    members: dict[tuple[Level, Window], list[int]] = defaultdict(list)
    for number, look in enumerate(looks):
        members[look.level, look.window].append(number)
    places = sorted(members, key=lambda place: place[0].cell_size)
    masks = {p: np.stack([looks[n].logits > 0 for n in members[p]]) for p in places}
    areas, both = np.zeros(len(looks)), np.zeros((len(looks), len(looks)))
    for number, fine in enumerate(places):
        ours, cell = members[fine], fine[0].cell_size ** 2
        own = masks[fine].reshape(len(ours), -1).astype(np.float32)
        areas[ours] = own.sum(1) * cell
        for coarse in places[number:]:
            under = _sampled(masks[coarse], coarse, fine).reshape(len(masks[coarse]), -1)
            shared = own @ under.T.astype(np.float32) * cell
            both[np.ix_(ours, members[coarse])] = shared
            both[np.ix_(members[coarse], ours)] = shared.T
    table = both / np.maximum(areas[:, None] + areas - both, 1e-9)
    np.fill_diagonal(table, 0)
    return table.astype(np.float32)


def distinct(looks: Sequence[Look], count: int = 3, alike: float = 0.8) -> list[int]:
    """Numbers of up to `count` masks, best score first, no two of which are `alike` (IoU)."""
    shared = agreements(looks)
    score = scores(looks, shared)
    found: list[int] = []
    for n in np.argsort(-score, kind="stable").tolist():
        new = all(shared[n, other] < alike for other in found)
        if new and len(found) < count and (score[n] > -1.5 or not found):
            found.append(n)
    return found


def carried(look: Look, level: Level, window: Window) -> FloatArray:
    """The logits of one look on the cells of another window, 0 (unknown) where it did not look."""
    import torch
    from torch.nn import functional as F

    source, target = (look.level, look.window), (level, window)
    rows, cols = (_places(source, target, axis) for axis in (0, 1))
    height, width = look.logits.shape
    grid = np.stack(np.broadcast_arrays(cols[None] / width, rows[:, None] / height), -1) * 2 - 1
    logits = torch.from_numpy(np.ascontiguousarray(look.logits, np.float32))[None, None]
    step = round(level.cell_size / look.level.cell_size)
    if step > 1:  # towards coarser cells: average first
        logits = F.avg_pool2d(logits, 2 * (step // 2) + 1, 1, step // 2, count_include_pad=False)
    where = torch.from_numpy(grid.astype(np.float32))[None]
    moved = F.grid_sample(logits, where, padding_mode="border", align_corners=False)[0, 0].numpy()
    seen = (np.abs(grid) < 1).all(-1)
    return np.where(seen, moved, 0).astype(np.float32)


def _sampled(
    masks: BoolArray, source: tuple[Level, Window], target: tuple[Level, Window]
) -> BoolArray:
    """Masks (n, h, w) of one window under the middles of another's cells; False outside."""
    height, width = masks.shape[1:]
    rows, cols = (np.floor(_places(source, target, axis)).astype(int) for axis in (0, 1))
    inside = ((rows >= 0) & (rows < height))[:, None] & ((cols >= 0) & (cols < width))[None]
    found = masks[:, np.clip(rows, 0, height - 1)][:, :, np.clip(cols, 0, width - 1)]
    return np.asarray(found & inside)


def _places(
    source: tuple[Level, Window], target: tuple[Level, Window], axis: int
) -> NDArray[np.float64]:
    """Where the middles of a window's cells lie in another's cells, along one axis (0 = y)."""
    (there, origin), (here, window) = source, target
    size = 1 - axis  # resolution and anchor are x, y
    sign = -1 if axis == 0 else 1
    pixels = window[axis] + (np.arange(window[axis + 2] // MASK_STEP) + 0.5) * MASK_STEP
    on_map = sign * here.anchor[size] + pixels * here.resolution[size]
    lattice = (on_map - sign * there.anchor[size]) / there.resolution[size]
    return np.asarray((lattice - origin[axis]) / MASK_STEP)
