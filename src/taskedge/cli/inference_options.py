"""Options, preparation and output that ``eval`` and ``predict`` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskedge.backbone.storage import WEIGHT_STORAGE
from taskedge.cli.shared_options import head_option, other_base_option, print_status
from taskedge.training.trainer_config import DEFAULTS

if TYPE_CHECKING:
    from taskedge.training.inference import Inference

_AS = "  [default: as in training]"

INPUT_COLUMNS = ("source", "tokens", "turns", "messages")
"""Columns that ``eval`` and ``predict`` read beside text, prompt and image."""

TITLES = {
    "bleu": "BLEU", "chrf": "chrF", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L",
    "macro_f1": "macro F1", "micro_f1": "micro F1", "mse": "MSE", "pearson": "Pearson r", "spearman": "Spearman r",
}  # fmt: skip


def inference_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name the delta, the data, and the base to apply the delta to."""
    for decorate in (
        other_base_option,
        click.option(
            "--batch-size",
            default=DEFAULTS.batch_size,
            show_default=True,
            type=click.IntRange(1),
            help="Rows in a batch.",
        ),
        click.option("--max-new-tokens", type=click.IntRange(1), help=f"Longest generated response in tokens.{_AS}"),
        head_option,
        click.option(
            "--model", help="Base model: a local folder, a hub id or a GGUF file.  [default: the one the delta names]"
        ),
        click.option("--weight-storage", type=click.Choice(WEIGHT_STORAGE), help=f"How base weights are stored.{_AS}"),
        click.option("--image", help=f"Column with the path of an image.{_AS}"),
        click.option("--messages", help=f"Column with whole conversations.{_AS}"),
        click.option("--turns", help=f"Column with the turns of a dialogue.{_AS}"),
        click.option("--tokens", help=f"Column with a list of tokens.{_AS}"),
        click.option("--source", help=f"Column with the source text.{_AS}"),
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


def prepare(delta: Path, data: Path, columns: dict[str, Any], kwargs: dict[str, Any], *, answers: bool) -> Inference:
    """Return the base with the delta and the encoded data.

    Args:
        delta: the delta file.
        data: the data.
        columns: names of columns by their kind, from the options.
        kwargs: the options ``model``, ``head``, ``weight_storage``, ``force`` and ``max_new_tokens``.
        answers: whether to read the labels or responses too.
    """
    from taskedge.training.inference import prepare_inference
    from taskedge.training.tasks import Columns

    return prepare_inference(delta, data, Columns.of(columns), answers=answers, log=print_status, **kwargs)


def _shown(value: float | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def measures_text(measures: dict[str, float | None]) -> str:
    """Return measures as text, without the number of rows."""
    return ", ".join(
        f"{TITLES.get(name, name.replace('_', ' '))} {_shown(value)}"
        for name, value in measures.items()
        if name != "rows"
    )
