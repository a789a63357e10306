"""The cache of encoded frames: bounds, damage, other processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import geosam2
from geosam2.cache import EmbeddingCache, FrameEncoder
from geosam2.files import write_atomically
from geosam2.testing import synthetic_scene, write_geotiff
from geosam2.testing.colour_model import ColourModel


def tensors(value: float = 1.0, count: int = 25) -> dict[str, torch.Tensor]:
    return {"embedding": torch.full((count,), float(value))}  # 100 bytes


def test_memory_is_bounded_and_drops_the_least_recently_used():
    cache = EmbeddingCache(folder=None, memory_bytes=250)
    cache.put("a", tensors(1))
    cache.put("b", tensors(2))
    cache.get("a")
    cache.put("c", tensors(3))
    assert cache.get("b") is None
    assert cache.get("a")["embedding"][0] == 1
    assert (cache.hits, cache.misses) == (2, 1)


def test_another_cache_reads_what_was_written(tmp_path):
    EmbeddingCache(tmp_path).put("key", tensors(7))
    found = EmbeddingCache(tmp_path).get("key")
    assert torch.equal(found["embedding"], tensors(7)["embedding"])


def test_disk_is_bounded(tmp_path):
    cache = EmbeddingCache(tmp_path, disk_bytes=2000)
    for number in range(60):
        cache.put(str(number), tensors())
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < 2000 + 17 * 400  # looked at every 16 writes


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_file_is_ignored(tmp_path, damage):
    EmbeddingCache(tmp_path).put("key", tensors())
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-10] if damage is None else damage)
    assert EmbeddingCache(tmp_path).get("key") is None


def test_a_file_with_another_key_inside_is_ignored(tmp_path):
    cache = EmbeddingCache(tmp_path)
    cache.put("one", tensors(1))
    cache._path("one").rename(cache._path("two"))
    assert EmbeddingCache(tmp_path).get("two") is None


def test_a_full_disk_only_means_no_disk_cache(tmp_path, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    cache = EmbeddingCache(tmp_path)
    with caplog.at_level(logging.WARNING):
        cache.put("key", tensors(5))
    assert "memory only" in caplog.text
    assert cache.get("key")["embedding"][0] == 5
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_written_whole_may_be_read_by_whom_the_user_allows(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"for the group")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def _hammer(folder: Path, seed: int) -> None:
    cache = EmbeddingCache(folder, memory_bytes=0, disk_bytes=3000)
    order = np.random.default_rng(seed).integers(0, 8, 150)
    for number in order:
        found = cache.get(str(number))
        assert found is None or bool((found["embedding"] == number).all())
        cache.put(str(number), tensors(float(number)))


def test_two_processes_may_use_one_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_hammer, args=(tmp_path, seed)) for seed in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    made = synthetic_scene(1, 256, kinds=["lake"])
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    return write_geotiff(path, made.pixels, made.geobox)


def test_frames_are_encoded_once_also_over_processes(scene, tmp_path):
    opened = geosam2.open_scene(scene)
    level = opened.levels[0]
    window = level.extent._replace(height=128, width=128)
    first = FrameEncoder(opened, ColourModel(128), EmbeddingCache(tmp_path))
    second = FrameEncoder(geosam2.open_scene(scene), ColourModel(128), EmbeddingCache(tmp_path))
    a, b = first(level, window), second(level, window)
    assert (first.encoded, second.encoded) == (1, 0)
    assert torch.equal(a.features.embedding, b.features.embedding)
    assert np.array_equal(a.valid, b.valid)
    assert a.geobox == b.geobox


def test_another_stretch_window_level_or_model_is_another_key(scene):
    opened = geosam2.open_scene(scene)
    model = ColourModel(128)
    level = opened.levels[0]
    window = level.extent._replace(height=128, width=128)
    encoder = FrameEncoder(opened, model)
    other = ColourModel(128)
    other.fingerprint = "other"
    stretched = geosam2.open_scene(scene, stretch=(0, 100))
    keys = {
        encoder.key(level, window),
        encoder.key(level, window._replace(row=window.row + 16)),
        FrameEncoder(opened, other).key(level, window),
        FrameEncoder(stretched, model).key(stretched.levels[0], window),
    }
    assert len(keys) == 4
