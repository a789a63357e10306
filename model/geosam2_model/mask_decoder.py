"""Two-way transformer mask decoder (SAM paper, figure 14; SAM 2 paper, section C.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geosam2_model.config import ModelConfig
from geosam2_model.ops import MLP, LayerNorm2d, attention, by_twos, from_twos

MASKS = 4  # the single mask and three candidates
STRIP = 1024  # cells of the embedding that are upscaled together
COSTLY = 1.5  # tokens times heads against channels, from where on image projections are cheaper


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

    def ask_image(self, q: Tensor, places: Tensor, image: Tensor) -> Tensor:
        """A few tokens look at many cells: `forward`, without keys and values of the cells.

        The key projection is moved to the queries' side, q . (W x) = (W' q) . x, and the value
        projection behind the average. Keys' biases shift all scores of a query alike, so they
        cancel.

        Args:
            q: Tokens (N, T, C).
            places: Cells with their positions (N or 1, L, C), to compare with.
            image: The same without positions, to average.

        Returns:
            (N, T, C).
        """
        N, T, C = q.shape
        if torch.is_grad_enabled() or T * self.heads > COSTLY * self.k_proj.out_features:
            return cast(Tensor, self(q, places, image))
        rows, wide = len(places), (self.heads, -1, C)
        scale = (self.q_proj.out_features // self.heads) ** -0.5
        q = torch.unflatten(self.q_proj(q) * scale, 2, (self.heads, -1))  # N, T, h, c
        q = torch.einsum("nthc,hcd->nhtd", q, self.k_proj.weight.view(wide))
        weights = (q.reshape(rows, -1, C) @ places.transpose(1, 2)).softmax(2)
        seen = (weights @ image).view(N, self.heads, T, C)
        values = torch.einsum("nhtd,hcd->nthc", seen, self.v_proj.weight.view(wide)).flatten(2)
        return cast(Tensor, self.out_proj(values + self.v_proj.bias))

    def tell_image(self, image: Tensor, places: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Many cells look at a few tokens: image + `forward`, all projections on the tokens' side.

        Args:
            image: Cells (N or 1, L, C) that what they see is added to.
            places: The same with their positions, the queries.
            k: Tokens (N, T, C) with positions.
            v: Tokens (N, T, C).

        Returns:
            (N, L, C).
        """
        N, T, C = k.shape
        if torch.is_grad_enabled() or T * self.heads > COSTLY * self.q_proj.out_features:
            return image + cast(Tensor, self(places, k, v))
        rows, wide = len(places), (self.heads, -1, C)
        scale = (self.q_proj.out_features // self.heads) ** -0.5
        k = torch.unflatten(self.k_proj(k) * scale, 2, (self.heads, -1))  # N, T, h, c
        shift = torch.einsum("nthc,hc->nht", k, self.q_proj.bias.view(self.heads, -1))
        k = torch.einsum("nthc,hcd->nhtd", k, self.q_proj.weight.view(wide))
        scores = k.reshape(rows, -1, C) @ places.transpose(1, 2)  # rows, N h T / rows, L
        weights = (scores.view(N, self.heads, T, -1) + shift[..., None]).softmax(2).flatten(1, 2)
        v = torch.unflatten(self.v_proj(v), 2, (self.heads, -1))
        out = self.out_proj.weight.view(C, self.heads, -1)
        v = torch.einsum("nthc,dhc->nhtd", v, out) + self.out_proj.bias / self.heads
        return torch.baddbmm(image.expand(N, -1, -1), weights.transpose(1, 2), v.flatten(1, 2))


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
        seen = self.cross_attn_token_to_image.ask_image(
            tokens + token_positions, placed_image, image
        )
        tokens = self.norm2(tokens + seen)
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.cross_attn_image_to_token.tell_image(
            image, placed_image, tokens + token_positions, tokens
        )
        return tokens, self.norm4(image)


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
        seen = self.final_attn_token_to_image.ask_image(tokens + first, image + positions, image)
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
    seen: Tensor | None = None
    """(N, C, H / 8, W / 8) what a second opinion on the predicted IoU looks at; None if none is
    wanted, or it was heard."""


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
        weights = [mlp(masks[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)]
        src = torch.unflatten(src.transpose(1, 2), 2, (h, w))
        return DecoderOutput(
            self._paint(torch.stack(weights, dim=1), src, *skips),
            self.iou_prediction_head(tokens[:, 1]).sigmoid(),
            self.pred_obj_score_head(tokens[:, 0]).squeeze(1),
            masks,
        )

    def _paint(self, weights: Tensor, x: Tensor, fine: Tensor, middle: Tensor) -> Tensor:
        """Logits (N, 4, 4 h, 4 w): the upscaled map weighted by each mask's numbers (N, 4, fine).

        No cell looks at its neighbours here, so without gradients it goes by strips of rows that
        stay in the processor's cache from the first product to the last.
        """
        h, w = x.shape[-2:]
        step = h if torch.is_grad_enabled() else max(1, STRIP // (len(x) * w))
        up1, norm, _, up2, _ = self.output_upscaling
        first, second = _as_product(up1), _as_product(up2)
        strips = []
        for row in range(0, h, step):
            part, at4, at8 = (
                m[:, :, f * row : f * (row + step)] for m, f in ((x, 1), (fine, 4), (middle, 2))
            )
            part = F.gelu(norm(_doubled(part, *first, at8)))
            part = F.gelu(_doubled(part, *second, at4))
            # cells first, as they lie in memory: their gradients then lie so, too
            cells = part.permute(0, 2, 3, 1).flatten(1, 2)
            strips.append((cells @ weights.transpose(1, 2)).transpose(1, 2).contiguous())
        return torch.unflatten(torch.cat(strips, dim=2), 2, (4 * h, 4 * w))


def _as_product(up: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight (2 2 D, C) and bias of a transposed convolution whose 2 x 2 kernels do not overlap."""
    up = cast(nn.ConvTranspose2d, up)
    return up.weight.permute(2, 3, 1, 0).flatten(0, 2), cast(Tensor, up.bias).repeat(4)


def _doubled(x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    """A map (N, C, h, w) made twice as large by `_as_product`, plus another of that size."""
    parts = F.linear(x.permute(0, 2, 3, 1), weight, bias)
    parts = torch.unflatten(parts, 3, (2, 2, -1)).transpose(2, 3)  # N, h, 2, w, 2, D
    return from_twos(by_twos(skip) + parts)


def stability(logits: Tensor, delta: float) -> Tensor:
    """IoU of the masks at thresholds +delta and -delta, 1 where both are empty; (..., H, W).

    >>> stability(torch.tensor([[2.0, 0.5], [-0.5, -2.0]]), delta=1.0).item()
    0.3333333432674408
    """
    inner = (logits > delta).flatten(-2).sum(-1)
    outer = (logits > -delta).flatten(-2).sum(-1)
    return torch.where(outer > 0, inner / outer, torch.ones_like(outer, dtype=torch.float32))
