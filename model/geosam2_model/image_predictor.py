"""One image, any number of prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from geosam2_model.errors import InputError
from geosam2_model.frames import as_picture, to_pixels
from geosam2_model.prompt_encoder import FOREGROUND, PADDING, Prompts
from geosam2_model.sam2 import SAM2, ImageFeatures


@dataclass(frozen=True)
class ImagePrediction:
    """Masks of N objects in the image's own pixels."""

    logits: Tensor
    """(N, M, H, W) float32, mask where > 0."""
    predicted_iou: Tensor
    """(N, M) the network's guess of each mask's IoU, 0..1."""
    object_score: Tensor
    """(N,) logit; > 0 means the object is visible."""
    low_res: Tensor
    """(N, M, h, w) the logits before enlarging: give one back as `mask` to refine it."""

    @property
    def masks(self) -> Tensor:
        """(N, M, H, W) bool."""
        return self.logits > 0


class ImagePredictor:
    """Set an image once, prompt it often.

    >>> import numpy as np
    >>> from geosam2_model.config import VARIANTS
    >>> from dataclasses import replace
    >>> model = SAM2(replace(VARIANTS["sam2.1_tiny"], image_size=64)).eval()
    >>> predictor = ImagePredictor(model)
    >>> predictor.set_image(np.zeros((40, 50, 3), np.uint8))
    >>> predictor.predict(points=[[[25, 20]]], labels=[[1]]).logits.shape
    torch.Size([1, 3, 40, 50])
    """

    def __init__(self, model: SAM2) -> None:
        self.model = model
        self.features: ImageFeatures | None = None
        self.image_shape = (0, 0)

    @torch.no_grad()
    def set_image(self, image: Any) -> None:
        """Encode an image, (H, W, 3) uint8, R, G, B; any size."""
        picture = as_picture(image)
        self.image_shape = (picture.shape[0], picture.shape[1])
        self.features = self.model.encode(to_pixels(picture, self.model.config.image_size))

    @torch.no_grad()
    def predict(
        self,
        points: npt.ArrayLike | Tensor | None = None,
        labels: npt.ArrayLike | Tensor | None = None,
        boxes: npt.ArrayLike | Tensor | None = None,
        mask: Tensor | None = None,
        *,
        multimask: bool = True,
    ) -> ImagePrediction:
        """Masks of N objects at once.

        Args:
            points: (N, P, 2) or (P, 2) for one object; x, y in pixels of the image.
            labels: (N, P) or (P,); 1 foreground, 0 background, -1 padding. All 1 by default.
            boxes: (N, 4) or (4,); left, top, right, bottom.
            mask: (N, 1, h, w) logits of an earlier answer's `low_res`.
            multimask: Three candidates for each object instead of one mask.

        Raises:
            InputError: If no image is set, nothing is prompted, or a prompt is off the image.
        """
        if self.features is None:
            raise InputError("No image is set; call set_image first.")
        prompts = prompts_in(
            self.image_shape, self.features.size, points=points, labels=labels, boxes=boxes,
            masks=mask,
        )  # fmt: skip
        out = self.model.decode(self.features, prompts, multimask)
        large = F.interpolate(out.logits, self.image_shape, mode="bilinear", align_corners=False)
        return ImagePrediction(large, out.predicted_iou, out.object_score, out.logits)


def prompts_in(
    image: tuple[int, int],
    network: tuple[int, int],
    *,
    points: npt.ArrayLike | Tensor | None = None,
    labels: npt.ArrayLike | Tensor | None = None,
    boxes: npt.ArrayLike | Tensor | None = None,
    masks: Tensor | None = None,
) -> Prompts:
    """Prompts in an image's pixels as prompts in the network's.

    Args:
        image: Height and width of the image.
        network: Height and width of the network's input.
        points: (N, P, 2) or (P, 2).
        labels: (N, P) or (P,); all foreground by default.
        boxes: (N, 4) or (4,).
        masks: (N, 1, h, w) logits at a quarter of the network's size.

    Raises:
        InputError: If there is no prompt, or one is outside the image or not finite.
    """
    if points is None and labels is not None:
        raise InputError("labels are given without points.")
    if points is None and boxes is None and masks is None:
        raise InputError("Nothing is prompted; give points, boxes or a mask.")
    scale = torch.tensor([network[1] / image[1], network[0] / image[0]])
    where = kind = corners = None
    if points is not None:
        where = torch.as_tensor(points, dtype=torch.float32)
        where = where[None] if where.ndim == 2 else where
        kind = torch.full(where.shape[:2], FOREGROUND)
        if labels is not None:
            kind = torch.as_tensor(labels).long()
            kind = kind[None] if kind.ndim == 1 else kind
    if boxes is not None:
        corners = torch.as_tensor(boxes, dtype=torch.float32)
        corners = corners[None] if corners.ndim == 1 else corners
    prompts = Prompts(where, kind, corners, masks)  # checks the shapes
    _check_inside(prompts, image)
    return Prompts(
        None if where is None else where * scale,
        kind,
        None if corners is None else corners * scale.repeat(2),
        masks,
    )


def _check_inside(prompts: Prompts, image: tuple[int, int]) -> None:
    both = prompts.corners_and_points()
    if both is None:
        return
    if both[0].shape[1] == 0:
        raise InputError("The list of points is empty; give at least one.")
    real = both[0][both[1] != PADDING]
    limit = torch.tensor([image[1], image[0]])
    outside = ((real < 0) | (real > limit)).any(1)
    if outside.any():
        x, y = real[outside][0].tolist()
        raise InputError(
            f"Prompt ({x:g}, {y:g}) is outside the image of {image[1]} x {image[0]} pixels "
            "(x, y; width x height)."
        )
    if prompts.boxes is not None and bool((prompts.boxes[:, :2] >= prompts.boxes[:, 2:]).any()):
        raise InputError("A box is empty; its order is left, top, right, bottom.")
