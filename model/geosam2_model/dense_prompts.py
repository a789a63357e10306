"""Dense prompt maps: what a click means on *this* image, as maps beside SAM's prompt tokens.

A token says where a click is; a network with little training cannot learn from it what belongs
together. These maps say it outright, per object: how far each cell is from the clicks, in pixels,
in colour, in learned features, and along the cheapest path that crosses no edge (a geodesic
distance, as in https://doi.org/10.1007/s11263-008-0191-z); where the box and the known part of the
mask are. A small U-shaped stack of convolutions turns them, with the image's own features, into
three maps that are added to the mask decoder: to the image embedding and to both skips.

The clicks enter as discs with the earlier mask beside them, as in RITM
(https://arxiv.org/abs/2102.06583).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geosam2_model.config import ModelConfig
from geosam2_model.ops import LayerNorm2d, rows_for
from geosam2_model.prompt_encoder import BACKGROUND, FOREGROUND, Prompts

if TYPE_CHECKING:
    from geosam2_model.sam2 import ImageFeatures

FAR = 1e4
"""Distance of cells that no seed reaches; large, and exact in float32."""
DISC = 1.5
"""Radius of a click's disc in cells of 4 pixels."""
SURE = 1.0
"""Logits beyond this in a mask prompt count as known; 0 says nothing."""
MAP_COUNT = 29
"""Near 6, colour 2, geodesic 10, box 3, mask 2, likeness 6."""


class Clicks(NamedTuple):
    """Points of one polarity: places in cells (N, P, 2), x then y, and which are real (N, P)."""

    places: Tensor
    real: Tensor


def geodesic(seeds: Tensor, steps_x: Tensor, steps_y: Tensor, rounds: int = 3) -> Tensor:
    """Length of the cheapest 4-connected path from each cell to the nearest seed.

    A path along a row costs the difference of the row's running sum of steps, so one sweep is a
    running minimum and not a loop over cells; `rounds` of four sweeps follow paths with that many
    turns, which is enough for most shapes.

    Args:
        seeds: (N, H, W) bool.
        steps_x: (N or 1, H, W) cost > 0 of the step from the left neighbour; column 0 is unused.
        steps_y: (N or 1, H, W) cost > 0 of the step from the upper neighbour.
        rounds: Repetitions of the four sweeps.

    Returns:
        (N, H, W) float32; `FAR` where there is no seed at all.

    >>> steps = torch.ones(1, 2, 4)
    >>> geodesic(torch.tensor([[[1, 0, 0, 0], [0, 0, 0, 0]]]).bool(), steps, steps)
    tensor([[[0., 1., 2., 3.],
             [1., 2., 3., 4.]]])
    """
    distance = torch.where(seeds, 0.0, FAR)
    along_x, along_y = steps_x.float().cumsum(2), steps_y.float().cumsum(1)
    for _ in range(rounds):
        for cost, dim in ((along_x, 2), (along_y, 1)):
            distance = torch.minimum(distance, cost + torch.cummin(distance - cost, dim).values)
            back = torch.cummin((distance + cost).flip(dim), dim).values.flip(dim)
            distance = torch.minimum(distance, back - cost)
    return distance.clamp(0.0, FAR)


def edge_steps(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Cost of stepping from cell to cell: the change of colour against what is usual on the image.

    Args:
        pixels: (B, 3, H, W).

    Returns:
        Two maps (B, H, W), towards the left and the upper neighbour; about 1 on average.
    """
    x = pixels.float()
    dx = F.pad((x[..., 1:] - x[..., :-1]).square().sum(1).sqrt(), (1, 0))
    dy = F.pad((x[..., 1:, :] - x[..., :-1, :]).square().sum(1).sqrt(), (0, 0, 1, 0))
    usual = (dx.mean((1, 2), keepdim=True) + dy.mean((1, 2), keepdim=True)) / 2 + 1e-3
    return 0.1 + dx / usual, 0.1 + dy / usual


def split_clicks(prompts: Prompts) -> tuple[Clicks, Clicks]:
    """Foreground and background points in cells of 4 pixels; a box counts as its centre."""
    N, device = len(prompts), _device(prompts)
    places, labels = torch.zeros(N, 1, 2, device=device), torch.full((N, 1), -1, device=device)
    if prompts.points is not None and prompts.labels is not None:
        places = torch.cat([places, prompts.points.float()], dim=1)
        labels = torch.cat([labels, prompts.labels.to(labels)], dim=1)
    if prompts.boxes is not None:
        centre = prompts.boxes.float().reshape(N, 2, 2).mean(1, keepdim=True)
        places = torch.cat([places, centre], dim=1)
        labels = torch.cat([labels, labels.new_full((N, 1), FOREGROUND)], dim=1)
    places = (places - 1.5) / 4  # the centre of cell 0 is pixel 1.5
    return Clicks(places, labels == FOREGROUND), Clicks(places, labels == BACKGROUND)


def _device(prompts: Prompts) -> torch.device:
    given = (prompts.points, prompts.boxes, prompts.masks)
    return next((x.device for x in given if x is not None), torch.device("cpu"))


def distance_to(clicks: Clicks, height: int, width: int) -> Tensor:
    """Cells to the nearest click, (N, height, width); `FAR` without one."""
    device = clicks.places.device
    x, y = clicks.places[..., :1], clicks.places[..., 1:]  # N, P, 1
    dx = (torch.arange(width, device=device) - x).square()[:, :, None, :]
    dy = (torch.arange(height, device=device) - y).square()[:, :, :, None]
    squared = torch.where(clicks.real[..., None, None], dx + dy, FAR**2)
    return squared.amin(1).sqrt()


def at_clicks(maps: Tensor, clicks: Clicks, scale: float, index: Tensor | None) -> Tensor:
    """Values of (B, C, h, w) under each click: (N, P, C), by linear interpolation.

    Args:
        maps: Maps whose cells are `scale` times as large as the clicks' own.
        clicks: Of N objects.
        scale: 1, 2 or 4.
        index: Image of each object, or None if there is but one.
    """
    h, w = maps.shape[-2:]
    xy = (clicks.places + 0.5) / scale  # cell corners
    grid = xy / xy.new_tensor([w, h]) * 2 - 1
    grid = grid.to(maps.dtype)
    if index is None:
        flat = F.grid_sample(maps, grid.reshape(1, 1, -1, 2), padding_mode="border",
                             align_corners=False)  # fmt: skip
        return flat[0, :, 0].T.reshape(*clicks.real.shape, -1)
    rows = F.grid_sample(maps[index], grid[:, None], padding_mode="border", align_corners=False)
    return rows[:, :, 0].transpose(1, 2)


def colour_distance(pixels: Tensor, clicks: Clicks, index: Tensor | None) -> Tensor:
    """Smallest distance of each cell's colour to that of a click, (N, H, W), 0..1.

    In units of the image's own spread, squashed, so that haze and stretches matter little.
    """
    spread = pixels.float().std((2, 3), keepdim=True).mean(1, keepdim=True) + 1e-2
    pixels = pixels.float() / spread
    smooth = F.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False)
    wanted = at_clicks(smooth, clicks, 1.0, index)[..., None, None]  # N, P, 3, 1, 1
    own = rows_for(pixels, index)[:, None]  # N or 1, 1, 3, H, W
    squared = (own - wanted).square().sum(2)
    squared = torch.where(clicks.real[..., None, None], squared, 16.0)
    return torch.tanh(squared.amin(1).sqrt() / 2)


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


class Residual(nn.Module):
    """Two 3 x 3 convolutions added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.second(F.relu(self.first(F.relu(x)))))


class DensePrompts(nn.Module):
    """Prompt maps of N objects -> what is added to the decoder's three maps.

    Args:
        config: `d_model`, `skip_channels` and the trunk's name are used.
        trunk_channels: Channels of the trunk's maps, finest first.
    """

    def __init__(self, config: ModelConfig, trunk_channels: tuple[int, ...]) -> None:
        super().__init__()
        fine, middle = config.skip_channels
        widths = config.dense_widths
        self.laterals = nn.ModuleList(
            nn.Conv2d(c, w, 1) for c, w in zip(trunk_channels, (*widths, widths[-1]), strict=False)
        )
        self.norms = nn.ModuleList(LayerNorm2d(w) for w in widths)
        self.lower = nn.ModuleList(nn.Conv2d(w, v, 1) for v, w in itertools.pairwise(widths))
        self.smooth = nn.Conv2d(widths[0], widths[0], 3, padding=1)
        self.alike = nn.ModuleList(nn.Conv2d(w, w, 1) for w in widths)
        self.image = nn.ModuleList(nn.Conv2d(w, w, 1) for w in widths)
        self.enter = nn.Conv2d(MAP_COUNT, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(v, w, 3, 2, 1) for v, w in itertools.pairwise(widths))
        self.deep = nn.Sequential(Residual(widths[2]), Residual(widths[2]))
        self.wide = Residual(widths[1])
        self.near = Residual(widths[0])
        self.up = nn.ModuleList(nn.Conv2d(w, v, 1) for v, w in itertools.pairwise(widths))
        self.leave = nn.ModuleList(
            nn.Conv2d(w, out, 1)
            for w, out in zip(widths, (fine, middle, config.d_model), strict=True)
        )

    def pyramid(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The trunk's maps, mixed from coarse to fine: strides 4, 8 and 16. Once an image."""
        lateral = [conv(x) for conv, x in zip(self.laterals, maps, strict=True)]
        if len(lateral) > 3:
            lateral[2] = lateral[2] + _double(lateral[3])
        coarse = self.norms[2](lateral[2])
        middle = self.norms[1](lateral[1] + _double(self.lower[1](coarse)))
        fine = lateral[0] + _double(self.lower[0](middle))
        return self.norms[0](fine + self.smooth(F.relu(fine))), middle, coarse

    def forward(self, features: ImageFeatures, prompts: Prompts) -> tuple[Tensor, Tensor, Tensor]:
        """Maps at stride 16 (N, d_model, ...), 8 (N, middle, ...) and 4 (N, fine, ...)."""
        assert features.trunk is not None
        assert features.pixels_small is not None
        index = prompts.image_index
        own = [rows_for(conv(x), index) for conv, x in zip(self.image, features.trunk, strict=True)]
        x4 = F.relu(self.enter(self.maps(features, prompts)) + own[0])
        x8 = F.relu(self.down[0](x4) + own[1])
        x16 = self.deep(F.relu(self.down[1](x8)) + own[2])
        x8 = self.wide(x8 + _double(self.up[1](F.relu(x16))))
        x4 = self.near(x4 + _double(self.up[0](F.relu(x8))))
        d4, d8, d16 = (conv(x) for conv, x in zip(self.leave, (x4, x8, x16), strict=True))
        return d16, d8, d4

    def maps(self, features: ImageFeatures, prompts: Prompts) -> Tensor:
        """The stack of prompt maps, (N, MAP_COUNT, H / 4, W / 4)."""
        assert features.trunk is not None
        assert features.pixels_small is not None
        pixels, index = features.pixels_small, prompts.image_index
        size = (pixels.shape[-2], pixels.shape[-1])
        foreground, background = split_clicks(prompts)
        with torch.no_grad():
            known = mask_maps(prompts, size)
            box = box_maps(prompts, size)
            plain = [
                *near_maps(foreground, size),
                *near_maps(background, size),
                colour_distance(pixels, foreground, index),
                colour_distance(pixels, background, index),
                *geodesic_maps(pixels, prompts, (foreground, background), known[0], box[0]),
                *box,
                *known,
            ]
        alike = self._likenesses(features.trunk, prompts, (foreground, background), known[0])
        N = len(prompts)
        stack = [x.expand(N, *size) for x in (*plain, *alike)]
        return torch.stack(stack, dim=1).to(pixels.dtype)

    def _likenesses(
        self,
        trunk: tuple[Tensor, ...],
        prompts: Prompts,
        polarities: tuple[Clicks, Clicks],
        known: Tensor,
    ) -> list[Tensor]:
        """Likeness to the clicks of both kinds and to the mask's sure parts, at three strides."""
        size = trunk[0].shape[-2:]
        found = []
        for i, (conv, x) in enumerate(zip(self.alike, trunk, strict=True)):
            unit = F.normalize(conv(x), dim=1)
            for sign, clicks in zip((1.0, -1.0), polarities, strict=True):
                wanted = at_clicks(unit, clicks, 2.0**i, prompts.image_index)
                real = clicks.real
                if prompts.masks is not None:
                    mean, sure = _mean_under(unit, sign * known > 0.5, prompts.image_index)
                    wanted = torch.cat([wanted, mean[:, None]], dim=1)
                    real = torch.cat([real, sure[:, None]], dim=1)
                cosine = likeness(unit, wanted, real, prompts.image_index)
                found.append(F.interpolate(cosine[:, None], size, mode="bilinear")[:, 0])
        return found


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _mean_under(maps: Tensor, mask: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean of (B, C, h, w) under (N, H, W) masks: (N, C), and which masks are not empty (N,)."""
    size = (maps.shape[-2], maps.shape[-1])
    share = F.adaptive_avg_pool2d(mask[:, None].to(maps.dtype), size)[:, 0]
    total = torch.einsum("nchw,nhw->nc", rows_for(maps, index).expand(len(mask), -1, -1, -1), share)
    weight = share.sum((1, 2))
    return total / (weight[:, None] + 1e-6), weight > 0


def near_maps(clicks: Clicks, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """A disc at each click and two decays with distance, 4 and 16 cells long; 0..1."""
    distance = distance_to(clicks, *size)
    return (
        (DISC + 0.5 - distance).clamp(0, 1),
        torch.exp(-distance / 4),
        torch.exp(-distance / 16),
    )


def mask_maps(prompts: Prompts, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What a mask prompt says, -1..1, and where it says anything, 0 or 1."""
    if prompts.masks is None:
        nothing = torch.zeros(1, *size, device=_device(prompts))
        return nothing, nothing
    logits = prompts.masks[:, 0].float()
    return torch.tanh(logits / 2), (logits != 0).float()


def box_maps(prompts: Prompts, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Inside the box, how close its outline is, and whether there is a box; 0..1."""
    if prompts.boxes is None:
        nothing = torch.zeros(1, *size, device=_device(prompts))
        return nothing, nothing, nothing
    left, top, right, bottom = ((prompts.boxes.float() - 1.5) / 4).T[..., None, None]
    x = torch.arange(size[1], device=left.device)[None, None]
    y = torch.arange(size[0], device=left.device)[None, :, None]
    depth = torch.minimum(
        torch.minimum(x - left, right - x), torch.minimum(y - top, bottom - y)
    )  # > 0 inside, in cells
    return (depth + 0.5).clamp(0, 1), torch.exp(-depth.abs() / 2), torch.ones_like(depth)


def geodesic_maps(
    pixels: Tensor,
    prompts: Prompts,
    polarities: tuple[Clicks, Clicks],
    known: Tensor,
    inside: Tensor,
) -> list[Tensor]:
    """How easily a cell is reached from what is inside and from what is outside.

    Clicks and the outside of a box are one kind of seed, the sure parts of a mask prompt another:
    a mask prompt may be an earlier answer that the click is there to correct.
    """
    index, size = prompts.image_index, (pixels.shape[-2], pixels.shape[-1])
    N = len(prompts)
    foreground, background = (distance_to(c, *size) <= DISC for c in polarities)
    if prompts.boxes is not None:
        background = background | (inside == 0)
    across, down = (rows_for(x, index).expand(N, *size) for x in edge_steps(pixels))
    found = [geodesic(seeds, across, down) for seeds in (foreground, background)]
    nothing = torch.full((1, *size), FAR, device=pixels.device)
    sure = float(torch.tanh(torch.tensor(SURE / 2)))
    for seeds in (known > sure, known < -sure):
        found.append(geodesic(seeds, across, down) if prompts.masks is not None else nothing)
    reach = [torch.exp(-d / tau) for d in found for tau in (3.0, 15.0)]
    balance = [torch.tanh((b - f) / 6) for f, b in zip(found[::2], found[1::2], strict=True)]
    return [*reach, *balance]
