"""`geosam2 worker`: serve the QGIS plugin over stdin and stdout."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, BinaryIO

import click

if TYPE_CHECKING:
    from geosam2.worker.backend import Backend

GIVE_WAY = 10  # of the 19 steps that a process can step back


@click.command(name="worker")
@click.option(
    "--backend",
    type=click.Choice(["real", "fake"]),
    default="real",
    show_default=True,
    help="fake grows regions of similar colour without any network: for tests.",
)
@click.option("--delay", default=0.0, help="Fake backend: seconds that each frame takes longer.")
@click.option("--load-delay", default=0.0, help="Fake backend: seconds that loading takes.")
def command(backend: str, delay: float, load_delay: float) -> None:
    """The process that the QGIS plugin talks to.

    One JSON line per message, with raw bytes behind it where the line says `bin`; docs/qgis.md
    lists the messages. It ends when stdin ends.
    """
    output = _own_stdout()
    _give_way()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    from geosam2.worker.loop import Worker

    # the main thread may be deep inside a network call when the client goes away
    worker = Worker(
        sys.stdin.buffer, output, _backend(backend, delay, load_delay), on_close=_leave_soon
    )
    code = worker.run()
    sys.stderr.flush()
    os._exit(code)


def _own_stdout() -> BinaryIO:
    """Keep stdout for messages: whatever prints, in Python or C, goes to stderr from now on."""
    output = os.fdopen(os.dup(1), "wb", 0)
    os.dup2(2, 1)
    if os.name == "nt":
        import msvcrt

        msvcrt.setmode(0, os.O_BINARY)  # type: ignore[attr-defined,unused-ignore]
        msvcrt.setmode(output.fileno(), os.O_BINARY)  # type: ignore[attr-defined,unused-ignore]
    return output


def _give_way() -> None:
    """Let the window of the client be drawn first where both want the same processor."""
    if hasattr(os, "nice"):  # not on Windows
        os.nice(GIVE_WAY)


def _leave_soon() -> None:
    """Exit at the latest in a moment, even when a network call does not return."""

    def leave() -> None:
        time.sleep(0.2)
        os._exit(0)

    threading.Thread(target=leave, daemon=True).start()


def _backend(name: str, delay: float, load_delay: float) -> Backend:
    if name == "fake":
        from geosam2.worker.fake import FakeBackend

        return FakeBackend(delay, load_delay)
    from geosam2.worker.real import RealBackend

    real: Backend = RealBackend()
    return real
