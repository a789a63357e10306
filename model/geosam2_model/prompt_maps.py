"""Prompt maps: what clicks, box and mask of N objects say about each cell of an image.

A map is a tensor (N or 1, H, W) in cells of 4 pixels, or a plain number where nothing was said
that could differ from cell to cell: without a background click, nothing is near one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from geosam2_model.ops import decay, rows_for
from geosam2_model.prompt_encoder import BACKGROUND, FOREGROUND, Prompts

Map = Tensor | float

FAR = 1e4
"""Distance of cells that no seed reaches; large, and exact in float32."""
DISC = 1.5
"""Radius of a click's disc in cells of 4 pixels."""
SURE = 1.0
"""Logits beyond this in a mask prompt count as known; 0 says nothing."""
UNLIKE = 4.0
"""Largest distance of colours, in spreads of the image; also that to a colour nobody clicked."""


class Clicks(NamedTuple):
    """Points of one polarity: places in cells (N, P, 2), x then y, and which are real (N, P)."""

    places: Tensor
    real: Tensor

    @property
    def said(self) -> bool:
        """Whether any object has such a point."""
        return self.real.shape[1] > 0


class Palette(NamedTuple):
    """Colours of B images in units of their spread, so that haze and stretches matter little."""

    colours: Tensor
    """(B, 3, H, W)."""
    smooth: Tensor
    """(B, 3, H, W), the mean of 3 x 3 cells."""


class Steps(NamedTuple):
    """Running sums of the costs of stepping from cell to cell, (B, H, W) each."""

    across: Tensor
    """From the left border."""
    down: Tensor
    """From the upper border."""


def split_clicks(prompts: Prompts) -> tuple[Clicks, Clicks]:
    """Foreground and background points in cells of 4 pixels; a box counts as its centre."""
    N, device = len(prompts), _device(prompts)
    places, labels = torch.zeros(N, 0, 2, device=device), torch.zeros(N, 0, device=device)
    if prompts.points is not None and prompts.labels is not None:
        places, labels = prompts.points.float(), prompts.labels
    if prompts.boxes is not None:
        centre = prompts.boxes.float().reshape(N, 2, 2).mean(1, keepdim=True)
        places = torch.cat([places, centre], dim=1)
        labels = torch.cat([labels, labels.new_full((N, 1), FOREGROUND)], dim=1)
    places = (places - 1.5) / 4  # the centre of cell 0 is pixel 1.5
    return _of_kind(places, labels == FOREGROUND), _of_kind(places, labels == BACKGROUND)


def _of_kind(places: Tensor, real: Tensor) -> Clicks:
    """Without the columns that hold no point of this kind for any object."""
    columns = real.any(0)
    return Clicks(places[:, columns], real[:, columns])


def _device(prompts: Prompts) -> torch.device:
    given = (prompts.points, prompts.boxes, prompts.masks)
    return next((x.device for x in given if x is not None), torch.device("cpu"))


def distance_to(clicks: Clicks, height: int, width: int) -> Tensor:
    """Cells to the nearest click, (N, height, width); `FAR` for objects without one."""
    device = clicks.places.device
    x, y = clicks.places[..., :1], clicks.places[..., 1:]  # N, P, 1
    dx = (torch.arange(width, device=device) - x).square()[:, :, None, :]
    dy = (torch.arange(height, device=device) - y).square()[:, :, :, None]
    dy = dy.masked_fill(~clicks.real[..., None, None], FAR**2)
    return (dx + dy).amin(1).clamp(max=FAR**2).sqrt()


def near_maps(distance: Tensor | None) -> tuple[Map, Map, Map]:
    """A disc at each click and two decays with distance, 4 and 16 cells long; 0..1."""
    if distance is None:
        return 0.0, 0.0, 0.0
    slow = decay(distance / 16)
    return (DISC + 0.5 - distance).clamp(0, 1), slow.square().square(), slow


def at_clicks(maps: Tensor, clicks: Clicks, scale: float, index: Tensor | None) -> Tensor:
    """Values of (B, C, h, w) under each click: (N, P, C), by linear interpolation.

    Args:
        maps: Maps whose cells are `scale` times as large as the clicks' own.
        clicks: Of N objects; those beyond the border count as on it.
        scale: 1, 2 or 4.
        index: Image of each object; None if there is but one, or one each.
    """
    h, w = maps.shape[-2:]
    last = clicks.places.new_tensor([w - 1, h - 1])
    xy = ((clicks.places + 0.5) / scale - 0.5).clamp(min=0).minimum(last)
    low = xy.floor()
    share, high = xy - low, (low + 1).minimum(last)
    (x0, y0), (x1, y1) = low.long().unbind(2), high.long().unbind(2)
    own = torch.arange(len(maps), device=maps.device) if index is None else index
    y, x = torch.stack([y0, y0, y1, y1], dim=2), torch.stack([x0, x1, x0, x1], dim=2)
    corners = maps.permute(0, 2, 3, 1)[own[:, None, None], y, x]  # N, P, 4, C
    u, v = share.to(maps.dtype).unbind(2)
    weights = torch.stack([(1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u], dim=2)
    return (corners * weights[..., None]).sum(2)


def palette(pixels: Tensor) -> Palette:
    """What colours are compared with, of normalised pixels (B, 3, H, W)."""
    spread = pixels.float().std((2, 3), keepdim=True).mean(1, keepdim=True) + 1e-2
    colours = pixels.float() / spread
    return Palette(colours, F.avg_pool2d(colours, 3, 1, 1, count_include_pad=False))


def colour_distance(image: Palette, clicks: Clicks, index: Tensor | None) -> Map:
    """Smallest distance of each cell's colour to that of a click, squashed to 0..1."""
    if not clicks.said:
        return math.tanh(UNLIKE / 2)
    wanted = at_clicks(image.smooth, clicks, 1.0, index)[..., None, None]  # N, P, 3, 1, 1
    own = rows_for(image.colours, index)[:, None]  # N or 1, 1, 3, H, W
    squared = (own - wanted).square_().sum(2)
    squared = squared.masked_fill_(~clicks.real[..., None, None], UNLIKE**2).amin(1)
    return squared.clamp_(max=UNLIKE**2).sqrt_().div_(2).tanh_()


def likeness(maps: Tensor, wanted: Tensor, real: Tensor, index: Tensor | None) -> Tensor:
    """Largest cosine between each cell's features and those under the clicks, (N, h, w).

    Args:
        maps: (B, C, h, w) of length 1 along C.
        wanted: (N, P, C) features to compare with.
        real: (N, P) which of them count; -1 is returned where none does.
        index: Image of each object, or None.
    """
    wanted = F.normalize(wanted, dim=2)
    flat = rows_for(maps, index).flatten(2)  # N or 1, C, h w
    cosine = (wanted @ flat).reshape(*wanted.shape[:2], *maps.shape[-2:])
    return torch.where(real[..., None, None], cosine, -1.0).amax(1)


def mask_maps(prompts: Prompts) -> tuple[Map, Map]:
    """What a mask prompt says, -1..1, and where it says anything, 0 or 1."""
    if prompts.masks is None:
        return 0.0, 0.0
    logits = prompts.masks[:, 0].float()
    return torch.tanh(logits / 2), (logits != 0).float()


def box_maps(prompts: Prompts, height: int, width: int) -> tuple[Map, Map, Map]:
    """Inside the box, how close its outline is, and whether there is a box; 0..1."""
    if prompts.boxes is None:
        return 0.0, 0.0, 0.0
    left, top, right, bottom = ((prompts.boxes.float() - 1.5) / 4).T[..., None, None]
    x = torch.arange(width, device=left.device)[None, None]
    y = torch.arange(height, device=left.device)[None, :, None]
    depth = torch.minimum(
        torch.minimum(x - left, right - x), torch.minimum(y - top, bottom - y)
    )  # > 0 inside, in cells
    return (depth + 0.5).clamp(0, 1), decay(depth.abs() / 2), 1.0


def edge_steps(pixels: Tensor) -> Steps:
    """Cost of stepping from cell to cell: the change of colour against what is usual on the image.

    Args:
        pixels: (B, 3, H, W).

    Returns:
        Running sums of steps that cost about 1 on average.
    """
    x = pixels.float()
    dx = F.pad((x[..., 1:] - x[..., :-1]).square().sum(1).sqrt(), (1, 0))
    dy = F.pad((x[..., 1:, :] - x[..., :-1, :]).square().sum(1).sqrt(), (0, 0, 1, 0))
    usual = (dx.mean((1, 2), keepdim=True) + dy.mean((1, 2), keepdim=True)) / 2 + 1e-3
    return Steps((0.1 + dx / usual).cumsum(2), (0.1 + dy / usual).cumsum(1))


def geodesic(seeds: Tensor, steps: Steps, rounds: int = 3) -> Tensor:
    """Length of the cheapest 4-connected path from each cell to the nearest seed.

    A path along a row costs the difference of the row's running sum of steps, so one sweep is a
    running minimum and not a loop over cells; `rounds` of four sweeps follow paths with that many
    turns, which is enough for most shapes.

    Args:
        seeds: (..., N, H, W) bool.
        steps: Of N images or of one.
        rounds: Repetitions of the four sweeps.

    Returns:
        (..., N, H, W) float32; `FAR` where there is no seed at all.

    >>> steps = torch.ones(1, 2, 4)
    >>> seeds = torch.tensor([[[1, 0, 0, 0], [0, 0, 0, 0]]]).bool()
    >>> geodesic(seeds, Steps(steps.cumsum(2), steps.cumsum(1)))
    tensor([[[0., 1., 2., 3.],
             [1., 2., 3., 4.]]])
    """
    distance = torch.where(seeds, 0.0, FAR)
    sweeps = ((-1, steps.across, 2 * steps.across), (-2, steps.down, 2 * steps.down))
    for _ in range(rounds):
        for dim, cost, twice in sweeps:
            forth = _running_minimum(distance - cost, dim).add_(twice)
            back = _running_minimum_back(forth, dim).sub_(cost)
            distance = torch.minimum(distance, back)
    return distance.clamp_(0.0, FAR)


def _running_minimum(x: Tensor, dim: int) -> Tensor:
    return torch.cummin(x, dim).values


def _running_minimum_back(x: Tensor, dim: int) -> Tensor:
    return _running_minimum(x.flip(dim), dim).flip(dim)


def reach_maps(seeds: tuple[Tensor | None, ...], steps: Steps) -> list[Map]:
    """How easily a cell is reached from seeds, and from which of a pair of kinds more easily.

    Args:
        seeds: Pairs of kinds, what is inside and what is outside; (N, H, W) bool each.
        steps: Of N images or of one.

    Returns:
        Two decays of each kind's distance, then a balance of each pair, -1..1.
    """
    known = [x for x in seeds if x is not None]
    found = iter(geodesic(torch.stack(known), steps) if known else ())
    far = [None if x is None else next(found) for x in seeds]
    decays = [_decay(d, tau) for d in far for tau in (3.0, 15.0)]
    return [*decays, *(_balance(b, f) for f, b in zip(far[::2], far[1::2], strict=True))]


def _decay(distance: Tensor | None, length: float) -> Map:
    return 0.0 if distance is None else decay(distance / length)


def _balance(outside: Tensor | None, inside: Tensor | None) -> Map:
    """tanh of the difference; next to kinds that nobody named it is 1 to the last bit."""
    if outside is None:
        return 0.0 if inside is None else _against_nothing(inside)
    if inside is None:
        against = _against_nothing(outside)
        return -against
    return torch.tanh((outside - inside) / 6)


def _against_nothing(distance: Tensor) -> Map:
    return 1.0 if float(distance.amax()) < FAR - 100 else torch.tanh((FAR - distance) / 6)
