"""`geosam2 track` from the outside: files, pictures, exit codes, Ctrl-C, errors in one sentence."""

from __future__ import annotations

import os
import signal
from unittest import mock

import geopandas
import numpy as np
import pytest
from affine import Affine
from click.testing import CliRunner
from odc.geo.geobox import GeoBox
from PIL import Image

from geosam2.cli import cli, main
from geosam2.errors import SourceError
from geosam2.scene import Scene
from geosam2.testing import write_geotiff
from geosam2.testing.colour_model import ColourModel

LEFT, TOP, CELL = 500_000.0, 4_600_000.0, 10.0
POINT = f"{LEFT + 100 * CELL},{TOP - 100 * CELL}"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A square pond that grows."""
    folder = tmp_path_factory.mktemp("dates")
    grid = GeoBox((256, 256), Affine(CELL, 0, LEFT, 0, -CELL, TOP), "EPSG:32633")
    found = []
    for year, half in ((2001, 20), (2002, 26), (2003, 32)):
        pixels = np.full((3, 256, 256), 100, np.uint8)
        pixels[2, 100 - half : 100 + half, 100 - half : 100 + half] = 240
        found.append(str(write_geotiff(folder / f"{year}.tif", pixels, grid)))
    return found


@pytest.fixture
def run(tmp_path):
    def invoke(*args, model=None):
        with mock.patch("geosam2_model.load", return_value=model or ColourModel()):
            return CliRunner().invoke(cli, ["track", *args, "--no-cache"])

    return invoke


def test_rows_and_a_picture_are_written(files, run, tmp_path):
    out, shown = tmp_path / "pond.gpkg", tmp_path / "pond.png"
    done = run(*files, "-p", POINT, "-o", str(out), "--preview", str(shown))
    assert done.exit_code == 0, done.output
    table = geopandas.read_file(out).sort_values("date")
    assert list(table.date) == ["2001", "2002", "2003"]
    sides = np.sqrt(table.geometry.area) / CELL
    assert np.allclose(sides, [40, 52, 64], atol=1.5)
    with Image.open(shown) as image:
        assert image.width > 2.5 * image.height
    assert "object 1, 2002: click, 26.8" in done.output


def test_the_date_of_the_prompt_and_names_of_dates_can_be_given(files, run, tmp_path):
    out = tmp_path / "pond.geojson"
    done = run(*files, "-p", POINT, "-o", str(out), "--dates", "a,b,c", "--start", "b")
    assert done.exit_code == 0, done.output
    table = geopandas.read_file(out)
    assert dict(zip(table.date, table.found_by, strict=True))["b"] == "prompt"


def test_a_click_at_another_date_corrects(files, run, tmp_path):
    out = tmp_path / "pond.geojson"
    ground = f"{LEFT + 200 * CELL},{TOP - 200 * CELL}"
    done = run(*files, "-p", POINT, "-o", str(out), "--correct", f"2002,{ground},1")
    assert done.exit_code == 0, done.output
    table = geopandas.read_file(out).set_index("date")
    assert dict(table.found_by) == {"2001": "prompt", "2002": "prompt", "2003": "click"}
    sides = np.sqrt(table.geometry.to_crs(32633).area) / CELL
    assert sides["2001"] == pytest.approx(40, abs=1.5)
    assert sides["2002"] > 200  # the ground around the pond


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--correct", "2002,1"], "'1' does not read as --correct DATE,X,Y[,LABEL]"),
        (["--correct", "1999,1,2"], "there is no date '1999'"),
        (["--correct", f"2001,{POINT}"], "object 1 has two prompts at 2001"),
        (["-p", POINT, "--box", "0,0,9,9", "--correct", f"2002,{POINT}"], "there are 2"),
    ],
)
def test_corrections_that_cannot_be_used_are_refused(files, run, words, said):
    done = run(*files, "-p", POINT, *words)
    assert done.exit_code != 0
    assert said in done.output + str(done.exception)


def test_an_existing_file_stays_unless_told(files, run, tmp_path):
    out = tmp_path / "pond.geojson"
    out.write_text("mine")
    done = run(*files, "-p", POINT, "-o", str(out))
    assert done.exit_code == 1
    assert "exists" in str(done.exception)
    assert out.read_text() == "mine"
    assert run(*files, "-p", POINT, "-o", str(out), "--overwrite").exit_code == 0


class Interrupted(ColourModel):
    """Presses Ctrl-C once, before the second date."""

    pressed = False

    def remember(self, *args, **kwargs):
        if not self.pressed:
            self.pressed = True
            os.kill(os.getpid(), signal.SIGINT)
        return super().remember(*args, **kwargs)


def test_ctrl_c_writes_the_dates_that_are_done(files, run, tmp_path):
    out = tmp_path / "pond.geojson"
    done = run(*files, "-p", POINT, "-o", str(out), model=Interrupted())
    assert done.exit_code == 130, done.output
    assert "stopping after this date" in done.output
    assert 1 <= len(geopandas.read_file(out)) < 3


def test_what_was_found_before_a_date_that_cannot_be_read_is_written(
    files, run, tmp_path, monkeypatch
):
    read = Scene.read_window

    def fail(scene, level, window):
        if scene.name == "2003.tif":
            raise SourceError("2003.tif is damaged")
        return read(scene, level, window)

    monkeypatch.setattr(Scene, "read_window", fail)
    out = tmp_path / "pond.geojson"
    done = run(*files, "-p", POINT, "-o", str(out))
    assert done.exit_code == 1
    assert "2003.tif is damaged: 2 of 3 dates looked at and written" in done.output
    assert len(geopandas.read_file(out)) == 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "say what to follow"),
        (("-p", POINT, "--start", "1999"), "there is no date '1999'"),
        (("-p", "1,2"), "outside"),
        (("-p", POINT, "--dates", "a,b"), "one each"),
        (("-p", POINT, "--preview", "x.doc"), "x.doc"),
    ],
)
def test_mistakes_are_one_sentence(files, capsys, args, said):
    with (
        mock.patch("geosam2_model.load", return_value=ColourModel()),
        pytest.raises(SystemExit) as stopped,
    ):
        main(["track", *files, *args])
    assert stopped.value.code in (1, 2)
    assert said in " ".join(capsys.readouterr().err.split())


def test_scenes_on_two_grids_are_refused(files, tmp_path, capsys):
    grid = GeoBox((64, 64), Affine(7, 0, LEFT, 0, -7, TOP), "EPSG:32633")
    other = write_geotiff(tmp_path / "2009.tif", np.full((3, 64, 64), 9, np.uint8), grid)
    with pytest.raises(SystemExit):
        main(["track", files[0], str(other), "-p", POINT])
    assert "does not lie on the grid" in capsys.readouterr().err
