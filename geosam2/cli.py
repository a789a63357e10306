"""The command line: `geosam2 COMMAND`.

Each command is a module of `geosam2.commands` with a click command named `command`; it is imported
only when it is called, so `geosam2 --help` starts without torch or rasterio.
"""

from __future__ import annotations

import importlib
import logging
import sys

import click

from geosam2 import __version__
from geosam2.errors import GeoSAM2Error

# command -> one-line help, shown without importing the module
COMMANDS = {
    "demo": "Segment the shipped example scene: polygons, a table and a picture.",
    "info": "What there is to know about a scene before segmenting it.",
    "segment": "Follow the object under a point over any number of frames; write its polygon.",
    "everything": "Find every object of a scene.",
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
def cli(verbose: int, quiet: bool) -> None:
    """Turn satellite and aerial imagery into polygons, on your own machine."""
    loud = [logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)]
    logging.basicConfig(
        level=logging.ERROR if quiet else loud,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    if not verbose:  # what GDAL thinks of a file's tags, several times a file
        logging.getLogger("rasterio._env").setLevel(logging.ERROR)


def main(args: list[str] | None = None) -> None:
    """Run the command line; an error of ours becomes one sentence on stderr and exit code 1."""
    try:
        cli.main(args=args, prog_name="geosam2", standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.Abort:
        click.echo("stopped", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (GeoSAM2Error, _model_error()) as error:
        click.echo(f"geosam2: {error}", err=True)
        sys.exit(1)


def _model_error() -> type[Exception]:
    """CheckpointError lives with the network, which must not import geosam2."""
    from geosam2_model.errors import ModelError

    return ModelError
