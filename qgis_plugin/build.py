"""Build dist/geosam2_qgis.zip: the same bytes from the same sources, checked as the site checks it.

python qgis_plugin/build.py [--output FOLDER]
"""

from __future__ import annotations

import argparse
import configparser
import sys
import zipfile
from pathlib import Path

PLUGIN = Path(__file__).parent / "geosam2_qgis"
SUFFIXES = {".py", ".svg", ".txt", ".html", ".css", ".png", ".qm", ".ts", ""}
REQUIRED = (
    "name", "description", "version", "qgisMinimumVersion", "author", "email", "about", "tracker",
    "repository",
)  # fmt: skip
LIMIT = 25 * 2**20
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip can hold; makes builds repeatable


def files() -> list[Path]:
    """What belongs into the zip, sorted."""
    found = [path for path in PLUGIN.rglob("*") if path.is_file()]
    kept = [p for p in found if "__pycache__" not in p.parts and not p.name.startswith(".")]
    strange = [p for p in kept if p.suffix not in SUFFIXES]
    if strange:
        raise SystemExit(f"unexpected files in the plugin folder: {', '.join(map(str, strange))}")
    return sorted(kept, key=lambda p: p.relative_to(PLUGIN).as_posix())


def build(folder: Path) -> Path:
    """Write the zip and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    target, partial = folder / "geosam2_qgis.zip", folder / "geosam2_qgis.zip.part"
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in files():
            info = zipfile.ZipInfo(f"geosam2_qgis/{path.relative_to(PLUGIN).as_posix()}", EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o100644 << 16
            archive.writestr(info, path.read_bytes())
    partial.replace(target)
    return target


def problems(path: Path) -> list[str]:
    """What plugins.qgis.org would refuse, as sentences; empty if it is fine."""
    found = []
    if path.stat().st_size > LIMIT:
        found.append(f"{path.stat().st_size} bytes are more than {LIMIT}")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        found += [f"damaged: {bad}" for bad in [archive.testzip()] if bad]
        tops = {name.partition("/")[0] for name in names}
        if len(tops) != 1 or not next(iter(tops)).isidentifier():
            return [*found, f"one top folder is wanted, not {sorted(tops)}"]
        top = next(iter(tops))
        for needed in ("metadata.txt", "LICENSE", "__init__.py"):
            if f"{top}/{needed}" not in names:
                found.append(f"{needed} is missing")
        found += [f"forbidden: {name}" for name in names if _forbidden(name)]
        found += _metadata_problems(archive.read(f"{top}/metadata.txt").decode("utf-8"), top, names)
    return found


def _forbidden(name: str) -> bool:
    parts = name.split("/")
    bad_ends = (".pyc", ".sh", ".bat", ".so", ".dll", ".exe", ".pyd", ".zip", ".whl")
    return (
        name.endswith(bad_ends) or name.startswith("/") or ".." in parts
        or any(part in ("__pycache__", ".git", "__MACOSX") for part in parts)
    )  # fmt: skip


def _metadata_problems(text: str, top: str, names: list[str]) -> list[str]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    general = dict(parser["general"])
    found = [f"metadata: {key} is missing" for key in REQUIRED if not general.get(key)]
    for key in ("tracker", "repository", "homepage"):
        if not general.get(key, "").startswith("https://"):
            found.append(f"metadata: {key} is no https address")
    if "plugin" in general.get("name", "").lower():
        found.append("metadata: no `plugin` in the name")
    if general.get("icon") and f"{top}/{general['icon']}" not in names:
        found.append(f"metadata: icon {general['icon']} is not in the zip")
    if "supportsQt6" in general:
        found.append("metadata: supportsQt6 is obsolete")
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Build the QGIS plugin's zip.")
    default = Path(__file__).parent.parent / "dist"
    parser.add_argument("--output", type=Path, default=default, help="folder, default: dist")
    path = build(parser.parse_args().output)
    found = problems(path)
    for sentence in found:
        print(sentence, file=sys.stderr)
    print(f"{path} {path.stat().st_size} bytes")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
