"""The zoom of a click: enlarged reads, agreement between zooms, and answers through Segmenter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.features import rasterize

import geosam2
from geosam2 import zoom
from geosam2.cache import EmbeddingCache
from geosam2.errors import LevelError
from geosam2.levels import Level, Window, enlarged
from geosam2.masklet import PanOptions
from geosam2.prompts import Prompt
from geosam2.propagate import Panning
from geosam2.scene import Scene
from geosam2.segmenter import Segmenter
from geosam2.testing import write_geotiff
from geosam2.testing.colour_model import ColourModel

CELL, LEFT, TOP, SIZE = 2.0, 500_000.0, 4_600_000.0, 640
SHIP = shapely.box(300, 210, 307, 216)
FIELD = shapely.Point(200, 330).buffer(70)


def on_map(x: float, y: float) -> tuple[float, float]:
    return LEFT + x * CELL, TOP - y * CELL


def to_map(shape: shapely.Geometry) -> shapely.Geometry:
    return shapely.transform(shape, lambda p: np.column_stack(on_map(p[:, 0], p[:, 1])))


def picture() -> np.ndarray:
    pixels = np.empty((3, SIZE, SIZE), np.uint8)
    pixels[:] = np.array((60, 110, 50), np.uint8)[:, None, None]
    for colour, shape in (((190, 60, 60), SHIP), ((230, 220, 60), FIELD)):
        pixels[:, rasterize([shape], (SIZE, SIZE)).astype(bool)] = np.array(colour)[:, None]
    noise = np.random.default_rng(0).integers(-6, 7, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def write(path: Path, pixels: np.ndarray, col: int = 0, row: int = 0) -> Path:
    affine = Affine(CELL, 0, LEFT + col * CELL, 0, -CELL, TOP - row * CELL)
    geobox = GeoBox(pixels.shape[1:], affine, "EPSG:32633")
    # a file's own overviews begin at its own corner; without them all levels lie on one lattice
    return write_geotiff(path, pixels, geobox, overviews=False)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("scene") / "scene.tif", picture())


def segmenter(path: Path | Scene, tolerance: float = 40.0) -> Segmenter:
    scene, model = geosam2.open_scene(path), ColourModel(128, tolerance)
    return Segmenter(scene, model, cache=EmbeddingCache(folder=None))  # type: ignore[arg-type]


def iou(a: shapely.Geometry, b: shapely.Geometry) -> float:
    return float(a.intersection(b).area / a.union(b).area)


@dataclass(frozen=True)
class Seen:
    """A mask of a made-up network."""

    level: Level
    window: Window
    logits: np.ndarray
    predicted_iou: float = 0.8
    stability: float = 0.9


# -- reading


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_enlarged_pixels_are_those_of_gdals_bilinear_reads(path: Path, factor: int) -> None:
    scene = geosam2.open_scene(path)
    level = enlarged(scene.levels[0], factor)
    native = scene.levels[0].extent
    inner = Window(native.row + 37, native.col + 101, 48, 64)
    window = Window(*(side * factor for side in inner))
    ours = scene.read_window(level, window)
    with rasterio.open(path) as file:  # a larger window: GDAL looks no further than its window
        theirs = file.read(
            window=((36, 86), (100, 166)),
            out_shape=(3, 50 * factor, 66 * factor),
            resampling=Resampling.bilinear,
        )[:, factor:-factor, factor:-factor]
    assert ours.pixels.shape == theirs.shape
    assert np.abs(ours.pixels.astype(int) - theirs).max() <= 1
    assert ours.valid.all()


def test_enlarged_windows_beyond_the_scene_are_not_valid(path: Path) -> None:
    scene = geosam2.open_scene(path)
    level = enlarged(scene.levels[0], 4)
    window = Window(level.extent.row - 8, level.extent.col, 32, 32)
    frame = scene.read_window(level, window)
    assert not frame.valid[:8].any()
    assert frame.valid[8:].all()
    assert not frame.pixels[:, :8].any()


def test_enlarged_pixels_beside_nodata_are_no_darker(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(90, 110, (3, 96, 96)).astype(np.uint8)
    pixels[:, 40:60, 30:] = 0
    affine = Affine(CELL, 0, LEFT, 0, -CELL, TOP)
    geobox = GeoBox((96, 96), affine, "EPSG:32633")
    path = write_geotiff(tmp_path / "holes.tif", pixels, geobox, overviews=False, nodata=0)
    scene = geosam2.open_scene(path, stretch="none")
    native = scene.levels[0].extent
    for factor in (2, 4):
        level = enlarged(scene.levels[0], factor)
        frame = scene.read_window(level, Window(*(side * factor for side in native)))
        assert frame.valid.sum() == (96 * 96 - 20 * 66) * factor**2
        assert frame.pixels[:, frame.valid].min() >= 90  # at the hole and at the scene's edge
        assert not frame.pixels[:, ~frame.valid].any()
        with rasterio.open(path) as file:
            out_shape = (3, 96 * factor, 96 * factor)
            theirs = file.read(out_shape=out_shape, resampling=Resampling.bilinear)
        inside = frame.valid & (theirs > 0).all(0)
        # at corners of holes GDAL weighs rows after columns, we all four pixels at once
        assert np.abs(frame.pixels.astype(int) - theirs)[:, inside].max() <= 3


def test_the_ladder_goes_from_enlarged_to_coarse(path: Path) -> None:
    levels = zoom.ladder(geosam2.open_scene(path))
    assert [level.label for level in levels] == ["x8", "x4", "x2", "native", "1/2"]
    assert [level.gsd for level in levels] == sorted(level.gsd for level in levels)


# -- agreement


def random_looks(path: Path) -> list[Seen]:
    """Blobs around one place at several zooms, in windows that are not aligned."""
    rng = np.random.default_rng(3)
    x, y = on_map(260, 240)
    found = []
    for level in zoom.ladder(geosam2.open_scene(path))[1:]:
        window = zoom.window_around(level, x, y, 64)
        row, col = level.pixel_at(x, y)
        rows, cols = np.mgrid[:16, :16] * 4 + 2.0
        for _ in range(2):
            radius = rng.uniform(4, 14)
            away = np.hypot(rows + window.row - row, cols + window.col - col)
            found.append(Seen(level, window, (radius - away).astype(np.float32)))
    return found


def painted(look: Seen, box: Window, finest: Level) -> np.ndarray:
    """A look's mask on a grid of the finest level."""
    step = round(look.level.cell_size / finest.cell_size)
    cells = np.kron(look.logits > 0, np.ones((4 * step, 4 * step), bool))
    found = np.zeros((box.height, box.width), bool)
    top, left = look.window.row * step - box.row, look.window.col * step - box.col
    found[top : top + cells.shape[0], left : left + cells.shape[1]] = cells
    return found


def test_agreement_is_the_iou_of_masks_painted_on_one_fine_grid(path: Path) -> None:
    looks = random_looks(path)
    finest = looks[0].level
    x, y = on_map(260, 240)
    row, col = (int(v) for v in finest.pixel_at(x, y))
    box = Window(row - 1024, col - 1024, 2048, 2048)
    full = [painted(look, box, finest) for look in looks]
    ours = zoom.agreements(looks)
    for i in range(len(looks)):
        for j in range(i):
            theirs = (full[i] & full[j]).sum() / (full[i] | full[j]).sum()
            # where cells are not nested, one is looked up under the other's middles
            assert ours[i, j] == pytest.approx(theirs, abs=0.02)
            assert ours[i, j] == ours[j, i]


def test_masks_that_return_at_several_zooms_win_over_a_single_boast(path: Path) -> None:
    levels = zoom.ladder(geosam2.open_scene(path))
    x, y = on_map(260, 240)

    def disc(level: Level, metres: float, iou: float) -> Seen:
        window = zoom.window_around(level, x, y, 256)
        row, col = level.pixel_at(x, y)
        rows, cols = np.mgrid[:64, :64] * 4 + 2.0
        away = np.hypot(rows + window.row - row, cols + window.col - col) * level.cell_size
        return Seen(level, window, (metres - away).astype(np.float32), iou)

    looks = [disc(levels[1], 4, 0.9), disc(levels[2], 20, 0.7), disc(levels[3], 21, 0.7),
             disc(levels[4], 60, 0.85)]  # fmt: skip
    assert int(zoom.scores(looks).argmax()) in (1, 2)
    assert zoom.distinct(looks)[0] in (1, 2)
    assert len(zoom.distinct(looks)) == 3  # the fourth is nearly the first one's twin


def test_an_empty_mask_is_never_chosen(path: Path) -> None:
    level = geosam2.open_scene(path).levels[0]
    window = zoom.window_around(level, *on_map(260, 240), 64)
    nothing = Seen(level, window, np.full((16, 16), -5, np.float32), 0.99)
    something = Seen(level, window, np.pad(np.ones((4, 4), np.float32), 6) - 0.5, 0.05)
    assert zoom.distinct([nothing, something]) == [1]


@pytest.mark.parametrize("toward", [0, 1, 3, 4])
def test_carried_logits_lie_where_they_were(path: Path, toward: int) -> None:
    levels = zoom.ladder(geosam2.open_scene(path))
    x, y = on_map(260, 240)
    level = levels[2]
    window = zoom.window_around(level, x, y, 256)
    xs = (window.col + np.arange(64) * 4 + 2.0) * level.resolution[0] + level.anchor[0]
    ys = level.anchor[1] - (window.row + np.arange(64) * 4 + 2.0) * level.resolution[1]
    plane = np.add.outer((ys - y) / 50, (xs - x) / 30).astype(np.float32)
    target = levels[toward]
    there = zoom.window_around(target, x, y, 256)
    moved = zoom.carried(Seen(level, window, plane), target, there)
    xs = (there.col + np.arange(64) * 4 + 2.0) * target.resolution[0] + target.anchor[0]
    ys = target.anchor[1] - (there.row + np.arange(64) * 4 + 2.0) * target.resolution[1]
    wanted = np.add.outer((ys - y) / 50, (xs - x) / 30)
    left, bottom, right, top = level.bounds_of(window)
    margin = 8 * max(level.cell_size, target.cell_size)
    inside = np.logical_and.outer((ys > bottom + margin) & (ys < top - margin),
                                  (xs > left + margin) & (xs < right - margin))  # fmt: skip
    outside = np.logical_or.outer((ys < bottom) | (ys > top), (xs < left) | (xs > right))
    assert inside.any()
    assert np.abs(moved - wanted)[inside].max() < 0.02
    assert not moved[outside].any()


# -- through the Segmenter


def test_a_ship_of_seven_pixels_is_enlarged(path: Path) -> None:
    one = segmenter(path)
    prompt = Prompt((on_map(303, 213),))
    native = one.predict(prompt, level=0)[0].polygon()
    (mask,) = one.predict(prompt, level="auto")
    assert mask.level.index < 0
    assert iou(mask.polygon(), to_map(SHIP)) > 0.85 > iou(native, to_map(SHIP)) + 0.1
    (masklet,) = one.objects([prompt])
    row = one.to_frame([masklet]).iloc[0]
    assert row.level == mask.level.label
    assert row.area_m2 == pytest.approx(SHIP.area * CELL**2, rel=0.15)


def test_answers_do_not_depend_on_the_extent_that_was_opened(path: Path, tmp_path: Path) -> None:
    part = write(tmp_path / "part.tif", picture()[:, 29:, 19:], col=19, row=29)
    for place in ((303, 213), (200, 330)):
        prompt = Prompt((on_map(*place),))
        left, top = on_map(170, 190)
        area = geosam2.open_scene(path).within((left, top - 400, left + 400, top))
        whole, cut, within = (
            segmenter(p).predict(prompt, level="auto")[0] for p in (path, part, area)
        )
        assert whole.window == cut.window == within.window
        assert whole.polygon().equals_exact(cut.polygon(), 1e-6)
        assert whole.polygon().equals_exact(within.polygon(), 1e-6)


def test_a_near_click_and_a_further_click_encode_nothing_new(path: Path) -> None:
    one = segmenter(path)
    one.predict(Prompt((on_map(303, 213),)), level="auto")
    encoded = one.encoder.encoded
    one.predict(Prompt((on_map(303.5, 213.5),)), level="auto")
    two = Prompt((on_map(303, 213), on_map(320, 200)), (1, 0))
    one.predict(two, level="auto")
    assert one.encoder.encoded == encoded


def test_answers_of_many_prompts_hold_no_encoded_frames(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [Prompt((on_map(x, y),)) for x, y in ((300, 300), (420, 130), (150, 400))]
    one = segmenter(path)
    together = one.predict(prompts, level="auto")
    for look in (*together, *one.looks(prompts[:1])[0]):
        assert not hasattr(look.frame, "features")
    monkeypatch.setattr("geosam2.segmenter.BATCH", 1)
    for a, b in zip(together, segmenter(path).predict(prompts, level="auto"), strict=True):
        assert a.level == b.level
        np.testing.assert_array_equal(a.logits, b.logits)


def test_one_more_click_costs_one_more_answer(path: Path) -> None:
    one = segmenter(path)
    calls: list[int] = []
    decode = one.model.decode
    one.model.decode = lambda *a, **k: calls.append(1) or decode(*a, **k)  # type: ignore[method-assign, func-returns-value, assignment]
    points = (on_map(303, 213), on_map(320, 200), on_map(290, 230))
    one.predict(Prompt(points[:2], (1, 0)), level="auto")
    calls.clear()
    (in_turn,) = one.predict(Prompt(points, (1, 0, 0)), level="auto")
    in_turn_calls = len(calls)
    fresh = segmenter(path)
    (at_once,) = fresh.predict(Prompt(points, (1, 0, 0)), level="auto")
    assert np.array_equal(in_turn.logits, at_once.logits)
    assert in_turn_calls <= 2 * zoom.NEAR + 1  # a decoding at each zoom near the answer before


def test_a_further_click_is_looked_at_near_the_zoom_of_the_answer_before(path: Path) -> None:
    scene, prompt = segmenter(path).scene, Prompt((on_map(303, 213),))
    everywhere = zoom.windows(scene, prompt, 64)
    for before, _ in everywhere:
        near = zoom.windows(scene, prompt, 64, before)
        assert near == [w for w in everywhere if abs(w[0].index - before.index) <= zoom.NEAR]
        assert len(near) < len(everywhere)
    beyond = enlarged(scene.levels[0], 4096)  # nowhere near: then all of them
    assert zoom.windows(scene, prompt, 64, beyond) == everywhere


def test_the_answer_that_was_used_last_is_forgotten_last(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geosam2.segmenter.LAST_ANSWERS", 2)
    one = segmenter(path)
    asked: list[Prompt] = []
    looks = one.looks
    monkeypatch.setattr(one, "looks", lambda prompts: asked.extend(prompts) or looks(prompts))
    on, off = on_map(303, 213), on_map(320, 200)
    first, other = Prompt((on,)), Prompt((on_map(200, 330),))
    for prompt in (first, other, Prompt((on, off), (1, 0)), Prompt((on, on_map(290, 230)), (1, 0))):
        one.predict(prompt, level="auto")
    times = sum(prompt.points == first.points for prompt in asked)
    assert times == 1  # kept over the other, which nobody came back to


def test_hundreds_of_clicks_on_one_object_are_answered(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = segmenter(path)
    single = one.looks([Prompt((on_map(303, 213),))])
    monkeypatch.setattr(zoom, "windows", lambda scene, prompt, side, before: [])
    monkeypatch.setattr(one, "_looks", lambda prompts, level: [single[0][:1]])
    points = tuple(on_map(303 + n / 1000, 213) for n in range(400))
    (found,) = one.predict(Prompt(points, (1,) * len(points)), level="auto")
    assert found.logits is single[0][0].logits


def test_a_background_click_far_away_leaves_the_object_alone(path: Path) -> None:
    one = segmenter(path)
    on, off = on_map(200, 330), on_map(303, 213)
    (mask,) = one.predict(Prompt((on, off), (1, 0)), level="auto")
    shape = mask.polygon()
    assert shape.contains(shapely.Point(on))
    assert not shape.intersects(shapely.Point(off))
    assert iou(shape, to_map(FIELD)) > 0.85


def test_a_box_says_how_large(path: Path) -> None:
    one = segmenter(path)
    left, top = on_map(298, 208)
    right, bottom = on_map(309, 218)
    prompt = Prompt(box=(left, bottom, right, top))
    looked = zoom.windows(one.scene, prompt, 64)
    assert looked
    for level, window in looked:
        share = (right - left) / (level.cell_size * window.width)
        assert zoom.FITS[0] <= share <= zoom.FITS[1]
    (mask,) = one.predict(prompt, level="auto")
    assert iou(mask.polygon(), to_map(SHIP)) > 0.85


def test_alternatives_of_any_zoom_differ(path: Path) -> None:
    one = segmenter(path)
    masks = one.alternatives(Prompt((on_map(303, 213),)), level="auto")
    table = zoom.agreements(masks)
    assert (table < 0.8).all()
    assert np.array_equal(masks[0].logits, one.predict(masks[0].prompt, level="auto")[0].logits)


def test_an_object_too_large_for_any_window_is_followed(path: Path, tmp_path: Path) -> None:
    pixels = picture()
    pixels[:, 100:400, :] = np.array((40, 70, 170), np.uint8)[:, None, None]
    one = segmenter(write(tmp_path / "river.tif", pixels))
    (masklet,) = one.objects([Prompt((on_map(250, 250),))], refine=False)
    shape = one.to_frame([masklet]).geometry[0]
    assert len(masklet.frames) > 1
    assert iou(shape, to_map(shapely.box(0, 100, 640, 400))) > 0.97


# -- narrow things are followed through enlarged pixels


@pytest.mark.parametrize(
    ("cells", "index", "wanted"),
    [
        (2, -3, -3),  # 8 enlarged pixels are narrow at every zoom
        (5, -3, -3),  # 20 pixels of x8 would be 10 of x4
        (11, -3, -2),
        (45, -3, 0),
        (5, -1, -1),
        (31, -1, 0),
        (1, 0, 0),  # nothing that was seen at native resolution or coarser is enlarged
        (1, 1, 1),
    ],
)
def test_narrow_things_are_followed_as_the_click_saw_them(
    path: Path, cells: int, index: int, wanted: int
) -> None:
    scene = geosam2.open_scene(path)
    levels = {level.index: level for level in zoom.ladder(scene)}
    logits = np.full((64, 64), -5, np.float32)
    logits[:, 20 : 20 + cells] = 5
    window = zoom.window_around(levels[index], *on_map(260, 240), 256)
    look = Seen(levels[index], window, logits)
    assert zoom.followed_at(scene, look) == levels[wanted]


def brook_at(x: float) -> float:
    return 480 + 60 * math.sin(x / 45)


@pytest.fixture(scope="module")
def brook(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, shapely.Geometry]:
    """Three pixels wide and a scene long."""
    x = np.linspace(-10, SIZE + 10, 400)
    line = shapely.LineString([(place, brook_at(place)) for place in x])
    shape = line.buffer(1.5)
    pixels = picture()
    pixels[:, rasterize([shape], (SIZE, SIZE)).astype(bool)] = np.array([[20], [60], [220]])
    whole = shape.intersection(shapely.box(0, 0, SIZE, SIZE))
    return write(tmp_path_factory.mktemp("brook") / "brook.tif", pixels), to_map(whole)


def test_a_brook_of_three_pixels_is_followed_to_its_ends(
    brook: tuple[Path, shapely.Geometry],
) -> None:
    path, truth = brook
    one = segmenter(path, tolerance=60)
    prompt = Prompt((on_map(320, brook_at(320)),))
    options = PanOptions(max_frames=400)
    native = one.start(prompt, level=0, options=options)
    list(native)
    (masklet,) = one.objects([prompt], options=options)
    row = one.to_frame([masklet]).iloc[0]
    assert masklet.level.index < 0
    assert row.level == masklet.level.label
    assert row.frames > 5
    assert row.open_edges == 0
    at_native = one.to_frame([native.masklet]).iloc[0].geometry
    assert iou(row.geometry, truth) > 0.8 > iou(at_native, truth) + 0.1


def test_a_further_click_on_a_brook_keeps_what_was_followed(
    brook: tuple[Path, shapely.Geometry],
) -> None:
    path, truth = brook
    places = [on_map(x, brook_at(x)) for x in (320, 520)]
    one = segmenter(path, tolerance=60)
    options = PanOptions(max_frames=400)
    prompts = [Prompt(tuple(places[:n]), (1,) * n) for n in (1, 2)]
    before, after = one.objects(prompts, options=options)
    assert after.level == before.level
    assert not after.open_edges
    assert iou(one.to_frame([after]).iloc[0].geometry, truth) > 0.8


def test_a_run_through_enlarged_pixels_is_saved_and_goes_on(
    brook: tuple[Path, shapely.Geometry], tmp_path: Path
) -> None:
    path, _ = brook
    one = segmenter(path, tolerance=60)
    prompt = Prompt((on_map(320, brook_at(320)),))
    straight, run = (one.start(prompt, options=PanOptions(max_frames=30)) for _ in range(2))
    list(straight)
    for _ in range(7):
        run.step()
    run.save(tmp_path / "run.safetensors")
    later = Panning.load(tmp_path / "run.safetensors", geosam2.open_scene(path), one.model)
    assert later.grid == run.grid
    list(later)
    a, b = (one.to_frame([r.masklet]).iloc[0].geometry for r in (straight, later))
    assert a.equals_exact(b, 1e-9)


def test_an_enlarged_level_of_another_scene_is_refused(path: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.tif", picture()[:, :-16])
    with pytest.raises(LevelError, match="x4 belongs to another scene"):
        geosam2.open_scene(path).level(enlarged(geosam2.open_scene(other).levels[0], 4))


def test_enlarged_levels_of_a_picture_without_a_place_on_the_map(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(picture().transpose(1, 2, 0)).save(tmp_path / "plain.png")
    scene = geosam2.open_scene(tmp_path / "plain.png", pixel_coordinates=True)
    assert all(scene.level(level) is level for level in zoom.ladder(scene))
    assert zoom.ladder(scene) == zoom.ladder(scene)


# -- benchmarks/zoom.py


def test_the_benchmark_notes_every_look_and_the_one_that_was_shown(
    benchmark: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    script = benchmark("zoom")
    cache = EmbeddingCache(folder=None)
    turns = list(script.watch(list(script.made_up(tmp_path, 1)), ColourModel(), 2, 2, cache))
    assert [turn.turn for turn in turns] == [0, 1, 0, 1]
    assert all(0 <= turn.chosen < len(turn.ious) == len(turn.levels) for turn in turns)
    best = script.mean_iou(turns, 0, lambda turn: int(turn.ious.argmax()))
    assert 0 < script.mean_iou(turns, 0, lambda turn: turn.chosen) <= best
