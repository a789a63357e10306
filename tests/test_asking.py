"""Prompts on several frames go through the network together, and come back as if alone."""

from __future__ import annotations

from pathlib import Path

import geosam2_model
import numpy as np
import pytest

import geosam2
from geosam2 import zoom
from geosam2.asking import FEW, FRAMES, Question, ask
from geosam2.cache import EmbeddingCache
from geosam2.prompts import Prompt, locate
from geosam2.segmenter import Segmenter

SCENE = Path(__file__).parent.parent / "examples" / "banepa.tif"
HOUSES = ((1080, 762), (1092, 774), (700, 2200))


@pytest.fixture(scope="module")
def segmenter():
    scene = geosam2.open_scene(SCENE)
    return Segmenter(scene, geosam2_model.load("nano"), cache=EmbeddingCache(folder=None))


@pytest.fixture
def counted(segmenter, monkeypatch):
    """How many objects each decoding was about."""
    calls: list[int] = []
    decode = segmenter.model.decode

    def counting(features, prompts, multimask=False):
        calls.append(len(prompts))
        return decode(features, prompts, multimask)

    monkeypatch.setattr(segmenter.model, "decode", counting)
    return calls


def click(segmenter, *place: int) -> Prompt:
    scene = segmenter.scene
    return locate(Prompt((scene.geobox.affine * place,), (1,), crs=scene.crs), scene)


def questions(segmenter, places) -> list[Question]:
    asked = [click(segmenter, *place) for place in places]
    views = [(p, *look) for p in asked for look in zoom.windows(segmenter.scene, p, 256)]
    return [Question(*view) for view in views]


def test_frames_asked_about_together_answer_as_if_alone(segmenter, counted):
    asked = questions(segmenter, HOUSES[:2])
    together = ask(segmenter.model, segmenter.encoder, asked, second_thoughts=2)
    assert len(counted) == 3 * -(-len({(q.level, q.window) for q in asked}) // FRAMES)
    for question, answer in zip(asked, together, strict=True):
        assert answer.question is question
        (alone,) = ask(segmenter.model, segmenter.encoder, [question], second_thoughts=2)
        for (mask, iou, _), (wanted, sure, _) in zip(
            answer.candidates(), alone.candidates(), strict=True
        ):
            assert iou == pytest.approx(sure, abs=1e-3)
            assert ((mask > 0) != (wanted > 0)).mean() < 1e-3


def test_prompts_of_different_kinds_are_kept_apart(segmenter, counted):
    (question, *_) = questions(segmenter, HOUSES[:1])
    twice = Prompt(
        question.prompt.points * 2, (1, 1), object_id=question.prompt.object_id, crs=None
    )
    shown = np.zeros((64, 64), np.float32)
    shown[30:34, 30:34] = 5.0
    asked = [
        question,
        Question(twice, question.level, question.window),
        Question(question.prompt, question.level, question.window, shown),
    ]
    answers = ask(segmenter.model, segmenter.encoder, asked, second_thoughts=1)
    assert [a.said.ambiguous for a in answers] == [True, False, False]
    assert [len(a.out.logits[0]) for a in answers] == [3, 1, 1]
    assert counted == [1, 1, 1, 1]  # only the ambiguous one is thought about again


def test_many_prompts_of_one_frame_share_its_features(segmenter, counted, monkeypatch):
    (question, *_) = questions(segmenter, HOUSES[2:])
    many = [question] * (FEW + 3)
    seen = []
    inner = segmenter.model.decode

    def noting(features, prompts, multimask=False):
        seen.append((len(features), prompts.image_index))
        return inner(features, prompts, multimask)

    monkeypatch.setattr(segmenter.model, "decode", noting)
    answers = ask(segmenter.model, segmenter.encoder, many)
    assert counted == [FEW + 3]
    assert seen == [(1, None)]
    assert len(answers) == FEW + 3
