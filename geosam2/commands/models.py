"""`geosam2 models`: what weights there are, and where."""

from __future__ import annotations

import click


@click.group()
def command() -> None:
    """List, download or locate model weights.

    Downloads are kept in the user's cache directory, or in GEOSAM2_MODELS.
    """


@command.command("list")
def list_models() -> None:
    """Every model, and whether it is on this computer."""
    from geosam2_model import checkpoints

    short = {full: alias for alias, full in checkpoints.ALIASES.items()}
    rows = [("nano", "embedded", "shipped with geosam2")]
    for name, known in checkpoints.PUBLISHED.items():
        path = checkpoints.local_path(name)
        where = str(path) if path.exists() else f"{known.megabytes} MB to download"
        rows.append((short.get(name, name), name, where))
    for alias, name, where in rows:
        click.echo(f"{alias:<16} {name:<18} {where}")


@command.command()
@click.argument("name")
def get(name: str) -> None:
    """Download the weights of NAME once; print their path."""
    from geosam2_model import checkpoints
    from tqdm import tqdm

    checkpoints.local_path(name)  # an unknown name is said before a bar is drawn
    with tqdm(desc=name, unit="B", unit_scale=True, unit_divisor=1024, leave=False) as bar:

        def show(have: int, total: int) -> None:
            bar.total = total or None
            bar.update(have - bar.n)

        path = checkpoints.fetch(name, show)
    click.echo(path)


@command.command()
@click.argument("name")
def path(name: str) -> None:
    """Print where the weights of NAME are; fails if they are not here yet."""
    from geosam2_model import checkpoints
    from geosam2_model.errors import CheckpointError

    found = checkpoints.local_path(name)
    if not found.exists():
        raise CheckpointError(f"{name} is not on this computer; run: geosam2 models get {name}")
    click.echo(found)
