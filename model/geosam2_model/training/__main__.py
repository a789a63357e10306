"""`python -m geosam2_model.training RECIPE.toml`: run a recipe, or go on with one."""

from __future__ import annotations

import argparse
from pathlib import Path

from geosam2_model.errors import ModelError
from geosam2_model.training.loop import train
from geosam2_model.training.recipe import Recipe


def main() -> None:
    """Read the recipe that the command line names, and run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    try:
        print(train(Recipe.read(parser.parse_args().recipe)))
    except ModelError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
