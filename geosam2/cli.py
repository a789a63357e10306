"""The command line: `geosam2 COMMAND`.

Each command is a module of `geosam2.commands` with a click command named `command`; it is imported
only when it is called, so `geosam2 --help` starts without torch or rasterio.
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
import traceback
import warnings
from typing import Any

import click

from geosam2 import __version__
from geosam2.commands.options import STOPPED
from geosam2.errors import GeoSAM2Error, GeoSAM2Warning, PromptError
from geosam2.sources.redact import hide_keys, printable, secret_filter

# command -> one-line help, shown without importing the module
COMMANDS = {
    "demo": "Segment the shipped example scene: polygons, a table and a picture.",
    "info": "What there is to know about a scene before segmenting it.",
    "segment": "Follow the object under a point over any number of frames; write its polygon.",
    "everything": "Find every object of a scene.",
    "track": "Follow an object through the dates of a stack of scenes.",
    "models": "List, download or locate model weights.",
    "train": "Fine-tune a model on your own images and polygons.",
    "evaluate": "Judge a model: clicks, video or panning.",
    "doctor": "Explain what works on this machine and what does not.",
    "worker": "The process that the QGIS plugin talks to (JSON lines on stdin and stdout).",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"geosam2.commands.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="geosam2")
@click.option("-v", "--verbose", count=True, help="Say more on stderr; twice for debugging.")
@click.option("-q", "--quiet", is_flag=True, help="Only errors on stderr.")
@click.pass_context
def cli(context: click.Context, verbose: int, quiet: bool) -> None:
    """Turn satellite and aerial imagery into polygons, on your own machine."""
    loud = [logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)]
    lines = logging.StreamHandler(sys.stderr)
    lines.addFilter(secret_filter)
    logging.basicConfig(
        level=logging.ERROR if quiet else loud,
        format="%(levelname)s %(name)s: %(message)s",
        handlers=[lines],
    )
    if not verbose:  # what GDAL thinks of a file's tags, several times a file
        logging.getLogger("rasterio._env").setLevel(logging.ERROR)
    if context.obj is not None:
        context.obj |= {"command": context.invoked_subcommand, **context.params}


def main(args: list[str] | None = None) -> None:
    """Run the command line; an error becomes one sentence on stderr and exit code 1.

    Of an error that is not ours, -vv shows the traceback.
    """
    said: dict[str, Any] = {}  # what `cli` was told
    _warn_in_one_sentence(said)
    try:
        code = cli.main(args=args, prog_name="geosam2", standalone_mode=False, obj=said)
    except click.Abort:
        click.echo("stopped", err=True)
        sys.exit(STOPPED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (GeoSAM2Error, _model_error()) as error:
        _fail(as_options(error, _command(said)))
    except Exception as error:
        if not _is_foreign(error):
            raise
        if said.get("verbose", 0) > 1:
            click.echo(hide_keys(traceback.format_exc()), err=True)
        said_so = " ".join(str(error).split())
        _fail(f"{type(error).__name__}: {said_so} (geosam2 -vv COMMAND ... shows where)")
    if code:  # click returns the code of an Exit here, and does not raise it
        sys.exit(code)


def _fail(message: str) -> None:
    click.echo(f"geosam2: {printable(hide_keys(message))}", err=True)
    sys.exit(1)


def _is_foreign(error: Exception) -> bool:
    """An error of the system or a library that nobody translated: about data, not our mistake."""
    library = (type(error).__module__ or "").partition(".")[0]
    return isinstance(error, OSError) or library in ("pyproj", "pyogrio", "rasterio", "shapely")


def _command(said: dict[str, Any]) -> click.Command | None:
    name = said.get("command")
    return None if name is None else cli.get_command(click.Context(cli), name)


_KEYWORD = re.compile(r"(?<![^\s(])([a-z][a-z_0-9]*)=('[^']*'|\"[^\"]*\"|[\w.\-]*\w)?")


def as_options(error: Exception, command: click.Command | None) -> str:
    """What an error says, with options of the command in place of Python's keywords.

    `crs=` is said of prompts and of imagery, which have options of their own.

    >>> from geosam2.commands.segment import command
    >>> as_options(PromptError("pass crs='EPSG:4326'"), command)
    "pass --crs 'EPSG:4326'"
    >>> as_options(GeoSAM2Error("pass crs=, or pixel_coordinates=True"), command)
    'pass --scene-crs, or --pixel-coordinates'
    """
    options = (
        {p.name: p for p in command.params if p.param_type_name == "option"} if command else {}
    )
    others = {"min_area_m2": "min_area", "simplify_m": "simplify"}
    if not isinstance(error, PromptError):
        others["crs"] = "scene_crs"

    def option(match: re.Match[str]) -> str:
        found = options.get(others.get(match[1], match[1]))
        if found is None:
            return match[0]
        value = match[2] if match[2] and not getattr(found, "is_flag", False) else ""
        return f"{found.opts[-1]} {value}".rstrip()

    return _KEYWORD.sub(option, str(error))


def _warn_in_one_sentence(said: dict[str, Any]) -> None:
    """Our warnings are for people: no file, no line; none with --quiet."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, GeoSAM2Warning):
            usual(message, category, *where, **more)
        elif not said.get("quiet"):
            click.echo(f"geosam2: {hide_keys(str(message))}", err=True)

    warnings.showwarning = show


def _model_error() -> type[Exception]:
    """CheckpointError lives with the network, which must not import geosam2."""
    from geosam2_model.errors import ModelError

    return ModelError
