"""`geosam2 evaluate`: judge a model by clicks, on videos, or while panning."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from geosam2.evaluation import Labelled

PICTURES = (".png", ".jpg", ".jpeg")
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_model = click.option("--model", default="nano", show_default=True, help="Name or path of weights.")
_seed = click.option("--seed", default=0, show_default=True, help="Of everything random.")
_limit = click.option("--limit", type=click.IntRange(1), help="Objects a source, at random.")
_split = click.option(
    "--split",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON: folder name -> image stem -> part; only images of --part are judged.",
)
_part = click.option("--part", default="dev", show_default=True, help="Part of --split.")


@click.group()
def command() -> None:
    """Judge a model against objects that people drew.

    Prints a table, and the figures as one line of JSON at the end.
    """


@command.command()
@click.argument("folders", nargs=-1, required=True, type=FOLDER)
@_model
@click.option(
    "--crop",
    type=click.Choice(["scene", "object"]),
    default="scene",
    show_default=True,
    help="scene: a user's way, whole scene and all levels. object: the bare network on crops.",
)
@click.option("--clicks", default=5, show_default=True, type=click.IntRange(1, 20))
@_limit
@click.option("--rivals", is_flag=True, help="Also random weights and four classical methods.")
@click.option(
    "--pictures",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the worst three objects of each source: .png or .jpg.",
)
@_split
@_part
@_seed
def clicks(
    folders: tuple[Path, ...],
    model: str,
    crop: Any,
    clicks: int,
    limit: int | None,
    rivals: bool,
    pictures: Path | None,
    split: Path | None,
    part: str,
    seed: int,
) -> None:
    """Click on the objects of FOLDERS: images/ with instances/ or instances_derived/ beside it."""
    import geosam2_model

    from geosam2.evaluation import ClickOptions, judge_clicks

    if pictures is not None and pictures.suffix.lower() not in PICTURES:
        raise click.UsageError(f"--pictures is {pictures}; it must end in {', '.join(PICTURES)}")
    if pictures is not None and crop == "object":
        raise click.UsageError("--pictures shows whole scenes; leave out --crop object")
    options = ClickOptions(crop, clicks, limit, rivals, seed)
    images, network = _images(folders, split, part), geosam2_model.load(model)
    report = None
    for report in judge_clicks(images, network, options):
        done = len(report.verdicts.get("model", ()))
        if done % 50 == 0:
            click.echo(f"{done} objects", err=True)
    assert report is not None
    if pictures is not None:
        from geosam2.evaluation_pictures import draw, worst

        draw(worst(report), images, network, pictures, seed)
    click.echo(f"model {model}")
    click.echo(report.table())
    figures = {"model": model, **report.figures()}
    figures["rivals"] = {
        name: report.figures(name)["iou_1"] for name in report.verdicts if name != "model"
    }
    _last_line(figures)


@command.command()
@click.argument("folders", nargs=-1, required=True, type=FOLDER)
@_model
def video(folders: tuple[Path, ...], model: str) -> None:
    """Follow the objects of the first mask through videos.

    Each of FOLDERS holds frames/ (images in order) and masks/ (rasters of ids, same stems), or has
    folders that do.
    """
    import geosam2_model

    from geosam2.evaluation_sequences import find_videos, judge_video

    network = geosam2_model.load(model)
    figures: dict[str, Any] = {}
    for folder in find_videos(folders):
        figures[folder.name] = judge_video(folder, network)
        click.echo(f"{folder.name:30s} " + " ".join(f"{k} {v:.3f}" for k, v in
                                                    figures[folder.name].items()))  # fmt: skip
    total = sum(f["n"] for f in figures.values())
    # as DAVIS has it: the mean over objects, not over videos
    means = {k: round(sum(f[k] * f["n"] for f in figures.values()) / total, 4)
             for k in ("J", "F", "J&F")}  # fmt: skip
    _last_line({"model": model, **means, "n": total, "sources": figures})


@command.command()
@click.argument("folders", nargs=-1, required=True, type=FOLDER)
@_model
@click.option("--frames", default=12, show_default=True, type=click.IntRange(2))
@_limit
@_split
@_part
@_seed
def sequence(
    folders: tuple[Path, ...],
    model: str,
    frames: int,
    limit: int | None,
    split: Path | None,
    part: str,
    seed: int,
) -> None:
    """Pan over the objects of FOLDERS that are larger than a frame.

    Compares each frame's mask with that of the same frame when it is clicked by itself.
    """
    import geosam2_model

    from geosam2.evaluation_sequences import judge_panning

    images = _images(folders, split, part)
    figures = judge_panning(images, geosam2_model.load(model), frames, limit, seed)
    for name, value in figures.items():
        click.echo(f"{name:24s} {value}")
    _last_line({"model": model, **figures})


def _images(folders: tuple[Path, ...], split: Path | None, part: str) -> list[Labelled]:
    from geosam2.evaluation import find_labelled

    parts = {} if split is None else json.loads(split.read_text())

    def keep(source: str, stem: str) -> bool:
        return split is None or parts.get(source, {}).get(stem) == part

    found = find_labelled(folders, keep=keep)
    if not found:
        raise click.UsageError(f"no image of {', '.join(map(str, folders))} is in part {part!r}")
    return found


def _last_line(figures: dict[str, Any]) -> None:
    """One line of JSON; NaN becomes null, which JSON knows."""

    def plain(x: Any) -> Any:
        if isinstance(x, dict):
            return {k: plain(v) for k, v in x.items()}
        if isinstance(x, list):
            return [plain(v) for v in x]
        return None if isinstance(x, float) and math.isnan(x) else x

    click.echo(json.dumps(plain(figures)))
