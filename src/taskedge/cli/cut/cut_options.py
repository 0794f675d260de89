"""Shared parts of the verbs of ``cut``: options, settings from flags, and the lines at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from taskedge.cli.inference_options import measures_text
from taskedge.cli.shared_options import given_flags, options_of, print_json
from taskedge.cooperation.cut.cut_settings import NARROWED, NOT_IN_CUT, CutSettings, check_for_cut
from taskedge.reporting.tables import count_text
from taskedge.training.config import load_config
from taskedge.training.tune_config import TuneConfig

Command = Callable[..., Any]


def run_options(*leave_out: str) -> Callable[[Command], Command]:
    """Return a decorator that adds the settings of a run over the cut, but those in ``leave_out``."""

    def decorate(command: Command) -> Command:
        command = options_of(CutSettings)(command)
        command = click.option(
            "--config", type=click.Path(path_type=Path), help="TOML file with settings of tune; flags win."
        )(command)
        return options_of(TuneConfig, *NOT_IN_CUT, *leave_out, narrowed=NARROWED)(command)

    return decorate


def settings_from_flags(flags: Mapping[str, Any], **fixed: Any) -> tuple[TuneConfig, CutSettings]:
    """Return the settings that flags and the settings file give.

    Args:
        flags: of ``run_options``.
        fixed: values that no flag has.

    Raises:
        InputError: One cannot be used over the cut. No base is loaded and no cloud called before that is known.
    """
    given = given_flags(dict(flags))
    path = given.pop("config", None)
    own = {name: given.pop(name) for name in CutSettings.model_fields if name in given}
    config, settings = load_config(TuneConfig, {**given, **fixed}, path), load_config(CutSettings, own)
    check_for_cut(config, settings)
    return config, settings


def plan_options(command: Command) -> Command:
    """Add ``--plan`` and the links that its seconds are for."""
    command = click.option(
        "--delay", default=20.0, show_default=True, type=click.FloatRange(0), help="With --plan: round trip, ms."
    )(command)
    command = click.option(
        "--bandwidth",
        multiple=True,
        default=(10.0, 100.0),
        show_default=True,
        type=click.FloatRange(0, min_open=True),
        help="With --plan: Mbit/s in each direction; may be repeated.",
    )(command)
    return click.option(
        "--plan", "plan_only", is_flag=True, help="Print what a step will cost, and stop before the first."
    )(command)


def print_plans(plans: Mapping[str, Any], bandwidths: tuple[float, ...], delay: float, *, as_json: bool) -> None:
    """Print plans of steps, with the seconds of their transfers and delays.

    Args:
        plans: a ``StepPlan`` by what it is a plan of.
        bandwidths: Mbit/s.
        delay: of a round trip, ms.
        as_json: print JSON instead of a table.
    """
    from taskedge.cooperation.cut.cut_plan import StatedLink
    from taskedge.reporting.cut_text import cut_plan_text

    links = {f"{rate:g} Mbit/s, {delay:g} ms": StatedLink(1e6 * rate, delay / 1000) for rate in bandwidths}
    described = {
        name: plan.as_json()
        | {"seconds_by_link": [link.seconds(plan.step_bytes, plan.round_trips) for link in links.values()]}
        for name, plan in plans.items()
    }
    if as_json:
        print_json({"plans": described, "links": list(links)})
    else:
        click.echo(cut_plan_text(described, list(links)))
        click.echo("Seconds are those of transfers and delays: the time of computing comes on top.")


def print_result(result: Any, eval_path: Path | None, traffic: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the outcome of a run.

    Args:
        result: a ``CutResult``.
        eval_path: the held-out data.
        traffic: further values for JSON; ``up`` and ``down`` have bytes.
        as_json: print JSON instead of lines.
    """
    from dataclasses import asdict

    if as_json:
        print_json(asdict(result) | {"traffic": dict(traffic)})
        return
    parts = []
    if result.entries:
        parts.append(count_text(result.entries, "entry", "entries"))
    if result.low_rank:
        parts.append(f"low-rank products of {result.low_rank:,} parameters")
    if result.head:
        parts.append(f"a head of {result.head:,} parameters")
    click.echo(f"{result.out}: {' and '.join(parts)}")
    click.echo(
        f"{count_text(result.steps, 'step')} in {result.seconds:.0f} s, training loss {result.train_loss:.3f}; "
        f"{count_text(result.counted.passes, 'pass', 'passes')} through the cloud, of which "
        f"{result.counted.repeated} ran again"
    )
    if traffic:
        click.echo(f"{traffic['up']:,} bytes up, {traffic['down']:,} bytes down")
    if result.measures is not None:
        click.echo(f"on {eval_path}: {measures_text(result.measures)} ({result.measures['rows']:,} rows)")
