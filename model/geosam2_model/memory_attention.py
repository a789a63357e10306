"""Memory attention: a frame's embedding looks at itself and at what is remembered.

SAM 2 paper, section 4 and C.1; 2-D rotary positions as in https://arxiv.org/abs/2403.13298.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geosam2_model.config import ModelConfig
from geosam2_model.mask_decoder import Attention
from geosam2_model.ops import LOWEST, attention, by_rows, remembered, sine_positions

ROWS, KEYS = 512, 1024  # a tile of scores stays in the cache
TURNED = 2048  # so do the tokens that are turned at once


@dataclass(frozen=True)
class Tokens:
    """Keys that a frame looks at."""

    values: Tensor
    """(N, S, mem_dim) spatial memories first, then object pointers."""
    positions: Tensor
    """(N or 1, S, mem_dim) added to the keys."""
    rotary: Tensor
    """(R, d_model / 2) complex rotation of the first R keys; pointers have no place."""


@remembered
def rotary_table(
    channels: int, height: int, width: int, row: int, column: int, device: torch.device
) -> Tensor:
    """Rotation of each cell of a map whose corner lies at (row, column) of the current frame.

    Args:
        channels: Of the tokens to rotate; the first half turns with x, the second with y.
        height: Rows of the map.
        width: Columns of the map.
        row: Offset in cells; negative lies above the current frame.
        column: Offset in cells; negative lies left of it.
        device: Where the table is used.

    Returns:
        (height * width, channels / 2) complex numbers of modulus 1, in raster order.
    """
    turns = 10000.0 ** (-torch.arange(0, channels, 4, device=device).float() / channels)
    y = torch.arange(row, row + height, device=device).float()[:, None] * turns  # height, C / 4
    x = torch.arange(column, column + width, device=device).float()[:, None] * turns
    x, y = x[None].expand(height, -1, -1), y[:, None].expand(-1, width, -1)
    angle = torch.cat([x, y], dim=2).flatten(0, 1)
    return torch.polar(torch.ones_like(angle), angle)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn the first len(table) tokens of (N, S, C) pair by pair; the others stay."""
    count = len(table)
    if torch.is_grad_enabled() or x.device.type != "cpu":
        turned = _turn(x[:, :count], table)
        return turned if count == x.shape[1] else torch.cat([turned, x[:, count:]], dim=1)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for i in range(0, count, TURNED):
        some = slice(i, min(i + TURNED, count))
        out[:, some] = _turn(x[:, some], table[some])
    out[:, count:] = x[:, count:]
    return out


def _turn(x: Tensor, table: Tensor) -> Tensor:
    pairs = torch.view_as_complex(torch.unflatten(x.float(), 2, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * table).flatten(2).to(x.dtype)


def attend_wide(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Single-head attention of (N or 1, L, C) queries, values of another width than the keys.

    In float32 without gradients in tiles, so that the scores stay in the processor's cache.
    PyTorch's own kernel does that too, but wants values as wide as the keys, which costs little
    in half precision alone.
    """
    if torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v)
    if q.dtype != torch.float32:
        return attention(q, k, v, heads=1)
    q, k = q * q.shape[2] ** -0.5, k.transpose(1, 2)
    rows = [_attend_rows(q[:, i : i + ROWS], k, v) for i in range(0, q.shape[1], ROWS)]
    return torch.cat(rows, dim=1)


def _attend_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax over tiles of keys with a running maximum (https://arxiv.org/abs/1805.02867)."""
    top, total, out = q.new_tensor(-torch.inf), q.new_zeros(()), q.new_zeros(())
    for i in range(0, k.shape[2], KEYS):
        scores = q @ k[:, :, i : i + KEYS]
        best = torch.maximum(scores.amax(2, keepdim=True), top)
        weights = scores.sub_(best).clamp_(min=LOWEST).exp_()
        shrink = (top - best).clamp_(min=LOWEST).exp_()
        out = (weights @ v[:, i : i + KEYS]).addcmul_(out, shrink)
        total = weights.sum(2, keepdim=True).addcmul_(total, shrink)
        top = best
    return out.div_(total)


class MemoryCrossAttention(Attention):
    """Attention to memories of `mem_dim` channels.

    The weights of softmax add up to one, so the memories are averaged first and projected to
    values afterwards: the same numbers with d_model / mem_dim times less work.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return cast(Tensor, self.out_proj(self.v_proj(attend_wide(q, k, v))))


class MemoryAttentionLayer(nn.Module):
    """Self-attention, attention to memory, MLP; all pre-norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.d_model
        self.self_attn = Attention(width, heads=1)
        self.cross_attn_image = MemoryCrossAttention(width, heads=1, width_kv=config.mem_dim)
        self.linear1 = nn.Linear(width, config.memory_mlp)
        self.linear2 = nn.Linear(config.memory_mlp, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, x: Tensor, memory: Tokens, here: Tensor) -> Tensor:
        """(N or 1, L, d_model) -> (N, L, d_model); `here` is the frame's own rotary table."""
        own, cross = self.self_attn, self.cross_attn_image
        y = self.norm1(x)
        q, k = rotate(own.q_proj(y), here), rotate(own.k_proj(y), here)
        x = x + own.out_proj(attention(q, k, own.v_proj(y), heads=1))
        q = rotate(cross.q_proj(self.norm2(x)), here)
        k = rotate(cross.k_proj(memory.values + memory.positions), memory.rotary)
        x = x + cross(q, k, memory.values)
        return by_rows(self._mlp, x)

    def _mlp(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.linear2(F.relu(self.linear1(self.norm3(x)))))


class MemoryAttention(nn.Module):
    """`memory_layers` blocks."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            MemoryAttentionLayer(config) for _ in range(config.memory_layers)
        )
        self.norm = nn.LayerNorm(config.d_model)

    def forward(self, image: Tensor, memory: Tokens) -> Tensor:
        """Condition embeddings on memory.

        Args:
            image: (N or 1, d_model, h, w); one image for all objects is not copied.
            memory: Keys of N objects.

        Returns:
            (N, d_model, h, w).
        """
        _, C, H, W = image.shape
        here = rotary_table(C, H, W, 0, 0, image.device)
        x = image + 0.1 * sine_positions(C, H, W, image.device).to(image.dtype)
        x = x.flatten(2).transpose(1, 2)  # N, L, C
        for layer in self.layers:
            x = layer(x, memory, here)
        return torch.unflatten(self.norm(x).transpose(1, 2), 2, (H, W))
