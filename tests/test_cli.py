"""The command line as a whole: one sentence an error, options by their names, exit codes."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

import click
import pyproj
import pytest
import rasterio
import shapely
from pyogrio.errors import DataSourceError

from geosam2 import cli as module
from geosam2.cli import as_options, cli, main
from geosam2.commands import info, segment
from geosam2.errors import ExportWarning, GeoreferenceError, PromptError

MAIN = "from geosam2.cli import main; main()"


@pytest.fixture
def failing(monkeypatch):
    """A command that raises what is asked for, or warns."""

    def install(error: Exception | Warning) -> None:
        @click.command()
        def command() -> None:
            if isinstance(error, Warning):
                warnings.warn(error, stacklevel=1)
                return
            raise error

        monkeypatch.setattr(module._LazyGroup, "get_command", lambda *_: command)
        monkeypatch.setattr(warnings, "showwarning", mock.Mock())

    return install


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        pyproj.exceptions.ProjError("no such thing"),
        pyproj.exceptions.CRSError("no such thing"),
        DataSourceError("no such thing"),
        shapely.errors.GEOSException("no such thing"),
        rasterio.errors.RasterioIOError("no such thing"),
    ],
)
def test_errors_that_nobody_translated_are_one_sentence(failing, capsys, error):
    failing(error)
    with pytest.raises(SystemExit) as caught:
        main(["info"])
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("geosam2: ")
    assert said.count("\n") == 1
    assert "no such thing" in said or "No space left" in said
    assert "-vv" in said


def test_vv_shows_where_and_our_mistakes_are_not_hidden(failing, capsys):
    failing(OSError(28, "No space left on device"))
    with pytest.raises(SystemExit):
        main(["-vv", "info"])
    assert "Traceback" in capsys.readouterr().err
    failing(AssertionError("ours"))
    with pytest.raises(AssertionError, match="ours"):
        main(["info"])


def test_the_exit_code_of_a_command_is_that_of_the_process(failing):
    failing(click.exceptions.Exit(1))
    with pytest.raises(SystemExit) as caught:
        main(["info"])
    assert caught.value.code == 1


def test_our_warnings_are_one_sentence_and_none_with_quiet(failing, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        failing(ExportWarning("a shapefile cannot hold everything"))
        main(["info"])
        assert capsys.readouterr().err == "geosam2: a shapefile cannot hold everything\n"
        main(["-q", "info"])
        assert capsys.readouterr().err == ""


def test_remedies_name_the_options_of_the_command():
    imagery = GeoreferenceError("pass crs= if you know it, or pixel_coordinates=True to work")
    assert as_options(imagery, info.command) == (
        "pass --crs if you know it, or --pixel-coordinates to work"
    )
    assert "pass --scene-crs if" in as_options(imagery, segment.command)
    prompt = PromptError("it would be inside: pass crs='EPSG:4326'.")
    assert as_options(prompt, segment.command).endswith("pass --crs 'EPSG:4326'.")
    assert as_options(prompt, cli) == str(prompt)
    url = PromptError("cannot open http://t.org/?crs=EPSG:4326&bands=3")
    assert as_options(url, segment.command) == str(url)


def test_a_key_in_a_vrt_is_in_no_line_of_the_log(tmp_path: Path):
    """Nobody told us of that URL: the VRT names it."""
    vrt = """<VRTDataset rasterXSize="32" rasterYSize="32">
      <SRS>EPSG:32633</SRS><GeoTransform>500000, 1, 0, 4600000, 0, -1</GeoTransform>
      <VRTRasterBand dataType="Byte" band="1"><SimpleSource>
      <SourceFilename>/vsicurl/http://127.0.0.1:9/a.tif?key=SECRET123</SourceFilename>
      <SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"""
    (tmp_path / "a.vrt").write_text(vrt)
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "-vv", "info", "a.vrt", "--thumbnail", "a.png"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "127.0.0.1:9/a.tif?key=***" in done.stderr
    assert "SECRET123" not in done.stderr + done.stdout
