"""A stand-in for the network that reads the truth from colours.

It has the methods of `geosam2_model.SAM2` that panning and clicking use, needs no weights and
answers in a millisecond, so that tests of following, seams, corrections and resuming judge the
algorithm and not the training. An object is what has the colour under the click.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from geosam2_model import Decoded, ImageFeatures, Memory, ModelConfig, Prompts
from torch import Tensor
from torch.nn import functional as F

NOWHERE = 1e6  # a colour that no pixel is near to


class ColourModel:
    """Segments by colour distance.

    Args:
        image_size: Side of the frames it wants.
        tolerance: Distance in 0..255 up to which a colour belongs to the object.

    >>> model = ColourModel(64)
    >>> pixels = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    >>> pixels[:, :, :, :32] = 200
    >>> out = model.decode(model.encode(pixels), Prompts.clicks([[10.0, 10.0]]))
    >>> int((out.logits > 0).sum()) == 16 * 8
    True
    """

    name = "colour"
    fingerprint = "colour-model-1"
    device = torch.device("cpu")

    def __init__(self, image_size: int = 128, tolerance: float = 40.0) -> None:
        self.config = ModelConfig(name="colour", image_size=image_size)
        self.tolerance = tolerance
        self.encoded = 0

    def encode(self, pixels: Tensor) -> ImageFeatures:
        """Features are the colours themselves."""
        self.encoded += len(pixels)
        colours = pixels.float()
        quarter = F.avg_pool2d(colours, 4)
        size = pixels.shape[-2], pixels.shape[-1]
        skips = quarter, F.avg_pool2d(colours, 8)
        return ImageFeatures(F.avg_pool2d(colours, 16), skips, size, pixels_small=colours)

    def attend(self, features: ImageFeatures, bank: Any, place: Any) -> ImageFeatures:
        """What is remembered: the object's colour, and one that a background click was on."""
        pointers = torch.stack(bank.recall(place).pointers)  # (frames, N, 6)
        seen = pointers[..., :3].sum(-1, keepdim=True) > 0
        colour = (pointers[..., :3] * seen).sum(0) / seen.sum(0).clamp(min=1)
        both = torch.cat([colour, pointers[..., 3:].amin(0)], dim=1)
        h, w = features.embedding.shape[-2:]
        return replace(features, conditioned=both[:, :, None, None].expand(-1, 6, h, w))

    def remember(
        self,
        features: ImageFeatures,
        out: Decoded,
        *,
        prompted: bool = False,
        logits: Tensor | None = None,
    ) -> Memory:
        """A memory holds the mean colour of the mask, and the unwanted colour."""
        logits = out.best_logits if logits is None else logits
        colour = _mean(features.high_res[0], logits > 0)
        pointer = torch.cat([colour, out.pointer[:, 3:]], dim=1)
        return Memory(F.avg_pool2d(logits[:, None], 4), pointer, out.object_score)

    def adopt(self, features: ImageFeatures, masks: Tensor) -> Decoded:
        """Masks (N, 1, H, W) that somebody else drew."""
        logits = F.avg_pool2d(masks, 4) * 16 - 8
        colour = _mean(features.high_res[0], logits[:, 0] > 0)
        pointer = torch.cat([colour, torch.full_like(colour, NOWHERE)], dim=1)
        score = torch.full((len(masks),), 10.0)
        return Decoded(logits, torch.ones(len(masks), 1), score, pointer)

    def decode(
        self, features: ImageFeatures, prompts: Prompts | None = None, multimask: bool = False
    ) -> Decoded:
        """Masks of everything that has the colours of the prompt, else of the memory."""
        if prompts is not None and prompts.image_index is not None:
            rows = {k: v[prompts.image_index] for k, v in features.to_dict().items()}
            features = ImageFeatures.from_dict(rows)
        assert features.pixels_small is not None  # full resolution: outlines are sub-pixel
        colours = features.pixels_small
        wanted, unwanted = self._wanted(features, prompts)
        distance = _distance(colours, wanted)
        sharp = ((self.tolerance - distance) / self.tolerance * 8).clamp(-8, 8)
        for other in unwanted:
            nearer = _distance(colours, other) < distance
            sharp = torch.where(nearer, -sharp.abs() - 1, sharp)
        logits = F.avg_pool2d(sharp.sign() * 8, 4)
        n = len(logits)
        masks = torch.stack([logits, logits - 4, logits + 2], 1) if multimask else logits[:, None]
        scores = torch.tensor([0.95, 0.8, 0.7])[: masks.shape[1]].expand(n, -1)
        seen = (logits > 0).flatten(1).any(1).float() * 20 - 10
        avoid = torch.stack(unwanted).amin(0) if unwanted else torch.full((n, 3), NOWHERE)
        pointer = torch.cat([_mean(features.high_res[0], logits > 0), avoid], dim=1)
        return Decoded(masks, scores, seen, pointer)

    def _wanted(
        self, features: ImageFeatures, prompts: Prompts | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Mean colour (N, 3) that is looked for, and colours that are not."""
        colours = features.high_res[0]
        wanted, away = None, []
        if features.conditioned is not None:
            wanted, avoid = features.conditioned[:, :3, 0, 0], features.conditioned[:, 3:, 0, 0]
            away = [avoid]
        if prompts is not None and prompts.points is not None and prompts.labels is not None:
            at = (prompts.points / 4).long().clamp(0, colours.shape[-1] - 1)
            images = colours.expand(len(at), -1, -1, -1)
            under = torch.stack([c[:, p[:, 1], p[:, 0]].T for c, p in zip(images, at, strict=True)])
            on, off = ((prompts.labels == label)[..., None] for label in (1, 0))
            if bool(on.any(1).all()):
                wanted = (under * on).sum(1) / on.sum(1)
            away += list(torch.where(off, under, NOWHERE).unbind(1))
        elif prompts is not None and prompts.masks is not None:
            wanted = _mean(colours, prompts.masks[:, 0] > 0)
        elif prompts is not None and prompts.boxes is not None:
            x0, y0, x1, y1 = prompts.boxes[0].tolist()
            col, row = int((x0 + x1) / 8), int((y0 + y1) / 8)  # the first one's middle, in cells
            wanted = colours[:, :, row, col]
        assert wanted is not None, "nothing to go by: no prompt and no memory"
        return wanted, away


def _distance(colours: Tensor, colour: Tensor) -> Tensor:
    """(N, h, w) from maps (B, 3, h, w) to N colours; many times as fast as `Tensor.norm`."""
    return (colours - colour[:, :, None, None]).square_().sum(1).sqrt_()


def _mean(colours: Tensor, masks: Tensor) -> Tensor:
    """(N, 3) mean colour under masks (N, h, w)."""
    share = masks.float()[:, None]
    return (colours * share).sum((-1, -2)) / share.sum((-1, -2)).clamp(min=1)
