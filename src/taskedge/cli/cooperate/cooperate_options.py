"""Options that verbs of ``cooperate`` share, and what they are turned into."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskedge.errors import InputError

if TYPE_CHECKING:
    from taskedge.cooperation.joint_task import TaskSpec
    from taskedge.planning.fleet_spec import FleetSpec
    from taskedge.planning.plan import Plan

COLUMNS = ("text", "label", "prompt", "response", "source", "target", "tokens", "tags", "image")

folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Folder of the fleet.  [default: the one in this folder]",
)
eval_option = click.option(
    "--eval", "eval_path", type=click.Path(path_type=Path), help="Held-out data to measure the result on."
)
plan_option = click.option(
    "--plan",
    "plan_path",
    type=click.Path(path_type=Path),
    help="Plan of `taskedge plan --out` to follow, without rotation, while all devices named in it are present and can "
    "hold their blocks. Otherwise rounds are planned anew. Its blocks must match --model and --blocks.",
)
out_option = click.option(
    "--out",
    default=Path("task.safetensors"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Delta file to write.",
)
resume_option = click.option("--resume", is_flag=True, help="Continue an interrupted run.")
traffic_option = click.option("--show-traffic", is_flag=True, help="Print the number and size of messages, by kind.")


def model_option(*, required: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the decorator of the option ``--model``."""
    return click.option("--model", required=required, help="Base model: a local folder or a hub id.")


def task_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for the columns of the data, the kind of task and its classes."""
    for decorate in (
        click.option("--max-length", type=click.IntRange(1), help="Longest text in tokens; longer ones are truncated."),
        click.option(
            "--class",
            "classes",
            multiple=True,
            help="A class. Repeat it for all classes if the data does not contain every one.",
        ),
        click.option("--task", help="Kind of task.  [default: inferred from the data]"),
        click.option("--image", help="Column with the path of an image."),
        click.option("--tags", help="Column with the list of tags."),
        click.option("--tokens", help="Column with a list of tokens."),
        click.option("--target", help="Column with the target text."),
        click.option("--source", help="Column with the source text of an encoder-decoder."),
        click.option("--response", help="Column with the response to the prompt."),
        click.option("--prompt", help="Column with the prompt."),
        click.option("--label", help="Column with the label."),
        click.option("--text", multiple=True, help="Column with the text; repeat it to join several."),
    ):
        command = decorate(command)
    return command


def task_spec_from_flags(flags: dict[str, Any], data: Path | None) -> TaskSpec:
    """Return the task that the flags describe. The flags of ``--model`` and ``task_options`` are removed from them."""
    from taskedge.cooperation.joint_task import TaskSpec
    from taskedge.training.tasks import Columns

    columns = Columns.of({name: flags.pop(name) for name in COLUMNS})
    fields = {name: flags.pop(name) for name in ("model", "task", "classes", "max_length")}
    return TaskSpec(data=data, columns=columns, **fields)


def load_fleet_spec(path: Path | None) -> FleetSpec | None:
    """Return the fleet file at ``path``; None without one."""
    from taskedge.planning.fleet_file import load_fleet

    return load_fleet(path) if path else None


def load_plan(path: Path | None) -> Plan | None:
    """Return the plan at ``path``; None without one."""
    from taskedge.planning.plan import read_plan

    return read_plan(path) if path else None


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM (`taskedge cooperate stop`, systemd) in the block, as on Ctrl-C."""

    def interrupt(*_: Any) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell ignores Ctrl-C in its background jobs
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def fleet_folder(folder: Path | None) -> Path:
    """Return the fleet's folder: ``folder`` if given, else the current folder, else the only fleet inside it.

    Raises:
        InputError: There is none, or more than one.
    """
    if folder is not None:
        return folder
    current = Path()
    if (current / "authority.key").exists():
        return current
    folders = sorted(path.parent for path in current.glob("*/authority.key"))
    if len(folders) != 1:
        problem = f"several fleets here ({', '.join(map(str, folders))})" if folders else "no fleet's folder here"
        raise InputError(f"{problem}: name one with --folder; `taskedge cooperate init` makes one")
    return folders[0]
