"""What ``eval`` and ``predict`` share: the options that name a delta and data, and the progress line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskedge.backbone import HOLDS
from taskedge.cli.config_options import note
from taskedge.training.trainer_config import FitSettings

if TYPE_CHECKING:
    from taskedge.training.inference import Work

_AS = "  [default: as in training]"


def delta_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The delta, the data, and the base that carries it."""
    for decorate in (
        click.option("--force", is_flag=True, help="Apply the delta even to a base with other values."),
        click.option(
            "--batch-size",
            default=FitSettings.batch_size,
            show_default=True,
            type=click.IntRange(1),
            help="Rows in a batch.",
        ),
        click.option("--max-new-tokens", type=click.IntRange(1), help=f"Longest generated response in tokens.{_AS}"),
        click.option("--model", help="Base model: a local folder or a hub id.  [default: the one the delta names]"),
        click.option("--base", type=click.Choice(HOLDS), help=f"How the base lies in memory.{_AS}"),
        click.option("--image", help=f"Column with the path of an image.{_AS}"),
        click.option("--prompt", help=f"Column with the prompt.{_AS}"),
        click.option("--text", multiple=True, help=f"Column with the text.{_AS}"),
        click.option(
            "--data",
            required=True,
            type=click.Path(path_type=Path),
            help="CSV, TSV, JSONL, Parquet or text file, or a folder of images.",
        ),
        click.argument("delta", type=click.Path(path_type=Path)),
    ):
        command = decorate(command)
    return command


def prepared(delta: Path, data: Path, columns: dict[str, Any], options: dict[str, Any], *, answers: bool) -> Work:
    """The delta at work on the data; ``options``: ``model``, ``base``, ``force``, ``max_new_tokens``."""
    from taskedge.training.inference import prepare
    from taskedge.training.tasks import Columns

    return prepare(delta, data, Columns.of(columns), answers=answers, say=note, **options)


@contextmanager
def progress(rows: int, what: str) -> Iterator[Callable[[int], object]]:
    """A line on standard error; it is told how many rows were done."""
    from tqdm.auto import tqdm

    with tqdm(total=rows, desc=what, unit="row", file=sys.stderr, disable=None) as bar:
        yield bar.update


TITLES = {"macro_f1": "macro F1", "mse": "MSE", "pearson": "Pearson r", "spearman": "Spearman r"}


def figures(measures: dict[str, float | None]) -> str:
    """Measures as a sentence, without the number of rows."""
    return ", ".join(
        f"{TITLES.get(name, name.replace('_', ' '))} {'undefined' if value is None else format(value, '.4f')}"
        for name, value in measures.items()
        if name != "rows"
    )
