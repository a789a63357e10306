"""The session, the engine and the pixels, with the fake engine: no widgets."""

import base64
import math
import os
import signal
import stat

import numpy as np
import pytest
import scenes
from geosam2_qgis.core import pixels, settings
from geosam2_qgis.core.session import State, forget_run, read_run
from qgis.core import QgsGeometry, QgsPointXY

pytestmark = pytest.mark.qgis


def preview(session, until, x, y, label=1):
    session.add_point(x, y, label)
    until(lambda: session.state is not State.THINKING)
    assert session.troubles == []
    assert session.state is State.PREVIEW
    return session.shape


def point(x, y):
    return QgsGeometry.fromPointXY(QgsPointXY(x, y))


# pixels -------------------------------------------------------------------------------------------


def fetch(source, until, bounds, width, height):
    got = []
    source.request(1, bounds, width, height, lambda *what: got.append(what))
    until(lambda: got)
    return got[0]


def test_a_geotiff_arrives_exactly_as_stored(raster, until):
    description = pixels.describe(raster)
    assert description.crs == "EPSG:32633"
    assert description.resolutions[:2] == (0.5, 1.0)
    source = pixels.PixelSource(raster, description, 30)
    x0, y0 = scenes.ORIGIN
    bounds = (x0 + 50, y0 - 306, x0 + 306, y0 - 50)
    _, data, share = fetch(source, until, bounds, 512, 512)
    image = np.frombuffer(data, np.uint8).reshape(512, 512, 4)
    assert np.array_equal(image[..., :3], scenes.tif_pixels()[100:612, 100:612])
    assert (image[..., 3] == 255).all()
    assert share == 0.0


def test_beyond_the_raster_is_transparent_but_not_missing(raster, until):
    source = pixels.PixelSource(raster, pixels.describe(raster)._replace(remote=True), 30)
    x0, y0 = scenes.ORIGIN
    _, data, share = fetch(source, until, (x0 - 64, y0 - 64, x0 + 64, y0 + 64), 256, 256)
    assert data[3::4].count(0) == 256 * 256 * 3 // 4
    assert share == 0.0


@pytest.mark.parametrize(("share", "times"), [(2, 1), (1, 1), (0.5, 2), (0.3, 4), (0.01, 8)])
def test_cells_smaller_than_the_rasters_own_enlarge_them(basemap, share, times):
    description = pixels.describe(basemap)
    assert description.enlargement_for(share * description.resolutions[0]) == times


def test_basemap_pixels_are_the_tiles_byte_for_byte(basemap, until):
    description = pixels.describe(basemap)
    assert description.remote
    cell = 2 * scenes.HALF / 256 / 2**scenes.LAKE_ZOOM
    level = description.level_for(cell * 1.2)
    assert description.resolutions[level] == pytest.approx(cell)
    source = pixels.PixelSource(basemap, description, 30)
    col = math.floor((scenes.LAKE[0] + scenes.HALF) / cell / 256)
    row = math.floor((scenes.HALF - scenes.LAKE[1] - scenes.LAKE[3]) / cell / 256)
    left, top = -scenes.HALF + col * 256 * cell, scenes.HALF - row * 256 * cell
    bounds = (left, top - 512 * cell, left + 512 * cell, top)
    _, data, share = fetch(source, until, bounds, 512, 512)
    image = np.frombuffer(data, np.uint8).reshape(512, 512, 4)[..., :3]
    tiles = [
        [scenes.tile_pixels(scenes.LAKE_ZOOM, col + c, row + r) for c in (0, 1)] for r in (0, 1)
    ]
    assert np.array_equal(image, np.concatenate([np.concatenate(line, 1) for line in tiles], 0))
    assert share == 0.0


def test_the_layers_referer_is_sent(server, until, qgis_new_project):
    from qgis.core import QgsProject, QgsRasterLayer

    uri = scenes.xyz_uri(
        server.port, "&referer=https://example.org/&http-header:referer=https://example.org/"
    )
    layer = QgsRasterLayer(uri, "basemap", "wms")
    QgsProject.instance().addMapLayer(layer)
    source = pixels.PixelSource(layer, pixels.describe(layer), 30)
    fetch(source, until, (0, 0, 512 * 4.777314267823516, 512 * 4.777314267823516), 512, 512)
    assert {entry[3] for entry in server.RequestHandlerClass.seen} == {"https://example.org/"}


@pytest.fixture
def wms(server, qgis_new_project):
    """The lake as a WMS layer."""
    from qgis.core import QgsProject, QgsRasterLayer

    layer = QgsRasterLayer(scenes.wms_uri(server.port), "wms", "wms")
    assert layer.isValid(), layer.error().message()
    QgsProject.instance().addMapLayer(layer)
    return layer


def test_a_wms_layer_is_drawn_cell_by_cell(wms, until):
    description = pixels.describe(wms)
    assert description.remote
    cell = description.resolutions[description.level_for(20.0)]
    assert 10 < cell < 40
    left = description.origin[0] + round((scenes.LAKE[0] - description.origin[0]) / cell) * cell
    top = description.origin[1] - round((description.origin[1] - scenes.LAKE[1]) / cell) * cell
    bounds = (left, top - 512 * cell, left + 512 * cell, top)
    source = pixels.PixelSource(wms, description, 30)
    _, data, share = fetch(source, until, bounds, 512, 512)
    image = np.frombuffer(data, np.uint8).reshape(512, 512, 4)
    x = left + (np.arange(512) + 0.5) * cell
    y = top - (np.arange(512) + 0.5) * cell
    assert np.array_equal(image[..., :3], scenes.colours_xyz(x[None, :], y[:, None]))
    assert share == 0.0


def test_an_object_of_a_wms_layer_is_followed(session, wms, until):
    session.set_layer(wms)
    session.level = session.description.level_for(19.0)
    preview(session, until, *scenes.LAKE[:2])
    session.accept()
    until(lambda: session.results or session.troubles)
    check_lake(session.results[0])


def test_the_layers_login_is_sent(server, until, qgis_new_project):
    from qgis.core import QgsProject, QgsRasterLayer

    login = "&username=me&password=mine"
    layer = QgsRasterLayer(scenes.wms_uri(server.port, login), "wms", "wms")
    assert layer.isValid()
    QgsProject.instance().addMapLayer(layer)
    description = pixels.describe(layer)
    server.RequestHandlerClass.seen.clear()
    x, y = scenes.LAKE[:2]
    source = pixels.PixelSource(layer, description, 30)
    fetch(source, until, (x, y, x + 5120, y + 5120), 512, 512)
    expected = "Basic " + base64.b64encode(b"me:mine").decode()
    assert ["GETMAP", expected] in server.RequestHandlerClass.seen
    assert "mine" not in description.source


@pytest.mark.parametrize("mode", ["404", "503"])
def test_failed_tiles_are_measured(basemap, server, until, mode):
    server.RequestHandlerClass.mood["mode"] = mode
    description = pixels.describe(basemap)
    source = pixels.PixelSource(basemap, description, 30)
    cell = description.resolutions[5]
    _, _, share = fetch(source, until, (0, 0, 512 * cell, 512 * cell), 512, 512)
    assert share == pytest.approx(0.5, abs=0.05)


def test_hanging_tiles_end_in_time(basemap, server, until):
    server.RequestHandlerClass.mood["mode"] = "hang"
    source = pixels.PixelSource(basemap, pixels.describe(basemap), 1)
    _, data, share = fetch(source, until, (0, 0, 4000, 4000), 512, 512)
    assert (data, share) == (b"", 1.0)


def test_secrets_are_left_out_of_the_source():
    secret = "type=xyz&url=https://me:pw@h/{z}.png?api_key%3Dabc%26v%3D1&token=t0p&zmax=18"
    assert pixels.redact(secret) == (
        "type=xyz&url=https://***@h/{z}.png?api_key%3D***%26v%3D1&token=***&zmax=18"
    )


# clicking -----------------------------------------------------------------------------------------


def test_a_click_gives_a_preview_and_enter_the_object(session, raster, until):
    session.set_layer(raster)
    session.level = 0
    shape = preview(session, until, *scenes.POND[:2])
    assert shape.figures["frames"] == 1
    session.accept()
    until(lambda: session.results or session.troubles)
    result = session.results[0]
    assert result.shape.geometry.isGeosValid()
    assert result.shape.geometry.area() == pytest.approx(math.pi * 100 * 60, rel=0.01)
    assert result.shape.figures["open_edges"] == 0
    assert result.prompt["points"] == [list(scenes.POND[:2])]
    assert session.state is State.EMPTY


def test_a_sketch_is_shown_until_the_answer_is_there(session, raster, until):
    seen = []
    session.shape_changed.connect(lambda shape: shape and seen.append((session.state, shape)))
    session.set_layer(raster)
    session.level = 0
    preview(session, until, *scenes.POND[:2])
    assert [state for state, _ in seen] == [State.THINKING, State.THINKING, State.PREVIEW]
    for _, shape in seen:
        assert shape.geometry.contains(point(*scenes.POND[:2]))
    session.accept()
    until(lambda: session.results or session.troubles)
    assert session.results


def test_enter_on_a_sketch_waits_for_the_answer(session, raster, until):
    session.set_layer(raster)
    session.level = 0
    session.add_point(*scenes.POND[:2], 1)
    until(lambda: session.shape is not None)
    assert session.state is State.THINKING
    session.accept()
    assert session.results == []
    until(lambda: session.results)
    assert session.results[0].shape.geometry.area() == pytest.approx(math.pi * 6000, rel=0.01)


def test_detail_automatic_finds_the_zoom_and_follows_at_it(session, raster, until):
    session.set_layer(raster)
    session.level = "auto"
    shape = preview(session, until, *scenes.POND[:2])
    assert shape.figures["level"] > 0
    session.accept()
    until(lambda: session.results or session.troubles)
    assert session.results[0].shape.geometry.area() == pytest.approx(math.pi * 6000, rel=0.02)


def test_the_engine_is_warmed_up_once_there_is_imagery(session, raster, until):
    loaded = []
    session.loaded.connect(loaded.append)
    session.warm_up()
    assert not session.engine.running  # nothing to work on
    session.set_layer(raster)
    session.warm_up()
    until(lambda: loaded)
    assert session.state is State.EMPTY
    session.warm_up()
    assert len(session.engine._pending) <= 1  # what was said is not said again


def test_warming_up_does_not_repeat_a_complaint(session, raster, until, plugin_settings):
    plugin_settings.setValue("geosam2/python", "/no/such/python")
    session.set_layer(raster)
    session.warm_up()
    until(lambda: session.troubles)
    session.warm_up()
    assert len(session.troubles) == 1
    assert not session.engine.running


def test_a_negative_click_removes_the_neighbour_and_backspace_brings_it_back(
    session, raster, until
):
    session.set_layer(raster)
    session.level = 0
    west, east = scenes.TWINS
    both = preview(session, until, *west)
    assert both.geometry.contains(point(*east))
    one = preview(session, until, *east, label=0)
    assert not one.geometry.contains(point(*east))
    assert one.geometry.contains(point(*west))
    session.take_back()
    until(lambda: session.state is State.PREVIEW)
    assert session.shape.geometry.contains(point(*east))
    session.take_back()
    assert session.state is State.EMPTY
    assert session.points == []


def test_a_box_gives_the_object_inside(session, raster, until):
    session.set_layer(raster)
    session.level = 0
    x, y = scenes.TWINS[0]
    session.set_box(x - 22, y - 22, x + 20, y + 22)
    until(lambda: session.state is State.PREVIEW)
    assert session.shape.geometry.contains(point(x, y))
    assert session.shape.geometry.boundingBox().xMaximum() <= x + 20


def test_other_shapes_can_be_chosen(session, raster, until):
    session.set_layer(raster)
    session.level = 0
    preview(session, until, *scenes.TWINS[0])
    assert session.alternatives == 3
    session.next_alternative()
    chosen = session.shape
    session.accept()
    until(lambda: session.results)
    assert session.results[0].shape is chosen


def test_fast_clicks_end_with_the_preview_of_all_of_them(session, raster, until):
    session.set_layer(raster)
    session.level = 0
    west, east = scenes.TWINS
    session.add_point(*west, 1)
    session.add_point(*east, 0)
    until(lambda: session.state is State.PREVIEW)
    assert not session.shape.geometry.contains(point(*east))


def test_enter_before_the_preview_is_there_counts(session, raster, until):
    session.set_layer(raster)
    session.level = 0
    session.add_point(*scenes.POND[:2], 1)
    session.accept()
    until(lambda: session.results)


def test_a_click_outside_the_imagery_is_explained_and_the_next_one_works(session, raster, until):
    session.set_layer(raster)
    session.level = 0
    session.add_point(0, 0, 1)
    until(lambda: session.troubles)
    assert "outside the scene" in session.troubles[0].message
    session.reset()
    session.troubles.clear()
    preview(session, until, *scenes.POND[:2])


def test_without_a_layer_the_click_is_explained(session):
    session.set_layer(None)
    session.add_point(0, 0, 1)
    assert session.troubles[0].kind == "no_layer"


# following ----------------------------------------------------------------------------------------


def lake_level(session):
    cell = 2 * scenes.HALF / 256 / 2**scenes.LAKE_ZOOM
    session.level = session.description.level_for(cell)


def start_following(session, until):
    lake_level(session)
    preview(session, until, *scenes.LAKE[:2])
    session.accept()
    until(lambda: session.steps and session.steps[-1][0] >= 2)


def lake_truth():
    return math.pi * scenes.LAKE[2] * scenes.LAKE[3]


def check_lake(result):
    geometry = result.shape.geometry
    assert geometry.isGeosValid()
    assert len(geometry.asMultiPolygon()) == 1
    assert geometry.area() == pytest.approx(lake_truth(), rel=1e-3)
    assert seam_edges(geometry) == 0


def seam_edges(geometry):
    """Edges longer than thirty pixels that lie on a border between two frames: a cut would."""
    cell = 2 * scenes.HALF / 256 / 2**scenes.LAKE_ZOOM
    count = 0
    for ring in geometry.asMultiPolygon()[0]:
        for a, b in zip(ring, ring[1:]):
            for one, other, length in (
                (a.x(), b.x(), abs(a.y() - b.y())),
                (a.y(), b.y(), abs(a.x() - b.x())),
            ):
                place = (one + scenes.HALF) / cell / 512
                if one == other and length > 30 * cell and abs(place - round(place)) < 1e-6:
                    count += 1
    return count


def test_a_lake_is_followed_over_many_frames_without_seams(session, basemap, until):
    session.set_layer(basemap)
    start_following(session, until)
    until(lambda: session.results)
    check_lake(session.results[0])
    frames = [done for done, _ in session.steps]
    assert frames[-1] >= 7
    assert frames == sorted(frames)
    assert read_run() is None


def test_pause_correct_resume(session, basemap, until, plugin_settings):
    plugin_settings.setValue("geosam2/engineArguments", "--backend fake --delay 0.1")
    session.set_layer(basemap)
    start_following(session, until)
    session.escape()
    until(lambda: session.state is State.PAUSED)
    east = scenes.LAKE[0] + 3000
    session.add_point(east, scenes.LAKE[1], 0)
    until(
        lambda: session.shape and not session.shape.geometry.contains(point(east, scenes.LAKE[1]))
    )
    until(lambda: session.state is State.PAUSED)
    session.escape()
    until(lambda: session.results)
    box = session.results[0].shape.geometry.boundingBox()
    assert box.xMaximum() < scenes.LAKE[0] + 1600
    assert box.xMinimum() == pytest.approx(scenes.LAKE[0] - scenes.LAKE[2], abs=40)
    assert len(session.results[0].prompt["points"]) == 2


def test_cancel_leaves_nothing(session, basemap, until, plugin_settings):
    plugin_settings.setValue("geosam2/engineArguments", "--backend fake --delay 0.1")
    session.set_layer(basemap)
    start_following(session, until)
    session.cancel()
    assert session.state is State.EMPTY
    assert session.shape is None
    assert read_run() is None
    preview(session, until, *scenes.LAKE[:2])  # and the engine takes the next click
    assert session.results == []


def test_kill_of_the_engine_is_reported_and_the_run_resumes(
    session, basemap, until, plugin_settings
):
    plugin_settings.setValue("geosam2/engineArguments", "--backend fake --delay 0.1")
    session.set_layer(basemap)
    start_following(session, until)
    until(lambda: settings.checkpoint_path().exists())
    os.kill(session.engine.pid, signal.SIGKILL)
    until(lambda: session.troubles, seconds=10)
    assert session.troubles[0].kind == "engine_died"
    assert session.state is State.EMPTY
    session.troubles.clear()
    assert session.resumable()
    session.resume_run()
    until(lambda: session.results)
    check_lake(session.results[0])
    assert not session.resumable()


def test_after_a_kill_the_next_click_works(session, basemap, until):
    session.set_layer(basemap)
    lake_level(session)
    preview(session, until, *scenes.LAKE[:2])
    os.kill(session.engine.pid, signal.SIGKILL)
    until(lambda: session.troubles)
    session.troubles.clear()
    preview(session, until, *scenes.LAKE[:2])


@pytest.mark.parametrize("mode", ["404", "503"])
def test_missing_imagery_is_a_question_and_never_a_cut_polygon(
    session, basemap, server, until, mode
):
    session.set_layer(basemap)
    server.RequestHandlerClass.mood["mode"] = mode
    lake_level(session)
    session.add_point(*scenes.LAKE[:2], 1)
    until(lambda: session.holes)
    assert session.state is State.THINKING
    assert session.results == []
    server.RequestHandlerClass.mood["mode"] = "ok"
    session.retry()
    until(lambda: session.state is State.PREVIEW)
    session.accept()
    until(lambda: session.results)
    check_lake(session.results[0])


def test_missing_imagery_can_be_used_or_the_job_stopped(session, basemap, server, until):
    session.set_layer(basemap)
    server.RequestHandlerClass.mood["mode"] = "404"
    lake_level(session)
    cell = session.description.resolutions[session.level]
    session.add_point(scenes.LAKE[0], scenes.LAKE[1], 1)
    until(lambda: session.holes)
    session.cancel()
    assert session.state is State.EMPTY
    session.add_point(scenes.LAKE[0], scenes.LAKE[1], 1)
    until(lambda: len(session.holes) == 2)
    session.use_anyway()
    until(lambda: session.state is State.PREVIEW or session.troubles)
    if session.troubles:  # the click itself lies on a hole
        assert "no imagery" in session.troubles[0].message
        session.troubles.clear()
        session.reset()
        session.add_point(scenes.LAKE[0] + 256 * cell, scenes.LAKE[1], 1)
        until(lambda: len(session.holes) == 3)
        session.use_anyway()
        until(lambda: session.state is State.PREVIEW)
    assert session.shape.geometry.area() < 512 * 512 * cell * cell * 0.6


def test_removing_the_layer_in_the_middle_is_harmless(session, basemap, until, plugin_settings):
    from qgis.core import QgsProject

    plugin_settings.setValue("geosam2/engineArguments", "--backend fake --delay 0.1")
    session.set_layer(basemap)
    start_following(session, until)
    session.set_layer(None)
    QgsProject.instance().removeMapLayer(basemap.id())
    until(lambda: session.state is State.EMPTY)
    assert session.results == []
    forget_run()


# engines that do not work --------------------------------------------------------------------------


def script(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("program", "kind", "words"),
    [
        ("", "engine_missing", "no engine yet"),
        ("/no/such/python", "engine_start", "cannot be started: /no/such/python"),
        ("#!/bin/sh\necho '{\"op\":\"ready\",\"id\":null,\"protocol\":99,\"version\":\"9.9\"}'; cat", "engine_version", "protocol 99"),
        ("#!/bin/sh\necho 'python: No module named geosam2' >&2; exit 1", "engine_start", "has no geosam2"),
        ("#!/bin/sh\necho 'Illegal instruction' >&2; exit 132", "engine_start", "exit code 132"),
    ],
)  # fmt: skip
def test_engines_that_do_not_work_are_explained(
    session, raster, until, plugin_settings, tmp_path, program, kind, words
):
    if program.startswith("#!"):
        program = script(tmp_path / "python", program)
    plugin_settings.setValue("geosam2/python", program)
    session.set_layer(raster)
    for attempt in (1, 2):  # each click says it again, and nothing hangs
        session.add_point(*scenes.POND[:2], 1)
        until(lambda attempt=attempt: len(session.troubles) >= attempt)
        assert len(session.troubles) == attempt
        assert session.troubles[-1].kind == kind
        assert words in session.troubles[-1].message
        assert session.troubles[-1].hint
        assert session.state is State.EMPTY


def test_qgis_own_python_variables_do_not_reach_the_engine(session, raster, until, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/usr")
    monkeypatch.setenv("PYTHONPATH", "/usr/lib/python3/dist-packages")
    session.set_layer(raster)
    session.level = 0
    preview(session, until, *scenes.POND[:2])
