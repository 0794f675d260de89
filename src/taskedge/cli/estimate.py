"""``taskedge estimate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from taskedge.cli.config_options import given, json_option, note, options_of, print_json
from taskedge.training.config_file import settle
from taskedge.training.tune_config import TuneSettings

EPILOG = """\b
Examples:
  taskedge estimate --model bert-base-uncased --train reviews.csv
  taskedge estimate --config run.toml --memory 700MB --allow depth
"""


@click.command(epilog=EPILOG)
@options_of(TuneSettings)
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with any of these settings; flags win.")
@json_option
def command(config: Path | None, as_json: bool, **flags: Any) -> None:
    """Predict the memory and the time of a run of `tune`, and of every way to run it within less.

    Takes the same options. Steps of a few rows are run on the model itself; nothing is trained or written. With
    --memory it says which way `tune` would take, and ends with code 3 where none fits.
    """
    settings = settle(given(flags), config)
    from taskedge.training.dry_run import estimate
    from taskedge.training.memory.memory_report import choice_text, ladder_text

    found = estimate(settings, say=note)
    if as_json:
        print_json(found)
        return
    click.echo(ladder_text(found))
    if found["chosen"] is not None:
        click.echo(f"\n{choice_text(found)}")
