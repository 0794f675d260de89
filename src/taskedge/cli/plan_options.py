"""What the planning verbs share: finding the model's shape, and files that are never half written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskedge.errors import InputError

if TYPE_CHECKING:
    from taskedge.backbone.cost_table import BlockTable
    from taskedge.planning.fleet_spec import Fleet

model_option = click.option(
    "--model", metavar="M", help="Folder or hub name; the config is enough, no weights are read."
)
budget_option = click.option("--budget", metavar="SHARE", help="Trained share of the parameters, such as 0.1%.")
fleet_option = click.option(
    "--fleet", required=True, type=click.Path(path_type=Path), help="The fleet file (docs/planning.md)."
)
blocks_option = click.option(
    "--blocks", type=int, metavar="L", help="Merge neighbouring layers into L balanced blocks."
)
length_option = click.option(
    "--length", type=int, metavar="N", help="Tokens per sequence.  [default: the fleet file's]"
)
force_option = click.option("--force", is_flag=True, help="Overwrite files that exist.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def task_table(
    fleet: Fleet, folder: Path, model: str | None, budget: str | None, length: int | None, blocks: int | None
) -> tuple[BlockTable, str]:
    """The block table of the model that the options or the fleet file name, and the budget in words.

    Raises:
        InputError: nobody names a model, or it has no config that can be used.
    """
    from taskedge.backbone.cost_model import block_table, dummy_inputs, skeleton
    from taskedge.planning.fleet_costs import balanced_sizes
    from taskedge.planning.fleet_spec import Task
    from taskedge.selection.select import parse_share

    task = fleet.model or Task(path="")
    name = model or (str(folder / task.path) if task.path and (folder / task.path).exists() else task.path)
    if not name:
        raise InputError("no model: give --model, or a [model] table with path in the fleet file")
    stated = budget or task.budget
    shape = skeleton(name)
    inputs = dummy_inputs(shape, 1, length or task.sequence_tokens)
    table = block_table(shape, inputs, parse_share(stated), Path(name).name or name)
    if blocks is not None:
        table = table.merged(balanced_sizes(table.backward_flops, blocks))
    return table, stated


def refuse_existing(paths: Iterable[Path | None], force: bool) -> None:
    """Stops before any work when a file is in the way.

    Raises:
        InputError: naming every file that exists, or whose folder does not.
    """
    given = [path for path in paths if path is not None]
    existing = [str(path) for path in given if path.exists()]
    if existing and not force:
        raise InputError(f"{', '.join(existing)} exists; give --force to overwrite, or another name")
    missing = [str(path.parent) for path in given if not path.parent.is_dir()]
    if missing:
        raise InputError(f"there is no folder {', '.join(missing)}; make it first")


def write_text(path: Path, text: str) -> None:
    """Writes aside, then renames: the file is whole or not there."""
    from taskedge.io.atomic import write_aside

    write_aside(path, text.encode())


@contextmanager
def progress(length: int, label: str) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal, silence where it is not."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    bar: Any
    with click.progressbar(length=length, label=label, file=sys.stderr) as bar:
        yield bar.update


def cannot_be_used(model: str, error: Exception) -> InputError:
    """The first line of another library's complaint about running the model."""
    lines = str(error).strip().splitlines()
    return InputError(f"model {model!r} cannot be run here: {lines[0] if lines else type(error).__name__}")
