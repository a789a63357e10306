"""Image and video predictors: sizes, sources, order of work, and what they refuse."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from geosam2_model.config import VARIANTS
from geosam2_model.errors import InputError, ModelError
from geosam2_model.frames import open_frames
from geosam2_model.image_predictor import ImagePredictor, prompts_in
from geosam2_model.sam2 import SAM2
from geosam2_model.video_predictor import VideoPredictor
from PIL import Image

TOY = replace(
    VARIANTS["sam2.1_tiny"], image_size=64, embed_dim=16, d_model=32, mem_dim=16,
    skip_channels=(4, 8), decoder_heads=2, decoder_mlp=32, memory_mlp=32, memory_layers=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def toy() -> SAM2:
    torch.manual_seed(2)
    model = SAM2(TOY).eval()
    model.sam_mask_decoder.pred_obj_score_head.layers[2].bias.data += 5.0
    return model


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (8, 48, 80, 3)).astype(np.uint8)


def test_an_image_of_any_size_gives_masks_of_its_size(toy: SAM2, frames: np.ndarray) -> None:
    predictor = ImagePredictor(toy)
    predictor.set_image(frames[0])
    result = predictor.predict(points=[[[40, 20]], [[10, 40]]], labels=[[1], [1]])
    assert result.logits.shape == (2, 3, 48, 80)
    assert torch.equal(result.masks, result.logits > 0)
    refined = predictor.predict(points=[[40, 20]], mask=result.low_res[:1, :1], multimask=False)
    assert refined.logits.shape == (1, 1, 48, 80)
    assert not torch.allclose(refined.logits[0, 0], result.logits[0, 0])


def test_prompts_are_scaled_to_the_network() -> None:
    prompts = prompts_in((48, 80), (64, 64), points=[[40, 24]], boxes=[0, 12, 80, 48])
    assert prompts.points is not None
    assert prompts.boxes is not None
    assert prompts.points.tolist() == [[[32, 32]]]
    assert prompts.boxes.tolist() == [[0, 16, 64, 64]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Nothing is prompted"),
        ({"points": [[90, 10]]}, r"\(90, 10\) is outside the image of 80 x 48"),
        ({"points": [[-1, 10]]}, "outside"),
        ({"points": np.zeros((0, 2))}, "list of points is empty"),
        ({"points": [[np.nan, 1]]}, "NaN"),
        ({"labels": [1]}, "without points"),
        ({"boxes": [10, 10, 5, 20]}, "A box is empty"),
    ],
)
def test_bad_prompts_are_named(
    toy: SAM2, frames: np.ndarray, arguments: dict[str, object], message: str
) -> None:
    predictor = ImagePredictor(toy)
    predictor.set_image(frames[0])
    with pytest.raises(InputError, match=message):
        predictor.predict(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((5, 5)),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3)),
        np.zeros((0, 5, 3), "u1"),
    ],
)
def test_bad_images_are_named(toy: SAM2, image: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"expected \(H, W, 3\) uint8|empty"):
        ImagePredictor(toy).set_image(image)


def test_an_image_must_be_set_first(toy: SAM2) -> None:
    with pytest.raises(InputError, match="set_image first"):
        ImagePredictor(toy).predict(points=[[1, 1]])


def test_an_iterator_is_followed_one_frame_at_a_time(toy: SAM2, frames: np.ndarray) -> None:
    read: list[int] = []

    def source() -> Iterator[np.ndarray]:
        for i, frame in enumerate(frames):
            read.append(i)
            yield frame

    streamed = VideoPredictor(toy, source(), num_frames=8)
    listed = VideoPredictor(toy, frames)
    for video in (streamed, listed):
        video.prompt(0, "a", points=[[40, 20]])
    assert read == [0]
    for one, other in zip(streamed.track(), listed.track(), strict=True):
        assert read[-1] == one.frame
        assert torch.equal(one.logits, other.logits)
        assert one.logits.shape == (1, 48, 80)
    assert read == list(range(8))
    with pytest.raises(InputError, match=r"Frame 2 has passed.*give a list"):
        streamed.prompt(2, "a", points=[[40, 20]])


def test_pausing_changes_nothing(toy: SAM2, frames: np.ndarray) -> None:
    whole, paused = VideoPredictor(toy, frames), VideoPredictor(toy, frames)
    for video in (whole, paused):
        video.prompt(0, 1, points=[[40, 20]])
        video.prompt(0, 2, box=[5, 5, 30, 30])
    results = list(paused.track(max_frames=3))
    results += list(paused.track(3))
    assert [r.frame for r in results] == list(range(8))
    for one, other in zip(results, whole.track(), strict=True):
        assert torch.equal(one.logits, other.logits)


def test_objects_are_added_corrected_and_removed_on_the_way(toy: SAM2, frames: np.ndarray) -> None:
    video = VideoPredictor(toy, frames)
    video.prompt(2, "a", points=[[40, 20]])
    before = {r.frame: r.logits for r in video.track()}
    assert list(before) == [2, 3, 4, 5, 6, 7]
    corrected = video.prompt(5, "a", points=[[10, 10]], labels=[0])
    assert not torch.allclose(corrected.logits, before[5])
    video.prompt(6, "b", box=[5, 5, 30, 30])
    after = {r.frame: r for r in video.track(6)}
    assert after[7].object_ids == ("a", "b")
    assert not torch.allclose(after[7].logits[0], before[7][0])
    assert [r.frame for r in video.track(2, reverse=True)] == [2, 1, 0]
    video.remove("a")
    assert [r.object_ids for r in video.track(6)] == [("b",), ("b",)]
    with pytest.raises(InputError, match="No object is called 'a'"):
        video.remove("a")


def test_memory_is_flat_in_the_number_of_frames(toy: SAM2, frames: np.ndarray) -> None:
    video = VideoPredictor(toy, (frames[i % 8] for i in range(60)), history=16)
    video.prompt(0, 1, points=[[40, 20]])
    held = []
    for _ in video.track():
        one = video._objects[1]
        held.append((len(one.bank), len(one.seen)))
    assert len(held) == 60
    assert max(held) == (17, 17)


def test_together_objects_are_tracked_as_each_alone(toy: SAM2, frames: np.ndarray) -> None:
    together = VideoPredictor(toy, frames)
    together.prompt(0, 1, points=[[40, 20]])
    together.prompt(3, 2, box=[5, 5, 30, 30])
    rows = [r.logits for r in together.track()]
    for i, (frame, prompt) in enumerate(
        ((0, {"points": [[40, 20]]}), (3, {"box": [5, 5, 30, 30]}))
    ):
        alone = VideoPredictor(toy, frames)
        alone.prompt(frame, 1, **prompt)  # type: ignore[arg-type]
        for one, other in zip(rows, alone.track(0), strict=True):
            torch.testing.assert_close(one[i], other.logits[0], rtol=1e-4, atol=1e-4)


def test_a_mask_is_taken_as_the_truth(toy: SAM2, frames: np.ndarray) -> None:
    mask = np.zeros((48, 80), bool)
    mask[10:30, 20:60] = True
    result = VideoPredictor(toy, frames).prompt(0, 1, mask=mask)
    assert (result.masks[0].numpy() == mask).mean() > 0.95
    with pytest.raises(InputError, match=r"has shape .5, 5.; the frame has .48, 80."):
        VideoPredictor(toy, frames).prompt(0, 1, mask=np.zeros((5, 5)))
    with pytest.raises(InputError, match="without points and box"):
        VideoPredictor(toy, frames).prompt(0, 1, mask=mask, points=[[1, 1]])


def test_frames_of_a_folder_come_in_the_order_of_their_numbers(
    tmp_path: Path, frames: np.ndarray
) -> None:
    for i, name in enumerate(("2.png", "10.png", "1.png")):
        Image.fromarray(frames[i]).save(tmp_path / name)
    source = open_frames(tmp_path)
    assert source.count == 3
    for number, i in enumerate((2, 0, 1)):
        assert np.array_equal(source.get(number), frames[i])
    (tmp_path / "3.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"3.png is not a readable picture"):
        open_frames(tmp_path).get(2)


def test_a_video_file_gives_the_frames_in_any_order(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "video.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.gop_size = 64, 48, 12
        for i in range(30):  # every frame has a grey of its own
            picture = np.full((48, 64, 3), 8 * i, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    with av.open(str(path)) as container:
        pictures = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    source = open_frames(path)
    assert source.count == len(pictures) == 30
    assert not np.array_equal(pictures[14], pictures[15])
    for number in (0, 1, 2, 29, 15, 14, 3):
        assert np.array_equal(source.get(number), pictures[number])
    with pytest.raises(IndexError):
        source.get(30)


def test_without_pyav_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "x.mp4").touch()
    with pytest.raises(ModelError, match=r"pip install 'geosam2\[video\]'"):
        open_frames(tmp_path / "x.mp4")


def test_unreadable_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no frames"):
        open_frames(tmp_path)
    with pytest.raises(InputError, match="no folder or video file"):
        open_frames(tmp_path / "nowhere.mp4")
    pytest.importorskip("av")
    (tmp_path / "bad.mp4").write_bytes(b"not a video" * 100)
    with pytest.raises(InputError, match="not a readable video"):
        open_frames(tmp_path / "bad.mp4")


def test_tracking_needs_a_prompt_on_an_existing_frame(toy: SAM2, frames: np.ndarray) -> None:
    video = VideoPredictor(toy, frames)
    with pytest.raises(InputError, match=r"call prompt\(\) first"):
        next(video.track())
    with pytest.raises(InputError, match="There is no frame 8; the video has 8"):
        video.prompt(8, 1, points=[[1, 1]])
