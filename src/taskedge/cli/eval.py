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
@click.option("--label", help="Column with the label.  [default: as in training]")
@click.option("--response", help="Column with the response.  [default: as in training]")
@click.option("--target", help="Column with the target text.  [default: as in training]")
@click.option("--tags", help="Column with the list of tags.  [default: as in training]")
@json_option
def command(
    delta: Path, data: Path, text: tuple[str, ...], label: str | None, prompt: str | None, response: str | None,
    image: str | None, batch_size: int, as_json: bool, **kwargs: Any,
) -> None:  # fmt: skip
    """Measure a delta on data with answers, on a freshly loaded base.

    Classes: accuracy, macro F1 and loss; of each class precision, recall and F1, and the confusion matrix. Numbers:
    mean squared error and correlations. Generation: perplexity, and the share of responses that are generated
    exactly. Targets of encoder-decoders: ROUGE, BLEU and chrF as well. Tags: accuracy by token, and precision,
    recall and F1 of whole entities.
    """
    from taskedge.delta.apply import applied_to
    from taskedge.training.class_figures import class_figures
    from taskedge.training.class_weights import never_predicted_hint

    columns = {"text": text, "label": label, "prompt": prompt, "response": response, "image": image}
    columns |= {name: kwargs.pop(name) for name in (*INPUT_COLUMNS, "target", "tags")}
    inference = prepare(delta, data, columns, kwargs, answers=True)
    with progress(len(inference.rows), "measuring") as on_progress:
        measures, prediction = inference.examine(batch_size, on_progress)
    figures = None
    if prediction is not None:
        figures = class_figures(inference.task.labels, inference.truth, prediction.classes.tolist())
    if as_json:
        record = applied_to(inference.base.model)
        forced = {"forced": record.forced} if record is not None and record.forced else {}
        print_json({**measures, **({} if figures is None else {"by_class": figures}), **forced})
        return
    classes = f", {len(inference.task.labels)} classes" if inference.task.labels else ""
    click.echo(f"{data}: {measures_text(measures)} ({measures['rows']:,} rows{classes})")
    if figures is not None and prediction is not None:
        click.echo(f"\n{class_table(figures)}\n\n{confusion_table(figures)}")
        if hint := never_predicted_hint(inference.task.labels, inference.truth, prediction.classes.tolist()):
            print_status(hint)
