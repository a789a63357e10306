"""track(): the same memory along time: one object, its outline at every date of a stack.

The object is clicked at one date and then followed to later and to earlier ones, as SAM 2 follows
it through a video. At each date the memory says *which* thing it is and about where; a click in the
middle of that, answered on this date alone, says *exactly* where its outline runs. Where both agree
the click's outline is taken, otherwise the memory's: a click alone loses what has moved away from
under it, and a memory alone is less exact (`benchmarks/dates.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import shapely

from geosam2 import zoom
from geosam2.errors import PromptError
from geosam2.levels import CELL
from geosam2.looking import places_in
from geosam2.masklet import Masklet, PanOptions
from geosam2.mosaic import valid_cells
from geosam2.prompts import MASK_STEP, Point, Prompt, as_prompts, locate, network_mask
from geosam2.quality import polygon_iou
from geosam2.segmenter import COLUMNS, FrameMask, Segmenter
from geosam2.stack import Stack, open_stack

if TYPE_CHECKING:
    import geopandas
    from geosam2_model import SAM2, ImageFeatures

    from geosam2.cache import EmbeddingCache, EncodedFrame
    from geosam2.levels import Level, Window

Corrections = Mapping[Any, "Prompt | Sequence[Prompt]"]
FoundBy = Literal["prompt", "click", "memory", "absent", "no data"]

SHARE = 0.5
"""An object is looked at where it takes this share of a window, or less: it may grow and move."""
GROWN = 0.75
"""A share of the window from which it is looked at from further away."""
AGREES = 0.5
"""IoU with the memory's mask from which a click's answer is the same object."""
SEEN = 0.5
"""Share of the last outline that a date must show, or it has no data of the object."""


@dataclass(frozen=True)
class Sighting:
    """What came of looking for an object at one date."""

    number: int
    """Which date of the stack."""
    found_by: FoundBy
    """"prompt": the user's own, where it began or was corrected; "click": a click where the memory
    saw it; "memory": the memory alone; "absent": it was not seen; "no data": nothing was there to
    see."""
    masklet: Masklet | None = None
    """Its mask; None unless it was found."""
    agreement: float = math.nan
    """IoU of the click's answer with the memory's, within the window that was looked through."""


def track(
    stack: Any,
    points: Any = None,
    labels: Any = None,
    boxes: Any = None,
    masks: Any = None,
    *,
    crs: Any = None,
    start: int | str = 0,
    dates: Sequence[Any] | None = None,
    corrections: Corrections | None = None,
    model: str | SAM2 | None = None,
    preset: str | None = None,
    max_frames: int = 50,
    refine: bool | None = None,
    cache: EmbeddingCache | None = None,
    on_date: Callable[[Prompt, Sighting], None] | None = None,
    **geometry: Any,
) -> geopandas.GeoDataFrame:
    """Outlines of objects at every date of a stack.

    Args:
        stack: A `Stack`, or what `open_stack` takes: a list of files, a mapping of dates to
            scenes, or an xarray.DataArray with a dimension of time.
        points: As of `segment`; they say what the objects are at the date `start`.
        labels: As of `segment`.
        boxes: As of `segment`.
        masks: As of `segment`.
        crs: CRS of the prompts; default a layer's own, else the scenes'.
        start: Date on which the prompts were made, by name or number; followed both ways.
        dates: Names of the dates; see `open_stack`.
        corrections: What else was pointed at: dates (names or numbers) and a prompt for each, or
            several with an `object_id` of their own. There the object is what the prompt shows,
            and from there on, away from `start`, it is followed as that.
        model: Name or path of weights, or a loaded model; default the embedded one.
        preset: "rapid" or "high-res".
        max_frames: Frames looked at for one object and date, at most.
        refine: Sharpen outlines at the finest level; the default unless the preset says otherwise.
        cache: Where encoded frames are kept.
        on_date: Called with the prompt and what was seen after each date.
        **geometry: As of `segment`.

    Returns:
        One row for each object and date, in this order, in the scenes' CRS: object (1, 2, ... as
        they were asked for), date, found_by and agreement as in `Sighting`, and what `segment`
        says of the outline.
        Where it was not found there is no geometry, and its area_m2 is 0 ("absent") or NaN
        ("no data").

    Raises:
        PromptError: If there is no prompt, it cannot be used, or shows nothing.
        OptionError: If an option's value makes no sense, or there is no such date.
        GeoreferenceError: If the scenes do not lie on one grid.
        SourceError: If a scene cannot be opened or read.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from geosam2.testing import synthetic_scene, write_geotiff
    >>> from geosam2.testing.colour_model import ColourModel  # in place of a real network
    >>> made = synthetic_scene(1, 256, kinds=["lake"])
    >>> lake = made.truth.geometry[0].representative_point()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = [Path(folder, f"{year}.tif") for year in (1990, 2000)]
    ...     stack = [write_geotiff(path, made.pixels, made.geobox) for path in files]
    ...     found = track(stack, points=[(lake.x, lake.y)], model=ColourModel())
    >>> list(found.date), list(found.found_by)
    (['1990', '2000'], ['prompt', 'click'])
    """
    from geosam2.vectorize import check_options

    check_options(**geometry)
    options = PanOptions(max_frames=max_frames)
    prompts = as_prompts(points, labels, boxes, masks, crs=crs)
    if not prompts:
        raise PromptError("nothing to follow: give points=, boxes= or masks=")
    opened = open_stack(stack, dates)
    number = opened.number(start)
    told = corrections_of(opened, corrections or {}, number, prompts)
    tracker = Tracker(opened, model, preset=preset, cache=cache, options=options, refine=refine)
    found = []
    for prompt in prompts:
        for sighting in tracker.follow(prompt, number, told[prompt.object_id]):
            found.append((prompt.object_id, sighting))
            if on_date:
                on_date(prompt, sighting)
    return tracker.table(found, **geometry)


def corrections_of(
    stack: Stack, corrections: Corrections, start: int, prompts: Sequence[Prompt]
) -> dict[int, dict[int, Prompt]]:
    """Object id -> number of a date -> the prompt that was made there, from what `track` takes.

    Raises:
        OptionError: If there is no such date.
        PromptError: If one is no prompt, is for no object, or for a date at which the object has
            been pointed at.
    """
    found: dict[int, dict[int, Prompt]] = {prompt.object_id: {} for prompt in prompts}
    for date, given in corrections.items():
        number = stack.number(date)
        several = [given] if isinstance(given, Prompt) else given
        if not isinstance(several, Sequence) or not all(isinstance(x, Prompt) for x in several):
            raise PromptError(
                f"the correction at {stack.dates[number]} is {given!r:.60}: give a Prompt, as "
                "Prompt([(x, y)]), or a list of them"
            )
        for prompt in several:
            if number == start or number in found.get(prompt.object_id, {}):
                raise PromptError(
                    f"object {prompt.object_id} has two prompts at {stack.dates[number]}: put all "
                    "points of a date into one"
                )
            if prompt.object_id not in found:
                raise PromptError(
                    f"a correction at {stack.dates[number]} is for object {prompt.object_id}, and "
                    f"there {'is' if len(found) == 1 else 'are'} {len(found)}: give its object_id"
                )
            found[prompt.object_id][number] = prompt
    return found


class Tracker:
    """Follows objects through the dates of a stack.

    Args:
        stack: Where pixels come from.
        model: As of `Segmenter`.
        preset: As of `Segmenter`.
        cache: As of `Segmenter`; shared by all dates.
        options: How an object is followed over the frames of one date.
        refine: As of `Segmenter.objects`.
    """

    def __init__(
        self,
        stack: Stack,
        model: str | SAM2 | None = None,
        *,
        preset: str | None = None,
        cache: EmbeddingCache | None = None,
        options: PanOptions | None = None,
        refine: bool | None = None,
    ) -> None:
        first = Segmenter(stack.scenes[0], model, preset=preset, cache=cache)
        rest = (
            Segmenter(scene, first.model, preset=preset, cache=first.encoder.cache)
            for scene in stack.scenes[1:]
        )
        self.stack = stack
        self.segmenters = (first, *rest)
        self.options = options or PanOptions()
        self.refine = refine

    @property
    def model(self) -> SAM2:
        """The network, one for all dates."""
        return self.segmenters[0].model

    def follow(
        self, prompt: Prompt, start: int = 0, corrections: Mapping[int, Prompt] | None = None
    ) -> Iterator[Sighting]:
        """What is seen of an object: at its first date, then at later ones, then at earlier ones.

        Args:
            prompt: In any CRS.
            start: Number of the date on which it was made.
            corrections: Prompts of the same object at other dates, by their numbers; see `track`.

        Raises:
            PromptError: If a prompt cannot be used, or shows nothing.
        """
        told = {start: prompt, **(corrections or {})}
        # all of them at first: a prompt that is of no use is told before the long work
        shown = {number: self._shown(number, one) for number, one in told.items()}
        first = shown[start]
        yield Sighting(start, "prompt", first)
        later, earlier = range(start + 1, len(self.stack)), range(start - 1, -1, -1)
        for numbers in (later, earlier):
            trail = _Trail(self, first, start)
            for number in numbers:
                if number in shown:
                    trail = _Trail(self, shown[number], number)
                    yield Sighting(number, "prompt", shown[number])
                else:
                    yield trail.look(number)

    def _shown(self, number: int, prompt: Prompt) -> Masklet:
        """What a user's prompt shows."""
        prompt.check_start()
        masklet = self.click(number, locate(prompt, self.stack.scenes[number]))
        if outline_of(masklet).is_empty:
            raise PromptError(
                f"nothing was found at the prompt on {self.stack.dates[number]}: click on another "
                "place of the object, or on another date"
            )
        return masklet

    def click(self, number: int, prompt: Prompt) -> Masklet:
        """The object under a prompt at one date, whatever there was at others."""
        segmenter = self.segmenters[number]
        return next(segmenter.objects([prompt], options=self.options, refine=self.refine))

    def agreeing(
        self,
        number: int,
        remembered: FrameMask,
        wanted: shapely.Geometry,
        places: Sequence[Point],
    ) -> tuple[Masklet | None, float]:
        """Which of some clicks shows most nearly what the memory does, and the IoU of both.

        Args:
            number: Of the date.
            remembered: What the memory shows there.
            wanted: Its outline.
            places: Where to click.

        Returns:
            None in place of another thing, which agrees to less than `AGREES`.
        """
        window = shapely.box(*remembered.frame.geobox.boundingbox.bbox)
        best: tuple[Masklet | None, float] = None, 0.0
        for place in places:
            try:
                clicked = self.click(number, replace(remembered.prompt, points=(place,)))
            except PromptError:  # on a pixel without data
                continue
            agreement = polygon_iou(shapely.intersection(outline_of(clicked), window), wanted)
            best = max(best, (clicked, agreement), key=lambda pair: pair[1])
        return (best[0] if best[1] >= AGREES else None), best[1]

    def refined(self, number: int, masklet: Masklet) -> Masklet:
        """An object at the finest level, if that was asked for."""
        segmenter = self.segmenters[number]
        if not segmenter.refines("auto", self.refine):
            return masklet
        return segmenter.refined(masklet, self.options)

    def table(
        self, found: Sequence[tuple[int, Sighting]], **geometry: Any
    ) -> geopandas.GeoDataFrame:
        """Sightings as a GeoDataFrame; see `track`.

        Args:
            found: Object ids, and what was seen of them in any order.
            **geometry: As of `segment`.
        """
        import geopandas

        ordered = sorted(found, key=lambda pair: (pair[0], pair[1].number))
        rows = [
            {"id": n, "object": number} | self._row(sighting, geometry)
            for n, (number, sighting) in enumerate(ordered, start=1)
        ]
        crs = self.stack.scenes[0].crs
        return geopandas.GeoDataFrame(rows, columns=TRACKED, geometry="geometry", crs=crs)

    def _row(self, seen: Sighting, geometry: dict[str, Any]) -> dict[str, Any]:
        segmenter = self.segmenters[seen.number]
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        if seen.masklet is None:
            nothing = 0.0 if seen.found_by == "absent" else math.nan
            row |= {"score": math.nan, "stability": math.nan, "area_m2": nothing}
            row |= {"frames": 0, "open_edges": 0, "model": segmenter.model.name}
            row |= {"source": segmenter.scene.source, "geometry": None}
        else:
            row = segmenter.rows([seen.masklet], **geometry)[0]
        del row["id"]  # of the object
        return row | {
            "date": self.stack.dates[seen.number],
            "found_by": seen.found_by,
            "agreement": round(seen.agreement, 4),
        }


TRACKED = [
    *("id", "object", "date", "found_by", "agreement"),
    *(name for name in COLUMNS if name not in ("id", "date")),
    "geometry",
]
"""Attributes of a result, in order; ids are of rows."""


class _Trail:
    """What is remembered of one object along one direction of time.

    Args:
        tracker: Whose scenes and network are used.
        first: What the user's prompt showed.
        start: Date of the prompt.
    """

    def __init__(self, tracker: Tracker, first: Masklet, start: int) -> None:
        prompt, outline = first.prompts[0], outline_of(first)
        self.tracker, self.object_id = tracker, prompt.object_id
        self.place = prompt.anchor if prompt.points else deepest(outline)
        self.side = tracker.segmenters[0].frame_size // zoom.SHARE
        self._look_at(outline)
        self._remember(start, outline, prompted=True)

    def look(self, number: int) -> Sighting:
        """Look for the object at a date, and remember it if it is there."""
        frame = self._frame(number)
        shown = valid_cells(frame.valid, MASK_STEP)[network_mask(self.outline, frame) > 0]
        if not frame.valid.any() or (shown.size and shown.mean() < SEEN):
            return Sighting(number, "no data")
        remembered = self._recalled(number, frame)
        if remembered is None:
            return Sighting(number, "absent")
        wanted = remembered.polygon()
        places = self._places(wanted)
        clicked, agreement = self.tracker.agreeing(number, remembered, wanted, places)
        if clicked is None:
            masklet = self.tracker.refined(number, remembered.masklet)
            found = Sighting(number, "memory", masklet, agreement)
        else:
            found = Sighting(number, "click", clicked, agreement)
        assert found.masklet is not None
        self._remember(number, outline_of(found.masklet))
        return found

    def _places(self, outline: shapely.Geometry) -> list[Point]:
        """Where to click: where the user did, and deep inside; both within the memory's outline."""
        still = _areas(shapely.intersection(outline, self.outline))
        places = [deepest(outline if still.is_empty else still)]
        if shapely.contains_xy(outline, *self.place):
            places.insert(0, self.place)
        return places

    def _recalled(self, number: int, frame: EncodedFrame) -> FrameMask | None:
        """The memory's mask at a date; None if it does not see the object."""
        import torch

        segmenter = self.tracker.segmenters[number]
        with torch.no_grad():
            features: ImageFeatures = segmenter.model.attend(
                frame.features, self.bank, _place(self.window)
            )
            out = segmenter.model.decode(features)
        logits = out.logits[0, 0].float().cpu().numpy().copy()
        logits[~valid_cells(frame.valid, MASK_STEP) & (logits > 0)] *= -1
        if float(out.object_score[0]) <= 0 or not (logits > 0).any():
            return None
        places = places_in(logits, frame)[:1]
        prompt = Prompt(tuple(places), (1,), crs=segmenter.scene.crs, object_id=self.object_id)
        return FrameMask(
            prompt,
            segmenter.grid(max(self.level.index, 0)).index_at(*prompt.anchor),
            frame.place,
            self.level,
            logits,
            float(out.predicted_iou[0, 0]),
            float(out.object_score[0]),
            overlap=0,
        )

    # -- what is remembered

    def _remember(self, number: int, outline: shapely.Geometry, *, prompted: bool = False) -> None:
        import torch

        self._keep_in_view(outline)
        frame = self._frame(number)
        model = self.tracker.segmenters[number].model
        cells = network_mask(outline, frame) > 0
        mask = cells.repeat(MASK_STEP, 0).repeat(MASK_STEP, 1).astype(np.float32)
        with torch.no_grad():
            seen = model.adopt(frame.features, torch.from_numpy(mask)[None, None].to(model.device))
            memory = model.remember(frame.features, seen, prompted=prompted)
        self.bank.add(memory, _place(self.window), prompted=prompted, key=number)

    def _keep_in_view(self, outline: shapely.Geometry) -> None:
        """Keep an object in the middle; from further away if it has outgrown the window."""
        if _share(outline, self.level, self.side) > GROWN:
            self._look_at(outline)
        left, bottom, right, top = outline.bounds
        middle = (left + right) / 2, (bottom + top) / 2
        self.window, self.outline = zoom.window_around(self.level, *middle, self.side), outline

    def _look_at(self, outline: shapely.Geometry) -> None:
        """Choose a resolution; memories of another one say nothing, so there are none yet."""
        from geosam2_model import MemoryBank

        self.level = view(self.tracker.stack.levels, outline, self.side)
        self.bank = MemoryBank("map", history=len(self.tracker.stack))

    def _frame(self, number: int) -> EncodedFrame:
        segmenter = self.tracker.segmenters[number]
        return segmenter.encoder(segmenter.scene.level(self.level.index), self.window)


def view(levels: Sequence[Level], outline: shapely.Geometry, side: int) -> Level:
    """The finest level whose windows show an outline with room around it; else the coarsest."""
    fitting = (level for level in levels if _share(outline, level, side) <= SHARE)
    return next(fitting, levels[-1])


def _share(outline: shapely.Geometry, level: Level, side: int) -> float:
    """How much of a window's side an outline takes."""
    left, bottom, right, top = outline.bounds
    width, height = level.resolution
    return float(max((right - left) / width, (top - bottom) / height)) / side


def outline_of(masklet: Masklet) -> shapely.Geometry:
    """Its outline in the scene's CRS, as it was seen."""
    from geosam2.vectorize import from_mosaic

    return from_mosaic(masklet.mosaic)


def deepest(outline: shapely.Geometry) -> Point:
    """The place within an outline that is furthest from its edge.

    >>> x, y = deepest(shapely.box(0, 0, 9, 2))
    >>> round(y, 3)
    1.0
    """
    circle = shapely.maximum_inscribed_circle(outline)
    x, y = shapely.get_coordinates(circle)[0]
    return float(x), float(y)


def _areas(geometry: shapely.Geometry) -> shapely.Geometry:
    """Polygons alone: where outlines touch, their intersection has points and lines, too."""
    parts = shapely.get_parts(geometry)
    return shapely.multipolygons(parts[shapely.get_dimensions(parts) == 2])


def _place(window: Window) -> tuple[int, int]:
    return window.row // CELL, window.col // CELL
