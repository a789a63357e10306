"""The same weights in Meta's sam2 1.1.0 and in ours give the same numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from geosam2_model.config import VARIANTS
from geosam2_model.prompt_encoder import Prompts
from geosam2_model.sam2 import SAM2
from geosam2_model.video_predictor import VideoPredictor
from PIL import Image

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
build_sam = pytest.importorskip("sam2.build_sam")

SIDE = 128
TOLERANCE = 1e-4
SIZES = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}
# the tiny ones are quick; all eight are compared in CI
VARIANT_NAMES = [
    pytest.param(name, marks=[] if name == "sam2.1_tiny" else [pytest.mark.slow])
    for name in VARIANTS
    if name != "nano"
]


def build_pair(name: str, *, visible: bool = True, side: int = SIDE) -> tuple[Any, SAM2]:
    """Meta's video predictor with random weights, and ours with the same."""
    family, size = name.split("_", 1)
    torch.manual_seed(3)
    meta = build_sam.build_sam2_video_predictor(
        f"configs/{family}/{family}_hiera_{SIZES[size]}.yaml",
        device="cpu",
        hydra_overrides_extra=[f"++model.image_size={side}"],
    )
    meta.fill_hole_area = 0  # needs Meta's CUDA extension
    for parameter in meta.parameters():
        if parameter.numel() == 1 or parameter.std() == 0:  # zeros and ones would hide mistakes
            parameter.data += 0.05 * torch.randn_like(parameter)
    meta.sam_mask_decoder.pred_obj_score_head.layers[2].bias.data += 5.0 if visible else -5.0
    ours = SAM2(replace(VARIANTS[name], image_size=side)).eval()
    ours.load_state_dict(meta.state_dict())
    return meta, ours


@pytest.fixture
def float_memories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta rounds memories to bfloat16 and, without autocast, cannot always read them back."""
    monkeypatch.setattr(torch, "bfloat16", torch.float32)


def pixels(side: int = SIDE, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, generator=generator)


def normalised(x: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (x / 255 - mean[:, None, None]) / std[:, None, None]


def assert_same(ours: torch.Tensor, meta: torch.Tensor) -> None:
    assert ours.shape == meta.shape
    difference = (ours - meta).abs().max() / meta.abs().max()
    assert difference < TOLERANCE, f"relative difference {difference:.1e}"


@pytest.mark.parametrize("name", VARIANT_NAMES)
def test_weights_have_the_same_names_and_shapes(name: str) -> None:
    family, size = name.split("_", 1)
    meta = build_sam.build_sam2(f"configs/{family}/{family}_hiera_{SIZES[size]}.yaml", device="cpu")
    with torch.device("meta"):
        ours = SAM2(VARIANTS[name])
    shapes = [{k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (meta, ours)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", VARIANT_NAMES)
@torch.no_grad()
def test_image_features_masks_and_memory_are_the_same(name: str) -> None:
    meta, ours = build_pair(name, side=256)  # padded windows, and more than one of them
    x = pixels(256)
    features, encoded = ours.encode(x), meta.forward_image(normalised(x))
    maps = encoded["backbone_fpn"]
    for mine, theirs in zip((*features.high_res, features.embedding), maps, strict=True):
        assert_same(mine, theirs)

    points = torch.tensor([[[30.0, 40.0], [100.0, 20.0]], [[5.0, 6.0], [0.0, 0.0]]])
    labels = torch.tensor([[1, 0], [1, -1]])
    masks = torch.randn(2, 1, 64, 64)
    for mask, multimask in ((None, True), (None, False), (masks, False)):
        sparse, dense = meta.sam_prompt_encoder((points, labels), None, mask)
        logits, iou, _, score = meta.sam_mask_decoder(
            image_embeddings=maps[2] + meta.no_mem_embed[0, 0, :, None, None],
            image_pe=meta.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            repeat_image=True,
            high_res_features=maps[:2],
        )
        out = ours.decode(features, Prompts(points, labels, masks=mask), multimask)
        assert_same(out.logits, logits)
        assert_same(out.predicted_iou, iou)
        assert_same(out.object_score, score[:, 0])

    # `out` is the last one, with a mask prompt: remember it as Meta does
    _, tokens, _, sizes = meta._prepare_backbone_features(encoded)
    large = torch.nn.functional.interpolate(out.logits, (256, 256), mode="bilinear")
    for prompted in (True, False):
        theirs, _ = meta._encode_new_memory(
            [t.expand(-1, 2, -1) for t in tokens], sizes, large, out.object_score[:, None], prompted
        )
        assert_same(ours.remember(features, out, prompted=prompted).features, theirs)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """Ten JPEG frames of a moving bright square, and what PIL reads back."""
    folder = tmp_path_factory.mktemp("frames")
    random = np.random.default_rng(0)
    background = random.integers(0, 160, (SIDE, SIDE, 3))
    frames = []
    for i in range(10):
        frame = background.copy()
        frame[20 + 4 * i : 60 + 4 * i, 30 + 3 * i : 70 + 3 * i] += 90
        Image.fromarray(frame.astype(np.uint8)).save(folder / f"{i:05d}.jpg")
        with Image.open(folder / f"{i:05d}.jpg") as image:
            frames.append(np.asarray(image.convert("RGB")))
    return folder, frames


@pytest.mark.parametrize(
    ("name", "visible"),
    [
        ("sam2.1_tiny", True),
        pytest.param("sam2.1_tiny", False, marks=pytest.mark.slow),
        *(
            pytest.param(name, True, marks=pytest.mark.slow)
            for name in VARIANTS
            if name not in ("nano", "sam2.1_tiny")
        ),
    ],
)
def test_a_video_of_two_objects_with_a_correction_is_the_same(
    name: str, visible: bool, video: tuple[Path, list[np.ndarray]], float_memories: None
) -> None:
    """Object 2 starts on frame 3; after ten frames object 1 is corrected on 5 and followed on."""
    meta, ours = build_pair(name, visible=visible)
    folder, frames = video
    state = meta.init_state(str(folder))
    mine = VideoPredictor(ours, frames)

    def compare(theirs: tuple[int, list[int], torch.Tensor], result: Any) -> None:
        assert (theirs[0], tuple(theirs[1])) == (result.frame, result.object_ids)
        assert_same(result.logits, theirs[2][:, 0])

    points, labels = [[50.0, 40.0], [10.0, 100.0]], [1, 0]
    compare(
        meta.add_new_points_or_box(state, 0, 1, points=points, labels=labels),
        mine.prompt(0, 1, points=points, labels=labels),
    )
    compare(
        meta.add_new_points_or_box(state, 3, 2, box=[40, 32, 82, 74]),
        mine.prompt(3, 2, box=[40, 32, 82, 74]),
    )
    for theirs, result in zip(meta.propagate_in_video(state), mine.track(), strict=True):
        compare(theirs, result)
    compare(
        meta.add_new_points_or_box(state, 5, 1, points=[[70.0, 60.0]], labels=[1]),
        mine.prompt(5, 1, points=[[70.0, 60.0]]),
    )
    again = zip(meta.propagate_in_video(state, 5), mine.track(5), strict=True)
    for theirs, result in again:
        compare(theirs, result)
    back = zip(
        meta.propagate_in_video(state, 4, reverse=True), mine.track(4, reverse=True), strict=True
    )
    for theirs, result in back:
        compare(theirs, result)


@torch.no_grad()
def test_a_mask_as_prompt_is_the_same(
    video: tuple[Path, list[np.ndarray]], float_memories: None
) -> None:
    meta, ours = build_pair("sam2.1_tiny")
    folder, frames = video
    mask = np.zeros((SIDE, SIDE), bool)
    mask[20:60, 30:70] = True
    state = meta.init_state(str(folder))
    mine = VideoPredictor(ours, frames)
    meta.add_new_mask(state, 0, 1, mask)
    mine.prompt(0, 1, mask=mask)
    tracked = zip(meta.propagate_in_video(state, 0, 3), mine.track(0, max_frames=4), strict=True)
    for theirs, result in tracked:
        assert_same(result.logits, theirs[2][:, 0])
