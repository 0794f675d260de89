"""What the verbs of ``cooperate`` share: finding a fleet's folder, and the options that say what is trained."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskedge.errors import InputError

if TYPE_CHECKING:
    from taskedge.cooperation.joint_task import Asked
    from taskedge.planning.fleet_spec import Fleet as Described

COLUMNS = ("text", "label", "prompt", "response", "image")

folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="The fleet's folder.  [default: the one here]",
)
eval_option = click.option(
    "--eval", "held_out", type=click.Path(path_type=Path), help="Held-out data to measure the result on."
)
out_option = click.option(
    "--out",
    default=Path("task.safetensors"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="The delta file to write.",
)
resume_option = click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
traffic_option = click.option("--show-traffic", is_flag=True, help="Print what was sent, by kind and size.")


def task_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The model, the columns of the data, the kind of task and its classes."""
    for decorate in (
        click.option("--max-length", type=click.IntRange(1), help="Longest text in tokens; longer ones are cut."),
        click.option(
            "--class",
            "classes",
            multiple=True,
            help="A class; repeat it for all of them, where the data does not hold every one.",
        ),
        click.option("--task", help="Kind of task; what the data says, if left out."),
        click.option("--image", help="Column with the path of an image."),
        click.option("--response", help="Column with the response to it."),
        click.option("--prompt", help="Column with the prompt."),
        click.option("--label", help="Column with the label."),
        click.option("--text", multiple=True, help="Column with the text; repeat it to join several."),
        click.option("--model", required=True, help="Base model: a local folder or a hub id."),
    ):
        command = decorate(command)
    return command


def asked(flags: dict[str, Any], data: Path | None, seed: int = 0) -> Asked:
    """What the options of ``task_options`` say; takes them out of ``flags``."""
    from taskedge.cooperation.joint_task import Asked
    from taskedge.training.tasks import Columns

    columns = Columns.of({name: flags.pop(name) for name in COLUMNS})
    rest = {name: flags.pop(name) for name in ("model", "task", "classes", "max_length")}
    return Asked(data=data, columns=columns, seed=seed, **rest)


def described(fleet: Path | None) -> Described | None:
    """What the fleet file says, if one is named."""
    from taskedge.planning.fleet_spec import load_fleet

    return load_fleet(fleet) if fleet else None


@contextmanager
def told_to_end() -> Iterator[None]:
    """Inside, being told to end (SIGTERM: `taskedge cooperate stop`, systemd) is what Ctrl-C is."""

    def end(*_: Any) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: no Ctrl-C, but this
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def fleet_folder(folder: Path | None) -> Path:
    """The fleet's folder: the one that is named, else this one, else the only one in it.

    Raises:
        InputError: there is none, or more than one.
    """
    if folder is not None:
        return folder
    here = Path()
    if (here / "authority.key").exists():
        return here
    found = sorted(path.parent for path in here.glob("*/authority.key"))
    if len(found) != 1:
        there = f"several fleets here ({', '.join(map(str, found))})" if found else "no fleet's folder here"
        raise InputError(f"{there}: name one with --folder; `taskedge cooperate init` makes one")
    return found[0]
