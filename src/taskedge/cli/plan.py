"""``taskedge plan``: who trains which block, with which share of the bandwidth."""

from __future__ import annotations

from pathlib import Path

import click

from taskedge.cli.plan_options import (
    blocks_option,
    budget_option,
    fleet_option,
    force_option,
    json_option,
    length_option,
    model_option,
    progress,
    refuse_existing,
    task_table,
    write_text,
)

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
    default="joint",
    show_default=True,
    help="joint, match, exact, several, or a baseline: random, greedy, hungarian, equal, one-device, fedavg.",
)
@blocks_option
@length_option
@click.option("--replicate", default=1, show_default=True, metavar="N", help="Every block on N devices, for more data.")
@click.option("--compare/--no-compare", default=True, show_default=True, help="Also say what each baseline would cost.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the plan as JSON, for the run-time.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the round (.svg, .png, .pdf).")
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
    """Plan one round: who trains which block, with which share of the bandwidth.

    Blocks are counted from the output; a device that trains block b must backpropagate through all blocks before it.
    The round lasts until the last device has received, computed and sent. Nothing is run.
    """
    refuse_existing([out, plot], force)
    from taskedge.planning.fleet_costs import fleet_costs
    from taskedge.planning.fleet_spec import load_fleet
    from taskedge.planning.plan import BASELINES, make_plan
    from taskedge.planning.solvers import SOLVERS
    from taskedge.reporting.tables import plan_text

    SOLVERS[solver]  # an unknown name ends here, before the work
    loaded = load_fleet(fleet)
    table, stated = task_table(loaded, fleet.parent, model, budget, length, blocks)
    costs = fleet_costs(loaded, table)
    others = tuple(name for name in ("exact", *BASELINES) if name != solver) if compare else ()
    with progress(1 + len(others), "solving") as advance:
        plan = make_plan(
            loaded,
            table,
            costs,
            solver,
            budget=stated,
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
