"""Memory encoder: an image and its mask become a small map (SAM 2 paper, section 4 and C.1)."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from geosam2_model.config import ModelConfig
from geosam2_model.ops import LayerNorm2d, by_rows


class MaskDownsampler(nn.Module):
    """Mask (N, 1, H, W) -> (N, d_model, H / 16, W / 16), channels x 4 at each halving."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(4):
            layers += [
                nn.Conv2d(4**i, 4 ** (i + 1), 3, stride=2, padding=1),
                LayerNorm2d(4 ** (i + 1)),
                nn.GELU(),
            ]
        self.encoder = nn.Sequential(*layers, nn.Conv2d(256, d_model, 1))

    def forward(self, mask: Tensor) -> Tensor:
        return cast(Tensor, self.encoder(mask))


class ConvNextBlock(nn.Module):
    """Depthwise 7 x 7, then a two-layer MLP per pixel (https://arxiv.org/abs/2201.03545)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(1e-6 * self.norm.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        y = self.dwconv(x).permute(0, 2, 3, 1)  # N, H, W, C
        y = by_rows(self._mlp, y.flatten(1, 2)).view(y.shape)
        return x + y.permute(0, 3, 1, 2)

    def _mlp(self, tokens: Tensor) -> Tensor:
        hidden = F.gelu(self.pwconv1(self.norm(tokens)))
        return cast(Tensor, self.gamma * self.pwconv2(hidden))


class Fuser(nn.Module):
    """A few ConvNeXt blocks."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ConvNextBlock(width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class MemoryEncoder(nn.Module):
    """Image embedding and mask -> spatial memory."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mask_downsampler = MaskDownsampler(config.d_model)
        self.pix_feat_proj = nn.Conv2d(config.d_model, config.d_model, 1)
        self.fuser = Fuser(config.d_model, config.fuser_layers)
        self.out_proj = nn.Conv2d(config.d_model, config.mem_dim, 1)

    def forward(self, image: Tensor, masks: Tensor) -> Tensor:
        """Encode N masks of one or N images.

        Args:
            image: (N or 1, d_model, h, w), without memory.
            masks: (N, 1, 16 h, 16 w), scaled.

        Returns:
            (N, mem_dim, h, w).
        """
        x = self.pix_feat_proj(image) + self.mask_downsampler(masks)
        return cast(Tensor, self.out_proj(self.fuser(x)))
