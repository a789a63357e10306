"""Second opinion on a mask: its IoU judged from the mask itself, drawn over the image's features.

SAM 2 predicts IoU from one token that never saw the mask it speaks of. Here each candidate is laid
over the decoder's stride-8 map and looked at by a few convolutions, as in Mask Scoring R-CNN
(https://arxiv.org/abs/1903.00241); what they say is added to the token's prediction, in logits.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geosam2_model.config import ModelConfig
from geosam2_model.ops import MLP

WIDTHS = (32, 48, 64)
"""Channels at stride 8, 16 and 32."""
SHAPE = 4
"""Numbers that say what the mask is like as a whole."""


class MaskQuality(nn.Module):
    """Masks of N objects over their maps -> what is added to the logit of each predicted IoU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        near, middle, far = WIDTHS
        self.image = nn.Conv2d(config.skip_channels[1], near, 1)
        self.mask = nn.Conv2d(2, near, 3, padding=1)
        self.down = nn.Conv2d(near, middle, 3, 2, 1)
        self.deep = nn.Conv2d(middle, far, 3, 2, 1)
        inputs = 2 * near + 2 * far + SHAPE + config.d_model
        self.judge = MLP((inputs, 128, 1))
        nn.init.zeros_(self.judge.layers[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.judge.layers[-1].bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor, logits: Tensor, tokens: Tensor) -> Tensor:
        """(N, M), 0 before training.

        Args:
            image: The decoder's map at stride 8 (N, C, h, w), prompts included.
            logits: Masks (N, M, 2 h, 2 w); no gradient goes back through them.
            tokens: Mask tokens (N, M, d_model).
        """
        N, M, H, W = logits.shape
        share = logits.detach().float().reshape(N * M, 1, H, W).sigmoid()
        small = F.avg_pool2d(share, 2)  # N M, 1, h, w
        edge = F.avg_pool2d(4 * share * (1 - share), 2) + _outline(small)
        seen = self.mask(torch.cat([small, edge], 1).to(image.dtype)).unflatten(0, (N, M))
        x = F.relu(seen + self.image(image)[:, None]).flatten(0, 1)  # N M, near, h, w
        deep = F.relu(self.deep(F.relu(self.down(x))))
        pooled = [_under(x, small), _under(x, edge), deep.mean((2, 3)), deep.amax((2, 3))]
        found = torch.cat([*pooled, _shape(share, edge), tokens.flatten(0, 1)], 1)
        return cast(Tensor, self.judge(found.to(tokens.dtype))).view(N, M)


def _outline(share: Tensor) -> Tensor:
    """How far the neighbours of a cell differ, 0..1: high where the outline runs."""
    return F.max_pool2d(share, 3, 1, 1) + F.max_pool2d(-share, 3, 1, 1)


def _under(maps: Tensor, weight: Tensor) -> Tensor:
    """Mean of (B, C, h, w) under weights (B, 1, h, w): (B, C)."""
    total = torch.einsum("bchw,bhw->bc", maps, weight[:, 0].to(maps.dtype))
    return total / (weight.sum((2, 3)) + 1e-3)


def _shape(share: Tensor, edge: Tensor) -> Tensor:
    """(B, 4): size, sureness, how compact, and how much lies on the window's border."""
    cells = share.shape[-1] * share.shape[-2]
    area = share.sum((2, 3)) + 1  # B, 1
    inner, outer = ((share > t).flatten(1).sum(1, keepdim=True) for t in (0.73, 0.27))
    border = sum(share.select(dim, i).sum(-1) for dim in (2, 3) for i in (0, -1))
    parts = [
        torch.log(area / cells) / 3,
        (inner + 1) / (outer + 1),
        edge.sum((2, 3)) / area.sqrt() / 4,
        cast(Tensor, border) / area.sqrt() / 4,
    ]
    return torch.cat(parts, 1)
