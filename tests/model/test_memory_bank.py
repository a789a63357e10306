"""Which memories a frame looks at, and where they lie."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from geosam2_model.config import VARIANTS
from geosam2_model.errors import InputError
from geosam2_model.memory_attention import TURNED, rotary_table, rotate
from geosam2_model.memory_bank import PROMPTED, Memory, MemoryBank
from geosam2_model.prompt_encoder import Prompts
from geosam2_model.sam2 import SAM2, ImageFeatures
from hypothesis import given, settings
from hypothesis import strategies as st

TOY = replace(
    VARIANTS["sam2.1_tiny"], image_size=64, embed_dim=16, d_model=32, mem_dim=16,
    skip_channels=(4, 8), decoder_heads=2, decoder_mlp=32, memory_mlp=32, memory_layers=2,
)  # fmt: skip


def memory(value: float = 0.0, rows: int = 1) -> Memory:
    return Memory(
        torch.full((rows, 16, 4, 4), value), torch.full((rows, 32), value), torch.ones(rows)
    )


def values(recalled: tuple[torch.Tensor, ...]) -> list[float]:
    return [x.flatten()[0].item() for x in recalled]


@cache
def toy_and_features() -> tuple[SAM2, ImageFeatures]:
    torch.manual_seed(1)
    model = SAM2(TOY).eval()
    with torch.no_grad():
        return model, model.encode(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8))


@pytest.fixture
def toy() -> SAM2:
    return toy_and_features()[0]


@pytest.fixture
def features() -> ImageFeatures:
    return toy_and_features()[1]


def test_in_a_video_the_frames_just_before_count() -> None:
    bank = MemoryBank()
    for number in range(20):
        bank.add(memory(number), number, prompted=number in (0, 12))
    recall = bank.recall(10)
    assert values(recall.features) == [0, 12, 9, 8, 7, 6, 5, 4]
    assert recall.ages == (PROMPTED, PROMPTED, 1, 2, 3, 4, 5, 6)
    # the pointer of frame 12 is still to come; frame 0 lies ten frames back
    assert values(recall.pointers) == [0, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert recall.times == tuple(t / 15 for t in (10, *range(1, 10)))
    back = bank.recall(10, reverse=True)
    assert values(back.features) == [0, 12, 11, 13, 14, 15, 16]
    assert values(back.pointers) == [12, 11, 13, 14, 15, 16, 17, 18, 19]


def test_only_the_nearest_prompted_frames_are_looked_at() -> None:
    bank = MemoryBank(max_prompted=2, max_recent=1)
    for number in (0, 5, 9, 30):
        bank.add(memory(number), number, prompted=True)
    assert values(bank.recall(10).features) == [9, 30]
    # one that is not chosen still counts as a frame just before
    assert values(bank.recall(31).features) == [30, 9]


def test_on_a_map_the_nearest_frames_count_and_keep_their_places() -> None:
    bank = MemoryBank("map", max_recent=2, max_prompted=2)
    bank.add(memory(1), (0, 0), prompted=True)
    for value, place in ((2, (0, 24)), (3, (0, 48)), (4, (24, 48)), (5, (-90, 0))):
        bank.add(memory(value), place)
    recall = bank.recall((24, 24))
    assert values(recall.features) == [1, 4, 2]  # of two equally near ones the latest comes first
    assert recall.offsets == ((-24, -24), (0, 24), (-24, 0))
    assert recall.ages == (PROMPTED, 1, 2)


def test_what_is_kept_does_not_grow() -> None:
    bank = MemoryBank(history=20)
    bank.add(memory(-1), 0, prompted=True)
    for number in range(1, 500):
        bank.add(memory(number), number)
    assert len(bank) == 21
    assert values(bank.recall(500).features) == [-1, 499, 498, 497, 496, 495, 494]


def test_a_frame_is_replaced_unless_it_has_its_own_key() -> None:
    bank = MemoryBank("map")
    bank.add(memory(1), (0, 0), prompted=True)
    bank.add(memory(2), (0, 0), prompted=True)
    assert values(bank.recall((0, 0)).features) == [2]
    bank.add(memory(3), (0, 0), key="another date")
    assert values(bank.recall((0, 0)).features) == [2, 3]
    bank.remove("another date")
    assert "another date" not in bank


def test_a_paused_bank_goes_on_as_before() -> None:
    bank = MemoryBank("map", max_recent=3, max_prompted=4, history=30)
    for i in range(8):
        bank.add(memory(i), (i * 7 % 5, -i), prompted=i < 2)
    again = MemoryBank.from_state(bank.state_dict())
    for place in ((0, 0), (3, -5)):
        before, after = bank.recall(place), again.recall(place)
        assert before.layout == after.layout
        assert before.times == after.times
        assert values(before.features) == values(after.features)
    assert again.steps == bank.steps
    assert (again.max_recent, again.max_prompted, again.history) == (3, 4, 30)


def test_wrong_places_and_empty_banks_are_named() -> None:
    with pytest.raises(InputError, match="empty: decode a prompt"):
        MemoryBank().recall(0)
    with pytest.raises(InputError, match="needs a frame number"):
        MemoryBank().add(memory(), (1, 2))
    with pytest.raises(InputError, match="needs a lattice cell"):
        MemoryBank("map").add(memory(), 3)
    with pytest.raises(InputError, match="'frame' or 'map'"):
        MemoryBank("somewhere")  # type: ignore[arg-type]


def test_rotation_depends_on_the_difference_of_places_alone() -> None:
    """Query at p, key at q: the product is the same for all p and q with the same p - q."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 32)

    def product(a: tuple[int, int], b: tuple[int, int]) -> float:
        cpu = torch.device("cpu")
        turned = [rotate(x, rotary_table(32, 1, 1, *at, cpu)) for x, at in ((q, a), (k, b))]
        return float((turned[0] * turned[1]).sum())

    assert product((3, 4), (1, 9)) == pytest.approx(product((-20, 40), (-22, 45)), abs=1e-4)
    assert product((3, 4), (1, 9)) != pytest.approx(product((3, 4), (1, 8)), abs=1e-2)


@pytest.mark.parametrize("more", [0, 3])
def test_turning_in_pieces_turns_every_token_once(more: int) -> None:
    """Without gradients it is done in pieces; those after the table stay as they are."""
    table = rotary_table(32, 50, 2 * TURNED // 50 + 7, 0, 0, torch.device("cpu"))
    x = torch.randn(2, len(table) + more, 32)
    with torch.no_grad():
        pieces = rotate(x, table)
    torch.testing.assert_close(pieces, rotate(x, table))
    assert torch.equal(pieces[:, len(table) :], x[:, len(table) :])
    one = rotate(x[:, -1 - more :][:, :1], table[-1:])
    torch.testing.assert_close(pieces[:, len(table) - 1, None], one)


def test_a_map_token_turns_like_the_query_at_its_place() -> None:
    """Column 5 of a frame that lies 3 columns to the left is column 2 of this one."""
    cpu = torch.device("cpu")
    here, left = rotary_table(32, 4, 8, 0, 0, cpu), rotary_table(32, 4, 8, 0, -3, cpu)
    here, left = here.view(4, 8, -1), left.view(4, 8, -1)
    torch.testing.assert_close(left[:, 3:], here[:, :5])


@torch.no_grad()
def filled(toy: SAM2, features: ImageFeatures, bank: MemoryBank, places: list) -> MemoryBank:  # type: ignore[type-arg]
    """A bank with one prompted frame and then tracked ones, all of different content."""
    generator = torch.Generator().manual_seed(4)
    for i, place in enumerate(places):
        click = torch.rand(1, 1, 2, generator=generator) * 60
        out = toy.decode(features, Prompts(click, torch.ones(1, 1)))
        out = replace(out, object_score=torch.ones(1))
        bank.add(toy.remember(features, out, prompted=i == 0), place, prompted=i == 0, key=i)
    return bank


@torch.no_grad()
def test_map_with_all_offsets_zero_is_frame(toy: SAM2, features: ImageFeatures) -> None:
    count = 10
    video = filled(toy, features, MemoryBank("frame"), list(range(count)))
    still = filled(toy, features, MemoryBank("map"), [(7, -3)] * count)
    a = toy.attend(features, video, count).conditioned
    b = toy.attend(features, still, (7, -3)).conditioned
    assert a is not None
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


cells = st.integers(-200, 200)


@settings(max_examples=20, deadline=None)
@given(
    places=st.lists(st.tuples(cells, cells), min_size=1, max_size=9, unique=True),
    here=st.tuples(cells, cells),
    shift=st.tuples(st.integers(-10_000, 10_000), st.integers(-10_000, 10_000)),
)
@torch.no_grad()
def test_shifting_the_whole_map_changes_nothing(
    places: list[tuple[int, int]],
    here: tuple[int, int],
    shift: tuple[int, int],
) -> None:
    toy, features = toy_and_features()

    def moved(place: tuple[int, int]) -> tuple[int, int]:
        return place[0] + shift[0], place[1] + shift[1]

    bank = filled(toy, features, MemoryBank("map"), places)
    other = filled(toy, features, MemoryBank("map"), [moved(place) for place in places])
    a = toy.attend(features, bank, here).conditioned
    b = toy.attend(features, other, moved(here)).conditioned
    assert a is not None
    torch.testing.assert_close(a, b)


@torch.no_grad()
def test_the_place_of_a_memory_matters(toy: SAM2, features: ImageFeatures) -> None:
    near = filled(toy, features, MemoryBank("map"), [(0, 0)])
    far = filled(toy, features, MemoryBank("map"), [(0, 2)])
    a, b = (toy.attend(features, bank, (0, 0)).conditioned for bank in (near, far))
    assert a is not None
    assert not torch.allclose(a, b)


@torch.no_grad()
def test_objects_together_are_as_each_alone(toy: SAM2, features: ImageFeatures) -> None:
    """Banks of the same layout and of another one, in one call."""
    banks = [
        filled(toy, features, MemoryBank("map"), places)
        for places in ([(0, 0), (0, 3)], [(0, 0)], [(1, 1), (1, 4)], [(0, 0), (0, 3)])
    ]
    together = toy.attend(features, banks, (0, 1)).conditioned
    alone = [toy.attend(features, bank, (0, 1)).conditioned for bank in banks]
    torch.testing.assert_close(together, torch.cat(alone))  # type: ignore[arg-type]


def test_gradients_reach_the_memories(toy: SAM2, features: ImageFeatures) -> None:
    out = toy.decode(features, Prompts.clicks([[20.0, 20.0]]))
    bank = MemoryBank("map")
    bank.add(toy.remember(features, replace(out, object_score=torch.ones(1))), (0, 0))
    toy.decode(toy.attend(features, bank, (0, 3))).logits.sum().backward()
    for part in (
        toy.memory_encoder.out_proj,
        toy.memory_attention.layers[0].cross_attn_image.k_proj,
    ):
        assert part.weight.grad is not None
        assert part.weight.grad.abs().sum() > 0
    toy.zero_grad(set_to_none=True)
