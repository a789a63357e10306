"""What a good answer is: masks, their predicted IoU, and whether the object is there at all.

As in SAM 2 (section 5 of its paper) the best of three candidates is what counts; the focal loss
there collapses to empty masks in short training, so cross-entropy is used instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from geosam2_model.mask_decoder import DecoderOutput


@dataclass(frozen=True)
class LossWeights:
    """How much each part counts."""

    cross_entropy: float = 2.0
    """Binary cross-entropy, averaged over the crop."""
    dice: float = 1.0
    """1 - Dice coefficient."""
    iou: float = 0.5
    """Absolute error of the predicted IoU."""
    presence: float = 0.3
    """Cross-entropy of the object score."""
    others: float = 0.05
    """Share of the two candidates that are not the best, so that they stay alive."""


def coverage(masks: Tensor) -> Tensor:
    """Share of each stride-4 cell that the mask covers: (N, H, W) bool -> (N, H / 4, W / 4)."""
    return F.avg_pool2d(masks[:, None].float(), 4)[:, 0]


def mask_loss(logits: Tensor, truth: Tensor, weights: LossWeights) -> Tensor:
    """Loss of each mask, (N, M).

    Args:
        logits: (N, M, h, w).
        truth: (N, h, w) coverage, 0..1.
        weights: Of the two parts.
    """
    wanted = truth[:, None].expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean((2, 3))
    # small objects are few cells of many: without this only Dice would see them
    entropy = entropy * (0.25 / truth.mean((1, 2)).sqrt().clamp(0.05)).clamp(1.0, 4.0)[:, None]
    shares = logits.sigmoid()
    both = (shares * wanted).sum((2, 3))
    dice = 1 - (2 * both + 1) / (shares.square().sum((2, 3)) + wanted.square().sum((2, 3)) + 1)
    return weights.cross_entropy * entropy + weights.dice * dice


def mask_iou(logits: Tensor, truth: Tensor) -> Tensor:
    """IoU of masks (N, M, h, w) > 0 with coverage (N, h, w) > 0.5; 1 where both are empty.

    >>> mask_iou(torch.tensor([[[[1.0, 1.0]]]]), torch.tensor([[[1.0, 0.0]]]))
    tensor([[0.5000]])
    """
    found, wanted = logits > 0, (truth > 0.5)[:, None]
    either = (found | wanted).sum((2, 3))
    both = (found & wanted).sum((2, 3))
    return torch.where(either > 0, both / either.clamp(1), torch.ones_like(both, dtype=torch.float))


def interaction_loss(
    out: DecoderOutput, truth: Tensor, present: Tensor, weights: LossWeights
) -> tuple[Tensor, Tensor]:
    """Loss of one round of prompts, a scalar, and the IoU of the four masks (N, 4).

    Args:
        out: Of the mask decoder.
        truth: (N, h, w) coverage.
        present: (N,) bool; where False the object is not on the picture and masks are not judged.
        weights: Of the parts.
    """
    each = mask_loss(out.logits, truth, weights)
    candidates = each[:, 1:]
    best = candidates.amin(1)
    masks = each[:, 0] + best + weights.others * (candidates.sum(1) - best)
    achieved = mask_iou(out.logits.detach(), truth)
    quality = (out.predicted_iou - achieved).abs().mean(1)
    seen = present.float()
    judged = ((masks + weights.iou * quality) * seen).sum() / seen.sum().clamp(1)
    presence = F.binary_cross_entropy_with_logits(out.object_score, seen)
    return judged + weights.presence * presence, achieved
