"""What ``eval`` and ``predict`` share: the options that name a delta and data, and the run over the data."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskedge.errors import InputError

if TYPE_CHECKING:
    from taskedge.training.table import Table
    from taskedge.training.text import Prediction


def delta_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The delta, the data, and the base that carries it."""
    for decorate in (
        click.option("--force", is_flag=True, help="Apply the delta even to a base with other values."),
        click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1), help="Rows in a batch."),
        click.option("--model", help="Base model: a local folder or a hub id.  [default: the one the delta names]"),
        click.option("--text", multiple=True, help="Column with the text.  [default: as in training]"),
        click.option("--data", required=True, type=click.Path(path_type=Path), help="CSV, TSV, JSONL or Parquet file."),
        click.argument("delta", type=click.Path(path_type=Path)),
    ):
        command = decorate(command)
    return command


def columns(delta: Path, text: Sequence[str], label: str | None = None) -> tuple[list[str], str | None]:
    """The text columns and the label column: those given, else those of the delta's training."""
    from taskedge.delta.file import load

    training = load(delta).provenance.training
    texts = list(text) or training.get("text")
    if not texts:
        raise InputError(f"{delta}: the delta does not say which column it was trained on: give --text")
    return texts, label or training.get("label")


def label_texts(
    delta: Path,
    table: Table,
    model: str | None,
    batch_size: int,
    *,
    force: bool,
    check: Callable[[Table, Sequence[str]], None] | None = None,
) -> tuple[Prediction, list[str]]:
    """Class probabilities of the table's rows by the delta on its base, and the names of the classes."""
    from tqdm.auto import tqdm

    from taskedge.delta.use import load_applied
    from taskedge.training.text import collator, encode, predict

    base, loaded = load_applied(delta, model, force=force)
    labels = list(loaded.provenance.labels)
    if check is not None:
        check(table, labels)
    longest = int(loaded.provenance.training.get("max_length", 128))
    longest = min(longest, base.longest or longest)
    rows = encode(base.tokenizer, table.texts, None, longest)
    with tqdm(total=len(rows), desc="predicting", unit="row", file=sys.stderr, disable=None) as bar:
        prediction = predict(base.model, rows, collator(base.tokenizer), batch_size, on_batch=bar.update)
    return prediction, labels
