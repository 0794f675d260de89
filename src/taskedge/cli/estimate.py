"""``taskedge estimate``: predicted memory and time of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from taskedge.cli.shared_options import given_flags, json_option, options_of, print_json, print_status
from taskedge.training.config import load_config
from taskedge.training.tune_config import TuneConfig

EPILOG = """\b
Examples:
  taskedge estimate --model bert-base-uncased --train reviews.csv
  taskedge estimate --config run.toml --memory 700MB --allow depth
"""

ESTIMATED_FORMS = tuple(form for form in get_args(TuneConfig.model_fields["form"].annotation) if form != "prompt")
"""Those whose memory is predicted."""


@click.command(epilog=EPILOG)
@options_of(
    TuneConfig,
    *(name for name in TuneConfig.model_fields if name.startswith("prompt_")),
    narrowed={"form": (ESTIMATED_FORMS, "What is trained (`taskedge tune --help` explains them).")},
)
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with any of these settings; flags win.")
@json_option
def command(config: Path | None, as_json: bool, **flags: Any) -> None:
    """Predict memory and time of a run of `tune`, and of every configuration that needs less memory.

    The options are those of `tune` but for soft prompts, whose memory is not predicted. A few small steps run on the
    model itself; nothing is trained or written. With --memory, the configuration that `tune` would choose is marked.
    The exit code is 3 if none fits.
    """
    settings = load_config(TuneConfig, given_flags(flags), config)
    from taskedge.training.dry_run import estimate
    from taskedge.training.memory.memory_report import costs_text, decision_text

    decision = estimate(settings, log=print_status)
    if as_json:
        print_json(decision)
        return
    click.echo(costs_text(decision))
    if decision["chosen"] is not None:
        click.echo(f"\n{decision_text(decision)}")
