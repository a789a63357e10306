"""Frames of a video from wherever they come, one at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from geosam2_model.errors import InputError, ModelError

Picture = npt.NDArray[np.uint8]
"""(H, W, 3) uint8, R, G, B."""

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}
KEPT = 16  # decoded frames of a file, so that going backwards decodes each stretch once


class Frames(Protocol):
    """Frames by number; `count` is None when nobody knows it yet."""

    count: int | None

    def get(self, number: int) -> Picture:
        """A frame; IndexError after the last one."""
        ...


def open_frames(source: str | os.PathLike[str] | Iterable[Any]) -> Frames:
    """Frames from a folder of pictures, a video file, a sequence or an iterator.

    Only a sequence, a folder or a file can be followed backwards; of an iterator no more than the
    current frame is held.

    Raises:
        InputError: If a path holds no frames.
        ModelError: If a video file is given and PyAV is not installed.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir():
            return _Sequence(_Folder(path))
        if not path.exists():
            raise InputError(f"There is no folder or video file {path}.")
        return _VideoFile(path)
    if isinstance(source, Sequence | np.ndarray | Tensor):
        return _Sequence(source)
    return _Stream(iter(source))


class _Sequence:
    def __init__(self, items: Any) -> None:
        self.items = items
        self.count: int | None = len(items)

    def get(self, number: int) -> Picture:
        if not 0 <= number < len(self.items):
            raise IndexError(number)
        return as_picture(self.items[number])


class _Folder:
    """Pictures of a folder, in the order of the numbers in their names."""

    def __init__(self, folder: Path) -> None:
        found = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        self.paths = sorted(found, key=_natural)
        if not self.paths:
            raise InputError(f"{folder} holds no frames ({', '.join(sorted(SUFFIXES))}).")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Picture:
        try:
            with Image.open(self.paths[number]) as image:
                return np.asarray(image.convert("RGB"))
        except OSError as error:
            raise InputError(f"{self.paths[number]} is not a readable picture.") from error


def _natural(path: Path) -> list[tuple[int, str]]:
    """2.jpg before 10.jpg."""
    return [(int(p or 0), p) if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", path.name)]


class _Stream:
    def __init__(self, items: Iterator[Any]) -> None:
        self.items = items
        self.count: int | None = None
        self.number = -1
        self.current: Picture | None = None

    def get(self, number: int) -> Picture:
        if number < self.number:
            raise InputError(
                f"Frame {number} has passed (the iterator is at {self.number}). To go back, give "
                "a list, a folder or a video file."
            )
        while self.number < number:
            try:
                self.current = as_picture(next(self.items))
            except StopIteration:
                self.count = self.number + 1
                raise IndexError(number) from None
            self.number += 1
        assert self.current is not None
        return self.current


class _VideoFile:
    """A video file through PyAV; frames are found by their time stamps."""

    def __init__(self, path: Path) -> None:
        try:
            import av
        except ImportError as error:
            raise ModelError(
                f"Reading {path.name} needs PyAV: pip install 'geosam2[video]', or give a folder "
                "of frames."
            ) from error
        try:
            self.container = av.open(str(path))
            self.stream = self.container.streams.video[0]
            packets = self.container.demux(self.stream)
            self.times = sorted(p.pts for p in packets if p.pts is not None)
        except (av.FFmpegError, IndexError, OSError) as error:
            raise InputError(f"{path} is not a readable video.") from error
        self.count: int | None = len(self.times)
        self.kept: dict[int, Picture] = {}

    def get(self, number: int) -> Picture:
        if not 0 <= number < len(self.times):
            raise IndexError(number)
        if number not in self.kept:
            self._decode(number)
        return self.kept[number]

    def _decode(self, number: int) -> None:
        """Decode from the key frame before until `number`, keeping the last few."""
        numbers = {time: i for i, time in enumerate(self.times)}
        self.kept.clear()
        self.container.seek(self.times[number], stream=self.stream, backward=True)
        for frame in self.container.decode(self.stream):
            if frame.pts is None or frame.pts not in numbers:
                continue
            self.kept[numbers[frame.pts]] = as_picture(frame.to_ndarray(format="rgb24"))
            if len(self.kept) > KEPT:
                del self.kept[next(iter(self.kept))]
            if frame.pts >= self.times[number]:
                break
        if number not in self.kept:
            raise InputError(f"Frame {number} of the video cannot be decoded; the file is damaged.")


def as_picture(frame: Any) -> Picture:
    """A frame as (H, W, 3) uint8.

    Raises:
        InputError: If it is of another shape or type.
    """
    array = np.asarray(frame)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise InputError(
            f"The image has shape {array.shape} and type {array.dtype}; expected (H, W, 3) uint8 "
            "in the order R, G, B."
        )
    if 0 in array.shape:
        raise InputError(f"The image is empty (shape {array.shape}).")
    return array


def to_pixels(picture: Picture, side: int) -> Tensor:
    """A picture as the network's square input (1, 3, side, side), float 0..255."""
    pixels = torch.tensor(picture).permute(2, 0, 1)[None].float()
    if pixels.shape[-2:] == (side, side):
        return pixels
    return F.interpolate(
        pixels, size=(side, side), mode="bilinear", antialias=True, align_corners=False
    )
