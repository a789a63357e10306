"""A whole scene: every object once, whatever the blocks; the final layer; bulk; likeness."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import geopandas
import numpy as np
import pytest
import shapely
import torch
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize
from torch.nn.functional import avg_pool2d

from geosam2 import quality
from geosam2.bulk import segment_prompts
from geosam2.calibration import estimate
from geosam2.cluster import InProcess, prepare
from geosam2.errors import GeoSAM2Error, LevelError, PromptError, SourceError
from geosam2.everything import collect, identity, plan, segment_everything, start, tables
from geosam2.levels import ground_size
from geosam2.part_table import read_parts, write_parts
from geosam2.parts import crop_part
from geosam2.scene import open_scene
from geosam2.settling import Object
from geosam2.similar import find_similar
from geosam2.steps import _cut_straight, _wanted
from geosam2.testing import write_geotiff
from geosam2.testing.oracle import ColourOracle, colour_scene
from geosam2.tiling import FrameIndex

CHOICES = {
    "model": ColourOracle(),
    "frame_size": 128,
    "overlap": 32,
    "points": (12,),
    "coverage": (),
    "min_region": 16,
}
SHAPE = (400, 520)
GEOBOX = GeoBox(SHAPE, Affine(0.5, 0, 500000, 0, -0.5, 4600000), "EPSG:32633")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Path of a colour scene, and the ids of its objects."""
    pixels, ids = colour_scene(SHAPE, 24, seed=4, size=(30, 200))
    return write_geotiff(tmp_path_factory.mktemp("scene") / "s.tif", pixels, GEOBOX), ids


@pytest.fixture(scope="module")
def everything(scene):
    return segment_everything(scene[0], block=2, **CHOICES)


def iou_of(table: geopandas.GeoDataFrame, ids: np.ndarray, least: int = 800) -> dict[int, float]:
    """Best IoU of each true object."""
    drawn = rasterize(
        zip(table.geometry, table.id, strict=True), out_shape=ids.shape, transform=GEOBOX.affine
    )
    out = {}
    for i in np.unique(ids)[1:]:
        mask = ids == i
        if mask.sum() < least:
            continue
        j = np.bincount(drawn[mask]).argmax()
        out[int(i)] = float((mask & (drawn == j)).sum() / (mask | (drawn == j)).sum()) if j else 0.0
    return out


def test_every_object_comes_out_whole_and_once(scene, everything):
    ious = iou_of(everything, scene[1])
    assert len(ious) >= 12
    assert np.mean(list(ious.values())) > 0.93
    assert min(ious.values()) > 0.75
    assert everything.id.tolist() == list(range(1, len(everything) + 1))
    assert everything.frames.max() >= 6
    assert (everything.open_edges == 0).mean() > 0.9  # but for slivers too thin for some frame
    assert everything.attrs["left_out"] == []


def test_the_layer_is_a_coverage(everything):
    shapes = np.asarray(everything.geometry)
    assert shapely.is_valid(shapes).all()
    assert shapely.coverage_is_valid(shapes)
    touching = shapely.STRtree(shapes).query(shapes, predicate="touches")
    assert touching.shape[1] > 0  # there are neighbours, and they share edges


@pytest.mark.parametrize(("overlap", "stays"), [(64, False), (32, True)])
def test_what_one_frame_saw_cut_by_its_border_is_dropped(scene, tmp_path, overlap, stays):
    """If frames share half of their pixels: the next one has its middle where this one ends."""
    choices = CHOICES | {"overlap": overlap, "judge": False, "features": False}
    job = plan(scene[0], tmp_path / "run", block=8, **choices)
    frame = (job.grid.first.row + 1, job.grid.first.col + 1)
    block = job.blocks.block_of(frame)
    prepare(job, identity(job), resume=False)
    job.do(("find", block))
    parts = read_parts(job.path("find", block))
    box, logits = job.layout.frame(frame), np.full((32, 32), -80, np.int8)
    logits[12:19, 25:] = 80  # up to the eastern border, and the next frame saw nothing of it
    rank = sum(part.frame == frame for part in parts)
    seen = {"frame": frame, "rank": rank, "predicted_iou": 1.0, "stability": 1.0}
    parts.append(crop_part(logits, box, box, **seen))
    write_parts(job.path("find", block), sorted(parts, key=lambda part: part.key), figures={})
    for _ in start(job, InProcess(), resume=True):
        pass
    names = {name for table in tables(job) for name in table["name"]}
    assert ("{}_{}_{}".format(*frame, rank) in names) == stays


def test_what_ends_in_straight_lines_along_frames_is_no_thing(scene, tmp_path):
    choices = CHOICES | {"judge": False}
    job = plan(scene[0], tmp_path, block=2, **choices | {"overlap": 64})
    first = job.grid.first
    left, bottom, right, top = job.grid.bounds(FrameIndex(first.row + 1, first.col + 1))
    water = shapely.box(left, bottom, right, top)
    cut = {"geometry": water, "open_edges": 3}
    assert not _cut_straight(cut, job)  # no frame was looked at: a later run may go on there
    for block in job.blocks.in_order():
        job.path("find", block).parent.mkdir(exist_ok=True)
        job.path("find", block).touch()
    assert _cut_straight(cut, job)
    assert not _cut_straight(cut | {"open_edges": 0}, job)  # it ends where the water ends
    elsewhere = shapely.transform(water, lambda xy: xy + 2.5)
    assert not _cut_straight(cut | {"geometry": elsewhere}, job)
    left, bottom, _, top = job.grid.bounds(first)
    edge = shapely.box(left, bottom + 7, left + 10, top - 7)  # behind it there are no frames
    assert not _cut_straight(cut | {"geometry": edge}, job)
    assert not _cut_straight(cut, plan(scene[0], tmp_path, block=2, **choices))


def test_frames_that_share_half_lose_no_object(scene):
    table = segment_everything(scene[0], block=2, **(CHOICES | {"overlap": 64}))
    ious = iou_of(table, scene[1])
    assert min(ious.values()) > 0.75
    region = shapely.box(500030, 4599870, 500150, 4599960)  # frames beyond it are not looked at
    some = segment_everything(scene[0], block=2, roi=region, **(CHOICES | {"overlap": 64}))
    inside = table.geometry[table.intersection(region).area > 0.6 * table.area]
    assert len(quality.matches(np.asarray(some.geometry), np.asarray(inside), 0.5)) == len(inside)


def test_areas_are_geodesic_and_in_square_metres(everything):
    utm_scale = 0.9996  # on the central meridian
    np.testing.assert_allclose(
        everything.area_m2, everything.geometry.area / utm_scale**2, rtol=2e-3
    )


def test_small_objects_are_found_through_enlarged_pixels(tmp_path):
    pixels, ids = colour_scene((96, 128), 10, seed=1, size=(8, 20))
    geobox = GeoBox(ids.shape, GEOBOX.affine, GEOBOX.crs)
    path = write_geotiff(tmp_path / "small.tif", pixels, geobox)
    means = {}
    for level in (0, "x4"):
        table = segment_everything(path, level=level, **CHOICES)
        means[level] = np.mean(list(iou_of(table, ids, least=40).values()))
    assert means["x4"] > max(0.85, means[0] + 0.1)
    assert set(table.level) == {"x4"}


@pytest.mark.parametrize("block", [1, 3, 8])
def test_blocks_change_no_more_than_the_corners_on_their_outline(scene, everything, block):
    other = segment_everything(scene[0], block=block, **CHOICES)
    assert len(other) == len(everything)
    mine = everything.set_index(everything.geometry.representative_point().to_wkt()).geometry
    tree = shapely.STRtree(np.asarray(other.geometry))
    for shape in mine:
        twin = other.geometry.iloc[tree.nearest(shape.representative_point())]
        common = shapely.intersection(shape, twin).area
        assert common / shapely.union(shape, twin).area > 0.95


def test_the_order_of_steps_changes_nothing(scene, everything, tmp_path):
    class Backwards(InProcess):
        """Does many steps at a time, the last one first."""

        @property
        def capacity(self) -> int:
            return 5

        def next_done(self):
            self._waiting.reverse()
            return super().next_done()

    job = plan(scene[0], tmp_path, block=2, **CHOICES)
    list(start(job, Backwards()))
    other = collect(job)
    assert shapely.equals_exact(np.asarray(other.geometry), np.asarray(everything.geometry)).all()
    assert other.drop(columns="geometry").equals(everything.drop(columns="geometry"))


def test_the_result_does_not_depend_on_what_was_opened(scene, everything):
    """Objects away from the edge of a crop are those of the whole scene."""
    import geosam2

    left, bottom, right, top = GEOBOX.boundingbox.bbox
    part = geosam2.open_scene(scene[0], bounds=(left, bottom, right - 60, top))
    cropped = segment_everything(part, block=2, **CHOICES)
    inner = shapely.box(left, bottom, right - 120, top)
    here = [g for g in cropped.geometry if inner.contains(g)]
    there = [g for g in everything.geometry if inner.contains(g)]
    assert len(here) == len(there) > 5
    for shape in here:
        best = max(there, key=lambda g: g.intersection(shape).area)
        assert shape.symmetric_difference(best).area < 0.02 * shape.area


def test_area_limits_hold_for_the_polygons(scene, everything):
    some = segment_everything(scene[0], min_area_m2=200, max_area_m2=2000, **CHOICES)
    assert some.area_m2.between(200, 2000).all()
    assert len(some) == everything.area_m2.between(200, 2000).sum()


def test_nothing_is_said_of_square_metres_in_pixel_coordinates(scene, everything, tmp_path):
    from rasterio import open as read

    path = tmp_path / "nowhere.tif"
    with read(scene[0]) as source, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rasterio finds it strange, too
        profile = source.profile | {"crs": None, "transform": Affine.identity()}
        with read(path, "w", **profile) as sink:
            sink.write(source.read())
    nowhere = open_scene(path, pixel_coordinates=True)
    found = segment_everything(nowhere, min_area_m2=400, **CHOICES)
    assert found.area_m2.isna().all()
    assert found.geometry.area.min() >= 400
    points = geopandas.GeoDataFrame(geometry=found.representative_point())
    assert segment_prompts(nowhere, points, model=ColourOracle()).area_m2.isna().all()


def test_a_region_of_interest_saves_work_and_keeps_whole_objects(scene, everything):
    left, bottom, _, top = GEOBOX.boundingbox.bbox
    region = shapely.box(left, bottom, left + 90, top)
    roi = geopandas.GeoSeries([region], crs="EPSG:32633").to_crs(4326)
    some = segment_everything(scene[0], roi=roi, **CHOICES)
    share = some.geometry.intersection(region).area / some.geometry.area
    assert 0 < len(some) < len(everything)
    assert (share > 0.49).all()


def test_a_region_does_not_reach_beyond_the_scenes_bounds(scene):
    left, bottom, right, top = GEOBOX.boundingbox.bbox
    opened = open_scene(scene[0], bounds=(left, bottom, left + 90, top))
    wide = shapely.box(left, bottom, right, top)
    some = segment_everything(opened, **CHOICES)
    both = segment_everything(opened, roi=wide, **CHOICES)
    assert len(both) == len(some)
    assert len(quality.matches(np.asarray(both.geometry), np.asarray(some.geometry), 0.95)) > 6
    with pytest.raises(PromptError, match="outside the scene"):
        segment_everything(opened, roi=shapely.box(right - 20, bottom, right, top), **CHOICES)


def test_a_region_whose_parts_lie_far_apart_is_refused(tmp_path):
    """Both sides of the antimeridian: the box around them is the world."""
    sides = [shapely.box(179.99, 10, 180, 10.01), shapely.box(-180, 10, -179.99, 10.01)]
    roi = geopandas.GeoSeries([shapely.union_all(sides)], crs=4326)
    world = open_scene("https://127.0.0.1:9/{z}/{x}/{y}.png", max_zoom=18)
    with pytest.raises(PromptError, match="run them one by one"):
        plan(world, tmp_path, roi=roi, **CHOICES)


def test_a_region_with_a_bow_tie_is_mended(scene, tmp_path):
    left, bottom, _, top = GEOBOX.boundingbox.bbox
    ring = [(left, bottom), (left + 80, top), (left + 80, bottom), (left, top)]
    roi = geopandas.GeoSeries([shapely.Polygon(ring)], crs="EPSG:32633")
    area = plan(scene[0], tmp_path, roi=roi, **CHOICES).area
    assert area.is_valid
    assert area.area == pytest.approx(40 * (top - bottom))


def test_no_more_tiles_are_asked_for_than_allowed(tmp_path):
    world = open_scene("https://127.0.0.1:9/{z}/{x}/{y}.png", max_zoom=12, max_tiles=50)
    job = plan(world, tmp_path, **CHOICES)
    with pytest.raises(LevelError, match="max_tiles=50"):
        next(start(job, InProcess()))


def test_large_areas_are_those_of_their_latitude(tmp_path):
    """In Web Mercator the middle of the source says nothing about the ground far from it."""
    world = open_scene("https://127.0.0.1:9/{z}/{x}/{y}.png", max_zoom=18)
    near = world.within((0, 60, 0.001, 60.001), crs=4326)
    job = plan(near, tmp_path, max_area_m2=1000, **CHOICES)
    pixels = 800 / ground_size(near.crs, 0, 8399737.89, job.grid.level.resolution) ** 2
    name = (*job.grid.first, 0)
    found = Object(name, (name,), pixels, 0.9, 0.9, 1, 0, 1.0, None)
    assert _wanted(job, found)
    assert not _wanted(job, replace(found, area=4 * pixels))


def test_parts_may_overlap_and_know_their_parent(tmp_path):
    pixels = np.zeros((3, *SHAPE), np.uint8)
    pixels[:, 40:300, 40:420] = np.array([10, 120, 60])[:, None, None]  # a yard over many frames
    pixels[:, 100:160, 80:240] = np.array([200, 20, 20])[:, None, None]  # a shed in it

    class Filled(ColourOracle):
        """Sees the yard with what stands in it."""

        def decode(self, features, prompts, multimask=True):
            answer = super().decode(features, prompts, multimask)
            image = features.images[0]
            filled = ((image[1] == 120) | (image[0] == 200)).float()
            yard = (avg_pool2d(filled[None], 4) - 0.47) * 64
            x, y = prompts.points[:, 0].round().long().T
            on_yard = (image[1, y.clamp(0, 127), x.clamp(0, 127)] == 120)[:, None, None, None]
            return answer._replace(logits=torch.where(on_yard, yard, answer.logits))

    path = write_geotiff(tmp_path / "yard.tif", pixels, GEOBOX)
    choices = {**CHOICES, "model": Filled(), "block": 2}
    parts = segment_everything(path, layer="parts", **choices)
    yard, shed = parts.sort_values("area_m2", ascending=False).itertuples()
    assert shed.parent == yard.id
    assert yard.parent == 0
    assert yard.geometry.contains(shed.geometry.buffer(-1))
    assert yard.area_m2 == pytest.approx(260 * 380 / 4, rel=0.01)
    flat = segment_everything(path, layer="flat", **choices)
    assert flat.area_m2.sum() == pytest.approx(260 * 380 / 4, rel=0.01)
    assert shapely.coverage_is_valid(np.asarray(flat.geometry))


def test_a_scene_without_objects_or_data_gives_an_empty_table(everything, tmp_path):
    path = write_geotiff(tmp_path / "e.tif", np.zeros((3, *SHAPE), np.uint8), GEOBOX)
    table = segment_everything(path, **CHOICES)
    assert len(table) == 0
    assert table.crs == "EPSG:32633"
    assert table.dtypes.to_dict() == everything.dtypes.to_dict()
    assert list(table.columns) == list(everything.columns)
    nodata = write_geotiff(tmp_path / "n.tif", np.zeros((3, *SHAPE), np.uint8), GEOBOX, nodata=0)
    assert len(segment_everything(nodata, **CHOICES)) == 0


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"min_iuo": 0.5}, PromptError, "unknown option min_iuo; choose from"),
        ({"overlap": 80}, LevelError, "multiples of 16"),
        ({"block": 0}, PromptError, "a whole number of frames"),
        ({"block": 1.5}, PromptError, "a whole number of frames"),
        ({"points": 4}, PromptError, "1 to 3 whole numbers"),
        ({"roi": (0, 0, 1, 1)}, PromptError, "tuple; give a polygon"),
        ({"workers": -1}, PromptError, "0 works in this process"),
        ({"model": 3}, PromptError, "give a name, a path, a model"),
        ({"roi": shapely.Point(500001, 4599990)}, PromptError, "without an area"),
        ({"level": 99}, LevelError, "there is no level 99"),
        ({"level": "auto"}, LevelError, "number or label"),
    ],
)
def test_wrong_options_say_what_to_do(scene, wrong, error, says):
    with pytest.raises(error, match=says):
        segment_everything(scene[0], **{**CHOICES, **wrong})


def test_an_unfinished_run_is_not_overwritten_and_not_mixed(scene, tmp_path):
    job = plan(scene[0], tmp_path, block=2, **CHOICES)
    next(start(job, InProcess()))
    with pytest.raises(GeoSAM2Error, match="resume=True"):
        next(start(job, InProcess()))
    left, bottom, right, top = GEOBOX.boundingbox.bbox
    smaller = open_scene(scene[0], bounds=(left + 2, bottom, right, top))
    with pytest.raises(GeoSAM2Error, match=r"another run \(bounds"):
        next(start(plan(smaller, tmp_path, block=2, **CHOICES), InProcess(), resume=True))
    other = plan(scene[0], tmp_path, block=3, **CHOICES)
    with pytest.raises(GeoSAM2Error, match=r"another run \(block: 2, now 3\)"):
        next(start(other, InProcess(), resume=True))


def test_an_estimate_leaves_nothing_behind(scene, tmp_path):
    job = plan(scene[0], tmp_path, block=2, **CHOICES)
    found = estimate(job, workers=2, samples=2)
    assert found.frames == len(job.grid)
    assert found.seconds == pytest.approx(
        found.frames * (found.seconds_read + found.seconds_network) * 1.05 / 2
    )
    assert found.bytes > 0
    assert list(tmp_path.iterdir()) == []


# --- many prompts, and more of the same


def inside_points(ids: np.ndarray) -> geopandas.GeoDataFrame:
    rows = []
    for i in np.unique(ids)[1:]:
        r, c = np.nonzero(ids == i)
        k = len(r) // 2
        if len(r) > 800:
            rows.append((int(i), *(GEOBOX.affine * (c[k] + 0.5, r[k] + 0.5))))
    n, x, y = zip(*rows, strict=True)
    return geopandas.GeoDataFrame({"name": n}, geometry=geopandas.points_from_xy(x, y, crs=32633))


@pytest.fixture(scope="module")
def answered(scene):
    points = inside_points(scene[1])
    return points, segment_prompts(scene[0], points.to_crs(4326), model=FullSize())


class FullSize(ColourOracle):
    """Frames of 512 pixels, as a stand-in without a config has them."""


def test_many_points_give_one_polygon_each_in_their_order(scene, answered):
    points, found = answered
    assert found.name.tolist() == points.name.tolist()
    assert found.crs == "EPSG:32633"
    for name, point, shape in zip(points.name, points.geometry, found.geometry, strict=True):
        area = (scene[1] == name).sum() / 4
        assert shape.distance(point) < 1
        assert shape.area == pytest.approx(area, rel=0.1)


def test_prompts_on_a_dask_client_give_what_this_process_gives(scene, answered, dask_client):
    found = segment_prompts(scene[0], answered[0], model=FullSize(), client=dask_client)
    assert found.drop(columns="geometry").equals(answered[1].drop(columns="geometry"))
    assert shapely.equals_exact(np.asarray(found.geometry), np.asarray(answered[1].geometry)).all()


def test_prompts_may_share_an_index(scene):
    """As after joining two layers: rows stay rows."""
    points = inside_points(scene[1])
    twice = points.set_index(np.zeros(len(points), int)).assign(name=range(len(points)))
    found = segment_prompts(scene[0], twice, model=ColourOracle())
    assert found.name.tolist() == list(range(len(points)))
    assert found.index.tolist() == [0] * len(points)
    places = np.asarray(points.to_crs(found.crs).geometry)
    assert shapely.covers(shapely.buffer(np.asarray(found.geometry), 1), places).mean() > 0.9


def test_prompts_are_resumed_block_by_block_and_failures_are_named(scene, tmp_path):
    class Small(ColourOracle):
        """Frames small enough that the scene has several blocks of them."""

        @property
        def config(self):
            return type("Config", (), {"image_size": 128})

    class Broken(Small):
        def encode(self, pixels):
            raise OSError("out of paper")

    points = inside_points(scene[1])
    whole = segment_prompts(scene[0], points, model=Small())
    seen = []
    choices = {"folder": tmp_path, "progress": lambda done, _: seen.append(done)}
    segment_prompts(scene[0], points, model=Small(), **choices)
    files = sorted(tmp_path.glob("answered/*"))
    assert len(files) > 2
    assert seen[-1] == len(points)
    with pytest.raises(GeoSAM2Error, match="resume=True"):
        segment_prompts(scene[0], points, model=Small(), **choices)
    with pytest.raises(GeoSAM2Error, match="another run"):
        segment_prompts(scene[0], points[1:], model=Small(), resume=True, **choices)
    files[1].unlink()
    seen.clear()
    partly = segment_prompts(scene[0], points, model=Broken(), resume=True, **choices)
    assert len(seen) == 1
    assert partly.attrs["left_out"] == [f"block {files[1].stem} (out of paper)"]
    assert 0 < partly.geometry.is_empty.sum() < len(points)
    assert partly.score.isna().sum() == partly.geometry.is_empty.sum()
    again = segment_prompts(scene[0], points, model=Small(), resume=True, **choices)
    assert again.attrs["left_out"] == []
    assert shapely.equals_exact(np.asarray(again.geometry), np.asarray(whole.geometry)).all()


def test_boxes_may_be_prompts(scene):
    seen = []

    class Boxed(ColourOracle):
        def decode(self, features, prompts, multimask=True):
            from geosam2_model import Prompts

            assert not multimask
            seen.append(prompts.boxes)
            centres = prompts.boxes.reshape(-1, 2, 2).mean(1, keepdim=True)
            return super().decode(
                features,
                Prompts(points=centres, labels=prompts.boxes.new_ones(len(centres), 1).long()),
            )

    points = inside_points(scene[1])
    boxes = points.set_geometry(points.buffer(2, cap_style="square"))
    found = segment_prompts(scene[0], boxes, model=Boxed())
    assert all((b[:, 2:] - b[:, :2]).mean() == pytest.approx(8) for b in seen)  # 4 m are 8 px
    assert (found.predicted_iou > 0.9).all()


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (geopandas.GeoDataFrame(geometry=[], crs=32633), "no prompts"),
        (geopandas.GeoDataFrame(geometry=[shapely.Point(0, 0)], crs=32633), "outside the scene"),
        (
            geopandas.GeoDataFrame(geometry=[shapely.LineString([(0, 0), (1, 1)])], crs=32633),
            "give a layer of points",
        ),
        (
            geopandas.GeoDataFrame(geometry=[shapely.Point()], crs=32633),
            "row 0 of the prompts has no",
        ),
    ],
)
def test_layers_that_cannot_be_prompts_are_refused(scene, layer, says):
    with pytest.raises(PromptError, match=says):
        segment_prompts(scene[0], layer, model=ColourOracle())


def test_likeness_follows_the_features(everything):
    red = [row[0] for row in everything.feature]
    example = int(everything.id[int(np.argmax(red))])
    ranked = find_similar(everything, [example])
    assert ranked.id.iloc[0] == example
    assert ranked.example.sum() == 1
    assert ranked.similarity.is_monotonic_decreasing
    same = find_similar(everything, everything.geometry[everything.id == example].to_crs(4326))
    inside = everything.geometry[everything.id == example].representative_point()
    assert find_similar(everything, inside).id.tolist() == ranked.id.tolist()
    assert same.id.tolist() == ranked.id.tolist()


def test_examples_must_fit_something(everything):
    with pytest.raises(PromptError, match="draw them on objects"):
        find_similar(everything, [shapely.box(0, 0, 1, 1)])
    with pytest.raises(PromptError, match="no object with id 9999"):
        find_similar(everything, [9999])
    with pytest.raises(PromptError, match="features=True"):
        find_similar(everything.drop(columns="feature"), [1])


# --- command line


def test_the_command_writes_streams_and_cleans_up(scene, tmp_path, monkeypatch):
    from click.testing import CliRunner

    import geosam2.everything as module
    from geosam2.commands.everything import command

    monkeypatch.setattr(module, "NamedModel", lambda name, device: ColourOracle())
    path, out = str(scene[0]), tmp_path / "out.geojson"
    args = [path, "-o", str(out), "--points", "8", "--no-judge", "--no-coverage"]
    done = CliRunner().invoke(command, args, catch_exceptions=False)
    assert done.exit_code == 0
    assert "objects" in done.stderr
    assert len(json.loads(out.read_text())["features"]) > 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.geojson"]
    with pytest.raises(GeoSAM2Error, match="--overwrite"):
        CliRunner().invoke(command, args, catch_exceptions=False)
    for name, message in (("out.xyz", "no known format"), ("none/out.gpkg", "no folder")):
        with monkeypatch.context() as patch:
            patch.setattr(module, "plan", None)  # it is refused before anything begins
            with pytest.raises(GeoSAM2Error, match=message):
                CliRunner().invoke(
                    command, [path, "-o", str(tmp_path / name)], catch_exceptions=False
                )
    prompts = tmp_path / "prompts.geojson"
    inside_points(scene[1]).to_crs(4326).to_file(prompts)
    out = tmp_path / "prompted.gpkg"
    done = CliRunner().invoke(
        command,
        [path, "-o", str(out), "--prompts", str(prompts), "--folder", str(tmp_path)],
        catch_exceptions=False,
    )
    assert done.exit_code == 0  # and a folder with other things in it stays
    assert len(geopandas.read_file(out)) == len(geopandas.read_file(prompts))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "out.geojson", "prompted.gpkg", "prompts.geojson"
    ]  # fmt: skip
    ignored = CliRunner().invoke(
        command, [path, "-o", "a.gpkg", "--prompts", str(prompts), "--layer", "parts"]
    )
    assert ignored.exit_code == 2
    assert "--layer says nothing about --prompts" in ignored.output
    here = sorted(tmp_path.iterdir())
    told = CliRunner().invoke(
        command,
        [path, "--dry-run", "--points", "8", "--no-coverage", "-o", str(tmp_path / "dry.gpkg")],
        catch_exceptions=False,
    )
    assert "frames     6 in" in told.stdout
    assert sorted(tmp_path.iterdir()) == here
    similar = tmp_path / "similar.gpkg"
    ranked = CliRunner().invoke(
        command,
        [*args[:1], "-o", str(similar), "--similar-to", str(tmp_path / "out.geojson"), *args[3:]],
        catch_exceptions=False,
    )
    assert ranked.exit_code == 0
    assert geopandas.read_file(similar).similarity.is_monotonic_decreasing
    out = str(tmp_path / "other.gpkg")
    refused = CliRunner().invoke(command, [path, "-o", out, "--resume"])
    assert refused.exit_code == 2
    assert "there is no run to resume" in refused.output
    table = tmp_path.parent / "table.csv"
    table.write_text("a,b\n1,2\n")
    for options, error, says in (
        (["--level", "auto"], LevelError, "number or label"),
        (["--level", "0", "--gsd", "2"], LevelError, "level (0) or a gsd (2.0 m), not both"),
        (["--roi", path], SourceError, "cannot be read as a vector file"),
        (["--prompts", str(table)], SourceError, "a table without geometry"),
    ):
        refused = CliRunner().invoke(command, [path, "-o", out, *options])
        assert isinstance(refused.exception, error)
        assert says in str(refused.exception)
    assert sorted(tmp_path.iterdir()) == sorted([*here, similar])
    wrong = CliRunner().invoke(command, [path, "--dry-run", "--points", "a,b"])
    assert wrong.exit_code == 2
    assert "32,16,4" in wrong.output
