"""Makes the engine's environment: a virtual Python with geosam2 in it, only when the user asks.

Steps run one after the other in their own process, so QGIS is never blocked; each can be repeated,
so an interrupted set-up goes on where it stopped (pip keeps what it has downloaded). Only Qt is
needed here.
"""

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from qgis.PyQt.QtCore import QObject, QProcess, pyqtSignal

from .engine import engine_environment
from .i18n import tr

MARK = "geosam2-ready"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


class Plan(NamedTuple):
    """What to install, and how."""

    folder: Path
    """The environment."""
    packages: str = "geosam2"
    """What pip is asked for: a name, a version, a wheel, a URL; several with blanks between."""
    wheels: str = ""
    """A folder of wheels; the network is not used then."""
    cpu_only: bool = True
    """Take PyTorch without CUDA (a tenth of the size)."""
    proxy: str = ""
    """Address of the proxy, with a login if it wants one; or empty."""
    base_python: str = ""
    """The Python that makes the environment; empty: look for one."""


class Step(NamedTuple):
    """One process of the set-up."""

    title: str
    program: str
    arguments: list


def base_python(prefix=None, executable=None, windows=None, exists=None):
    """A real Python interpreter: QGIS's own `sys.executable` is QGIS itself on Windows and macOS.

    The arguments replace what the running Python says, for tests. Returns "" if there is none.
    """
    prefix = Path(prefix or sys.exec_prefix)
    executable = Path(executable or sys.executable or "")
    windows = os.name == "nt" if windows is None else windows
    exists = exists or (lambda path: path.is_file())
    candidates = [prefix / n for n in ("python3.exe", "python.exe")] if windows else []
    if not windows:
        candidates += [prefix / "bin" / "python3", executable.parent / "python3"]
        candidates += [executable.parent / "bin" / "python3"]
    if executable.stem.lower().startswith("python"):
        candidates.insert(0, executable)
    found = next((str(path) for path in candidates if exists(path)), "")
    return found or shutil.which("python3") or ""


def expected_size(cpu_only, offline):
    """A sentence about what will be downloaded."""
    if offline:
        return tr(
            "Nothing is downloaded: packages come from the folder of wheels. About 1 GB on disk."
        )
    if platform.system() == "Linux" and not cpu_only:
        return tr("Downloads about 3 GB (PyTorch with CUDA) and needs about 7 GB on disk.")
    return tr("Downloads about 400 MB and needs about 1.5 GB on disk.")


def steps(plan, python):
    """The processes that carry out a plan."""
    env_python = _inside(plan.folder)
    pip = ["-I", "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    if plan.wheels:
        pip += ["--no-index", "--find-links", plan.wheels]
    made = Step(
        tr("Make the environment"), python, ["-I", "-m", "venv", "--upgrade-deps", str(plan.folder)]
    )
    if plan.wheels or plan.proxy:
        made.arguments.remove("--upgrade-deps")
    todo = [made]
    if plan.cpu_only and not plan.wheels and platform.system() == "Linux":
        todo.append(
            Step(tr("Install PyTorch"), env_python, [*pip, "torch", "--index-url", CPU_INDEX])
        )
    todo.append(Step(tr("Install geosam2"), env_python, [*pip, *plan.packages.split()]))
    check = "import geosam2.worker.protocol as p; print('protocol', p.PROTOCOL)"
    todo.append(Step(tr("Check the engine"), env_python, ["-I", "-c", check]))
    return todo


def _inside(folder):
    return str(Path(folder) / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


class Setup(QObject):
    """Runs the steps of a plan."""

    line = pyqtSignal(str)
    """One line of live output."""
    step_started = pyqtSignal(int, int, str)
    """(number from 1, of, title)"""
    done = pyqtSignal(bool, str)
    """(worked, one sentence)"""

    def __init__(self, plan, parent=None):
        super().__init__(parent)
        self.plan = plan
        self.log = []
        self._steps, self._number, self._process = [], 0, None
        self._cancelled = False

    @property
    def running(self):
        """Is a step running?"""
        return self._process is not None

    def start(self):
        """Begin, or go on after an interruption."""
        python = self.plan.base_python or base_python()
        if not python:
            self.done.emit(
                False,
                tr(
                    "No Python was found. Install one from python.org, or choose it in the options."
                ),
            )
            return
        if self.plan.wheels and not Path(self.plan.wheels).is_dir():
            text = tr("The folder of wheels does not exist: {folder}", folder=self.plan.wheels)
            self.done.emit(False, text)
            return
        self._cancelled = False
        Path(self.plan.folder).parent.mkdir(parents=True, exist_ok=True)
        self._steps, self._number = steps(self.plan, python), 0
        self._next()

    def cancel(self):
        """Stop; starting again goes on from here."""
        if self._process is not None:
            self._cancelled = True
            self._process.kill()

    def report(self):
        """Everything that helps to find out what went wrong, without passwords."""
        head = [
            f"system: {platform.platform()}",
            f"QGIS's Python: {sys.version.split()[0]}",
            f"environment: {self.plan.folder}",
            f"packages: {self.plan.packages}",
            f"offline: {bool(self.plan.wheels)}, proxy: {bool(self.plan.proxy)}",
        ]
        text = "\n".join([*head, "", *self.log])
        return text.replace(self.plan.proxy, "(proxy)") if self.plan.proxy else text

    def _next(self):
        if self._number == len(self._steps):
            (Path(self.plan.folder) / MARK).write_text("ready\n", encoding="utf-8")
            self.done.emit(True, tr("The engine is ready."))
            return
        step = self._steps[self._number]
        self._number += 1
        self.step_started.emit(self._number, len(self._steps), step.title)
        self._say(f"> {step.title}")
        process = QProcess(self)
        environment = engine_environment()
        if self.plan.proxy:  # not on the command line: everybody on the computer can read that
            environment.insert("HTTPS_PROXY", self.plan.proxy)
            environment.insert("HTTP_PROXY", self.plan.proxy)
        process.setProcessEnvironment(environment)
        process.setProcessChannelMode(QProcess.ProcessChannelMode.MergedChannels)
        process.readyRead.connect(self._read)
        process.errorOccurred.connect(self._error)
        process.finished.connect(self._finished)
        self._process = process
        process.start(step.program, step.arguments)

    def _read(self):
        if self._process is None:
            return
        text = bytes(self._process.readAll()).decode("utf-8", "replace")
        for line in text.splitlines():
            if line.strip():
                self._say(line.rstrip())

    def _say(self, line):
        self.log.append(line)
        self.line.emit(line)

    def _error(self, error):
        if error == QProcess.ProcessError.FailedToStart:
            process, self._process = self._process, None
            self._say(process.errorString())
            self.done.emit(False, tr("{program} cannot be started.", program=process.program()))
            process.deleteLater()

    def _finished(self, code, _status):
        self._read()
        process, self._process = self._process, None
        if process is None:
            return
        process.deleteLater()
        if self._cancelled:
            self.done.emit(False, tr("Stopped. Press Start to go on from here."))
        elif code != 0:
            self.done.emit(False, explain(self.log, self._steps[self._number - 1].title))
        else:
            self._next()


def explain(log, title):
    """One sentence about why a step failed, from what pip wrote."""
    text = "\n".join(log[-60:]).lower()
    known = (
        ("proxyerror", tr("The proxy refused the connection. Check QGIS's network settings.")),
        ("407 ", tr("The proxy wants a login. Enter it in QGIS's network settings.")),
        ("no space left", tr("The disk is full.")),
        ("permission denied", tr("No right to write there. Choose another folder in the options.")),
        ("access is denied", tr("No right to write there. Choose another folder in the options.")),
        ("certificate", tr("The secure connection was refused; a virus scanner or proxy may be in between.")),
        ("no matching distribution", tr("A package was not found for this Python ({python}).", python=platform.python_version())),
        ("failed to establish a new connection", tr("There is no connection to the package server.")),
        ("no module named venv", tr("This Python cannot make environments. Install python3-venv.")),
        ("ensurepip", tr("This Python cannot make environments. Install python3-venv.")),
    )  # fmt: skip
    for sign, sentence in known:
        if sign in text:
            return sentence
    return tr('The step "{title}" failed; the log says why.', title=title)
