"""Which run a folder holds: what has to be the same for a stopped run to go on there.

It lies in the metadata of the run's state file. Without it, a second run in a used folder would
find its steps done, and hand out the first one's model as its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from geosam2_model.checkpoints import locate, sha256
from geosam2_model.errors import InputError
from geosam2_model.training import data
from geosam2_model.training.recipe import Recipe

KEY = "run"
"""Name in the metadata."""
FIXED = ("variant", "sources", "seed")
"""What a recipe file must keep while its run is stopped. The rest may be edited: a run that has
learnt enough is brought to its end by shortening the cosine of its last phase."""

Identity = dict[str, str]
"""What is compared -> its value as text, or the digest of it."""


def of_recipe(recipe: Recipe) -> Identity:
    """A run whose pictures come from the recipe's own sources."""
    values = asdict(recipe)
    return {name: _text(values[name]) for name in FIXED} | _start(recipe)


def of_pictures(
    recipe: Recipe, crops: data.Crops, held_back: Mapping[str, Sequence[data.Crop]]
) -> Identity:
    """A run on pictures in memory: everything counts, down to the last pixel."""
    values = asdict(recipe)
    told = {k: _text(v) for k, v in values.items() if k not in ("out", "start", "cache")}
    trained = (array for group in crops.pictures for p in group for array in (p.pixels, *p.labels))
    judged = (array for some in held_back.values() for c in some for array in (c.pixels, c.masks))
    pictures = {"pictures": _digest(trained), "held-back pictures": _digest(judged)}
    return told | _start(recipe) | pictures


def check(folder: Path, wanted: Identity, state: str, *, from_file: bool = False) -> None:
    """Refuse a folder that holds another run.

    Args:
        folder: Of the run.
        wanted: The run that is to go on in it.
        state: Name of the state file; a folder without it is free.
        from_file: The run is a recipe file's. It goes on from a state of an older version, which
            does not say which run it is of.

    Raises:
        InputError: If it is another run's, or the state file cannot be read.
    """
    path = folder / state
    if not path.exists():
        return
    found = metadata(path).get(KEY)
    if found is None and from_file:
        return
    known: Identity = json.loads(found) if found else {}
    other = sorted(k for k in known.keys() | wanted.keys() if known.get(k) != wanted.get(k))
    if other:
        why = f"other {', '.join(other)}" if known else "of an older version"
        place = "`out` in the recipe" if from_file else "-o"
        raise InputError(
            f"{folder} holds another run ({why}); choose another {place}, or delete it."
        )


def metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself.

    Raises:
        InputError: If it is none, or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete it to begin again.") from error


def _start(recipe: Recipe) -> Identity:
    return {"start weights": sha256(locate(recipe.start)) if recipe.start else "ImageNet"}


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _digest(arrays: Iterable[data.Array]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
