"""pan(): follow one object from frame to frame over the map, as SAM 2 follows it through a video.

The state is what has been decided (a sparse logit mosaic), what is remembered (the memory bank) and
a report of every frame that was looked at. Which border to cross next is worked out from them at
each step, so there is no queue to keep in order: a run can be paused, saved, corrected and resumed
in another process, and goes on as if nothing had happened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray

from geosam2 import __version__
from geosam2.cache import EncodedFrame, FrameEncoder
from geosam2.errors import InterruptedRunError, PromptError, SourceError
from geosam2.looking import LIMIT, Answer, Look, places_in
from geosam2.masklet import (
    UNREAD,
    FrameReport,
    Masklet,
    OpenBorder,
    PanOptions,
    Side,
    Step,
)
from geosam2.mosaic import LogitMosaic, Patch
from geosam2.prompts import (
    MASK_STEP,
    FramePrompt,
    Point,
    Prompt,
    apply_affine,
    check_valid,
    locate,
)
from geosam2.quality import mask_iou, stability_score
from geosam2.state import read_state, report_from, write_state
from geosam2.tiling import FrameGrid, FrameIndex

if TYPE_CHECKING:
    from geosam2_model import SAM2, ImageFeatures, MemoryBank
    from torch import Tensor

    from geosam2.levels import Level
    from geosam2.scene import Scene

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

SIDES: dict[Side, tuple[int, int]] = {
    "north": (-1, 0),
    "east": (0, 1),
    "south": (1, 0),
    "west": (0, -1),
}
STRIP = 2  # cells (8 px) along a frame border in which the mask counts as touching it
REVISIT = 4  # cells of a border where a visited neighbour saw nothing: worth a second look
AGREED = 0.7  # IoU in the overlap below which a neighbour of a corrected frame is looked at anew
JOINED = 0.3  # IoU in the overlap from which two frames count as one object after a correction
MOST_LOOKS = 3  # times that one frame is looked at, at most
RETRY = 1.5  # a refused frame is tried again when so many times more contact has come up


class Panning:
    """A run that follows one object; iterate over it for its steps.

    The one mutable object of this module. Between any two steps it may be left alone (pause),
    corrected (`correct`) or stored (`save`).

    Args:
        scene: Where pixels come from, or a `FrameEncoder` that has its own cache.
        model: The network, in eval mode; ignored with a `FrameEncoder`.
        prompt: What to follow, in any CRS.
        level: Level of the scene, its number or label.
        overlap: Pixels that neighbouring frames share.
        options: How to follow.

    Raises:
        PromptError: If the prompt cannot be used.
    """

    def __init__(
        self,
        scene: Scene | FrameEncoder,
        model: SAM2 | None,
        prompt: Prompt,
        *,
        level: Level | int | str = 0,
        overlap: int | None = None,
        options: PanOptions | None = None,
    ) -> None:
        prompt.check_start()
        self.encoder = _encoder(scene, model)
        self.options = options or PanOptions()
        size = self.encoder.model.config.image_size
        overlap = size // 4 if overlap is None else overlap
        self.grid = FrameGrid.of(self.encoder.scene, level, frame_size=size, overlap=overlap)
        self.prompts: list[Prompt] = [locate(prompt, self.encoder.scene)]
        self.mosaic = LogitMosaic(self.grid.level.transform, self.encoder.scene.crs)
        self.reports: dict[FrameIndex, FrameReport] = {}
        self.bank = self._new_bank()
        self._redo: list[FrameIndex] = []
        self._corrected = False

    def _new_bank(self) -> MemoryBank:
        from geosam2_model import MemoryBank

        return MemoryBank(self.options.positions, history=max(64, self.options.max_frames))

    # -- the run

    def __iter__(self) -> Iterator[Step]:
        while not self.finished:
            yield self.step()

    @property
    def finished(self) -> bool:
        """True when nothing is left to look at, or `max_frames` is reached."""
        return self.done >= self.options.max_frames or self._next() is None

    @property
    def done(self) -> int:
        """Looks at frames so far."""
        return sum(report.looks for report in self.reports.values())

    def step(self) -> Step:
        """Look at the next frame.

        Raises:
            PromptError: If the user's own point cannot be used on the first frame.
            StopIteration: Never; ask `finished` first, or iterate.
        """
        index = self._next()
        assert index is not None, "the run is finished"
        correcting = index in self._redo
        self._redo = [other for other in self._redo if other != index]
        report, logits = self._look(index, correcting)
        self.reports[index] = report
        if correcting:
            self._forget_disagreeing(index)
        if self._corrected and self._next() is None:
            self._forget_unreached()
        return Step(
            report,
            logits,
            self.done,
            sum(one.accepted for one in self.reports.values()),
            len({border.beyond for border in self._borders()}),
            self._area(),
        )

    def correct(self, prompt: Prompt) -> None:
        """Take in another point; the next steps re-do the frames that it changes and no others.

        Frames that hold the point are looked at again with it. Neighbours that no longer agree with
        them are forgotten and, where the object still reaches them, looked at anew; what hangs on
        nothing any more is dropped.

        Raises:
            PromptError: If the prompt lies outside the scene.
        """
        prompt = locate(prompt, self.encoder.scene)
        self.prompts.append(prompt)
        self._corrected = True
        holders = [i for i in self.reports if any(p in prompt.points for p, _ in self._clicks(i))]
        owner = self.grid.index_at(*(prompt.points[0] if prompt.points else prompt.anchor))
        holders.sort(key=lambda index: (index != owner, index))
        self._redo += [index for index in holders if index not in self._redo]
        self._allow(2 * max(len(holders), 1))

    def _allow(self, looks: int) -> None:
        """A correction may look at some frames again even if `max_frames` had been reached."""
        if self.done + looks > self.options.max_frames:
            self.options = replace(self.options, max_frames=self.done + looks)

    @property
    def masklet(self) -> Masklet:
        """The object as far as it is known."""
        kept = tuple(r for r in self.reports.values() if r.accepted and r.cells)
        edges = tuple(self._borders())
        return Masklet(
            self.prompts[0].object_id,
            self.mosaic,
            self.grid.level,
            kept,
            edges,
            tuple(self.prompts),
        )

    # -- where to look next

    def _next(self) -> FrameIndex | None:
        if self._redo:
            return self._redo[0]
        for prompt in self.prompts:
            for index in self._owners(prompt):
                if index not in self.reports:
                    return index
        reach = self._reach()
        tries = {index: value for index, value in reach.items() if self._worth(index, value)}
        return max(tries, key=lambda index: (tries[index], (-index.row, -index.col)), default=None)

    def _owners(self, prompt: Prompt) -> list[FrameIndex]:
        """Frames that must be looked at because a foreground point (or the anchor) is theirs."""
        places = [p for p, label in zip(prompt.points, prompt.labels, strict=True) if label == 1]
        anchors = [prompt.anchor] if prompt is self.prompts[0] else []
        return list(dict.fromkeys(self.grid.index_at(x, y) for x, y in [*anchors, *places]))

    def _reach(self) -> dict[FrameIndex, float]:
        """Frames beyond open borders -> cells of contact, weighted by how sure the near side is."""
        reach: dict[FrameIndex, float] = {}
        for border in self._borders():
            sure = self.reports[border.frame].predicted_iou
            reach[border.beyond] = reach.get(border.beyond, 0.0) + border.contact * sure
        return reach

    def _worth(self, index: FrameIndex, contact: float) -> bool:
        """True for a frame that was not seen yet, or of which there is something new to say."""
        report = self.reports.get(index)
        if report is None:
            return True
        if report.looks >= MOST_LOOKS or report.unread:
            return False
        return report.accepted or contact >= RETRY * max(report.contact, 1)

    def _borders(self) -> list[OpenBorder]:
        """Every border that the mask touches and that has no answer on its other side."""
        found = []
        for index, report in self.reports.items():
            if not report.accepted:
                continue
            for side, (down, right) in SIDES.items():
                beyond = FrameIndex(index.row + down, index.col + right)
                touching = self._touching(index, side)
                if beyond not in self.grid or not touching.any():
                    continue
                open_ = touching & ~self._answered(index, beyond, side)
                if (count := int(open_.sum())) >= self._least(beyond):
                    found.append(self._border(index, beyond, side, open_, count))
        return found

    def _least(self, beyond: FrameIndex) -> int:
        """A single cell opens a border; to doubt an accepted frame takes more."""
        report = self.reports.get(beyond)
        return REVISIT if report is not None and report.accepted else 1

    def _touching(self, index: FrameIndex, side: Side) -> BoolArray:
        """(n,) cells along a border where the frame's own mask touches it."""
        strip = _along(self.mosaic.patches[index].logits, side)[:STRIP]
        return np.asarray((strip > 0).any(0))

    def _answered(self, index: FrameIndex, beyond: FrameIndex, side: Side) -> BoolArray:
        """(n,) cells of a border about which the accepted frame beyond has given an answer.

        It has if it sees the object there too, or if it was looked at knowing this frame and said
        no: it sees further. An older answer given without this frame does not count.
        """
        count = self.grid.frame_size // MASK_STEP
        report = self.reports.get(beyond)
        if report is None or not report.accepted:
            dull = report is not None and report.reason == "no data"
            return np.full(count, dull)
        order = list(self.reports)
        if order.index(beyond) > order.index(index) or report.looks >= MOST_LOOKS:
            return np.ones(count, bool)
        near = self._near_part(beyond, side)
        return np.asarray((near > 0).any(0))

    def _near_part(self, beyond: FrameIndex, side: Side) -> FloatArray:
        """Logits of the frame beyond, where it overlaps the other's strip along the border."""
        opposite: dict[Side, Side] = {
            "north": "south",
            "south": "north",
            "east": "west",
            "west": "east",
        }
        overlap = self.grid.overlap // MASK_STEP
        depth = slice(max(overlap - 3 * STRIP, 0), overlap)
        return _along(self.mosaic.patches[beyond].logits, opposite[side])[depth]

    def _border(
        self, index: FrameIndex, beyond: FrameIndex, side: Side, cells: BoolArray, count: int
    ) -> OpenBorder:
        report = self.reports.get(beyond)
        reason = "not visited" if report is None else report.reason or "sees less"
        at = np.flatnonzero(cells)
        first, last = int(at[0]) * MASK_STEP, (int(at[-1]) + 1) * MASK_STEP
        row, col, height, width = self.grid.window(index)
        ends = {
            "north": ((col + first, row), (col + last, row)),
            "south": ((col + first, row + height), (col + last, row + height)),
            "west": ((col, row + first), (col, row + last)),
            "east": ((col + width, row + first), (col + width, row + last)),
        }[side]
        line = shapely.LineString([apply_affine(self.grid.level.transform, *end) for end in ends])
        return OpenBorder(index, beyond, side, count, reason, line)

    # -- looking at a frame

    def _look(self, index: FrameIndex, correcting: bool) -> tuple[FrameReport, FloatArray | None]:
        old = self.reports.pop(index, None)
        reach = sum(b.contact for b in self._borders() if b.beyond == index)
        start = FrameReport(
            index,
            accepted=False,
            prompted=bool(self._clicks(index)) or self._anchored(index),
            contact=reach,
            looks=old.looks + 1 if old else 1,
            visit=old.visit
            if old
            else 1 + max((r.visit for r in self.reports.values()), default=-1),
        )
        try:
            frame = self.encoder(self.grid.level, self.grid.window(index))
        except SourceError as error:
            return replace(start, reason=f"{UNREAD}: {error}"), None
        if not frame.valid.any():
            return replace(start, reason="no data"), None
        again = correcting or (old is not None and old.accepted)
        report, answer = self._segment(index, frame, start, again=again)
        if report.accepted:
            self._keep(report, frame, answer)
        elif old is not None and old.accepted and not correcting:
            return replace(old, looks=start.looks), answer.logits  # what it said before stands
        else:
            self._forget(report)
        return report, answer.logits

    def _segment(
        self, index: FrameIndex, frame: EncodedFrame, start: FrameReport, *, again: bool
    ) -> tuple[FrameReport, Answer]:
        import torch

        box = frame.window
        skip = self._unreached() if self._corrected else set()
        known, weight = self.mosaic.known(*box, step=MASK_STEP, skip=skip | {index})
        shown = known
        if again:  # what the frame itself said before is a hint, not something to agree with
            shown, _ = self.mosaic.known(*box, step=MASK_STEP, skip=skip - {index})
        said = self._said(index, frame, shown)
        with torch.no_grad():
            features = self._conditioned(frame.features, start)
            look = Look(self.encoder.model, frame, features, said, known, weight)
            answer = look.answer(alternative=self.options.alternative, rounds=self.options.rounds)
        return self._judged(start, answer), answer

    def _conditioned(self, features: ImageFeatures, report: FrameReport) -> ImageFeatures:
        if not self.options.use_memory or len(self.bank) == 0:
            return features
        return self.encoder.model.attend(features, self.bank, self._place(report))

    def _place(self, report: FrameReport) -> int | tuple[int, int]:
        """Where the memory bank files a frame: on the lattice, or by its number as in a video."""
        on_map = self.options.positions == "map"
        return self.grid.origin(report.index) if on_map else report.visit

    def _said(self, index: FrameIndex, frame: EncodedFrame, shown: FloatArray) -> FramePrompt:
        """The user's prompts on this frame, and what is known of it as a mask with points in it."""
        clicks = self._clicks(index)
        said = FramePrompt(tuple(p for p, _ in clicks), tuple(label for _, label in clicks))
        check_valid(said, frame)
        if self._anchored(index):
            first = FramePrompt.of(self.prompts[0], frame)
            said = replace(said, box=first.box, logits=first.logits)
        if not self.options.use_known or not (shown != 0).any():
            return said
        if not said.points and said.box is None:
            places = places_in(shown, frame)
            said = replace(said, points=tuple(places), labels=(1,) * len(places))
        return replace(said, logits=np.clip(shown, -LIMIT, LIMIT))

    def _judged(self, start: FrameReport, answer: Answer) -> FrameReport:
        report = replace(
            start,
            predicted_iou=float(answer.decoded.predicted_iou[0, 0]),
            stability=stability_score(answer.logits),
            object_score=float(answer.decoded.object_score[0]),
            agreement=answer.agreement,
            cells=int((answer.logits > 0).sum()),
        )
        reason = self._refusal(report)
        return replace(report, accepted=not reason, reason=reason)

    def _refusal(self, report: FrameReport) -> str:
        """Why a frame is not believed; empty if it is."""
        gate = self.options.gate
        if report.prompted:  # the user knows better; only an object that nobody denied is missed
            wanted = 1 in (label for _, label in self._clicks(report.index))
            missed = not report.cells and (wanted or self._anchored(report.index))
            return "object not seen" if missed else ""
        if not report.cells:
            return "object not seen"
        if report.object_score <= gate.object_score:
            return f"object not seen (score {report.object_score:.1f})"
        if report.agreement < gate.agreement:
            return f"disagrees with the overlap (IoU {report.agreement:.2f})"
        if report.predicted_iou < gate.predicted_iou:
            return f"unsure (predicted IoU {report.predicted_iou:.2f})"
        return ""

    def _keep(self, report: FrameReport, frame: EncodedFrame, answer: Answer) -> None:
        import torch

        row, col, _, _ = frame.window
        overlap = self.grid.overlap
        patch = Patch(row, col, answer.logits, MASK_STEP, overlap, valid=frame.valid)
        self.mosaic.add(report.index, patch)
        if not self.options.use_memory:
            return
        model = self.encoder.model
        logits = torch.from_numpy(answer.logits)[None].to(model.device)
        with torch.no_grad():
            memory = model.remember(
                frame.features, answer.decoded, prompted=report.prompted, logits=logits
            )
        self.bank.add(memory, self._place(report), prompted=report.prompted)

    def _forget(self, report: FrameReport) -> None:
        self.mosaic.remove(report.index)
        self.bank.remove(self._place(report))

    # -- the user's points

    def _anchored(self, index: FrameIndex) -> bool:
        first = self.prompts[0]
        return (first.box is not None or first.mask is not None) and (
            index == self.grid.index_at(*first.anchor)
        )

    def _clicks(self, index: FrameIndex) -> list[tuple[Point, int]]:
        """The user's points that lie inside a frame, a cell or more from its border."""
        left, bottom, right, top = self.grid.bounds(index)
        margin = MASK_STEP * self.grid.level.cell_size
        return [
            ((x, y), label)
            for prompt in self.prompts
            for (x, y), label in zip(prompt.points, prompt.labels, strict=True)
            if left + margin < x < right - margin and bottom + margin < y < top - margin
        ]

    # -- corrections

    def _forget_disagreeing(self, index: FrameIndex) -> None:
        """Drop neighbours whose masks no longer fit the frame that was corrected."""
        for neighbour in self.grid.neighbours(index, diagonal=True):
            report = self.reports.get(neighbour)
            if report is None or report.prompted or neighbour in self._redo:
                continue
            agreed, _ = self._overlap(index, neighbour)
            if not report.accepted or agreed < AGREED:
                self._forget(self.reports.pop(neighbour))

    def _overlap(self, a: FrameIndex, b: FrameIndex) -> tuple[float, bool]:
        """IoU of two frames' masks where both look, and whether they share any of the object."""
        if a not in self.mosaic or b not in self.mosaic:
            return 0.0, False
        window = self.grid.window(a) & self.grid.window(b)
        first, second = (self._cut(index, window) > 0 for index in (a, b))
        return mask_iou(first, second), bool((first & second).any())

    def _cut(self, index: FrameIndex, window: Any) -> FloatArray:
        patch = self.mosaic.patches[index]
        top = (window.row - patch.row) // MASK_STEP
        left = (window.col - patch.col) // MASK_STEP
        height, width = window.height // MASK_STEP, window.width // MASK_STEP
        return patch.logits[top : top + height, left : left + width]

    def _unreached(self) -> set[FrameIndex]:
        """Accepted frames that no chain of agreeing frames joins to a prompted one."""
        accepted = [index for index, report in self.reports.items() if report.accepted]
        reached = {index for index in accepted if self.reports[index].prompted}
        edge = list(reached)
        while edge:
            here = edge.pop()
            for other in self.grid.neighbours(here, diagonal=True):
                new = other in self.mosaic and other not in reached
                agreed, shared = self._overlap(here, other) if new else (0.0, False)
                if shared and agreed >= JOINED:
                    reached.add(other)
                    edge.append(other)
        return set(accepted) - reached

    def _forget_unreached(self) -> None:
        for index in self._unreached():
            self._forget(self.reports.pop(index))

    # -- figures

    def _area(self) -> float:
        """Each frame's mask without the half of the overlap that is its neighbour's."""
        cells = 0
        for index, report in self.reports.items():
            if not report.accepted:
                continue
            mask = self.mosaic.patches[index].logits > 0
            half = self.grid.overlap // MASK_STEP // 2
            rows, cols = [0, mask.shape[0]], [0, mask.shape[1]]
            for number, (down, right) in enumerate(SIDES.values()):
                if FrameIndex(index.row + down, index.col + right) in self.mosaic:
                    span, end = (rows, cols)[number % 2], int(number in (1, 2))
                    span[end] += -half if end else half
            cells += int(mask[rows[0] : rows[1], cols[0] : cols[1]].sum())
        size = self.grid.level.gsd
        return cells * MASK_STEP**2 * (1.0 if math.isnan(size) else size**2)

    # -- pausing for longer

    def save(self, path: str | Path) -> None:
        """Store the run, whole or not at all; `Panning.load` goes on from there.

        One safetensors file; its JSON metadata say which scene, weights and options it is for.
        """
        if self._corrected:
            self._forget_unreached()
        write_state(Path(path), self._about(), self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        import torch

        arrays = self.mosaic.state_dict()
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        tensors |= {f"bank/{name}": t.clone() for name, t in self.bank.state_dict().items()}
        return tensors

    def _about(self) -> dict[str, Any]:
        level = self.grid.level
        return {
            "version": __version__,
            "scene": self.encoder.scene.signature,
            "model": self.encoder.model.fingerprint,
            "level": level.index,
            "overlap": self.grid.overlap,
            "options": asdict(self.options),
            "prompts": [prompt.to_json() for prompt in self.prompts],
            "reports": [asdict(report) for report in self.reports.values()],
            "redo": self._redo,
            "corrected": self._corrected,
        }

    @classmethod
    def load(
        cls, path: str | Path, scene: Scene | FrameEncoder, model: SAM2 | None = None
    ) -> Panning:
        """Go on with a stored run.

        Raises:
            InterruptedRunError: If the file is damaged, or was made for another scene or model.
        """
        about, tensors = read_state(Path(path))
        prompts = [Prompt.from_json(stored) for stored in about["prompts"]]
        encoder = _encoder(scene, model)
        run = cls(
            encoder,
            None,
            prompts[0],
            level=encoder.scene.level(about["level"]),
            overlap=about["overlap"],
            options=PanOptions.from_json(about["options"]),
        )
        run._check_same(about, path)
        run._restore(about, tensors, prompts)
        return run

    def _check_same(self, about: dict[str, Any], path: str | Path) -> None:
        mine = {"scene": self.encoder.scene.signature, "model": self.encoder.model.fingerprint}
        for name, value in mine.items():
            if about[name] != value:
                raise InterruptedRunError(
                    f"state {path} was made with another {name} ({about[name][:12]} is not "
                    f"{value[:12]}): resume with the same one, or start anew without --resume"
                )

    def _restore(
        self, about: dict[str, Any], tensors: dict[str, Tensor], prompts: list[Prompt]
    ) -> None:
        from geosam2_model import MemoryBank

        arrays = {n: t.numpy() for n, t in tensors.items() if n.startswith("mosaic/")}
        stored = LogitMosaic.from_state(arrays, self.mosaic.transform, self.mosaic.crs)
        self.mosaic.patches = {
            FrameIndex(*key): patch  # type: ignore[misc]
            for key, patch in stored.patches.items()
        }
        bank = {n.removeprefix("bank/"): t for n, t in tensors.items() if n.startswith("bank/")}
        self.bank = MemoryBank.from_state(bank)
        self.prompts = prompts
        for entry in about["reports"]:
            report = report_from(entry)
            self.reports[report.index] = report
        self._redo = [FrameIndex(*index) for index in about["redo"]]
        self._corrected = about["corrected"]
        self.retry_failed()

    def retry_failed(self) -> None:
        """Forget the frames that could not be read, so that they are tried again."""
        failed = [i for i, report in self.reports.items() if report.unread]
        for index in failed:
            del self.reports[index]


def pan(
    scene: Scene | FrameEncoder,
    model: SAM2 | None,
    prompt: Prompt,
    *,
    level: Level | int | str = 0,
    overlap: int | None = None,
    **options: Any,
) -> Iterator[Step]:
    """Follow one object over the map: a generator with one step a frame.

    For pausing, correcting and saving make a `Panning` and iterate over it.

    Args:
        scene: Where pixels come from.
        model: The network, in eval mode.
        prompt: A click, box or mask in any CRS.
        level: Level of the scene, its number (0 is native) or label.
        overlap: Pixels that neighbouring frames share; default a quarter of a frame.
        **options: Fields of `PanOptions`: max_frames, use_memory, use_known, positions, gate.

    Yields:
        A `Step` for each frame.
    """
    yield from Panning(
        scene, model, prompt, level=level, overlap=overlap, options=PanOptions(**options)
    )


def _encoder(scene: Scene | FrameEncoder, model: SAM2 | None) -> FrameEncoder:
    if isinstance(scene, FrameEncoder):
        return scene
    if model is None:
        raise PromptError("a model is needed to follow an object: pass geosam2_model.load('nano')")
    return FrameEncoder(scene, model)


def _along(logits: FloatArray, side: Side) -> FloatArray:
    """The logits turned so that row 0 lies at a border and columns run along it."""
    turned = {
        "north": logits,
        "south": logits[::-1],
        "west": logits.T,
        "east": logits.T[::-1],
    }
    return turned[side]
