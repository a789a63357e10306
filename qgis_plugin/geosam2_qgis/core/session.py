"""What the user is doing: prompts, preview, following, pausing. No widgets.

One session works on one raster layer at a time. Positions are in the layer's CRS. Every change is
announced by a signal; the dock, the rubber bands and the message bar only listen.
"""

import enum
import json
import os
from pathlib import Path
from typing import NamedTuple

from qgis.core import QgsGeometry
from qgis.PyQt.QtCore import QObject, pyqtSignal

from . import pixels, protocol, settings
from .i18n import tr
from .trouble import Trouble


class State(enum.Enum):
    """Where a session stands."""

    EMPTY = "empty"  # no prompt
    THINKING = "thinking"  # the engine starts, loads or computes a preview
    PREVIEW = "preview"  # a preview is shown
    FOLLOWING = "following"
    PAUSED = "paused"


BUSY = (State.FOLLOWING, State.PAUSED)


class Shape(NamedTuple):
    """A polygon with the figures that came with it."""

    geometry: QgsGeometry
    figures: dict


class Result(NamedTuple):
    """A finished object, ready to be written."""

    shape: Shape
    prompt: dict
    description: pixels.Description
    complete: bool
    subject: object = None
    """What load_prompt was told that the result replaces."""


def shapes(header, payload):
    """The polygons of a message; empty ones are left out."""
    found = []
    pieces = protocol.split(header.get("parts", []), payload)
    for figures, wkb in zip(header.get("objects", []), pieces):
        if wkb:
            geometry = QgsGeometry()
            geometry.fromWkb(wkb)
            found.append(Shape(geometry, figures))
    return found


class Session(QObject):
    """Turns clicks into finished objects."""

    state_changed = pyqtSignal(object)
    """The new State."""
    prompt_changed = pyqtSignal()
    """Points or box changed."""
    shape_changed = pyqtSignal(object)
    """The Shape to show, or None."""
    progress = pyqtSignal(int, int)
    """(frames looked at, frames waiting) while following."""
    finished = pyqtSignal(object)
    """A Result."""
    trouble = pyqtSignal(object)
    """A Trouble."""
    missing = pyqtSignal(float)
    """Share of a window that has no imagery; answer with retry(), use_anyway() or cancel()."""
    loaded = pyqtSignal(dict)
    """The engine's answer to loading a model: model, device, frame_size."""
    hint = pyqtSignal(str)
    """A short remark for the status line."""

    def __init__(self, engine, parent=None):
        super().__init__(parent)
        self.engine = engine
        self.layer = None
        self.description = None
        self.state = State.EMPTY
        self.level = "auto"
        self.follow = True
        self.max_frames = 50
        self.preset = "rapid"
        self._source = None
        self._opened = None  # (engine generation, layer) that `open` was sent for
        self._loaded = None  # (engine generation, preset) that `load_model` was sent for
        self._failed = ""  # the Python whose engine failed last
        self._job = None  # id of the preview or follow that runs
        self._held = None  # (need, bytes) that waits for the user's decision
        self._tolerant = False
        self._stale = False  # the prompt changed while a preview was computed
        self._accept_next = False
        self.clear_prompt()
        engine.arrived.connect(self._arrived)
        engine.failed.connect(self._engine_failed)

    # what the user sets ---------------------------------------------------------------------

    def set_layer(self, layer):
        """Work on this raster layer (None: on none). What was begun on another one is dropped."""
        if layer is self.layer:
            return
        self.reset()
        if self._source:
            self._source.cancel()
            self._source.deleteLater()
        self.layer, self._source, self._opened = layer, None, None
        self.description = pixels.describe(layer) if layer is not None else None
        if self.description:
            timeout = settings.get("pixelTimeout")
            self._source = pixels.PixelSource(layer, self.description, timeout, self)

    def style_changed(self):
        """The layer looks different now: the engine must forget its pixels."""
        self._opened = None

    def warm_up(self):
        """Start the engine and load the model while the user still looks for a place to click.

        Not with a Python that has failed before: it takes a click to be told the same twice.
        """
        useless = ("", self._failed)
        if self.description and self.state is State.EMPTY and settings.find_python() not in useless:
            self._prepare()

    # prompt ---------------------------------------------------------------------------------

    def clear_prompt(self):
        """Forget points, box and preview."""
        self._subject = None
        self._marks = []  # ("point", (x, y), label) and ("box", (l, b, r, t)) in order
        self._choices, self._choice = [], 0

    @property
    def points(self):
        """[((x, y), label), ...]"""
        return [(mark[1], mark[2]) for mark in self._marks if mark[0] == "point"]

    @property
    def box(self):
        """The last box, or None."""
        boxes = [mark[1] for mark in self._marks if mark[0] == "box"]
        return boxes[-1] if boxes else None

    @property
    def prompt(self):
        """The prompt as the engine wants it."""
        return {
            "points": [list(place) for place, _ in self.points],
            "labels": [label for _, label in self.points],
            "box": list(self.box) if self.box else None,
        }

    @property
    def shape(self):
        """The shape that is shown, or None."""
        return self._choices[self._choice] if self._choices else None

    @property
    def alternatives(self):
        """How many shapes there are to choose from."""
        return len(self._choices)

    def add_point(self, x, y, label):
        """A click: 1 include, 0 exclude."""
        self._add(("point", (x, y), label), {"points": [[x, y]], "labels": [label]})

    def set_box(self, left, bottom, right, top):
        """A box around the object."""
        box = (left, bottom, right, top)
        self._add(("box", box), {"points": [], "labels": [], "box": list(box)})

    def load_prompt(self, prompt, subject=None):
        """Start again from the prompt of a finished object; `subject` comes back in the Result."""
        self.reset()
        self._subject = subject
        points, labels = prompt.get("points", []), prompt.get("labels", [])
        self._marks = [("point", tuple(p), label) for p, label in zip(points, labels)]
        if prompt.get("box"):
            self._marks.append(("box", tuple(prompt["box"])))
        self.prompt_changed.emit()
        self._preview()

    def take_back(self):
        """Undo the last point or box."""
        if self.state in BUSY or not self._marks:
            return
        self._marks.pop()
        self.prompt_changed.emit()
        if self._usable():
            self._preview()
        else:
            marks = self._marks
            self.reset()
            self._marks = marks
            self.prompt_changed.emit()

    def next_alternative(self):
        """Show the next reading of an ambiguous click."""
        if self.state is State.PREVIEW and len(self._choices) > 1:
            self._choice = (self._choice + 1) % len(self._choices)
            self.shape_changed.emit(self.shape)

    def _add(self, mark, correction):
        if self.layer is None or self.description is None:
            self.trouble.emit(
                Trouble(
                    "no_layer",
                    tr("There is no imagery to segment."),
                    tr("Add a raster layer or a basemap with a coordinate system, and choose it."),
                )
            )
            return
        if self.state is State.FOLLOWING:
            self.hint.emit(tr("Press Esc to pause, then click to correct."))
            return
        self._marks.append(mark)
        self.prompt_changed.emit()
        if self.state is State.PAUSED:
            self.engine.request("correct", self._control_answer, job=self._job, prompt=correction)
        elif self._usable():
            self._preview()

    def _usable(self):
        """Does the prompt say where the object is, not only where it is not?"""
        return self.box is not None or any(label for _, label in self.points)

    # preview --------------------------------------------------------------------------------

    def _preview(self):
        if self._job is not None:
            self._stale = True
            return
        self._stale = False
        self._set_state(State.THINKING)
        if not self._prepare():
            return
        fields = {"prompt": self.prompt, "level": self.level}
        self._job = self.engine.request("preview", self._previewed, **fields)
        if self.state is State.EMPTY:  # the engine could not even start
            self._job = None

    def _prepare(self):
        """Have the engine load the model and open the layer, if it has not."""
        if not self.engine.start():
            return False
        generation = self.engine.generation
        if self._loaded != (generation, self.preset):
            self._loaded = (generation, self.preset)
            device = settings.get("device") or None
            self.engine.request("load_model", self._prepared, model=self.preset, device=device)
        if self._opened != (generation, self.layer):
            self._opened = (generation, self.layer)
            scene = self.description.message()
            self.engine.request("open", self._prepared, scene=scene)
        return True

    def _prepared(self, header, _payload):
        if header["op"] == "error":
            self._opened = self._loaded = None
            self._show_error(header)
        elif header["op"] == "loaded":
            self._failed = ""
            self.loaded.emit(header)

    def _previewed(self, header, payload):
        if header.get("id") != self._job:
            return  # the answer to something that was given up
        self._job = None
        if self._stale:
            self._stale = False
            if self._usable():
                self._preview()
            return
        if header["op"] == "error":
            self._show_error(header)
            self._give_up_preview()
            return
        self._choices, self._choice = shapes(header, payload), 0
        if not self._choices:
            self.hint.emit(tr("Nothing was found there: add a point, or draw a box."))
        self._set_state(State.PREVIEW)
        self.shape_changed.emit(self.shape)
        if self._accept_next:
            self._accept_next = False
            self.accept()

    def _give_up_preview(self):
        """After an error: keep the points, so that another click or Backspace can mend it."""
        self._accept_next = False
        self._choices = []
        self.shape_changed.emit(None)
        self._set_state(State.EMPTY)

    def _show_error(self, header):
        if not header.get("reported"):  # the engine's own failures were announced once already
            self.trouble.emit(Trouble.from_message(header))

    # following ------------------------------------------------------------------------------

    def accept(self):
        """Take what is shown; an object that goes on beyond the frame is followed first."""
        if self.state is State.THINKING:
            self._accept_next = True
        elif self.state in BUSY:
            self.engine.send("accept", job=self._job)
        elif self.state is State.PREVIEW and self.shape:
            if self.follow and self._choice == 0 and self._unfinished():
                self._follow()
            else:
                self._finish(self.shape, complete=True)

    def _unfinished(self):
        """Does the shape go on beyond its frame, or can it be drawn in more detail?"""
        figures = self.shape.figures
        coarse = self.level == "auto" and figures.get("level", 0) > 0
        return coarse or figures.get("open_edges", 0) > 0

    def _follow(self):
        level = "auto" if self.level == "auto" else self.shape.figures.get("level", self.level)
        if not self._prepare():
            self._give_up_preview()
            return
        checkpoint = settings.checkpoint_path()
        self._remember_run(level)
        self._start_job(
            "follow",
            prompt=self.prompt,
            level=level,
            options={"max_frames": self.max_frames, "preset": self.preset},
            checkpoint=os.fspath(checkpoint),
        )

    def _start_job(self, op, **fields):
        self._set_state(State.FOLLOWING)
        self.progress.emit(0, 1)
        self._job = self.engine.request(op, self._followed, **fields)
        if self.state is State.EMPTY:
            self._job = None

    def toggle_pause(self):
        """Pause a running job, resume a paused one."""
        if self.state is State.FOLLOWING:
            self.engine.request("pause", self._control_answer, job=self._job)
        elif self.state is State.PAUSED:
            self.engine.request("resume", self._control_answer, job=self._job)

    def escape(self):
        """Esc: pause or resume while following; else forget the prompt."""
        if self.state in BUSY:
            self.toggle_pause()
        else:
            self.reset()

    def cancel(self):
        """Give up what is being computed and forget the prompt."""
        if self.state in BUSY:
            forget_run()
        self.reset()

    def reset(self):
        """Back to the beginning; a running job is cancelled."""
        if self._job is not None:
            self.engine.send("cancel", job=self._job)
        if self._source:
            self._source.cancel()
        self._job, self._held = None, None
        self._stale = self._accept_next = self._tolerant = False
        self.clear_prompt()
        self.prompt_changed.emit()
        self.shape_changed.emit(None)
        self._set_state(State.EMPTY)

    def _control_answer(self, header, _payload):
        if header["op"] == "error" and header.get("kind") != "no_job":
            self._show_error(header)

    def _followed(self, header, payload):
        if header.get("id") != self._job:
            return  # the answer to something that was given up
        self._job = None
        if header["op"] == "error":
            self._show_error(header)
            self.reset()
            return
        forget_run()
        found = shapes(header, payload)
        if not found:
            self.hint.emit(tr("Nothing was found there: add a point, or draw a box."))
            self.reset()
            return
        self._finish(found[0], complete=bool(header.get("complete", True)))

    def _finish(self, shape, complete):
        result = Result(shape, self.prompt, self.description, complete, self._subject)
        self.reset()
        self.finished.emit(result)

    # a run that was interrupted ---------------------------------------------------------------

    def _remember_run(self, level):
        forget_run()
        note = {"source": self.description.source, "prompt": self.prompt, "level": level}
        _note_path().write_text(json.dumps(note), encoding="utf-8")

    def resumable(self):
        """Is there an interrupted run of the layer that is chosen now?"""
        note = read_run()
        return bool(note and self.description and note["source"] == self.description.source)

    def resume_run(self):
        """Go on with the interrupted run."""
        note = read_run()
        if not note or self.state in BUSY or self.description is None:
            return
        self.reset()
        points, labels = note["prompt"]["points"], note["prompt"]["labels"]
        self._marks = [("point", tuple(p), label) for p, label in zip(points, labels)]
        if note["prompt"].get("box"):
            self._marks.append(("box", tuple(note["prompt"]["box"])))
        self.prompt_changed.emit()
        if self._prepare():
            self._start_job("restore", checkpoint=os.fspath(settings.checkpoint_path()))

    # what the engine says ---------------------------------------------------------------------

    def _arrived(self, header, payload):
        if header.get("id") != self._job:
            return
        op = header["op"]
        if op == "need":
            self._draw(header["need"], header)
        elif op == "progress":
            self._show_progress(header, shapes(header, payload))
        elif op == "paused":
            self._set_state(State.PAUSED)
        elif op == "resumed":
            self._set_state(State.FOLLOWING)

    def _show_progress(self, header, found):
        """The object so far; not each step has a picture of it."""
        if found and not self._stale:
            self._choices, self._choice = found[:1], 0
            self.shape_changed.emit(self.shape)
        if self.state in BUSY:
            self.progress.emit(int(header["done"]), int(header["waiting"]))

    def _draw(self, need, header):
        bounds = tuple(header["bounds"])
        self._last_need = dict(header)
        self._source.request(need, bounds, header["width"], header["height"], self._drawn)

    def _drawn(self, need, data, share):
        if share > pixels.MISSING_SHARE and not self._tolerant:
            self._held = (need, data)
            self.missing.emit(share)
            return
        self._hand_over(need, data)

    def _hand_over(self, need, data):
        if data:
            self.engine.send("pixels", data, need=need)
        else:
            reason = tr("the imagery did not arrive in time")
            self.engine.send("pixels", need=need, message=reason)

    def retry(self):
        """Draw the window with missing imagery again."""
        if self._held:
            need, self._held = self._held[0], None
            self.layer.dataProvider().reloadData()
            self._draw(need, self._last_need)

    def use_anyway(self):
        """Go on with what there is, also in the windows that follow."""
        if self._held:
            self._tolerant = True
            need, data = self._held
            self._held = None
            self._hand_over(need, data)

    def _engine_failed(self, trouble):
        self._job = self._opened = self._loaded = None
        self._failed = settings.find_python()
        self.reset()
        self.trouble.emit(trouble)

    def _set_state(self, state):
        if state is not self.state:
            self.state = state
            self.state_changed.emit(state)


def _note_path():
    return settings.checkpoint_path().with_suffix(".json")


def read_run():
    """The note of an interrupted run that can be resumed, or None."""
    if not Path(settings.checkpoint_path()).exists():
        return None
    try:
        note = json.loads(_note_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) and {"source", "prompt"} <= note.keys() else None


def forget_run():
    """Remove what is kept of an interrupted run."""
    settings.checkpoint_path().unlink(missing_ok=True)
    _note_path().unlink(missing_ok=True)
