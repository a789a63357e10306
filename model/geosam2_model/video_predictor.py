"""Follow objects through a video: frames from anywhere, memory use flat in their number."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from geosam2_model.errors import InputError
from geosam2_model.frames import open_frames, to_pixels
from geosam2_model.image_predictor import prompts_in
from geosam2_model.memory_bank import MemoryBank
from geosam2_model.prompt_encoder import Prompts
from geosam2_model.sam2 import SAM2, Decoded, ImageFeatures

LIMIT = 32.0  # logits of an earlier answer are clamped before they become a prompt


@dataclass(frozen=True)
class FrameMasks:
    """The objects on one frame."""

    frame: int
    """Number of the frame, from 0."""
    object_ids: tuple[Hashable, ...]
    """The caller's names, in the order of the rows below."""
    logits: Tensor
    """(N, H, W) float32 in the video's pixels, mask where > 0; -1024 where not visible."""
    object_score: Tensor
    """(N,) logit; > 0 means the object is visible."""

    @property
    def masks(self) -> Tensor:
        """(N, H, W) bool."""
        return self.logits > 0


@dataclass
class _Seen:
    """An object's answer on a frame that was prompted or tracked."""

    logits: Tensor  # (1, h, w), low resolution
    score: Tensor  # (1,)
    tracked: bool = False
    reverse: bool = False


@dataclass
class _Object:
    bank: MemoryBank
    seen: dict[int, _Seen] = field(default_factory=dict)

    def keep(self, number: int, seen: _Seen, limit: int) -> None:
        self.seen.pop(number, None)
        self.seen[number] = seen
        plain = [n for n in self.seen if not self.is_prompted(n)]
        for old in plain[: max(0, len(plain) - limit)]:
            del self.seen[old]

    def is_prompted(self, number: int) -> bool:
        entry = self.bank.get(number)
        return entry is not None and entry.prompted


class VideoPredictor:
    """Prompt objects on any frame, then iterate over `track`.

    Args:
        model: In eval mode.
        frames: A folder of pictures, a video file, a sequence, or any iterator of (H, W, 3) uint8
            arrays. An iterator is read once, so it is followed forwards only.
        num_frames: Length of the video, if an iterator hides it.
        memory_dtype: Type in which spatial memories wait; bfloat16 halves them.
        max_prompted: Prompted frames that a frame looks at; None looks at all.
        history: Frames whose memory and masks are kept for corrections, besides prompted ones.

    >>> import numpy as np
    >>> from dataclasses import replace
    >>> from geosam2_model.config import VARIANTS
    >>> model = SAM2(replace(VARIANTS["sam2.1_tiny"], image_size=64)).eval()
    >>> video = VideoPredictor(model, np.zeros((3, 48, 64, 3), np.uint8))
    >>> _ = video.prompt(0, "car", points=[[30, 20]])
    >>> [result.frame for result in video.track()]
    [0, 1, 2]
    """

    def __init__(
        self,
        model: SAM2,
        frames: str | os.PathLike[str] | Iterable[Any],
        *,
        num_frames: int | None = None,
        memory_dtype: torch.dtype | None = None,
        max_prompted: int | None = None,
        history: int = 32,
    ) -> None:
        self.model = model
        self.frames = open_frames(frames)
        self._num_frames = num_frames
        self.memory_dtype = memory_dtype
        self.max_prompted, self.history = max_prompted, history
        self._objects: dict[Hashable, _Object] = {}
        self._encoded: tuple[int, tuple[int, int], ImageFeatures] | None = None

    @property
    def num_frames(self) -> int | None:
        """Frames of the video; None while nobody knows."""
        return self.frames.count if self.frames.count is not None else self._num_frames

    @property
    def object_ids(self) -> tuple[Hashable, ...]:
        """Names of the objects, in the order in which they were first prompted."""
        return tuple(self._objects)

    @torch.no_grad()
    def prompt(
        self,
        frame: int,
        object_id: Hashable,
        *,
        points: npt.ArrayLike | Tensor | None = None,
        labels: npt.ArrayLike | Tensor | None = None,
        box: npt.ArrayLike | Tensor | None = None,
        mask: npt.ArrayLike | Tensor | None = None,
    ) -> FrameMasks:
        """Start an object, or correct it; before, during or after tracking.

        On a frame that tracking has passed, the memory helps and the earlier mask is refined.

        Args:
            frame: Number of the frame.
            object_id: Any name; a new one starts a new object.
            points: (P, 2) x, y in pixels of the video; all that hold for this frame.
            labels: (P,) 1 foreground, 0 background; all 1 by default.
            box: (4,) left, top, right, bottom.
            mask: (H, W) 0 or 1, taken as the truth; excludes the others.

        Raises:
            InputError: If the frame does not exist or the prompt does not fit it.
        """
        shape, features = self._encode_or_fail(frame)
        bank = MemoryBank(max_prompted=self.max_prompted, history=self.history)
        known = self._objects.get(object_id, _Object(bank))
        earlier = known.seen.get(frame)
        tracked = earlier is not None and earlier.tracked
        if mask is not None:
            if points is not None or box is not None:
                raise InputError("A mask is taken as the truth; give it without points and box.")
            out = self.model.adopt(features, self._mask(mask, shape))
        else:
            previous = None if earlier is None else earlier.logits[None].clamp(-LIMIT, LIMIT)
            prompts = prompts_in(
                shape, features.size, points=points, labels=labels, boxes=box, masks=previous
            )
            out = self._decode(features, [known] if tracked else [], frame, prompts,
                               earlier is not None and earlier.reverse)  # fmt: skip
        self._objects[object_id] = known
        # a correction of a tracked frame replaces its memory, it is no new beginning
        prompted = not tracked or known.is_prompted(frame)
        self._remember(frame, features, [known], out, kept_as_prompt=prompted, seen_by_person=True)
        reverse = earlier is not None and earlier.reverse
        known.keep(frame, _Seen(out.best_logits, out.object_score, tracked, reverse), self.history)
        return self._result(frame, shape)

    def remove(self, object_id: Hashable) -> None:
        """Forget an object.

        Raises:
            InputError: If there is none of that name.
        """
        if object_id not in self._objects:
            raise InputError(f"No object is called {object_id!r}; there are {self.object_ids}.")
        del self._objects[object_id]

    def track(
        self,
        start: int | None = None,
        *,
        reverse: bool = False,
        max_frames: int | None = None,
    ) -> Iterator[FrameMasks]:
        """Follow all objects from frame to frame.

        Leave the loop to pause; call again with `start` to go on, perhaps after a correction.

        Args:
            start: First frame; by default the earliest prompted one.
            reverse: Towards the first frame of the video.
            max_frames: Stop after so many frames.

        Raises:
            InputError: If nothing has been prompted.
        """
        if not self._objects:
            raise InputError("Nothing to follow; call prompt() first.")
        if start is None:
            start = min(n for o in self._objects.values() for n in o.seen if o.is_prompted(n))
        numbers = range(start, -1, -1) if reverse else count(start)
        for done, number in enumerate(numbers):
            if max_frames is not None and done >= max_frames:
                return
            with torch.no_grad():
                encoded = self._encode(number)
                if encoded is None:
                    return
                self._follow(number, encoded[1], reverse)
                result = self._result(number, encoded[0])
            yield result

    def _follow(self, number: int, features: ImageFeatures, reverse: bool) -> None:
        """All objects of a frame at once; prompted ones already have their answer."""
        for one in self._objects.values():
            if one.is_prompted(number):
                one.seen[number].tracked, one.seen[number].reverse = True, reverse
        objects = [o for o in self._objects.values() if not o.is_prompted(number)]
        if not objects:
            return
        out = self._decode(features, objects, number, None, reverse)
        self._remember(number, features, objects, out)
        for i, one in enumerate(objects):
            logits, score = out.best_logits[i : i + 1], out.object_score[i : i + 1]
            one.keep(number, _Seen(logits, score, True, reverse), self.history)

    def _decode(
        self,
        features: ImageFeatures,
        objects: list[_Object],
        number: int,
        prompts: Prompts | None,
        reverse: bool,
    ) -> Decoded:
        if objects:
            banks = [one.bank for one in objects]
            features = self.model.attend(
                features, banks, number, reverse=reverse, num_frames=self.num_frames
            )
        low, high = self.model.config.multimask_points
        multimask = low <= (0 if prompts is None else prompts.num_points) <= high
        return self.model.decode(features, prompts, multimask).hide_absent()

    def _remember(
        self,
        number: int,
        features: ImageFeatures,
        objects: list[_Object],
        out: Decoded,
        kept_as_prompt: bool = False,
        seen_by_person: bool = False,
    ) -> None:
        memory = self.model.remember(features, out, prompted=seen_by_person)
        memory = memory.to(memory.features.device, self.memory_dtype)
        for i, one in enumerate(objects):
            one.bank.add(memory[i : i + 1], number, prompted=kept_as_prompt)

    def _result(self, number: int, shape: tuple[int, int]) -> FrameMasks:
        found = [one.seen.get(number) for one in self._objects.values()]
        height, width = self._quarter()
        blank = _Seen(torch.full((1, height, width), -1024.0), torch.full((1,), -1024.0))
        logits = torch.cat([(seen or blank).logits.cpu() for seen in found])
        large = F.interpolate(logits[:, None], shape, mode="bilinear", align_corners=False)[:, 0]
        scores = torch.cat([(seen or blank).score.cpu() for seen in found])
        return FrameMasks(number, self.object_ids, large, scores)

    def _quarter(self) -> tuple[int, int]:
        side = self.model.config.image_size // 4
        return side, side

    def _encode_or_fail(self, number: int) -> tuple[tuple[int, int], ImageFeatures]:
        encoded = self._encode(number)
        if encoded is None:
            raise InputError(f"There is no frame {number}; the video has {self.num_frames}.")
        return encoded

    def _encode(self, number: int) -> tuple[tuple[int, int], ImageFeatures] | None:
        """Size of the frame and its features; None after the last frame."""
        if self._encoded is None or self._encoded[0] != number:
            if number < 0:
                return None
            try:
                picture = self.frames.get(number)
            except IndexError:
                return None
            shape = (picture.shape[0], picture.shape[1])
            features = self.model.encode(to_pixels(picture, self.model.config.image_size))
            self._encoded = (number, shape, features)
        return self._encoded[1:]

    def _mask(self, mask: npt.ArrayLike | Tensor, shape: tuple[int, int]) -> Tensor:
        """A mask in the video's pixels as the network's input size, (1, 1, S, S) of 0 and 1."""
        x = torch.as_tensor(mask)
        if tuple(x.shape) != shape:
            raise InputError(f"The mask has shape {tuple(x.shape)}; the frame has {shape}.")
        side = self.model.config.image_size
        x = x[None, None].float().to(self.model.device)
        if shape == (side, side):
            return x
        x = F.interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False)
        return (x >= 0.5).float()
