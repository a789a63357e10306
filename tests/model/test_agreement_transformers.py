"""The same weights in Hugging Face's Sam2VideoModel and in ours give the same masks."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from geosam2_model.config import VARIANTS
from geosam2_model.sam2 import SAM2
from geosam2_model.video_predictor import VideoPredictor
from torch import Tensor

pytestmark = [pytest.mark.peers, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
transformers = pytest.importorskip("transformers")

SIDE = 128

# Meta's name -> Hugging Face's, tried in order
RENAMES = [
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"^sam_prompt_encoder\.mask_downscaling\.0", "prompt_encoder.mask_embed.conv1"),
    (r"^sam_prompt_encoder\.mask_downscaling\.1", "prompt_encoder.mask_embed.layer_norm1"),
    (r"^sam_prompt_encoder\.mask_downscaling\.3", "prompt_encoder.mask_embed.conv2"),
    (r"^sam_prompt_encoder\.mask_downscaling\.4", "prompt_encoder.mask_embed.layer_norm2"),
    (r"^sam_prompt_encoder\.mask_downscaling\.6", "prompt_encoder.mask_embed.conv3"),
    (r"^sam_prompt_encoder\.pe_layer\..*", "prompt_encoder.shared_embedding.positional_embedding"),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"^sam_mask_decoder\.output_upscaling\.0", "mask_decoder.upscale_conv1"),
    (r"^sam_mask_decoder\.output_upscaling\.1", "mask_decoder.upscale_layer_norm"),
    (r"^sam_mask_decoder\.output_upscaling\.3", "mask_decoder.upscale_conv2"),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"^obj_ptr_proj\.", "object_pointer_proj."),
    (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
    (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
    (r"^no_obj_ptr$", "no_object_pointer"),
    (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
    (r"pix_feat_proj", "feature_projection"),
    (r"memory_encoder\.out_proj", "memory_encoder.projection"),
    (r"fuser\.layers\.(\d)\.gamma", r"memory_fuser.layers.\1.scale"),
    (r"\.fuser\.", ".memory_fuser."),
    (r"dwconv", "depthwise_conv"),
    (r"pwconv", "pointwise_conv"),
    (r"mask_downsampler\.encoder\.12", "mask_downsampler.final_conv"),
    (r"out_proj", "o_proj"),
    (r"norm_final_attn", "layer_norm_final_attn"),
    (r"\bnorm(\d?)\b", r"layer_norm\1"),
]  # fmt: skip
THREE_LAYERS = re.compile(r"(hypernetworks_mlps\.\d|iou_prediction_head|score_head|pointer_proj)")


def renamed(name: str) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    if THREE_LAYERS.search(name):
        name = re.sub(
            r"layers\.([012])",
            lambda m: ("proj_in", "layers.0", "proj_out")[int(m[1])],
            name,
        )
    elif match := re.search(r"mask_downsampler\.encoder\.(\d+)", name):
        number = int(match[1])
        part = f"layers.{number // 3}.{('conv', 'layer_norm')[number % 3]}"
        name = name.replace(f"encoder.{number}", part)
    else:
        name = name.replace("mlp.layers.0", "mlp.proj_in").replace("mlp.layers.1", "mlp.proj_out")
    return name


def converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Meta's state dict under Hugging Face's names."""
    points = [f"sam_prompt_encoder.point_embeddings.{i}.weight" for i in range(4)]
    result = {renamed(k): v for k, v in state.items() if k not in points}
    result["prompt_encoder.point_embed.weight"] = torch.cat([state[k] for k in points])
    positions = result["prompt_encoder.shared_embedding.positional_embedding"]
    return {**result, "shared_image_embedding.positional_embedding": positions}


@pytest.fixture(scope="module")
def pair() -> tuple[Any, SAM2]:
    torch.manual_seed(5)
    ours = SAM2(replace(VARIANTS["sam2.1_tiny"], image_size=SIDE)).eval()
    for parameter in ours.parameters():
        if parameter.numel() == 1 or parameter.std() == 0:
            parameter.data += 0.05 * torch.randn_like(parameter)
    ours.sam_mask_decoder.pred_obj_score_head.layers[2].bias.data += 5.0
    vision = transformers.Sam2VideoConfig().vision_config.to_dict()
    vision["backbone_config"]["image_size"] = [SIDE, SIDE]
    vision["backbone_feature_sizes"] = [[SIDE // s, SIDE // s] for s in (4, 8, 16)]
    config = transformers.Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"image_size": SIDE},
        image_size=SIDE,
        memory_attention_rope_feat_sizes=[SIDE // 16, SIDE // 16],
    )
    theirs = transformers.Sam2VideoModel(config).eval()
    theirs.load_state_dict(converted(ours.state_dict()))
    return theirs, ours


def prompt(
    session: Any, model: Any, frame: int, object_id: int, points: Any, labels: Any
) -> Tensor:
    index = session.obj_id_to_idx(object_id)
    inputs = {"point_coords": torch.tensor(points)[None, None].float(),
              "point_labels": torch.tensor(labels, dtype=torch.int32)[None, None]}  # fmt: skip
    session.add_point_inputs(index, frame, inputs)
    session.obj_with_new_inputs = [object_id]
    result: Tensor = model(session, frame_idx=frame).pred_masks[index]
    return result


def assert_same(low: Tensor, logits: Tensor) -> None:
    """Hugging Face's quarter-size logits and our full-size ones."""
    large = torch.nn.functional.interpolate(low, (SIDE, SIDE), mode="bilinear")[:, 0]
    assert (large - logits).abs().max() < 1e-4 * large.abs().max()


@torch.no_grad()
def test_a_video_of_two_objects_with_a_correction_is_the_same(
    pair: tuple[Any, SAM2], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = pair
    monkeypatch.setattr(torch, "bfloat16", torch.float32)  # Hugging Face rounds its memories
    frames = np.random.default_rng(1).integers(0, 255, (10, SIDE, SIDE, 3)).astype(np.uint8)
    x = torch.tensor(frames).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    session = transformers.Sam2VideoInferenceSession(
        (x - mean[:, None, None]) / std[:, None, None], SIDE, SIDE, dtype=torch.float32
    )
    mine = VideoPredictor(ours, frames)
    clicks = {1: ([[50.0, 40.0], [10.0, 100.0]], [1, 0]), 2: ([[90.0, 90.0]], [1])}
    for object_id, (points, labels) in clicks.items():
        low = prompt(session, theirs, 0, object_id, points, labels)
        result = mine.prompt(0, object_id, points=points, labels=labels)
        assert_same(low[None], result.logits[-1:])
    pairs = zip(theirs.propagate_in_video_iterator(session, 0), mine.track(), strict=True)
    for output, result in pairs:
        assert_same(output.pred_masks, result.logits)
    # Hugging Face forgets the earlier mask when a point corrects it, so a mask is the correction;
    # a band, as Meta and we remember masks at a quarter of the size, which rounds corners
    mask = np.zeros((SIDE, SIDE), bool)
    mask[40:88] = True
    session.add_mask_inputs(session.obj_id_to_idx(1), 5, torch.tensor(mask)[None, None].float())
    session.obj_with_new_inputs = [1]
    low = theirs(session, frame_idx=5).pred_masks[:1]
    assert_same(low, mine.prompt(5, 1, mask=mask).logits[:1])
    pairs = zip(theirs.propagate_in_video_iterator(session, 6), mine.track(6), strict=True)
    for output, result in pairs:
        # ... and it takes the other object's mask for prompted too, so only the first is compared
        assert_same(output.pred_masks[:1], result.logits[:1])
