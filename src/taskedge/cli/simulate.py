"""``taskedge simulate``: rounds with fading links and devices that leave and return."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
  taskedge simulate --fleet fleet.toml --rounds 20 --compare all
  taskedge simulate --fleet fleet.toml --rounds 50 --churn 0.05 --blocks 4 --plot rounds.svg
  taskedge simulate --fleet fleet.toml --compare equal,random --json
"""


@click.command(epilog=EPILOG)
@fleet_option
@model_option
@budget_option
@blocks_option
@length_option
@click.option("--rounds", default=200, show_default=True, type=click.IntRange(1), help="Number of rounds.")
@click.option(
    "--fading",
    default="rayleigh",
    show_default=True,
    type=click.Choice(["rayleigh", "none"]),
    help="Random variation of the links from round to round.",
)
@click.option(
    "--churn",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Probability that a device is absent in the next round. An absent one returns with probability 1/2.",
)
@click.option(
    "--drift-db",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 60),
    help="Standard deviation of the slow change of each gain.",
)
@click.option("--solver", default="exact", show_default=True, help="Solver whose savings are printed.")
@click.option(
    "--compare",
    default="all",
    show_default=True,
    metavar="LIST",
    help="Solvers to compare with: all, none, or names separated by commas.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of fading and churn.")
@click.option("--out", type=click.Path(path_type=Path), help="Write all latencies as JSON.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Draw latencies and their distribution to a .svg, .png or .pdf file.",
)
@json_option
@force_option
def command(
    fleet: Path,
    model: str | None,
    budget: str | None,
    blocks: int | None,
    length: int | None,
    rounds: int,
    fading: Any,
    churn: float,
    drift_db: float,
    solver: str,
    compare: str,
    seed: int,
    out: Path | None,
    plot: Path | None,
    as_json: bool,
    force: bool,
) -> None:
    """Simulate rounds with fading links and devices that leave and return. Every round has its own plan.

    Every solver sees the same rounds. The same seed gives the same figures.
    """
    refuse_existing([out, plot], force)
    from taskedge.reporting.pictures import check_picture

    check_picture(plot)
    import numpy as np

    from taskedge.planning.fleet_costs import fleet_costs
    from taskedge.planning.fleet_file import load_fleet
    from taskedge.planning.plan import BASELINES
    from taskedge.planning.simulate import simulate
    from taskedge.planning.solvers import SOLVERS
    from taskedge.reporting.tables import simulation_text

    compared = {"all": list(BASELINES), "none": []}.get(compare, [name.strip() for name in compare.split(",")])
    for name in (solver, *compared):
        SOLVERS[name]  # raises for an unknown name, before the work
        if (current := SOLVERS.current_name(name)) != name:
            click.echo(f"the solver {name!r} is now {current!r}; the old name will go", err=True)
    solvers = list(dict.fromkeys(map(SOLVERS.current_name, [solver, *compared])))
    loaded = load_fleet(fleet)
    table, _ = task_table(loaded, fleet.parent, model, budget, length, blocks)
    with progress(rounds, "simulating", "round") as advance:
        result = simulate(
            loaded,
            fleet_costs(loaded, table),
            table.model,
            solvers,
            rounds,
            np.random.default_rng(seed),
            fading=fading,
            churn=churn,
            drift_db=drift_db,
            seed=seed,
            on_round=advance,
        )
    if out is not None:
        write_text(out, result.to_json())
    if plot is not None:
        from taskedge.reporting.pictures import draw_simulation

        draw_simulation(result.model_dump(), plot)
    click.echo(result.to_json() if as_json else simulation_text(result.model_dump()), nl=not as_json)
