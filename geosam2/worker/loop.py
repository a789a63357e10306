"""The worker: reads messages, runs one job at a time, answers each request exactly once.

Two threads. The reader handles what must act at once (ping, pause, resume, accept, cancel, correct,
pixels); everything else is a job and waits in a queue for the main thread. A request ends with one
message that carries its id: its own reply, `cancelled`, or `error`. Between, a long job sends
`progress`, `need`, `paused` and `resumed` with the same id.
"""

from __future__ import annotations

import itertools
import logging
import platform
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import geosam2
from geosam2.dates import chronological, date_in, repeated
from geosam2.errors import GeoSAM2Error, PromptError, SourceError
from geosam2.worker import protocol
from geosam2.worker.backend import Backend, Follower, Found, Seen, Step
from geosam2.worker.jobs import Accepted, Cancelled, Control
from geosam2.worker.source import Bounds, Clicks, Pixels, SceneInfo, Valid, numbers, rgba

MAX_QUEUE = 32
"""Requests that may wait; the next one is refused as busy."""

MAX_DATES = 1000
"""Scenes of a stack."""

CHECKPOINT_EVERY = 2.0
"""Seconds between two checkpoints of a running job."""

log = logging.getLogger(__name__)

Header = protocol.Header


class RequestError(GeoSAM2Error, ValueError):
    """A request that cannot be understood or not now."""

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.kind, self.hint = kind, hint


class Worker:
    """Serve one client over a pair of byte streams.

    Args:
        stdin: Requests.
        stdout: Answers; nobody else may write there.
        backend: What segments.
        on_close: Called in the reader thread when the client is gone; the program exits there,
            because the main thread may be deep inside a network call.
    """

    def __init__(
        self,
        stdin: BinaryIO,
        stdout: BinaryIO,
        backend: Backend,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._stdin, self._stdout, self._backend, self._on_close = stdin, stdout, backend, on_close
        self._write_lock = threading.Lock()
        self._state_lock = threading.Lock()
        self._waiting: queue.SimpleQueue[Header | None] = queue.SimpleQueue()
        self._queued: dict[Any, Header] = {}
        self._running: tuple[Any, Control] | None = None
        self._needs = itertools.count(1)
        self._loaded: dict[str, Any] | None = None
        self._scene: SceneInfo | None = None
        self._stack: list[SceneInfo] = []
        self._closing = False

    def run(self) -> int:
        """Serve until `shutdown` or the end of the input; returns the exit code."""
        self.send(self._ready(None))
        threading.Thread(target=self._listen, name="reader", daemon=True).start()
        while (request := self._waiting.get()) is not None:
            if not self._closing:
                self._work(request)
        return 0

    def send(self, header: Header, payload: bytes = b"") -> None:
        """Write one message; a client that is gone is no error here."""
        data = protocol.encode(header, payload)
        with self._write_lock:
            try:
                self._stdout.write(data)
                self._stdout.flush()
            except (OSError, ValueError):
                self._close()

    # the reader thread ----------------------------------------------------------------------

    def _listen(self) -> None:
        parser = protocol.MessageParser()
        read = getattr(self._stdin, "read1", self._stdin.read)
        while True:
            try:
                data = read(1 << 20)
            except (OSError, ValueError):
                data = b""
            if not data:
                break
            for message in parser.feed(data):
                if isinstance(message, protocol.Malformed):
                    text = f"{message.reason}: {message.text!r}"
                    self.send(_error(None, "malformed", text, "One JSON object per line."))
                else:
                    self._receive(*message)
        self._on_close()
        self._close()

    def _close(self) -> None:
        self._closing = True
        with self._state_lock:
            if self._running:
                self._running[1].cancel()
        self._waiting.put(None)

    def _receive(self, header: Header, payload: bytes) -> None:
        """Act on one message; whatever is wrong with it is answered."""
        request = header.get("id")
        if request is not None and (
            isinstance(request, bool) or not isinstance(request, int | str)
        ):
            self.send(_error(None, "bad_request", f"id must be a number or text: {request!r:.80}"))
            return
        try:
            self._dispatch(header, payload)
        except RequestError as error:
            self.send(_error(request, error.kind, str(error), error.hint))

    def _dispatch(self, header: Header, payload: bytes) -> None:
        op, request = header.get("op"), header.get("id")
        if op in ("hello", "ping", "shutdown"):
            self._talk(op, request)
        elif op == "pixels":
            self._take_pixels(header, payload)
        elif op in ("pause", "resume", "accept", "cancel", "correct"):
            self._control(op, header)
        elif isinstance(op, str) and op in self._jobs():
            self._enqueue(header)
        else:
            raise RequestError("unknown_op", f"unknown op {op!r:.80}", f"Known: {', '.join(OPS)}.")

    def _talk(self, op: str, request: Any) -> None:
        if op == "shutdown":
            self.send({"op": "bye", "id": request})
            self._close()
        else:
            self.send({"op": "pong", "id": request} if op == "ping" else self._ready(request))

    def _enqueue(self, header: Header) -> None:
        request = header.get("id")
        if request is None:
            raise RequestError("bad_request", f"{header['op']} needs an id")
        with self._state_lock:
            running = self._running[0] if self._running else None
            if request in self._queued or request == running:
                raise RequestError("bad_request", f"id {request!r:.40} is in use already")
            if len(self._queued) >= MAX_QUEUE:
                raise RequestError(
                    "busy", f"{MAX_QUEUE} requests wait already", "Wait for replies."
                )
            self._queued[request] = header
        self._waiting.put(header)

    def _control(self, op: str, header: Header) -> None:
        """Pause and the like: for the job named by `job`, or the running one."""
        request, job = header.get("id"), header.get("job")
        with self._state_lock:
            running = self._running
            waiting = isinstance(job, int | str) and job in self._queued
            if op == "cancel" and waiting:
                del self._queued[job]
        if op == "cancel" and waiting:
            self.send({"op": "cancelled", "id": job})
        elif running is None or job not in (None, running[0]):
            raise RequestError("no_job", f"nothing to {op}: no such job is running")
        elif op == "correct":
            running[1].correct(self._clicks(header, correction=True))
        else:
            getattr(running[1], op)()
        self.send({"op": "ok", "id": request})

    def _take_pixels(self, header: Header, payload: bytes) -> None:
        """Pixels have no reply; late ones (of a cancelled job) are dropped in silence."""
        need = header.get("need")
        if isinstance(need, bool) or not isinstance(need, int):
            raise RequestError("bad_request", f"pixels need the number of the need: {need!r:.80}")
        with self._state_lock:
            running = self._running
        if running:
            message = header.get("message")
            failed = str(message) if message else "the client had no pixels for this window"
            running[1].answer(need, payload or failed)

    # the main thread ------------------------------------------------------------------------

    def _work(self, header: Header) -> None:
        """Run one job and answer it, whatever happens."""
        request = header["id"]
        control = Control(lambda what: self.send({"op": what, "id": request}))
        with self._state_lock:
            if self._queued.pop(request, None) is None:
                return  # cancelled while it waited
            self._running = (request, control)
            if self._closing:  # between the look at the top of the loop and here
                control.cancel()
        try:
            self._jobs()[header["op"]](header, control)
        except Cancelled:
            self.send({"op": "cancelled", "id": request})
        except Accepted:
            self.send(_error(request, "no_job", "there was nothing yet to accept"))
        except Exception as error:
            self.send(_explain(request, error))
        finally:
            with self._state_lock:
                self._running = None

    def _jobs(self) -> dict[str, Callable[[Header, Control], None]]:
        return {
            "load_model": self._load_model,
            "open": self._open,
            "preview": self._preview,
            "follow": self._follow,
            "restore": self._restore,
            "everything": self._everything,
            "open_stack": self._open_stack,
            "track": self._track,
        }

    def _ready(self, request: Any) -> Header:
        return {
            "op": "ready",
            "id": request,
            "protocol": protocol.PROTOCOL,
            "version": geosam2.__version__,
            "python": platform.python_version(),
            "backend": self._backend.name,
            **self._backend.describe(),
            **(self._loaded or {}),
        }

    def _load_model(self, header: Header, control: Control) -> None:
        started = time.perf_counter()
        model, device = _text(header, "model"), _text(header, "device")
        self._loaded = self._backend.load(model, device)
        self._stack = []  # it was opened for the model before
        seconds = round(time.perf_counter() - started, 3)
        self.send({"op": "loaded", "id": header["id"], "seconds": seconds, **self._loaded})

    def _open(self, header: Header, control: Control) -> None:
        description = header.get("scene")
        if not isinstance(description, dict):
            raise SourceError(f"open needs scene, an object: {description!r:.80}")
        scene = SceneInfo.from_message(description)
        self._backend.open(scene, self._read, self._poll)
        self._scene = scene
        self.send({"op": "opened", "id": header["id"], "levels": len(scene.resolutions)})

    def _read(
        self, scene: SceneInfo, bounds: Bounds, height: int, width: int, level: int
    ) -> tuple[Pixels, Valid]:
        """Ask the client for one window and wait."""
        assert self._running is not None  # called from a job only
        request, control = self._running
        need = next(self._needs)
        header = {"op": "need", "id": request, "need": need, "bounds": bounds, "level": level}
        header["scene"] = scene.number
        header.update(height=height, width=width, cell=(bounds[2] - bounds[0]) / width)
        self.send(header)
        return rgba(control.pixels(need), height, width)

    def _poll(self) -> None:
        if self._running is not None:
            self._running[1].poll()

    def _preview(self, header: Header, control: Control) -> None:
        """A sketch is sent at once, the best shape as soon as it is outlined, then all of them."""
        scene = self._require_scene()
        clicks, level = self._clicks(header), _level(header, scene)
        sketch = self._backend.sketch(clicks, level)
        if sketch is not None:
            next(control.between_frames(), None)  # a cancel that came meanwhile
            self._progress(header, Step(0, 1), (sketch,))
        found: list[Found] = []
        for item in self._backend.preview(clicks, level):
            next(control.between_frames(), None)
            if not found:
                self._progress(header, Step(1, 0), (item,))
            found.append(item)
        objects, sizes, payload = _pack(found)
        self.send(
            {"op": "preview", "id": header["id"], "objects": objects, "parts": sizes}, payload
        )

    def _follow(self, header: Header, control: Control) -> None:
        scene = self._require_scene()
        clicks, level = self._clicks(header), _level(header, scene)
        follower = self._backend.follow(clicks, level, _options(header))
        self._drive(header, control, follower)

    def _restore(self, header: Header, control: Control) -> None:
        self._require_scene()
        path = _text(header, "checkpoint")
        if path is None:
            raise RequestError("bad_request", "restore needs checkpoint, the path of a paused run")
        self._drive(header, control, self._backend.restore(Path(path)))

    def _drive(self, header: Header, control: Control, follower: Follower) -> None:
        """Step through the frames; the client's wishes and checkpoints come between."""
        path, saved, begun, pace = _text(header, "checkpoint"), 0.0, False, Pace()
        try:
            for step in follower:
                begun = True
                self._progress(header, step, pace.picture(follower))
                if path and time.monotonic() - saved > CHECKPOINT_EVERY:
                    follower.save(Path(path))
                    saved = time.monotonic()
                for clicks in control.between_frames():
                    step = follower.correct(clicks)
                    self._progress(header, step, (follower.found(),), corrected=True)
                    if path:
                        follower.save(Path(path))
                if control.accepted:
                    break
        except Accepted:
            log.debug("accepted while waiting for pixels")
        except SourceError:
            if path and begun:
                follower.save(Path(path))
            raise
        if path:
            Path(path).unlink(missing_ok=True)
        self._finish(header, (follower.found(),) if begun else (), complete=not control.accepted)

    def _everything(self, header: Header, control: Control) -> None:
        scene = self._require_scene()
        box = header.get("bounds")
        left, bottom, right, top = numbers(box, 4, "bounds") if box else scene.bounds
        total = 0
        try:
            for step in self._backend.everything(
                (left, bottom, right, top), _level(header, scene), _options(header)
            ):
                total += len(step.found)
                self._progress(header, step, step.found)
                for _ in control.between_frames():
                    log.debug("corrections mean nothing when everything is segmented")
                if control.accepted:
                    break
        except Accepted:
            log.debug("accepted while waiting for pixels")
        done = {"op": "result", "id": header["id"], "count": total, "objects": [], "parts": []}
        self.send({**done, "complete": not control.accepted})

    def _open_stack(self, header: Header, control: Control) -> None:
        """The dates of one place; they are put in order, `scene` and `start` stay the client's."""
        raw, names = header.get("scenes"), header.get("dates")
        if not isinstance(raw, list) or not all(isinstance(one, dict) for one in raw):
            raise SourceError(f"open_stack needs scenes, a list of objects: {raw!r:.80}")
        if not 2 <= len(raw) <= MAX_DATES:
            raise SourceError(f"a stack has 2 to {MAX_DATES} dates, not {len(raw)}")
        if not isinstance(names, list) or len(names) != len(raw):
            raise SourceError(f"open_stack needs dates, a name for each scene: {names!r:.80}")
        dates = [date_in(str(name)) or str(name)[:200] for name in names]
        if (twice := repeated(dates)) is not None:
            raise SourceError(f"two scenes are of {twice}: give each a date or name of its own")
        order = chronological(dates)
        infos = [replace(SceneInfo.from_message(one), number=n) for n, one in enumerate(raw)]
        scenes, dates = [infos[n] for n in order], [dates[n] for n in order]
        self._backend.open_stack(scenes, dates, self._read, self._poll, _options(header))
        self._stack = scenes
        self.send({"op": "opened", "id": header["id"], "dates": dates, "order": order})

    def _track(self, header: Header, control: Control) -> None:
        """One message for each date; the client's wish to end is heard between two of them."""
        if not self._stack:
            raise RequestError("no_scene", "no stack of dates is open", "Send `open_stack` first.")
        places = [scene.number for scene in self._stack]
        first = header.get("start")
        if first is not None and (isinstance(first, bool) or first not in places):
            raise RequestError("bad_request", f"start must be one of the scenes: {first!r:.80}")
        start = 0 if first is None else places.index(first)
        clicks, done = self._clicks(header, self._stack[start]), 0
        try:
            for done, seen in enumerate(self._backend.track(clicks, start), start=1):
                self._sighting(header, seen, done)
                next(control.between_frames(), None)
                if control.accepted:
                    break
        except Accepted:
            log.debug("accepted while waiting for pixels")
        result = {"op": "result", "id": header["id"], "complete": done == len(places)}
        self.send({**result, "objects": [], "parts": []})

    def _sighting(self, header: Header, seen: Seen, done: int) -> None:
        objects, sizes, payload = _pack(() if seen.found is None else (seen.found,))
        message = {"op": "progress", "id": header["id"], "done": done, "objects": objects}
        message.update(waiting=len(self._stack) - done, scene=self._stack[seen.number].number)
        message.update(found_by=seen.found_by, agreement=seen.agreement, parts=sizes)
        self.send(message, payload)

    def _progress(
        self, header: Header, step: Step, found: Sequence[Found], *, corrected: bool = False
    ) -> None:
        objects, sizes, payload = _pack(found)
        message = {"op": "progress", "id": header["id"], "done": step.done, "waiting": step.waiting}
        message.update(frame=step.frame, objects=objects, parts=sizes, corrected=corrected)
        self.send(message, payload)

    def _finish(self, header: Header, found: Sequence[Found], *, complete: bool) -> None:
        objects, sizes, payload = _pack(found)
        message = {"op": "result", "id": header["id"], "complete": complete}
        self.send({**message, "objects": objects, "parts": sizes}, payload)

    def _require_scene(self) -> SceneInfo:
        if self._scene is None:
            raise RequestError("no_scene", "no scene is open", "Send `open` first.")
        return self._scene

    def _clicks(
        self, header: Header, scene: SceneInfo | None = None, *, correction: bool = False
    ) -> Clicks:
        """The prompt of a request. A correction may consist of excluding clicks alone."""
        scene = scene or self._scene
        try:
            return Clicks.from_message(header.get("prompt"), scene, correction=correction)
        except PromptError as error:
            raise RequestError("prompt", str(error)) from error


class Pace:
    """When the picture of a growing object is due: outlining takes `SHARE` of the time at most."""

    SHARE = 0.2

    def __init__(self) -> None:
        self._next = 0.0

    def picture(self, follower: Follower) -> tuple[Found, ...]:
        """The object so far if a picture is due, else nothing."""
        started = time.monotonic()
        if started < self._next:
            return ()
        found = follower.found()
        ended = time.monotonic()
        self._next = ended + (ended - started) * (1 / self.SHARE - 1)
        return (found,)


OPS = (
    "hello", "load_model", "open", "preview", "follow", "everything", "restore", "pause", "resume",
    "accept", "cancel", "correct", "pixels", "ping", "shutdown", "open_stack", "track",
)  # fmt: skip


def _pack(found: Sequence[Found]) -> tuple[list[dict[str, Any]], list[int], bytes]:
    """Attributes, lengths of the geometries, geometries."""
    sizes, payload = protocol.join(item.wkb for item in found)
    return [item.header() for item in found], sizes, payload


def _text(header: Header, key: str) -> str | None:
    value = header.get(key)
    if value is not None and (not isinstance(value, str) or "\0" in value):
        raise RequestError("bad_request", f"{key} must be a text: {value!r:.80}")
    return value or None


def _options(header: Header) -> dict[str, Any]:
    options = header.get("options", {})
    if not isinstance(options, dict):
        raise RequestError("bad_request", f"options must be an object: {options!r:.80}")
    frames = options.get("max_frames", 50)
    if isinstance(frames, bool) or not isinstance(frames, int) or not 1 <= frames <= 100_000:
        raise RequestError("bad_request", f"max_frames must be 1 to 100000: {frames!r:.80}")
    times = options.get("enlarge", 1)
    if isinstance(times, bool) or times not in (1, 2, 4, 8):
        raise RequestError("bad_request", f"enlarge must be 1, 2, 4 or 8: {times!r:.80}")
    return {**options, "max_frames": frames}


def _level(header: Header, scene: SceneInfo) -> int | None:
    level = header.get("level")
    if level is None or level == "auto":
        return None
    if (
        isinstance(level, bool)
        or not isinstance(level, int)
        or not 0 <= level < len(scene.resolutions)
    ):
        highest = len(scene.resolutions) - 1
        raise RequestError("bad_request", f"level must be 0 (finest) to {highest}: {level!r:.80}")
    return level


def _error(request: Any, kind: str, message: str, hint: str = "") -> Header:
    return {"op": "error", "id": request, "kind": kind, "message": message, "hint": hint}


_KINDS: tuple[tuple[type[BaseException], str, str], ...] = (
    (PromptError, "prompt", ""),
    (SourceError, "pixels", ""),
    (GeoSAM2Error, "failed", ""),
    (MemoryError, "memory", "Close other programs, or choose the preset rapid."),
)


def _explain(request: Any, error: Exception) -> Header:
    """An exception of a job as a message in one sentence; the traceback goes to stderr."""
    if isinstance(error, RequestError):
        return _error(request, error.kind, str(error), error.hint)
    for kind, name, hint in _KINDS:
        if isinstance(error, kind):
            return _error(request, name, str(error) or name, hint)
    if type(error).__module__.partition(".")[0] == "geosam2_model":
        return _error(request, "model", str(error))
    log.error("request %s failed", request, exc_info=error)
    text = f"{type(error).__name__}: {error}"[:500]
    return _error(request, "internal", text, "The log of the engine has the details.")
