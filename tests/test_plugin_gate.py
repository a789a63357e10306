"""What plugins.qgis.org checks before it takes a version, and what we promise beyond it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent
PLUGIN = ROOT / "qgis_plugin" / "geosam2_qgis"
BANDIT = (  # the site's list: mandatory rules first
    "B102,B105,B106,B107,B202,B301,B302,B304,B305,B306,B307,B324,B501,B502,B602,B604,B605,B609,B613,B615,"
    "B101,B103,B108,B110,B112,B113,B310,B311,B314,B323,B506,B507,B603,B606,B607,B608,B614"
)  # fmt: skip


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT)


def test_the_plugins_protocol_is_the_workers_byte_for_byte() -> None:
    ours = (ROOT / "geosam2" / "worker" / "protocol.py").read_bytes()
    assert (PLUGIN / "core" / "protocol.py").read_bytes() == ours


def test_the_zip_is_accepted_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        done = run("qgis_plugin/build.py", "--output", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
    one, two = ((tmp_path / name / "geosam2_qgis.zip").read_bytes() for name in ("a", "b"))
    assert one == two


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.pop("geosam2_qgis/LICENSE"), "LICENSE is missing"),
        (lambda f: f.update({"geosam2_qgis/x.pyc": b""}), "forbidden: geosam2_qgis/x.pyc"),
        (lambda f: f.update({"geosam2_qgis/run.sh": b""}), "forbidden: geosam2_qgis/run.sh"),
        (lambda f: f.update({"other/x.py": b""}), "one top folder"),
        (
            lambda f: f.update({"geosam2_qgis/metadata.txt": b"[general]\nname=A plugin\n"}),
            "`plugin` in the name",
        ),
    ],
)
def test_the_validator_finds_what_the_site_would_refuse(
    tmp_path: Path, change: object, words: str
) -> None:
    import importlib.util
    import zipfile

    spec = importlib.util.spec_from_file_location("build_plugin", ROOT / "qgis_plugin" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    path = build.build(tmp_path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)  # type: ignore[operator]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    assert any(words in sentence for sentence in build.problems(path))


def test_bandit_with_the_sites_rules_finds_nothing() -> None:
    done = run("-m", "bandit", "-q", "-r", str(PLUGIN), "-t", BANDIT, "-f", "json")
    found = [
        f"{r['filename']}:{r['line_number']} {r['test_id']}"
        for r in json.loads(done.stdout)["results"]
    ]
    assert found == []


def test_detect_secrets_finds_nothing() -> None:
    done = run("-m", "detect_secrets", "scan", "--all-files", str(PLUGIN))
    assert json.loads(done.stdout)["results"] == {}


def test_flake8_qgis_finds_nothing() -> None:
    done = run(
        "-m", "flake8", "--select", "QGS1,QGS4,E9,F82", "--extend-ignore", "QGS105", str(PLUGIN)
    )
    assert done.stdout == ""


def test_every_text_is_translated() -> None:
    done = run("qgis_plugin/translate.py", "--check")
    assert done.returncode == 0, done.stderr
    assert (PLUGIN / "i18n" / "geosam2_de.qm").stat().st_size > 1000


def test_the_icon_is_a_vector_of_our_own_without_links() -> None:
    root = ElementTree.parse(PLUGIN / "icons" / "geosam2.svg").getroot()
    assert root.tag.endswith("svg")
    assert b"href" not in (PLUGIN / "icons" / "geosam2.svg").read_bytes()


def test_nothing_but_qgis_and_the_standard_library_is_imported() -> None:
    import ast

    allowed = {"qgis", "processing", *sys.stdlib_module_names}
    for path in PLUGIN.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            assert {name.partition(".")[0] for name in names} <= allowed, path
