"""`geosam2 everything`: every object of a scene, or one for each of many prompts."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geosam2.commands.options import (
    STOPPED,
    is_quiet,
    refuse_others,
    run_folder,
    scene_from,
    scene_options,
)

if TYPE_CHECKING:
    from geosam2.cluster import Progress
    from geosam2.levels import Level
    from geosam2.steps import Job


@click.command()
@click.argument("source")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Vector file to write.")
@click.option("--model", default="nano", show_default=True, help="Name or path of a model.")
@click.option(
    "--level",
    help="Level, a number or a label; default 0 = native. x2, x4, x8 enlarge pixels, for objects "
    "of 10 to 30 of them.",
)
@click.option(
    "--gsd",
    type=float,
    help="Metres per pixel to look at, instead of --level; finer ones than SOURCE's enlarge.",
)
@click.option(
    "--points",
    default=None,
    metavar="N[,N[,N]]",
    help="Points per side: frame, each of 4 zoomed regions, each of 16.",
)
@click.option("--min-area", type=float, default=0.0, help="Smallest object, square metres.")
@click.option("--max-area", type=float, default=float("inf"), help="Largest object, square metres.")
@click.option("--min-iou", type=float, help="Least predicted IoU of a mask.")
@click.option("--min-stability", type=float, help="Least stability of a mask.")
@click.option("--min-score", type=float, help="Least product of the two.")
@click.option("--roi", type=click.Path(exists=True), help="Vector file with the region to look in.")
@click.option(
    "--layer",
    type=click.Choice(["flat", "parts"]),
    default="flat",
    show_default=True,
    help="One layer without overlaps, or all masks with the parent that each lies in.",
)
@click.option(
    "--similar-to",
    type=click.Path(exists=True),
    help="Vector file with a few examples, polygons or points on objects: the most similar "
    "objects come first.",
)
@click.option(
    "--prompts",
    type=click.Path(exists=True),
    help="Vector file of points or boxes, or a CSV file of points: one polygon each.",
)
@click.option("--workers", type=int, default=0, help="Processes; 0 = work in this one.")
@click.option("--scheduler", help="Address of a dask scheduler, tcp://host:port.")
@click.option("--block", type=int, default=8, show_default=True, help="Frames along a block.")
@click.option(
    "--folder", type=click.Path(file_okay=False, path_type=Path), help="Folder of the run."
)
@click.option("--resume", is_flag=True, help="Go on with the run in --folder.")
@click.option("--keep", is_flag=True, help="Keep what the run left in its folder.")
@click.option("--dry-run", is_flag=True, help="Say frames, time and disk; do not run.")
@click.option("--no-coverage", is_flag=True, help="Do not ask again where nothing was found.")
@click.option("--no-judge", is_flag=True, help="Do not ask the memory where linking is in doubt.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@scene_options
def command(
    source: str,
    output: Path | None,
    model: str,
    level: str | None,
    gsd: float | None,
    points: str | None,
    min_area: float,
    max_area: float,
    min_iou: float | None,
    min_stability: float | None,
    min_score: float | None,
    roi: str | None,
    layer: str,
    similar_to: str | None,
    prompts: str | None,
    workers: int,
    scheduler: str | None,
    block: int,
    folder: Path | None,
    resume: bool,
    keep: bool,
    dry_run: bool,
    no_coverage: bool,
    no_judge: bool,
    overwrite: bool,
    **options: Any,
) -> None:
    """Find every object of SOURCE, each of them once, however many frames it covers.

    Finished blocks are kept in --folder (by default the output's name with `.run`); after a crash
    or Ctrl-C the same command with --resume goes on from there.
    """
    from geosam2.cluster import remove
    from geosam2.everything import plan
    from geosam2.export import check_output
    from geosam2.levels import one_level
    from geosam2.vector_files import read_vector

    if output is None and not dry_run:
        raise click.UsageError("name the file to write with --output, or ask for a --dry-run")
    if output is not None:
        check_output(output, replaceable=overwrite or dry_run)
    scene = scene_from(source, options)
    chosen = one_level(scene, level, gsd)
    _hint(scene, chosen)
    if prompts is not None:
        refuse_others(WITH_PROMPTS, "says nothing about --prompts; leave it out")
        assert output is not None
        where = {"workers": workers, "scheduler": scheduler, "resume": resume, "level": chosen}
        kept = folder or run_folder(output)
        _prompted(scene, prompts, output, kept, overwrite, model=model, **where)
        if not keep:
            remove(kept)
        return
    given = {
        "coverage": () if no_coverage else None,
        "min_iou": min_iou,
        "min_stability": min_stability,
        "min_score": min_score,
        "points": _points(points),
    }
    choices: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    with contextlib.ExitStack() as stack:
        if dry_run:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="geosam2_")))
        elif folder is None:
            assert output is not None
            folder = run_folder(output)
        job = plan(
            scene,
            folder,
            model=model,
            level=chosen,
            roi=None if roi is None else read_vector(roi, pixels=scene.crs is None),
            block=block,
            judge=not no_judge,
            min_area_m2=min_area,
            max_area_m2=max_area,
            layer=layer,
            **choices,
        )
        if dry_run:
            _tell(job, workers)
            return
        assert output is not None
        examples = None
        if similar_to is not None:
            examples = read_vector(similar_to, pixels=scene.crs is None)
        with _resumable(job):
            _run(job, workers, scheduler, resume)
        _finish(job, output, examples, keep, overwrite)


COARSE = 5.0
"""Metres a pixel from which on fields and buildings are small on the image."""
SMALL = 25
"""Pixels across, below which an object is found better enlarged (docs/scale.md)."""
WITH_PROMPTS = (
    *("source", "output", "model", "level", "gsd", "prompts", "workers", "scheduler"),
    *("folder", "resume", "keep", "overwrite"),
)
"""Parameters that mean something with --prompts, beside those that say how a scene is opened."""


def _hint(scene: Any, level: Level) -> None:
    """Say that small things of coarse imagery are found better enlarged."""
    if level.index == 0 and scene.gsd >= COARSE and not is_quiet():
        click.echo(
            f"pixels are {scene.gsd:.3g} m: things of less than {SMALL} of them, "
            f"{SMALL * scene.gsd:.3g} m, are found better with --level x2",
            err=True,
        )


def _points(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is not a list of numbers such as 32,16,4", param_hint="--points"
        ) from error


@contextlib.contextmanager
def _resumable(job: Job) -> Iterator[None]:
    """Say how to go on when somebody stops the run."""
    try:
        yield
    except (KeyboardInterrupt, click.Abort):
        click.echo(f"stopped; go on with --resume --folder {job.folder}", err=True)
        raise click.exceptions.Exit(STOPPED) from None


def _run(job: Job, workers: int, scheduler: str | None, resume: bool) -> None:
    from geosam2.everything import executor_for, start, with_threads

    if resume and not (job.folder / "run.json").exists():
        raise click.UsageError(f"there is no run to resume in {job.folder}; leave out --resume")
    with executor_for(job, workers=workers, scheduler=scheduler) as executor:
        if link := getattr(executor, "dashboard", None):
            click.echo(f"dashboard: {link}", err=True)
        job = with_threads(job, executor)
        for _ in _shown(start(job, executor, resume=resume)):
            pass


def _finish(job: Job, output: Path, examples: Any, keep: bool, overwrite: bool) -> None:
    """Write what was found, and say what was left out."""
    from geosam2.cluster import named, read_manifest, remove
    from geosam2.errors import GeoSAM2Error

    try:
        count = _write(job, output, examples, overwrite)
    except GeoSAM2Error:
        click.echo(f"what was found is kept: use it with --resume --folder {job.folder}", err=True)
        raise
    manifest = read_manifest(job.folder)
    coverage, left_out = manifest["coverage"], named(manifest["failed"])
    if not is_quiet():
        covered = f"masks on {coverage:.0%} of the valid area"
        click.echo(f"{output}: {count} objects; {covered}", err=True)
    for name in left_out:
        click.echo(f"left out: {name}", err=True)
    if left_out:
        click.echo(f"try them again with --resume --overwrite --folder {job.folder}", err=True)
        raise click.exceptions.Exit(1)
    if not keep:
        remove(job.folder)


def _shown(steps: Iterator[Progress]) -> Iterator[Progress]:
    """The same steps, with a bar on a terminal's stderr."""
    from tqdm import tqdm

    bar: Any = None
    for progress in steps:
        if bar is None:  # frames of an earlier run do not count into the speed
            initial = progress.frames_done if progress.resumed else 0
            bar = tqdm(total=progress.frames_total, initial=initial, unit="frame", disable=None)
        bar.update(progress.frames_done - bar.n)
        bar.set_postfix(objects=progress.objects, coverage=f"{progress.coverage:.0%}")
        yield progress
    if bar is not None:
        bar.close()


def _write(job: Job, output: Path, examples: Any, overwrite: bool) -> int:
    """One block after the other into the output; an empty table if nothing was found.

    `parent` is the `name` of a row here: its number is not known before all blocks are there.
    """
    from geosam2 import export
    from geosam2.everything import collect, nothing, tables

    if examples is not None:
        from geosam2.similar import find_similar

        ranked = find_similar(collect(job), examples).drop(columns="feature")
        return export.write_many([ranked], output, overwrite=overwrite)
    found = tables(job)
    first = next(found, nothing(job))
    some = (table.drop(columns="feature") for table in itertools.chain([first], found))
    return export.write_many(some, output, overwrite=overwrite)


def _tell(job: Job, workers: int) -> None:
    """The estimate in words."""
    from geosam2.calibration import estimate

    found = estimate(job, workers=max(1, workers))
    hours, rest = divmod(int(found.seconds), 3600)
    click.echo(f"frames     {found.frames} in {found.blocks} blocks, {found.megapixels:.1f} Mpx")
    click.echo(
        f"a frame    {found.seconds_read:.2f} s reading, {found.seconds_network:.2f} s network "
        f"(measured on {found.sampled} frames)"
    )
    click.echo(
        f"expected   {hours} h {rest // 60:02d} min {rest % 60:02d} s, {found.workers} workers"
    )
    click.echo(f"disk       {found.bytes / 1e6:.1f} MB while running")


def _prompted(
    scene: Any, path: str, output: Path, folder: Path, overwrite: bool, **how: Any
) -> None:
    """One polygon for each prompt; blocks that kept failing are named."""
    from geosam2 import export
    from geosam2.bulk import segment_prompts
    from geosam2.vector_files import read_vector

    prompts = read_vector(path, pixels=scene.crs is None)
    with _bar("prompt") as advance:
        found = segment_prompts(scene, prompts, folder=folder, progress=advance, **how)
    export.write(found, output, overwrite=overwrite)
    if not is_quiet():
        click.echo(f"{output}: {len(found)} objects", err=True)
    for name in found.attrs["left_out"]:
        click.echo(f"left out: {name}", err=True)
    if found.attrs["left_out"]:
        click.echo(f"try them again with --resume --overwrite --folder {folder}", err=True)
        raise click.exceptions.Exit(1)


@contextlib.contextmanager
def _bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """Something to call with how many are done and how many there are: a bar on a terminal."""
    from tqdm import tqdm

    with tqdm(unit=unit, disable=None) as bar:

        def advance(done: int, count: int) -> None:
            bar.total = count
            bar.update(done - bar.n)

        yield advance
