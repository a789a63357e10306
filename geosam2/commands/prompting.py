"""What commands that take prompts and draw outlines have in common."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from geosam2.prompts import Prompt

F = TypeVar("F", bound=Callable[..., Any])


def prompt_options(command: F) -> F:
    """Add what says which objects are meant; the values go to `prompts_from`."""
    return _added(
        command,
        click.option(
            "-p",
            "--point",
            "points",
            multiple=True,
            metavar="X,Y[,LABEL]",
            help="A click; label 0 = not the object. Repeat for more points of one object. In "
            "pixel coordinates X = column and Y = -row.",
        ),
        click.option(
            "--box",
            "boxes",
            multiple=True,
            metavar="L,B,R,T",
            help="Left, bottom, right, top; repeat for more objects.",
        ),
        click.option(
            "--prompts",
            type=click.Path(dir_okay=False),
            help="Vector file of points, boxes or polygons, or a CSV file of points; each feature "
            "one object.",
        ),
        click.option(
            "--crs",
            help="CRS of points and boxes, and of --prompts that do not say their own; default "
            "that of the scene.",
        ),
    )


def geometry_options(command: F) -> F:
    """Add how outlines are drawn; the values go to `geometry_from`."""
    return _added(
        command,
        click.option(
            "--min-area", default=0.0, help="Drop smaller parts and holes, square metres."
        ),
        click.option("--simplify", type=float, help="Simplify outlines by so many metres."),
        click.option("--orthogonal", is_flag=True, help="Right angles, for buildings."),
        click.option("--smooth", is_flag=True, help="Smooth outlines, for natural things."),
    )


def _added(command: F, *options: Callable[[F], F]) -> F:
    for add in reversed(options):
        command = add(command)
    return command


def geometry_from(
    min_area: float, simplify: float | None, orthogonal: bool, smooth: bool
) -> dict[str, Any]:
    """Options of `vectorize.polygons`."""
    return {
        "min_area_m2": min_area,
        "simplify_m": simplify,
        "orthogonal": orthogonal,
        "smooth": smooth,
    }


def prompts_from(
    points: tuple[str, ...],
    boxes: tuple[str, ...],
    stored: str | None,
    crs: str | None,
    *,
    pixels: bool,
    usage: str = "--point X,Y[,LABEL]",
) -> list[Prompt]:
    """All points together are one object; each box and each feature is another.

    Args:
        points: As they were typed.
        boxes: The same.
        stored: File with more.
        crs: Of all that do not say their own.
        pixels: Whether the scene has pixel coordinates.
        usage: How points are written, for what is said of those that cannot be read.
    """
    from geosam2.prompts import Prompt, read_prompts

    found = []
    if points:
        clicks = [_numbers(text, (2, 3), usage) for text in points]
        labels: Any = tuple(click_[2] if len(click_) == 3 else 1 for click_ in clicks)
        found.append(Prompt(tuple((c[0], c[1]) for c in clicks), labels, crs=crs))
    for text in boxes:
        left, bottom, right, top = _numbers(text, (4,), "--box L,B,R,T")
        found.append(Prompt(box=(left, bottom, right, top), crs=crs))
    numbered = [replace(one, object_id=n) for n, one in enumerate(found, start=1)]
    more = read_prompts(stored, crs=crs, pixels=pixels) if stored else []
    return numbered + numbered_after(len(numbered), more)


def numbered_after(last: int, prompts: list[Prompt]) -> list[Prompt]:
    """The same with numbers that begin behind another one."""
    return [replace(one, object_id=one.object_id + last) for one in prompts]


def _numbers(text: str, counts: tuple[int, ...], usage: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts:
        raise click.BadParameter(f"{text!r} does not read as {usage}")
    return numbers


class Stop:
    """Set by the first Ctrl-C; the second one interrupts at once.

    Args:
        what: What is finished before it stops, for people.
    """

    def __init__(self, what: str) -> None:
        self.what, self.asked = what, False

    def __call__(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        click.echo(f"stopping after this {self.what} (Ctrl-C again: at once)", err=True)


@contextmanager
def stop_once(what: str) -> Iterator[Stop]:
    """While it lasts, Ctrl-C asks for a stop that the work looks out for."""
    stop = Stop(what)
    old = signal.signal(signal.SIGINT, stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, old)


def area_text(square_metres: float, crs: Any) -> str:
    """For people: m2, ha or km2; without a CRS pixels, which have no size.

    >>> area_text(950, "EPSG:4326"), area_text(25_000, "EPSG:4326"), area_text(3e6, None)
    ('950 m2', '2.50 ha', '3000000 px')
    """
    if crs is None:
        return f"{square_metres:.0f} px"
    if square_metres < 10_000:
        return f"{square_metres:.0f} m2"
    if square_metres < 1_000_000:
        return f"{square_metres / 10_000:.2f} ha"
    return f"{square_metres / 1_000_000:.2f} km2"
