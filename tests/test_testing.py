from __future__ import annotations

import tracemalloc
import urllib.error
import urllib.request

import numpy as np
import pytest
import rasterio
import rasterio.features
import rasterio.windows
import shapely
from hypothesis import given, settings
from PIL import Image
from shapely import affinity

from geosam2 import testing


@pytest.fixture(scope="module")
def scene():
    return testing.synthetic_scene(0, 512)


def _in_pixels(geometry, geobox):
    inverse = ~geobox.transform
    return affinity.affine_transform(
        geometry, [inverse.a, inverse.b, inverse.d, inverse.e, inverse.c, inverse.f]
    )


def test_labels_are_the_truth_polygons_rasterised(scene):
    pairs = list(zip(scene.truth.geometry, scene.truth.id, strict=True))
    burnt = rasterio.features.rasterize(
        pairs, scene.labels.shape, transform=scene.geobox.transform, dtype="int32"
    )
    assert np.array_equal(burnt, scene.labels)
    assert scene.truth.is_valid.all()
    assert set(scene.truth.geom_type) == {"Polygon"}


def test_truth_objects_do_not_overlap(scene):
    total = scene.truth.area.sum()
    assert scene.truth.union_all().area == pytest.approx(total, rel=1e-9)


def test_fields_touch(scene):
    fields = scene.truth[scene.truth.kind == "field"].geometry.to_numpy()
    left, right = shapely.STRtree(fields).query(fields, predicate="touches")
    shared = shapely.length(shapely.intersection(fields[left], fields[right]))
    assert shared.max() > 20


def test_imagery_is_not_flat(scene):
    for kind in scene.truth.kind.unique():
        ids = scene.truth.id[scene.truth.kind == kind]
        assert scene.pixels[:, np.isin(scene.labels, ids)].std(axis=1).min() > 3


def test_a_seed_is_a_scene():
    first, again, other = (testing.synthetic_scene(seed, 200) for seed in (4, 4, 5))
    assert np.array_equal(first.pixels, again.pixels)
    assert not np.array_equal(first.pixels, other.pixels)


@pytest.mark.parametrize(("kind", "frames"), [("lake", 1), ("lake", 4), ("river", 4), ("road", 12)])
def test_main_object_touches_the_frames_asked_for(kind, frames):
    scene = testing.synthetic_scene(3, kinds=[kind], frames=frames)
    main = scene.truth[scene.truth.main]
    assert len(main) == 1
    assert testing.frames_touched(_in_pixels(main.geometry.iloc[0], scene.geobox)) == frames


def test_the_twin_stays_apart():
    scene = testing.synthetic_scene(3, kinds=["lake", "field"], frames=1, twin=True)
    main = scene.truth[scene.truth.main].geometry.iloc[0]
    rest = scene.truth[(scene.truth.kind == "lake") & ~scene.truth.main]
    assert 4 < rest.distance(main).min() < 60  # metres
    twin = scene.truth[scene.truth.twin]
    assert set(twin.kind) == {"lake"}
    assert rest.distance(main).idxmin() in twin.index


def test_unknown_kinds_are_named():
    with pytest.raises(ValueError, match="must be some of lake, river"):
        testing.synthetic_scene(kinds=["volcano"])


@pytest.mark.parametrize("cog", [True, False])
def test_geotiff_has_tiles_and_overviews(tmp_path, scene, cog):
    path = testing.write_geotiff(tmp_path / "s.tif", scene.pixels, scene.geobox, cog=cog, block=128)
    with rasterio.open(path) as file:
        assert np.array_equal(file.read(), scene.pixels)
        assert file.block_shapes[0] == (128, 128)
        assert file.overviews(1) == [2, 4]
        assert file.transform == scene.geobox.transform
        assert file.crs.to_epsg() == 32633


def test_repeated_vrt_shows_flips_of_the_source(tmp_path, scene):
    source = testing.write_geotiff(tmp_path / "s.tif", scene.pixels, scene.geobox)
    path = testing.write_repeated_vrt(tmp_path / "big.vrt", source, (50_000, 40_000))
    flips = [scene.pixels[:, ::a, ::b] for a in (1, -1) for b in (1, -1)]
    tracemalloc.start()
    with rasterio.open(path) as file:
        assert file.shape == (50_000, 40_000)
        assert file.transform == scene.geobox.transform
        seen = set()
        for row, column in [(0, 0), (5, 7), (40, 70), (90, 3), (17, 17)]:
            window = rasterio.windows.Window(512 * column, 512 * row, 512, 512)
            tile = file.read(window=window)
            seen.add(next(i for i, flip in enumerate(flips) if np.array_equal(tile, flip)))
        assert len(seen) > 1
        assert file.overviews(1)[:2] == [2, 4]
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()


def test_web_tiles_hold_the_pixels(tmp_path, scene):
    folder = testing.write_xyz_tiles(tmp_path, scene.pixels, 1001, 2003, 12)
    tile = np.asarray(Image.open(folder / "12" / "1002" / "2003.png"))
    assert np.array_equal(tile.transpose(2, 0, 1), scene.pixels[:, :256, 256:512])
    parent = np.asarray(Image.open(folder / "11" / "500" / "1001.png")).astype(float)
    mean = scene.pixels[:, :256, :256].reshape(3, 128, 2, 128, 2).mean(axis=(2, 4))
    assert np.abs(parent[128:, 128:].transpose(2, 0, 1) - mean).max() <= 1


def test_server_counts_ranges_and_faults(tmp_path):
    (tmp_path / "f.bin").write_bytes(bytes(range(100)))

    def get(url, span=None):
        headers = {"Range": span} if span else {}
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, answer.read()

    with testing.serve_folder(tmp_path) as server:
        url = server.url + "/f.bin"
        assert get(url) == (200, bytes(range(100)))
        assert get(url, "bytes=10-19") == (206, bytes(range(10, 20)))
        assert get(url, "bytes=-5") == (206, bytes(range(95, 100)))
        assert server.bytes_sent == 115
        assert [request.range for request in server.requests] == [None, "bytes=10-19", "bytes=-5"]
        server.fault = lambda path: (429, b"slow down")
        with pytest.raises(urllib.error.HTTPError, match="429"):
            get(url)
        server.fault = None
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(server.url + "/../../etc/passwd")


def test_rasterio_reads_through_the_server(tmp_path, scene):
    testing.write_geotiff(tmp_path / "s.tif", scene.pixels, scene.geobox, cog=True)
    with testing.serve_folder(tmp_path) as server:
        url = f"/vsicurl/{server.url}/s.tif"
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), rasterio.open(url) as file:
            assert np.array_equal(file.read(1), scene.pixels[0])
        assert any(request.status == 206 for request in server.requests)


@settings(max_examples=30, deadline=None)
@given(testing.polygons())
def test_strategy_polygons_are_valid(polygon):
    assert polygon.is_valid
    assert polygon.area > 0


@settings(max_examples=30, deadline=None)
@given(testing.geoboxes(), testing.masks())
def test_strategy_grids_and_masks(geobox, mask):
    assert min(geobox.shape) >= 1
    assert geobox.crs is not None
    assert mask.dtype == bool
