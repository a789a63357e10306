"""The configuration that a file of weights carries: whatever is wrong with it is a sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from geosam2_model.checkpoints import load, locate, read, save
from geosam2_model.config import VARIANTS
from geosam2_model.errors import CheckpointError
from geosam2_model.sam2 import SAM2
from safetensors import safe_open
from safetensors.torch import save_file


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        ("{not json", "cannot be read"),
        ("[]", "cannot be read"),
        ("7", "cannot be read"),
        ('{"wings": 2}', "newer version"),
        ('{"embed_dim": "96"}', r"wrong types \({'embed_dim': '96'}\)"),
        ('{"stages": [1, "2", 7, 2]}', "wrong types"),
        ('{"occlusion_embedding": 1}', "wrong types"),
        ('{"d_model": null}', "wrong types"),
        ('{"trunk": "resnet"}', "describes no network"),
        ('{"mem_dim": 0}', "cannot be read|describes no network"),
    ],
)
def test_a_configuration_that_describes_nothing_is_refused(
    config: str, remedy: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"config": config})
    with pytest.raises(CheckpointError, match=remedy) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_every_shipped_configuration_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    never: dict[str, Any] = {"stability_threshold": None}
    for config in (*VARIANTS.values(), replace(VARIANTS["nano"], **never)):
        save_file({"x": torch.zeros(1)}, path, {"config": json.dumps(config.to_dict())})
        assert read(path)[1] == config


def test_what_else_is_saved_lies_beside_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save(SAM2(VARIANTS["nano"]), path, metadata={"score": "0.5"})
    with safe_open(path, "pt") as file:
        assert file.metadata()["score"] == "0.5"
    assert load(path).config == VARIANTS["nano"]
    assert locate(path) == path
    with pytest.raises(CheckpointError, match="There is no file"):
        locate(tmp_path / "none.safetensors")
