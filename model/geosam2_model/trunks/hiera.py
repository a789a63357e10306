"""Hiera, the trunk of SAM 2 (https://arxiv.org/abs/2306.00989; SAM 2 paper, C.1).

The tokens never leave one nested order: 8 x 8 windows one after another, inside them 4 x 4, inside
those 2 x 2. The windows of the first two stages are then plain views, and every pooling step joins
four neighbours in memory. Only the larger windows of the last two stages need a gather.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geosam2_model.config import ModelConfig
from geosam2_model.ops import MLP, by_rows, remembered, scaled_attention

EARLY_BYTES = 3 << 19  # of the windows that go through the early blocks together, without gradients
LEVELS = 3  # an 8 x 8 window of the first stage is 2 x 2 x 2 nested squares


@remembered
def nested_order(height: int, width: int, levels: int, device: torch.device) -> Tensor:
    """Raster number of each token in nested order, (height * width,).

    >>> nested_order(2, 4, 1, torch.device("cpu")).tolist()
    [0, 1, 4, 5, 2, 3, 6, 7]
    """
    ids = torch.arange(height * width, device=device).view(1, height, width)
    for level in reversed(range(levels)):
        n, h, w = ids.shape[0], height >> level, width >> level
        if level == levels - 1:  # the outermost squares, row by row
            h, w = 1 << level, 1 << level
            ids = ids.view(height >> levels, 2 * h, width >> levels, 2 * w).transpose(1, 2)
            ids = ids.reshape(-1, 2 * h, 2 * w)
            n = ids.shape[0]
        side = 1 << level
        ids = ids.view(n, 2, side, 2, side).transpose(2, 3).reshape(n * 4, side, side)
    return ids.flatten().clone()


@dataclass(frozen=True)
class Windows:
    """Where the tokens of larger windows are found in nested order; cached by size."""

    side: int
    take: Tensor
    """Token number for each place in the windows (M,); H * W stands for padding."""
    back: Tensor
    """Place in the windows of each token (H * W,)."""
    pooled_back: Tensor
    """The same after 2 x 2 pooling (H * W / 4,)."""


@remembered
def plan_windows(height: int, width: int, levels: int, side: int, device: torch.device) -> Windows:
    """Windows of `side` over a map whose tokens are in nested order of `levels` levels."""
    count = height * width
    tokens = torch.empty(count, dtype=torch.long, device=device)
    tokens[nested_order(height, width, levels, device)] = torch.arange(count, device=device)
    pad = (-width % side, -height % side)
    grid = F.pad(tokens.view(height, width), (0, pad[0], 0, pad[1]), value=count)
    rows, columns = grid.shape[0] // side, grid.shape[1] // side
    pool = 1 if side % 2 else 2  # neighbours that will be pooled lie side by side
    grid = grid.view(rows, side // pool, pool, columns, side // pool, pool)
    take = grid.permute(0, 3, 1, 4, 2, 5).flatten()
    return Windows(side, take, _inverse(take, count), _inverse(take[::4] // 4, count // 4))


def _inverse(take: Tensor, count: int) -> Tensor:
    back = torch.empty(count + 1, dtype=torch.long, device=take.device)
    back[take.clamp(max=count)] = torch.arange(len(take), device=take.device)
    return back[:count].clone()


def pool4(x: Tensor) -> Tensor:
    """Maximum of each four consecutive tokens: (B, L, ...) -> (B, L / 4, ...)."""
    return torch.unflatten(x, 1, (-1, 4)).amax(2)


class Attention(nn.Module):
    """Self-attention inside windows; `pool` shrinks the queries by 2 x 2."""

    def __init__(self, width_in: int, width: int, heads: int, pool: bool) -> None:
        super().__init__()
        self.heads, self.pool = heads, pool
        self.qkv = nn.Linear(width_in, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, windows: int | Windows) -> Tensor:
        """Tokens (B, L, C) -> (B, L or L / 4, D); `windows` is a token count or a gather."""
        B = x.shape[0]
        qkv = self.qkv(x)  # B, L, 3 D
        if isinstance(windows, Windows):
            # a padded token is zero before the projection, so it is the bias after it
            bias = self.qkv.bias.to(qkv.dtype).expand(B, 1, -1)
            qkv = torch.cat([qkv, bias], dim=1).index_select(1, windows.take)
        tokens = windows.side**2 if isinstance(windows, Windows) else windows
        qkv = qkv.view(-1, tokens, 3, self.heads, self.proj.in_features // self.heads)
        q, k, v = qkv.unbind(2)  # windows, T, heads, d
        q = pool4(q) if self.pool else q
        x = scaled_attention(*(x.transpose(1, 2) for x in (q, k, v)))
        x = x.transpose(1, 2).reshape(B, -1, self.proj.in_features)
        if isinstance(windows, Windows):
            x = x.index_select(1, windows.pooled_back if self.pool else windows.back)
        return cast(Tensor, self.proj(x))


class Block(nn.Module):
    """Pre-norm transformer block; the first one of a stage widens and pools."""

    def __init__(self, width_in: int, width: int, heads: int) -> None:
        super().__init__()
        self.pool = width != width_in
        self.norm1 = nn.LayerNorm(width_in, eps=1e-6)
        self.attn = Attention(width_in, width, heads, self.pool)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP((width, 4 * width, width), F.gelu)
        if self.pool:
            self.proj = nn.Linear(width_in, width)

    def forward(self, x: Tensor, windows: int | Windows) -> Tensor:
        normed = self.norm1(x)
        shortcut = pool4(self.proj(normed)) if self.pool else x
        x = shortcut + self.attn(normed, windows)
        return by_rows(lambda part: part + self.mlp(self.norm2(part)), x)


class PatchEmbed(nn.Module):
    """Pixels -> overlapping 7 x 7 patches at stride 4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 7, stride=4, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.proj(x))


class Hiera(nn.Module):
    """The hierarchical trunk in SAM 2's four sizes.

    Args:
        config: Its `embed_dim`, `trunk_heads`, `stages`, `global_blocks`, `window_sizes` and
            `background_size` are used.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, heads, window = config.embed_dim, config.trunk_heads, config.window_sizes[0]
        self.patch_embed = PatchEmbed(width)
        self.pos_embed = nn.Parameter(torch.zeros(1, width, *[config.background_size] * 2))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, width, window, window))
        blocks = []
        for stage, depth in enumerate(config.stages):
            for i in range(depth):
                grows = i == 0 and stage > 0
                heads *= 2 if grows else 1
                blocks.append(Block(width, width * 2 if grows else width, heads))
                width *= 2 if grows else 1
        self.blocks = nn.ModuleList(blocks)
        self.channels = tuple(config.embed_dim << i for i in range(len(config.stages)))
        self._positions: tuple[tuple[object, ...], Tensor] | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Normalised pixels (B, 3, H, W) -> maps at stride 4, 8, 16, 32."""
        x = self.patch_embed(x)
        B, C, H, W = x.shape
        order = nested_order(H, W, LEVELS, x.device)
        x = x.permute(0, 2, 3, 1).reshape(B, H * W, C).index_select(1, order)
        x = x + self.positions(H, W, order)
        fine, middle, x = self._early(x)
        maps = [self._map(fine, H, W, 3), self._map(middle, H // 2, W // 2, 2)]
        block = sum(self.config.stages[:2]) + 1
        for stage in (2, 3):
            for i in range(1 if stage == 2 else 0, self.config.stages[stage]):
                # the first block of a stage still sees the windows and the size of the one before
                at = stage - 1 if i == 0 else stage
                x = self.blocks[block](x, self._windows(block, at, H >> at, W >> at, x.device))
                block += 1
            maps.append(self._map(x, H >> stage, W >> stage, LEVELS - stage))
        return tuple(maps)

    def _early(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The first two stages and the first block of the third, some windows at a time.

        No window looks at another until then, so a handful of them goes through all these blocks
        before the next is touched, and nothing large leaves the processor's cache.
        """
        B, _, C = x.shape
        windows = x.reshape(-1, 64, C)
        some = max(1, EARLY_BYTES // windows[0].nbytes)
        step = len(windows) if torch.is_grad_enabled() else some
        parts = [self._early_windows(windows[i : i + step]) for i in range(0, len(windows), step)]
        fine, middle, coarse = (torch.cat(same) for same in zip(*parts, strict=True))
        return fine.view(B, -1, C), middle.view(B, -1, 2 * C), coarse.view(B, -1, 4 * C)

    def _early_windows(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Windows (n, 64, C) -> (n, 64, C), (n, 16, 2 C), (n, 4, 4 C)."""
        first, second = self.config.stages[:2]
        outputs = []
        for block in range(first + second + 1):
            if block in (first, first + second):
                outputs.append(x)
            x = self.blocks[block](x, x.shape[1])
        return outputs[0], outputs[1], x

    def _windows(
        self, block: int, stage: int, height: int, width: int, device: torch.device
    ) -> int | Windows:
        side = self.config.window_sizes[stage]
        if block in self.config.global_blocks:
            return height * width
        return plan_windows(height, width, LEVELS - stage, side, device)

    def _map(self, x: Tensor, height: int, width: int, levels: int) -> Tensor:
        B, _, C = x.shape
        if levels > 0:
            order = nested_order(height, width, levels, x.device)
            back = _inverse(order, height * width)
            x = x.index_select(1, back)
        return x.view(B, height, width, C).permute(0, 3, 1, 2)

    def positions(self, height: int, width: int, order: Tensor) -> Tensor:
        """Position of every token in nested order (1, L, C): the stretched one plus the tiled."""
        key = (height, width, order.device, self.pos_embed.dtype, self.pos_embed._version,
               self.pos_embed_window._version, self.pos_embed.data_ptr())  # fmt: skip
        if torch.is_grad_enabled():
            return self._compute_positions(height, width, order)
        if self._positions is None or self._positions[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                self._positions = (key, self._compute_positions(height, width, order))
        return self._positions[1]

    def _compute_positions(self, height: int, width: int, order: Tensor) -> Tensor:
        side = self.pos_embed_window.shape[-1]
        far = F.interpolate(self.pos_embed, size=(height, width), mode="bicubic")
        near = self.pos_embed_window.tile(1, 1, height // side, width // side)
        return (far + near).flatten(2).transpose(1, 2).index_select(1, order)  # 1, L, C
