"""Coarse to fine: from one level to another."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize

from geosam2 import quality
from geosam2.cache import EmbeddingCache
from geosam2.prompts import Prompt
from geosam2.refine import rescaled
from geosam2.runs import PromptedRun, Task
from geosam2.segmenter import Segmenter
from geosam2.testing import write_geotiff
from geosam2.testing.colour_model import ColourModel
from geosam2.vectorize import from_mosaic

LEFT, TOP = 500_000.0, 4_600_000.0
LAKE = shapely.Point(300, 280).buffer(170).difference(shapely.Point(350, 250).buffer(40))
TRUTH = shapely.transform(LAKE, lambda p: p * [1, -1] + [LEFT, TOP])


def segmenter(folder, height: int, width: int) -> Segmenter:
    pixels = np.empty((3, height, width), np.uint8)
    pixels[:] = np.array((60, 110, 50), np.uint8)[:, None, None]
    pixels[:, rasterize([LAKE], (height, width)).astype(bool)] = np.array((40, 70, 170))[:, None]
    geobox = GeoBox((height, width), Affine(1, 0, LEFT, 0, -1, TOP), "EPSG:32633")
    path = write_geotiff(folder / "scene.tif", pixels, geobox, block=64)
    return Segmenter(path, ColourModel(256), cache=EmbeddingCache(folder=None))


@pytest.mark.parametrize(("height", "width"), [(640, 640), (637, 641), (570, 523)])
def test_what_a_coarse_level_shows_is_at_the_same_place_on_a_finer_one(tmp_path, height, width):
    """Sides that are no multiple of 4: pixels of overviews are not just 4 times larger."""
    it = segmenter(tmp_path, height, width)
    coarse = it.predict(Prompt(((LEFT + 250, TOP - 350),)), level=2)[0].masklet
    before = from_mosaic(coarse.mosaic)
    assert quality.polygon_iou(before, TRUTH) > 0.95
    moved = from_mosaic(rescaled(coarse.mosaic, coarse.level, it.scene.level(0)))
    assert quality.polygon_iou(before, moved) > 0.98
    for run in it.refinements(coarse):
        list(run)
        refined = run.masklet
    assert refined.level.index == 0
    assert all(report.accepted for report in refined.frames)
    assert quality.polygon_iou(from_mosaic(refined.mosaic), TRUTH) > 0.985


@pytest.mark.parametrize(("refine", "finest"), [(None, 2), (True, 0)])
def test_what_is_followed_at_a_level_is_refined_if_asked(tmp_path, refine, finest):
    it, click = segmenter(tmp_path, 640, 640), Prompt(((LEFT + 250, TOP - 350),))
    (masklet,) = it.objects([click], level=2, refine=refine)
    assert masklet.level.index == finest
    run = PromptedRun(it, Task((click,), level=2, refine=refine))
    phases = {phase for _, phase, _ in run}
    assert ("refine" in phases) == bool(refine)
    assert run.rows[0]["level"] == masklet.level.label
