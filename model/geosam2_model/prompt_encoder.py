"""Prompts of N objects and how they become tokens and maps (SAM paper, section A)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from geosam2_model.config import ModelConfig
from geosam2_model.errors import InputError
from geosam2_model.ops import LayerNorm2d, version

_FIELDS = ("points", "labels", "boxes", "masks", "image_index")

# point labels; box corners are two points of their own kind
PADDING, BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = -1, 0, 1, 2, 3


@dataclass(frozen=True)
class Prompts:
    """What a person said about N objects, in pixels of the network's input.

    >>> Prompts.clicks([[100.0, 200.0]]).points.shape
    torch.Size([1, 1, 2])
    """

    points: Tensor | None = None
    """(N, P, 2) float, x then y; pixel centres are integers, as in SAM."""
    labels: Tensor | None = None
    """(N, P) 1 foreground, 0 background, -1 padding (2 and 3 are the corners of a box)."""
    boxes: Tensor | None = None
    """(N, 4) float, left, top, right, bottom."""
    masks: Tensor | None = None
    """(N, 1, H / 4, W / 4) float logits of an earlier answer."""
    image_index: Tensor | None = None
    """(N,) long, which image of the batch each object is on; None: the only one, or one each."""
    in_part: bool = False
    """Masks are what neighbouring frames know of objects that go on here: `mask_quality`, which
    prefers what ends in sight, is not asked about them."""

    def __post_init__(self) -> None:
        if (self.points is None) != (self.labels is None):
            raise InputError("points and labels come together; give both or neither.")
        if self.points is not None and self.labels is not None:
            _expect(self.points, ("N", "P", 2), "points")
            if self.labels.shape != self.points.shape[:2]:
                raise InputError(
                    f"labels have shape {tuple(self.labels.shape)}; points of shape "
                    f"{tuple(self.points.shape)} need {tuple(self.points.shape[:2])}."
                )
            if not bool(((self.labels >= -1) & (self.labels <= 3)).all()):
                raise InputError("labels must be 1 (foreground), 0 (background) or -1 (padding).")
        if self.boxes is not None:
            _expect(self.boxes, ("N", 4), "boxes")
        if self.masks is not None:
            _expect(self.masks, ("N", 1, "H / 4", "W / 4"), "masks")
        if len({len(x) for x in self._tensors().values()}) > 1:
            counts = {name: len(x) for name, x in self._tensors().items()}
            raise InputError(f"Prompts disagree on the number of objects: {counts}.")

    @classmethod
    def clicks(cls, points: list[list[float]], labels: list[int] | None = None) -> Prompts:
        """One object from points [x, y]; all foreground unless `labels` says otherwise."""
        labels = [FOREGROUND] * len(points) if labels is None else labels
        return cls(torch.tensor([points], dtype=torch.float32), torch.tensor([labels]))

    def __len__(self) -> int:
        return max((len(x) for x in self._tensors().values()), default=0)

    @property
    def num_points(self) -> int:
        """Points per object; a box counts as two, as in SAM 2's rule for candidate masks."""
        return (0 if self.points is None else self.points.shape[1]) + 2 * (self.boxes is not None)

    def __getitem__(self, objects: slice) -> Prompts:
        """Some of the objects."""
        some: dict[str, Any] = {k: v[objects] for k, v in self._tensors().items()}
        return replace(self, **some)

    def to(self, device: torch.device) -> Prompts:
        """The same on another device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in self._tensors().items()}
        return replace(self, **moved)

    def corners_and_points(self) -> tuple[Tensor, Tensor] | None:
        """Box corners, then points: ((N, P, 2), (N, P)), or None without either."""
        parts = []
        if self.boxes is not None:
            corners = self.boxes.float().reshape(-1, 2, 2)
            kinds = torch.tensor([TOP_LEFT, BOTTOM_RIGHT], device=corners.device)
            parts.append((corners, kinds.expand(len(corners), 2)))
        if self.points is not None and self.labels is not None:
            parts.append((self.points.float(), self.labels.long()))
        if not parts:
            return None
        points, labels = zip(*parts, strict=True)
        return torch.cat(points, dim=1), torch.cat(labels, dim=1)

    def _tensors(self) -> dict[str, Tensor]:
        found = {name: getattr(self, name) for name in _FIELDS}
        return {name: x for name, x in found.items() if x is not None}


def _expect(x: Tensor, shape: tuple[str | int, ...], name: str) -> None:
    fits = x.ndim == len(shape) and all(
        not isinstance(want, int) or have == want for have, want in zip(x.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, shape))
        raise InputError(f"{name} have shape {tuple(x.shape)}; expected ({wanted}).")
    if not torch.isfinite(x).all():
        raise InputError(f"{name} contain NaN or infinity; give finite numbers.")


class RandomPositions(nn.Module):
    """Positions as random Fourier features (https://arxiv.org/abs/2006.10739)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.positional_encoding_gaussian_matrix: Tensor
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, channels // 2))

    def forward(self, xy: Tensor) -> Tensor:
        """Places (..., 2) in 0..1 -> (..., channels)."""
        angle = 2 * math.pi * ((2 * xy - 1) @ self.positional_encoding_gaussian_matrix.float())
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class PromptEncoder(nn.Module):
    """Points and boxes become tokens, a mask becomes a map that is added to the image."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, hidden = config.d_model, config.mask_channels
        self.pe_layer = RandomPositions(width)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, width) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, width)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, hidden // 4, 2, stride=2),
            LayerNorm2d(hidden // 4),
            nn.GELU(),
            nn.Conv2d(hidden // 4, hidden, 2, stride=2),
            LayerNorm2d(hidden),
            nn.GELU(),
            nn.Conv2d(hidden, width, 1),
        )
        self.no_mask_embed = nn.Embedding(1, width)
        self._grid: tuple[tuple[object, ...], Tensor] | None = None

    def sparse(self, prompts: Prompts, size: tuple[int, int]) -> Tensor:
        """Tokens of the points and boxes (N, P + 1, d_model); the last one is padding.

        Args:
            prompts: Of N objects.
            size: Height and width of the input in pixels.
        """
        both = prompts.corners_and_points()
        if both is None:  # nothing said: one empty point
            device = self.no_mask_embed.weight.device
            both = (torch.zeros(len(prompts), 1, 2, device=device),
                    torch.full((len(prompts), 1), PADDING, device=device))  # fmt: skip
        points, labels = both
        points = torch.cat([points + 0.5, points.new_zeros(len(points), 1, 2)], dim=1)
        labels = torch.cat([labels, labels.new_full((len(labels), 1), PADDING)], dim=1)
        height, width = size
        where = self.pe_layer(points / points.new_tensor([width, height]))  # N, P + 1, C
        kinds = [self.not_a_point_embed, *self.point_embeddings]
        kind = torch.cat([e.weight for e in kinds])[labels + 1]  # type: ignore[union-attr]
        return torch.where((labels == PADDING)[..., None], kind, where + kind)

    def dense(self, prompts: Prompts) -> Tensor:
        """Map of the mask prompts (N, d_model, h, w), or the one embedding (1, d_model, 1, 1)."""
        if prompts.masks is None:
            return self.no_mask_embed.weight[..., None, None]
        result: Tensor = self.mask_downscaling(prompts.masks.to(self.no_mask_embed.weight.dtype))
        return result

    def grid(self, height: int, width: int) -> Tensor:
        """Position of every cell of the image embedding, (1, height * width, d_model)."""
        matrix = self.pe_layer.positional_encoding_gaussian_matrix
        key = (height, width, matrix.device, version(matrix))
        kept = self._grid  # another thread may put in another size meanwhile
        if kept is None or kept[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                y = (torch.arange(height, device=matrix.device) + 0.5) / height
                x = (torch.arange(width, device=matrix.device) + 0.5) / width
                xy = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # height, width, 2
                kept = self._grid = (key, self.pe_layer(xy).flatten(0, 1)[None])
        return kept[1]
