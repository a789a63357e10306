from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine

from geosam2 import export, geojson
from geosam2.errors import ExportError, ExportWarning

SUFFIXES = [".geojson", ".geojsonl", ".gpkg", ".fgb", ".parquet", ".shp"]
HOLE = shapely.box(0, 0, 90, 60).difference(shapely.box(20, 20, 40, 40))


@pytest.fixture
def lakes():
    shapes = [
        shapely.transform(HOLE, lambda p, k=k: p + np.array([500_000 + 200 * k, 5e6]))
        for k in range(3)
    ]
    shapes[2] = shapely.multipolygons([shapes[2], shapely.box(5e5, 5.1e6, 5e5 + 9, 5.1e6 + 9)])
    return geopandas.GeoDataFrame(
        {
            "id": [1, 2, 3],
            "score": [0.9, 0.8, np.nan],
            "model": ["nano", "nano", "żółw"],
            "prompt": ['{"points": [[1, 2]]}'] * 3,
        },
        geometry=shapes,
        crs="EPSG:32633",
    )


def _read(path):
    if path.suffix == ".parquet":
        return geopandas.read_parquet(path)
    return geopandas.read_file(path)


def _area(gdf):
    return gdf.to_crs(32633).area.sum()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_comes_back(tmp_path, lakes, suffix):
    path = tmp_path / f"lakes{suffix}"
    export.write(lakes, path)
    back = _read(path).sort_values("id", ignore_index=True)  # FlatGeobuf sorts by place
    assert back.id.tolist() == [1, 2, 3]
    assert back.model.tolist() == ["nano", "nano", "żółw"]
    assert pd.isna(back.score[2])
    assert _area(back) == pytest.approx(lakes.area.sum(), rel=1e-4)
    wgs84 = suffix.startswith(".geojson")
    assert back.crs.to_epsg() == (4326 if wgs84 else 32633)
    assert not list(tmp_path.glob(".*"))  # nothing temporary is left


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_result_is_an_empty_file(tmp_path, lakes, suffix):
    path = tmp_path / f"none{suffix}"
    export.write(lakes[:0], path)
    assert path.exists()
    if suffix != ".geojsonl":  # an empty file has no line to read
        assert len(_read(path)) == 0


@pytest.mark.skipif(shutil.which("ogrinfo") is None, reason="ogrinfo is not installed")
@pytest.mark.parametrize("suffix", [".geojson", ".geojsonl", ".gpkg", ".fgb", ".shp"])
def test_ogrinfo_opens_it(tmp_path, lakes, suffix):
    path = tmp_path / f"lakes{suffix}"
    export.write(lakes, path)
    run = subprocess.run(
        ["ogrinfo", "-so", "-al", path], capture_output=True, text=True, check=True
    )
    assert "Feature Count: 3" in run.stdout


def test_geojson_follows_rfc_7946(tmp_path, lakes):
    path = tmp_path / "lakes.geojson"
    lakes.geometry = shapely.reverse(lakes.geometry.to_numpy())
    export.write(lakes, path)
    text = json.loads(path.read_text())
    assert "crs" not in text
    shell, hole = text["features"][0]["geometry"]["coordinates"]
    assert shapely.LinearRing(shell).is_ccw
    assert not shapely.LinearRing(hole).is_ccw
    decimals = [len(str(value).partition(".")[2]) for point in shell for value in point]
    assert max(decimals) <= 7
    assert text["features"][2]["properties"]["score"] is None


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3832"])
def test_geojson_is_cut_at_the_antimeridian(crs):
    fiji = shapely.box(179, -18, 182, -16).difference(shapely.box(179.5, -17.5, 181, -17))
    to_crs = pyproj.Transformer.from_crs(4326, crs, always_xy=True)
    placed = (
        shapely.transform(fiji, to_crs.transform, interleaved=False) if crs[5:] != "4326" else fiji
    )
    found = geojson.to_rfc7946(np.array([placed]), crs)[0]
    assert found.geom_type == "MultiPolygon"
    assert found.is_valid
    assert found.area == pytest.approx(fiji.area, rel=1e-6)
    assert {part.bounds[0::2] for part in found.geoms} == {(179, 180), (-180, -178)}


def test_only_the_part_that_crosses_is_cut():
    fiji, tonga, europe = (179, -18, 181, -16), (-176, -22, -174, -20), (0, 40, 20, 60)
    parts = shapely.multipolygons([shapely.box(*box) for box in (fiji, tonga, europe)])
    found = geojson.to_rfc7946(np.array([parts]), 4326)[0]
    assert found.is_valid
    assert {part.bounds[0::2] for part in found.geoms} == {
        (179, 180),
        (-180, -179),
        (-176, -174),
        (0, 20),
    }


def test_a_belt_around_the_world_is_not_taken_for_a_crossing():
    belt = shapely.segmentize(shapely.box(-179, -10, 179, 10), 30)
    assert geojson.to_rfc7946(np.array([belt]), 4326)[0].equals(belt)


def test_what_ends_at_the_antimeridian_is_not_cut():
    for box in (
        shapely.box(170, 0, 180, 1),
        shapely.box(-180, 0, -170, 1),
        shapely.box(0, 0, 9, 9),
    ):
        assert geojson.to_rfc7946(np.array([box]), None)[0].equals(box)


def test_rounding_to_seven_decimals_keeps_polygons_valid():
    thin = shapely.Polygon([(0, 0), (1e-3, 2e-8), (2e-3, 0), (1e-3, 1e-3), (1e-3, 4e-8)])
    assert thin.is_valid
    assert geojson.to_rfc7946(np.array([thin]), 4326)[0].is_valid


def test_standard_output(lakes, capsys):
    export.write(lakes, "-")
    assert len(json.loads(capsys.readouterr().out)["features"]) == 3


def test_dates_lists_and_nothing_become_json(lakes):
    lakes["when"] = pd.Timestamp("2024-05-01")
    lakes["frames"] = [[1, 2], [], [np.int64(3)]]
    stream = io.StringIO()
    geojson.write_geojson(lakes, stream, lines=True)
    rows = [json.loads(line)["properties"] for line in stream.getvalue().splitlines()]
    assert rows[0]["when"].startswith("2024-05-01")
    assert [row["frames"] for row in rows] == [[1, 2], [], [3]]


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb"])
def test_lists_become_text_where_the_format_has_none(tmp_path, lakes, suffix):
    lakes["frames"] = [[1, 2], [], [3]]
    export.write(lakes, tmp_path / f"a{suffix}")
    back = _read(tmp_path / f"a{suffix}").sort_values("id")
    assert back.frames.tolist() == ["[1, 2]", "[]", "[3]"]


def test_existing_files_are_safe(tmp_path, lakes):
    path = tmp_path / "lakes.fgb"
    export.write(lakes, path)
    with pytest.raises(ExportError, match="pass overwrite or append"):
        export.write(lakes[:1], path)
    export.write(lakes[:1], path, overwrite=True)
    assert len(_read(path)) == 1
    with pytest.raises(ExportError, match="choose one"):
        export.write(lakes, path, overwrite=True, append=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_append_adds_rows(tmp_path, lakes, suffix):
    path = tmp_path / f"lakes{suffix}"
    lakes["date"] = "2024-05-01T10:00:00Z"
    for turn in range(3):
        export.write(lakes.assign(id=lakes.id + 3 * turn), path, append=True)
    back = _read(path)
    assert sorted(back.id) == list(range(1, 10))
    assert _area(back) == pytest.approx(3 * lakes.area.sum(), rel=1e-4)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_many_tables_become_one_file(tmp_path, lakes, suffix):
    path = tmp_path / f"all{suffix}"
    parts = [lakes[:0], lakes[:2], lakes[:0], lakes[2:]]
    assert export.write_many(iter(parts), path) == 3
    assert sorted(_read(path).id) == [1, 2, 3]
    with pytest.raises(ExportError, match="pass overwrite"):
        export.write_many(parts, path)
    before = path.read_bytes()

    def failing():
        yield lakes
        raise ValueError("a block is missing")

    with pytest.raises(ExportError, match="a block is missing"):
        export.write_many(failing(), path, overwrite=True)
    assert path.read_bytes() == before
    assert export.write_many([lakes], path, overwrite=True) == 3
    assert sorted(_read(path).id) == [1, 2, 3]


def test_no_table_at_all(tmp_path):
    with pytest.raises(ExportError, match="not even an empty table"):
        export.write_many([], tmp_path / "a.gpkg")


def test_append_checks_what_it_adds_to(tmp_path, lakes):
    path = tmp_path / "lakes.gpkg"
    export.write(lakes, path)
    before = path.read_bytes()
    with pytest.raises(ExportError, match=r"is in EPSG:32633, .* EPSG:4326: reproject them"):
        export.write(lakes.to_crs(4326), path, append=True)
    with pytest.raises(ExportError, match=r"missing \['score'\], not in the file \['quality'\]"):
        export.write(lakes.rename(columns={"score": "quality"}), path, append=True)
    with pytest.raises(ExportError, match=r"'score' of .* holds numbers, the new rows hold text"):
        export.write(lakes.assign(score="good"), path, append=True)
    assert path.read_bytes() == before


def test_append_to_rubbish_is_refused(tmp_path, lakes):
    path = tmp_path / "lakes.geojson"
    path.write_text("not json")
    with pytest.raises(ExportError, match="cannot be read, so nothing is appended"):
        export.write(lakes, path, append=True)
    assert path.read_text() == "not json"


def test_layers_of_a_geopackage_do_not_disturb_each_other(tmp_path, lakes):
    path = tmp_path / "all.gpkg"
    export.write(lakes, path, layer="lakes")
    export.write(lakes[:2], path, layer="fields")
    export.write(lakes[:1], path, layer="fields", append=True)
    export.write(lakes[:1], path, layer="lakes", overwrite=True)
    counts = {name: len(geopandas.read_file(path, layer=name)) for name in ("lakes", "fields")}
    assert counts == {"lakes": 1, "fields": 3}
    with pytest.raises(ExportError, match="layer 'lakes' of"):
        export.write(lakes, path, layer="lakes")


def test_a_shapefile_says_what_it_loses(tmp_path, lakes):
    lakes["predicted_iou"], lakes["predicted_size"] = 0.5, 7
    lakes["long"], lakes["fine"] = "x" * 300, True
    with pytest.warns(ExportWarning, match=r"names .* 254 .* true and false .* \(.gpkg\) can"):
        export.write(lakes, tmp_path / "lakes.shp")
    back = geopandas.read_file(tmp_path / "lakes.shp")
    assert back.long.str.len().tolist() == [254] * 3
    assert {"predicted_", "predict_01"} <= set(back)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export.write(lakes[["id", "geometry"]], tmp_path / "plain.shp")


def test_unknown_names_and_folders(tmp_path, lakes):
    with pytest.raises(
        ExportError, match=r"'lakes.kml' names no known format: use one of .geojson"
    ):
        export.write(lakes, tmp_path / "lakes.kml")
    with pytest.raises(ExportError, match="does not exist: create it first"):
        export.write(lakes, tmp_path / "no" / "lakes.gpkg")


_WRITER = """
import resource, sys, numpy as np, geopandas, shapely
from affine import Affine
from geosam2 import export
limit, *paths = int(sys.argv[1]), *sys.argv[2:]
rng = np.random.default_rng(0)
many = shapely.buffer(shapely.points(rng.uniform(0, 1e5, (4000, 2))), 50)
gdf = geopandas.GeoDataFrame({"id": range(4000)}, geometry=many, crs=32633)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
def write(path):
    try:
        if path.endswith(".tif"):
            mask = rng.random((1500, 1500)) > 0.5
            export.write_mask(mask, path, Affine.scale(1, -1), overwrite=True)
        else:
            export.write(gdf, path, overwrite=True)
    except export.ExportError as error:
        print("refused", error, flush=True)
for path in paths:
    write(path)
while not limit:
    write(path)
"""


def test_a_full_disk_leaves_what_was_there(tmp_path, lakes):
    paths = [tmp_path / f"lakes{suffix}" for suffix in [*SUFFIXES, ".tif"]]
    for path in paths:
        path.write_bytes(b"what was there")
    (tmp_path / "lakes.gpkg").unlink()
    export.write(lakes, tmp_path / "lakes.gpkg")
    before = {path: path.read_bytes() for path in paths}
    command = [sys.executable, "-c", _WRITER, "150000", *paths]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    for path in paths:
        assert f"refused {path} could not be written" in run.stdout, run.stderr
    assert run.stdout.count("what was there before is untouched") == len(paths)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "suffix",
    [
        ".gpkg",
        pytest.param(".geojson", marks=pytest.mark.slow),
        pytest.param(".tif", marks=pytest.mark.slow),
    ],
)
def test_a_killed_writer_leaves_no_half_file(tmp_path, suffix):
    path = tmp_path / f"lakes{suffix}"
    command = [sys.executable, "-c", _WRITER, "0", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        while not path.exists():
            time.sleep(0.01)
        time.sleep(0.13)
        os.kill(writer.pid, signal.SIGKILL)
    if suffix == ".tif":
        with rasterio.open(path) as file:
            assert 0.4 < file.read(1).mean() < 0.6
    else:
        assert pyogrio.read_info(path, force_feature_count=True)["features"] == 4000
        assert len(geopandas.read_file(path)) == 4000


@pytest.mark.parametrize("cog", [True, False])
def test_masks_come_back(tmp_path, cog):
    ids = np.random.default_rng(0).integers(0, 70_000, (300, 400))
    transform = Affine(0.5, 0, 500_000, 0, -0.5, 5e6)
    export.write_mask(ids, tmp_path / "ids.tif", transform, "EPSG:32633", cog=cog)
    export.write_mask(ids > 35_000, tmp_path / "mask.tif", transform, cog=cog)
    with rasterio.open(tmp_path / "ids.tif") as file:
        assert np.array_equal(file.read(1), ids)
        assert file.dtypes == ("uint32",)
        assert file.crs.to_epsg() == 32633
        assert file.transform == transform
        assert file.nodata == 0
    with rasterio.open(tmp_path / "mask.tif") as file:
        assert file.dtypes == ("uint8",)
    with pytest.raises(ExportError, match="pass overwrite"):
        export.write_mask(ids, tmp_path / "ids.tif", transform)


def test_overviews_of_ids_are_ids(tmp_path):
    ids = np.random.default_rng(0).choice([3, 250], (2000, 2000)).astype(np.uint8)
    export.write_mask(ids, tmp_path / "ids.tif", Affine.scale(1, -1))
    with rasterio.open(tmp_path / "ids.tif") as file:
        assert file.overviews(1)
        assert set(np.unique(file.read(1, out_shape=(500, 500)))) == {3, 250}


@pytest.mark.parametrize(
    ("mask", "remedy"),
    [
        (np.zeros((2, 3, 3), bool), "bool or int"),
        (np.zeros((3, 3)), "bool or int"),
        (np.full((3, 3), -1), "not be negative"),
    ],
)
def test_masks_that_are_none(tmp_path, mask, remedy):
    with pytest.raises(ExportError, match=remedy):
        export.write_mask(mask, tmp_path / "m.tif", Affine.identity())
    with pytest.raises(ExportError, match=r"written as \.tif"):
        export.write_mask(np.zeros((3, 3), bool), tmp_path / "m.png", Affine.identity())


PIXELS = shapely.box(100, -300, 250, -120)


@pytest.mark.parametrize("suffix", [".geojson", ".geojsonl", ".gpkg"])
def test_pixel_coordinates_stay_as_they_are(tmp_path, suffix):
    found = geopandas.GeoDataFrame({"id": [1]}, geometry=[PIXELS])
    path = tmp_path / f"pixels{suffix}"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        export.write(found, path)
        back = _read(path)
    assert back.geometry[0].equals(PIXELS)
    remedies = [str(one.message) for one in said if one.category is ExportWarning]
    assert [".gpkg" in remedy for remedy in remedies] == ([] if suffix == ".gpkg" else [True])


def test_pixel_coordinates_on_stdout_and_in_many_tables(tmp_path, capsys):
    found = geopandas.GeoDataFrame({"id": [1]}, geometry=[PIXELS])
    with pytest.warns(ExportWarning, match="GeoPackage"):
        export.write(found, "-")
    (feature,) = json.loads(capsys.readouterr().out)["features"]
    assert shapely.geometry.shape(feature["geometry"]).equals(PIXELS)
    with pytest.warns(ExportWarning, match="GeoPackage") as said:
        assert export.write_many([found, found], tmp_path / "two.geojson") == 2
    assert len(said) == 1


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs a folder where root cannot write")
def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    with pytest.raises(ExportError, match="name another folder"):
        export.check_output(Path("/proc/a.gpkg"), replaceable=False)
    (tmp_path / "a.gpkg").mkdir()
    with pytest.raises(ExportError, match="name a file in it"):
        export.check_output(tmp_path / "a.gpkg", replaceable=True)
    export.check_output(tmp_path / "b.gpkg", replaceable=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gpkg"]


def test_what_is_no_table_is_refused(tmp_path):
    for wrong in (None, [PIXELS], pd.DataFrame({"id": [1]})):
        with pytest.raises(ExportError, match="give a GeoDataFrame"):
            export.write(wrong, tmp_path / "a.gpkg")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_ids_of_a_file(tmp_path, lakes, suffix):
    path = tmp_path / f"lakes{suffix}"
    assert export.ids_in(path) == set()
    export.write(lakes, path)
    assert export.ids_in(path) == {1, 2, 3}
    export.write(lakes.drop(columns="id"), path, overwrite=True)
    if suffix != ".parquet":
        assert export.ids_in(path) == set()
    path.write_text("nonsense")
    with pytest.raises(ExportError, match="nothing is appended"):
        export.ids_in(path)
