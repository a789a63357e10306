"""Small pieces that several parts of the network share."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache, wraps
from itertools import pairwise
from typing import Generic, ParamSpec, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

P = ParamSpec("P")
T = TypeVar("T")


SCORES = 2**21
"""Attention scores that are in memory at once where they are made by plain products."""
LOWEST = -80.0
"""e to the power of less is no normal number any more, and takes MKL 30 times as long."""


def decay(x: Tensor) -> Tensor:
    """e to the power of -x, for x >= 0.

    >>> decay(torch.tensor([0.0, 1.0, 1e6]))
    tensor([1.0000e+00, 3.6788e-01, 1.8049e-35])
    """
    return torch.exp((-x).clamp(min=LOWEST))


def remembered(function: Callable[P, T]) -> Callable[P, T]:
    """Cache a function of sizes and devices alone.

    What is made inside `torch.inference_mode()` could not be used in training afterwards, hence
    the guard.
    """

    @lru_cache(maxsize=32)
    @wraps(function)
    def compute(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return cast(Callable[P, T], compute)


class MLP(nn.Module):
    """Linear layers with an activation between them, none after the last."""

    def __init__(
        self,
        sizes: tuple[int, ...],
        activation: Callable[[Tensor], Tensor] = F.relu,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(sizes))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        return cast(Tensor, last(x))


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of (B, C, H, W)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # channels last, so that the norm runs over contiguous numbers
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor, rows: int = 1024) -> Tensor:
    """A function of single tokens on (B, L, C), some tokens at a time without gradients.

    What is wide in between, as inside an MLP, then stays in the processor's cache.
    """
    if torch.is_grad_enabled() or x.shape[1] <= rows or x.device.type != "cpu":
        return function(x)
    return torch.cat([function(x[:, i : i + rows]) for i in range(0, x.shape[1], rows)], dim=1)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention of already projected tokens.

    Args:
        q: Queries (B or 1, L, C).
        k: Keys (B or 1, S, C).
        v: Values (B or 1, S, D); a batch of 1 is shared, not copied.
        heads: Number of heads; divides C and D.

    Returns:
        Tokens (B, L, D).
    """
    batch = max(q.shape[0], k.shape[0])
    q, k, v = (
        torch.unflatten(x.expand(batch, -1, -1), 2, (heads, -1)).transpose(1, 2) for x in (q, k, v)
    )
    return scaled_attention(q, k, v).transpose(1, 2).flatten(2)  # B, L, D


def scaled_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(C)) v, as `F.scaled_dot_product_attention` has it.

    PyTorch's kernel is fast with AMX, and with values as wide as the keys, for which zeros are
    added. In bfloat16 on AVX-512 alone plain products, a few megabytes of scores at a time, take a
    quarter to a half of its time.

    Args:
        q: Queries (..., L, C); all three with the same leading sizes.
        k: Keys (..., S, C).
        v: Values (..., S, D).

    Returns:
        (..., L, D).
    """
    plain = q.dtype == torch.bfloat16 and q.device.type == "cpu" and not cpu_has("amx_tile")
    if torch.is_grad_enabled() or not plain:
        wide = F.pad(v, (0, missing)) if (missing := k.shape[-1] - v.shape[-1]) else v
        return F.scaled_dot_product_attention(q, k, wide)[..., : v.shape[-1]]
    lead = q.shape[:-2]
    q, k, v = (x.flatten(0, -3) for x in (q * q.shape[-1] ** -0.5, k, v))
    (count, length, _), keys = q.shape, k.transpose(1, 2)
    batch = max(1, SCORES // (length * k.shape[1]))
    rows = min(length, max(1, SCORES // k.shape[1]))
    out = q.new_empty(count, length, v.shape[2])
    for i in range(0, count, batch):
        # a batch of one would take four times as long
        some: slice | int = slice(i, i + batch) if batch > 1 else i
        for j in range(0, length, rows):
            scores = q[some, ..., j : j + rows, :] @ keys[some]
            out[some, ..., j : j + rows, :] = scores.softmax(-1) @ v[some]
    return out.view(*lead, length, -1)


@lru_cache
def cpu_has(instructions: str) -> bool:
    """Whether the processor has "amx_tile" or "avx512_bf16"; False where PyTorch cannot say."""
    return bool(getattr(torch.cpu, f"_is_{instructions}_supported", bool)())


@remembered
def sine_positions(
    channels: int, height: int, width: int, device: torch.device, temperature: float = 10000.0
) -> Tensor:
    """Sine position embedding of a map, normalised to its size (DETR, section A.4).

    Returns:
        (1, channels, height, width), float32; the first half of the channels is the row.
    """
    half = channels // 2
    scale = temperature ** (2 * (torch.arange(half, device=device) // 2).float() / half)

    def axis(length: int) -> Tensor:
        at = torch.arange(1, length + 1, dtype=torch.float32, device=device)
        angle = (at / (length + 1e-6) * 2 * math.pi)[:, None] / scale  # length, half
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)

    rows = axis(height)[:, None].expand(height, width, half)
    columns = axis(width)[None].expand(height, width, half)
    return torch.cat([rows, columns], dim=2).permute(2, 0, 1)[None].contiguous()


def sine_times(times: Tensor, channels: int, temperature: float = 10000.0) -> Tensor:
    """Sine embedding of scalars (..., ) -> (..., channels): sines first, then cosines."""
    half = channels // 2
    scale = temperature ** (2 * (torch.arange(half, device=times.device) // 2).float() / half)
    angle = times[..., None].float() / scale
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) with channels next to each other, as convolutions are fastest on a CPU.

    `contiguous` leaves the stride of a batch of one as it is, and then oneDNN takes the image for
    one with channels apart, which is ten times slower.

    >>> channels_last(torch.zeros(4, 5, 3).permute(2, 0, 1)[None]).stride()
    (60, 1, 15, 3)
    """
    rows = x.permute(0, 2, 3, 1).contiguous()
    return rows.view(-1).view(rows.shape).permute(0, 3, 1, 2)  # flattened, strides are made anew


def by_twos(x: Tensor) -> Tensor:
    """A map (N, C, 2 h, 2 w) as (N, h, 2, w, 2, C), to add to it what is known of 2 x 2 cells."""
    rows = torch.unflatten(x.permute(0, 2, 3, 1), 1, (-1, 2))  # N, h, 2, 2 w, C
    return torch.unflatten(rows, 3, (-1, 2))


def from_twos(x: Tensor) -> Tensor:
    """The reverse of `by_twos`."""
    return x.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def rows_for(x: Tensor, image_index: Tensor | None) -> Tensor:
    """The image rows (B, ...) that N objects look at; a single image, or one each, uncopied."""
    if x.shape[0] == 1 or image_index is None:
        return x
    if not x.requires_grad:
        return x.index_select(0, image_index)
    rows = torch.split(x, 1)  # gradients of rows are added up faster than those of an index
    return torch.cat([rows[i] for i in image_index.tolist()])


def versions(*modules: nn.Module) -> tuple[tuple[int, int], ...]:
    """Changes whenever a weight of the modules does."""
    return tuple(version(p) for m in modules for p in m.parameters())


def version(x: Tensor) -> tuple[int, int]:
    """Where a tensor's numbers lie, and how often they were changed there.

    Nothing counts the changes of a tensor that was made in torch's inference mode.
    """
    return x.data_ptr(), 0 if x.is_inference() else x._version


class LastUsed(Generic[T]):
    """The few values made last, each by the tensor it was made from.

    A value is found by where the tensor's numbers lie, so that it outlives views of them; they
    are held meanwhile, lest others come to lie there. Copies and pickles are empty.
    """

    def __init__(self, size: int = 4) -> None:
        self.size = size
        # newest first; replaced as a whole and never changed, as threads may share it
        self._kept: dict[Hashable, tuple[Tensor, T]] = {}

    def get(self, source: Tensor, key: Hashable, make: Callable[[], T]) -> T:
        """The value made from these very numbers under this key, or a new one."""
        return self.get_all([source], key, lambda _: [make()])[0]

    def get_all(
        self, sources: Sequence[Tensor], key: Hashable, make: Callable[[list[int]], Sequence[T]]
    ) -> list[T]:
        """The values of several tensors; those that are missing are made together.

        Args:
            sources: What they are made from.
            key: What else they depend on.
            make: Numbers of the sources whose values are missing -> these values.
        """
        places = [(x.data_ptr(), x.shape, x.stride(), key) for x in sources]
        known = self._kept
        missing = [i for i, place in enumerate(places) if place not in known]
        if missing:
            values = zip(missing, make(missing), strict=True)
            known = {places[i]: (sources[i], value) for i, value in values} | known
            self._kept = dict(list(known.items())[: self.size])
        return [known[place][1] for place in places]

    def __reduce__(self) -> tuple[type[LastUsed[T]], tuple[int]]:
        return LastUsed, (self.size,)
