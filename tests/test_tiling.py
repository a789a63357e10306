"""FrameGrid: frames of any two extents lie on one lattice and cover what they should."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from geosam2.errors import GeoreferenceError, LevelError
from geosam2.levels import Level, Window
from geosam2.tiling import FrameGrid, FrameIndex

LEVEL = Level.at_corner(300000.0, 4100040.0, (10.0, 10.0), (4000, 5000), crs="EPSG:32612")

sides = st.sampled_from([(512, 128), (512, 0), (256, 96), (64, 48), (1024, 16)])
windows = st.builds(
    Window, st.integers(-3000, 3000), st.integers(-3000, 3000), st.integers(1, 900),
    st.integers(1, 900),
)  # fmt: skip


def grid_of(extent: Window, side: tuple[int, int] = (512, 128)) -> FrameGrid:
    return FrameGrid(LEVEL, extent, *side)


@given(extent=windows, side=sides)
@settings(max_examples=60)
def test_cores_tile_the_extent_and_frames_cover_it(extent: Window, side: tuple[int, int]) -> None:
    grid = grid_of(extent, side)
    if len(grid) > 400:
        return
    owners = np.zeros((extent.height, extent.width), int)
    for index in grid:
        core, window = grid.core(index) & extent, grid.window(index)
        assert not core.empty, "a frame that owns nothing"
        assert window & core == core
        rows = slice(core.row - extent.row, core.row_stop - extent.row)
        cols = slice(core.col - extent.col, core.col_stop - extent.col)
        owners[rows, cols] += 1
        assert grid.window(index).row % 16 == grid.window(index).col % 16 == 0
        assert grid.origin(index) == (window.row // 16, window.col // 16)
        assert window & grid.covered == window
    assert (owners == 1).all()


@given(a=windows, b=windows, side=sides)
def test_frames_of_two_extents_share_one_lattice(
    a: Window, b: Window, side: tuple[int, int]
) -> None:
    one, two = grid_of(a, side), grid_of(b, side)
    for index in (one.first, two.first):
        assert one.window(index) == two.window(index)
        assert one.geobox(index) == two.geobox(index)
    both = a & b
    if not both.empty:
        x, y = LEVEL.transform @ (both.col + 0.5, both.row + 0.5)
        assert one.index_at(x, y) == two.index_at(x, y)


@given(extent=windows, side=sides, u=st.floats(0, 1), v=st.floats(0, 1))
def test_the_frame_at_a_point_has_the_nearest_centre(
    extent: Window, side: tuple[int, int], u: float, v: float
) -> None:
    grid = grid_of(extent, side)
    left, bottom, right, top = LEVEL.bounds_of(extent)
    x, y = left + u * (right - left), bottom + v * (top - bottom)
    found = grid.index_at(x, y)
    assert found in grid

    def distance(index: FrameIndex) -> float:
        west, south, east, north = grid.bounds(index)
        return max(abs(x - (west + east) / 2), abs(y - (south + north) / 2))

    nearest = min(distance(n) for n in [found, *grid.neighbours(found, diagonal=True)])
    assert distance(found) <= nearest + 10.001, "within the pixel on the border"


@pytest.mark.parametrize("order", ["rows", "snake", "spiral"])
def test_every_order_visits_every_frame_once(order: Any) -> None:
    grid = grid_of(Window(-700, 300, 1900, 2600))
    visited = list(grid.indices(order))
    assert len(visited) == len(set(visited)) == len(grid)
    assert all(index in grid for index in visited)
    if order == "snake":
        for a, b in pairwise(visited):
            assert b in grid.neighbours(a)
    if order == "spiral":
        start = visited[0]
        rings = [max(abs(i.row - start.row), abs(i.col - start.col)) for i in visited]
        assert rings == sorted(rings)


def test_a_spiral_begins_where_it_is_told() -> None:
    grid = grid_of(Window(-700, 300, 1900, 2600))
    assert next(grid.indices("spiral", start=grid.first)) == grid.first
    assert len(list(grid.indices("spiral", start=grid.first))) == len(grid)
    with pytest.raises(LevelError, match='"rows", "snake" or "spiral"'):
        next(grid.indices("zigzag"))  # type: ignore[arg-type]


def test_neighbours_at_corners_and_inside() -> None:
    grid = grid_of(Window(0, 0, 1600, 1600))
    first = grid.first
    assert grid.neighbours(first) == [(first.row, first.col + 1), (first.row + 1, first.col)]
    inside = FrameIndex(first.row + 1, first.col + 1)
    assert len(grid.neighbours(inside)) == 4
    assert len(set(grid.neighbours(inside, diagonal=True))) == 8
    for neighbour in grid.neighbours(inside):
        assert inside in grid.neighbours(neighbour)


@given(
    extent=windows,
    points=st.lists(
        st.tuples(st.floats(-40000, 40000), st.floats(-40000, 40000)), min_size=3, max_size=8
    ),
)
@settings(max_examples=60)
def test_crossing_is_what_shapely_says(extent: Window, points: Any) -> None:
    grid = grid_of(extent, (256, 64))
    polygon = shapely.MultiPoint(points).convex_hull
    area = shapely.box(*LEVEL.bounds_of(extent))
    for shape in (polygon, polygon.boundary, shapely.Point(points[0])):
        if shape.is_empty:
            continue
        found = grid.crossing(shape)
        must = {i for i in grid if _inside(grid, i, extent, shape)}
        may = {i for i in grid if shapely.box(*LEVEL.bounds_of(grid.core(i))).intersects(shape)}
        assert must <= set(found) <= may
        assert bool(found) or not shape.intersects(area.buffer(-1e-3))


def _inside(grid: FrameGrid, index: FrameIndex, extent: Window, shape: Any) -> bool:
    box = shapely.box(*LEVEL.bounds_of(grid.core(index) & extent)).buffer(-0.1)
    return bool(box.intersects(shape))


def test_crossing_of_a_boundary_leaves_out_the_inside() -> None:
    grid = grid_of(Window(-2000, 0, 2000, 2000), (256, 0))
    polygon = shapely.box(1000, 1000, 19000, 19000)
    edge, whole = grid.crossing(polygon.boundary), grid.crossing(polygon)
    assert set(edge) < set(whole)
    assert len(whole) - len(edge) >= 25
    assert grid.crossing(shapely.Polygon()) == []
    assert grid.crossing(shapely.box(10**6, 10**6, 10**6 + 1, 10**6 + 1)) == []


def test_a_centred_frame_is_on_cells_and_nearly_in_the_middle() -> None:
    grid = grid_of(Window(0, 0, 900, 900))
    geobox = grid.centred(3333.0, -4444.0)
    window = LEVEL.locate(geobox)
    assert window is not None
    assert window.row % 16 == window.col % 16 == 0
    middle = geobox.boundingbox
    assert abs((middle.left + middle.right) / 2 - 3333) <= 80
    assert abs((middle.bottom + middle.top) / 2 + 4444) <= 80


@pytest.mark.parametrize(
    ("size", "overlap", "reason"),
    [
        (500, 128, "multiples of 16"),
        (512, 100, "multiples of 16"),
        (512, 512, "less than"),
        (0, 0, "multiples of 16"),
    ],
)
def test_sizes_that_cannot_lie_on_cells_are_refused(size: int, overlap: int, reason: str) -> None:
    with pytest.raises(LevelError, match=reason):
        FrameGrid(LEVEL, LEVEL.extent, size, overlap)


def test_points_outside_are_told_with_the_bounds() -> None:
    grid = grid_of(LEVEL.extent)
    with pytest.raises(GeoreferenceError, match="is it in the scene's CRS"):
        grid.index_at(-122.4, 37.8)
    with pytest.raises(LevelError, match="no pixels to cover"):
        grid_of(Window(0, 0, 0, 5))


def test_counting_a_world_of_frames_is_instant() -> None:
    huge = FrameGrid(LEVEL, Window(-(2**30), -(2**30), 2**31, 2**31))
    assert len(huge) > 10**13
    assert FrameIndex(0, 0) in huge
    assert FrameIndex(10**9, 0) not in huge
    assert (0, 0, 0) not in huge
