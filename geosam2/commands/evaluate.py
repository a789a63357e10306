"""`geosam2 evaluate`: judge a model by clicks, on videos, or while panning."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geosam2_model import SAM2

    from geosam2.evaluation import ClickOptions, ClickReport, Labelled

PICTURES = (".png", ".jpg", ".jpeg")
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_model = click.option("--model", default="nano", show_default=True, help="Name or path of weights.")
_seed = click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Of everything random, 0 or more.",
)
_limit = click.option("--limit", type=click.IntRange(1), help="Objects of each source, at random.")
_split = click.option(
    "--split",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON: folder name -> image stem -> part; only images of --part are judged.",
)
_part = click.option("--part", default="dev", show_default=True, help="Part of --split.")


@click.group()
def command() -> None:
    """Judge a model against objects that people drew.

    Prints a table, and the figures as one line of JSON at the end; docs/evaluate.md says what its
    fields mean and how the folders must look.
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
    """Click on the objects of FOLDERS: images/ with instances/ or instances_derived/ beside it.

    F@1 of the table is the boundary measure of DAVIS after one click, in a square 2.5 times as
    long as the object: outlines may be 0.8 % of its diagonal apart, however large the scene.
    """
    import geosam2_model

    from geosam2.evaluation import ClickOptions

    if pictures is not None and pictures.suffix.lower() not in PICTURES:
        raise click.UsageError(f"--pictures is {pictures}; it must end in {', '.join(PICTURES)}")
    if pictures is not None and crop == "object":
        raise click.UsageError("--pictures shows whole scenes; leave out --crop object")
    _need("scipy.ndimage", *(("skimage", "cv2") if rivals else ()))
    options = ClickOptions(crop, clicks, limit, rivals, seed)
    images, network = _images(folders, split, part), geosam2_model.load(model)
    report = _judged(images, network, options)
    if pictures is not None:
        from geosam2.evaluation_pictures import draw, worst

        draw(worst(report), images, network, pictures, seed)
    click.echo(f"model {model}")
    click.echo(report.table())
    asked = {"crop": crop, "clicks": clicks, "limit": limit, "rivals": rivals, "seed": seed}
    others = [name for name in report.verdicts if name != "model"]
    _last_line(
        _heading(model, network, folders, **asked, **_chosen(split, part)),
        {**report.figures(), "rivals": {name: report.totals(name) for name in others}},
    )


def _judged(images: Sequence[Labelled], network: SAM2, options: ClickOptions) -> ClickReport:
    """The whole report; how far it is goes to stderr."""
    from geosam2.evaluation import judge_clicks

    report = None
    for report in judge_clicks(images, network, options):
        done = len(report.verdicts.get("model", ()))
        if done % 50 == 0:
            click.echo(f"{done} objects", err=True)
    assert report is not None
    return report


@command.command()
@click.argument("folders", nargs=-1, required=True, type=FOLDER)
@_model
def video(folders: tuple[Path, ...], model: str) -> None:
    """Follow the objects of the first mask through videos.

    Each of FOLDERS holds frames/ (images in order) and masks/ (rasters of ids, same stems), or has
    folders that do. J and F are those of DAVIS: outlines may be 0.8 % of a frame's diagonal apart.
    """
    import geosam2_model

    from geosam2.evaluation import short_names
    from geosam2.evaluation_sequences import find_videos, judge_video

    _need("scipy.ndimage")
    names = short_names(find_videos(folders))
    network = geosam2_model.load(model)
    sources: dict[str, dict[str, float]] = {}
    for folder, name in names.items():
        sources[name] = judge_video(folder, network)
        click.echo(f"{name:30s} " + " ".join(f"{k} {v}" for k, v in sources[name].items()))
    total = sum(f["n"] for f in sources.values())
    # as DAVIS has it: the mean over objects, not over videos
    means = {k: round(sum(f[k] * f["n"] for f in sources.values()) / total, 4)
             for k in ("J", "F", "J&F")}  # fmt: skip
    _last_line(_heading(model, network, folders), {**means, "n": total, "sources": sources})


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

    _need("scipy.ndimage")
    images, network = _images(folders, split, part), geosam2_model.load(model)
    figures = judge_panning(images, network, frames, limit, seed)
    for name, value in figures.items():
        click.echo(f"{name:24s} {_text(value)}")
    asked = {"frames": frames, "limit": limit, "seed": seed, **_chosen(split, part)}
    _last_line(_heading(model, network, folders, **asked), figures)


def _text(value: Any) -> str:
    """A figure for the table: a number, an interval, or a dash where there is none."""
    if isinstance(value, list):
        return " to ".join(map(_text, value))
    return "-" if value is None else str(value)


def _need(*modules: str) -> None:
    """Refuse before any work if the packages of the extra are not there."""
    from geosam2.errors import import_optional

    for module in modules:
        import_optional(module, "evaluate")


def _chosen(split: Path | None, part: str) -> dict[str, Any]:
    """--split and --part as options of the last line; a part means nothing without a split."""
    return {"split": split and str(split), "part": split and part}


def _heading(model: str, network: SAM2, folders: Sequence[Path], **options: Any) -> dict[str, Any]:
    """What somebody needs to get the same figures again."""
    from geosam2 import __version__

    return {
        "model": model,
        "name": network.name,
        "fingerprint": network.fingerprint,
        "version": __version__,
        "options": {"folders": [str(folder) for folder in folders], **options},
    }


def _images(folders: tuple[Path, ...], split: Path | None, part: str) -> list[Labelled]:
    from geosam2.evaluation import find_labelled

    parts = {} if split is None else _parts(split)

    def keep(source: str, stem: str) -> bool:
        return split is None or parts.get(source, {}).get(stem) == part

    found = find_labelled(folders, keep=keep)
    if not found:
        raise click.UsageError(f"no image of {', '.join(map(str, folders))} is in part {part!r}")
    return found


def _parts(split: Path) -> dict[str, dict[str, str]]:
    try:
        parts = json.loads(split.read_text(encoding="utf-8"))
        if all(isinstance(stems, dict) for stems in parts.values()):
            return dict(parts)
    except (ValueError, AttributeError):
        pass  # not JSON, or not of objects
    raise click.UsageError(f"{split} is not JSON of the form {{folder: {{image stem: part}}}}")


def _last_line(heading: dict[str, Any], figures: dict[str, Any]) -> None:
    """One line of JSON; what has no value becomes null, since JSON knows no NaN."""

    def plain(x: Any) -> Any:
        if isinstance(x, dict):
            return {k: plain(v) for k, v in x.items()}
        if isinstance(x, list):
            return [plain(v) for v in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x

    click.echo(json.dumps(plain({**heading, **figures}), allow_nan=False))
