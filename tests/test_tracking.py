"""Objects through dates: grown, moved, gone, hidden; with a stand-in for the network."""

from __future__ import annotations

import math

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize

import geosam2
from geosam2 import export, tracking
from geosam2.cache import EmbeddingCache
from geosam2.errors import OptionError, PromptError
from geosam2.prompts import Prompt
from geosam2.stack import open_stack
from geosam2.testing import write_geotiff
from geosam2.testing.colour_model import ColourModel

SIDE, CELL, LEFT, TOP = 384, 10.0, 500_000.0, 4_600_000.0
GRID = GeoBox((SIDE, SIDE), Affine(CELL, 0, LEFT, 0, -CELL, TOP), "EPSG:32633")
WATER, GROUND = (30, 60, 140), (90, 120, 60)


def disc(col: float, row: float, radius: float) -> shapely.Polygon:
    """In map coordinates."""
    return shapely.Point(LEFT + col * CELL, TOP - row * CELL).buffer(radius * CELL)


def picture(lake: shapely.Geometry | None) -> np.ndarray:
    pixels = np.broadcast_to(np.array(GROUND)[:, None, None], (3, SIDE, SIDE)).copy()
    if lake is not None:
        inside = rasterize([lake], (SIDE, SIDE), transform=GRID.affine).astype(bool)
        pixels[:, inside] = np.array(WATER)[:, None]
    noise = np.random.default_rng(0).integers(-6, 7, pixels.shape)
    return (pixels + noise).clip(1, 255).astype(np.uint8)


def stack_of(folder, lakes, hidden=()):
    """Files 2001.tif, 2002.tif, ... with a lake each; None where there is none."""
    files = []
    for number, lake in enumerate(lakes):
        pixels = picture(lake)
        if number in hidden:
            pixels[:, 100:300, 100:300] = 0
        path = folder / f"{2001 + number}.tif"
        files.append(write_geotiff(path, pixels, GRID, nodata=0))
    return files


def iou(a: shapely.Geometry, b: shapely.Geometry) -> float:
    return shapely.intersection(a, b).area / shapely.union(a, b).area


def at(col: float, row: float) -> tuple[float, float]:
    return LEFT + col * CELL, TOP - row * CELL


MOVING = [disc(180, 200, 30), disc(195, 200, 34), disc(214, 200, 38), disc(236, 200, 42)]


@pytest.mark.parametrize("start", [0, 2, "2004"])
def test_an_object_that_grows_and_moves_is_found_at_every_date(tmp_path, start):
    files = stack_of(tmp_path, MOVING)
    middles = {0: (180, 200), 2: (214, 200), "2004": (236, 200)}
    found = geosam2.track(files, [at(*middles[start])], start=start, model=ColourModel())
    assert list(found.date) == ["2001", "2002", "2003", "2004"]
    assert [iou(a, b) > 0.93 for a, b in zip(found.geometry, MOVING, strict=True)] == [True] * 4
    assert found.found_by[geosam2.open_stack(files).number(start)] == "prompt"
    assert set(found.found_by) == {"prompt", "click"}
    assert found.crs == "EPSG:32633"


def test_a_click_alone_loses_what_has_moved_away(tmp_path):
    files = stack_of(tmp_path, MOVING)
    alone = geosam2.segment(files[3], [at(180, 200)], model=ColourModel())
    assert iou(alone.geometry[0], MOVING[3]) < 0.2
    followed = geosam2.track(files, [at(180, 200)], model=ColourModel())
    assert iou(followed.geometry[3], MOVING[3]) > 0.93


def test_without_an_agreeing_click_the_memory_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "AGREES", 2.0)
    found = geosam2.track(stack_of(tmp_path, MOVING), [at(180, 200)], model=ColourModel())
    assert list(found.found_by) == ["prompt", "memory", "memory", "memory"]
    assert min(map(iou, found.geometry, MOVING)) > 0.9


def test_what_is_gone_is_absent_and_found_when_it_is_back(tmp_path):
    lakes = [MOVING[0], None, MOVING[1]]
    found = geosam2.track(stack_of(tmp_path, lakes), [at(180, 200)], model=ColourModel())
    assert list(found.found_by) == ["prompt", "absent", "click"]
    assert found.geometry[1] is None
    assert found.area_m2[1] == 0
    assert iou(found.geometry[2], MOVING[1]) > 0.93


def test_what_cannot_be_seen_is_not_called_absent(tmp_path):
    files = stack_of(tmp_path, MOVING[:3], hidden=[1])
    found = geosam2.track(files, [at(180, 200)], model=ColourModel())
    assert list(found.found_by) == ["prompt", "no data", "click"]
    assert math.isnan(found.area_m2[1])


def test_an_object_that_outgrows_its_window_is_seen_from_further_away(tmp_path):
    lakes = [disc(190, 190, r) for r in (14, 24, 40, 66, 105)]
    found = geosam2.track(stack_of(tmp_path, lakes), [at(190, 190)], model=ColourModel(64))
    assert min(map(iou, found.geometry, lakes)) > 0.9


def test_objects_are_rows_in_order_and_have_the_columns_of_segment(tmp_path):
    files = stack_of(tmp_path, MOVING[:2])
    told = []
    found = geosam2.track(
        files,
        [at(180, 200), at(40, 40)],
        model=ColourModel(),
        on_date=lambda prompt, seen: told.append((prompt.object_id, seen.number)),
    )
    assert list(zip(found.object, found.date, strict=True)) == [
        (1, "2001"), (1, "2002"), (2, "2001"), (2, "2002"),
    ]  # fmt: skip
    assert told == [(1, 0), (1, 1), (2, 0), (2, 1)]
    alone = geosam2.segment(files[0], [at(180, 200)], model=ColourModel())
    assert set(alone) < set(found)
    assert found.source[1].endswith("2002.tif")


def test_dates_without_an_outline_survive_every_format(tmp_path):
    found = geosam2.track(
        stack_of(tmp_path, [MOVING[0], None]), [at(180, 200)], model=ColourModel()
    )
    for name in ("a.gpkg", "a.geojson", "a.parquet", "a.fgb"):
        export.write(found, tmp_path / name)
        read = (geopandas.read_parquet if name.endswith("parquet") else geopandas.read_file)(
            tmp_path / name
        )
        assert list(read.sort_values("date").found_by) == ["prompt", "absent"]
        assert sum(shape is None or shape.is_empty for shape in read.geometry) == 1


def test_a_box_and_pixel_coordinates_work(tmp_path):
    files = stack_of(tmp_path, MOVING[:2])
    left, bottom, right, top = MOVING[0].bounds
    found = geosam2.track(files, boxes=[(left, bottom, right, top)], model=ColourModel())
    assert min(map(iou, found.geometry, MOVING)) > 0.9
    scenes = [geosam2.open_scene(file, pixel_coordinates=True) for file in files]
    found = geosam2.track(scenes, [(180, -200)], dates=[1, 2], model=ColourModel())
    assert found.crs is None
    assert found.geometry[1].area == pytest.approx(math.pi * 34**2, rel=0.05)


def test_where_only_a_click_falls_on_a_hole_the_memory_stands(tmp_path):
    files = stack_of(tmp_path, MOVING[:2])
    pixels = picture(MOVING[1])
    pixels[:, 194:206, 174:186] = 0  # under the user's click
    write_geotiff(files[1], pixels, GRID, nodata=0)
    found = geosam2.track(files, [at(180, 200)], model=ColourModel())
    assert found.found_by[1] in ("click", "memory")
    assert iou(found.geometry[1], MOVING[1]) > 0.85


OTHER = disc(60, 300, 30)


def with_another(lakes):
    """The lakes, and from the second date on another one, far from the first."""
    return [lakes[0], *(shapely.union_all([lake, OTHER]) for lake in lakes[1:])]


def test_from_a_correction_on_the_object_is_what_it_shows(tmp_path):
    files = stack_of(tmp_path, with_another(MOVING))
    told = Prompt((at(60, 300),), crs=GRID.crs)
    found = geosam2.track(files, [at(180, 200)], corrections={"2003": told}, model=ColourModel())
    assert list(found.found_by) == ["prompt", "click", "prompt", "click"]
    for shape, wanted in zip(found.geometry, [*MOVING[:2], OTHER, OTHER], strict=True):
        assert iou(shape, wanted) > 0.9


def test_what_was_lost_is_found_again_by_a_correction(tmp_path):
    far = disc(300, 100, 30)
    files = stack_of(tmp_path, [MOVING[0], far, far, MOVING[0]])
    lost = geosam2.track(files, [at(180, 200)], start=3, model=ColourModel())
    assert list(lost.found_by) == ["click", "absent", "absent", "prompt"]
    told = {1: [Prompt((at(300, 100),), crs=GRID.crs, object_id=2)]}
    both = geosam2.track(
        files, [at(20, 20), at(180, 200)], start=3, corrections=told, model=ColourModel()
    )
    second = both[both.object == 2]
    # away from the start alone: the date between stays as it was
    assert list(second.found_by) == ["absent", "prompt", "absent", "prompt"]
    assert iou(second.geometry.iloc[1], far) > 0.9


def test_corrections_that_cannot_be_meant_are_refused(tmp_path):
    files = stack_of(tmp_path, MOVING[:3])
    told = Prompt((at(195, 200),), crs=GRID.crs)
    for corrections, error, words in (
        ({0: told}, PromptError, "object 1 has two prompts at 2001"),
        ({1: told, "2002": told}, PromptError, "object 1 has two prompts at 2002"),
        ({"1999": told}, OptionError, "no date '1999'"),
        ({1: (5, 6)}, PromptError, "correction at 2002 is .5, 6.: give a Prompt"),
        ({1: 5}, PromptError, "correction at 2002 is 5: give a Prompt"),
        ({1: Prompt(told.points, object_id=3)}, PromptError, "object 3, and there is 1: give its"),
        ({1: Prompt(told.points, (0,))}, PromptError, "at least one point on the object"),
    ):
        with pytest.raises(error, match=words):
            geosam2.track(files, [at(180, 200)], corrections=corrections, model=ColourModel())


def test_places_are_inside_areas_alone():
    touching = shapely.union_all([shapely.box(0, 0, 2, 2), shapely.LineString([(2, 1), (9, 1)])])
    x, y = tracking.deepest(tracking._areas(touching))
    assert (round(x, 2), round(y, 2)) == (1, 1)


class Blind(ColourModel):
    """Sees nothing at all."""

    def decode(self, *args, **kwargs):
        out = super().decode(*args, **kwargs)
        return type(out)(out.logits * 0 - 8, out.predicted_iou, out.object_score, out.pointer)


def test_a_prompt_that_shows_nothing_is_an_error_with_the_remedy(tmp_path):
    with pytest.raises(PromptError, match="nothing was found at the prompt on 2001"):
        geosam2.track(stack_of(tmp_path, MOVING[:2]), [at(180, 200)], model=Blind())


def test_bad_input_is_refused(tmp_path):
    files = stack_of(tmp_path, MOVING[:2])
    with pytest.raises(PromptError, match="nothing to follow"):
        geosam2.track(files, model=ColourModel())
    with pytest.raises(PromptError, match="outside"):
        geosam2.track(files, [(0, 0)], model=ColourModel())
    with pytest.raises(OptionError, match="no date '1999'"):
        geosam2.track(files, [at(180, 200)], start="1999", model=ColourModel())


def test_the_embedded_model_follows_a_lake(tmp_path):
    stack = open_stack(stack_of(tmp_path, MOVING[:3]))
    tracker = tracking.Tracker(stack, cache=EmbeddingCache(folder=None))
    for seen in tracker.follow(Prompt((at(180, 200),), (1,), crs="EPSG:32633")):
        assert seen.masklet is not None
        assert iou(tracking.outline_of(seen.masklet), MOVING[seen.number]) > 0.85


def test_labels_are_chained_by_what_they_share(benchmark):
    first = np.zeros((9, 9), np.uint16)
    first[2:5, 2:6] = 4
    second, third = np.zeros_like(first), np.zeros_like(first)
    second[2:5, 3:7] = 9
    third[7:, 7:] = 2
    labels = benchmark("dates").Labels([first, second, third], Affine.identity())
    (chain,) = labels.chains(0)
    assert sorted(chain) == [0, 1]
    assert (chain[1] == (second == 9)).all()
