"""Average the weights of runs: `python -m geosam2_model.training.average OUT FILE FILE ...`.

Runs that began at the same weights lie in one basin, and the mean of what they came to keeps what
each is good at (model soups, https://arxiv.org/abs/2203.05482). It costs nothing to train, and
nothing when the model is used.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from geosam2_model.checkpoints import load, save
from geosam2_model.errors import CheckpointError
from geosam2_model.sam2 import SAM2


def average(models: Sequence[SAM2]) -> SAM2:
    """The mean of models that differ in their weights alone.

    A part that some of them have not (the second opinion on masks came late) is the mean of those
    that have it.

    Raises:
        CheckpointError: If the models are of different sizes.

    >>> from geosam2_model.config import VARIANTS
    >>> one, other = SAM2(VARIANTS["nano"]), SAM2(VARIANTS["nano"])
    >>> mean = (one.no_mem_embed + other.no_mem_embed) / 2
    >>> torch.equal(average([one, other]).no_mem_embed, mean)
    True
    """
    sizes = {replace(m.config, mask_quality=False) for m in models}
    if len(sizes) != 1:
        raise CheckpointError(
            f"{len(sizes)} kinds of model cannot be averaged; give runs of one recipe's variant."
        )
    most = max(models, key=lambda m: len(m.state_dict()))
    states = [m.state_dict() for m in models]
    mean = SAM2(most.config).eval()
    mean.load_state_dict({k: _mean([s[k] for s in states if k in s]) for k in mean.state_dict()})
    return mean


def _mean(same: Sequence[Tensor]) -> Tensor:
    if not same[0].is_floating_point():  # counters
        return same[-1]
    return torch.stack([x.float() for x in same]).mean(0).to(same[0].dtype)


def main() -> None:
    """Average the files that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="safetensors file to write, float16")
    parser.add_argument("files", type=Path, nargs="+", help="safetensors files to average")
    given = parser.parse_args()
    try:
        model = average([load(path, device="cpu", dtype=torch.float32) for path in given.files])
    except CheckpointError as error:
        parser.error(str(error))
    save(model, given.out, dtype=torch.float16)


if __name__ == "__main__":
    main()
