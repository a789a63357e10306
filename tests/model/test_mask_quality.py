"""The second opinion on masks: what it sums, what it may not change, and that it can learn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from geosam2_model import mask_quality
from geosam2_model.config import VARIANTS
from geosam2_model.mask_decoder import stability
from geosam2_model.mask_quality import MaskQuality
from geosam2_model.prompt_encoder import Prompts
from geosam2_model.sam2 import SAM2
from torch import Tensor

NANO = replace(VARIANTS["nano"], image_size=64)
CLICK = Prompts.clicks([[30.0, 20.0]])


@pytest.fixture(scope="module")
def discs() -> Tensor:
    """Logits (1, 4, 16, 16) of discs of four sizes."""
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    away = ((rows - 7.5) ** 2 + (columns - 7.5) ** 2).sqrt()
    return torch.stack([3 * (radius - away) for radius in (2.0, 4.0, 6.0, 40.0)])[None]


def test_an_untrained_opinion_changes_no_prediction() -> None:
    torch.manual_seed(3)
    with_it = SAM2(NANO).eval()
    without = SAM2(replace(NANO, mask_quality=False)).eval()
    without.load_state_dict(
        {k: v for k, v in with_it.state_dict().items() if not k.startswith("mask_quality.")}
    )
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        a, b = (m.decode(m.encode(pixels), CLICK, multimask=True) for m in (with_it, without))
    torch.testing.assert_close(a.predicted_iou, b.predicted_iou)
    torch.testing.assert_close(a.logits, b.logits)


def test_half_precision_gives_nearly_the_same_opinion(discs: Tensor) -> None:
    torch.manual_seed(0)
    judge = MaskQuality(NANO)
    torch.nn.init.normal_(judge.judge.layers[-1].weight)
    image = torch.randn(1, NANO.skip_channels[1], 8, 8)
    tokens = torch.randn(1, 4, NANO.d_model)
    with torch.no_grad():
        plain = judge(image, discs, tokens)
        half = judge.bfloat16()(image.bfloat16(), discs.bfloat16(), tokens.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plain, rtol=0.05, atol=0.1)


def test_means_under_a_mask_are_those_of_a_loop(discs: Tensor) -> None:
    torch.manual_seed(0)
    maps, weight = torch.randn(4, 3, 8, 8), F.avg_pool2d(discs.sigmoid(), 2)[0][:, None]
    found = mask_quality._under(maps, weight)
    for i in range(4):
        inside = [maps[i, :, r, c] * weight[i, 0, r, c] for r in range(8) for c in range(8)]
        plain = torch.stack(inside).sum(0) / (weight[i].sum() + 1e-3)
        torch.testing.assert_close(found[i], plain)


def test_outlines_lie_where_cells_differ() -> None:
    share = torch.zeros(1, 1, 6, 6)
    share[..., :3] = 1
    assert (mask_quality._outline(share)[0, 0, 0] > 0).tolist() == [False, False, True, True,
                                                                   False, False]  # fmt: skip


def test_the_shape_of_a_mask_is_told(discs: Tensor) -> None:
    share = discs.sigmoid().reshape(4, 1, 16, 16)
    edge = F.avg_pool2d(4 * share * (1 - share), 2)
    area, sureness, _, border = mask_quality._shape(share, edge).T
    assert (area.diff() > 0).all()
    assert (sureness[1:].diff() > 0).all()  # the outline is a smaller part of what is larger
    assert border[0] < 0.05 < 0.9 < border[3]


def test_it_learns_to_tell_good_masks_from_bad_ones(discs: Tensor) -> None:
    torch.manual_seed(1)
    head = MaskQuality(NANO)
    image = torch.randn(1, NANO.skip_channels[1], 8, 8)
    tokens = torch.zeros(1, 4, NANO.d_model)
    wanted = torch.tensor([[0.9, 0.2, 0.6, 0.05]])
    optimiser = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(150):
        loss = (head(image, discs, tokens).sigmoid() - wanted).abs().mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert loss < 0.03


def test_no_gradient_goes_back_through_the_masks(discs: Tensor) -> None:
    head = MaskQuality(NANO)
    torch.nn.init.normal_(head.judge.layers[-1].weight)  # type: ignore[arg-type]
    logits = discs.clone().requires_grad_()
    image = torch.randn(1, NANO.skip_channels[1], 8, 8, requires_grad=True)
    head(image, logits, torch.zeros(1, 4, NANO.d_model)).sum().backward()
    assert logits.grad is None
    assert image.grad is not None


def test_objects_known_in_part_are_judged_by_their_token_alone() -> None:
    torch.manual_seed(3)
    model = SAM2(NANO).eval()
    torch.nn.init.normal_(model.mask_quality.judge.layers[-1].weight)  # type: ignore[arg-type]
    with torch.no_grad():
        features = model.encode(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8))
        with_it, without = (
            model.decode(features, replace(CLICK, in_part=in_part), multimask=True)
            for in_part in (False, True)
        )
    assert torch.equal(with_it.logits, without.logits)
    assert not torch.allclose(with_it.predicted_iou, without.predicted_iou)


@pytest.mark.parametrize("threshold", [None, 0.0, 0.985, 1.01])
def test_only_masks_that_may_be_chosen_are_looked_at(threshold: float | None) -> None:
    """A single mask is judged alone; the candidates where it is not stable."""
    torch.manual_seed(3)
    model = SAM2(replace(NANO, stability_threshold=threshold, stability_delta=0.001)).eval()
    torch.nn.init.normal_(model.mask_quality.judge.layers[-1].weight)  # type: ignore[arg-type]
    points = torch.tensor([[[30.0, 20.0]], [[9.0, 50.0]], [[60.0, 3.0]]])
    clicks = Prompts(points, torch.ones(3, 1, dtype=torch.long))
    with torch.no_grad():
        features = model.encode(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8))
        every = model.decode_all(features, clicks)
        three = model.decode(features, clicks, multimask=True)
        single = model.decode(features, clicks)
    torch.testing.assert_close(three.predicted_iou, every.predicted_iou[:, 1:])
    stable = stability(every.logits[:, 0], 0.001) >= (threshold or 0.0)
    assert int(stable.sum()) == {0.985: 1, 1.01: 0}.get(threshold or 0.0, 3)
    best = torch.where(stable, 0, 1 + every.predicted_iou[:, 1:].argmax(1))
    rows = torch.arange(3)
    torch.testing.assert_close(single.logits[:, 0], every.logits[rows, best])
    torch.testing.assert_close(single.predicted_iou[:, 0], every.predicted_iou[rows, best])
