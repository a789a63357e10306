"""The worker over real pipes: what a client may rely on, and what a hostile one cannot break."""

from __future__ import annotations

import io
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geosam2.worker import protocol
from geosam2.worker.fake import FRAME, FakeBackend, grow, polygons_wkb, trace, wkb_area
from geosam2.worker.loop import MAX_QUEUE, OPS, Worker
from geosam2.worker.real import _interruptible
from geosam2.worker.source import SceneInfo

CELL = 10.0
SCENE = {
    "crs": "EPSG:32633",
    "bounds": [300000, 5000000, 330000, 5030000],
    "resolutions": [CELL, 20.0, 40.0],
    "origin": [300000, 5030000],
}
CENTRE = (314000.0, 5014000.0)
RADII = (6000.0, 4000.0)


def lake(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """An ellipse that spans some ten frames at the finest level."""
    return ((x - CENTRE[0]) / RADII[0]) ** 2 + ((y - CENTRE[1]) / RADII[1]) ** 2 <= 1


def draw(bounds: list[float], height: int, width: int) -> bytes:
    """RGBA of a window: blue lake on green land; what lies outside the scene is transparent."""
    left, bottom, right, top = bounds
    x = (left + (np.arange(width) + 0.5) * (right - left) / width)[None, :]
    y = (top - (np.arange(height) + 0.5) * (top - bottom) / height)[:, None]
    image = np.empty((height, width, 4), np.uint8)
    image[:] = (90, 140, 60, 255)
    image[lake(x, y)] = (30, 60, 150, 255)
    inside = (x > 300000) & (x < 330000) & (y > 5000000) & (y < 5030000)
    image[~inside] = 0
    return image.tobytes()


class Client:
    """The other end: sends requests, draws the pixels that are asked for, keeps what arrives."""

    def __init__(self, backend: FakeBackend | None = None) -> None:
        to_worker, from_client = os.pipe()
        to_client, from_worker = os.pipe()
        self._write = os.fdopen(from_client, "wb", 0)
        self._read = os.fdopen(to_client, "rb", 0)
        self.worker = Worker(
            os.fdopen(to_worker, "rb", 0), os.fdopen(from_worker, "wb", 0), backend or FakeBackend()
        )
        self.messages: queue.Queue[protocol.Message] = queue.Queue()
        self.seen: list[protocol.Header] = []
        self.draws = True
        self.needs: list[protocol.Header] = []
        self._thread = threading.Thread(target=self.worker.run, daemon=True)
        self._thread.start()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        parser = protocol.MessageParser()
        while data := self._read.read(1 << 16):
            for message in parser.feed(data):
                assert not isinstance(message, protocol.Malformed)
                if message[0]["op"] == "need":
                    self.needs.append(message[0])
                    if self.draws:
                        self.paint(message[0])
                    continue
                self.seen.append(message[0])
                self.messages.put(message)

    def paint(self, need: protocol.Header) -> None:
        pixels = draw(need["bounds"], need["height"], need["width"])
        self.raw(protocol.encode({"op": "pixels", "need": need["need"]}, pixels))

    def raw(self, data: bytes) -> None:
        if self._write.closed:
            return
        view = memoryview(data)
        while view:  # an unbuffered pipe may take less than everything
            view = view[self._write.write(view) :]

    def send(self, op: str, id: object = None, **more: object) -> None:
        self.raw(protocol.encode({"op": op, "id": id, **more}))

    def wait(self, op: str, timeout: float = 60.0) -> protocol.Message:
        """The next message with this op; others are passed over."""
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            try:
                message = self.messages.get(timeout=left)
            except queue.Empty:
                break
            if message[0]["op"] == op:
                return message
        raise AssertionError(f"no {op} within {timeout} s; seen: {[m['op'] for m in self.seen]}")

    def open(self) -> Client:
        self.send("open", "o", scene=SCENE)
        self.wait("opened")
        return self

    def close(self) -> None:
        self._write.close()
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture
def client() -> Iterator[Client]:
    it = Client()
    yield it
    it.close()


@pytest.fixture
def slow() -> Iterator[Client]:
    it = Client(FakeBackend(delay=0.05))
    yield it
    it.close()


PROMPT = {"points": [list(CENTRE)], "labels": [1]}


def test_hello_is_answered_with_what_the_client_must_know(client: Client) -> None:
    client.send("hello", 7, protocol=1)
    client.wait("ready")  # the one that is sent unasked at the start
    header, _ = client.wait("ready")
    assert header["id"] == 7
    assert header["protocol"] == 1
    assert {"version", "device", "backend", "model"} <= set(header)


def test_preview_shows_one_frame_and_says_where_it_is_cut(client: Client) -> None:
    client.open().send("preview", 1, prompt=PROMPT, level=0)
    header, payload = client.wait("preview")
    best, *others = header["objects"]
    assert best["open_edges"] == 4
    assert len(others) == 2
    assert best["frames"] == 1
    shapes = [shapely.from_wkb(w) for w in protocol.split(header["parts"], payload)]
    assert shapes[0].is_valid
    assert 0.9 * (FRAME * CELL) ** 2 < shapes[0].area <= (FRAME * CELL) ** 2


def test_a_sketch_comes_first_and_the_best_shape_before_the_others(client: Client) -> None:
    client.open().send("preview", 1, prompt=PROMPT, level=0)
    sketch, payload = client.wait("progress")
    assert (sketch["done"], sketch["waiting"]) == (0, 1)
    assert shapely.from_wkb(payload).contains(shapely.Point(CENTRE))
    best, payload = client.wait("progress")
    assert (best["done"], best["waiting"]) == (1, 0)
    header, everything = client.wait("preview")
    assert best["objects"] == header["objects"][:1]
    assert payload == protocol.split(header["parts"], everything)[0]


def test_a_backend_may_have_no_sketch() -> None:
    class Direct(FakeBackend):
        def sketch(self, clicks, level):  # type: ignore[no-untyped-def]
            return None

    client = Client(Direct()).open()
    client.send("preview", 1, prompt=PROMPT, level=0)
    assert client.wait("progress")[0]["done"] == 1
    client.wait("preview")
    client.close()


def test_following_finds_the_whole_lake_on_any_number_of_frames(client: Client) -> None:
    client.open().send("follow", 1, prompt=PROMPT, level=0)
    header, payload = client.wait("result")
    shape = shapely.from_wkb(payload)
    assert shape.is_valid
    assert len(shape.geoms) == 1
    assert shape.area == pytest.approx(np.pi * RADII[0] * RADII[1], rel=1e-3)
    assert header["objects"][0]["open_edges"] == 0
    assert header["objects"][0]["frames"] >= 7
    progress = [m for m in client.seen if m["op"] == "progress"]
    assert [m["done"] for m in progress] == list(range(1, len(progress) + 1))


def test_windows_lie_on_one_lattice_and_are_asked_for_once(client: Client) -> None:
    client.open().send("follow", 1, prompt=PROMPT, level=0)
    client.wait("result")
    corners = [(n["bounds"][0] / CELL % FRAME, n["bounds"][3] / CELL % FRAME) for n in client.needs]
    assert set(corners) == {(0.0, 0.0)}
    client.send("follow", 2, prompt=PROMPT, level=0)
    client.wait("result")
    bounds = [tuple(n["bounds"]) for n in client.needs]
    assert len(set(bounds)) == len(bounds)


def test_max_frames_leaves_open_edges_that_are_reported(client: Client) -> None:
    client.open().send("follow", 1, prompt=PROMPT, level=0, options={"max_frames": 3})
    header, _ = client.wait("result")
    assert header["objects"][0]["frames"] == 3
    assert header["objects"][0]["open_edges"] > 0


def test_the_automatic_level_fits_the_object_on_a_frame(client: Client) -> None:
    client.open().send("preview", 1, prompt=PROMPT, level="auto")
    header, _ = client.wait("preview")
    assert header["objects"][0]["cell"] == 40.0


def test_pause_stops_and_resume_gives_the_same_polygon(slow: Client) -> None:
    slow.open().send("follow", 1, prompt=PROMPT, level=0)
    slow.wait("progress")
    slow.send("pause")
    slow.wait("paused")
    before = len(slow.seen)
    time.sleep(0.3)
    assert [m["op"] for m in slow.seen[before:] if m["op"] != "ok"] == []
    slow.send("resume")
    slow.wait("resumed")
    _, paused = slow.wait("result")
    slow.send("follow", 2, prompt=PROMPT, level=0)
    _, straight = slow.wait("result")
    assert shapely.from_wkb(paused).equals(shapely.from_wkb(straight))


def test_pause_is_answered_while_pixels_are_missing(client: Client) -> None:
    client.open()
    client.draws = False
    client.send("follow", 1, prompt=PROMPT, level=0)
    while not client.needs:
        time.sleep(0.01)
    for _ in range(2):
        client.send("pause")
        client.wait("paused", timeout=20)
        client.send("resume")
        client.wait("resumed", timeout=20)
    client.draws = True
    client.paint(client.needs[-1])
    client.wait("result")


def test_pause_and_cancel_act_when_the_running_call_of_the_network_ends() -> None:
    ends: list[float] = []

    def decode() -> None:
        time.sleep(0.05)
        ends.append(time.monotonic())

    class Calling(FakeBackend):
        def open(self, scene, read, poll):  # type: ignore[no-untyped-def]
            super().open(scene, read, poll)
            self.network = SimpleNamespace(encode=decode, decode=decode)
            _interruptible(self.network, poll)  # type: ignore[arg-type]

        def sketch(self, clicks, level):  # type: ignore[no-untyped-def]
            while len(ends) < 2000:
                self.network.decode()

    client = Client(Calling()).open()
    client.send("preview", 1, prompt=PROMPT, level=0)
    while not ends:
        time.sleep(0.01)
    client.send("pause")
    client.wait("paused")
    slack = 0.1 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # others want cores, too
    assert time.monotonic() - ends[-1] < slack
    calls = len(ends)
    time.sleep(0.2)
    started = time.monotonic()
    client.send("cancel", 2, job=1)
    client.wait("cancelled")
    assert time.monotonic() - started < slack
    assert len(ends) == calls
    client.close()


@pytest.mark.parametrize("paused", [False, True])
def test_cancel_ends_the_job_at_once(slow: Client, paused: bool) -> None:
    slow.open().send("follow", 1, prompt=PROMPT, level=0)
    slow.wait("progress")
    if paused:
        slow.send("pause")
        slow.wait("paused")
    slow.send("cancel", 2, job=1)
    header, _ = slow.wait("cancelled", timeout=20)
    assert header["id"] == 1
    slow.send("ping", 3)
    slow.wait("pong")
    assert not [m for m in slow.seen if m["op"] == "result"]


def test_cancel_while_waiting_for_pixels_and_for_a_turn(client: Client) -> None:
    client.open()
    client.draws = False
    client.send("preview", 1, prompt=PROMPT, level=0)
    client.send("preview", 2, prompt=PROMPT, level=0)
    while not client.needs:
        time.sleep(0.01)
    client.send("cancel", job=2)
    assert client.wait("cancelled", timeout=20)[0]["id"] == 2
    client.send("cancel", job=1)
    assert client.wait("cancelled", timeout=20)[0]["id"] == 1


def test_accept_finishes_with_what_there_is(slow: Client) -> None:
    slow.open().send("follow", 1, prompt=PROMPT, level=0)
    slow.wait("progress")
    slow.send("pause")
    slow.wait("paused")
    slow.send("accept")
    header, payload = slow.wait("result")
    assert header["complete"] is False
    assert header["objects"][0]["open_edges"] > 0
    assert not shapely.from_wkb(payload).is_empty


class Asking(FakeBackend):
    """Looks at the client's wishes while it corrects, as a network does between its calls."""

    def open(self, scene, read, poll):  # type: ignore[no-untyped-def]
        super().open(scene, read, poll)
        self.poll = poll

    def follow(self, clicks, level, options):  # type: ignore[no-untyped-def]
        follower = super().follow(clicks, level, options)
        correct = follower.correct
        follower.correct = lambda more: (self.poll(), correct(more))[1]  # type: ignore[method-assign]
        return follower


@pytest.mark.parametrize("backend", [FakeBackend, Asking])
def test_correcting_while_paused_shows_the_change_at_once(backend: type[FakeBackend]) -> None:
    slow = Client(backend(delay=0.05))
    slow.open().send("follow", 1, prompt=PROMPT, level=0)
    slow.wait("progress")
    slow.send("pause")
    slow.wait("paused")
    east = CENTRE[0] + 3000
    slow.send("correct", 5, prompt={"points": [[east, CENTRE[1]]], "labels": [0]})
    header, payload = slow.wait("progress")
    while not header["corrected"]:  # a frame that was begun is finished first
        header, payload = slow.wait("progress")
    assert not shapely.from_wkb(payload).contains(shapely.Point(east, CENTRE[1]))
    slow.wait("paused")  # still paused: the client may correct again
    slow.send("resume")
    _, payload = slow.wait("result")
    shape = shapely.from_wkb(payload)
    assert shape.bounds[2] <= CENTRE[0] + 1500 + CELL  # half way between the two clicks
    assert shape.bounds[0] == pytest.approx(CENTRE[0] - RADII[0], abs=2 * CELL)
    slow.close()


def test_a_run_goes_on_in_another_process_from_its_checkpoint(tmp_path: Path) -> None:
    first, path = Client(FakeBackend(delay=0.02)), tmp_path / "run.npz"
    first.open().send("follow", 1, prompt=PROMPT, level=0, checkpoint=str(path))
    first.wait("progress")
    first.wait("progress")
    first.close()
    assert path.exists()
    second = Client().open()
    second.send("restore", 1, checkpoint=str(path))
    _, payload = second.wait("result")
    assert shapely.from_wkb(payload).area == pytest.approx(np.pi * RADII[0] * RADII[1], rel=1e-3)
    assert len(second.needs) > 0
    assert not path.exists()  # finished: nothing to resume
    second.close()


def test_a_checkpoint_that_is_none_is_refused_in_one_sentence(
    client: Client, tmp_path: Path
) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 not really")
    client.open().send("restore", 1, checkpoint=str(tmp_path / "x.npz"))
    header, _ = client.wait("error")
    assert header["kind"] == "failed"
    assert "holds no paused run" in header["message"]


def test_missing_pixels_are_an_error_with_the_clients_reason(client: Client) -> None:
    client.open()
    client.draws = False
    client.send("follow", 1, prompt=PROMPT, level=0)
    while not client.needs:
        time.sleep(0.01)
    client.send("pixels", need=client.needs[0]["need"], message="the tile server said 503")
    header, _ = client.wait("error")
    assert header["kind"] == "pixels"
    assert header["message"] == "the tile server said 503"


def test_too_few_pixels_are_refused(client: Client) -> None:
    client.open()
    client.draws = False
    client.send("follow", 1, prompt=PROMPT, level=0)
    while not client.needs:
        time.sleep(0.01)
    client.raw(protocol.encode({"op": "pixels", "need": client.needs[0]["need"]}, b"abcd"))
    assert "4 bytes of pixels for a window of 512 x 512" in client.wait("error")[0]["message"]


def test_everything_gives_each_object_once(client: Client) -> None:
    client.open().send("everything", 1, level=0)
    header, _ = client.wait("result")
    assert header["count"] == 1  # the lake; the land around it is background
    objects = [o for m in client.seen if m["op"] == "progress" for o in m["objects"]]
    assert len(objects) == 1


STACK = {"scenes": [SCENE] * 3, "dates": ["lake 2020", "lake_1985_07", "lake-2010"]}


def test_an_object_through_dates_that_are_put_in_order(client: Client) -> None:
    client.send("open_stack", 1, **STACK)
    header, _ = client.wait("opened")
    assert header["dates"] == ["1985-07", "2010", "2020"]
    assert header["order"] == [1, 2, 0]  # numbers of the client's scenes
    client.send("track", 2, prompt=PROMPT, start=2)
    header, _ = client.wait("result")
    assert header["complete"]
    seen = [m for m in client.seen if m["op"] == "progress"]
    assert [(m["scene"], m["found_by"]) for m in seen] == [
        (2, "prompt"),
        (0, "click"),
        (1, "click"),
    ]
    assert [(m["done"], m["waiting"]) for m in seen] == [(1, 2), (2, 1), (3, 0)]
    assert {need["scene"] for need in client.needs} == {0, 1, 2}


def test_accepting_ends_after_the_date_at_hand_and_cancelling_at_once(slow: Client) -> None:
    slow.send("open_stack", 1, **STACK)
    slow.send("track", 2, prompt=PROMPT)
    slow.wait("progress")
    slow.send("accept")
    header, _ = slow.wait("result")
    assert not header["complete"]
    slow.send("track", 3, prompt=PROMPT)
    slow.wait("progress")
    slow.send("cancel")
    assert slow.wait("cancelled")[0]["id"] == 3


def test_a_stack_is_opened_again_for_another_model(client: Client) -> None:
    client.send("open_stack", 1, **STACK)
    client.send("load_model", 2)
    client.send("track", 3, prompt=PROMPT)
    assert "no stack of dates is open" in client.wait("error")[0]["message"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scenes": 3}, "a list of objects"),
        ({"scenes": [SCENE], "dates": ["1985"]}, "2 to 1000 dates, not 1"),
        ({"dates": ["1985"]}, "a name for each scene"),
        ({"dates": ["a 1985", "1985", "x"]}, "two scenes are of 1985"),
        ({"scenes": [SCENE, SCENE, {**SCENE, "crs": None}]}, "crs must be a text"),
        ({"options": {"max_frames": 0}}, "max_frames must be"),
        ({"start": 3}, "start must be one of the scenes: 3"),
        ({"start": True}, "start must be one of the scenes: True"),
        ({"prompt": {"points": [[1, 2]], "labels": [1]}}, "outside the scene"),
    ],
)
def test_bad_stacks_are_refused(client: Client, change: dict[str, Any], words: str) -> None:
    client.send("open_stack", 1, **{**STACK, **change})
    client.send("track", 2, **{"prompt": PROMPT, **change})
    assert words in client.wait("error")[0]["message"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"op": "preview"}, "no scene is open"),
        ({"op": "track", "prompt": PROMPT}, "no stack of dates is open"),
        ({"op": "nonsense"}, "unknown op 'nonsense'"),
        ({"op": ["preview"]}, "unknown op"),
        ({}, "unknown op None"),
        ({"op": "open", "scene": 3}, "open needs scene"),
        ({"op": "open", "scene": {**SCENE, "bounds": [1, 2, 1, 2]}}, "are empty"),
        ({"op": "open", "scene": {**SCENE, "resolutions": [0]}}, "must be positive"),
        ({"op": "open", "scene": {**SCENE, "resolutions": [1e-9]}}, "too many cells"),
        ({"op": "open", "scene": {**SCENE, "crs": None}}, "crs must be a text"),
        ({"op": "pause"}, "nothing to pause"),
        ({"op": "cancel", "job": 99}, "nothing to cancel"),
        ({"op": "pixels", "need": "x"}, "pixels need the number"),
        ({"op": "load_model", "model": 3}, "model must be a text"),
    ],
)
def test_bad_requests_are_answered_and_the_worker_lives(
    client: Client, change: dict[str, object], words: str
) -> None:
    client.raw(protocol.encode({"id": 1, **change}))
    header, _ = client.wait("error")
    assert words in header["message"]
    client.send("ping", 2)
    client.wait("pong")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"enlarge": 3}, "enlarge must be 1, 2, 4 or 8"),
        ({"enlarge": True}, "enlarge must be 1, 2, 4 or 8"),
        ({"max_frames": 0}, "max_frames must be 1 to 100000"),
        ([], "options must be an object"),
    ],
)
def test_bad_options_are_refused(client: Client, options: object, words: str) -> None:
    client.open().send("everything", 1, level=0, options=options)
    header, _ = client.wait("error")
    assert words in header["message"]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ({"points": [[1, 2]], "labels": [1]}, "outside the scene"),
        ({"points": [], "labels": []}, "at least one point"),
        ({"points": [list(CENTRE)], "labels": [0]}, "at least one point"),
        ({"points": [list(CENTRE)], "labels": [1, 1]}, "need as many labels"),
        ({"points": [["a", 1]], "labels": [1]}, "must be 2 numbers"),
        ({"points": [[1e999, 1]], "labels": [1]}, "must be 2 numbers|must be finite"),
        ({"box": [1, 1, 1, 5]}, "is empty"),
        (None, "prompt must be an object"),
    ],
)
def test_bad_prompts_are_explained(client: Client, prompt: object, words: str) -> None:
    client.open()
    text = json.dumps({"op": "preview", "id": 1, "prompt": prompt}) + "\n"
    client.raw(text.encode())
    header, _ = client.wait("error")
    assert header["kind"] == "prompt"
    assert any(word in header["message"] for word in words.split("|"))


def test_more_requests_than_the_queue_holds_are_refused(slow: Client) -> None:
    slow.open().send("follow", "f", prompt=PROMPT, level=0)
    slow.wait("progress")
    for number in range(MAX_QUEUE + 1):
        slow.send("preview", number, prompt=PROMPT, level=0)
    header, _ = slow.wait("error")
    assert header["kind"] == "busy"
    assert header["id"] == MAX_QUEUE


def test_an_id_may_not_be_used_twice_at_once(slow: Client) -> None:
    slow.open().send("follow", "f", prompt=PROMPT, level=0)
    slow.wait("progress")
    slow.send("preview", "f", prompt=PROMPT)
    assert "in use already" in slow.wait("error")[0]["message"]


def test_a_bug_in_a_backend_is_an_answer_too() -> None:
    class Broken(FakeBackend):
        def preview(self, clicks, level):  # type: ignore[no-untyped-def]
            raise RuntimeError("shapes do not match")

    client = Client(Broken()).open()
    client.send("preview", 1, prompt=PROMPT)
    header, _ = client.wait("error")
    assert header["kind"] == "internal"
    assert header["message"] == "RuntimeError: shapes do not match"
    client.close()


# fuzzing ------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
keys = st.sampled_from(
    [
        "id",
        "scene",
        "prompt",
        "level",
        "options",
        "checkpoint",
        "need",
        "job",
        "bin",
        "model",
        "bounds",
    ]
)
near_misses = st.builds(
    lambda op, more: json.dumps({"op": op, **more}).encode() + b"\n",
    st.sampled_from([op for op in OPS if op != "shutdown"]),
    st.dictionaries(keys, json_values, max_size=5),
)
good = st.sampled_from(
    [
        protocol.encode({"op": "hello", "id": 1}),
        protocol.encode({"op": "open", "id": 2, "scene": SCENE}),
        protocol.encode({"op": "preview", "id": 3, "prompt": PROMPT, "level": 2}),
        protocol.encode({"op": "pixels", "need": 1}, bytes(4 * FRAME * FRAME)),
        protocol.encode({"op": "pause"}),
        protocol.encode({"op": "resume"}),
        protocol.encode({"op": "cancel"}),
    ]
)
streams = st.lists(st.binary(max_size=60) | near_misses | good, max_size=12).map(b"".join)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(streams, st.integers(0, 2**31))
def test_no_input_breaks_the_worker(data: bytes, cut: int) -> None:
    """Random, hostile and truncated input: the worker answers in valid messages and ends."""
    data = data[: cut % (len(data) + 1)] if cut % 3 == 0 else data
    out = io.BytesIO()
    assert Worker(io.BytesIO(data), out, FakeBackend()).run() == 0
    answers = list(protocol.MessageParser().feed(out.getvalue()))
    assert answers
    assert not any(isinstance(a, protocol.Malformed) for a in answers)
    assert answers[0][0]["op"] == "ready"


@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.text(max_size=5), json_values, max_size=3), st.binary(max_size=50)
        )
    ),
    st.integers(1, 40),
)
def test_messages_survive_any_splitting(
    messages: list[tuple[dict[str, object], bytes]], step: int
) -> None:
    for header, _ in messages:
        header.pop("bin", None)
    stream = b"".join(protocol.encode(h, p) for h, p in messages)
    parser = protocol.MessageParser()
    pieces = [stream[i : i + step] for i in range(0, len(stream), step)]
    parsed = [m for piece in pieces for m in parser.feed(piece)]
    assert [m[1] for m in parsed] == [p for _, p in messages]
    assert [{k: v for k, v in m[0].items() if k != "bin"} for m in parsed] == [
        h for h, _ in messages
    ]


def test_an_endless_line_costs_no_memory_and_the_next_message_is_read() -> None:
    parser = protocol.MessageParser()
    for _ in range(20):
        assert list(parser.feed(b"x" * (1 << 20))) == []
    assert len(parser._buffer) <= protocol.MAX_HEADER
    first, second = parser.feed(b"\n" + protocol.encode({"op": "ping"}))
    assert "longer than" in first.reason
    assert second[0] == {"op": "ping"}


# the program --------------------------------------------------------------------------------------


def start(*more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-u", "-m", "geosam2.worker", "--backend", "fake", *more],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_the_program_keeps_stdout_for_messages_and_ends_with_its_client() -> None:
    process = start()
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert ready["op"] == "ready"
    process.stdin.close()  # type: ignore[union-attr]
    assert process.wait(timeout=60) == 0
    process.stdout.close()
    process.stderr.close()  # type: ignore[union-attr]


def imported_with(modules: str) -> set[str]:
    """Names of all modules that importing some of them brings in."""
    code = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_fake_backend_imports_nothing_heavy() -> None:
    found = imported_with("geosam2.worker.loop, geosam2.worker.fake, geosam2.commands.worker")
    assert "geosam2.worker.fake" in found
    assert {"torch", "rasterio", "shapely", "scipy", "pyproj"} & found == set()


def test_the_engine_starts_without_packages_that_it_needs_for_tables_alone() -> None:
    found = imported_with("geosam2.segmenter, geosam2.vectorize, geosam2.worker.real")
    assert "geosam2.worker.real" in found
    assert {"geopandas", "pandas", "matplotlib"} & found == set()


# the fake's geometry -------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.floats(0.2, 0.9))
def test_outlines_are_valid_and_hold_the_pixels(
    seed: int, height: int, width: int, share: float
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    wkb = polygons_wkb(trace(mask), (0.0, 0.0), 1.0)
    if not mask.any():
        assert wkb == b""
        return
    shape = shapely.from_wkb(wkb)
    assert shape.is_valid
    assert shape.area == pytest.approx(wkb_area(wkb))
    rows, cols = np.nonzero(mask)
    assert shapely.contains_xy(shape, cols + 0.5, -rows - 0.5).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 0.8))
def test_growing_agrees_with_scipys_labels(seed: int, share: float) -> None:
    from scipy import ndimage

    allowed = np.random.default_rng(seed).random((17, 23)) < share
    labels, _ = ndimage.label(allowed)
    seeds = np.zeros_like(allowed)
    seeds[8, 11] = True
    expected = (labels == labels[8, 11]) & allowed if allowed[8, 11] else np.zeros_like(allowed)
    assert np.array_equal(grow(seeds, allowed), expected)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.sampled_from([0.15, 10.0, 156543.03 / 2**13]))
def test_the_lattice_does_not_depend_on_the_corner_that_named_it(
    x: float, y: float, cell: float
) -> None:
    one = SceneInfo("EPSG:3857", (0, 0, 1, 1), (cell,), (x, y))
    two = SceneInfo("EPSG:3857", (0, 0, 1, 1), (cell,), (x + 700 * cell, y - 33 * cell))
    for a, b in zip(one.anchor(0), two.anchor(0), strict=True):
        off = abs(a - b) % cell
        assert min(off, cell - off) < 1e-5 * cell
