"""The second look: a window around each object, masks that agree, what is left alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from geosam2.automatic import find_masks
from geosam2.parts import Box, Layout, crop_part
from geosam2.recipe import Recipe
from geosam2.second_look import _look, look_again
from geosam2.testing.oracle import ColourOracle, colour_scene

LAYOUT = Layout(128, 64)
FRAME = LAYOUT.frame((1, 1))  # pixels 64 to 192


@dataclass(frozen=True)
class Ground:
    """Pixels that windows are read from; beyond them there is no data."""

    pixels: np.ndarray

    def __call__(self, box: Box, zoom: int):
        pixels = np.zeros((3, *box.shape), np.uint8)
        valid = np.zeros(box.shape, bool)
        common = box & Box(0, 0, *self.pixels.shape[1:])
        rows, cols = common.within(box)
        pixels[:, rows, cols] = self.pixels[
            :, common.top : common.bottom, common.left : common.right
        ]
        valid[rows, cols] = True
        return np.kron(pixels, np.ones((1, zoom, zoom), np.uint8)), valid


def painted(*boxes: Box) -> Ground:
    """Rectangles, each of its own colour."""
    pixels = np.zeros((3, 256, 256), np.uint8)
    for i, box in enumerate(boxes):
        colour = np.array([40 + 50 * i, 200, 10])[:, None, None]
        pixels[:, box.top : box.bottom, box.left : box.right] = colour
    return Ground(pixels)


def part_of(box: Box, frame: Box = FRAME, step: int = 4):
    """A box as the frame's mask of it."""
    side = frame.shape[0] // step
    logits = np.full((side, side), -80, np.int8)
    rows, cols = (box & frame).within(frame)
    logits[rows.start // step : rows.stop // step, cols.start // step : cols.stop // step] = 80
    return crop_part(logits, frame, frame, frame=(1, 1), rank=0, predicted_iou=0.9, stability=0.9)


def test_a_poor_mask_is_replaced_and_the_disagreement_lowers_its_score():
    true, poor = Box(80, 80, 120, 140), Box(80, 80, 120, 112)
    (found,) = look_again(ColourOracle(), [part_of(poor)], FRAME, painted(true), 1.0)
    assert found.area == pytest.approx(40 * 60)
    assert found.stability == pytest.approx(0.9 * 32 / 60, abs=0.01)  # IoU of both masks
    assert (found.predicted_iou, found.rank, found.frame) == (0.9, 0, (1, 1))


def test_what_the_frame_cuts_is_left_as_it_is():
    cut = part_of(Box(80, 150, 120, 192))
    assert cut.edges
    (found,) = look_again(ColourOracle(), [cut], FRAME, painted(Box(80, 150, 120, 240)), 1.0)
    assert found is cut


def test_a_mask_that_would_leave_the_frame_is_not_taken():
    """The frame saw it end; the window shows that it goes on. Neither is believed."""
    old = part_of(Box(80, 150, 120, 184))
    (found,) = look_again(ColourOracle(), [old], FRAME, painted(Box(80, 150, 120, 210)), 1.0)
    assert found.area == old.area
    assert found.stability < 0.7 * 0.9


def test_what_the_second_look_does_not_see_has_no_score():
    class Blind(ColourOracle):
        def decode(self, features, prompts, multimask=True):
            answer = super().decode(features, prompts, multimask)
            return answer._replace(logits=answer.logits - 1000)

    (found,) = look_again(Blind(), [part_of(Box(80, 80, 120, 140))], FRAME, painted(), 1.0)
    assert found.score == 0


def test_fine_masks_are_looked_at_through_enlarged_pixels():
    true = Box(82, 90, 96, 110)
    fine = part_of(true, step=2)
    (found,) = look_again(ColourOracle(), [fine], FRAME, painted(true), 1.0)
    assert found.step == 2
    assert found.box & true == true
    assert found.area == pytest.approx(true.shape[0] * true.shape[1], rel=0.02)


def test_nothing_is_claimed_where_there_is_no_data():
    class Greedy(ColourOracle):
        """Takes the whole window for the object."""

        def decode(self, features, prompts, multimask=True):
            answer = super().decode(features, prompts, multimask)
            return answer._replace(logits=answer.logits * 0 + 10)

    side = LAYOUT.size
    frame = LAYOUT.frame((2, 2))  # pixels 128 to 256
    pixels = painted(Box(200, 200, 256, 240)).pixels
    old = replace(part_of(Box(200, 200, 252, 240), frame), frame=(2, 2))
    (found,) = _look(Greedy(), [old], side, 1, Ground(pixels), 1.0)
    beyond = found.soft_in(Box(256, 128, 320, 256))  # boxes have a margin of a cell
    assert (beyond > 0.5).sum() == 0
    assert found.area > old.area


def test_any_number_of_objects_in_their_order():
    pixels, _ = colour_scene((256, 256), 60, seed=5, size=(12, 40))
    recipe = Recipe(points=(16,), coverage=(), features=False)
    frame = pixels[:, 64:192, 64:192]
    valid = np.ones((128, 128), bool)
    parts = find_masks(ColourOracle(), frame, valid, LAYOUT, (1, 1), recipe).parts
    assert len([p for p in parts if not p.edges]) > 8  # more than one chunk
    again = look_again(ColourOracle(), parts, FRAME, Ground(pixels), 1.0)
    assert [p.rank for p in again] == [p.rank for p in parts]
    assert all(a.area == pytest.approx(b.area, rel=0.15) for a, b in zip(again, parts, strict=True))


class Away(torch.Tensor):
    """A tensor on a device whose memory numpy cannot see."""

    def numpy(self, *args, **how):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self, *args, **how):
        return self.as_subclass(torch.Tensor)


class OnDevice(ColourOracle):
    """Answers from a device, as a network on a GPU does."""

    def encode(self, pixels):
        features = super().encode(pixels)
        return features._replace(embedding=features.embedding.as_subclass(Away))

    def decode(self, features, prompts, multimask=True):
        answer = super().decode(features, prompts, multimask)
        return answer._replace(
            logits=answer.logits.as_subclass(Away),
            predicted_iou=answer.predicted_iou.as_subclass(Away),
        )


def test_answers_may_come_from_a_gpu():
    pixels, _ = colour_scene((256, 256), 20, seed=5, size=(20, 60))
    recipe = Recipe(points=(16,), coverage=(), look_again=True)
    frame, valid = pixels[:, 64:192, 64:192], np.ones((128, 128), bool)
    here, there = (
        find_masks(network, frame, valid, LAYOUT, (1, 1), recipe, around=Ground(pixels))
        for network in (ColourOracle(), OnDevice())
    )
    assert len(here.parts) > 3
    assert [p.key for p in here.parts] == [p.key for p in there.parts]
    assert all((a.logits == b.logits).all() for a, b in zip(here.parts, there.parts, strict=True))
    assert all((a.feature == b.feature).all() for a, b in zip(here.parts, there.parts, strict=True))
