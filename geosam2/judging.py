"""Where the overlap leaves doubt, the memory decides: pan the object over and compare."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from geosam2.parts import CELL, FrameKey, Layout, Part
from geosam2.tiling import FrameGrid, FrameIndex

if TYPE_CHECKING:
    from geosam2_model import SAM2, ImageFeatures

    from geosam2.scene import Scene

KEPT = 24  # encoded frames; doubts come row by row, so a frame is encoded again once at most


class MemoryJudge:
    """Remembers one part, looks for it on the other frame, and the other way round.

    The answer depends on the two parts alone, not on what was asked before.

    Args:
        scene: Where pixels come from.
        network: With memory attention.
        grid: The frames.
        agreement: Mean IoU of what was followed with what was found, above which it is one object.
    """

    def __init__(
        self, scene: Scene, network: SAM2, grid: FrameGrid, *, agreement: float = 0.9
    ) -> None:
        self._scene, self._network, self._grid = scene, network, grid
        self._agreement = agreement
        self._layout = Layout(grid.frame_size, grid.overlap)
        self._features: OrderedDict[FrameKey, ImageFeatures] = OrderedDict()

    def __call__(self, a: Part, b: Part) -> bool:
        """True if the two parts are one object."""
        return (self._follow(a, b) + self._follow(b, a)) / 2 >= self._agreement

    def _follow(self, part: Part, other: Part) -> float:
        """IoU of `other` with what becomes of `part` when it is followed into its frame."""
        from geosam2_model import MemoryBank

        network = self._network
        bank = MemoryBank(positions="map")
        with torch.inference_mode():
            start = self._encoded(part.frame)
            mask = self._mask(part, 1).to(start.embedding.device)
            out = network.adopt(start, mask)
            bank.add(
                network.remember(start, out, prompted=True), self._origin(part.frame), prompted=True
            )
            seen = network.attend(self._encoded(other.frame), bank, self._origin(other.frame))
            answer = network.decode(seen, None, multimask=False)
        followed = (answer.best_logits[0] > 0).cpu()
        found = self._mask(other, CELL)[0, 0] > 0.5
        union = (followed | found).sum()
        return float((followed & found).sum() / union) if union else 0.0

    def _origin(self, frame: FrameKey) -> tuple[int, int]:
        return self._grid.origin(FrameIndex(*frame))

    def _mask(self, part: Part, step: int) -> Tensor:
        """(1, 1, S / step, S / step) 0 or 1 on the part's frame; step 1 or 4."""
        soft = part.soft_in(self._layout.frame(part.frame)) > 0.5
        mask = np.kron(soft, np.ones((CELL // step, CELL // step), bool))
        return torch.from_numpy(mask)[None, None].float()

    def _encoded(self, frame: FrameKey) -> ImageFeatures:
        if frame not in self._features:
            image = self._scene.read_frame(self._grid, FrameIndex(*frame)).pixels
            self._features[frame] = self._network.encode(torch.from_numpy(image)[None])
            while len(self._features) > KEPT:
                self._features.popitem(last=False)
        self._features.move_to_end(frame)
        return self._features[frame]
