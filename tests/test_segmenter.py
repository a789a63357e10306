"""Clicks on one frame, zoom, refinement, and objects as polygons."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.features import rasterize

import geosam2
from geosam2.cache import EmbeddingCache
from geosam2.errors import LevelError, PromptError
from geosam2.levels import level_from
from geosam2.masklet import PanOptions
from geosam2.prompts import Prompt
from geosam2.segmenter import COLUMNS, Segmenter
from geosam2.testing import write_geotiff
from geosam2.testing.colour_model import ColourModel

CELL, LEFT, TOP = 2.0, 500_000.0, 4_600_000.0
COLOURS = [(40, 70, 170), (190, 60, 60), (230, 220, 60)]


def on_map(x: float, y: float) -> tuple[float, float]:
    return LEFT + x * CELL, TOP - y * CELL


def to_map(shape: shapely.Geometry) -> shapely.Geometry:
    return shapely.transform(shape, lambda p: np.column_stack(on_map(p[:, 0], p[:, 1])))


def draw(path: Path, shapes: list[shapely.Geometry], size: int = 1024) -> Path:
    pixels = np.empty((3, size, size), np.uint8)
    pixels[:] = np.array((60, 110, 50), np.uint8)[:, None, None]
    for colour, shape in zip(COLOURS, shapes, strict=False):
        pixels[:, rasterize([shape], (size, size)).astype(bool)] = np.array(colour)[:, None]
    noise = np.random.default_rng(0).integers(-6, 7, pixels.shape)
    pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    geobox = GeoBox((size, size), Affine(CELL, 0, LEFT, 0, -CELL, TOP), "EPSG:32633")
    return write_geotiff(path, pixels, geobox)


HOUSE = shapely.box(100, 90, 130, 120)
LAKE = shapely.Point(560, 560).buffer(180)
BLOCK = shapely.box(200, 40, 260, 100)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("scene") / "scene.tif", [LAKE, HOUSE, BLOCK])


def segmenter(path, **kwargs):
    kwargs.setdefault("cache", EmbeddingCache(folder=None))
    return Segmenter(geosam2.open_scene(path), ColourModel(128), **kwargs)


def iou(a: shapely.Geometry, b: shapely.Geometry) -> float:
    return a.intersection(b).area / a.union(b).area


def test_a_click_on_a_house_gives_its_polygon(path):
    mask = segmenter(path).predict(Prompt(points=(on_map(115, 105),)))[0]
    assert iou(mask.polygon(), to_map(HOUSE)) > 0.85
    assert not mask.goes_on


def test_many_prompts_on_one_frame_are_decoded_together(path):
    one = segmenter(path)
    calls = []
    decode = one.model.decode
    one.model.decode = lambda *a, **k: calls.append(1) or decode(*a, **k)
    prompts = [Prompt(points=(on_map(100 + n, 105),), object_id=n) for n in range(1, 28)]
    masks = one.predict(prompts)
    assert [mask.prompt.object_id for mask in masks] == list(range(1, 28))
    assert len(calls) <= 6  # one or two frames, with two second thoughts each
    alone = one.predict(prompts[3])[0]
    assert np.array_equal(alone.logits, masks[3].logits)


def test_the_second_click_near_the_first_encodes_nothing(path):
    one = segmenter(path)
    one.predict(Prompt(points=(on_map(115, 105),)))
    encoded = one.encoder.encoded
    one.predict(Prompt(points=(on_map(112, 100),)))
    assert one.encoder.encoded == encoded


def test_alternatives_come_best_first(path):
    masks = segmenter(path).alternatives(Prompt(points=(on_map(115, 105),)))
    assert [mask.predicted_iou for mask in masks] == sorted(
        (mask.predicted_iou for mask in masks), reverse=True
    )
    assert len(masks) == 3


@pytest.mark.parametrize("level", [0, "auto"])
def test_a_sketch_is_one_decoding_of_the_very_click(path, level, monkeypatch):
    it = segmenter(path)
    calls, decode = [], it.model.decode
    monkeypatch.setattr(it.model, "decode", lambda *a, **k: calls.append(a) or decode(*a, **k))
    house, block = (Prompt((on_map(*at),), (1,)) for at in ((115, 105), (230, 70)))
    for prompt, shape in ((house, HOUSE), (block, BLOCK)):
        found = it.sketch(prompt, level=level)
        assert iou(found.polygon(), to_map(shape)) > 0.85
        assert found.prompt.points == prompt.points
    assert len(calls) == 2
    it.alternatives(house, level=level)
    assert len(calls) > 4  # the answer takes more


def test_a_sketch_of_the_second_click_looks_where_the_first_was_answered(path):
    it = segmenter(path)
    lake = Prompt((on_map(560, 560),), (1,))
    answer = it.predict(lake, level="auto")[0]
    more = Prompt((*lake.points, on_map(115, 105)), (1, 0))
    found = it.sketch(more, level="auto")
    assert found.level == answer.level
    assert found.prompt.points == more.points
    assert iou(found.polygon(), answer.polygon()) > 0.95


def test_zoom_takes_the_level_on_which_the_object_fits(path):
    one = segmenter(path)
    house, lake = one.predict(
        [Prompt(points=(on_map(115, 105),)), Prompt(points=(on_map(560, 560),))], level="auto"
    )
    assert house.level.index <= 1
    assert not house.goes_on
    assert lake.level.index == 2  # 360 pixels across: larger than any window, so the coarsest


def test_refining_looks_at_the_outline_only_and_sharpens_it(path):
    one = segmenter(path)
    prompt = Prompt(points=(on_map(560, 560),))
    coarse = one.predict(prompt, level=2)[0].masklet
    truth = to_map(LAKE)
    masklet, looked = coarse, []
    for run in one.refinements(coarse, max_frames=100):
        looked += [step.index for step in run]
        masklet = run.masklet
    assert masklet.level.index == 0
    frame = one.to_frame([coarse, masklet])
    assert iou(frame.geometry[1], truth) > 0.99
    assert iou(frame.geometry[1], truth) > iou(frame.geometry[0], truth)
    grid = one.grid(0)
    middle = grid.index_at(*on_map(560, 560))
    assert middle not in looked
    assert len(looked) < len(grid.crossing(truth))


def test_refining_heeds_the_clicks_that_were_made(path):
    one = segmenter(path)
    on, off = on_map(560, 500), on_map(560, 375)
    coarse = one.predict(Prompt((on, off), (1, 0)), level=1)[0].masklet
    told = []
    decode = one.model.decode
    one.model.decode = lambda f, p: told.append(p) or decode(f, p)
    (run,) = one.refinements(coarse)
    assert list(run)
    labels = [prompts.labels.flatten().tolist() for prompts in told]
    assert any(0 in some for some in labels)
    assert all(1 in some for some in labels)


def test_refining_stops_where_it_would_take_too_many_frames(path):
    one = segmenter(path)
    prompts = [Prompt(points=(on_map(560, 560),))]
    few = next(one.objects(prompts, options=PanOptions(max_frames=14)))
    assert few.level.index == 1


def test_segment_gives_the_promised_columns(path):
    found = geosam2.segment(
        str(path),
        points=[on_map(115, 105), on_map(230, 70)],
        model=ColourModel(128),
        cache=EmbeddingCache(folder=None),
    )
    assert list(found.columns) == [*COLUMNS, "geometry"]
    assert isinstance(found, geopandas.GeoDataFrame)
    assert found.crs.to_epsg() == 32633
    assert found.geometry.is_valid.all()
    assert list(found.id) == [1, 2]
    assert found.open_edges.tolist() == [0, 0]
    assert found.area_m2[1] == pytest.approx(BLOCK.area * CELL**2, rel=0.05)
    assert json.loads(found.prompt[0])[0]["points"] == [list(on_map(115, 105))]


def test_one_crs_or_another_gives_the_same_polygon(path):
    one = segmenter(path)
    x, y = on_map(115, 105)
    lon, lat = Transformer.from_crs(32633, 4326, always_xy=True).transform(x, y)
    a = one.segment([Prompt(points=((x, y),))]).geometry[0]
    b = one.segment([Prompt(points=((lon, lat),), crs=4326)]).geometry[0]
    assert iou(a, b) == pytest.approx(1, abs=1e-6)


def test_a_box_and_a_drawn_mask_find_the_house_too(path):
    left, top = on_map(98, 88)
    right, bottom = on_map(132, 122)
    found = segmenter(path).segment(
        [Prompt(box=(left, bottom, right, top)), Prompt(mask=to_map(HOUSE.buffer(-5)))], level=0
    )
    assert [iou(shape, to_map(HOUSE)) > 0.8 for shape in found.geometry] == [True, True]


@pytest.mark.parametrize(("preset", "share"), [("rapid", 0.125), ("high-res", 0.375), (None, 0.25)])
def test_presets_choose_the_overlap(path, preset, share):
    assert segmenter(path, preset=preset).overlap == 128 * share


def test_errors_name_the_remedy(path):
    with pytest.raises(PromptError, match="use 'rapid', 'high-res' or none"):
        segmenter(path, preset="slow")
    with pytest.raises(PromptError, match="give points=, boxes= or masks="):
        geosam2.segment(str(path))
    with pytest.raises(PromptError, match="at least one point on the object"):
        segmenter(path).predict(Prompt(points=(on_map(1, 1),), labels=(0,)))
    with pytest.raises(LevelError, match=r" has 0 \(native\), .* and x2, x4, x8 with enlarged"):
        level_from(geosam2.open_scene(path), "z17")


@pytest.mark.slow
def test_ten_thousand_prompts(path):
    rng = np.random.default_rng(1)
    spots = rng.uniform(30, 990, (10_000, 2))
    prompts = [Prompt(points=(on_map(x, y),), object_id=n) for n, (x, y) in enumerate(spots)]
    masks = segmenter(path).predict(prompts)
    assert [mask.prompt.object_id for mask in masks] == list(range(10_000))
