"""The backend with a network: `geosam2.segmenter` over pixels that come from the client.

torch is imported when a model is loaded, not before: the client shows that the engine is there
while that takes its seconds.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import shapely
from pyproj import CRS
from pyproj.exceptions import CRSError

from geosam2.errors import GeoreferenceError, SourceError
from geosam2.levels import Level, Window, ground_size, is_web_mercator, one_level, zoom_cell_size
from geosam2.sources.bands import choose_bands
from geosam2.sources.base import Raw, Source
from geosam2.worker.backend import Found, Seen, Step
from geosam2.worker.jobs import Accepted
from geosam2.worker.source import Bounds, Clicks, Reader, SceneInfo

if TYPE_CHECKING:
    from geosam2_model import SAM2

    from geosam2.masklet import Masklet, PanOptions
    from geosam2.prompts import Prompt
    from geosam2.propagate import Panning
    from geosam2.refine import Refining
    from geosam2.scene import Scene
    from geosam2.segmenter import FrameMask, Segmenter
    from geosam2.tracking import Tracker

DEFAULT = "rapid"
STRIP = 2  # cells (8 px) at a window's border: a mask there goes on beyond it
BLOCK = (
    2  # frames along a block of segment-everything: small, so that progress and pause are lively
)


class RealBackend:
    """`Backend` by SAM 2."""

    name = "real"

    def __init__(self) -> None:
        self._model: SAM2 | None = None
        self._preset: str | None = DEFAULT
        self._scene: Scene | None = None
        self._info: SceneInfo | None = None
        self._poll: Callable[[], None] = _nothing
        self._segmenter: Segmenter | None = None
        self._tracker: Tracker | None = None

    def describe(self) -> dict[str, Any]:
        return {"device": None, "model": None}

    def load(self, model: str | None, device: str | None) -> dict[str, Any]:
        """Load a preset ("rapid", "high-res"), a named model or a file of weights."""
        import geosam2_model

        from geosam2.segmenter import PRESETS

        preset = model if model in PRESETS else None
        name = PRESETS[preset].model if preset or model is None else model
        network = geosam2_model.load(name, device=device)
        self._preset, self._model, self._segmenter = preset, network, None
        _interruptible(network, lambda: self._poll())
        return {
            "model": network.name,
            "device": str(network.device),
            "frame_size": int(network.config.image_size),
        }

    def open(self, scene: SceneInfo, read: Reader, poll: Callable[[], None]) -> None:
        self._info, self._poll, self._segmenter = scene, poll, None
        self._scene = open_client_scene(scene, read)

    @property
    def segmenter(self) -> Segmenter:
        """Of the scene and the model that are open now."""
        if self._segmenter is None:
            from geosam2.cache import EmbeddingCache
            from geosam2.segmenter import Segmenter

            if self._model is None:
                self.load(None, None)
            # memory only: what the client draws depends on styles and services, not on files
            cache = EmbeddingCache(folder=None)
            self._segmenter = Segmenter(self._scene, self._model, preset=self._preset, cache=cache)
        return self._segmenter

    def sketch(self, clicks: Clicks, level: int | None) -> Found | None:
        """None where the whole answer takes no more than the sketch: of several clicks or a box."""
        if level is not None and (clicks.box or len(clicks.points) > 1):
            return None
        mask = self.segmenter.sketch(self._prompt(clicks), level=self._where(level))
        return self._found_on_frame(mask) if (mask.logits > 0).any() else None

    def preview(self, clicks: Clicks, level: int | None) -> Iterator[Found]:
        masks = self.segmenter.alternatives(self._prompt(clicks), level=self._where(level))
        for mask in masks:
            if (mask.logits > 0).any():
                yield self._found_on_frame(mask)

    def follow(self, clicks: Clicks, level: int | None, options: dict[str, Any]) -> RealFollower:
        from geosam2.masklet import PanOptions

        prompt, limits = self._prompt(clicks), PanOptions(max_frames=options.get("max_frames", 50))
        chosen = self._level(level)
        if chosen is None:
            mask = self.segmenter.predict(prompt, level="auto")[0]
            where = self.segmenter.follows_at(mask)
            if where is None:
                return RealFollower(self, prompt, limits, whole=mask.masklet)
            return RealFollower(self, prompt, limits, where, refine=True)
        return RealFollower(self, prompt, limits, chosen)

    def restore(self, path: Path) -> RealFollower:
        from geosam2.propagate import Panning

        panning = Panning.load(path, self.segmenter.encoder)
        return RealFollower(self, panning.prompts[0], panning.options, panning=panning)

    def everything(
        self, bounds: Bounds, level: int | None, options: dict[str, Any]
    ) -> Iterator[Step]:
        from geosam2.everything import executor_for, plan, start, tables

        segmenter = self.segmenter
        scene = segmenter.scene.within(bounds)
        chosen = self._level(level) or scene.levels[0]
        if (times := options.get("enlarge", 1)) > 1:  # of the scene's own pixels
            chosen = one_level(scene, f"x{times}")
        with tempfile.TemporaryDirectory(prefix="geosam2_") as folder:
            job = plan(
                scene, Path(folder), model=segmenter.model, level=chosen, block=BLOCK,
                overlap=segmenter.overlap, min_area_m2=float(options.get("min_area_m2", 0.0)),
                features=False, **self._grid_of_points(options),
            )  # fmt: skip
            done = total = 0
            try:
                with executor_for(job) as executor:
                    for progress in start(job, executor):
                        done, total = progress.frames_done, progress.frames_total
                        yield Step(done, total - done)
            except Accepted:
                total = done  # what was finished until now is wanted
            for table in tables(job):
                found = tuple(self._found_in_table(row, chosen) for row in table.itertuples())
                yield Step(done, total - done, found)

    def open_stack(
        self,
        scenes: Sequence[SceneInfo],
        dates: Sequence[str],
        read: Reader,
        poll: Callable[[], None],
        options: dict[str, Any],
    ) -> None:
        from geosam2.cache import EmbeddingCache
        from geosam2.masklet import PanOptions
        from geosam2.stack import Stack
        from geosam2.tracking import Tracker

        self._poll = poll
        if self._model is None:
            self.load(None, None)
        self._tracker = Tracker(
            Stack(tuple(dates), tuple(open_client_scene(scene, read) for scene in scenes)),
            self._model,
            preset=self._preset,
            cache=EmbeddingCache(folder=None),
            options=PanOptions(max_frames=options.get("max_frames", 50)),
        )

    def track(self, clicks: Clicks, start: int) -> Iterator[Seen]:
        from geosam2.prompts import Prompt

        assert self._tracker is not None  # the worker refuses `track` before `open_stack`
        crs, extra = self._tracker.stack.scenes[start].crs, {"model": self._tracker.model.name}
        prompt = Prompt(clicks.points, clicks.labels, clicks.box, crs=crs)
        for seen in self._tracker.follow(prompt, start):
            agreement = None if math.isnan(seen.agreement) else round(seen.agreement, 4)
            found = None if seen.masklet is None else _found_masklet(seen.masklet, extra)
            yield Seen(seen.number, seen.found_by, agreement, found)

    # -- between the two worlds

    def _prompt(self, clicks: Clicks) -> Prompt:
        from geosam2.prompts import Prompt

        return Prompt(clicks.points, clicks.labels, clicks.box, crs=self.segmenter.scene.crs)

    def _grid_of_points(self, options: dict[str, Any]) -> dict[str, Any]:
        """How densely to ask: as the client says, sparsely for "rapid", else as the recipe does."""
        asked = options.get("points")
        if isinstance(asked, list) and asked and all(isinstance(n, int) for n in asked):
            return {"points": tuple(asked), "coverage": ()}
        if self._preset != "rapid":
            return {}
        from geosam2.recipe import recipe_for

        # a point each 32 pixels; the zoomed regions of the whole recipe cost four times more
        return {"points": recipe_for(self._model).points[:1], "coverage": ()}

    def _where(self, number: int | None) -> Level | Literal["auto"]:
        """What the segmenter calls one of the client's resolutions."""
        return self._level(number) or "auto"

    def _level(self, number: int | None) -> Level | None:
        """The scene's level for one of the client's resolutions; None for automatic."""
        if number is None:
            return None
        assert self._info is not None
        wanted, levels = self._info.resolutions[number], self.segmenter.scene.levels
        return min(levels, key=lambda level: abs(math.log(level.cell_size / wanted)))

    def _figures(self, level: Level) -> dict[str, Any]:
        return {"level": self._client_level(level), "model": self.segmenter.model.name}

    def _client_level(self, level: Level) -> int:
        assert self._info is not None
        ratios = [abs(math.log(cell / level.cell_size)) for cell in self._info.resolutions]
        return ratios.index(min(ratios))

    def _found_on_frame(self, mask: FrameMask) -> Found:
        return Found(
            shapely.to_wkb(mask.polygon()),
            mask.predicted_iou,
            mask.stability,
            self._open_sides(mask),
            1,
            mask.level.cell_size,
            self._figures(mask.level),
        )

    def _open_sides(self, mask: FrameMask) -> int:
        """Borders of the window that the mask touches and behind which the scene goes on."""
        here, window = mask.logits > 0, mask.frame.window
        extent = self.segmenter.scene.window(mask.level)
        sides = (
            (here[:STRIP], window.row > extent.row),
            (here[-STRIP:], window.row_stop < extent.row_stop),
            (here[:, :STRIP], window.col > extent.col),
            (here[:, -STRIP:], window.col_stop < extent.col_stop),
        )
        return sum(bool(end.any()) and beyond for end, beyond in sides)

    def found_masklet(self, masklet: Masklet) -> Found:
        """An object of many frames."""
        return _found_masklet(masklet, self._figures(masklet.level))

    def _found_in_table(self, row: Any, level: Level) -> Found:
        return Found(
            shapely.to_wkb(row.geometry),
            float(row.score),
            float(row.stability),
            int(row.open_edges),
            int(row.frames),
            level.cell_size,
            self._figures(level),
        )


class RealFollower:
    """`Follower`: pans from the prompt, then refines what was found.

    Args:
        backend: With the segmenter.
        prompt: What to follow.
        limits: Of the panning, and of each refinement.
        level: Where to pan; None: coarse to fine.
        refine: Bring the result to the finest level.
        whole: The whole object as the preview saw it; it is refined, not panned.
        panning: A run that was begun before.
    """

    def __init__(
        self,
        backend: RealBackend,
        prompt: Prompt,
        limits: PanOptions,
        level: Level | None = None,
        *,
        refine: bool = False,
        whole: Masklet | None = None,
        panning: Panning | None = None,
    ) -> None:
        self._backend, self._prompt, self._limits = backend, prompt, limits
        self._refine = refine or whole is not None
        self._coarse = whole
        self._panning = panning
        if whole is None and panning is None:
            self._panning = self._start(prompt, level)
        self._run: Refining | None = None  # the refinement that runs, or the last one
        self._stale = False  # corrected: a refinement that runs must begin anew

    def _start(self, prompt: Prompt, level: Level | None) -> Panning:
        return self._backend.segmenter.start(prompt, level=level or "auto", options=self._limits)

    def __iter__(self) -> Iterator[Step]:
        while True:
            if self._panning is None:
                yield Step(1, 0)
            if self._panning is not None:  # from the start, or since a correction meanwhile
                for step in self._panning:
                    yield Step(step.done, step.open_borders)
            self._stale = False
            if self._refine:
                yield from self._refinements()
            if not self._stale:
                return

    @property
    def _known(self) -> Masklet:
        """What there is before refining."""
        if self._panning is not None:
            return self._panning.masklet
        assert self._coarse is not None
        return self._coarse

    def found(self) -> Found:
        return self._backend.found_masklet(self._run.masklet if self._run else self._known)

    def _refinements(self) -> Iterator[Step]:
        done, most = len(self._known.frames), self._limits.max_frames
        for run in self._backend.segmenter.refinements(self._known, max_frames=most):
            self._run = run
            for count, _ in enumerate(run, 1):
                yield Step(done + count, len(run) - count)
                if self._stale:
                    return
            done += len(run)

    def correct(self, clicks: Clicks) -> Step:
        self._run, self._stale = None, True
        if self._panning is None:
            points, labels = self._prompt.points, self._prompt.labels
            self._prompt = dataclasses.replace(
                self._prompt, points=points + clicks.points, labels=labels + clicks.labels
            )
            self._panning = self._start(self._prompt, None)
        else:
            self._panning.correct(self._backend._prompt(clicks))
        waiting = 0 if self._panning.finished else self._panning.step().open_borders
        return Step(self._panning.done, waiting)

    def save(self, path: Path) -> None:
        """Nothing is written for an object of one frame: a click brings it back."""
        if self._panning is not None:
            self._panning.save(path)


# -- the client's imagery as a scene


class ClientSource(Source):
    """Reader of a scene whose pixels the client draws: RGB, one lattice per resolution."""

    def __init__(self, info: SceneInfo, read: Reader) -> None:
        self._info, self._read = info, read
        self.name, self.location = info.name, info.source
        self.crs = _crs(info.crs)
        self.levels = tuple(_level(info, self.crs, k) for k in range(len(info.resolutions)))
        self.dtype = np.dtype(np.uint8)
        self.nodata = None
        self.choice = choose_bands(3, ["red", "green", "blue"], ["red", "green", "blue"], None)

    @property
    def signature(self) -> str:
        """Of what the client says about its imagery: source, style, place."""
        text = repr((self._info, sorted(self._info.options.items())))
        return hashlib.sha256(text.encode()).hexdigest()

    def read(self, level: Level, window: Window) -> Raw:
        """Ask the client; raises `SourceError` if it has no pixels."""
        bounds = level.bounds_of(window)
        pixels, valid = self._read(self._info, bounds, window.height, window.width, level.index)
        return Raw(np.ascontiguousarray(pixels.transpose(2, 0, 1)), valid)


def open_client_scene(info: SceneInfo, read: Reader) -> Scene:
    """A scene that the client draws, or the file that it names.

    Raises:
        SourceError, GeoreferenceError: If it cannot be used.
    """
    from geosam2.scene import Scene, open_scene

    if info.path is not None:
        if not Path(info.path).is_file():
            raise SourceError(f"{info.path} is no file on this computer; let the client draw it")
        return open_scene(info.path)
    return Scene(ClientSource(info, read), asked_stretch="none")


def _found_masklet(masklet: Masklet, extra: dict[str, Any]) -> Found:
    from geosam2.vectorize import from_mosaic

    outline = from_mosaic(masklet.mosaic)
    return Found(
        b"" if outline.is_empty else shapely.to_wkb(outline),
        masklet.score,
        masklet.stability,
        len(masklet.open_edges),
        len(masklet.frames),
        masklet.level.cell_size,
        extra,
    )


def _crs(text: str) -> CRS:
    try:
        return CRS.from_user_input(text)
    except CRSError as error:
        raise GeoreferenceError(
            f"the coordinate system {text[:60]!r} is not known here ({error}): "
            "give the layer one from the EPSG list"
        ) from error


def _level(info: SceneInfo, crs: CRS, number: int) -> Level:
    """The level on the lattice that the client's pixels have; its extent covers the bounds."""
    cell = info.resolutions[number]
    left, bottom, right, top = info.bounds
    ox, oy = info.origin
    col, row = math.floor((left - ox) / cell + 1e-6), math.floor((oy - top) / cell + 1e-6)
    width = math.ceil((right - ox) / cell - 1e-6) - col
    height = math.ceil((oy - bottom) / cell - 1e-6) - row
    middle = (left + right) / 2, (bottom + top) / 2
    return Level.at_corner(
        ox + col * cell,
        oy - row * cell,
        (cell, cell),
        (max(1, height), max(1, width)),
        crs=info.crs,
        index=number,
        label=_label(info, crs, cell),
        gsd=ground_size(crs, *middle, (cell, cell)),
    )


def _label(info: SceneInfo, crs: CRS, cell: float) -> str:
    if is_web_mercator(crs):
        zoom = round(math.log2(zoom_cell_size(0) / cell))
        if 0 <= zoom <= 30 and math.isclose(zoom_cell_size(zoom), cell, rel_tol=1e-6):
            return f"z{zoom}"
    factor = round(cell / info.resolutions[0])
    return "native" if factor == 1 else f"1/{factor}"


def _interruptible(network: SAM2, poll: Callable[[], None]) -> None:
    """Let a pause or cancel act between two calls of the network, wherever they are made."""
    for name in ("encode", "decode"):
        method = getattr(network, name)

        @functools.wraps(method)
        def called(*args: Any, _method: Callable[..., Any] = method, **more: Any) -> Any:
            poll()
            return _method(*args, **more)

        setattr(network, name, called)


def _nothing() -> None:
    return None
