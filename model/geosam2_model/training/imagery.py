"""Pictures that nobody labelled, from packages of Debian: ground from above, and photographs.

    python -m geosam2_model.training.imagery FOLDER

Writes `flightgear/images` and `wallpapers/images` into the folder, sources of a recipe. The first
are what the flight simulator FlightGear paints the ground with: fields, towns, industry, woods and
deserts of many places, mostly cut from aerial and satellite images. Needs apt-get and dpkg-deb; the
licences are in `usr/share/doc/*/copyright` of the packages. None of these pictures ships.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

GROUND = "flightgear-data-base"
"""GPL-2 or later; 1.3 GB."""
TEXTURES = ("Terrain", "Terrain.winter")
OTHER = ("mask", "relief", "overlay", "colors", "grain", "void", "unknown", "water")
"""Textures with these in their names are no pictures of ground, or plain."""
PHOTOGRAPHS = (
    "mate-backgrounds",
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
    "ukui-wallpapers",
    "gnome-backgrounds",
    "plasma-workspace-wallpapers",
)
"""CC BY, CC BY-SA, CC0, MIT, GPL-2 or later."""
LEAST_BYTES, LEAST_SIDE, MOST_SIDE = 60_000, 700, 2048
STEEP, BUSY = 4.0, 0.12
"""Of a photograph, so large a share has a gradient of so many grey values; drawings have less."""
ALIKE = 0.9
"""Correlation of two thumbnails of one picture."""


def textures(root: Path) -> Iterator[tuple[str, Image.Image]]:
    """Pictures of ground in the unpacked package."""
    for folder in TEXTURES:
        for path in sorted(root.glob(f"usr/share/games/flightgear/Textures/{folder}/*.png")):
            plain = any(word in path.name for word in OTHER)
            if not plain and path.stat().st_size > LEAST_BYTES:
                yield f"{folder}-{path.stem}", Image.open(path).convert("RGB")


def photographs(root: Path) -> Iterator[tuple[str, Image.Image]]:
    """Large pictures with much to see, no two alike."""
    found: list[np.ndarray] = []
    for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png")):
        if path.is_symlink() or path.stat().st_size < LEAST_BYTES:
            continue
        image = Image.open(path).convert("RGB")
        smallest = min(image.size)
        image.thumbnail((MOST_SIDE, MOST_SIDE))
        if smallest < LEAST_SIDE or busy(image) < BUSY:
            continue
        thumbnail = np.asarray(image.resize((16, 16)).convert("L"), float).ravel()
        if all(np.corrcoef(thumbnail, other)[0, 1] < ALIKE for other in found):
            found.append(thumbnail)
            yield f"{len(found):03d}-{path.stem}", image


def busy(image: Image.Image) -> float:
    """Share of a picture where its grey values change steeply."""
    gradient = np.hypot(*np.gradient(np.asarray(image.convert("L"), float)))
    return float((gradient > STEEP).mean())


def unpacked(package: str, folder: Path) -> Path:
    """A folder with all of a Debian package's files; nothing is installed."""
    root = folder / package
    root.mkdir(parents=True)
    subprocess.run(["apt-get", "download", package], cwd=folder, check=True)  # noqa: S603, S607
    (archive,) = folder.glob(f"{package}_*.deb")
    subprocess.run(["dpkg-deb", "-x", archive, root], check=True)  # noqa: S603, S607
    return root


def write(images: Iterator[tuple[str, Image.Image]], source: Path) -> int:
    """Write a source's pictures, all or none; returns how many."""
    partial = source.with_name(f"{source.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    count = 0
    for name, image in images:
        image.save(partial / "images" / f"{name}.png")
        count += 1
    partial.rename(source)
    return count


def main() -> None:
    """Fetch, choose, write."""
    parser = argparse.ArgumentParser(description="Fetch pictures without labels.")
    parser.add_argument("folder", type=Path, help="where to write flightgear and wallpapers")
    target: Path = parser.parse_args().folder
    for name in ("flightgear", "wallpapers"):
        if (target / name).exists():
            parser.error(f"{target / name} exists already; delete it to fetch it again.")
    with tempfile.TemporaryDirectory() as folder:
        try:
            ground = unpacked(GROUND, Path(folder) / "ground")
            for package in PHOTOGRAPHS:
                unpacked(package, Path(folder) / "photographs")
        except (OSError, subprocess.CalledProcessError) as error:
            parser.error(f"a package cannot be fetched ({error}); this needs Debian and a network.")
        print(write(textures(ground), target / "flightgear"), "pictures of ground")
        found = photographs(Path(folder) / "photographs")
        print(write(found, target / "wallpapers"), "photographs")


if __name__ == "__main__":
    main()
