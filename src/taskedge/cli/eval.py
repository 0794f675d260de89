"""``taskedge eval``: measure a delta on data with answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from taskedge.cli.inference_options import INPUT_COLUMNS, inference_options, measures_text, prepare
from taskedge.cli.shared_options import json_option, print_json, print_status, progress
from taskedge.reporting.class_tables import class_table, confusion_table

EPILOG = """\b
Examples:
  taskedge eval task.safetensors --data heldout.csv
  taskedge eval task.safetensors --data heldout.csv --text review --label sentiment --model ./bert-base --json
  taskedge eval pets.safetensors --data heldout/
"""


@click.command(epilog=EPILOG)
@inference_options
@click.option(
    "--label", multiple=True, help="Column with the label; several for sets of labels.  [default: as in training]"
)
@click.option(
    "--label-separator", help="Between the labels that a column lists.  [default: as in training, or a comma]"
)
@click.option("--response", help="Column with the response.  [default: as in training]")
@click.option("--target", help="Column with the target text.  [default: as in training]")
@click.option("--tags", help="Column with the list of tags.  [default: as in training]")
@json_option
def command(
    delta: Path, data: Path, text: tuple[str, ...], label: tuple[str, ...], prompt: str | None, response: str | None,
    image: str | None, batch_size: int, as_json: bool, **kwargs: Any,
) -> None:  # fmt: skip
    """Measure a delta on data with answers, on a freshly loaded base.

    Classes: accuracy, macro F1 and loss; of each class precision, recall and F1, and the confusion matrix. Sets of
    labels: micro and macro F1, and the share of sets that are right. Numbers: mean squared error and correlations.
    Generation: perplexity, and the share of responses that are generated exactly. Targets of encoder-decoders: ROUGE,
    BLEU and chrF as well. Tags: accuracy by token, and precision, recall and F1 of whole entities.
    """
    from taskedge.delta.apply import applied_to

    columns = {"text": text, "label": label, "prompt": prompt, "response": response, "image": image}
    columns |= {name: kwargs.pop(name) for name in (*INPUT_COLUMNS, "label_separator", "target", "tags")}
    inference = prepare(delta, data, columns, kwargs, answers=True)
    with progress(len(inference.rows), "measuring") as on_progress:
        measures, prediction = inference.examine(batch_size, on_progress)
    figures = None if prediction is None else inference.figures(prediction)
    if as_json:
        record = applied_to(inference.base.model)
        forced = {"forced": record.forced} if record is not None and record.forced else {}
        print_json({**measures, **({} if figures is None else {"by_class": figures}), **forced})
        return
    classes = f", {len(inference.task.labels)} classes" if inference.task.labels else ""
    click.echo(f"{data}: {measures_text(measures)} ({measures['rows']:,} rows{classes})")
    if figures is not None and prediction is not None:
        click.echo(f"\n{class_table(figures)}")
        if "confusion" in figures:
            click.echo(f"\n{confusion_table(figures)}")
        if hint := inference.never_predicted(prediction):
            print_status(hint)
