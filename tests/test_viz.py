from __future__ import annotations

import geopandas
import numpy as np
import pytest
import shapely
from PIL import Image

from geosam2 import testing, viz
from geosam2.errors import ExportError, GeoreferenceError
from geosam2.prompts import Prompt
from geosam2.scene import Scene, open_scene
from geosam2.stack import Stack


@pytest.fixture(scope="module")
def made():
    return testing.synthetic_scene(3, 1024, kinds=["lake", "field", "road"], frames=1)


@pytest.fixture(scope="module")
def scene(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("viz") / "scene.tif"
    return open_scene(testing.write_geotiff(path, made.pixels, made.geobox))


def _pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


def _layer(*shapes, crs="EPSG:32633"):
    return geopandas.GeoDataFrame({"id": range(1, len(shapes) + 1)}, geometry=list(shapes), crs=crs)


def _box_at(geobox, left, top, right, bottom):
    (x0, y0), (x1, y1) = (
        (geobox.transform.c + geobox.transform.a * c, geobox.transform.f + geobox.transform.e * r)
        for c, r in ((left, top), (right, bottom))
    )
    return shapely.box(x0, y1, x1, y0)


def test_imagery_lies_under_the_polygons_where_it_belongs(scene, made):
    picture = _pixels(viz.overlay(scene, _layer(), size=1024))
    assert picture.shape == (1024, 1024, 3)
    away = np.abs(picture - made.pixels.transpose(1, 2, 0))[:900]  # below is the scale bar
    assert away.mean() < 2


def test_outlines_are_drawn_at_their_place_and_holes_stay_clear(scene, made):
    square = _box_at(made.geobox, 300, 400, 700, 800)
    ring = square.difference(_box_at(made.geobox, 400, 500, 600, 700))
    options = {"size": 1024, "bounds": scene.bounds, "label": None, "fill": 0.5}
    plain = _pixels(viz.overlay(scene, _layer(), **options))
    drawn = _pixels(viz.overlay(scene, _layer(ring), **options))
    changed = np.abs(drawn - plain).sum(axis=2) > 30
    rows, cols = np.nonzero(changed)
    assert (rows.min(), rows.max()) == pytest.approx((400, 800), abs=4)
    assert (cols.min(), cols.max()) == pytest.approx((300, 700), abs=4)
    assert changed[450, 350:650].mean() > 0.95
    assert not changed[510:690, 410:590].any()


def test_results_in_another_crs_land_in_the_same_place(scene, made):
    main = made.truth[made.truth.main]
    here = _pixels(viz.overlay(scene, main, size=400))
    there = _pixels(viz.overlay(scene, main.to_crs(4326), size=400))
    assert np.abs(here - there).mean() < 1


def test_a_view_is_read_at_the_resolution_it_needs(scene, made, monkeypatch):
    shapes = []
    read = Scene.read
    monkeypatch.setattr(
        Scene,
        "read",
        lambda self, geobox, **k: shapes.append(tuple(geobox.shape)) or read(self, geobox, **k),
    )
    viz.overlay(scene, _layer(), size=256)
    viz.overlay(scene, _layer(_box_at(made.geobox, 500, 500, 540, 520)), size=256)
    assert shapes[0] == (256, 256)  # a quarter of the scene's resolution
    assert 64 <= max(shapes[1]) <= 128  # all there is of a small place


def test_objects_elsewhere_are_refused(scene):
    with pytest.raises(GeoreferenceError, match="lack their CRS"):
        viz.overlay(scene, _layer(shapely.box(0, 0, 1, 1)))


def test_labels_prompts_and_empty_geometries_are_drawn(scene, made):
    place = made.truth[made.truth.main].representative_point().iloc[0]
    prompt = Prompt(points=((place.x, place.y),), labels=(1,), crs="EPSG:32633")
    layer = _layer(made.truth.geometry.iloc[0], shapely.Polygon())
    figure = viz.overlay(scene, layer, prompts=[prompt], bounds=scene.bounds, size=512)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[0] == "1"
    assert texts[-1] == "100 m"  # a fifth of 512 m, rounded down
    green = (np.abs(_pixels(figure) - [0, 230, 118]).sum(axis=2) < 30).nonzero()
    row, col = np.mean(green, axis=1)
    x, y = made.geobox.transform.c + col, made.geobox.transform.f - row
    assert (x, y) == pytest.approx((place.x, place.y), abs=2)


def test_preview_is_written_whole_or_not_at_all(scene, made, tmp_path):
    path = viz.save_preview(scene, made.truth, tmp_path / "a.png", size=300)
    with Image.open(path) as picture:
        assert max(picture.size) == 300
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(ExportError, match=r"as \.png"):
        viz.save_preview(scene, made.truth, tmp_path / "a.gif")
    with pytest.raises(ExportError, match="could not be written"):
        viz.save_preview(scene, made.truth, tmp_path / "no" / "a.png", size=300)


def test_tiny_pictures_are_refused(scene):
    with pytest.raises(ValueError, match="at least 64"):
        viz.overlay(scene, _layer(), size=10)


def test_neighbouring_colours_differ():
    found = np.array(viz.colours(60))
    steps = np.abs(np.diff(found, axis=0)).sum(axis=1)
    assert steps.min() > 0.3
    assert found.min() >= 0
    assert found.max() <= 1


def test_each_date_is_drawn_with_its_own_outline(scene, made):
    stack = Stack(("1990", "2000"), (scene, scene))
    near, far = _box_at(made.geobox, 100, 100, 300, 300), _box_at(made.geobox, 700, 700, 900, 900)
    table = _layer(near, far).assign(date=["1990", "2000"])
    figure = viz.by_date(stack, table, bounds=scene.bounds, size=300)
    picture = _pixels(figure)
    assert picture.shape[1] == 600
    assert [axes.get_title() for axes in figure.axes] == ["1990", "2000"]
    plain = _pixels(viz.by_date(stack, table[:0], bounds=scene.bounds, size=300))
    changed = (picture != plain).any(2)
    assert np.nonzero(changed[:, :300])[1].max() < 120
    assert np.nonzero(changed[:, 300:])[1].min() > 180


def test_dates_are_written_whole_or_not_at_all(scene, tmp_path):
    stack = Stack(("1990", "2000"), (scene, scene))
    path = viz.save_dates(stack, _layer().assign(date=[]), tmp_path / "dates.png", size=100)
    with Image.open(path) as image:
        assert image.width == 200
    with pytest.raises(ExportError, match=r"written as \.png"):
        viz.save_dates(stack, _layer().assign(date=[]), tmp_path / "dates.bmp")
    assert [one.name for one in tmp_path.iterdir()] == ["dates.png"]
