"""Two-way transformer mask decoder (SAM paper, figure 14; SAM 2 paper, section C.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geosam2_model.config import ModelConfig
from geosam2_model.ops import MLP, LayerNorm2d, attention

MASKS = 4  # the single mask and three candidates


class Attention(nn.Module):
    """Multi-head attention with its own projections; `shrink` narrows the inside."""

    def __init__(
        self, width: int, heads: int, shrink: int = 1, width_kv: int | None = None
    ) -> None:
        super().__init__()
        inside = width // shrink
        self.heads = heads
        self.q_proj = nn.Linear(width, inside)
        self.k_proj = nn.Linear(width_kv or width, inside)
        self.v_proj = nn.Linear(width_kv or width, inside)
        self.out_proj = nn.Linear(inside, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(N or 1, L, C), (N or 1, S, C) twice -> (N, L, C)."""
        out = attention(self.q_proj(q), self.k_proj(k), self.v_proj(v), self.heads)
        return cast(Tensor, self.out_proj(out))


class TwoWayBlock(nn.Module):
    """Tokens look at themselves, then at the image; then the image looks at the tokens."""

    def __init__(self, config: ModelConfig, first: bool) -> None:
        super().__init__()
        width, heads = config.d_model, config.decoder_heads
        self.first = first
        self.self_attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = Attention(width, heads, shrink=2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP((width, config.decoder_mlp, width))
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = Attention(width, heads, shrink=2)

    def forward(
        self, tokens: Tensor, image: Tensor, token_positions: Tensor, image_positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens (N, T, C) and image (N or 1, L, C) -> both after one round, of N rows."""
        placed = tokens if self.first else tokens + token_positions
        attended = self.self_attn(placed, placed, tokens)
        tokens = self.norm1(attended if self.first else tokens + attended)
        placed_image = image + image_positions
        tokens = self.norm2(
            tokens + self.cross_attn_token_to_image(tokens + token_positions, placed_image, image)
        )
        tokens = self.norm3(tokens + self.mlp(tokens))
        seen = self.cross_attn_image_to_token(placed_image, tokens + token_positions, tokens)
        return tokens, self.norm4(image + seen)


class TwoWayTransformer(nn.Module):
    """`decoder_depth` two-way blocks and a last look of the tokens at the image."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(config, first=i == 0) for i in range(config.decoder_depth)
        )
        self.final_attn_token_to_image = Attention(config.d_model, config.decoder_heads, shrink=2)
        self.norm_final_attn = nn.LayerNorm(config.d_model)

    def forward(self, tokens: Tensor, image: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (N, T, C), image (N or 1, L, C), positions (1, L, C) -> tokens, image."""
        first = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, first, positions)
        seen = self.final_attn_token_to_image(tokens + first, image + positions, image)
        return self.norm_final_attn(tokens + seen), image


@dataclass(frozen=True)
class DecoderOutput:
    """Everything the decoder says, before one or three masks are chosen."""

    logits: Tensor
    """(N, 4, H / 4, W / 4); the first is the single mask."""
    predicted_iou: Tensor
    """(N, 4) in 0..1."""
    object_score: Tensor
    """(N,) logit; > 0 means the object is visible."""
    tokens: Tensor
    """(N, 4, d_model) mask tokens, the raw object pointers."""


class MaskDecoder(nn.Module):
    """From image embedding and prompt tokens to masks and scores."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, (fine, middle) = config.d_model, config.skip_channels
        self.config = config
        self.transformer = TwoWayTransformer(config)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(MASKS, width)
        self.obj_score_token = nn.Embedding(1, width)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, middle, 2, stride=2),
            LayerNorm2d(middle),
            nn.GELU(),
            nn.ConvTranspose2d(middle, fine, 2, stride=2),
            nn.GELU(),
        )
        self.conv_s0 = nn.Conv2d(width, fine, 1)
        self.conv_s1 = nn.Conv2d(width, middle, 1)
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP((width, width, width, fine)) for _ in range(MASKS)
        )
        self.iou_prediction_head = MLP((width, config.iou_hidden, config.iou_hidden, MASKS))
        self.pred_obj_score_head = MLP((width, width, width, 1))

    def forward(
        self, image: Tensor, positions: Tensor, sparse: Tensor, skips: tuple[Tensor, Tensor]
    ) -> DecoderOutput:
        """Decode N objects.

        Args:
            image: Embedding plus dense prompt (N or 1, C, h, w).
            positions: (1, h * w, C).
            sparse: Prompt tokens (N, P, C).
            skips: Maps at stride 4 and 8, (N or 1, fine, 4 h, 4 w) and (N or 1, middle, 2 h, 2 w).
        """
        N, (h, w) = len(sparse), image.shape[-2:]
        own = [self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight]
        tokens = torch.cat([torch.cat(own).expand(N, -1, -1), sparse], dim=1)
        tokens, src = self.transformer(tokens, image.flatten(2).transpose(1, 2), positions)
        masks = tokens[:, 2 : 2 + MASKS]  # N, 4, C
        upscaled = self._upscale(torch.unflatten(src.transpose(1, 2), 2, (h, w)), *skips)
        weights = [mlp(masks[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)]
        logits = torch.stack(weights, dim=1) @ upscaled.flatten(2)  # N, 4, 16 h w
        return DecoderOutput(
            torch.unflatten(logits, 2, (4 * h, 4 * w)),
            self.iou_prediction_head(tokens[:, 1]).sigmoid(),
            self.pred_obj_score_head(tokens[:, 0]).squeeze(1),
            masks,
        )

    def _upscale(self, x: Tensor, fine: Tensor, middle: Tensor) -> Tensor:
        up1, norm, _, up2, _ = self.output_upscaling
        x = F.gelu(norm(up1(x) + middle))
        return F.gelu(up2(x) + fine)


def stability(logits: Tensor, delta: float) -> Tensor:
    """IoU of the masks at thresholds +delta and -delta, 1 where both are empty; (..., H, W).

    >>> stability(torch.tensor([[2.0, 0.5], [-0.5, -2.0]]), delta=1.0).item()
    0.3333333432674408
    """
    inner = (logits > delta).flatten(-2).sum(-1)
    outer = (logits > -delta).flatten(-2).sum(-1)
    return torch.where(outer > 0, inner / outer, torch.ones_like(outer, dtype=torch.float32))
