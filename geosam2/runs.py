"""A run of many prompts that survives being stopped or killed.

Its folder holds what was asked (`run.json`), a line for each finished object (`finished.jsonl`) and
the state of the object at hand: of following it (`current.safetensors`) and of refining it at each
finer level (`refined-N.safetensors`). Lines are appended and states replaced whole, so whatever
moment the process dies in, the run goes on from the last frame that was stored. Objects with frames
that the source did not give are tried again then.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import shapely

from geosam2 import __version__
from geosam2.errors import ExportError, InterruptedRunError
from geosam2.files import PARTIAL, write_atomically
from geosam2.masklet import FrameReport, Masklet, PanOptions, Step
from geosam2.prompts import Prompt
from geosam2.propagate import Panning
from geosam2.refine import Refining
from geosam2.segmenter import FrameMask, Segmenter
from geosam2.vectorize import check_options

if TYPE_CHECKING:
    import geopandas

    from geosam2.levels import Level

log = logging.getLogger(__name__)

SAVE_EVERY = 10.0  # seconds between two stored states
STATES = "current.safetensors", "refined-*.safetensors"  # files of the object at hand
OUTPUT = "output.json"  # which file the part that was finished was written to
FILES = "finished.jsonl", OUTPUT, "run.json", *STATES  # in the order in which they are removed
TORN = tuple(f".{name}.*{PARTIAL}" for name in FILES)  # left by a process killed while writing
ABOUT = {"version", "scene", "model", "task"}  # what `run.json` says
CHUNK = 256  # prompts whose first frames are looked at together

Phase = Literal["follow", "refine"]


@dataclass(frozen=True)
class Task:
    """What is asked of a run."""

    prompts: tuple[Prompt, ...]
    """In any CRS, one object each."""
    level: int | Literal["auto"] = "auto"
    """Number of the level, below 0 of one with enlarged pixels; or "auto"."""
    options: PanOptions = field(default_factory=PanOptions)
    """How to follow."""
    refine: bool | None = None
    """Sharpen at the finest level; None = as the preset says for "auto", else not."""
    geometry: dict[str, Any] = field(default_factory=dict)
    """min_area_m2, simplify_m, orthogonal, smooth."""

    def __post_init__(self) -> None:
        """Refuse what could not be written after the work; see `vectorize.check_options`."""
        check_options(**self.geometry)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; `from_json` is the inverse."""
        return {**asdict(replace(self, prompts=())), "prompts": [p.to_json() for p in self.prompts]}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Task:
        """Read what `to_json` gave."""
        options = PanOptions.from_json(stored["options"])
        prompts = tuple(Prompt.from_json(one) for one in stored["prompts"])
        return cls(**{**stored, "options": options, "prompts": prompts})


class PromptedRun:
    """Objects of a task, one after the other; iterate for the steps, stop whenever you like.

    `rows` are the finished objects by the number of their prompt; `unread` says of some of them why
    frames could not be read, so that they are as whole as the source let them be.

    Args:
        segmenter: Scene, network and cache.
        task: What to do.
        folder: Where the run is kept; None keeps nothing.
        resume: Go on with what is in the folder.

    Raises:
        InterruptedRunError: If there is nothing to resume, or it belongs to another scene or model;
            or if the folder has files with the names of a run's that are not of a run.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        task: Task,
        folder: Path | None = None,
        *,
        resume: bool = False,
    ) -> None:
        self.segmenter, self.task, self.folder = segmenter, task, folder
        self._level = task.level if task.level == "auto" else segmenter.scene.level(task.level)
        self.resumed = resume
        self.rows: dict[int, dict[str, Any]] = {}
        self.unread: dict[int, str] = {}
        self._panning: Panning | None = None
        self._refining: Refining | None = None
        self._saved = time.monotonic()
        if folder is None:
            return
        if resume:
            self._check_same()
            self.rows = _finished(folder)
        else:
            self._begin(folder)

    def _begin(self, folder: Path) -> None:
        check_folder(folder)
        about = {"version": __version__, **self._identity(), "task": self.task.to_json()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._remove("finished.jsonl", OUTPUT, *TORN, *STATES)
            write_atomically(folder / "run.json", json.dumps(about).encode())
        except OSError as error:
            raise ExportError(
                f"the folder {folder} of the run cannot be written ({error.strerror}): name "
                "another one with --state"
            ) from error

    def _identity(self) -> dict[str, str]:
        model = self.segmenter.model
        return {"scene": self.segmenter.scene.signature, "model": model.fingerprint}

    def _check_same(self) -> None:
        assert self.folder is not None
        about = read_about(self.folder)
        for name, value in self._identity().items():
            if about[name] != value:
                raise InterruptedRunError(
                    f"the run in {self.folder} was made with another {name}: resume with the same "
                    "one, or start anew without --resume"
                )

    def __iter__(self) -> Iterator[tuple[Prompt, Phase, Step]]:
        """(prompt, "follow" or "refine", step) of every frame that is looked at."""
        prompts = self.task.prompts
        todo = [number for number in range(len(prompts)) if number not in self.rows]
        for start in range(0, len(todo), CHUNK):
            chunk = todo[start : start + CHUNK]
            masks = self.segmenter.predict([prompts[n] for n in chunk], level=self._level)
            for number, mask in zip(chunk, masks, strict=True):
                yield from self._object(number, mask)

    def _object(self, number: int, mask: FrameMask) -> Iterator[tuple[Prompt, Phase, Step]]:
        masklet = mask.masklet
        if (level := self.segmenter.follows_at(mask, self._level)) is not None:
            self._panning = self._start(mask.prompt, level)
            for step in self._panning:
                self._save_sometimes()
                yield mask.prompt, "follow", step
            masklet = self._panning.masklet
            self._note_unread(number, self._panning.reports.values())
        if self.segmenter.refines(self._level, self.task.refine):
            self.pause()  # the object is whole: what is left is its outline
            frames = self.task.options.max_frames
            for run in self.segmenter.refinements(masklet, max_frames=frames):
                self._continue(run)
                for step in run:
                    self._save_sometimes()
                    yield mask.prompt, "refine", step
                self.pause()
                masklet = run.masklet
                self._note_unread(number, run.reports)
        self._finish(number, masklet)

    def _note_unread(self, number: int, reports: Iterable[FrameReport]) -> None:
        for report in reports:
            if report.unread:
                self.unread[number] = report.reason

    def _continue(self, run: Refining) -> None:
        """Go on where an earlier process was with this level, if it was."""
        self._refining = run
        state = self._state_of(run)
        if state is not None and state.is_file():
            run.restore(state)

    def _state_of(self, run: Refining) -> Path | None:
        level = run.grid.level.index
        return None if self.folder is None else self.folder / f"refined-{level}.safetensors"

    def _start(self, prompt: Prompt, level: Level) -> Panning:
        """A new run for an object, or the stored one."""
        state = None if self.folder is None else self.folder / "current.safetensors"
        if state is not None and state.is_file():
            run = Panning.load(state, self.segmenter.encoder)
            if run.prompts[0] == prompt:
                return run
        return self.segmenter.start(prompt, level=level, options=self.task.options)

    def _finish(self, number: int, masklet: Masklet) -> None:
        row = self.segmenter.rows([masklet], **self.task.geometry)[0]
        self.rows[number] = row
        self._panning = self._refining = None
        if self.folder is None:
            return
        row = {**row, "geometry": shapely.to_wkb(row["geometry"], hex=True)}
        stored = {"number": number, "unread": self.unread.get(number, ""), "row": row}
        with self._going_on():
            _append(self.folder / "finished.jsonl", json.dumps(stored) + "\n")
            self._remove(*STATES)

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """A full disk costs the newest state and not the run."""
        try:
            yield
        except OSError as error:
            log.warning("the state in %s cannot be written (%s): going on", self.folder, error)

    def _save_sometimes(self) -> None:
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.pause()

    def pause(self) -> None:
        """Store the state of the object at hand."""
        self._saved = time.monotonic()
        with self._going_on():
            if self.folder is not None and self._refining is not None:
                self._refining.save(self._state_of(self._refining) or self.folder)
            elif self.folder is not None and self._panning is not None:
                self._panning.save(self.folder / "current.safetensors")

    def result(self, *, partial: bool = False) -> geopandas.GeoDataFrame:
        """Finished objects; with `partial` also the one at hand, as far as it is known."""
        rows = [row for _, row in sorted(self.rows.items())]
        at_hand = self._refining or self._panning
        if partial and at_hand is not None and at_hand.masklet.frames:
            rows += self.segmenter.rows([at_hand.masklet], **self.task.geometry)
        return self.segmenter.table(rows)

    def clean_up(self) -> None:
        """Remove the folder of a run that is done."""
        if self.folder is not None:
            self._remove(*TORN, *FILES)
            with contextlib.suppress(OSError):  # somebody keeps other things there
                self.folder.rmdir()

    def clean_up_if_empty(self) -> None:
        """Remove the folder if nothing is known that a resumed run could go on from."""
        at_hand = self._refining or self._panning
        known = self.rows or (at_hand is not None and at_hand.masklet.frames)
        if not known and not self.resumed:
            self.clean_up()

    def _remove(self, *patterns: str) -> None:
        assert self.folder is not None
        for path in [path for pattern in patterns for path in self.folder.glob(pattern)]:
            path.unlink(missing_ok=True)


def read_about(folder: Path) -> dict[str, Any]:
    """What a stored run was asked: version, scene, model and task.

    Raises:
        InterruptedRunError: If the folder holds no run.
    """
    try:
        about: dict[str, Any] = json.loads((folder / "run.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InterruptedRunError(
            f"there is no run to resume in {folder} ({error}): start it without --resume"
        ) from error
    if not isinstance(about, dict) or not about.keys() >= ABOUT:
        raise InterruptedRunError(
            f"{folder / 'run.json'} is not of a run of geosam2 segment: name the folder of one, or "
            "start anew in another folder without --resume"
        )
    return about


def note_output(folder: Path | None, output: str) -> None:
    """Remember that a file holds what the run found so far: a resumed run may replace it."""
    if folder is not None and output != "-":
        write_atomically(folder / OUTPUT, json.dumps(_mark(Path(output))).encode())


def is_output(folder: Path | None, output: str) -> bool:
    """Whether a file is as the run in a folder left it."""
    try:
        stored = json.loads(((folder or Path()) / OUTPUT).read_text("utf-8"))
        return bool(folder is not None and stored == _mark(Path(output)))
    except (OSError, ValueError):
        return False


def _mark(path: Path) -> list[Any]:
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def check_folder(folder: Path) -> None:
    """Refuse a folder where a new run would replace files that are not of a run.

    Raises:
        InterruptedRunError: If there are such files.
    """
    if folder.exists() and not folder.is_dir():
        raise InterruptedRunError(f"{folder} is a file: name another folder for the run (--state)")
    present = sorted(path.name for name in FILES for path in folder.glob(name))
    if not present:
        return
    try:
        read_about(folder)
    except InterruptedRunError:
        raise InterruptedRunError(
            f"{folder} has {', '.join(present)} that no run of geosam2 segment left: they would be "
            "replaced, so name another folder (--state), or move them away"
        ) from None


def _append(path: Path, line: str) -> None:
    """Add a line or, if the disk is full, nothing of it."""
    size = path.stat().st_size if path.is_file() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise


def _finished(folder: Path) -> dict[int, dict[str, Any]]:
    """Rows of finished objects that were read whole; a last line cut by a crash is dropped."""
    path = folder / "finished.jsonl"
    text = path.read_text("utf-8") if path.is_file() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_atomically(path, whole.encode())
    found = {}
    for line in whole.splitlines():
        stored = json.loads(line)
        if not stored["unread"]:
            row = stored["row"]
            found[stored["number"]] = {**row, "geometry": shapely.from_wkb(row["geometry"])}
    return found
