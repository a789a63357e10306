"""The recipe of an automatic run: what it refuses, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from geosam2.errors import PromptError
from geosam2.recipe import Recipe


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ({"coverage": (0.9, 1.5)}, "coverage is 1.5; it is a share"),
        ({"coverage": (-0.1,)}, "coverage is -0.1; it is a share"),
        ({"stability_offset": 0.0}, "stability_offset=0.0: must be above 0"),
        ({"stability_offset": float("nan")}, "must be above 0"),
        ({"gap_logit": -1.0}, "gap_logit=-1.0: at least 0"),
    ],
)
def test_limits_that_mean_nothing_are_refused(wrong: dict[str, Any], remedy: str) -> None:
    with pytest.raises(PromptError, match=remedy):
        Recipe(**wrong)


def test_a_recipe_with_an_unknown_name_is_refused_in_a_sentence() -> None:
    known = Recipe().to_dict()
    assert Recipe.from_dict({**known, "coverage": list(Recipe().coverage)}) == Recipe()
    with pytest.raises(PromptError, match=r"a recipe has no \['min_iuo'\]; it has \['points'"):
        Recipe.from_dict({**known, "min_iuo": 0.5})
