"""Following with the real network: what the colour stand-in cannot show."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from geosam2_model import SAM2, VARIANTS

import geosam2
from geosam2.cache import EmbeddingCache
from geosam2.commands.demo import _on_map, example
from geosam2.masklet import Gate, PanOptions
from geosam2.prompts import Prompt
from geosam2.propagate import Panning
from geosam2.segmenter import Segmenter
from geosam2.testing import synthetic_scene, write_geotiff

ANYTHING = Gate(object_score=-1e9, agreement=-1, predicted_iou=-1)


@pytest.fixture(scope="module")
def model():
    """The embedded architecture on small frames, with random weights: mechanics, not masks."""
    torch.manual_seed(0)
    made = SAM2(replace(VARIANTS["nano"], image_size=128)).eval()
    made.fingerprint = "random"
    return made


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    made = synthetic_scene(3, 384, kinds=["lake", "field"])
    return write_geotiff(tmp_path_factory.mktemp("scene") / "scene.tif", made.pixels, made.geobox)


def panning(scene, model, **options):
    opened = geosam2.open_scene(scene)
    left, bottom, right, top = opened.bounds
    prompt = Prompt(points=(((left + right) / 2, (bottom + top) / 2),))
    options = PanOptions(max_frames=6, gate=ANYTHING, **options)
    return Panning(opened, model, prompt, options=options)


@pytest.mark.parametrize("positions", ["map", "frame"])
def test_a_stored_memory_bank_gives_the_same_logits_to_the_last_bit(
    scene, model, tmp_path, positions
):
    straight = panning(scene, model, positions=positions)
    steps = list(straight)
    if len(steps) < 3:
        pytest.skip("the random mask touches no border")
    run = panning(scene, model, positions=positions)
    run.step()
    run.step()
    run.save(tmp_path / "run.safetensors")
    later = Panning.load(tmp_path / "run.safetensors", geosam2.open_scene(scene), model)
    list(later)
    assert straight.mosaic.patches.keys() == later.mosaic.patches.keys()
    for key, patch in straight.mosaic.patches.items():
        assert np.array_equal(patch.logits, later.mosaic.patches[key].logits)


def test_memory_and_known_logits_reach_the_network(scene, model):
    """Each of them changes what the second frame says, so an ablation measures something."""
    runs = {
        name: panning(scene, model, **options)
        for name, options in {
            "both": {},
            "memory": {"use_known": False},
            "known": {"use_memory": False},
        }.items()
    }
    second = {}
    for name, run in runs.items():
        first = run.step()
        if run.finished:
            pytest.skip("the random mask touches no border")
        second[name] = run.step()
        assert first.index == runs["both"].grid.index_at(*run.prompts[0].anchor)
    assert {step.index for step in second.values()} == {second["both"].index}
    assert not np.array_equal(second["both"].logits, second["memory"].logits)
    assert not np.array_equal(second["both"].logits, second["known"].logits)


@pytest.fixture(scope="module")
def banepa():
    return Segmenter(str(example("banepa.tif")), "nano", cache=EmbeddingCache(folder=None))


def click(column, row):
    return Prompt(points=(_on_map(column, row),), crs="EPSG:3857")


def test_a_house_of_the_example_is_found(banepa):
    from geosam2.commands.demo import _truth_iou

    found = banepa.to_frame([banepa.predict(click(1080, 762))[0].masklet])
    assert _truth_iou(found) > 0.75


def test_the_second_click_near_the_first_is_much_faster(banepa):
    spots = [(2310, 2450), (2320, 2440), (2300, 2460)]
    banepa.encoder.cache.clear()
    banepa.predict(click(1080, 762))  # warm
    banepa.encoder.cache.clear()
    encoded = banepa.encoder.encoded
    times = []
    for spot in spots:
        started = time.process_time()
        banepa.predict(click(*spot))
        times.append(time.process_time() - started)
    assert banepa.encoder.encoded == encoded + 1
    assert min(times[1:]) < times[0]


def test_two_crops_of_the_scene_give_the_same_polygon(banepa):
    whole = banepa.predict(click(1080, 762))[0].polygon()
    x, y = _on_map(1080, 762)
    crop = geosam2.open_scene(example("banepa.tif"), bounds=(x - 60, y - 40, x + 50, y + 70))
    part = Segmenter(crop, banepa.model, cache=EmbeddingCache(folder=None))
    other = part.predict(click(1080, 762))[0].polygon()
    # same frame, same pixels: nothing may differ
    assert whole.equals_exact(other, 1e-6)
