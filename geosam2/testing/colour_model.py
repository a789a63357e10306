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
        return ImageFeatures(F.avg_pool2d(colours, 16), (quarter, F.avg_pool2d(colours, 8)), size)

    def attend(self, features: ImageFeatures, bank: Any, place: Any) -> ImageFeatures:
        """What is remembered is the object's colour, here spread over the map."""
        recall = bank.recall(place)
        colour = torch.stack([p[:, :3] for p in recall.pointers]).mean(0)
        h, w = features.embedding.shape[-2:]
        return replace(features, conditioned=colour[:, :, None, None].expand(-1, 3, h, w))

    def remember(
        self,
        features: ImageFeatures,
        out: Decoded,
        *,
        prompted: bool = False,
        logits: Tensor | None = None,
    ) -> Memory:
        """A memory holds the mean colour of the mask."""
        logits = out.best_logits if logits is None else logits
        colour = _mean(features.high_res[0], logits > 0)
        return Memory(F.avg_pool2d(logits[:, None], 4), colour, out.object_score)

    def decode(
        self, features: ImageFeatures, prompts: Prompts | None = None, multimask: bool = False
    ) -> Decoded:
        """Masks of everything that has the colours of the prompt, else of the memory."""
        colours = features.high_res[0]
        wanted, unwanted = self._wanted(features, prompts)
        distance = (colours - wanted[:, :, None, None]).norm(dim=1)
        logits = (self.tolerance - distance) / self.tolerance * 8
        for other in unwanted:
            nearer = (colours - other[:, :, None, None]).norm(dim=1) < distance
            logits = torch.where(nearer, -logits.abs() - 1, logits)
        n = len(logits)
        masks = torch.stack([logits, logits - 4, logits + 2], 1) if multimask else logits[:, None]
        scores = torch.tensor([0.95, 0.8, 0.7])[: masks.shape[1]].expand(n, -1)
        seen = (logits > 0).flatten(1).any(1).float() * 20 - 10
        return Decoded(masks, scores, seen, _mean(colours, logits > 0))

    def _wanted(
        self, features: ImageFeatures, prompts: Prompts | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Mean colour (N, 3) that is looked for, and colours that are not."""
        colours = features.high_res[0]
        wanted = features.conditioned[:, :, 0, 0] if features.conditioned is not None else None
        if prompts is None:
            assert wanted is not None, "nothing to go by: no prompt and no memory"
            return wanted, []
        if prompts.points is not None and prompts.labels is not None:
            at = (prompts.points / 4).long().clamp(0, colours.shape[-1] - 1)
            under = colours[0, :, at[..., 1], at[..., 0]].permute(1, 2, 0)  # (N, P, 3)
            on = (prompts.labels == 1)[..., None]
            if bool(on.any(1).all()):
                wanted = (under * on).sum(1) / on.sum(1)
            off = (prompts.labels == 0)[..., None].expand_as(under)
            away = [torch.where(off[:, i], under[:, i], 1e6) for i in range(under.shape[1])]
        elif prompts.masks is not None:
            wanted, away = _mean(colours, prompts.masks[:, 0] > 0), []
        else:
            assert prompts.boxes is not None
            x0, y0, x1, y1 = (prompts.boxes[0] / 4).long().tolist()
            away = []
            wanted = colours[:, :, y0 : y1 + 1, x0 : x1 + 1].mean((-1, -2))
        assert wanted is not None
        return wanted, away


def _mean(colours: Tensor, masks: Tensor) -> Tensor:
    """(N, 3) mean colour under masks (N, h, w)."""
    share = masks.float()[:, None]
    return (colours * share).sum((-1, -2)) / share.sum((-1, -2)).clamp(min=1)
