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
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geosam2_model.config import ModelConfig
from geosam2_model.ops import (
    LastUsed,
    LayerNorm2d,
    by_twos,
    channels_last,
    from_twos,
    rows_for,
    versions,
)
from geosam2_model.prompt_encoder import Prompts
from geosam2_model.prompt_maps import (
    DISC,
    SURE,
    Clicks,
    Map,
    Palette,
    Steps,
    at_clicks,
    box_maps,
    colour_distance,
    distance_to,
    edge_steps,
    likeness,
    mask_maps,
    near_maps,
    palette,
    reach_maps,
    split_clicks,
)

if TYPE_CHECKING:
    from geosam2_model.sam2 import ImageFeatures

MAP_COUNT = 29
"""Near 6, colour 2, geodesic 10, box 3, mask 2, likeness 6."""
IMAGES = 12
"""Images whose side is remembered: those of a click at every zoom, and a few more."""


@dataclass(frozen=True)
class ImageSide:
    """What the maps need of B images whatever the prompts say; made once an image."""

    own: tuple[Tensor, Tensor, Tensor]
    """What the images add to the stack at strides 4, 8 and 16."""
    units: tuple[Tensor, ...]
    """Features of length 1 to compare with, at the same strides."""
    palette: Palette
    """Colours to compare with."""
    steps: Steps
    """Costs of crossing edges."""
    starts: dict[tuple[float | None, ...], Tensor] = field(default_factory=dict)
    """`own[0]` and what the maps that are plain numbers add to it, by those numbers."""

    @classmethod
    def joined(cls, parts: Sequence[ImageSide]) -> ImageSide:
        """Of the images of several, one after another; a single one as it is."""
        if len(parts) == 1:
            return parts[0]
        same = zip(*(part._tensors for part in parts), strict=True)
        return cls._of([torch.cat(tensors) for tensors in same])

    def split(self, lengths: Sequence[int]) -> list[ImageSide]:
        """The reverse of `joined`: some images each; views."""
        rows = (torch.split(x, list(lengths)) for x in self._tensors)
        return [self._of(tensors) for tensors in zip(*rows, strict=True)]

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return (*self.own, *self.units, *self.palette, *self.steps)

    @classmethod
    def _of(cls, tensors: Sequence[Tensor]) -> ImageSide:
        a, b, c, d, e, f, *rest = tensors
        return cls((a, b, c), (d, e, f), Palette(*rest[:2]), Steps(*rest[2:]))


class Residual(nn.Module):
    """Two 3 x 3 convolutions added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.second(self.first(F.relu(x)).relu_())).add_(x)


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

        self._of_image: LastUsed[ImageSide] = LastUsed(IMAGES)
        self._of_batch: LastUsed[ImageSide] = LastUsed()

    def pyramid(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The trunk's maps, mixed from coarse to fine: strides 4, 8 and 16. Once an image."""
        lateral = [conv(x) for conv, x in zip(self.laterals, maps, strict=True)]
        if len(lateral) > 3:
            lateral[2] = add_coarse(lateral[2], lateral[3])
        coarse = self.norms[2](lateral[2])
        middle = self.norms[1](add_coarse(lateral[1], self.lower[1](coarse)))
        fine = add_coarse(lateral[0], self.lower[0](middle))
        return self.norms[0](fine + self.smooth(F.relu(fine))), middle, coarse

    def forward(self, features: ImageFeatures, prompts: Prompts) -> tuple[Tensor, Tensor, Tensor]:
        """Maps at stride 16 (N, d_model, ...), 8 (N, middle, ...) and 4 (N, fine, ...)."""
        index = prompts.image_index
        image = self.image_side(features)
        own8, own16 = (rows_for(x, index) for x in image.own[1:])
        x4 = self._enter(self.maps(image, prompts), image, prompts)
        x8 = self.down[0](x4).add_(own8).relu_()
        x16 = self.deep(self.down[1](x8).relu_() + own16)
        x8 = self.wide(add_coarse(x8, self.up[1](F.relu(x16))))
        x4 = self.near(add_coarse(x4, self.up[0](F.relu(x8))))
        d4, d8, d16 = (conv(x) for conv, x in zip(self.leave, (x4, x8, x16), strict=True))
        return d16, d8, d4

    def image_side(self, features: ImageFeatures) -> ImageSide:
        """What depends on the images alone; remembered for the last few, without gradients."""
        assert features.trunk is not None
        if torch.is_grad_enabled():
            return self._image_side(features)
        weights = versions(self.image, self.alike, self.enter)
        return self._of_batch.get(
            features.trunk[0], weights, lambda: self._image_sides(features, weights)
        )

    def _image_sides(self, features: ImageFeatures, weights: Hashable) -> ImageSide:
        """Each image's by itself: a further click looks at some of the windows of the one before.

        What is missing is made together.
        """
        parts = features.parts or (features,)

        def make(missing: list[int]) -> list[ImageSide]:
            some = [parts[i] for i in missing]
            side = self._image_side(features if len(some) == len(parts) else some[0].joined(some))
            return side.split([len(part) for part in some])

        sources = [cast(tuple[Tensor, ...], part.trunk)[0] for part in parts]
        return ImageSide.joined(self._of_image.get_all(sources, weights, make))

    def _image_side(self, features: ImageFeatures) -> ImageSide:
        assert features.trunk is not None
        assert features.pixels_small is not None
        trunk = [channels_last(x) for x in features.trunk]
        own4, own8, own16 = (conv(x) for conv, x in zip(self.image, trunk, strict=True))
        units = (F.normalize(conv(x), dim=1) for conv, x in zip(self.alike, trunk, strict=True))
        with torch.no_grad():
            colours, steps = palette(features.pixels_small), edge_steps(features.pixels_small)
        return ImageSide((own4, own8, own16), tuple(units), colours, steps)

    def maps(self, image: ImageSide, prompts: Prompts) -> list[Map]:
        """The MAP_COUNT prompt maps, those that are the same everywhere as numbers."""
        index, size = prompts.image_index, image.palette.colours.shape[-2:]
        polarities = split_clicks(prompts)
        with torch.no_grad():
            away = [distance_to(c, *size) if c.said else None for c in polarities]
            box, known = box_maps(prompts, *size), mask_maps(prompts)
            steps = Steps(*(rows_for(x, index) for x in image.steps))
            plain = [
                *near_maps(away[0]),
                *near_maps(away[1]),
                *(colour_distance(image.palette, c, index) for c in polarities),
                *reach_maps(_seeds(away, box[0], known[0], len(prompts)), steps),
                *box,
                *known,
            ]
        return [*plain, *self._likenesses(image.units, prompts, polarities, known[0])]

    def _enter(self, maps: list[Map], image: ImageSide, prompts: Prompts) -> Tensor:
        """The first layer on the maps that vary; the others enter by their number alone."""
        live = [i for i, x in enumerate(maps) if isinstance(x, Tensor)]
        start = self._start(maps, image)
        start = rows_for(start, prompts.image_index)
        if not live:
            return F.relu(start).expand(len(prompts), -1, -1, -1)
        H, W = start.shape[-2:]
        stack = torch.stack([cast(Tensor, maps[i]).expand(len(prompts), H, W) for i in live], 1)
        stack = channels_last(stack.to(start.dtype))
        return F.conv2d(stack, self.enter.weight[:, live], padding=1).add_(start).relu_()

    def _start(self, maps: list[Map], image: ImageSide) -> Tensor:
        key = tuple(None if isinstance(x, Tensor) else x for x in maps)
        if key in image.starts:
            return image.starts[key]
        numbers = [0.0 if x is None else x for x in key]
        # a 3 x 3 map has every kind of border that a larger one has
        small = image.own[0].new_tensor(numbers)[None, :, None, None].expand(-1, -1, 3, 3)
        small = F.conv2d(small, self.enter.weight, self.enter.bias, padding=1)
        rows, columns = (_thirds(n, small.device) for n in image.own[0].shape[-2:])
        start = image.own[0] + small[:, :, rows[:, None], columns]
        if not torch.is_grad_enabled():
            image.starts[key] = start
        return start

    def _likenesses(
        self,
        units: tuple[Tensor, ...],
        prompts: Prompts,
        polarities: tuple[Clicks, Clicks],
        known: Map,
    ) -> list[Map]:
        """Likeness to the clicks of both kinds and to the mask's sure parts, at three strides."""
        found: list[Map] = []
        size, index = (units[0].shape[-2], units[0].shape[-1]), prompts.image_index
        for i, unit in enumerate(units):
            for sign, clicks in zip((1.0, -1.0), polarities, strict=True):
                wanted, real = at_clicks(unit, clicks, 2.0**i, index), clicks.real
                if isinstance(known, Tensor):
                    mean, sure = _mean_under(unit, sign * known > 0.5, index)
                    wanted = torch.cat([wanted, mean[:, None]], dim=1)
                    real = torch.cat([real, sure[:, None]], dim=1)
                if not real.shape[1]:
                    found.append(-1.0)
                    continue
                cosine = likeness(unit, wanted, real, index)
                if i:
                    cosine = F.interpolate(cosine[:, None], size, mode="bilinear")[:, 0]
                found.append(cosine)
        return found


def _seeds(
    away: list[Tensor | None], inside_box: Map, known: Map, count: int
) -> tuple[Tensor | None, ...]:
    """Where paths begin: inside, outside by clicks and box; inside, outside by the known mask.

    They are two pairs, for a mask prompt may be an earlier answer that the click is there to
    correct.
    """
    foreground, background = (None if d is None else d <= DISC for d in away)
    if isinstance(inside_box, Tensor):
        outside = inside_box == 0
        background = outside if background is None else background | outside
    if not isinstance(known, Tensor):
        return foreground, background, None, None
    sure = float(torch.tanh(torch.tensor(SURE / 2)))
    return foreground, background, known > sure, known < -sure


def _thirds(length: int, device: torch.device) -> Tensor:
    """0 at the first of `length` cells, 2 at the last, 1 between."""
    where = torch.ones(length, dtype=torch.long, device=device)
    where[0], where[-1] = 0, 2
    return where


def add_coarse(x: Tensor, coarse: Tensor) -> Tensor:
    """x (N, C, 2 h, 2 w) plus a map (N, C, h, w) of cells twice as large.

    Several times faster than to enlarge the coarse map first.
    """
    return from_twos(by_twos(x) + coarse.permute(0, 2, 3, 1)[:, :, None, :, None])


def _mean_under(maps: Tensor, mask: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean of (B, C, h, w) under (N, H, W) masks: (N, C), and which masks are not empty (N,)."""
    size = (maps.shape[-2], maps.shape[-1])
    share = F.adaptive_avg_pool2d(mask[:, None].to(maps.dtype), size)[:, 0]
    total = torch.einsum("nchw,nhw->nc", rows_for(maps, index).expand(len(mask), -1, -1, -1), share)
    weight = share.sum((1, 2))
    return total / (weight[:, None] + 1e-6), weight > 0
