"""Do the steps of a run: here, on a local dask cluster, or on one that is already there.

The order of steps is the ledger's; who does them changes nothing in the result. A bounded number of
steps is under way at any time, so neither the scheduler nor the workers see a queue that grows with
the scene. A step that fails is tried again; a block that keeps failing is left out by name.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from geosam2.blocks import Node
from geosam2.errors import GeoSAM2Error, InterruptedRunError
from geosam2.files import whole
from geosam2.ledger import Ledger, Step, everything_in
from geosam2.part_table import read_metadata, read_pending
from geosam2.steps import Job

if TYPE_CHECKING:
    import distributed

log = logging.getLogger(__name__)

TRIES = 3  # of a step, before a block is left out
PATIENCE = 30.0  # seconds until a worker's file shows here: network file systems take their time


@dataclass(frozen=True)
class Progress:
    """Where a run stands, after a step."""

    step: Step
    """What has just been finished."""
    frames_done: int
    """Frames looked at, those of an earlier, resumed run included."""
    frames_total: int
    """Frames of the scene."""
    objects: int
    """Polygons written so far."""
    coverage: float
    """Share of the valid pixels asked about so far that some frame has a mask for, 0..1.

    Objects that settling or the limits of area drop later count here."""
    failed: tuple[str, ...]
    """Blocks left out: name and reason."""
    resumed: int
    """Steps that an earlier run had done."""


class Work(Protocol):
    """What steps belong to: picklable, and known to every worker."""

    @property
    def folder(self) -> Path:
        """Where steps leave their files; all workers see it."""

    def result(self, step: Any) -> Path:
        """The file that says that a step is done."""

    def do(self, step: Any) -> dict[str, Any]:
        """Do one step, which has a `name`; returns figures."""


class Executor(Protocol):
    """Somewhere to do steps."""

    @property
    def capacity(self) -> int:
        """Steps that may be under way."""

    def submit(self, job: Work, step: Any) -> None:
        """Start a step."""

    def next_done(self) -> tuple[Any, dict[str, Any] | BaseException]:
        """Wait for any step; its figures, or why it failed."""


class InProcess:
    """Steps one after the other in this process."""

    @property
    def capacity(self) -> int:
        """One: the next step starts when this one is done."""
        return 1

    def __init__(self) -> None:
        self._waiting: list[tuple[Work, Any]] = []

    def submit(self, job: Work, step: Any) -> None:
        """Remember a step."""
        self._waiting.append((job, step))

    def next_done(self) -> tuple[Any, dict[str, Any] | BaseException]:
        """Do the step now."""
        job, step = self._waiting.pop(0)
        try:
            return step, job.do(step)
        except Exception as error:
            return step, error


class OnDask:
    """Steps as tasks of a `distributed.Client`."""

    def __init__(self, client: distributed.Client, *, per_worker: int = 2) -> None:
        import distributed

        self._client = client
        self._per_worker = per_worker
        self._done: Any = distributed.as_completed(  # type: ignore[no-untyped-call]
            loop=client.loop, raise_errors=False
        )
        self._steps: dict[str, Any] = {}
        self._sent = 0

    @property
    def capacity(self) -> int:
        """Steps under way at most: enough that no worker waits, not more."""
        return self._per_worker * max(1, len(self._client.scheduler_info(n_workers=-1)["workers"]))

    @property
    def dashboard(self) -> str | None:
        """Address of dask's dashboard, if it has one."""
        return self._client.dashboard_link or None

    def submit(self, job: Work, step: Any) -> None:
        """Send a step."""
        self._sent += 1
        key = f"{step.name}-{job.folder.name}-{self._sent}"
        future = self._client.submit(_do, job, step, key=key, pure=False)
        self._steps[key] = step
        self._done.add(future)

    def close(self) -> None:
        """Take back what was sent; a step that runs already cannot be stopped."""
        waiting = [future for future in self._done.futures if not future.done()]
        with contextlib.suppress(Exception):  # the scheduler may be what was lost
            self._client.cancel(waiting)  # type: ignore[no-untyped-call]

    def next_done(self) -> tuple[Any, dict[str, Any] | BaseException]:
        """Wait for a worker; a lost scheduler ends the run, resumably."""
        import distributed

        try:
            future = self._done.next()
        except (OSError, RuntimeError, StopIteration) as error:
            raise _lost(error) from error
        step = self._steps.pop(future.key)
        if self._client.status != "running" or future.cancelled():
            raise _lost(None)
        try:
            return step, future.result(timeout=60)
        except distributed.CancelledError as error:
            raise _lost(error) from error
        except Exception as error:
            return step, error


def _do(job: Work, step: Any) -> dict[str, Any]:
    if not job.folder.is_dir():
        raise GeoSAM2Error(
            f"a worker does not see the run's folder {job.folder}: give one (--folder, folder=) "
            "that all workers reach under the same path"
        )
    return job.do(step)


def _lost(error: BaseException | None) -> InterruptedRunError:
    return InterruptedRunError(
        "the dask scheduler was lost"
        + (f" ({error})" if error is not None and str(error) else "")
        + "; finished blocks are kept, run again with --resume (resume=True)"
    )


@contextlib.contextmanager
def local_client(workers: int) -> Iterator[distributed.Client]:
    """A dask cluster of `workers` processes with one thread each, for as long as the context."""
    import distributed

    # where a command line shows warnings alone, dask's diary would drown them
    logging.getLogger("distributed").setLevel(logging.WARNING)
    with (
        distributed.LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",  # any free port: runs may be side by side
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,  # type: ignore[no-untyped-call]
    ):
        yield client


def threads_per_worker(workers: int) -> int:
    """Threads of the network in each of `workers` processes so that cores are not shared out twice.

    >>> threads_per_worker(10_000)
    1
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // workers)


# --- a run


def run(job: Job, executor: Executor) -> Iterator[Progress]:
    """Do all steps that are not done yet; yields after each.

    Closing the generator between two steps leaves a run that can be resumed.

    Raises:
        InterruptedRunError: If the executor is lost.
        GeoSAM2Error: If a step other than looking at a block or drawing it keeps failing, if all
            blocks fail, or if workers do not see the run's folder.
    """
    ledger = Ledger(job.blocks)
    state = _State(job)
    done_before = state.adopt(ledger)

    def take() -> Step | None:
        while (step := ledger.take()) in done_before:
            pass
        return step

    for step, outcome in outcomes(job, executor, take):
        if isinstance(outcome, BaseException):
            outcome = state.leave_out(step, outcome)
        ledger.done(step, outcome.get("pending"))
        yield state.note(step, outcome)
    state.save(finished=True)
    state.check()


def outcomes(
    job: Work, executor: Executor, take: Callable[[], Any]
) -> Iterator[tuple[Any, dict[str, Any] | BaseException]]:
    """Steps as they are finished, or have failed for good.

    Args:
        job: What the steps belong to.
        executor: Does them; no more than its capacity are under way.
        take: Gives the next step, or None if none can be started now; asked again whenever a step
            is finished.

    Yields:
        The step, and its figures or why it failed the last time.
    """
    tries: dict[Any, int] = {}
    again: list[Any] = []
    under_way = 0
    while True:
        while under_way < executor.capacity:
            step = again.pop() if again else take()
            if step is None:
                break
            executor.submit(job, step)
            under_way += 1
        if under_way == 0:
            return
        step, outcome = executor.next_done()
        under_way -= 1
        if isinstance(outcome, BaseException):
            tries[step] = tries.get(step, 0) + 1
            log.warning("%s failed (%d of %d): %s", step.name, tries[step], TRIES, outcome)
            if tries[step] < TRIES:
                again.append(step)
                continue
        else:
            _check_shows(job, step)
        yield step, outcome


def _check_shows(job: Work, step: Any) -> None:
    """A step's file must be here: a worker may have written it to a folder of its own."""
    path, end = job.result(step), time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            raise GeoSAM2Error(
                f"step {step.name} was done, but its file {path} is not here: give a folder "
                "(--folder, folder=) that this process and all workers reach under the same path"
            )
        time.sleep(0.2)


class _State:
    """Counts for the progress line, and the manifest on disk."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._frames = 0
        self._objects = 0
        self._covered = self._valid = 0.0
        self._failed: dict[str, str] = {}
        self._resumed = 0
        self._saved = 0.0

    def adopt(self, ledger: Ledger) -> set[Step]:
        """Take over what an earlier run left whole; returns its steps.

        What was made without something that is missing now (a block that was left out gets another
        chance, a file was lost) is made again.
        """
        job: Job = self._job
        self._failed = read_manifest(job.folder)["failed"]
        before: set[Step] = set()
        made_anew: set[Node] = set()
        for step in everything_in(job.blocks):
            path = job.result(step)
            if not path.exists():
                continue
            told = _told(step, path) if _rests_on(step, before, made_anew, job) else None
            if told is None:
                path.unlink()
                made_anew |= {step.node} if step.kind == "settle" else set()
                continue
            before.add(step)
            ledger.done(step, told.get("pending"))
            self._count(step, told)
        self._resumed = len(before)
        return before

    def check(self) -> None:
        """Raises GeoSAM2Error if there is no block that was not left out."""
        if len(self._failed) >= len(self._job.blocks):
            name, why = min(self._failed.items())
            raise GeoSAM2Error(
                f"all blocks failed ({len(self._failed)}), so nothing was found; block {name} "
                f"({why}). Mend that and run again with --resume (resume=True)"
            )

    def leave_out(self, step: Step, error: BaseException) -> dict[str, Any]:
        """A block that cannot be looked at or drawn is left out by name; else the run ends."""
        if step.kind in ("settle", "join"):
            raise GeoSAM2Error(
                f"step {step.name} failed {TRIES} times: {error}. Finished blocks are kept in "
                f"{self._job.folder}; run again with --resume (resume=True)"
            ) from error
        self._failed[step.node.name] = f"{step.kind}: {error}"
        self.save(finished=False)  # before anything is made without it
        return {}

    def note(self, step: Step, outcome: dict[str, Any]) -> Progress:
        """Count a finished step."""
        self._count(step, outcome)
        if outcome and self._failed.get(step.node.name, "").startswith(f"{step.kind}:"):
            del self._failed[step.node.name]  # of an earlier run
        if time.monotonic() - self._saved > 5:
            self.save(finished=False)
        rows, cols = self._job.grid.shape
        return Progress(
            step,
            self._frames,
            rows * cols,
            self._objects,
            self._covered / self._valid if self._valid else 0.0,
            tuple(named(self._failed)),
            self._resumed,
        )

    def _count(self, step: Step, outcome: dict[str, Any]) -> None:
        if step.kind in ("draw", "join"):
            self._objects += int(outcome.get("objects", 0))
        if step.kind == "find" and outcome:
            self._frames += len(self._job.blocks.frames_of(step.node))
            self._covered += outcome["coverage"] * outcome["valid"]
            self._valid += outcome["valid"]

    def save(self, *, finished: bool) -> None:
        """The manifest: for people, and for who collects the result or resumes the run."""
        self._saved = time.monotonic()
        write_json(
            self._job.folder / "manifest.json",
            {
                "finished": finished,
                "frames": self._frames,
                "objects": self._objects,
                "coverage": self._covered / self._valid if self._valid else 0.0,
                "failed": self._failed,
            },
        )


def _told(step: Step, path: Path) -> dict[str, Any] | None:
    """What a step returned, as its file says; None of a file that a crash left torn."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if step.kind == "find":
            figures: dict[str, Any] = read_metadata(path, "figures")
            return figures
        if step.kind == "settle":
            return {"pending": read_pending(path)}
        return {"objects": pq.read_metadata(path).num_rows}
    except (OSError, pa.ArrowInvalid):
        return None


def _rests_on(step: Step, before: set[Step], made_anew: set[Node], job: Job) -> bool:
    """True if all that a step's result was made from is taken over, too.

    `made_anew`: nodes whose results were not; a block that they held must be drawn again.
    """
    blocks, node = job.blocks, step.node
    if step.kind == "find":
        return True
    if step.kind == "settle" and node.level > 0:
        return before.issuperset(Step("settle", child) for child in blocks.children(node))
    if step.kind == "join":
        drawn = before.issuperset(Step("draw", block) for block in blocks.in_order(node))
        return drawn and Step("settle", node) in before
    near = [node, *blocks.neighbours(node)]
    if step.kind == "settle":
        return before.issuperset(Step("find", block) for block in near)
    above = {other for block in near for other in blocks.ancestors(block)}
    return made_anew.isdisjoint(above) and before.issuperset(Step("settle", b) for b in near)


def named(failed: dict[str, str]) -> list[str]:
    """Blocks that were left out, and why, for people."""
    return [f"block {name} ({why})" for name, why in sorted(failed.items())]


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write JSON whole or not at all."""
    with whole(path) as partial:
        partial.write_text(json.dumps(values, indent=1))


def read_manifest(folder: Path) -> dict[str, Any]:
    """What was saved of a run: finished, frames, objects, coverage, failed (block -> reason)."""
    path = folder / "manifest.json"
    if not path.exists():
        return {"finished": False, "frames": 0, "objects": 0, "coverage": 0.0, "failed": {}}
    found: dict[str, Any] = json.loads(path.read_text())
    return found


# --- the run's folder

OURS = ("find", "settle", "draw", "join", "pieces", "asked", "answered")


def prepare(job: Work, identity: dict[str, Any], *, resume: bool) -> None:
    """Open the run's folder: a new one, or that of the same run for `resume`.

    Raises:
        GeoSAM2Error: If the folder holds another run, this one and `resume` is not asked for, or
            somebody's own folders with our names.
    """
    record = job.folder / "run.json"
    if not record.exists():
        if taken := [kind for kind in OURS if (job.folder / kind).exists()]:
            raise GeoSAM2Error(
                f"{job.folder} is no run's folder and has {', '.join(taken)} in it, which a run "
                "would write to and delete; give another folder"
            )
        write_json(record, identity)
        return
    before = json.loads(record.read_text())
    now = json.loads(json.dumps(identity))
    if differences := sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k)):
        what = "; ".join(f"{k}: {before.get(k)!r}, now {now.get(k)!r}" for k in differences[:3])
        raise GeoSAM2Error(
            f"{job.folder} holds another run ({what}); give another folder, or delete it"
        )
    if not resume:
        raise GeoSAM2Error(
            f"{job.folder} holds a run of the same job; go on with it by --resume (resume=True), "
            "or delete the folder"
        )


def remove(folder: Path) -> None:
    """Delete what runs leave in a folder, and the folder if nothing else is in it."""
    for kind in OURS:
        shutil.rmtree(folder / kind, ignore_errors=True)
    for path in (*folder.glob("run.json"), *folder.glob("manifest.json"), *folder.glob(".*.part")):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody keeps other things there
        folder.rmdir()
