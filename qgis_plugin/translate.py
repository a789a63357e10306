"""Keep the plugin's translations in step with its texts.

    python qgis_plugin/translate.py            # update the .ts files, compile the .qm files
    python qgis_plugin/translate.py --check    # fail if something is missing or out of date

Texts are the first arguments of `tr("...")`. Compiling needs Qt's `lrelease`.
"""

from __future__ import annotations

import argparse
import ast
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

PLUGIN = Path(__file__).parent / "geosam2_qgis"
FOLDER = PLUGIN / "i18n"
CONTEXT = "GeoSAM2"
LANGUAGES = ("de",)


def texts() -> list[str]:
    """All texts of the plugin, sorted."""
    found = set()
    for path in sorted(PLUGIN.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "tr":
                found.add(ast.literal_eval(node.args[0]))
    return sorted(found)


def read(path: Path) -> dict[str, str]:
    """text -> translation of a .ts file."""
    if not path.exists():
        return {}
    root = ElementTree.parse(path).getroot()
    return {
        message.findtext("source", ""): message.findtext("translation", "")
        for message in root.iter("message")
    }


def write(path: Path, language: str, translations: dict[str, str]) -> None:
    """Write a .ts file; untranslated texts are marked so."""
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<!DOCTYPE TS>"]
    lines += [f'<TS version="2.1" language="{language}">', "<context>", f"<name>{CONTEXT}</name>"]
    for source, translation in translations.items():
        mark = "" if translation else ' type="unfinished"'
        lines.append(f"<message><source>{escape(source)}</source>")
        lines.append(f"<translation{mark}>{escape(translation)}</translation></message>")
    lines += ["</context>", "</TS>", ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def compile_ts(ts: Path, qm: Path) -> None:
    """Make the .qm that Qt reads."""
    tool = shutil.which("lrelease") or shutil.which("lrelease-qt5") or "/usr/lib/qt5/bin/lrelease"
    subprocess.run([tool, "-silent", "-nounfinished", str(ts), "-qm", str(qm)], check=True)  # noqa: S603


def pseudo(folder: Path) -> Path:
    """A .qm in which each text is longer and strange: what stays English was forgotten."""
    strange = {text: f"[Ħ{text}·····]" for text in texts()}
    ts = folder / "geosam2_xx.ts"
    write(ts, "xx", strange)
    qm = folder / "geosam2_xx.qm"
    compile_ts(ts, qm)
    return qm


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Update or check the plugin's translations.")
    parser.add_argument("--check", action="store_true")
    check, current, missing = parser.parse_args().check, texts(), []
    for language in LANGUAGES:
        path = FOLDER / f"geosam2_{language}.ts"
        known = read(path)
        wanted = {text: known.get(text, "") for text in current}
        missing += [f"{language}: {text}" for text, done in wanted.items() if not done]
        if check and wanted != known:
            missing.append(f"{path.name} is out of date: run qgis_plugin/translate.py")
        if not check:
            write(path, language, wanted)
            compile_ts(path, path.with_suffix(".qm"))
    for line in missing:
        print(line, file=sys.stderr)
    print(f"{len(current)} texts, {len(missing)} problems")
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
