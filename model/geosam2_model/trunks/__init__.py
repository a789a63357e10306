"""Image trunks: pixels in, a tuple of feature maps out, finest first.

A trunk is an `nn.Module` with `channels`, the channel count of each map at stride 4, 8, 16 and,
if it has one, 32; its forward takes normalised pixels (B, 3, H, W) and returns maps
(B, channels[i], H / stride, W / stride). Another one is added by a line in `TRUNKS`.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn

from geosam2_model.config import ModelConfig
from geosam2_model.errors import InputError

# name -> (module, class); imported when asked for
TRUNKS = {
    "hiera": ("geosam2_model.trunks.hiera", "Hiera"),
    "efficientnet_lite0": ("geosam2_model.trunks.efficientnet_lite", "EfficientNetLite0"),
}


class Trunk(nn.Module):
    """What the rest of the network knows of a trunk."""

    channels: tuple[int, ...]
    """Channels of the maps at stride 4, 8, 16 and perhaps 32."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (B, C, H / stride, W / stride), finest first."""
        raise NotImplementedError


def build_trunk(config: ModelConfig) -> Any:
    """The trunk that `config.trunk` names.

    Raises:
        InputError: If no trunk has that name.
    """
    if config.trunk not in TRUNKS:
        raise InputError(f"No trunk is called {config.trunk!r}; there are {sorted(TRUNKS)}.")
    module, name = TRUNKS[config.trunk]
    return getattr(importlib.import_module(module), name)(config)
