"""What needs Qt and no QGIS: run with QGIS's PyQt5 and, over qt6shim, with PyQt6."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "qgis_plugin"))
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from geosam2_qgis import compat
from geosam2_qgis.core import engine as engines
from geosam2_qgis.core import i18n, setup
from geosam2_qgis.core.trouble import Trouble
from geosam2_qgis.gui.panel import Panel
from geosam2_qgis.gui.setup_dialog import SetupDialog
from qgis.PyQt.QtCore import QCoreApplication, Qt, QTranslator
from qgis.PyQt.QtWidgets import (
    QAbstractButton,
    QApplication,
    QCheckBox,
    QComboBox,
    QLabel,
    QPushButton,
)

pytestmark = pytest.mark.qgis
PYTHON = os.environ.get("GEOSAM2_TEST_PYTHON", str(ROOT / ".venv" / "bin" / "python"))


@pytest.fixture(scope="session")
def app():
    return QApplication.instance() or QApplication([])


@pytest.fixture
def until(app):
    def wait(condition, seconds=90):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"still not so after {seconds} s"
            app.processEvents()
            time.sleep(0.005)

    return wait


@pytest.fixture
def engine(app):
    it = engines.Engine(lambda: engines.worker_command(PYTHON, ("--backend", "fake")))
    yield it
    it.stop()


def test_compat_has_what_moved_between_qt_5_and_6(app):
    action = compat.QAction("text", None)
    assert action.text() == "text"
    assert compat.QShortcut is not None


def test_the_engine_client_talks_and_recovers(engine, until):
    answers, troubles = [], []
    engine.failed.connect(troubles.append)
    engine.request("load_model", lambda header, _: answers.append(header), model=None)
    until(lambda: answers)
    assert answers[0]["op"] == "loaded"
    assert engine.info["protocol"] == 1
    os.kill(engine.pid, signal.SIGKILL)
    until(lambda: troubles)
    assert troubles[0].kind == "engine_died"
    engine.request("nonsense", lambda header, _: answers.append(header))
    until(lambda: len(answers) == 2)
    assert answers[1]["kind"] == "unknown_op"
    assert engine.generation == 2


def test_what_waits_is_answered_when_the_engine_dies(engine, until):
    answers = []
    engine.start()
    until(lambda: engine.info)
    os.kill(engine.pid, signal.SIGSTOP)
    engine.request("load_model", lambda header, _: answers.append(header))
    os.kill(engine.pid, signal.SIGKILL)
    until(lambda: answers)
    assert answers[0]["op"] == "error"
    assert answers[0]["reported"]


def test_stopping_ends_the_process(engine, until):
    engine.start()
    until(lambda: engine.info)
    pid = engine.pid
    engine.stop()
    assert not engine.running
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_missing_engine_is_a_trouble(app):
    troubles = []
    it = engines.Engine(lambda: Trouble("engine_missing", "none"))
    it.failed.connect(troubles.append)
    assert it.start() is False
    assert troubles[0].kind == "engine_missing"


# panel --------------------------------------------------------------------------------------------


@pytest.fixture
def panel(app):
    it = Panel(QComboBox())
    it.resize(300, 700)
    it.show()
    yield it
    it.close()


def test_the_panel_enables_what_makes_sense(panel):
    for state, accept, pause in (
        ("empty", False, False),
        ("preview", True, False),
        ("following", True, True),
    ):
        panel.set_state(state)
        assert panel.accept.isEnabled() is accept
        assert panel.pause.isEnabled() is pause
    panel.set_state("paused")
    assert "Resume" in panel.pause.text().replace("&", "")
    for on in (False, True):
        panel.follow.setChecked(on)
        assert panel.frames.isEnabled() is on


def test_the_proxys_password_is_on_no_command_line(tmp_path):
    plan = setup.Plan(tmp_path / "engine", proxy="http://me:pw@proxy:3128")
    for step in setup.steps(plan, "/usr/bin/python3"):
        assert "pw" not in " ".join(step.arguments)


def test_every_control_is_reached_with_the_keyboard(panel, app):
    panel.set_state("paused")
    buttons = panel.findChildren(QPushButton)
    assert all("&" in button.text() for button in buttons)
    letters = [b.text()[b.text().index("&") + 1].lower() for b in buttons]
    letters += [
        lab.text()[lab.text().index("&") + 1].lower()
        for lab in panel.findChildren(QLabel)
        if lab.buddy()
    ]
    assert len(set(letters)) == len(letters), sorted(letters)
    assert all(b.focusPolicy() & Qt.FocusPolicy.TabFocus for b in buttons)


def test_quality_is_shown_by_sign_and_not_by_colour_alone(panel):
    panel.set_quality({"score": 0.4, "stability": 0.9, "open_edges": 2}, 0.7, 0.85)
    assert panel.quality.text().count("⚠") == 2
    assert panel.quality.text().count("✓") == 1
    panel.set_quality(None)
    assert panel.quality.text() == ""


def texts(widget):
    """Everything that a person reads in a widget."""
    found = []
    for kind in (QLabel, QAbstractButton):
        found += [child.text() for child in widget.findChildren(kind)]
    for box in widget.findChildren(QComboBox):
        found += [box.itemText(n) for n in range(box.count())]
    found += [child.toolTip() for child in widget.findChildren(QAbstractButton)]
    found += [box.text() for box in widget.findChildren(QCheckBox)]
    return [text for text in found if text.strip()]


def test_no_text_is_left_untranslated_and_the_layout_holds(app, tmp_path):
    """A language in which each text is marked and half as long again."""
    sys.path.insert(0, str(ROOT / "qgis_plugin"))
    import translate

    translator = QTranslator()
    assert translator.load(str(translate.pseudo(tmp_path)))
    QCoreApplication.installTranslator(translator)
    try:
        panel = Panel(QComboBox())
        dialog = SetupDialog(lambda *_: None, lambda _: None)
        for state in ("empty", "paused"):
            panel.set_state(state)
            panel.set_quality({"score": 0.4, "stability": 0.9, "open_edges": 2}, 0.7, 0.85)
            forgotten = [
                t for t in [*texts(panel), *texts(dialog), dialog.windowTitle()] if "Ħ" not in t
            ]
            assert forgotten == []
        panel.resize(340, 700)
        panel.show()
        app.processEvents()
        cut = [
            b.text()
            for b in panel.findChildren(QPushButton)
            if b.width() < b.sizeHint().width() - 1 and b.isVisible()
        ]
        assert len(cut) <= 8  # the panel scrolls sideways then; nothing may vanish
        assert all(b.height() > 10 for b in panel.findChildren(QPushButton) if b.isVisible())
        panel.close()
    finally:
        QCoreApplication.removeTranslator(translator)


def test_german_is_loaded_from_the_plugin_folder(app):
    translator = i18n.install_translator("de_AT")
    try:
        assert i18n.tr("Help") == "Hilfe"
        assert i18n.tr("{count} objects to look at are selected.", count=3).startswith("3 Objekte")
    finally:
        QCoreApplication.removeTranslator(translator)
    assert i18n.install_translator("xx") is None


# set-up -------------------------------------------------------------------------------------------


def test_a_python_is_found_on_every_system(tmp_path):
    def only(*paths):
        return lambda path: path in [Path(p) for p in paths]

    windows = setup.base_python(
        "C:/OSGeo4W/apps/Python312",
        "C:/OSGeo4W/bin/qgis-ltr-bin.exe",
        True,
        only("C:/OSGeo4W/apps/Python312/python.exe"),
    )
    assert windows.endswith("python.exe")
    mac = setup.base_python(
        "/Applications/QGIS.app/Contents/MacOS",
        "/Applications/QGIS.app/Contents/MacOS/QGIS",
        False,
        only("/Applications/QGIS.app/Contents/MacOS/bin/python3"),
    )
    assert mac == "/Applications/QGIS.app/Contents/MacOS/bin/python3"
    assert (
        setup.base_python("/usr", "/usr/bin/python3", False, only("/usr/bin/python3"))
        == "/usr/bin/python3"
    )


def tiny_wheel(folder):
    """A wheel named geosam2 that holds the protocol only: enough for the set-up to be done."""
    folder.mkdir()
    protocol = (ROOT / "geosam2" / "worker" / "protocol.py").read_text()
    files = {
        "geosam2/__init__.py": "", "geosam2/worker/__init__.py": "", "geosam2/worker/protocol.py": protocol,
        "geosam2-0.0.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: geosam2\nVersion: 0.0.1\n",
        "geosam2-0.0.1.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }  # fmt: skip
    record = "".join(f"{name},,\n" for name in files) + "geosam2-0.0.1.dist-info/RECORD,,\n"
    with zipfile.ZipFile(folder / "geosam2-0.0.1-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr("geosam2-0.0.1.dist-info/RECORD", record)
    return folder


def run(plan, until):
    it, done, steps = setup.Setup(plan), [], []
    it.done.connect(lambda worked, sentence: done.append((worked, sentence)))
    it.step_started.connect(lambda *what: steps.append(what))
    it.start()
    until(lambda: done, 200)
    return it, done[0], steps


def test_offline_set_up_from_a_folder_of_wheels(until, tmp_path):
    plan = setup.Plan(
        tmp_path / "engine",
        wheels=str(tiny_wheel(tmp_path / "wheels")),
        base_python="/usr/bin/python3",
    )
    it, (worked, sentence), steps = run(plan, until)
    assert worked, "\n".join(it.log)
    assert [step[2] for step in steps] == [
        "Make the environment",
        "Install geosam2",
        "Check the engine",
    ]
    assert (tmp_path / "engine" / setup.MARK).exists()
    python = tmp_path / "engine" / "bin" / "python"
    said = subprocess.run(
        [python, "-I", "-c", "import geosam2.worker.protocol as p; print(p.PROTOCOL)"],
        capture_output=True,
        text=True,
    )
    assert said.stdout.strip() == "1"


def test_a_failed_set_up_says_why_and_the_report_hides_the_proxy(until, tmp_path):
    (tmp_path / "wheels").mkdir()
    plan = setup.Plan(
        tmp_path / "engine",
        wheels=str(tmp_path / "wheels"),
        base_python="/usr/bin/python3",
        proxy="http://me:pw@proxy:3128",
    )
    it, (worked, sentence), _ = run(plan, until)
    assert not worked
    assert "A package was not found" in sentence
    assert not (tmp_path / "engine" / setup.MARK).exists()
    assert "pw@" not in it.report()
    assert "packages: geosam2" in it.report()


def test_a_stopped_set_up_goes_on(app, until, tmp_path):
    plan = setup.Plan(
        tmp_path / "engine",
        wheels=str(tiny_wheel(tmp_path / "wheels")),
        base_python="/usr/bin/python3",
    )
    it, done = setup.Setup(plan), []
    it.done.connect(lambda *what: done.append(what))
    it.start()
    until(lambda: it.running)
    it.cancel()
    until(lambda: done)
    assert done[0][0] is False
    assert "go on" in done[0][1]
    _, (worked, _), _ = run(plan, until)
    assert worked


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ProxyError('Cannot connect to proxy.')", "proxy refused"),
        ("407 Proxy Authentication Required", "wants a login"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("PermissionError: [WinError 5] Access is denied", "No right to write"),
        ("SSLError(certificate verify failed)", "secure connection"),
        ("something new", "the log says why"),
    ],
)
def test_known_failures_have_a_sentence(line, words):
    assert words in setup.explain(["x", line], "Install geosam2")
