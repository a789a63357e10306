"""Stacks: which scenes are one place, and what their dates are called."""

from __future__ import annotations

import datetime

import numpy as np
import pytest
import xarray
from affine import Affine
from odc.geo.geobox import GeoBox

from geosam2.errors import GeoreferenceError, OptionError, SourceError
from geosam2.stack import Stack, open_stack
from geosam2.testing import write_geotiff

LEFT, TOP, CELL = 500_000.0, 4_600_000.0, 10.0


def _file(folder, name, *, side=64, left=LEFT, top=TOP, cell=CELL, crs="EPSG:32633"):
    pixels = np.full((3, side, side), 90, np.uint8)
    grid = GeoBox((side, side), Affine(cell, 0, left, 0, -cell, top), crs)
    return write_geotiff(folder / name, pixels, grid)


def test_dates_are_read_from_names_and_sorted(tmp_path):
    names = ["S2_20200317_x.tif", "lake-2019-07-01.tif", "1985.tif"]
    stack = open_stack([_file(tmp_path, name) for name in names])
    assert stack.dates == ("1985", "2019-07-01", "2020-03-17")
    assert [scene.name for scene in stack.scenes] == [names[2], names[1], names[0]]


def test_names_without_a_date_keep_their_order(tmp_path):
    stack = open_stack([_file(tmp_path, name) for name in ("wet.tif", "dry.tif")])
    assert stack.dates == ("wet.tif", "dry.tif")


def test_dates_can_be_given_in_any_form(tmp_path):
    files = [_file(tmp_path, name) for name in ("b.tif", "a.tif")]
    day, year = datetime.date(2001, 5, 6), 1999
    assert open_stack(files, [day, year]).dates == ("1999", "2001-05-06")
    assert open_stack({day: files[0], year: files[1]}).scenes[0].name == "a.tif"


def test_an_array_is_taken_apart_along_time():
    times = np.array(["2021-05-01", "2020-05-01T10:30"], "datetime64[ns]")
    values = np.stack([np.full((1, 32, 32), 7), np.full((1, 32, 32), 9)]).astype(np.uint8)
    array = xarray.DataArray(values, {"time": times}, ("time", "band", "y", "x"))
    stack = open_stack(array, pixel_coordinates=True)
    assert stack.dates == ("2020-05-01T10:30:00", "2021-05-01")
    scene = stack.scenes[0]
    assert scene.read_window(scene.levels[0], scene.levels[0].extent).pixels.max() == 9


def test_extents_may_differ_and_shared_levels_are_offered(tmp_path):
    large, small = _file(tmp_path, "2001.tif", side=1200), _file(tmp_path, "2002.tif", side=300)
    stack = open_stack([large, small])
    few = [level.index for level in stack.scenes[1].levels]
    assert [level.index for level in stack.levels] == [-3, -2, -1, *few]
    assert len(stack.scenes[0].levels) > len(few)


@pytest.mark.parametrize(
    "other", [{"left": LEFT + 3}, {"cell": 20.0}, {"crs": "EPSG:32632"}, {"top": TOP - 4}]
)
def test_another_grid_is_refused_with_the_remedy(tmp_path, other):
    files = [_file(tmp_path, "2001.tif"), _file(tmp_path, "2002.tif", **other)]
    with pytest.raises(GeoreferenceError, match=r"2002.tif does not lie on the grid.*gdalwarp"):
        open_stack(files)


def test_whole_cells_apart_is_the_same_grid(tmp_path):
    files = [_file(tmp_path, "2001.tif"), _file(tmp_path, "2002.tif", left=LEFT + 7 * CELL)]
    assert len(open_stack(files)) == 2


def test_dates_are_found_by_name_and_number(tmp_path):
    stack = open_stack([_file(tmp_path, f"{year}.tif") for year in (2001, 2002, 2003)])
    assert [stack.number(which) for which in ("2002", 0, -1)] == [1, 0, 2]
    for wrong in ("1999", 3, -4):
        with pytest.raises(OptionError, match="the stack has 2001, 2002, 2003"):
            stack.number(wrong)


def test_what_is_no_stack_is_refused(tmp_path):
    one = _file(tmp_path, "2001.tif")
    with pytest.raises(OptionError, match="at least two"):
        open_stack([one])
    with pytest.raises(OptionError, match="dates="):
        open_stack([one, one])
    with pytest.raises(OptionError, match="one each"):
        open_stack([one, one], ["2001"])
    with pytest.raises(SourceError, match="list of scenes"):
        open_stack(str(one))
    with pytest.raises(SourceError, match="dimension of time"):
        open_stack(xarray.DataArray(np.zeros((3, 8, 8)), dims=("band", "y", "x")))


def test_a_stack_is_taken_as_it_is(tmp_path):
    stack = open_stack([_file(tmp_path, f"{year}.tif") for year in (2001, 2002)])
    assert open_stack(stack) is stack
    assert Stack(stack.dates, stack.scenes) == stack
