"""Everything that decides a training run, read from a TOML file."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from geosam2_model.errors import InputError
from geosam2_model.training.data import Source
from geosam2_model.training.features import FeatureLoss
from geosam2_model.training.losses import LossWeights
from geosam2_model.training.prompts import KINDS

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

T = TypeVar("T")


@dataclass(frozen=True)
class Phase:
    """A stretch of training under one set of numbers."""

    steps: int
    """Optimiser steps."""
    sizes: tuple[int, ...] = (256,)
    """Sides of the crops in pixels, multiples of 32; each step draws one."""
    images: int = 4
    """Crops a step and process, of the first size; fewer of larger ones."""
    objects: int = 6
    """Objects asked for on each crop of the first size, at most; fewer on larger ones."""
    lr: float = 1e-3
    """Learning rate after warming up."""
    decay: bool = False
    """Lower it to nothing along a half cosine."""
    warmup: int = 100
    """Steps until the learning rate is reached."""
    trunk_lr: float = 0.0
    """Factor on `lr` for the trunk; 0 keeps it as it is."""
    trunk_from: int = 3
    """First block of a convolutional trunk that is trained; what is before it, and the stem, stay.
    0 trains the stem as well."""
    frozen: tuple[str, ...] = ()
    """Names of parameters that start like one of these stay as they are."""
    kinds: tuple[float, ...] = (0.5, 0.12, 0.12, 0.18, 0.08)
    """How often each of `prompts.KINDS` is the first question."""
    rounds: tuple[float, ...] = (0.5, 0.35, 0.15)
    """How often a question has none, one, two corrections."""
    sequences: float = 0.0
    """Share of the steps that pan or play a sequence and train the memory."""

    def __post_init__(self) -> None:
        if not self.sizes or any(size % 32 for size in self.sizes):
            raise InputError(f"phase sizes {self.sizes} must be multiples of 32, at least one.")
        if len(self.kinds) != len(KINDS):
            raise InputError(f"phase kinds has {len(self.kinds)} numbers; one each for {KINDS}.")

    def batch(self, size: int) -> tuple[int, int]:
        """Crops and objects on each for one size: larger ones cost more, so there are fewer.

        >>> Phase(10, sizes=(192, 384), images=4, objects=6).batch(384)
        (2, 3)
        """
        share = self.sizes[0] / size
        return max(1, round(self.images * share)), max(1, round(self.objects * share))


@dataclass(frozen=True)
class Recipe:
    """A training run."""

    out: Path
    """Folder for checkpoints, log and curves."""
    sources: tuple[Source, ...]
    """Where pictures come from."""
    phases: tuple[Phase, ...]
    """One after another."""
    variant: str = "nano"
    """Name in `geosam2_model.config.VARIANTS` that a new model takes its shape from."""
    start: str = ""
    """Checkpoint (name or path) to go on from; empty starts from ImageNet."""
    split: Path | None = None
    """split.json that says which images may be trained on; None trains on all."""
    cache: Path = Path("runs/proposals")
    """Where superpixel regions are kept."""
    synthetic: float = 0.15
    """Share of crops from made-up scenes."""
    scenes: int = 400
    """How many such scenes are made."""
    seed: int = 1
    """Same seed, same run."""
    processes: int = 2
    """Each computes its own crops on one core; gradients are averaged."""
    ema: float = 0.998
    """Decay of the running average of the weights, which is what is judged and kept."""
    save_every: int = 100
    """Steps between checkpoints."""
    judge_every: int = 500
    """Steps between looks at the dev images."""
    judged: int = 24
    """Objects of each source that are looked at."""
    loss: LossWeights = field(default_factory=LossWeights)
    """How the parts of the loss count."""
    features: FeatureLoss = field(default_factory=FeatureLoss)
    """What the trunk learns of a larger network's features beside."""

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a TOML file; paths in it are relative to the working directory.

        Raises:
            InputError: If a name is unknown, or the file is not there or no TOML.
        """
        try:
            values: dict[str, Any] = tomllib.loads(path.read_text())
        except FileNotFoundError as error:
            raise InputError(
                f"there is no recipe {path}; check the spelling of the path."
            ) from error
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{path} is not a recipe: {error}") from error
        values["sources"] = tuple(_build(Source, s, path) for s in values.get("sources", ()))
        values["phases"] = tuple(_build(Phase, p, path) for p in values.get("phases", ()))
        values["loss"] = _build(LossWeights, values.get("loss", {}), path)
        values["features"] = _build(FeatureLoss, values.get("features", {}), path)
        return _build(cls, values, path)


def _build(kind: type[T], values: dict[str, Any], path: Path) -> T:
    known = {f.name: str(f.type) for f in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise InputError(f"{path}: {kind.__name__} has no {unknown}; it has {sorted(known)}.")
    fitted = {k: Path(v) if "Path" in known[k] else tuple(v) if isinstance(v, list) else v
              for k, v in values.items()}  # fmt: skip
    return kind(**fitted)
