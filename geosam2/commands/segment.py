"""`geosam2 segment`: follow the object under each point; write polygons."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geosam2.commands.options import (
    NAMES,
    STOPPED,
    cache_from,
    is_quiet,
    max_frames_option,
    refuse_others,
    run_folder,
    scene_from,
    scene_options,
)
from geosam2.commands.prompting import (
    area_text,
    geometry_from,
    geometry_options,
    numbered_after,
    prompt_options,
    prompts_from,
    stop_once,
)
from geosam2.errors import SourceError

if TYPE_CHECKING:
    import geopandas

    from geosam2.masklet import Step
    from geosam2.prompts import Prompt
    from geosam2.runs import PromptedRun, Task
    from geosam2.segmenter import Segmenter

_STOPPED = "stopped"


@click.command()
@click.argument("source")
@prompt_options
@click.option("-o", "--output", default="-", show_default=True, help="Vector file; - = stdout.")
@click.option("--level", default="auto", show_default=True, help="auto, a number or a label.")
@click.option("--gsd", type=float, help="Metres per pixel to look at, in place of --level.")
@click.option("--preset", type=click.Choice(["rapid", "high-res"]), help="Quick or thorough.")
@click.option("--model", help="Name or path of weights; default as the preset says.")
@max_frames_option(50)
@click.option(
    "--refine/--no-refine",
    default=None,
    help="Sharpen at the finest level; the default without --level.",
)
@geometry_options
@click.option("--preview", type=click.Path(dir_okay=False), help="Picture of the result (PNG).")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@click.option("--append", is_flag=True, help="Add to the output if it exists; ids go on from it.")
@click.option("--state", type=click.Path(file_okay=False), help="Folder of the run; OUTPUT.run.")
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped.")
@click.option("--no-cache", is_flag=True, help="Keep encoded frames in memory only.")
@functools.partial(scene_options, crs="--scene-crs")
def command(source: str, **given: Any) -> None:
    """Segment the objects of SOURCE under the given points, boxes or polygons.

    SOURCE is a GeoTIFF, a COG (path or URL), an XYZ template or a folder of tiles. Each object is
    followed over as many frames as it covers. Ctrl-C stops after the frame at hand, writes what
    there is and names the folder that --resume goes on from.

        geosam2 segment scene.tif --point 85.522,27.632 --crs EPSG:4326 -o lake.geojson
    """
    scene = {name: given.pop(name) for name in NAMES}
    asked = _Asked(source=source, scene=scene, **given)
    _check(asked)
    segmenter = _segmenter(asked)
    from geosam2.export import check_crs
    from geosam2.runs import PromptedRun

    check_crs(asked.output, segmenter.scene.crs)
    folder = _folder(asked)
    task = _stored_task(folder) if asked.resume else _task(asked, segmenter)
    run = PromptedRun(segmenter, task, folder, resume=asked.resume)
    quiet = is_quiet()
    trouble = _work(run, len(task.prompts), quiet=quiet)
    found = run.result(partial=bool(trouble))
    if trouble or run.unread:
        written = _write_part(found, asked, run)
        _say_unfinished(run, trouble or _unread(run), written)
        sys.exit(STOPPED if trouble == _STOPPED else 1)
    _write(found, asked, run)
    run.clean_up()
    if not quiet:
        _summary(found)


@dataclass(frozen=True)
class _Asked:
    """The command's options, by name."""

    source: str
    scene: dict[str, Any]
    """Those of `scene_options`."""
    points: tuple[str, ...]
    boxes: tuple[str, ...]
    prompts: str | None
    crs: str | None
    output: str
    level: str
    gsd: float | None
    preset: str | None
    model: str | None
    max_frames: int
    refine: bool | None
    min_area: float
    simplify: float | None
    orthogonal: bool
    smooth: bool
    preview: str | None
    overwrite: bool
    append: bool
    state: str | None
    resume: bool
    no_cache: bool


def _check(asked: _Asked) -> None:
    """What can be refused before anything is looked at."""
    from geosam2.export import check_picture
    from geosam2.vectorize import check_options

    if not (asked.points or asked.boxes or asked.prompts or asked.resume):
        raise click.UsageError("say what to segment: --point X,Y, --box L,B,R,T or --prompts FILE")
    if asked.overwrite and asked.append:
        raise click.UsageError("--overwrite and --append exclude each other: choose one")
    if asked.resume:
        refuse_others(
            BESIDE_RESUME,
            "cannot be changed with --resume, which goes on with what was asked at first: leave it "
            "out, or start anew without --resume",
        )
    if asked.resume and asked.output == "-" and not asked.state:
        raise click.UsageError("--resume needs the --output or the --state of the stopped run")
    check_options(**_geometry(asked))
    if asked.output != "-":
        _check_output(asked)
    if asked.preview:
        check_picture(Path(asked.preview))


def _check_output(asked: _Asked) -> None:
    from geosam2.export import check_output
    from geosam2.runs import is_output

    # a stopped run wrote what there was; anything else in its place is somebody's work
    ours = asked.resume and is_output(_folder(asked), asked.output)
    replaceable = asked.overwrite or asked.append or ours
    check_output(Path(asked.output), replaceable=replaceable, or_else="add with --append")


BESIDE_RESUME = (
    *("source", "output", "state", "resume", "overwrite", "append", "preview"),
    *("model", "preset", "no_cache"),
)
"""Parameters that mean something to a run that goes on, beside those of the scene; the others are
stored with it."""


def _segmenter(asked: _Asked) -> Segmenter:
    from geosam2.segmenter import Segmenter

    scene = scene_from(asked.source, asked.scene)
    return Segmenter(scene, asked.model, preset=asked.preset, cache=cache_from(asked.no_cache))


def _folder(asked: _Asked) -> Path | None:
    if asked.state:
        return Path(asked.state)
    return None if asked.output == "-" else run_folder(asked.output)


def _stored_task(folder: Path | None) -> Task:
    from geosam2.runs import Task, read_about

    assert folder is not None
    return Task.from_json(read_about(folder)["task"])


def _task(asked: _Asked, segmenter: Segmenter) -> Task:
    from geosam2.levels import level_from
    from geosam2.masklet import PanOptions
    from geosam2.runs import Task

    level = level_from(segmenter.scene, asked.level, asked.gsd)
    return Task(
        tuple(_prompts(asked, pixels=segmenter.scene.crs is None)),
        level if level == "auto" else level.index,
        PanOptions(max_frames=asked.max_frames),
        asked.refine,
        _geometry(asked),
    )


def _geometry(asked: _Asked) -> dict[str, Any]:
    return geometry_from(asked.min_area, asked.simplify, asked.orthogonal, asked.smooth)


def _prompts(asked: _Asked, *, pixels: bool) -> list[Prompt]:
    found = prompts_from(asked.points, asked.boxes, asked.prompts, asked.crs, pixels=pixels)
    return _numbered_on(found, asked) if asked.append and asked.output != "-" else found


def _numbered_on(prompts: list[Prompt], asked: _Asked) -> list[Prompt]:
    """Numbers that the file has already are not given again."""
    from geosam2.export import ids_in

    taken = ids_in(Path(asked.output))
    if not taken & {prompt.object_id for prompt in prompts}:
        return prompts
    return numbered_after(max(taken), prompts)


def _work(run: PromptedRun, objects: int, *, quiet: bool) -> str:
    """Go through the run under a progress bar; why it ended early, if it did."""
    try:
        with stop_once("frame") as stop, _bar(quiet=quiet) as bar:
            for prompt, phase, step in run:
                bar.set_description(f"object {prompt.object_id}, {phase}; {objects} in all")
                bar.set_postfix_str(f"{step.open_borders} open{_so_far(run, step)}")
                bar.update()
                if stop.asked:
                    run.pause()
                    return _STOPPED
    except SourceError as error:
        if run.rows:
            return str(error)
        run.clean_up_if_empty()  # there is nothing to write
        raise
    except BaseException:
        run.clean_up_if_empty()
        raise
    return ""


def _so_far(run: PromptedRun, step: Step) -> str:
    known = step.area == step.area  # not nan
    return f", {area_text(step.area, run.segmenter.scene.crs)}" if known else ""


def _unread(run: PromptedRun) -> str:
    """Which objects miss frames that the source did not give."""
    number, reason = next(iter(run.unread.items()))
    objects = f"{len(run.unread)} objects" if len(run.unread) > 1 else "an object"
    return f"frames of {objects} {reason} (object {run.task.prompts[number].object_id})"


def _say_unfinished(run: PromptedRun, reason: str, written: int) -> None:
    where = f"; go on with --resume (state in {run.folder})" if run.folder else ""
    done, objects = len(run.rows.keys() - run.unread.keys()), len(run.task.prompts)
    click.echo(
        f"{reason}: {done} of {objects} objects finished, {written} written{where}", err=True
    )


def _bar(*, quiet: bool) -> Any:
    """A progress bar that shows nothing before the first frame: a wrong prompt has none."""
    from tqdm import tqdm

    return tqdm(unit=" frames", disable=quiet, file=sys.stderr, delay=1e-3)


def _write_part(found: geopandas.GeoDataFrame, asked: _Asked, run: PromptedRun) -> int:
    """What there is, for the time being; how many objects were written.

    Nothing is appended to a file of other objects: it could not be replaced by the whole later.
    """
    from geosam2.runs import is_output, note_output

    there = asked.output != "-" and Path(asked.output).exists()
    if asked.append and there and not is_output(run.folder, asked.output):
        return 0
    _write(found, asked, run)
    note_output(run.folder, asked.output)
    return len(found)


def _write(found: geopandas.GeoDataFrame, asked: _Asked, run: PromptedRun) -> None:
    from geosam2 import export
    from geosam2.runs import is_output

    ours = asked.resume and is_output(run.folder, asked.output)
    overwrite, append = asked.overwrite or ours, asked.append and not ours
    export.write(found, asked.output, overwrite=overwrite, append=append)
    if asked.preview:
        from geosam2 import viz

        viz.save_preview(run.segmenter.scene, found, asked.preview)


def _summary(found: geopandas.GeoDataFrame) -> None:
    """One line an object on stderr; what is not finished is said."""
    for row in found.itertuples():
        rest = f", {row.open_edges} open edges (raise --max-frames?)" if row.open_edges else ""
        size = area_text(row.geometry.area if found.crs is None else row.area_m2, found.crs)
        click.echo(
            f"object {row.id}: {size}, {row.frames} frames at level {row.level}, "
            f"score {row.score:.2f}{rest}",
            err=True,
        )
