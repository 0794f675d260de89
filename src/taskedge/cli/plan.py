"""``taskedge plan``: which device trains which blocks, with which share of the bandwidth."""

from __future__ import annotations

from pathlib import Path

import click

from taskedge.cli.plan_options import (
    blocks_option,
    budget_option,
    fleet_option,
    length_option,
    model_option,
    task_table,
    write_text,
)
from taskedge.cli.shared_options import force_option, json_option, progress, refuse_existing

EPILOG = """\b
Examples:
  taskedge plan --model roberta-base --budget 0.1% --fleet fleet.toml
  taskedge plan --fleet fleet.toml --blocks 4 --solver exact --out plan.json --plot plan.svg
  taskedge plan --fleet fleet.toml --json | jq .latency_seconds
"""


@click.command(epilog=EPILOG)
@model_option
@budget_option
@fleet_option
@click.option(
    "--solver",
    default="exact",
    show_default=True,
    help="exact, several, one-each, dual-ascent, match, or a baseline: random, greedy, hungarian, equal, one-device, "
    "fedavg.",
)
@blocks_option
@length_option
@click.option(
    "--replicate",
    default=1,
    show_default=True,
    metavar="N",
    help="Devices that train each block, each on its own data.",
)
@click.option(
    "--compare/--no-compare", default=True, show_default=True, help="Also print the latency of each baseline."
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the plan as JSON, for `cooperate serve --plan`.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the round to a .svg, .png or .pdf file.")
@json_option
@force_option
def command(
    model: str | None,
    budget: str | None,
    fleet: Path,
    solver: str,
    blocks: int | None,
    length: int | None,
    replicate: int,
    compare: bool,
    out: Path | None,
    plot: Path | None,
    as_json: bool,
    force: bool,
) -> None:
    """Plan one round: which device trains which blocks, with which share of the bandwidth.

    Blocks count from the output. A device that trains block b backpropagates through all blocks before it. The round
    lasts until the last device has received, computed and sent. No model runs.
    """
    refuse_existing([out, plot], force)
    from taskedge.reporting.pictures import check_picture

    check_picture(plot)
    from taskedge.planning.fleet_costs import fleet_costs
    from taskedge.planning.fleet_file import load_fleet
    from taskedge.planning.plan import COMPARED, make_plan
    from taskedge.planning.solvers import SOLVERS
    from taskedge.reporting.tables import plan_text

    SOLVERS[solver]  # raises for an unknown name, before the work
    loaded = load_fleet(fleet)
    table, budget_text = task_table(loaded, fleet.parent, model, budget, length, blocks)
    costs = fleet_costs(loaded, table)
    others = tuple(name for name in COMPARED if name != SOLVERS.current_name(solver)) if compare else ()
    with progress(1 + len(others), "solving", "solver") as advance:
        plan = make_plan(
            loaded,
            table,
            costs,
            solver,
            budget=budget_text,
            copies=replicate,
            compare=others,
            on_solver=lambda _: advance(1),
        )
    if out is not None:
        write_text(out, plan.to_json())
    if plot is not None:
        from taskedge.reporting.pictures import draw_plan

        draw_plan(plan.model_dump(), plot)
    click.echo(plan.to_json() if as_json else plan_text(plan.model_dump()), nl=not as_json)
