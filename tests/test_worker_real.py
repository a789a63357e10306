"""The real backend behind the worker: the network on pixels that a client draws."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.windows import Window

from geosam2.errors import GeoreferenceError, SourceError
from geosam2.masklet import PanOptions
from geosam2.prompts import Prompt
from geosam2.scene import open_scene
from geosam2.worker.jobs import Cancelled
from geosam2.worker.real import ClientSource, RealBackend, RealFollower, open_client_scene
from geosam2.worker.source import Clicks, SceneInfo

EXAMPLE = Path(__file__).parent.parent / "examples" / "banepa.tif"


def description(path: Path, levels: int = 3) -> SceneInfo:
    """What a client would say of a GeoTIFF."""
    with rasterio.open(path) as data:
        cell = data.res[0]
        return SceneInfo(
            str(data.crs),
            tuple(data.bounds),
            tuple(cell * 2**k for k in range(levels)),
            (data.bounds.left, data.bounds.top),
            path.name,
            str(path),
        )


class Drawing:
    """A client that draws from the GeoTIFF; the finest level only, or by nearest neighbour."""

    def __init__(self, path: Path) -> None:
        self.data = rasterio.open(path)
        self.asked: list[tuple[float, ...]] = []
        self.raises: BaseException | None = None

    def __call__(
        self, info: SceneInfo, bounds: Any, height: int, width: int, level: int
    ) -> tuple[Any, Any]:
        self.asked.append(bounds)
        if self.raises is not None:
            raise self.raises
        transform = self.data.transform
        col, row = (bounds[0] - transform.c) / transform.a, (bounds[3] - transform.f) / transform.e
        step = (bounds[2] - bounds[0]) / width / transform.a
        window = Window(round(col), round(row), round(width * step), round(height * step))
        shape = (3, height, width)
        pixels = self.data.read(
            (1, 2, 3), window=window, boundless=True, out_shape=shape, fill_value=0
        )
        rows, cols = (
            round(row) + (np.arange(height) + 0.5) * step,
            round(col) + (np.arange(width) + 0.5) * step,
        )
        valid = ((rows >= 0) & (rows < self.data.height))[:, None] & (
            (cols >= 0) & (cols < self.data.width)
        )
        return pixels.transpose(1, 2, 0), valid


@pytest.fixture
def drawing() -> Iterator[Drawing]:
    it = Drawing(EXAMPLE)
    yield it
    it.data.close()


def test_pixels_of_the_client_make_the_scene_that_the_file_makes(drawing: Drawing) -> None:
    info = description(EXAMPLE)
    mine, theirs = open_client_scene(info, drawing), open_scene(EXAMPLE)
    assert mine.crs == theirs.crs
    assert mine.shape == theirs.shape
    assert mine.gsd == pytest.approx(theirs.gsd)
    assert [
        round(a.cell_size / b.cell_size, 9)
        for a, b in zip(mine.levels, theirs.levels, strict=False)
    ] == [1, 1, 1]
    window = theirs.levels[0].extent._replace(height=256, width=320)
    geobox = theirs.levels[0].geobox(window)
    assert np.array_equal(mine.read(geobox).pixels, theirs.read(geobox).pixels)


def test_the_signature_follows_what_the_client_says(drawing: Drawing) -> None:
    from dataclasses import replace

    info = description(EXAMPLE)
    first = ClientSource(info, drawing).signature
    assert ClientSource(info, drawing).signature == first
    assert ClientSource(replace(info, options={"style": "x"}), drawing).signature != first


def test_unknown_systems_and_files_are_refused_in_one_sentence(drawing: Drawing) -> None:
    from dataclasses import replace

    info = description(EXAMPLE)
    with pytest.raises(GeoreferenceError, match="give the layer one from the EPSG list"):
        open_client_scene(replace(info, crs="USER:100000"), drawing)
    with pytest.raises(SourceError, match="let the client draw it"):
        open_client_scene(replace(info, path="/no/such/file.tif"), drawing)


class Growing:
    """A run of `total` frames, as far as a follower asks of one."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.masklet = SimpleNamespace(frames=())

    @property
    def finished(self) -> bool:
        return self.done == self.total

    def step(self) -> SimpleNamespace:
        self.done += 1
        return SimpleNamespace(done=self.done, open_borders=self.total - self.done)

    def __iter__(self) -> Iterator[SimpleNamespace]:
        while not self.finished:
            yield self.step()


def test_a_click_that_corrects_an_object_of_one_frame_is_followed_to_its_end() -> None:
    run = Growing(3)
    segmenter = SimpleNamespace(
        start=lambda prompt, **_: run, refinements=lambda masklet, **_: iter(())
    )
    follower = RealFollower(
        SimpleNamespace(segmenter=segmenter),  # type: ignore[arg-type]
        Prompt(((0.0, 0.0),)),
        PanOptions(),
        whole=SimpleNamespace(frames=()),  # type: ignore[arg-type]
    )
    steps = iter(follower)
    assert next(steps).done == 1
    assert follower.correct(Clicks(((5.0, 5.0),), (1,))).done == 1
    assert [step.done for step in steps] == [2, 3]


# with the embedded weights ----------------------------------------------------------------------


def place(drawing: Drawing, col: float, row: float) -> tuple[float, float]:
    x, y = drawing.data.transform * (col, row)
    return float(x), float(y)


@pytest.fixture
def backend(drawing: Drawing) -> RealBackend:
    it = RealBackend()
    about = it.load("rapid", "cpu")
    assert about["model"] == "nano"
    it.open(description(EXAMPLE), drawing, lambda: None)
    return it


def truth(drawing: Drawing, spot: tuple[float, float]) -> shapely.Geometry:
    """OpenStreetMap's outline of the building at a place."""
    import geopandas

    table = geopandas.read_file(EXAMPLE.with_name("banepa_buildings.geojson"))
    table = table.to_crs(drawing.data.crs)
    return table[table.contains(shapely.Point(spot))].geometry.iloc[0]


@pytest.mark.slow
def test_a_house_is_found_where_the_map_has_it(backend: RealBackend, drawing: Drawing) -> None:
    spot = place(drawing, 1080, 762)
    best, *others = backend.preview(Clicks((spot,), (1,)), 0)
    shape, real = shapely.from_wkb(best.wkb), truth(drawing, spot)
    iou = shape.intersection(real).area / shape.union(real).area
    assert iou > 0.6, iou
    assert len(others) >= 1
    assert best.extra == {"level": 0, "model": "nano"}
    asked = len(drawing.asked)
    list(backend.preview(Clicks((spot,), (1,)), 0))
    assert len(drawing.asked) == asked  # the second click encodes nothing


@pytest.mark.slow
@pytest.mark.parametrize("level", [0, None])
def test_the_sketch_of_a_house_is_much_like_the_answer(
    backend: RealBackend, drawing: Drawing, level: int | None
) -> None:
    clicks = Clicks((place(drawing, 1080, 762),), (1,))
    sketch = backend.sketch(clicks, level)
    assert sketch is not None
    asked = len(drawing.asked)
    best = next(backend.preview(clicks, level))
    one, other = shapely.from_wkb(sketch.wkb), shapely.from_wkb(best.wkb)
    assert one.intersection(other).area / one.union(other).area > 0.5
    assert asked == 1
    more = Clicks((*clicks.points, place(drawing, 1080, 900)), (1, 0))
    assert (backend.sketch(more, level) is None) == (level == 0)  # one decoding answers it


@pytest.mark.slow
def test_following_pausing_in_another_process_and_correcting(
    backend: RealBackend, drawing: Drawing, tmp_path: Path
) -> None:
    spot = place(drawing, 600, 2730)  # a highway
    follower = backend.follow(Clicks((spot,), (1,)), 0, {"max_frames": 3})
    steps = []
    for step in follower:
        steps.append(step)
        follower.save(tmp_path / "run.npz")
    assert [step.done for step in steps] == list(range(1, len(steps) + 1))
    assert shapely.from_wkb(follower.found().wkb).is_valid
    second = RealBackend()
    second.load("rapid", "cpu")
    second.open(description(EXAMPLE), drawing, lambda: None)
    again = second.restore(tmp_path / "run.npz")
    before = again._panning.done
    step = again.correct(Clicks((place(drawing, 600, 2600),), (0,)))
    assert step.done > before
    json.dumps(again.found().header())


@pytest.mark.slow
def test_everything_in_a_corner_and_a_cancel_in_the_middle(
    backend: RealBackend, drawing: Drawing
) -> None:
    x, y = place(drawing, 1000, 700)
    bounds = (x, y - 40, x + 40, y)
    found = [
        item for step in backend.everything(bounds, 1, {"points": [16]}) for item in step.found
    ]
    assert found
    assert all(shapely.from_wkb(item.wkb).is_valid for item in found)
    assert all(math.isclose(item.cell, 2 * description(EXAMPLE).resolutions[0]) for item in found)
    options = {"points": [8], "enlarge": 2}
    bounds = (x, y - 10, x + 10, y)
    found = [item for step in backend.everything(bounds, 0, options) for item in step.found]
    assert found
    native = description(EXAMPLE).resolutions[0]
    assert all(math.isclose(item.cell, native / 2) for item in found)
    drawing.raises = Cancelled()
    with pytest.raises(Cancelled):
        list(backend.everything((x + 100, y - 200, x + 140, y - 160), 0, {}))


@pytest.mark.slow
def test_a_stack_that_the_client_draws_is_followed_as_its_files_are(
    backend: RealBackend, drawing: Drawing
) -> None:
    """The same house twice: what comes back is what `track` finds in the files."""
    import geosam2

    spot = place(drawing, 1080, 762)
    mine = description(EXAMPLE)
    scenes = [mine, dataclasses.replace(mine, number=1)]
    backend.open_stack(scenes, ["2019", "2020"], drawing, lambda: None, {"max_frames": 4})
    first, second = backend.track(Clicks((spot,), (1,)), 0)
    table = geosam2.track({"2019": EXAMPLE, "2020": EXAMPLE}, points=[spot], max_frames=4)
    assert [first.found_by, second.found_by] == list(table.found_by) == ["prompt", "click"]
    assert first.agreement is None
    assert second.agreement == pytest.approx(table.agreement[1], abs=0.05)
    for seen, theirs in zip((first, second), table.geometry, strict=True):
        assert seen.found is not None
        shape = shapely.from_wkb(seen.found.wkb)
        # the client's levels end where the file's go on, so the click chooses among fewer zooms
        assert shape.intersection(theirs).area / shape.union(theirs).area > 0.8
        assert seen.found.extra == {"model": "nano"}
    json.dumps(second.found.header())  # type: ignore[union-attr]
