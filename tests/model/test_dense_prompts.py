"""What is skipped, remembered, sliced or moved for speed changes no number."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from geosam2_model import sam2
from geosam2_model.config import VARIANTS
from geosam2_model.dense_prompts import MAP_COUNT, ImageSide
from geosam2_model.mask_decoder import Attention
from geosam2_model.memory_encoder import ConvNextBlock
from geosam2_model.ops import LastUsed
from geosam2_model.prompt_encoder import Prompts
from geosam2_model.sam2 import SAM2, ImageFeatures
from geosam2_model.trunks import efficientnet_lite
from torch import Tensor

SMALL = replace(VARIANTS["nano"], image_size=64)
BOX = torch.tensor([[8.0, 12.0, 70.0, 50.0]])
POINTS = torch.tensor([[[30.0, 20.0], [80.0, 40.0]]])


@pytest.fixture(scope="module")
def nano() -> SAM2:
    torch.manual_seed(4)
    model = SAM2(SMALL).eval()
    for parameter in model.dense_prompts.parameters():  # zeros would hide mistakes
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def features(nano: SAM2) -> ImageFeatures:
    with torch.no_grad():
        return nano.encode(torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8))


def mask() -> Tensor:
    logits = torch.zeros(1, 1, 16, 24)
    logits[..., 4:9, 5:12], logits[..., 12:, :] = 6.0, -6.0
    return logits


@torch.no_grad()
@pytest.mark.parametrize(
    ("prompts", "varying"),
    [
        (Prompts(POINTS, torch.tensor([[1, -1]])), 9),
        (Prompts(POINTS, torch.tensor([[1, 0]])), 19),
        (Prompts(POINTS, torch.tensor([[-1, -1]])), 0),
        (Prompts(boxes=BOX), 14),
        (Prompts(masks=mask()), 13),
        (Prompts(POINTS, torch.tensor([[0, 1]]), BOX, mask()), MAP_COUNT - 1),
    ],
)
def test_maps_that_are_numbers_enter_as_whole_maps_would(
    nano: SAM2, features: ImageFeatures, prompts: Prompts, varying: int
) -> None:
    dense = nano.dense_prompts
    image = dense.image_side(features)
    maps = dense.maps(image, prompts)
    assert len(maps) == MAP_COUNT
    assert sum(isinstance(x, Tensor) for x in maps) == varying
    whole = torch.stack([torch.as_tensor(x).expand(1, 16, 24) for x in maps], dim=1)
    plain = (dense.enter(whole) + dense.image[0](features.trunk[0])).relu()  # type: ignore[index]
    torch.testing.assert_close(dense._enter(maps, image, prompts), plain, rtol=1e-4, atol=1e-5)


def test_a_block_in_strips_of_tokens_is_the_block() -> None:
    torch.manual_seed(1)
    block = ConvNextBlock(8)
    torch.nn.init.ones_(block.gamma)
    x = torch.randn(2, 8, 40, 48)  # more tokens than one strip
    whole = block(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(block(x), whole)


@torch.no_grad()
def test_objects_decoded_a_few_at_a_time_are_the_same(
    nano: SAM2, features: ImageFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = torch.rand(5, 2, 2) * 60
    prompts = Prompts(points, torch.tensor([[1, 0], [1, -1], [1, 1], [1, -1], [0, 1]]))
    together = nano.decode(features, prompts, multimask=True)
    monkeypatch.setattr(sam2, "CACHED_PIXELS", 2 * 64 * 96)
    in_parts = nano.decode(features, prompts, multimask=True)
    for name in ("logits", "predicted_iou", "object_score", "pointer"):
        torch.testing.assert_close(
            getattr(in_parts, name), getattr(together, name), rtol=1e-4, atol=1e-4
        )


@torch.no_grad()
def test_one_object_on_each_of_several_images(
    nano: SAM2, features: ImageFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = torch.randint(0, 255, (5, 3, 64, 96), dtype=torch.uint8)
    batches = [nano.encode(x[None]) for x in pixels]
    joined = ImageFeatures.joined(batches)
    prompts = Prompts(torch.rand(5, 1, 2) * 60, torch.ones(5, 1))
    alone = [nano.decode(one, prompts[i : i + 1], True) for i, one in enumerate(batches)]
    for cells in (9, 2):  # all at once, and two at a time
        monkeypatch.setattr(sam2, "CACHED_PIXELS", cells * 64 * 96)
        together = nano.decode(joined, prompts, True)
        wanted = torch.cat([one.logits for one in alone])
        torch.testing.assert_close(together.logits, wanted, rtol=1e-4, atol=1e-3)
    assert ImageFeatures.joined(batches[:1]) is batches[0]


@torch.no_grad()
def test_many_prompts_may_share_one_memory(
    nano: SAM2, features: ImageFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = replace(features, conditioned=features.embedding + 0.1)
    prompts = Prompts(torch.rand(5, 1, 2) * 60, torch.ones(5, 1))
    together = nano.decode(shared, prompts)
    monkeypatch.setattr(sam2, "CACHED_PIXELS", 2 * 64 * 96)
    in_parts = nano.decode(shared, prompts)
    torch.testing.assert_close(in_parts.logits, together.logits, rtol=1e-4, atol=1e-4)


def test_a_model_made_in_inference_mode_answers_the_same(
    nano: SAM2, features: ImageFeatures
) -> None:
    prompts = Prompts.clicks([[30.0, 30.0]])
    with torch.inference_mode():
        model = copy.deepcopy(nano)
        found = model.decode(features, prompts).logits
    with torch.no_grad():
        torch.testing.assert_close(found.clone(), nano.decode(features, prompts).logits)


@torch.no_grad()
def test_what_is_remembered_of_an_image_follows_the_weights(
    nano: SAM2, features: ImageFeatures
) -> None:
    model = copy.deepcopy(nano)
    prompts = Prompts.clicks([[30.0, 30.0]])
    before = model.decode(features, prompts).logits
    assert torch.equal(model.decode(features, prompts).logits, before)
    weight = model.dense_prompts.image[0].weight
    weight += 0.5
    assert not torch.allclose(model.decode(features, prompts).logits, before)
    weight -= 0.5
    again = ImageFeatures.from_dict(features.to_dict())
    torch.testing.assert_close(model.decode(again, prompts).logits, before, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_what_is_remembered_of_an_image_serves_whatever_images_are_joined_to_it(nano: SAM2) -> None:
    made: list[int] = []
    dense = copy.deepcopy(nano).dense_prompts
    make = dense._image_side

    def counted(features: ImageFeatures) -> ImageSide:
        made.append(len(features))
        return make(features)

    dense._image_side = counted  # type: ignore[method-assign]
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=generator)
    images = [nano.encode(one[None]) for one in pixels]
    for numbers, missing in (((0, 1, 2), 3), ((2, 3), 1), ((3, 0), 0), ((1,), 0)):
        made.clear()
        batch = ImageFeatures.joined([images[i] for i in numbers])
        side = dense.image_side(batch)
        assert sum(made) == missing
        for one, other in zip(side._tensors, make(batch)._tensors, strict=True):
            torch.testing.assert_close(one, other)


def test_gradients_reach_every_dense_weight(nano: SAM2, features: ImageFeatures) -> None:
    prompts = Prompts(POINTS, torch.tensor([[1, -1]]))
    out = nano.decode(features, prompts, multimask=True)
    out.logits.square().sum().backward()
    grads = {name: p.grad for name, p in nano.dense_prompts.named_parameters()}
    for name in ("enter.weight", "enter.bias", "image.0.weight", "alike.2.weight", "up.0.bias"):
        grad = grads[name]
        assert grad is not None, name
        assert float(grad.abs().sum()) > 0, name
    nano.zero_grad(set_to_none=True)


def test_last_used_forgets_the_oldest_and_is_not_copied() -> None:
    memory: LastUsed[int] = LastUsed(2)
    sources = [torch.zeros(3) for _ in range(3)]
    made = []

    def ask(number: int) -> int:
        return memory.get(sources[number], "key", lambda: made.append(number) or number)

    assert [ask(i) for i in (0, 1, 0, 2, 1, 0)] == [0, 1, 0, 2, 1, 0]
    assert made == [0, 1, 2, 0]
    assert memory.get_all(sources, "key", lambda missing: made.extend(missing) or missing) == [
        0,
        1,
        2,
    ]
    assert made == [0, 1, 2, 0, 1]  # 2 and 0 were known
    assert memory.get(sources[0], "another", lambda: 9) == 9
    for other in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert other.get(sources[0], "key", lambda: 7) == 7


@torch.no_grad()
@pytest.mark.parametrize("tokens", [5, 40])
@pytest.mark.parametrize("rows", [1, 3])
def test_tokens_and_image_look_at_each_other_as_by_plain_attention(tokens: int, rows: int) -> None:
    layer = Attention(32, heads=4, shrink=2)
    t, places = torch.randn(3, tokens, 32), torch.randn(rows, 50, 32)
    image = torch.randn(rows, 50, 32)
    torch.testing.assert_close(
        layer.ask_image(t, places, image), layer(t, places, image), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        layer.tell_image(image, places, t, t + 1),
        image + layer(places, t, t + 1),
        rtol=1e-4,
        atol=1e-5,
    )


@torch.no_grad()
@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 8])
def test_a_block_by_strips_of_rows_is_the_whole_block(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels of 3 and 5, strides 1 and 2, with and without expansion and skip."""
    block = efficientnet_lite.EfficientNetLite0().blocks[number]
    x = torch.randn(2, block.spec.inputs, 36, 20)
    monkeypatch.setattr(efficientnet_lite, "CACHED_BYTES", 0)
    assert block._rows_at_once(x) == 4
    torch.testing.assert_close(block(x), block._whole(x), rtol=1e-5, atol=1e-5)
