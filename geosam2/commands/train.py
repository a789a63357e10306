"""`geosam2 train`: fine-tune a model on one's own images and polygons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

EXISTING = click.Path(exists=True, path_type=Path)


@click.command()
@click.option("--images", required=True, type=EXISTING, help="Folder of images, or one image.")
@click.option("--polygons", required=True, type=EXISTING, help="Vector file of the objects.")
@click.option(
    "-o",
    "--output",
    default="geosam2-model",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the new model; a run that was stopped in it goes on, another one is refused.",
)
@click.option("--model", default="nano", show_default=True, help="Weights to start from.")
@click.option("--steps", default=300, show_default=True, type=click.IntRange(1))
@click.option(
    "--freeze",
    type=click.Choice(["trunk", "encoder", "nothing"]),
    default="trunk",
    show_default=True,
    help='What stays as it is: little data wants more frozen. "encoder" keeps the trunk and what '
    'else looks at the image; "nothing" trains all of it.',
)
@click.option(
    "--lr",
    default=2e-4,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Learning rate.",
)
@click.option("--size", default=256, show_default=True, help="Side of the training crops, pixels.")
@click.option(
    "--judged",
    default=24,
    show_default=True,
    type=click.IntRange(1),
    help="Crops of held-back objects to click on.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
def command(images: Path, polygons: Path, output: Path, **options: Any) -> None:
    """Fine-tune a model on the polygons of your own images.

    Training runs on the CPU. About a quarter of the polygons is held back, beyond a straight line
    over all images: the table shows the model's IoU there before and after. With 8 or more of them,
    half choose the checkpoint and the table is about the others; with fewer, the same ones do both,
    and the figure after is somewhat too good. The new checkpoint, the old weights if nothing was
    better, goes wherever a model's name goes: --model OUTPUT/best.safetensors

        geosam2 train --images scenes/ --polygons fields.gpkg -o my-fields
    """
    from geosam2.finetune import FineTune, fine_tune

    outcome = fine_tune(images, polygons, FineTune(output, **options))
    click.echo(f"{'held back':12s}{'before':>9s}{'after':>9s}")
    for name, value in outcome.before.items():
        click.echo(f"{name.replace('iou_', 'IoU@'):12s}{value:9.3f}{outcome.after[name]:9.3f}")
    if not outcome.independent:
        click.echo("Few objects are held back, and they also chose the checkpoint.", err=True)
    click.echo(f"{outcome.checkpoint}")
    click.echo(json.dumps({"before": outcome.before, "after": outcome.after}))
