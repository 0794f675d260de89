"""Options and helpers of the planning verbs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from taskedge.errors import InputError

if TYPE_CHECKING:
    from taskedge.backbone.cost_table import BlockTable
    from taskedge.planning.fleet_spec import FleetSpec

model_option = click.option("--model", metavar="M", help="Folder or hub name. Only the config is read, no weights.")
budget_option = click.option("--budget", metavar="SHARE", help="Trained share of the parameters, such as 0.1%.")
fleet_option = click.option(
    "--fleet", required=True, type=click.Path(path_type=Path), help="The fleet file (docs/planning.md)."
)
blocks_option = click.option("--blocks", type=int, metavar="L", help="Merge consecutive layers into L balanced blocks.")
length_option = click.option(
    "--length", type=int, metavar="N", help="Tokens per sequence.  [default: the fleet file's]"
)


def task_table(
    fleet: FleetSpec, folder: Path, model: str | None, budget: str | None, length: int | None, blocks: int | None
) -> tuple[BlockTable, str]:
    """Return the block table of the model of the options or the fleet file, and the budget as text.

    Args:
        fleet: the fleet; its [model] table has defaults.
        folder: folder of the fleet file, for relative paths in it.
        model, budget, length, blocks: values of the options.

    Raises:
        InputError: neither names a model, or the model has no usable config.
    """
    from taskedge.backbone.cost_model import block_table, dummy_inputs, skeleton
    from taskedge.planning.fleet_costs import balanced_sizes
    from taskedge.planning.fleet_spec import ModelSpec
    from taskedge.selection.select import parse_share

    task = fleet.model or ModelSpec(path="")
    name = model or (str(folder / task.path) if task.path and (folder / task.path).exists() else task.path)
    if not name:
        raise InputError("no model: give --model, or a [model] table with path in the fleet file")
    budget_text = budget or task.budget
    shape = skeleton(name)
    inputs = dummy_inputs(shape, 1, length or task.sequence_tokens)
    table = block_table(shape, inputs, parse_share(budget_text), Path(name).name or name)
    if blocks is not None:
        table = table.merged(balanced_sizes(table.backward_flops, blocks))
    return table, budget_text


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    from taskedge.io.atomic import write_atomic

    write_atomic(path, text.encode())


def unusable_model(model: str, error: Exception) -> InputError:
    """Return an InputError with the first line of another library's error."""
    lines = str(error).strip().splitlines()
    return InputError(f"model {model!r} cannot be run here: {lines[0] if lines else type(error).__name__}")
