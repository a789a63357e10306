"""The engine: `python -I -m geosam2.worker` in its own process, spoken to without blocking QGIS.

Only Qt is needed here. Requests that are made before the engine is ready wait; when it dies every
waiting request gets an `error`, and the next request starts it anew.
"""

import itertools
import os
import time
from typing import NamedTuple

from qgis.PyQt.QtCore import QObject, QProcess, QProcessEnvironment, QTimer, pyqtSignal

from . import protocol
from .i18n import tr
from .trouble import Trouble

START_TIMEOUT = 120  # seconds; a cold disk and a virus scanner can make Python slow
KEPT_LOG = 8192  # characters of the engine's stderr that go into a report
# variables of QGIS's own Python and libraries that would break another Python
FOREIGN = (
    "PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONEXECUTABLE", "PYTHONNOUSERSITE",
    "GDAL_DATA", "GDAL_DRIVER_PATH", "PROJ_LIB", "PROJ_DATA", "QT_PLUGIN_PATH",
)  # fmt: skip


class Command(NamedTuple):
    """How to start the engine."""

    program: str
    arguments: tuple = ()


def engine_environment():
    """QGIS's environment without what belongs to its own Python."""
    environment = QProcessEnvironment.systemEnvironment()
    for name in FOREIGN:
        environment.remove(name)
    environment.insert("PYTHONUNBUFFERED", "1")
    environment.insert("PYTHONUTF8", "1")
    return environment


def version_trouble(header):
    """A Trouble if the engine of this `ready` message does not fit the plugin, else None."""
    theirs = header.get("protocol")
    if theirs == protocol.PROTOCOL:
        return None
    return Trouble(
        "engine_version",
        tr(
            "The engine speaks protocol {theirs}, this plugin {ours}.",
            theirs=theirs,
            ours=protocol.PROTOCOL,
        ),
        tr(
            "Update whichever is older: geosam2 {version} is installed.",
            version=header.get("version", "?"),
        ),
        str(header),
    )


class Engine(QObject):
    """A client of the worker process.

    Args:
        find: Called before each start; returns a Command, or a Trouble if there is none.
    """

    starting = pyqtSignal()
    """The process was started; Python needs a while."""
    ready = pyqtSignal(dict)
    """The engine answered and fits; carries its `ready` message."""
    arrived = pyqtSignal(dict, bytes)
    """A message that is no final reply: need, progress, paused, resumed."""
    failed = pyqtSignal(object)
    """A Trouble: could not start, does not fit, or died."""
    stopped = pyqtSignal()
    """The process has ended, for whatever reason."""

    def __init__(self, find, parent=None):
        super().__init__(parent)
        self._find = find
        self._process: QProcess | None = None
        self._parser = protocol.MessageParser()
        self._ids = itertools.count(1)
        self._pending = {}  # id -> callback(header, payload)
        self._outbox = []  # encoded messages that wait for `ready`
        self._log = ""
        self._greeted = False
        self.info = {}
        self.generation = 0
        self._started = 0.0
        self._watchdog = QTimer(self)
        self._watchdog.setSingleShot(True)
        self._watchdog.timeout.connect(self._too_slow)

    @property
    def running(self):
        """Is the process there (perhaps not ready yet)?"""
        return self._process is not None

    @property
    def pid(self):
        """Process id, or 0."""
        return int(self._process.processId()) if self._process else 0

    @property
    def log(self):
        """The end of what the engine wrote to stderr."""
        return self._log

    def start(self):
        """Start the process if it does not run; False if that is impossible (see `failed`)."""
        if self._process is not None:
            return True
        command = self._find()
        if isinstance(command, Trouble):
            self._fail(command)
            return False
        self._parser, self._log, self._greeted = protocol.MessageParser(), "", False
        self.generation += 1
        self._started = time.monotonic()
        process = QProcess(self)
        process.setProcessEnvironment(engine_environment())
        process.readyReadStandardOutput.connect(self._read)
        process.readyReadStandardError.connect(self._read_log)
        process.errorOccurred.connect(self._error)
        process.finished.connect(self._finished)
        self._process = process
        self._watchdog.start(START_TIMEOUT * 1000)
        self.starting.emit()
        process.start(command.program, list(command.arguments))
        return self._process is not None

    def request(self, op, reply, **fields):
        """Send a request; `reply(header, payload)` gets its final answer, or an error. Returns the id."""
        number = next(self._ids)
        self._pending[number] = reply
        if self.start():
            self.send(op, id=number, **fields)
        return number

    def send(self, op, payload=b"", **fields):
        """Send a message that needs no callback; dropped when no engine runs."""
        if self._process is None:
            return
        data = protocol.encode({"op": op, **fields}, payload)
        if self._greeted:
            self._process.write(data)
        else:
            self._outbox.append(data)

    def stop(self):
        """End the process; pending requests are forgotten."""
        self._pending.clear()
        self._outbox.clear()
        self._end()

    def _end(self):
        process, self._process = self._process, None
        self._watchdog.stop()
        if process is None:
            return
        process.blockSignals(True)
        process.closeWriteChannel()  # the worker leaves when its input ends
        if not process.waitForFinished(400):
            process.kill()
            process.waitForFinished(1000)
        process.deleteLater()
        self.stopped.emit()

    def _read(self):
        if self._process is None:
            return
        data = bytes(self._process.readAllStandardOutput())
        for message in self._parser.feed(data):
            if isinstance(message, protocol.Malformed):
                self._log = (self._log + f"\n{message.reason}: {message.text}")[-KEPT_LOG:]
            else:
                self._take(*message)
            if self._process is None:
                return

    def _take(self, header, payload):
        op, number = header.get("op"), header.get("id")
        if op == "ready" and not self._greeted:
            self._greet(header)
        elif op in ("need", "progress", "paused", "resumed"):
            self.arrived.emit(header, payload)
        elif number in self._pending:
            self._pending.pop(number)(header, payload)
        elif op == "error":
            self._log = (self._log + f"\n{header.get('message')}")[-KEPT_LOG:]

    def _greet(self, header):
        self._watchdog.stop()
        trouble = version_trouble(header)
        if trouble:
            self._end()
            self._fail(trouble)
            return
        self._greeted = True
        self.info = header
        outbox, self._outbox = self._outbox, []
        self.ready.emit(header)
        for data in outbox:
            self._process.write(data)

    def _read_log(self):
        if self._process is not None:
            text = bytes(self._process.readAllStandardError()).decode("utf-8", "replace")
            self._log = (self._log + text)[-KEPT_LOG:]

    def _error(self, error):
        if error == QProcess.ProcessError.FailedToStart:
            process = self._process
            program = process.program() if process else ""
            self._end()
            self._fail(
                Trouble(
                    "engine_start",
                    tr("The engine's Python cannot be started: {program}", program=program),
                    tr("Choose another one in Settings > Options > GeoSAM2, or set up the engine."),
                )
            )

    def _finished(self, code, _status):
        self._read()
        self._read_log()
        process, self._process = self._process, None
        self._watchdog.stop()
        if process is not None:
            process.deleteLater()
        self.stopped.emit()
        self._fail(self._obituary(code))

    def _obituary(self, code):
        """Why the process ended, as far as its last words tell."""
        words = self._log.strip()
        if "No module named geosam2" in words or "No module named 'geosam2'" in words:
            return Trouble(
                "engine_start",
                tr("The chosen Python has no geosam2."),
                tr("Install it there (pip install geosam2), or set up the engine."),
                words,
            )
        if not self._greeted:
            message = tr("The engine did not start (exit code {code}).", code=code)
            return Trouble("engine_start", message, tr("The details say why."), words)
        message = tr("The engine has ended unexpectedly (exit code {code}).", code=code)
        return Trouble("engine_died", message, tr("The next click starts it again."), words)

    def _too_slow(self):
        self._read_log()
        words = self._log
        self._end()
        self._fail(
            Trouble(
                "engine_start",
                tr("The engine did not answer within {seconds} seconds.", seconds=START_TIMEOUT),
                tr("The details say how far it came."),
                words,
            )
        )

    def _fail(self, trouble):
        """Tell everybody who waits, once."""
        pending, self._pending = self._pending, {}
        self._outbox.clear()
        self.failed.emit(trouble)
        answer = {"op": "error", "id": None, "kind": trouble.kind, "message": trouble.message}
        answer.update(hint=trouble.hint, detail=trouble.detail, reported=True)
        for reply in pending.values():
            reply(dict(answer), b"")


def worker_command(python, extra=()):
    """The command line of the engine for a Python interpreter."""
    return Command(os.fspath(python), ("-I", "-u", "-m", "geosam2.worker", *extra))
