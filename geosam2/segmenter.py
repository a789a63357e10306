"""Segmenter: prompts on a scene -> masks on one frame, or whole objects over many.

It holds the scene, the network and the cache of encoded frames, so a second click near the first
is answered without encoding anything.
"""

from __future__ import annotations

import datetime
import json
import math
import os
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geosam2 import zoom
from geosam2.asking import Answer, Question, ask
from geosam2.cache import EmbeddingCache, FrameEncoder, Place
from geosam2.errors import OptionError, PromptError
from geosam2.masklet import FrameReport, Masklet, PanOptions, Step
from geosam2.mosaic import LogitMosaic, Patch
from geosam2.prompts import MASK_STEP, Prompt, locate
from geosam2.propagate import Panning
from geosam2.quality import stability_score
from geosam2.refine import Refining, refinable_level
from geosam2.scene import open_scene
from geosam2.tiling import FrameGrid, FrameIndex

if TYPE_CHECKING:
    import geopandas
    import shapely
    from geosam2_model import SAM2

    from geosam2.levels import Level, Window
    from geosam2.scene import Scene

FloatArray = NDArray[np.float32]

SECOND_THOUGHTS = 2  # times that the network sees its own mask as a prompt after a first click
BATCH = 64  # prompts that are looked at through all zooms together
LAST_ANSWERS = 64  # remembered, so that one more click costs one more answer
SHOWN = 12.0  # an answer is shown to the network with the next click, within +-SHOWN
TOUCH = 2  # cells (8 px) at a frame's border: a mask there goes on beyond it


@dataclass(frozen=True)
class Preset:
    """Choices for people who do not want to choose."""

    model: str = "nano"
    """Name of the weights, unless others were asked for."""
    overlap: float = 0.25
    """Share of a frame that neighbours see too."""
    refine: bool = True
    """Bring what was found on a coarse level to the finest one."""


PRESETS = {
    None: Preset(),
    "rapid": Preset(overlap=0.125, refine=False),
    "high-res": Preset(model="small", overlap=0.375),
}
"""rapid: half the frames and no refinement; high-res: Meta's "small" weights, more overlap."""


@dataclass(frozen=True)
class FrameMask:
    """One mask on one frame: the answer to a click before anything is followed."""

    prompt: Prompt
    """What was asked, in the scene's CRS."""
    index: FrameIndex
    """Frame of the level's grid."""
    frame: Place
    """Where the frame is."""
    level: Level
    """Resolution."""
    logits: FloatArray
    """(H/4, W/4), > 0 = the object."""
    predicted_iou: float
    """The network's guess, 0..1."""
    object_score: float
    """Logit, > 0 = the object is visible."""
    overlap: int
    """Pixels that frames of this grid share."""
    kept: Level | None = None
    """Where a narrow object was followed after the clicks before; it is followed there still."""

    @property
    def window(self) -> Window:
        """Place on the level's pixel lattice."""
        return self.frame.window

    @property
    def stability(self) -> float:
        """IoU of the masks at logit +1 and -1."""
        return stability_score(self.logits)

    @property
    def quality(self) -> float:
        """Predicted IoU x stability."""
        return self.predicted_iou * self.stability

    @property
    def cover(self) -> float:
        """Share of the frame's data that the mask covers."""
        return float((self.logits > 0).sum() * MASK_STEP**2 / max(int(self.frame.valid.sum()), 1))

    @property
    def goes_on(self) -> bool:
        """True if the mask touches a border of the frame."""
        mask = self.logits > 0
        ends = (mask[:TOUCH], mask[-TOUCH:], mask[:, :TOUCH], mask[:, -TOUCH:])
        return any(bool(end.any()) for end in ends)

    @property
    def masklet(self) -> Masklet:
        """The mask as an object of one frame."""
        row, col, _, _ = self.frame.window
        mosaic = LogitMosaic(self.level.transform, self.prompt.crs)
        valid = self.frame.valid
        mosaic.add(self.index, Patch(row, col, self.logits, MASK_STEP, self.overlap, valid=valid))
        report = FrameReport(
            self.index,
            accepted=True,
            prompted=True,
            predicted_iou=self.predicted_iou,
            stability=self.stability,
            object_score=self.object_score,
            cells=int((self.logits > 0).sum()),
        )
        return Masklet(self.prompt.object_id, mosaic, self.level, (report,), (), (self.prompt,))

    def polygon(self, **options: Any) -> shapely.Geometry:
        """Outline in the scene's CRS; options as of `vectorize.polygons`."""
        from geosam2.vectorize import from_mosaic

        return from_mosaic(self.masklet.mosaic, **options)


def _question(
    prompt: Prompt, level: Level, window: Window, before: FrameMask | None = None
) -> Question:
    """A question; the answer before the last click is shown with it."""
    if before is None:
        return Question(prompt, level, window)
    shown = np.clip(zoom.carried(before, level, window), -SHOWN, SHOWN)
    return Question(prompt, level, window, shown)


class Segmenter:
    """Answers prompts on one scene.

    Args:
        scene: A scene, or anything that `open_scene` takes.
        model: Name or path of weights, or a `geosam2_model.SAM2`; default that of the preset.
        preset: "rapid", "high-res" or None.
        cache: Where encoded frames are kept; default memory and disk, shared with other processes.

    Raises:
        PromptError: If there is no such preset.
    """

    def __init__(
        self,
        scene: Scene | Any,
        model: str | SAM2 | None = None,
        *,
        preset: str | None = None,
        cache: EmbeddingCache | None = None,
    ) -> None:
        if preset not in PRESETS:
            raise PromptError(f"preset {preset!r}: use 'rapid', 'high-res' or none at all")
        self.preset = PRESETS[preset]
        self.scene: Scene = open_scene(scene)
        self.model = _load(model if model is not None else self.preset.model)
        cache = EmbeddingCache() if cache is None else cache
        self.encoder = FrameEncoder(self.scene, self.model, cache)
        self._answers: OrderedDict[Prompt, FrameMask] = OrderedDict()

    @property
    def frame_size(self) -> int:
        """Side in pixels of the frames that the network wants."""
        return int(self.model.config.image_size)

    @property
    def overlap(self) -> int:
        """Pixels that neighbouring frames share."""
        return round(self.frame_size * self.preset.overlap / 16) * 16

    def grid(self, level: Level | int | str = 0) -> FrameGrid:
        """Frames of a level."""
        return FrameGrid.of(self.scene, level, frame_size=self.frame_size, overlap=self.overlap)

    # -- one frame

    def predict(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        level: Level | int | str = 0,
    ) -> list[FrameMask]:
        """The best mask of each prompt on one frame.

        Args:
            prompts: In any CRS. Objects that share a frame are decoded together.
            level: Level, its number or label, or "auto": the zoom, finer than native if need be,
                whose mask the others agree with best; see `geosam2.zoom`.

        Raises:
            PromptError: If a prompt is outside, on nodata or otherwise unusable.
        """
        asked = [prompts] if isinstance(prompts, Prompt) else list(prompts)
        for prompt in asked:
            prompt.check_start()
        located = [locate(prompt, self.scene) for prompt in asked]
        if level == "auto":
            return [found[0] for found in self._zoomed(located)]
        return [found[0] for found in self._looks(located, self.scene.level(level))]

    def alternatives(self, prompt: Prompt, *, level: Level | int | str = 0) -> list[FrameMask]:
        """Up to three masks of an ambiguous click, best first.

        At a level: the network's three candidates; one if the prompt is not ambiguous. "auto":
        the best masks of any zoom that differ from each other.
        """
        prompt.check_start()
        located = [locate(prompt, self.scene)]
        if level == "auto":
            return self._zoomed(located)[0]
        return self._looks(located, self.scene.level(level))[0]

    def sketch(self, prompt: Prompt, *, level: Level | int | str = 0) -> FrameMask:
        """A first answer to a prompt, to be shown until `alternatives` has the better one.

        It takes a single decoding: the network does not see its own mask again, and "auto" looks
        at one zoom, that of the answer before, or else the one nearest to native.
        """
        prompt.check_start()
        asked = locate(prompt, self.scene)
        if level == "auto":
            earlier = _without_last_click(asked)
            before = self._answers.get(earlier) if earlier else None
            where, window = self._likely_look(asked, before)
        else:
            before, where = None, self.scene.level(level)
            window = self._home(asked, where)
        (answer,) = self._ask([_question(asked, where, window, before)])
        return max(self._masks(answer), key=lambda one: one.predicted_iou)

    def _likely_look(self, prompt: Prompt, before: FrameMask | None) -> tuple[Level, Window]:
        """One of the looks that `looks` takes at a prompt."""
        latest = before or next(reversed(self._answers.values()), None)
        cell = (latest.level if latest else self.scene.levels[0]).cell_size
        some = zoom.windows(self.scene, prompt, self.frame_size // zoom.SHARE)
        if not some:
            return self._coarsest(), self._home(prompt, self._coarsest())
        return min(some, key=lambda look: abs(math.log(look[0].cell_size / cell)))

    def _zoomed(self, prompts: Sequence[Prompt]) -> list[list[FrameMask]]:
        """Masks of each prompt at the zooms that show it best, best first; see `zoom`."""
        found = []
        for start in range(0, len(prompts), BATCH):
            some = prompts[start : start + BATCH]
            for prompt, looks in zip(some, self.looks(some), strict=True):
                best = [looks[n] for n in zoom.distinct(looks)]
                best = best or self._looks([prompt], self._coarsest())[0]
                kept = self._kept(self._before(prompt))
                found.append([replace(mask, kept=kept) for mask in best])
                self._remember(prompt, found[-1][0])
        return found

    def _kept(self, before: FrameMask | None) -> Level | None:
        """Level of a narrow object: a window that shows all clicks would show it too small."""
        level = None if before is None else self.follows_at(before)
        return level if level is not None and level.index < 0 else None

    def looks(self, prompts: Sequence[Prompt]) -> list[list[FrameMask]]:
        """All masks of each prompt at every zoom, finest first, before one is chosen.

        A further click is looked at near the zoom of the answer that it corrects.

        Args:
            prompts: In the scene's CRS. The clicks of each are answered one after the other.
        """
        views: list[tuple[int, Question]] = []
        side = self.frame_size // zoom.SHARE
        for number, prompt in enumerate(prompts):
            before = self._before(prompt)
            last = None if before is None else before.level
            for level, window in zoom.windows(self.scene, prompt, side, last):
                views.append((number, _question(prompt, level, window, before)))
        answers = self._ask([question for _, question in views], SECOND_THOUGHTS)
        found: list[list[FrameMask]] = [[] for _ in prompts]
        for (number, _), answer in zip(views, answers, strict=True):
            found[number] += self._masks(answer)
        return found

    def _coarsest(self) -> Level:
        """For a box or a click too far apart for any window: followed from there."""
        return self.scene.levels[: zoom.MOST_LEVELS][-1]

    def _before(self, prompt: Prompt) -> FrameMask | None:
        """The answer before the last click of a prompt: clicks are answered one after the other."""
        unknown = []
        earlier = _without_last_click(prompt)
        while earlier is not None and earlier not in self._answers:
            unknown.append(earlier)
            earlier = _without_last_click(earlier)
        before = None if earlier is None else self._recalled(earlier)
        for one in reversed(unknown):  # the answer before each of them is remembered by then
            before = self._zoomed([one])[0][0]
        return before

    def _recalled(self, prompt: Prompt) -> FrameMask:
        self._answers.move_to_end(prompt)
        return self._answers[prompt]

    def _remember(self, prompt: Prompt, mask: FrameMask) -> None:
        self._answers[prompt] = mask
        self._answers.move_to_end(prompt)
        while len(self._answers) > LAST_ANSWERS:
            self._answers.popitem(last=False)

    def _looks(self, prompts: Sequence[Prompt], level: Level) -> list[list[FrameMask]]:
        """Masks of each prompt on the frame of its anchor, best first."""
        frames: dict[Window, list[int]] = defaultdict(list)
        for number, prompt in enumerate(prompts):
            frames[self._home(prompt, level)].append(number)
        found: list[list[FrameMask]] = [[] for _ in prompts]
        for window, members in frames.items():  # all answers at once would be gigabytes
            asked = [_question(prompts[n], level, window) for n in members]
            answers = self._ask(asked, SECOND_THOUGHTS)
            for n, answer in zip(members, answers, strict=True):
                found[n] = sorted(self._masks(answer), key=lambda mask: -mask.predicted_iou)
        return found

    def _home(self, prompt: Prompt, level: Level) -> Window:
        """The frame of a prompt's anchor."""
        grid = self.grid(level)
        return grid.window(grid.index_at(*prompt.anchor))

    def _ask(self, questions: Sequence[Question], second_thoughts: int = 0) -> list[Answer]:
        return ask(self.model, self.encoder, questions, second_thoughts)

    def _masks(self, answer: Answer) -> list[FrameMask]:
        """Every mask of an answer, with its place."""
        prompt, level = answer.question.prompt, answer.question.level
        grid = self.grid(max(level.index, 0))
        return [
            FrameMask(
                prompt,
                grid.index_at(*prompt.anchor),
                answer.frame.place,
                level,
                *candidate,
                overlap=min(self.overlap, answer.question.window.height // 2),
            )
            for candidate in answer.candidates()
        ]

    # -- whole objects

    def start(
        self,
        prompt: Prompt,
        *,
        level: Level | int | str = "auto",
        options: PanOptions | None = None,
    ) -> Panning:
        """A run that follows one object: iterate over it; `Panning` tells how to pause it."""
        if level == "auto":
            mask = self.predict(prompt, level=level)[0]
            level = self.follows_at(mask) or zoom.followed_at(self.scene, mask)
        return Panning(
            self.encoder, None, prompt, level=level, overlap=self.overlap, options=options
        )

    def refinements(
        self, masklet: Masklet, *, finest: Level | int | str = 0, max_frames: int = 50
    ) -> Iterator[Refining]:
        """Runs that bring an object to the finest level, one after the other; iterate over each.

        Ends early at the level where the outline would cross more than `max_frames` frames.
        """
        target = self.scene.level(finest)
        while target.index < masklet.level.index:
            level = refinable_level(
                masklet, self.encoder, finest=target, overlap=self.overlap, max_frames=max_frames
            )
            if level is None:
                return
            run = Refining(self.encoder, masklet, level, overlap=self.overlap)
            yield run
            masklet = run.masklet

    def objects(
        self,
        prompts: Sequence[Prompt],
        *,
        level: Level | int | str = "auto",
        options: PanOptions | None = None,
        refine: bool | None = None,
        on_step: Callable[[Prompt, Step], None] | None = None,
    ) -> Iterator[Masklet]:
        """Whole objects, one a prompt, in order.

        Args:
            prompts: In any CRS.
            level: Where to follow; "auto" lets each object choose.
            options: How to follow.
            refine: Bring objects to the finest level; default as the preset says for "auto", and
                not for a level that was asked for.
            on_step: Called after each frame, for a progress bar.
        """
        options = options or PanOptions()
        refine = self.refines(level, refine)
        for mask in self.predict(prompts, level=level):
            masklet = mask.masklet
            if (where := self.follows_at(mask, level)) is not None:
                run = self.start(mask.prompt, level=where, options=options)
                for step in run:
                    if on_step:
                        on_step(mask.prompt, step)
                masklet = run.masklet
            if refine:
                masklet = self.refined(masklet, options, on_step)
            yield masklet

    def follows_at(self, mask: FrameMask, level: Level | int | str = "auto") -> Level | None:
        """The level at which an object is followed; None if its first mask is all of it.

        At a level that was asked for, one decoding in one frame may have stopped short of the
        object's ends, as at marks across a road; for "auto" several zooms agreed on it.
        A narrow thing that was followed after the clicks before is followed there still: a window
        that shows all clicks would show it too small.
        """
        if level != "auto":
            return self.scene.level(level)
        if mask.kept is not None:
            return mask.kept
        return zoom.followed_at(self.scene, mask) if mask.goes_on else None

    def refines(self, level: Level | int | str, refine: bool | None) -> bool:
        """Whether outlines are brought to the finest level: as asked, else as the preset says."""
        return self.preset.refine and level == "auto" if refine is None else refine

    def refined(
        self,
        masklet: Masklet,
        options: PanOptions,
        on_step: Callable[[Prompt, Step], None] | None = None,
    ) -> Masklet:
        """An object brought to the finest level, as far as `max_frames` of `options` allows."""
        for run in self.refinements(masklet, max_frames=options.max_frames):
            for step in run:
                if on_step:
                    on_step(masklet.prompts[0], step)
            masklet = run.masklet
        return masklet

    def segment(
        self,
        prompts: Sequence[Prompt],
        *,
        level: Level | int | str = "auto",
        options: PanOptions | None = None,
        refine: bool | None = None,
        **geometry: Any,
    ) -> geopandas.GeoDataFrame:
        """Whole objects as polygons; see `objects`, `to_frame` and `vectorize.polygons`."""
        from geosam2.vectorize import check_options

        check_options(**geometry)
        found = self.objects(prompts, level=level, options=options, refine=refine)
        return self.to_frame(list(found), **geometry)

    def to_frame(self, masklets: Sequence[Masklet], **geometry: Any) -> geopandas.GeoDataFrame:
        """Objects as a GeoDataFrame in the scene's CRS, one row each.

        Args:
            masklets: Of this scene.
            **geometry: min_area_m2, simplify_m, orthogonal, smooth; see `vectorize.polygons`.

        Returns:
            Columns id, score, stability, area_m2 (NaN without a CRS), frames, open_edges, level,
            model, prompt (JSON), source, date (of this result, ISO), geometry.
        """
        return self.table(self.rows(masklets, **geometry))

    def rows(self, masklets: Sequence[Masklet], **geometry: Any) -> list[dict[str, Any]]:
        """The same as dictionaries, which can be stored one by one; `table` joins them."""
        return [self._row(masklet, geometry) for masklet in masklets]

    def table(self, rows: list[dict[str, Any]]) -> geopandas.GeoDataFrame:
        """Rows as a GeoDataFrame in the scene's CRS."""
        import geopandas

        crs = self.scene.crs
        columns = [*COLUMNS, "geometry"]
        return geopandas.GeoDataFrame(rows, columns=columns, geometry="geometry", crs=crs)

    def _row(self, masklet: Masklet, options: dict[str, Any]) -> dict[str, Any]:
        from geosam2.vectorize import from_mosaic, geodesic_area

        outline, crs = from_mosaic(masklet.mosaic, **options), self.scene.crs
        return {
            "id": masklet.object_id,
            "score": round(masklet.score, 4),
            "stability": round(masklet.stability, 4),
            # pixels have no size in metres
            "area_m2": math.nan if crs is None else geodesic_area(outline, crs),
            "frames": len(masklet.frames),
            "open_edges": len(masklet.open_edges),
            "level": masklet.level.label,
            "model": self.model.name,
            "prompt": json.dumps([prompt.to_json() for prompt in masklet.prompts]),
            "source": self.scene.source,
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "geometry": outline,
        }


COLUMNS = (
    "id",
    "score",
    "stability",
    "area_m2",
    "frames",
    "open_edges",
    "level",
    "model",
    "prompt",
    "source",
    "date",
)
"""Attributes of a result, in order."""


def _without_last_click(prompt: Prompt) -> Prompt | None:
    """What was asked before the last click; None if nothing could be answered then."""
    clicks_alone = prompt.box is None and prompt.mask is None
    if not prompt.points or (clicks_alone and 1 not in prompt.labels[:-1]):
        return None
    return replace(prompt, points=prompt.points[:-1], labels=prompt.labels[:-1])


def _load(model: str | os.PathLike[str] | SAM2) -> SAM2:
    if isinstance(model, os.PathLike):
        model = os.fspath(model)
    if not isinstance(model, str):
        if not hasattr(model, "encode"):  # not by type: tests and others bring their own network
            raise OptionError(
                f"model={model!r}: give a name such as 'nano', a path of weights or a loaded model"
            )
        return model
    import geosam2_model

    return geosam2_model.load(model)
