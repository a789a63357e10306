"""`geosam2 segment` from the outside: files, exit codes, Ctrl-C, resume, errors in one sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from unittest import mock

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from click.testing import CliRunner, Result
from odc.geo.geobox import GeoBox
from PIL import Image
from pyproj import Transformer
from rasterio.features import rasterize

from geosam2.cli import cli
from geosam2.errors import ExportError, ExportWarning, GeoSAM2Error, SourceError
from geosam2.testing import write_geotiff
from geosam2.testing.colour_model import ColourModel

CELL, LEFT, TOP = 2.0, 500_000.0, 4_600_000.0
LAKE = shapely.Point(320, 300).buffer(230).difference(shapely.Point(380, 250).buffer(50))
HOUSE = shapely.box(20, 20, 60, 60)

# the command line with the stand-in for the network, killed at its sixth frame
KILLED = """
import os, signal, sys
import geosam2_model
import geosam2.runs
from geosam2.cli import main
from geosam2.testing.colour_model import ColourModel

class Deadly(ColourModel):
    def encode(self, pixels):
        if self.encoded == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(pixels)

geosam2_model.load = lambda *args, **kwargs: Deadly(128)
geosam2.runs.SAVE_EVERY = 0.0
main(["segment", *sys.argv[1:]])
"""


def on_map(x: float, y: float) -> str:
    return f"{LEFT + x * CELL},{TOP - y * CELL}"


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    pixels = np.empty((3, 640, 640), np.uint8)
    pixels[:] = np.array((60, 110, 50), np.uint8)[:, None, None]
    for colour, shape in (((40, 70, 170), LAKE), ((190, 60, 60), HOUSE)):
        pixels[:, rasterize([shape], (640, 640)).astype(bool)] = np.array(colour)[:, None]
    geobox = GeoBox((640, 640), Affine(CELL, 0, LEFT, 0, -CELL, TOP), "EPSG:32633")
    return write_geotiff(tmp_path_factory.mktemp("scene") / "scene.tif", pixels, geobox)


class Interrupting(ColourModel):
    """Somebody presses Ctrl-C while the sixth frame is worked on."""

    def encode(self, pixels):
        if self.encoded == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return super().encode(pixels)


def run(*args: object, model: ColourModel | None = None) -> Result:
    """The command in this process: starting Python takes longer than the work."""
    model = model or ColourModel(128)
    with mock.patch("geosam2_model.load", return_value=model):
        return CliRunner().invoke(cli, ["segment", *map(str, args), "--no-cache"])


def iou(a: shapely.Geometry, b: shapely.Geometry) -> float:
    return a.intersection(b).area / a.union(b).area


def truth(shape: shapely.Geometry) -> shapely.Geometry:
    return shapely.transform(shape, lambda p: p * [CELL, -CELL] + [LEFT, TOP])


def test_a_level_of_enlarged_pixels_can_be_asked_for(scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "house.geojson"
    result = run(scene, "-p", on_map(40, 40), "--level", "x2", "-o", out)
    assert result.exit_code == 0
    (row,) = geopandas.read_file(out).itertuples()
    assert row.level == "x2"
    assert row.area_m2 == pytest.approx(HOUSE.area * CELL**2, rel=0.1)


def test_points_and_boxes_become_objects_in_a_file(scene, tmp_path):
    target = tmp_path / "out.gpkg"
    corners = f"{LEFT + 36},{TOP - 124},{LEFT + 124},{TOP - 36}"
    args = ("-p", on_map(150, 200), "--box", corners, "-o", target, "--level", "native")
    done = run(scene, *args, "--preview", tmp_path / "out.png")
    assert done.exit_code == 0, done.output
    found = geopandas.read_file(target)
    assert found.id.tolist() == [1, 2]
    assert iou(found.geometry[0], truth(LAKE)) > 0.98
    assert iou(found.geometry[1], truth(HOUSE)) > 0.9
    assert "object 1: " in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gpkg", "out.png"]


def test_geojson_prompts_go_to_stdout(scene, tmp_path):
    to_degrees = Transformer.from_crs(32633, 4326, always_xy=True)
    place = to_degrees.transform(LEFT + 40 * CELL, TOP - 40 * CELL)
    feature = {
        "type": "Feature",
        "properties": {},
        "geometry": {"type": "Point", "coordinates": place},
    }
    prompts = tmp_path / "prompts.geojson"
    prompts.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    done = run(scene, "--prompts", prompts, "--level", 0)
    assert done.exit_code == 0, done.output
    geometry = json.loads(done.stdout)["features"][0]["geometry"]
    assert shapely.geometry.shape(geometry).centroid.distance(shapely.Point(place)) < 1e-4


def test_ctrl_c_writes_what_there_is_and_resume_finishes_it(scene, tmp_path):
    target, state = tmp_path / "out.gpkg", tmp_path / "out.gpkg.run"
    args = (scene, "-p", on_map(150, 200), "-o", target, "--level", "native")
    done = run(*args, model=Interrupting(128))
    assert done.exit_code == 130, done.output
    assert f"go on with --resume (state in {state})" in done.stderr
    part = geopandas.read_file(target)
    assert part.frames.tolist() == [6]  # the frame at hand was finished
    assert part.open_edges[0] > 0
    done = run(scene, "-o", target, "--resume")
    assert done.exit_code == 0, done.output
    whole = geopandas.read_file(target)
    assert whole.open_edges.tolist() == [0]
    assert iou(whole.geometry[0], truth(LAKE)) > 0.98
    assert not state.exists()


class Cut(ColourModel):
    """The source fails at some frames, as a service may."""

    def __init__(self, *fails: int) -> None:
        super().__init__(128)
        self.fails = fails

    def encode(self, pixels):
        found = super().encode(pixels)
        if self.encoded in self.fails:
            raise SourceError("HTTP 500 from tiles.example")
        return found


def test_what_a_failing_source_gave_is_written_and_resume_asks_again(scene, tmp_path):
    target, state = tmp_path / "out.gpkg", tmp_path / "out.gpkg.run"
    house = f"{LEFT + 36},{TOP - 124},{LEFT + 124},{TOP - 36}"
    args = ("-p", on_map(150, 200), "--box", house, "-o", target, "--level", "native")
    done = run(scene, *args, model=Cut(6))
    assert done.exit_code == 1, done.output
    assert "frames of an object could not be read: HTTP 500 from tiles.example" in done.stderr
    assert f"1 of 2 objects finished, 2 written; go on with --resume (state in {state})" in (
        done.stderr
    )
    part = geopandas.read_file(target)
    assert part.open_edges.tolist()[0] > 0
    done = run(scene, "-o", target, "--resume")
    assert done.exit_code == 0, done.output
    whole = geopandas.read_file(target)
    assert whole.id.tolist() == [1, 2]
    assert whole.open_edges.tolist() == [0, 0]
    assert whole.frames[0] == part.frames[0] + 1
    assert iou(whole.geometry[0], truth(LAKE)) > 0.98
    assert not state.exists()


@pytest.mark.slow
def test_a_killed_run_leaves_no_half_file_and_resumes(scene, tmp_path):
    target = tmp_path / "out.geojson"
    args = [str(a) for a in (scene, "-p", on_map(150, 200), "-o", target, "--level", 0)]
    code = textwrap.dedent(KILLED)
    killed = subprocess.run([sys.executable, "-c", code, *args, "--no-cache"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    assert run(scene, "-o", target, "--resume").exit_code == 0
    again = tmp_path / "straight.geojson"
    assert run(scene, "-p", on_map(150, 200), "-o", again, "--level", 0).exit_code == 0
    assert target.read_text() == again.read_text()


@pytest.mark.parametrize(
    ("args", "code", "remedy"),
    [
        ([], 2, "say what to segment"),
        (["-p", "1"], 2, "does not read as --point X,Y"),
        (["-p", "15.005,41.545"], 1, "In EPSG:4326 it would be inside: pass crs='EPSG:4326'"),
        (["-p", "41.545,15.005"], 1, "longitude"),
        (["-p", "nan,1"], 1, "not finite"),
        (["-p", "500010,4599990", "--crs", "EPSG:0"], 1, "use for example 'EPSG:4326'"),
        (["-p", "500010,4599990", "--level", "z3"], 1, "has 0 (native)"),
        (["--prompts", "nothing.geojson"], 1, "not a readable GeoJSON"),
        (["--resume", "-o", "nothing.gpkg"], 1, "start it without --resume"),
        (["-p", "500010,4599990", "-o", "no/such/folder/x.gpkg"], 1, "there is no folder"),
    ],
)
def test_mistakes_get_one_sentence(scene, args, code, remedy):
    done = run(scene, *args)
    if code == 2:
        assert done.exit_code == 2
        assert remedy in done.output
    else:
        assert isinstance(done.exception, GeoSAM2Error)
        assert remedy in str(done.exception)


POINT = ("-p", on_map(150, 200))


@pytest.mark.parametrize(
    ("options", "code", "remedy"),
    [
        (["--max-frames", 0], 2, "not in the range"),
        (["--min-area", "nan"], 1, "give a number from 0"),
        (["--min-area", -1], 1, "give a number from 0"),
        (["--simplify", "nan"], 1, "give a number from 0"),
        (["--simplify", -2], 1, "give a number from 0"),
        (["--orthogonal", "--smooth"], 1, "choose one"),
        (["--overwrite", "--append"], 2, "choose one"),
        (["-p", f"{on_map(1, 1)},0.5"], 1, "use 1 for foreground"),
        (["-p", f"{on_map(1, 1)},nan"], 1, "use 1 for foreground"),
        (["--preview", "x.txt"], 1, "a picture is written as .png"),
        (["--preview", "no/such/folder/x.png"], 1, "there is no folder"),
        (["--scene-crs", "foo"], 1, "use for example 'EPSG:4326'"),
        (["--bounds-crs", "foo", "--bounds", "1,2,3,4"], 1, "use for example 'EPSG:4326'"),
    ],
)
def test_values_without_sense_are_refused_before_the_work(scene, tmp_path, options, code, remedy):
    model = ColourModel(128)
    done = run(scene, *POINT, "-o", tmp_path / "out.gpkg", *options, model=model)
    said = done.output if code == 2 else str(done.exception)
    assert remedy in said
    assert (done.exit_code == 2) == (code == 2)
    assert isinstance(done.exception, GeoSAM2Error if code == 1 else SystemExit)
    assert model.encoded == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs a folder where root cannot write")
@pytest.mark.parametrize(
    "options", [["-o", "/proc/x.gpkg"], ["--state", "/proc/x"], ["--preview", "/proc/x.png"]]
)
def test_places_that_cannot_be_written_are_refused_before_the_work(scene, tmp_path, options):
    model = ColourModel(128)
    done = run(scene, *POINT, "-o", tmp_path / "out.gpkg", *options, model=model)
    assert isinstance(done.exception, ExportError)
    assert "name another" in str(done.exception)
    assert model.encoded == 0


def test_a_prompt_outside_leaves_no_folder(scene, tmp_path):
    done = run(scene, "-p", "1,2", "-o", tmp_path / "out.gpkg")
    assert isinstance(done.exception, GeoSAM2Error)
    assert not list(tmp_path.iterdir())


def test_a_source_that_fails_at_once_leaves_no_folder(scene, tmp_path):
    done = run(scene, *POINT, "-o", tmp_path / "out.gpkg", "--level", 0, model=Cut(1))
    assert isinstance(done.exception, SourceError)
    assert not list(tmp_path.iterdir())


def test_the_user_s_own_files_in_the_state_folder_stay(scene, tmp_path):
    (tmp_path / "run.json").write_text("mine")
    done = run(scene, *POINT, "-o", tmp_path / "out.gpkg", "--state", tmp_path)
    assert "name another folder" in str(done.exception)
    assert (tmp_path / "run.json").read_text() == "mine"


def test_quiet_says_nothing(scene, tmp_path):
    args = ["-q", "segment", scene, *POINT, "-o", tmp_path / "out.gpkg", "--level", 2, "--no-cache"]
    with mock.patch("geosam2_model.load", return_value=ColourModel(128)):
        done = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert done.exit_code == 0, done.output
    assert done.output == ""


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".parquet"])
def test_appended_objects_are_numbered_on(scene, tmp_path, suffix):
    target = tmp_path / f"out{suffix}"
    for _ in range(3):
        done = run(scene, *POINT, "-o", target, "--level", 2, "--append")
        assert done.exit_code == 0, done.output
    read = geopandas.read_parquet if suffix == ".parquet" else geopandas.read_file
    assert read(target).id.tolist() == [1, 2, 3]


def stopped(scene, target, *options) -> None:
    done = run(scene, *POINT, "-o", target, "--level", "native", *options, model=Interrupting(128))
    assert done.exit_code == 130, done.output


@pytest.mark.parametrize("option", [POINT, ("--simplify", 3), ("--level", "1/2"), ("--crs", 4326)])
def test_options_that_a_resumed_run_would_ignore_are_refused(scene, tmp_path, option):
    done = run(scene, "-o", tmp_path / "out.gpkg", "--resume", *option)
    assert done.exit_code == 2
    assert "cannot be changed with --resume" in done.output


def test_resume_does_not_replace_a_file_of_somebody_else(scene, tmp_path):
    target = tmp_path / "out.gpkg"
    stopped(scene, target)
    part = geopandas.read_file(target)
    part.assign(note="by hand").to_file(target)  # edited after the stop
    done = run(scene, "-o", target, "--resume")
    assert "replace it with --overwrite" in str(done.exception)
    assert "note" in geopandas.read_file(target)
    done = run(scene, "-o", target, "--resume", "--overwrite")
    assert done.exit_code == 0, done.output
    assert geopandas.read_file(target).open_edges.tolist() == [0]


def test_an_unfinished_object_is_not_appended_to_the_objects_of_others(scene, tmp_path):
    target = tmp_path / "out.gpkg"
    assert run(scene, "-p", on_map(40, 40), "-o", target, "--level", 0).exit_code == 0
    stopped(scene, target, "--append")
    assert geopandas.read_file(target).id.tolist() == [1]
    assert run(scene, "-o", target, "--resume", "--append").exit_code == 0
    both = geopandas.read_file(target)
    assert both.id.tolist() == [1, 2]
    assert both.open_edges.tolist() == [0, 0]


@pytest.fixture
def picture(tmp_path) -> Path:
    """A lake in a picture without a place on the map."""
    pixels = np.zeros((3, 256, 256), np.uint8)
    pixels[1] = 110
    pixels[2, 80:160, 60:150] = 200
    path = tmp_path / "picture.png"
    Image.fromarray(np.moveaxis(pixels, 0, -1)).save(path)
    return path


def test_pixels_have_no_square_metres(picture, tmp_path):
    target = tmp_path / "out.gpkg"
    args = ("--pixel-coordinates", "-p", "100,-120", "--level", 0)
    done = run(picture, *args, "-o", target)
    assert done.exit_code == 0, done.output
    row = geopandas.read_file(target).iloc[0]
    assert np.isnan(row.area_m2)
    assert row.geometry.area == pytest.approx(80 * 90, rel=0.05)
    assert f"object 1: {row.geometry.area:.0f} px" in done.stderr
    assert run(picture, *args, "-o", target, "--append").exit_code == 0
    assert geopandas.read_file(target).id.tolist() == [1, 2]
    with pytest.warns(ExportWarning, match=".gpkg"):
        found = json.loads(run(picture, *args).stdout)["features"][0]
    assert found["properties"]["area_m2"] is None
    assert shapely.geometry.shape(found["geometry"]).area == pytest.approx(row.geometry.area)


def test_rows_below_the_top_of_a_picture_are_negative(picture):
    done = run(picture, "--pixel-coordinates", "-p", "100,120")
    assert "y = -row, so y is negative" in str(done.exception)
