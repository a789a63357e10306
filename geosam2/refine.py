"""Coarse to fine: sharpen the outline of an object that was found on a coarse level.

Only frames that the outline crosses are looked at; the inside stays as it was found. So the cost
grows with the perimeter and not with the area.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from geosam2 import regions
from geosam2.cache import EncodedFrame, FrameEncoder
from geosam2.errors import InterruptedRunError, LevelError, SourceError
from geosam2.looking import LIMIT, places_in
from geosam2.masklet import UNREAD, FrameReport, Masklet, Step
from geosam2.mosaic import UNKNOWN, LogitMosaic, Patch, valid_cells
from geosam2.prompts import MASK_STEP, FramePrompt, Prompt, network_prompts
from geosam2.quality import mask_iou, stability_score
from geosam2.state import read_state, report_from, write_state
from geosam2.tiling import FrameGrid, FrameIndex

if TYPE_CHECKING:
    from geosam2_model import Decoded

    from geosam2.levels import Level

FloatArray = NDArray[np.float32]

KEEPS = 0.7  # IoU with the coarse mask on a frame, below which the coarse mask is kept
FINE = 1  # rank of refined patches
LARGEST_JUMP = 4  # a level is refined towards one at most so many times finer


class Refining:
    """One object brought from its level to the next finer one; iterate for its steps.

    Args:
        encoder: Scene and network.
        masklet: What was found on the coarse level.
        level: Finer level of the same scene.
        overlap: Pixels that neighbouring frames share.

    Raises:
        LevelError: If `level` is not finer.
    """

    def __init__(
        self, encoder: FrameEncoder, masklet: Masklet, level: Level, *, overlap: int | None = None
    ) -> None:
        if level.index >= masklet.level.index:
            raise LevelError(
                f"level {level.label} is not finer than {masklet.level.label}, at which the object "
                "was found: there is nothing to refine"
            )
        self.encoder = encoder
        size = encoder.model.config.image_size
        overlap = size // 4 if overlap is None else overlap
        self.grid = FrameGrid.of(encoder.scene, level, frame_size=size, overlap=overlap)
        self.coarse = masklet
        self.mosaic = rescaled(masklet.mosaic, masklet.level, level)
        self.frames = frames_on_outline(masklet, self.grid)
        self.reports: list[FrameReport] = []

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Step]:
        for index in self.frames[len(self.reports) :]:
            yield self._step(index)

    @property
    def masklet(self) -> Masklet:
        """The object as it is refined so far; frames of the coarse level stay listed."""
        kept = tuple(report for report in self.reports if report.accepted)
        frames = (*self.coarse.frames, *kept)
        return replace(self.coarse, mosaic=self.mosaic, level=self.grid.level, frames=frames)

    # -- pausing for longer

    def save(self, path: Path) -> None:
        """Store what is refined so far, whole or not at all; `restore` goes on from there."""
        import torch

        fine = {key: patch for key, patch in self.mosaic.patches.items() if patch.rank == FINE}
        arrays = replace(self.mosaic, patches=fine).state_dict()
        about = {
            "level": self.grid.level.index,
            "prompts": [prompt.to_json() for prompt in self.coarse.prompts],
            "frames": self.frames,
            "reports": [asdict(report) for report in self.reports],
        }
        write_state(path, about, {n: torch.from_numpy(a.copy()) for n, a in arrays.items()})

    def restore(self, path: Path) -> None:
        """Take over what a run on the same object had refined, and which frames it had to.

        An outline found anew may differ by a rounding error, and so may the frames that it crosses.

        Raises:
            InterruptedRunError: If the file is damaged, or of another object.
        """
        about, tensors = read_state(path)
        prompts = tuple(Prompt.from_json(stored) for stored in about["prompts"])
        if about["level"] != self.grid.level.index or prompts != self.coarse.prompts:
            raise InterruptedRunError(
                f"state {path} belongs to another object: start anew without --resume"
            )
        self.frames = [FrameIndex(*index) for index in about["frames"]]
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        stored = LogitMosaic.from_state(arrays, self.mosaic.transform, self.mosaic.crs)
        self.mosaic.patches |= stored.patches
        self.reports = [report_from(entry) for entry in about["reports"]]

    # -- a frame

    def _step(self, index: FrameIndex) -> Step:
        report, logits = self._look(index)
        self.reports.append(report)
        accepted = sum(one.accepted for one in self.reports)
        left = len(self.frames) - len(self.reports)
        return Step(report, logits, len(self.reports), accepted, left, float("nan"))

    def _look(self, index: FrameIndex) -> tuple[FrameReport, FloatArray | None]:
        start = FrameReport(index, accepted=False, visit=len(self.reports))
        try:
            frame = self.encoder(self.grid.level, self.grid.window(index))
        except SourceError as error:
            return replace(start, reason=f"{UNREAD}: {error}"), None
        if not frame.valid.any():
            return replace(start, reason="no data"), None
        known = self._known(frame)
        out = self._decode(frame, known)
        logits = out.logits[0, 0].float().cpu().numpy().copy()
        kept = regions.reachable(logits > 0, known > 0, gap=1)
        logits[(logits > 0) & ~kept] *= -1
        report = replace(
            start,
            predicted_iou=float(out.predicted_iou[0, 0]),
            stability=stability_score(logits),
            object_score=float(out.object_score[0]),
            agreement=mask_iou(logits > 0, known > 0),
            cells=int((logits > 0).sum()),
        )
        if report.agreement < KEEPS:
            reason = f"disagrees with the coarse level (IoU {report.agreement:.2f})"
            return replace(report, reason=reason), logits
        row, col, _, _ = frame.window
        overlap = self.grid.overlap
        patch = Patch(row, col, logits, MASK_STEP, overlap, FINE, frame.valid)
        self.mosaic.add((FINE, *index), patch)
        return replace(report, accepted=True), logits

    def _known(self, frame: EncodedFrame) -> FloatArray:
        """(H/4, W/4) logits of the coarser level, and of refined neighbours."""
        full, _ = self.mosaic.known(*frame.window)
        height, width = (side // MASK_STEP for side in full.shape)
        cells: FloatArray = full.reshape(height, MASK_STEP, width, MASK_STEP).mean((1, 3))
        return cells

    def _decode(self, frame: EncodedFrame, known: FloatArray) -> Decoded:
        import torch

        places = tuple(places_in(known, frame))
        labels = (1,) * len(places)
        for prompt in self.coarse.prompts:  # what the user said holds here too
            if prompt.points:
                clicks = FramePrompt.of(replace(prompt, box=None, mask=None), frame)
                places, labels = places + clicks.points, labels + clicks.labels
        said = FramePrompt(places, labels, logits=np.clip(known, -LIMIT, LIMIT))
        with torch.no_grad():
            return self.encoder.model.decode(frame.features, network_prompts([said], [frame]))


def frames_on_outline(masklet: Masklet, grid: FrameGrid) -> list[FrameIndex]:
    """Frames of a finer grid that the outline of an object crosses, row by row."""
    from geosam2.vectorize import from_mosaic

    return grid.crossing(from_mosaic(masklet.mosaic).boundary)


def refinable_level(
    masklet: Masklet, encoder: FrameEncoder, *, finest: Level, overlap: int, max_frames: int
) -> Level | None:
    """The next level towards `finest`, or None if it would take too many frames."""
    levels = encoder.scene.levels
    now = masklet.level
    size = encoder.model.config.image_size
    for level in levels[finest.index : now.index]:
        if now.cell_size / level.cell_size > LARGEST_JUMP * 1.01:
            continue
        grid = FrameGrid.of(encoder.scene, level, frame_size=size, overlap=overlap)
        if len(frames_on_outline(masklet, grid)) <= max_frames:
            return level
    return None


def rescaled(mosaic: LogitMosaic, coarse: Level, fine: Level) -> LogitMosaic:
    """A mosaic of a coarse level on the pixel lattice of a finer one, as its lowest ranks."""
    found = LogitMosaic(fine.transform, mosaic.crs)
    for key, patch in mosaic.patches.items():
        found.add((coarse.index * 10 - 1000, *_tuple(key)), _rescaled(patch, coarse, fine))
    return found


def _rescaled(patch: Patch, coarse: Level, fine: Level) -> Patch:
    """One patch, its logits interpolated.

    Overviews of a picture whose side is no multiple of 2, 4, ... have pixels that are not quite so
    many times larger; far from the origin of the CRS that is many frames.
    """
    step = patch.step * round(coarse.cell_size / fine.cell_size)
    logits = np.where(_valid_cells(patch), patch.logits, np.float32(UNKNOWN))
    starts = []
    for axis, (place, size) in enumerate(((patch.row, 1), (patch.col, 0))):
        ratio = coarse.resolution[size] / fine.resolution[size]
        shift = (coarse.anchor[size] - fine.anchor[size]) / fine.resolution[size]
        first = place * ratio + (shift if axis else -shift)
        start = round(first)
        cell = patch.step * ratio  # fine pixels
        count = math.ceil(logits.shape[axis] * cell / step - 1e-6)
        middles = (start + (np.arange(count) + 0.5) * step - first) / cell - 0.5
        logits = _sampled(logits, np.round(middles, 6), axis)
        starts.append(start)
    overlap = patch.overlap * step // patch.step
    return Patch(starts[0], starts[1], logits, step, overlap, patch.rank - FINE)


def _sampled(values: FloatArray, places: NDArray[np.float64], axis: int) -> FloatArray:
    """Linear interpolation along an axis; what lies outside is as at the end."""
    last = values.shape[axis] - 1
    places = places.clip(0, last)
    below = np.floor(places).astype(int)
    share = (places - below).astype(np.float32)
    share = share[None] if axis else share[:, None]
    lower, upper = values.take(below, axis), values.take(np.minimum(below + 1, last), axis)
    found: FloatArray = lower + (upper - lower) * share
    return found


def _tuple(key: object) -> tuple[object, ...]:
    return tuple(key) if isinstance(key, tuple) else (key,)


def _valid_cells(patch: Patch) -> NDArray[np.bool_]:
    if patch.valid is None:
        return np.ones(patch.logits.shape, bool)
    return valid_cells(patch.valid, patch.step)
