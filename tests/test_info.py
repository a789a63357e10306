"""`geosam2 info`: what it says is what the scene is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from click.testing import CliRunner, Result
from odc.geo.geobox import GeoBox
from PIL import Image

from geosam2.cli import cli
from geosam2.commands.info import command
from geosam2.errors import ExportError
from geosam2.scene import open_scene
from geosam2.testing.files import write_geotiff
from geosam2.tiling import FrameGrid


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(2)
    pixels = rng.integers(100, 3000, (4, 700, 900)).astype(np.uint16)
    pixels[:, :100, :100] = 0
    geobox = GeoBox((700, 900), Affine(10, 0, 300000, 0, -10, 4100040), "EPSG:32612")
    return write_geotiff(tmp_path_factory.mktemp("info") / "s2.tif", pixels, geobox, nodata=0)


def run(*words: Any) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)


def test_json_says_what_the_scene_is(path: Path) -> None:
    facts = json.loads(run(path, "--json").output)
    scene = open_scene(path)
    assert facts["size"] == [700, 900]
    assert facts["crs"] == "EPSG:32612"
    assert facts["bounds"] == list(scene.bounds)
    assert facts["gsd"] == pytest.approx(10, rel=0.01)
    assert facts["bands"]["read"] == [1, 2, 3]
    assert facts["nodata"] == 0
    assert facts["stretch"]["low"] == list(scene.stretch.low)
    assert facts["signature"] == scene.signature
    for level, told in zip(scene.levels, facts["levels"], strict=True):
        assert told["frames"] == len(FrameGrid.of(scene, level))
        assert told["requests"] == 0
    west, south, east, north = facts["bbox"]
    assert -114 < west < east < -113
    assert 36 < south < north < 38


def test_the_page_has_the_essentials(path: Path) -> None:
    page = run(path, "--bands", "4,3,2", "--frame-size", "256", "--overlap", "64").output
    for word in ("s2.tif", "700 x 900 px", "EPSG:32612", "band 4", "percentiles 2-98", "native"):
        assert word in page


def test_options_choose_area_and_stretch(path: Path) -> None:
    facts = json.loads(
        run(
            path, "--json", "--bounds", "300000,4099040,301000,4100040", "--stretch", "0,4000"
        ).output
    )
    assert facts["size"] == [100, 100]
    assert facts["stretch"] == {"low": [0], "high": [4000], "origin": "given"}
    bad = CliRunner().invoke(command, [str(path), "--bounds", "1,2,three"])
    assert bad.exit_code == 2
    assert "4 numbers with commas" in bad.output


def test_the_thumbnail_shows_colours_and_holes(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    run(path, "--thumbnail", target)
    with Image.open(target) as image:
        assert image.mode == "RGBA"
        assert max(image.size) <= 512
        alpha = np.asarray(image)[..., 3]
    assert (alpha[:40, :40] == 0).all()
    assert (alpha[100:] == 255).all()
    with pytest.raises(ExportError, match="--overwrite"):
        run(path, "--thumbnail", target)
    run(path, "--thumbnail", target, "--overwrite")
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(ExportError, match="there is no folder"):
        run(path, "--thumbnail", tmp_path / "nowhere" / "a.png")


def test_tiles_tell_what_they_would_cost_and_hide_the_key() -> None:
    template = "https://tiles.org/{z}/{x}/{y}.png?token=SECRET99"
    out = run(
        template, "--json", "--bounds", "85.5,27.6,85.55,27.65", "--bounds-crs", "EPSG:4326",
        "--max-zoom", "17",
    ).output  # fmt: skip
    assert "SECRET99" not in out
    facts = json.loads(out)
    assert facts["source"] == "https://tiles.org/{z}/{x}/{y}.png?token=***"
    assert facts["levels"][0]["label"] == "z17"
    assert facts["levels"][0]["requests"] > 300
    assert facts["levels"][-1]["requests"] == 1


def test_hints_for_what_will_hurt(tmp_path: Path) -> None:
    pixels = np.zeros((1, 300, 9000), np.uint8)
    geobox = GeoBox((300, 9000), Affine(10, 0, 300000, 0, -30, 4100040), "EPSG:32612")
    path = write_geotiff(tmp_path / "long.tif", pixels, geobox, overviews=False)
    hints = json.loads(run(path, "--json").output)["hints"]
    assert any("gdaladdo" in hint for hint in hints)
    assert any("not square" in hint for hint in hints)


@pytest.mark.parametrize("name", ["info", "segment", "everything"])
def test_every_command_that_opens_a_scene_takes_the_same_options(
    name: str, path: Path, tmp_path: Path
) -> None:
    args = [name, str(path), "--bounds", "1,2,3"]
    args += [] if name == "info" else ["-o", str(tmp_path / "out.geojson")]
    args += ["--point", "1,1"] if name == "segment" else []
    done = CliRunner().invoke(cli, args)
    assert done.exit_code == 2
    assert "4 numbers with commas between them are needed, got '1,2,3'" in done.output


def test_a_thumbnail_is_a_png_or_nothing(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"a picture is written as \.png"):
        run(path, "--thumbnail", tmp_path / "out.txt")
    with pytest.raises(ExportError, match="there is no folder"):
        run(path, "--thumbnail", tmp_path / "nowhere" / "out.png")
    assert not list(tmp_path.iterdir())


def test_help_says_what_the_bounds_do_and_how_pixels_are_counted() -> None:
    said = " ".join(run("--help").output.split())
    assert "objects that reach out of it are drawn whole" in said
    assert "x = column, y = -row (negative)" in said


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs a folder where root cannot write")
def test_the_demo_refuses_a_folder_that_cannot_be_made() -> None:
    done = CliRunner().invoke(cli, ["demo", "-o", "/proc/x"])
    assert isinstance(done.exception, ExportError)
    assert "name another with --output" in str(done.exception)
