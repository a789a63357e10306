"""Each part of the network against a slow plain version, and what it says to bad input."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from geosam2_model import ops
from geosam2_model.config import VARIANTS, ModelConfig
from geosam2_model.errors import InputError
from geosam2_model.mask_decoder import Attention, stability
from geosam2_model.memory_attention import attend_wide
from geosam2_model.memory_encoder import MaskDownsampler
from geosam2_model.ops import LayerNorm2d, channels_last, sine_positions, sine_times
from geosam2_model.prompt_encoder import Prompts
from geosam2_model.sam2 import SAM2, ImageFeatures
from geosam2_model.trunks import build_trunk
from geosam2_model.trunks.hiera import Hiera, nested_order, plan_windows
from torch import Tensor

CPU = torch.device("cpu")
TOY = replace(
    VARIANTS["sam2.1_tiny"], image_size=64, embed_dim=16, d_model=32, mem_dim=16,
    skip_channels=(4, 8), decoder_heads=2, decoder_mlp=32, memory_mlp=32, memory_layers=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def toy() -> SAM2:
    torch.manual_seed(2)
    model = SAM2(TOY).eval()
    torch.nn.init.normal_(model.image_encoder.trunk.pos_embed)
    torch.nn.init.normal_(model.image_encoder.trunk.pos_embed_window)
    return model


@pytest.fixture(scope="module")
def features(toy: SAM2) -> ImageFeatures:
    with torch.no_grad():
        return toy.encode(torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8))


# Hiera, block by block on plain (H, W, C) maps, one window after another


def plain_block(trunk: Hiera, number: int, x: Tensor, window: int) -> Tensor:
    """(H, W, C) -> (H', W', D); a window of 0 is the whole map."""
    block = trunk.blocks[number]
    H, W, _ = x.shape
    side_h, side_w = (window, window) if window else (H, W)
    normed = block.norm1(x)
    attn = block.attn
    width = attn.proj.in_features
    pool = 2 if block.pool else 1
    padded = F.pad(normed, (0, 0, 0, -W % side_w, 0, -H % side_h))
    out = x.new_zeros(padded.shape[0] // pool, padded.shape[1] // pool, width)
    for top in range(0, padded.shape[0], side_h):
        for left in range(0, padded.shape[1], side_w):
            part = attn.qkv(padded[top : top + side_h, left : left + side_w])
            q, k, v = part.split(width, dim=2)
            if block.pool:
                q = F.max_pool2d(q.permute(2, 0, 1), 2).permute(1, 2, 0)
            heads = []
            for h in range(attn.heads):
                cut = slice(h * width // attn.heads, (h + 1) * width // attn.heads)
                qh, kh, vh = (t.flatten(0, 1)[:, cut] for t in (q, k, v))
                heads.append(torch.softmax(qh @ kh.T / math.sqrt(qh.shape[1]), dim=1) @ vh)
            seen = torch.cat(heads, dim=1).unflatten(0, q.shape[:2])
            out[top // pool : (top + side_h) // pool, left // pool : (left + side_w) // pool] = seen
    shortcut = x
    if block.pool:
        shortcut = F.max_pool2d(block.proj(normed).permute(2, 0, 1), 2).permute(1, 2, 0)
    x = shortcut + attn.proj(out[: H // pool, : W // pool])
    return x + block.mlp(block.norm2(x))


def plain_hiera(trunk: Hiera, pixels: Tensor) -> list[Tensor]:
    """One image (3, H, W) -> maps (C, h, w)."""
    config = trunk.config
    x = trunk.patch_embed.proj(pixels[None])[0]
    far = F.interpolate(trunk.pos_embed, size=x.shape[1:], mode="bicubic")[0]
    near = trunk.pos_embed_window[0]
    for row in range(x.shape[1]):
        for column in range(x.shape[2]):
            x[:, row, column] += far[:, row, column] + near[:, row % 8, column % 8]
    x, maps, number = x.permute(1, 2, 0), [], 0
    for stage, depth in enumerate(config.stages):
        for i in range(depth):
            window = config.window_sizes[max(stage - 1, 0) if i == 0 else stage]
            x = plain_block(trunk, number, x, 0 if number in config.global_blocks else window)
            number += 1
        maps.append(x.permute(2, 0, 1))
    return maps


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (32, 256), (288, 96)])
def test_hiera_is_its_plain_version(toy: SAM2, size: tuple[int, int]) -> None:
    pixels = torch.randn(2, 3, *size)
    trunk = toy.image_encoder.trunk
    maps = trunk(pixels)
    for i in range(2):
        for mine, plain in zip(maps, plain_hiera(trunk, pixels[i]), strict=True):
            torch.testing.assert_close(mine[i], plain, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_position_embedding_follows_the_weights(toy: SAM2) -> None:
    """It is cached; loading other weights must not leave the old one behind."""
    trunk, x = toy.image_encoder.trunk, torch.randn(1, 3, 64, 64)
    before = trunk(x)[2]
    trunk.pos_embed += 1
    changed = trunk(x)[2]
    trunk.pos_embed -= 1
    assert not torch.allclose(before, changed)
    torch.testing.assert_close(trunk(x)[2], before)


@pytest.mark.parametrize(("height", "width", "levels"), [(16, 24, 3), (4, 6, 1), (8, 8, 2)])
def test_nested_order_holds_every_square_together(height: int, width: int, levels: int) -> None:
    order = nested_order(height, width, levels, CPU)
    assert sorted(order.tolist()) == list(range(height * width))
    rows, columns = order // width, order % width
    for level in range(1, levels + 1):
        square = torch.stack([rows, columns], 1).view(-1, 4**level, 2) // 2**level
        assert (square == square[:, :1]).all()


@pytest.mark.parametrize("side", [7, 14, 16])
def test_windows_cover_every_token_once(side: int) -> None:
    plan = plan_windows(20, 30, 1, side, CPU)
    x = torch.arange(600)
    padded = torch.cat([x, torch.tensor([-1])])
    assert torch.equal(padded[plan.take][plan.back], x)
    assert len(plan.take) % side**2 == 0


# Small pieces


def test_layer_norm_is_over_channels() -> None:
    norm = LayerNorm2d(6)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 6, 3, 4)
    mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    plain = (x - mean) / (var + 1e-6).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), plain)


def test_attention_shares_one_image_between_objects() -> None:
    layer = Attention(16, heads=4, shrink=2)
    tokens, image = torch.randn(3, 5, 16), torch.randn(1, 20, 16)
    copied = layer(tokens, image.expand(3, -1, -1), image.expand(3, -1, -1))
    torch.testing.assert_close(layer(tokens, image, image), copied)
    q, k, v = (p(x).unflatten(2, (4, 2)) for p, x in
               ((layer.q_proj, tokens), (layer.k_proj, image), (layer.v_proj, image)))  # fmt: skip
    weights = torch.softmax(torch.einsum("nlhd,oshd->nhls", q, k) / math.sqrt(2), dim=3)
    plain = layer.out_proj(torch.einsum("nhls,oshd->nlhd", weights, v).flatten(2))
    torch.testing.assert_close(layer(tokens, image, image), plain)


@pytest.mark.parametrize("rows", [1, 3])
def test_wide_attention_in_parts_is_attention(rows: int) -> None:
    q, k, v = torch.randn(rows, 700, 32), torch.randn(3, 90, 32), torch.randn(3, 90, 8)
    plain = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(32), dim=2) @ v
    with torch.no_grad():
        torch.testing.assert_close(attend_wide(q, k, v), plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attend_wide(q, k, v), plain, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_wide_attention_in_half_precision_is_attention() -> None:
    q, k, v = (torch.randn(n, length, width).bfloat16()
               for n, length, width in ((1, 70, 32), (3, 90, 32), (3, 90, 8)))  # fmt: skip
    plain = torch.softmax(q.float() @ k.float().mT / math.sqrt(32), dim=2) @ v.float()
    torch.testing.assert_close(attend_wide(q, k, v).float(), plain, rtol=2e-2, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("scores", [1, 500, 3_000, 2**20])
def test_half_precision_attention_in_parts_is_attention(
    monkeypatch: pytest.MonkeyPatch, amx: bool, scores: int
) -> None:
    monkeypatch.setattr(ops, "cpu_has", lambda instructions: amx)
    monkeypatch.setattr(ops, "SCORES", scores)
    q, k, v = (
        torch.randn(shape).bfloat16() for shape in ((5, 2, 31, 16), (5, 2, 47, 16), (5, 2, 47, 8))
    )
    found = ops.scaled_attention(q, k, v)
    plain = torch.softmax(q.float() @ k.float().mT / 4, dim=3) @ v.float()
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), plain, rtol=2e-2, atol=2e-2)


def test_channels_lie_next_to_each_other_for_one_picture_too() -> None:
    x = torch.randn(1, 3, 6, 7)
    for order in (x, x.permute(0, 1, 3, 2), x.to(memory_format=torch.channels_last), x[0, None]):
        y = channels_last(order)
        torch.testing.assert_close(y, order)
        _, _, h, w = y.shape
        assert y.stride() == (3 * h * w, 1, 3 * w, 3)


def test_sine_positions_follow_the_formula() -> None:
    x = sine_positions(8, 3, 5, CPU)
    for row, column, channel in ((0, 0, 0), (2, 4, 1), (1, 3, 6), (2, 1, 7)):
        at, length = (row, 3) if channel < 4 else (column, 5)
        c = channel % 4
        angle = (at + 1) / (length + 1e-6) * 2 * math.pi / 10000 ** (2 * (c // 2) / 4)
        expected = math.sin(angle) if c % 2 == 0 else math.cos(angle)
        assert x[0, channel, row, column].item() == pytest.approx(expected, abs=1e-5)


def test_sine_times_put_sines_first() -> None:
    x = sine_times(torch.tensor([0.0, 0.5]), 4)
    torch.testing.assert_close(x[0], torch.tensor([0.0, 0.0, 1.0, 1.0]))
    expected = [math.sin(0.5), math.sin(0.5), math.cos(0.5), math.cos(0.5)]
    torch.testing.assert_close(x[1], torch.tensor(expected))


def test_mask_downsampler_shrinks_by_16() -> None:
    assert MaskDownsampler(24)(torch.randn(2, 1, 64, 32)).shape == (2, 24, 4, 2)


def test_stability_of_an_empty_mask_is_one() -> None:
    assert stability(torch.full((2, 4, 4), -5.0), 1.0).tolist() == [1.0, 1.0]


# Prompts and decoding


@torch.no_grad()
def test_objects_together_decode_as_each_alone(toy: SAM2, features: ImageFeatures) -> None:
    points, labels = torch.rand(3, 2, 2) * 60, torch.tensor([[1, 0], [1, -1], [0, 1]])
    masks = torch.randn(3, 1, 16, 24)
    for chosen in (None, masks):
        together = toy.decode(features, Prompts(points, labels, masks=chosen), multimask=True)
        for i in range(3):
            mask = None if chosen is None else chosen[i : i + 1]
            alone = toy.decode(
                features, Prompts(points[i : i + 1], labels[i : i + 1], masks=mask), True
            )
            torch.testing.assert_close(together.logits[i], alone.logits[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(together.pointer[i], alone.pointer[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_batch_of_images_decodes_as_each_alone(toy: SAM2) -> None:
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    index = torch.tensor([2, 0, 2, 1])
    points = torch.rand(4, 1, 2) * 60
    batch = toy.decode(toy.encode(pixels), Prompts(points, torch.ones(4, 1), image_index=index))
    for i, image in enumerate(index.tolist()):
        single = toy.encode(pixels[image : image + 1])
        alone = toy.decode(single, Prompts(points[i : i + 1], torch.ones(1, 1)))
        torch.testing.assert_close(batch.logits[i], alone.logits[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_box_is_two_labelled_corners(toy: SAM2, features: ImageFeatures) -> None:
    box = torch.tensor([[4.0, 5.0, 40.0, 50.0]])
    corners = Prompts(box.view(1, 2, 2), torch.tensor([[2, 3]]))
    a, b = toy.decode(features, Prompts(boxes=box)), toy.decode(features, corners)
    assert torch.equal(a.logits, b.logits)


@torch.no_grad()
def test_features_survive_their_dictionary(toy: SAM2, features: ImageFeatures) -> None:
    again = ImageFeatures.from_dict(features.to_dict())
    assert again.size == features.size == (64, 96)
    prompts = Prompts.clicks([[30.0, 30.0]])
    assert torch.equal(toy.decode(again, prompts).logits, toy.decode(features, prompts).logits)


@torch.no_grad()
def test_an_absent_object_is_hidden(toy: SAM2, features: ImageFeatures) -> None:
    out = toy.decode(features, Prompts.clicks([[30.0, 30.0]]))
    gone = replace(out, object_score=torch.tensor([-1.0])).hide_absent()
    assert (gone.logits == -1024).all()
    assert torch.equal(
        replace(out, object_score=torch.tensor([1.0])).hide_absent().logits, out.logits
    )


def test_encoding_and_decoding_can_be_trained(toy: SAM2) -> None:
    toy.train()
    features = toy.encode(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    out = toy.decode(features, Prompts(torch.rand(2, 1, 2) * 60, torch.ones(2, 1)), multimask=True)
    (out.logits.sum() + out.predicted_iou.sum() + out.object_score.sum()).backward()
    toy.eval()
    parts = ("trunk.patch_embed", "neck.convs.3", "trunk.pos_embed_window", "mask_decoder.conv_s0")
    for name, parameter in toy.named_parameters():
        if any(part in name for part in parts):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    toy.zero_grad(set_to_none=True)


@torch.no_grad()
def test_bfloat16_gives_nearly_the_same_embedding(toy: SAM2) -> None:
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    half = SAM2(TOY).eval()
    half.load_state_dict(toy.state_dict())
    half.bfloat16()
    a, b = toy.encode(pixels).embedding, half.encode(pixels).embedding
    assert b.dtype == torch.bfloat16
    assert (a - b.float()).norm() < 0.05 * a.norm()
    out = half.decode(half.encode(pixels), Prompts.clicks([[9.0, 9.0]]))
    assert out.logits.dtype == torch.float32


# Bad input


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(1, 4, 64, 64), "expected .B, 3, H, W."),
        (torch.zeros(3, 64, 64), "expected .B, 3, H, W."),
        (torch.zeros(1, 3, 65, 64), "65 x 64; both must be multiples of 32"),
        (torch.zeros(1, 3, 0, 64), "multiples of 32"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.int64), "give uint8 or floats"),
        (torch.full((1, 3, 32, 32), torch.nan), "NaN or infinity; fill nodata"),
    ],
)
def test_bad_pixels_are_named(toy: SAM2, pixels: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        toy.encode(pixels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": torch.zeros(1, 1, 2)}, "come together"),
        ({"points": torch.zeros(1, 2), "labels": torch.zeros(1)}, r"expected .N, P, 2."),
        ({"points": torch.zeros(1, 2, 2), "labels": torch.zeros(1, 1)}, "need .1, 2."),
        ({"points": torch.zeros(1, 1, 2), "labels": torch.tensor([[7]])}, "labels must be 1"),
        (
            {"points": torch.full((1, 1, 2), torch.nan), "labels": torch.ones(1, 1)},
            "finite numbers",
        ),
        ({"boxes": torch.zeros(1, 3)}, r"expected .N, 4."),
        ({"boxes": torch.zeros(2, 4), "masks": torch.zeros(1, 1, 4, 4)}, "disagree on the number"),
    ],
)
def test_bad_prompts_are_named(arguments: dict[str, Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Prompts(**arguments)


def test_prompts_that_do_not_fit_the_image_are_named(toy: SAM2, features: ImageFeatures) -> None:
    with pytest.raises(InputError, match=r"needs .16, 24., a quarter"):
        toy.decode(features, Prompts(masks=torch.zeros(1, 1, 8, 8)))
    pair = toy.encode(torch.zeros(2, 3, 32, 32))
    with pytest.raises(InputError, match="say which is on which"):
        toy.decode(pair, Prompts(boxes=torch.zeros(3, 4)))
    with pytest.raises(InputError, match=r"must be in 0..1"):
        toy.decode(pair, Prompts(boxes=torch.zeros(1, 4), image_index=torch.tensor([2])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 100}, "multiple of 32"),
        ({"d_model": 250}, "must be a multiple of mem_dim"),
        ({"window_sizes": (7, 7, 7, 7)}, "start with 8, 4"),
    ],
)
def test_bad_configurations_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(VARIANTS["sam2.1_tiny"], **change)  # type: ignore[arg-type]


def test_unknown_trunks_and_settings_are_named() -> None:
    with pytest.raises(InputError, match=r"No trunk is called 'vit'.*hiera"):
        build_trunk(replace(TOY, trunk="vit"))
    with pytest.raises(InputError, match="newer version"):
        ModelConfig.from_dict({"flux_capacitor": 1})
