"""The numbers that make one SAM 2 differ from another: a frozen dataclass, variants as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from geosam2_model.errors import InputError


@dataclass(frozen=True)
class ModelConfig:
    """Everything that is needed to build a `SAM2`; defaults are those of SAM 2.1 tiny."""

    name: str = "sam2.1_tiny"
    """What people call it; written beside results."""
    trunk: str = "hiera"
    """Key of `geosam2_model.trunks.TRUNKS`."""
    image_size: int = 1024
    """Side in pixels of the square frame that the weights expect; other sizes work, less well."""

    # Hiera (https://arxiv.org/abs/2306.00989)
    embed_dim: int = 96
    """Channels of the first stage; they double with each stage."""
    trunk_heads: int = 1
    """Attention heads of the first stage; they double with each stage."""
    stages: tuple[int, ...] = (1, 2, 7, 2)
    """Blocks per stage."""
    global_blocks: tuple[int, ...] = (5, 7, 9)
    """Blocks (counted over all stages) that attend to the whole image."""
    window_sizes: tuple[int, ...] = (8, 4, 14, 7)
    """Window side in tokens per stage; the first two are always 8 and 4."""
    background_size: int = 7
    """Side of the coarse position embedding that is stretched over the image."""

    # Widths
    d_model: int = 256
    """Channels of the image embedding and of every token."""
    mem_dim: int = 64
    """Channels of a spatial memory; divides d_model."""
    skip_channels: tuple[int, int] = (32, 64)
    """Channels of the stride-4 and stride-8 maps that the mask decoder adds while upscaling."""

    # Prompt encoder and mask decoder
    mask_channels: int = 16
    """Hidden channels of the mask prompt's encoder."""
    decoder_depth: int = 2
    """Two-way transformer blocks."""
    decoder_heads: int = 8
    """Heads of the two-way transformer."""
    decoder_mlp: int = 2048
    """Hidden units of its MLPs."""
    iou_hidden: int = 256
    """Hidden units of the IoU head."""
    dense_prompts: bool = False
    """Add `dense_prompts.DensePrompts`, the click's own maps (the embedded model has it)."""
    dense_widths: tuple[int, int, int] = (24, 48, 96)
    """Channels of its stack at stride 4, 8 and 16."""
    mask_quality: bool = False
    """Add `mask_quality.MaskQuality`, a second opinion on each mask (older weights have none)."""
    stability_delta: float = 0.05
    """Offset in logits for the stability test of the single mask."""
    stability_threshold: float | None = 0.98
    """Below it the best of the three other masks replaces the single one; None never does."""
    multimask_points: tuple[int, int] = (0, 1)
    """Three candidate masks are asked for while tracking when so many points are given."""

    # Memory
    num_maskmem: int = 7
    """Temporal positions of spatial memories: one prompted kind and num_maskmem - 1 recent ones."""
    memory_layers: int = 4
    """Blocks of memory attention."""
    memory_mlp: int = 2048
    """Hidden units of its MLPs."""
    fuser_layers: int = 2
    """ConvNeXt blocks of the memory encoder."""
    max_pointers: int = 16
    """Object pointers that a frame may look at."""
    pointer_time: bool = True
    """Object pointers carry a projected, signed temporal encoding (SAM 2.1)."""
    occlusion_embedding: bool = True
    """Memories of frames without the object are marked (SAM 2.1)."""
    memory_scale: float = 20.0
    """Mask probabilities enter the memory encoder as p * memory_scale + memory_bias."""
    memory_bias: float = -10.0
    """See memory_scale."""
    binarize_prompted: bool = True
    """Memories of prompted frames hold the mask exactly as the person saw it, 0 or 1."""

    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Mean of R, G, B in 0..255 (ImageNet)."""
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """Standard deviation of R, G, B in 0..255 (ImageNet)."""

    def __post_init__(self) -> None:
        if self.image_size % 32 or self.image_size <= 0:
            raise InputError(f"image_size is {self.image_size}; it must be a multiple of 32.")
        if self.d_model % self.mem_dim or self.d_model % self.decoder_heads:
            raise InputError(
                f"d_model {self.d_model} must be a multiple of mem_dim {self.mem_dim} "
                f"and of decoder_heads {self.decoder_heads}."
            )
        if self.trunk == "hiera" and self.window_sizes[:2] != (8, 4):
            raise InputError(f"Hiera's windows start with 8, 4, not {self.window_sizes[:2]}.")
        if self.trunk == "hiera" and min(self.global_blocks, default=99) <= sum(self.stages[:2]):
            raise InputError("Hiera's blocks up to the first of stage 3 look at windows only.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or a file's metadata.

        >>> ModelConfig.from_dict(ModelConfig().to_dict()) == ModelConfig()
        True
        """
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The reverse of `to_dict`; lists become tuples.

        Raises:
            InputError: If a name is not a field of the config.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise InputError(f"Unknown settings {unknown}; this file is from a newer version.")
        fitted: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**fitted)


_TINY = ModelConfig()
_SIZES = {
    "tiny": _TINY,
    "small": replace(_TINY, stages=(1, 2, 11, 2), global_blocks=(7, 10, 13)),
    "base_plus": replace(
        _TINY,
        embed_dim=112,
        trunk_heads=2,
        stages=(2, 3, 16, 3),
        global_blocks=(12, 16, 20),
        background_size=14,
    ),
    "large": replace(
        _TINY,
        embed_dim=144,
        trunk_heads=2,
        stages=(2, 6, 36, 4),
        global_blocks=(23, 33, 43),
        window_sizes=(8, 4, 16, 8),
    ),
}

VARIANTS: dict[str, ModelConfig] = {
    **{f"sam2.1_{size}": replace(c, name=f"sam2.1_{size}") for size, c in _SIZES.items()},
    **{
        f"sam2_{size}": replace(
            c, name=f"sam2_{size}", pointer_time=False, occlusion_embedding=False
        )
        for size, c in _SIZES.items()
    },
    "nano": ModelConfig(
        name="nano",
        trunk="efficientnet_lite0",
        image_size=512,
        d_model=128,
        mem_dim=64,
        skip_channels=(32, 64),
        decoder_heads=4,
        decoder_mlp=512,
        iou_hidden=128,
        memory_layers=2,
        memory_mlp=512,
        dense_prompts=True,
        mask_quality=True,
        pixel_mean=(127.0, 127.0, 127.0),
        pixel_std=(128.0, 128.0, 128.0),
    ),
}
"""Every published configuration by name: SAM 2.1 and SAM 2 in four sizes, and the embedded one."""
