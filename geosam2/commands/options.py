"""What commands have in common: options, above all those of every command that opens a scene."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from geosam2.cache import EmbeddingCache
    from geosam2.scene import Scene

F = TypeVar("F", bound=Callable[..., Any])

NAMES = (
    "bands",
    "stretch",
    "bounds",
    "bounds_crs",
    "scene_crs",
    "pixel_coordinates",
    "min_zoom",
    "max_zoom",
    "tile_size",
    "max_tiles",
)
"""Names that the options arrive under."""


def scene_options(command: F, *, crs: str = "--crs") -> F:
    """Add the options; their values go to `scene_from` as they are.

    Args:
        command: Takes them as keywords, `NAMES`.
        crs: What the option for the CRS of the imagery is called.
    """
    for add in reversed(
        [
            click.option(
                "--bands", metavar="R,G,B", help="Bands by number (from 1) or name, or one band."
            ),
            click.option(
                "--stretch",
                metavar="LOW,HIGH",
                help='Stored values that become black and white; or "percentile", or "none".',
            ),
            click.option(
                "--bounds",
                metavar="LEFT,BOTTOM,RIGHT,TOP",
                help="Working area: where prompts may lie and what is looked at first; objects "
                "that reach out of it are drawn whole. Default: all.",
            ),
            click.option("--bounds-crs", metavar="CRS", help="CRS of --bounds; default: SRC's."),
            click.option(
                crs, "scene_crs", metavar="CRS", help="CRS of imagery that does not say its own."
            ),
            click.option(
                "--pixel-coordinates",
                is_flag=True,
                help="Open a picture without georeference; x = column, y = -row (negative).",
            ),
            click.option("--min-zoom", type=int, help="Coarsest zoom of tiles."),
            click.option("--max-zoom", type=int, help="Finest zoom of tiles."),
            click.option("--tile-size", type=int, help="Pixels along the side of a tile."),
            click.option(
                "--max-tiles", type=int, default=4096, show_default=True, help="Never fetch more."
            ),
        ]
    ):
        command = add(command)
    return command


def max_frames_option(default: int) -> Callable[[F], F]:
    """The option that bounds how far an object is followed."""
    return click.option(
        "--max-frames",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        help="Frames for one object.",
    )


STOPPED = 130
"""Exit code of a process that was interrupted, as shells have it."""


def is_quiet() -> bool:
    """Whether `geosam2 -q` was asked for."""
    return bool(click.get_current_context().find_root().params.get("quiet"))


def run_folder(output: str | Path) -> Path:
    """Where a run is kept for which no folder was named: beside what it writes.

    >>> run_folder("lake.geojson").name
    'lake.geojson.run'
    """
    return Path(f"{output}.run")


def cache_from(no_cache: bool) -> EmbeddingCache:
    """Where encoded frames are kept; in memory alone with --no-cache."""
    from geosam2.cache import EmbeddingCache

    return EmbeddingCache(folder=None) if no_cache else EmbeddingCache()


def refuse_others(allowed: Collection[str], why: str) -> None:
    """An option that would be ignored is a mistake.

    Args:
        allowed: Parameters of the command that mean something, beside those of `scene_options`.
        why: What is wrong with the others, to follow the option's name.

    Raises:
        click.UsageError: If another one was given.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if given and name not in (*allowed, *NAMES):
            raise click.UsageError(f"{parameter.opts[-1]} {why}")


def scene_from(src: str, options: dict[str, Any]) -> Scene:
    """Scene that SRC and the options of `scene_options` describe.

    Raises:
        click.BadParameter: If --bounds or --stretch are not numbers.
    """
    from geosam2.scene import open_scene

    chosen: dict[str, Any] = {name: options.get(name) for name in NAMES}
    chosen["crs"] = chosen.pop("scene_crs")
    chosen["bands"] = _bands(chosen["bands"])
    chosen["stretch"] = _stretch(chosen["stretch"])
    if chosen["bounds"]:
        chosen["bounds"] = _numbers(chosen["bounds"], 4, "--bounds")
    chosen["max_tiles"] = options.get("max_tiles") or 4096
    return open_scene(src, **chosen)


def _bands(text: str | None) -> list[int | str] | None:
    """
    >>> _bands("4,3,2"), _bands("nir,red,green")
    ([4, 3, 2], ['nir', 'red', 'green'])
    """
    if not text:
        return None
    return [int(part) if part.strip().isdigit() else part.strip() for part in text.split(",")]


def _stretch(text: str | None) -> Any:
    if not text or text in ("percentile", "none"):
        return text or None
    return _numbers(text, 2, "--stretch")


def _numbers(text: str, count: int, option: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise click.BadParameter(
            f"{count} numbers with commas between them are needed, got {text!r}", param_hint=option
        )
    return numbers
