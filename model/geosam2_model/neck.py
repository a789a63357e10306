"""Feature pyramid neck and the image encoder that holds it (SAM 2 paper, section 4 and C.1)."""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from geosam2_model.config import ModelConfig
from geosam2_model.trunks import build_trunk


class FpnNeck(nn.Module):
    """One 1 x 1 convolution per level; stride 32, where there is one, is added to stride 16."""

    def __init__(self, channels: tuple[int, ...], d_model: int) -> None:
        super().__init__()
        # coarsest first, as in the checkpoints
        self.convs = nn.ModuleList(
            nn.Sequential(OrderedDict(conv=nn.Conv2d(c, d_model, 1))) for c in reversed(channels)
        )

    def lateral(self, maps: tuple[Tensor, ...], level: int) -> Tensor:
        """The projected map of a level, 0 being the finest: (B, d_model, h, w)."""
        result: Tensor = self.convs[len(maps) - 1 - level](maps[level])
        return result

    def embedding(self, maps: tuple[Tensor, ...]) -> Tensor:
        """The image embedding at stride 16 (B, d_model, H / 16, W / 16)."""
        x = self.lateral(maps, 2)
        if len(maps) > 3:
            x = x + F.interpolate(self.lateral(maps, 3), scale_factor=2.0, mode="nearest")
        return x

    def skip(self, maps: tuple[Tensor, ...], level: int, follow: nn.Conv2d) -> Tensor:
        """`follow` applied to the lateral map of a fine level, both 1 x 1 convolutions in one.

        Nothing is added to these levels, so the two matrices are multiplied first: d_model
        channels of the largest maps are never made.
        """
        first = cast(nn.Conv2d, self.convs[len(maps) - 1 - level].conv)
        outer, inner = follow.weight.flatten(1), first.weight.flatten(1)
        bias = cast(Tensor, follow.bias) + outer @ cast(Tensor, first.bias)
        weight = outer @ inner
        return F.conv2d(maps[level], weight[..., None, None], bias)


class ImageEncoder(nn.Module):
    """Trunk and neck, named as in Meta's checkpoints."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.trunk = build_trunk(config)
        self.neck = FpnNeck(tuple(self.trunk.channels), config.d_model)
