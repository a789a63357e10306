"""Which pictures of Debian's packages are kept to learn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from geosam2_model.training import data, imagery
from PIL import Image


def noise(seed: int, side: int = 800) -> Image.Image:
    """A busy picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    rough = np.random.default_rng(seed).integers(0, 40, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(np.asarray(Image.fromarray(coarse).resize((side, side))) // 2 + rough)


def test_large_busy_photographs_are_kept_once(tmp_path: Path) -> None:
    noise(0).save(tmp_path / "a.png")
    noise(0).resize((900, 900)).save(tmp_path / "b_of_another_size.png")
    noise(1).save(tmp_path / "c.png")
    noise(2, 300).save(tmp_path / "d_small.png")
    plain = Image.new("RGB", (1000, 1000), "white")
    plain.paste(noise(3, 200))
    plain.save(tmp_path / "e_plain.png")
    assert [name for name, _ in imagery.photographs(tmp_path)] == ["001-a", "002-c"]


def test_textures_that_are_no_pictures_of_ground_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "usr/share/games/flightgear/Textures/Terrain"
    folder.mkdir(parents=True)
    for name in ("town", "town.mask", "town-relief-light", "void"):
        noise(0, 200).save(folder / f"{name}.png")
    assert [name for name, _ in imagery.textures(tmp_path)] == ["Terrain-town"]


def test_a_source_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    source = tmp_path / "ground"

    def broken():  # type: ignore[no-untyped-def]
        yield "one", noise(0)
        raise OSError("the archive is cut off")

    with pytest.raises(OSError, match="cut off"):
        imagery.write(broken(), source)
    assert not source.exists()
    assert imagery.write(iter([("two", noise(1))]), source) == 1
    (picture,) = data.Source(source, unlabelled=True).pictures()
    assert picture.name == "ground/two"
    assert [p.name for p in tmp_path.iterdir()] == ["ground"]
