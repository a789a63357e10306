"""`geosam2 track`: the outline of an object at every date of a stack of scenes."""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geosam2.commands.options import (
    STOPPED,
    cache_from,
    is_quiet,
    max_frames_option,
    scene_from,
    scene_options,
)
from geosam2.commands.prompting import (
    area_text,
    geometry_from,
    geometry_options,
    prompt_options,
    prompts_from,
    stop_once,
)

if TYPE_CHECKING:
    import geopandas

    from geosam2.prompts import Prompt
    from geosam2.stack import Stack
    from geosam2.tracking import Sighting, Tracker


_STOPPED = "stopped"
_CORRECT = "--correct DATE,X,Y[,LABEL]"


@click.command()
@click.argument("sources", nargs=-1, required=True)
@prompt_options
@click.option("-o", "--output", default="-", show_default=True, help="Vector file; - = stdout.")
@click.option(
    "--start", metavar="DATE", help="Date at which the prompts were made; default the first."
)
@click.option(
    "--correct",
    "corrections",
    multiple=True,
    metavar="DATE,X,Y[,LABEL]",
    help="A click on the object at another date, from which on it is followed as what is there; "
    "repeat for more points. For one object alone.",
)
@click.option(
    "--dates",
    metavar="DATE,DATE,...",
    help="Dates of the sources, in order; default what their names say.",
)
@click.option("--preset", type=click.Choice(["rapid", "high-res"]), help="Quick or thorough.")
@click.option("--model", help="Name or path of weights; default as the preset says.")
@max_frames_option(50)
@click.option(
    "--refine/--no-refine",
    default=None,
    help="Sharpen at the finest level; the default but for the preset rapid.",
)
@geometry_options
@click.option("--preview", type=click.Path(dir_okay=False), help="Picture of all dates (PNG).")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@click.option("--no-cache", is_flag=True, help="Keep encoded frames in memory only.")
@functools.partial(scene_options, crs="--scene-crs")
def command(sources: tuple[str, ...], **given: Any) -> None:
    """Follow objects through the dates of SOURCES, two or more scenes of one place on one grid.

    Each object is pointed at on one date and looked for at all others, later and earlier. The
    output has a row for each object and date; where the object was not seen it has no outline.
    Ctrl-C stops after the date at hand and writes what there is, and so does a date that cannot be
    read.

        geosam2 track 1985.tif 1990.tif 1995.tif --point -74.47,-8.41 -o lake.gpkg
    """
    _check(given)
    stack = _stack(sources, given)
    asked = [given[name] for name in ("points", "boxes", "prompts", "crs")]
    prompts = prompts_from(*asked, pixels=stack.scenes[0].crs is None)
    start = stack.number(given["start"] or 0)
    corrections = _corrections(stack, prompts, start, given)
    tracker = _tracker(stack, given)
    found, trouble = _follow(tracker, prompts, start, corrections)
    table = tracker.table(found, **_geometry(given))
    _write(stack, table, given)
    if not is_quiet():
        _summary(table)
    if trouble:
        total = len(prompts) * len(stack)
        click.echo(f"{trouble}: {len(found)} of {total} dates looked at and written", err=True)
        sys.exit(STOPPED if trouble == _STOPPED else 1)


def _check(given: dict[str, Any]) -> None:
    """What can be refused before anything is looked at."""
    from geosam2.export import check_output, check_picture
    from geosam2.vectorize import check_options

    if not (given["points"] or given["boxes"] or given["prompts"]):
        raise click.UsageError("say what to follow: --point X,Y, --box L,B,R,T or --prompts FILE")
    check_options(**_geometry(given))
    if given["output"] != "-":
        check_output(Path(given["output"]), replaceable=given["overwrite"])
    if given["preview"]:
        check_picture(Path(given["preview"]))


def _geometry(given: dict[str, Any]) -> dict[str, Any]:
    names = ("min_area", "simplify", "orthogonal", "smooth")
    return geometry_from(*(given[name] for name in names))


def _stack(sources: tuple[str, ...], given: dict[str, Any]) -> Stack:
    from geosam2.export import check_crs
    from geosam2.stack import open_stack

    dates = given["dates"].split(",") if given["dates"] else None
    stack = open_stack([scene_from(source, given) for source in sources], dates)
    check_crs(given["output"], stack.scenes[0].crs)
    return stack


def _tracker(stack: Stack, given: dict[str, Any]) -> Tracker:
    from geosam2.masklet import PanOptions
    from geosam2.tracking import Tracker

    return Tracker(
        stack,
        given["model"],
        preset=given["preset"],
        cache=cache_from(given["no_cache"]),
        options=PanOptions(max_frames=given["max_frames"]),
        refine=given["refine"],
    )


def _corrections(
    stack: Stack, prompts: list[Prompt], start: int, given: dict[str, Any]
) -> dict[int, dict[int, Prompt]]:
    """The clicks of --correct, by object and date."""
    from geosam2.tracking import corrections_of

    clicks: dict[str, list[str]] = {}
    for text in given["corrections"]:
        date, _, point = text.partition(",")
        clicks.setdefault(date, []).append(point)
    if clicks and len(prompts) > 1:
        raise click.UsageError(f"--correct is for one object, and there are {len(prompts)}")
    pixels, crs = stack.scenes[0].crs is None, given["crs"]
    by_date = {
        date: replace(
            prompts_from(tuple(points), (), None, crs, pixels=pixels, usage=_CORRECT)[0],
            object_id=prompts[0].object_id,
        )
        for date, points in clicks.items()
    }
    return corrections_of(stack, by_date, start, prompts)


def _follow(
    tracker: Tracker,
    prompts: list[Prompt],
    start: int,
    corrections: dict[int, dict[int, Prompt]],
) -> tuple[list[tuple[int, Sighting]], str]:
    """What was seen of each object, under a progress bar, and why it ended early, if it did."""
    from tqdm import tqdm

    from geosam2.errors import SourceError

    found: list[tuple[int, Sighting]] = []
    total = len(prompts) * len(tracker.stack)
    bar = tqdm(total=total, unit=" dates", disable=is_quiet(), file=sys.stderr, delay=1e-3)
    try:
        with stop_once("date") as stop, bar:
            for prompt in prompts:
                for sighting in tracker.follow(prompt, start, corrections[prompt.object_id]):
                    found.append((prompt.object_id, sighting))
                    bar.set_description(f"object {prompt.object_id}: {sighting.found_by}")
                    bar.update()
                    if stop.asked and len(found) < total:
                        return found, _STOPPED
    except SourceError as error:
        if not found:
            raise
        return found, str(error)
    return found, ""


def _write(stack: Stack, table: geopandas.GeoDataFrame, given: dict[str, Any]) -> None:
    from geosam2 import export

    export.write(table, given["output"], overwrite=given["overwrite"])
    if given["preview"]:
        from geosam2 import viz

        viz.save_dates(stack, table, given["preview"])


def _summary(table: geopandas.GeoDataFrame) -> None:
    """One line an object and date on stderr."""
    for row in table.itertuples():
        size = "" if math.isnan(row.area_m2) else f", {_size(row, table.crs)}"
        click.echo(f"object {row.object}, {row.date}: {row.found_by}{size}", err=True)


def _size(row: Any, crs: Any) -> str:
    pixels = crs is None and row.geometry is not None
    return area_text(row.geometry.area if pixels else row.area_m2, crs)
