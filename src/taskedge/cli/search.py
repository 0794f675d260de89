"""``taskedge search``: find learning rates by held-out loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from taskedge.cli.shared_options import force_option, given_flags, json_option, options_of, print_json, print_status
from taskedge.errors import InputError, Interrupted
from taskedge.reporting.tables import columns
from taskedge.training.config import load_config
from taskedge.training.tune_config import TuneConfig

EPILOG = """\b
Examples:
  taskedge search --model ./minilm --train reviews.csv --validation 15%
  taskedge search --config run.toml --validation 15% --rates 0.01,0.03,0.1 --head-rates 0.01,0.03 --rungs 3
  taskedge search --config run.toml --validation 15% --time-budget 10m
  taskedge search --config run.toml --validation 15% --resume
"""


@click.command(epilog=EPILOG)
@options_of(TuneConfig, "lr", "head_lr")
@click.option("--rates", default="0.01,0.03,0.1", show_default=True, help="Peak learning rates, separated by commas.")
@click.option("--head-rates", default="0.003,0.03", show_default=True, help="Peak learning rates of the head.")
@click.option("--eta", default=3, show_default=True, type=click.IntRange(2), help="The best 1/ETA of a rung continue.")
@click.option(
    "--rungs", default=2, show_default=True, type=click.IntRange(1), help="Rungs; each has ETA times the epochs."
)
@click.option("--time-budget", metavar="TIME", help="Longest time of all runs, such as 90s, 10m or 1h.")
@click.option("--step-budget", type=click.IntRange(1), metavar="N", help="Most optimizer steps of all runs.")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with any of these settings; flags win.")
@click.option("--resume", is_flag=True, help="Continue the interrupted search of --out.")
@force_option
@json_option
def command(
    rates: str, head_rates: str, eta: int, rungs: int, time_budget: str | None, step_budget: int | None,
    config: Path | None, resume: bool, force: bool, as_json: bool, **flags: Any,
) -> None:  # fmt: skip
    """Search learning rates of entries and head by held-out loss, and write the best delta.

    Every pair of rates trains for a share of the epochs; the best of them train longer, and the best of the last rung
    is written. With a budget, a run starts only if it fits, and pairs that do not fit are not tried. The options of
    `tune` hold for every run. An interrupted search continues with --resume.
    """
    settings = load_config(TuneConfig, given_flags(flags), config)
    tried = [_numbers("--rates", rates), _numbers("--head-rates", head_rates)]
    from taskedge.training.search_budget import SearchBudget, parse_seconds

    try:
        budget = SearchBudget(None if time_budget is None else parse_seconds(time_budget), step_budget)
    except InputError as error:
        raise InputError(f"--time-budget: {error}") from None
    from taskedge.training.rate_search import STATE_FILE, search_folder, search_rates

    options: dict[str, Any] = {"eta": eta, "rungs": rungs, "budget": budget, "resume": resume, "force": force}
    try:
        trials = search_rates(settings, *tried, log=print_status, **options)
    except KeyboardInterrupt:
        if (search_folder(settings.out) / STATE_FILE).exists():
            raise Interrupted("interrupted: continue with --resume") from None
        raise
    if as_json:
        print_json({"out": str(settings.out), "best": trials[0], "trials": trials})
        return
    rows = [["rung", "epochs", "learning rate", "of the head", "steps", "held-out loss"]]
    for one in trials:
        loss = "diverged" if one["held_out_loss"] is None else f"{one['held_out_loss']:.4f}"
        rows.append([str(one["rung"] + 1), *(f"{one[key]:g}" for key in ("epochs", "lr", "head_lr", "steps")), loss])
    click.echo(columns(rows, left=()))
    best = trials[0]
    click.echo(f"{settings.out}: --lr {best['lr']:g} --head-lr {best['head_lr']:g}")


def _numbers(flag: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) <= 0 or len(set(numbers)) < len(numbers):
        raise InputError(f"{flag} {text}: write different rates above 0, separated by commas, such as 0.01,0.03")
    return numbers
