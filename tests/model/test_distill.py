"""A trunk that learns a larger network's features; that network against its published form."""

from __future__ import annotations

import copy
from pathlib import Path

import geosam2_model
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from geosam2_model.errors import CheckpointError
from geosam2_model.sam2 import SAM2
from geosam2_model.training import data, distill, features, teacher


def crops() -> data.Crops:
    """One made-up picture: a bright square on dark noise."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 90, (400, 400, 3), dtype=np.uint8)
    pixels[150:220, 150:220] += 120
    labels = np.zeros((400, 400), np.int32)
    labels[150:220, 150:220] = 1
    return data.Crops([(1.0, [data.Picture("square", pixels, [labels])])])


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> features.Lesson:
    torch.manual_seed(0)
    trunk, rng = teacher.TinyViT().eval(), np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("features") / "lesson"
    found = features.prepare(trunk, crops(), 4, rng, folder)
    assert [p.name for p in folder.parent.iterdir()] == ["lesson"]
    return found


def test_a_lesson_has_standard_channels(lesson: features.Lesson) -> None:
    assert lesson.pixels.shape == (4, 3, 256, 256)
    assert lesson.features.shape == (4, 608, 32, 32)
    each = lesson.features.astype(np.float32).transpose(1, 0, 2, 3).reshape(608, -1)
    assert np.abs(each.mean(1)).max() < 0.1
    assert 0.8 < each.std(1).min() <= each.std(1).max() < 1.1


def distance(model: SAM2, lesson: features.Lesson) -> float:
    """Of the lesson's features from what can be read off the trunk."""
    reader = features.Reader.fitted(model, lesson)
    with torch.no_grad():
        return float(reader.loss(model, *lesson.some(np.arange(4))))


def test_a_fitted_reader_is_the_best_there_is(
    lesson: features.Lesson, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "RIDGE", 1e-6)
    model = geosam2_model.load("nano")
    reader = features.Reader.fitted(model, lesson)
    pixels, wanted = lesson.some(np.arange(4))
    with torch.no_grad():
        x = features.side_by_side(model, pixels)
        fitted = F.mse_loss(reader(x), wanted)
        assert fitted < wanted.square().mean()
        for factor in (0.97, 1.03):
            other = copy.deepcopy(reader)
            other.weight.mul_(factor)
            assert F.mse_loss(other(x), wanted) > fitted


def test_a_trunk_learns_and_its_readers_follow(
    lesson: features.Lesson, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "BATCH", 2)
    before = geosam2_model.load("nano")
    model = copy.deepcopy(before)
    rng = np.random.default_rng(0)
    distill.learn(model, lesson, 8, rng)
    assert distance(model, lesson) < distance(before, lesson)
    decoder = copy.deepcopy(model.sam_mask_decoder.state_dict())
    trunk = copy.deepcopy(model.image_encoder.trunk.state_dict())
    start = distill.refit(model, before, lesson, 1, rng)
    assert distill.refit(model, before, lesson, 8, rng) < start
    for part, kept in ((model.sam_mask_decoder, decoder), (model.image_encoder.trunk, trunk)):
        assert all(torch.equal(x, kept[name]) for name, x in part.state_dict().items())


def test_windows_hold_maps_of_any_size() -> None:
    block = teacher.AttentionBlock(teacher.STAGES[2]).eval()
    x = torch.randn(1, 160, 15, 22)
    assert block(x).shape == x.shape
    # cells of other windows do not matter to the attention
    other = x.clone()
    other[..., 14:] += 1
    assert torch.equal(block._within_windows(x)[..., :8], block._within_windows(other)[..., :8])


def test_another_file_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    empty = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    onnx.save(empty, tmp_path / "empty.onnx")
    with pytest.raises(CheckpointError, match=r"empty\.onnx is not MobileSAM's encoder"):
        teacher.load_teacher(tmp_path / "empty.onnx")


@pytest.mark.slow
@pytest.mark.peers
def test_the_teacher_is_mobile_sam(monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(teacher, "PADDING", "constant")
    monkeypatch.setattr(teacher, "window_side", lambda length, most: most)
    try:
        path = teacher.mobile_sam()[0]
    except CheckpointError as error:
        if "check the network" not in str(error):
            raise
        pytest.skip(str(error))
    graph = onnx.load(path)
    layers = [f"/layers.{i}/downsample/conv1/c/Conv" for i in range(3)] + ["/neck/neck.0/Conv"]
    nodes = {node.name: node for node in graph.graph.node}
    names = [nodes[layer].input[0] for layer in layers]
    for name in names:
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        graph.graph.output.append(value)
    session = runtime.InferenceSession(graph.SerializeToString())
    x = torch.nn.functional.interpolate(torch.randn(1, 3, 64, 64), (1024, 1024), mode="bilinear")
    with torch.no_grad():
        fine, middle, coarse = teacher.load_teacher(path)(x)
    ours = (fine, middle, *coarse.split([160, 320], dim=1))
    for found, wanted in zip(ours, session.run(names, {"input": x.numpy()}), strict=True):
        assert (found - torch.from_numpy(wanted).reshape(found.shape)).abs().max() < 1e-3
