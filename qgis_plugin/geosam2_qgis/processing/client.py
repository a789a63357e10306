"""The engine for a background thread: the same process and messages, read in a loop.

Processing runs algorithms outside the GUI thread, so waiting is allowed here; every wait is short and
looks at the cancel button. Pixels are drawn in this thread from a clone of the layer.
"""

import time

from qgis.core import QgsMapRendererCustomPainterJob, QgsProcessingException
from qgis.PyQt.QtCore import QProcess
from qgis.PyQt.QtGui import QColor, QImage, QPainter

from ..core import pixels, protocol, settings
from ..core.engine import START_TIMEOUT, engine_environment, version_trouble
from ..core.i18n import tr
from ..core.trouble import Trouble

CANCEL_GRACE = 1.0  # seconds that the engine has to answer a cancel


class Stopped(Exception):  # noqa: N818 - the user wanted it
    """The user pressed Cancel."""


def fail(trouble):
    """Raise a Trouble as Processing wants it."""
    raise QgsProcessingException("\n".join(filter(None, (trouble.sentence(), trouble.detail))))


class Client:
    """A context manager around one engine process.

    Args:
        feedback: Of the algorithm.
        layers: (layer, description) of what the engine may ask pixels of, by its number.
    """

    def __init__(self, feedback, *layers):
        self._feedback, self._layers = feedback, layers
        self._parser, self._waiting = protocol.MessageParser(), []
        self._number, self._log = 0, ""
        self._process = QProcess()

    def __enter__(self):
        command = settings.find_engine()
        if isinstance(command, Trouble):
            fail(command)
        self._process.setProcessEnvironment(engine_environment())
        self._process.start(command.program, list(command.arguments))
        if not self._process.waitForStarted(10_000):
            text = tr("The engine's Python cannot be started: {program}", program=command.program)
            fail(
                Trouble(
                    "engine_start",
                    text,
                    tr("Choose another one in Settings > Options > GeoSAM2, or set up the engine."),
                )
            )
        self.ready, _ = self._next(START_TIMEOUT)
        trouble = version_trouble(self.ready)
        if trouble:
            self.__exit__()
            fail(trouble)
        return self

    def __exit__(self, *_):
        self._process.closeWriteChannel()
        if not self._process.waitForFinished(500):
            self._process.kill()
            self._process.waitForFinished(2000)

    @property
    def alive(self):
        """Does the process still run?"""
        return self._process.state() != QProcess.ProcessState.NotRunning

    def call(self, op, progress=None, **fields):
        """Send a request and wait for its reply; returns (header, payload).

        Raises:
            QgsProcessingException: With the engine's sentence.
            Stopped: If the user cancelled.
        """
        self._number += 1
        self._send(op, id=self._number, **fields)
        while True:
            header, payload = self._next()
            if header.get("op") == "need":
                self._draw(header)
            elif header.get("id") != self._number:
                continue
            elif header["op"] == "progress":
                if progress:
                    progress(header, payload)
            elif header["op"] == "cancelled":
                raise Stopped
            elif header["op"] == "error":
                fail(Trouble.from_message(header))
            else:
                return header, payload

    def _send(self, op, payload=b"", **fields):
        self._process.write(protocol.encode({"op": op, **fields}, payload))
        while self._process.bytesToWrite() and self._process.waitForBytesWritten(1000):
            continue

    def _next(self, timeout=None):
        """The next message; watches the cancel button and the process meanwhile."""
        end = time.monotonic() + timeout if timeout else None
        while not self._waiting:
            if self._feedback.isCanceled():
                self._cancel()
            self._process.waitForReadyRead(100)
            self._log = (
                self._log + bytes(self._process.readAllStandardError()).decode("utf-8", "replace")
            )[-8192:]
            data = bytes(self._process.readAllStandardOutput())
            self._waiting += [
                m
                for m in self._parser.feed(data)
                if isinstance(m, tuple) and not isinstance(m, protocol.Malformed)
            ]
            ended = self._process.state() == QProcess.ProcessState.NotRunning
            if not self._waiting and (ended or (end and time.monotonic() > end)):
                self._explain_end()
        return self._waiting.pop(0)

    def _explain_end(self):
        if "No module named geosam2" in self._log or "No module named 'geosam2'" in self._log:
            message = tr("The chosen Python has no geosam2.")
            hint = tr("Install it there (pip install geosam2), or set up the engine.")
            fail(Trouble("engine_start", message, hint, self._log.strip()))
        code = self._process.exitCode()
        message = tr("The engine has ended unexpectedly (exit code {code}).", code=code)
        fail(Trouble("engine_died", message, "", self._log.strip()))

    def _cancel(self):
        """Ask nicely, wait a moment, then end the process."""
        self._process.write(protocol.encode({"op": "cancel", "job": self._number}))
        self._process.waitForReadyRead(int(CANCEL_GRACE * 1000))
        self._process.kill()
        self._process.waitForFinished(1000)
        raise Stopped

    def _draw(self, header):
        bounds, size = tuple(header["bounds"]), (header["width"], header["height"])
        layer, description = self._layers[header.get("scene", 0)]
        data = draw(layer, bounds, *size)
        share = 0.0
        if description.remote:
            share = pixels.missing_share(data, bounds, description.bounds)
        if share > pixels.MISSING_SHARE:
            self._feedback.pushWarning(
                tr(
                    "{percent} % of a window has no imagery; it is left out.",
                    percent=round(100 * share),
                )
            )
        self._send("pixels", data, need=header["need"])


def draw(layer, bounds, width, height):
    """RGBA bytes of a window, drawn in the calling thread."""
    image = QImage(width, height, QImage.Format.Format_ARGB32_Premultiplied)
    image.fill(QColor(0, 0, 0, 0))
    painter = QPainter(image)
    try:
        job = QgsMapRendererCustomPainterJob(
            pixels.map_settings(layer, bounds, width, height), painter
        )
        job.renderSynchronously()
    finally:
        painter.end()
    return pixels.image_bytes(image)
