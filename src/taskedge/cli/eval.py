"""``taskedge eval``: measure a delta on data with answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from taskedge.cli.inference_options import inference_options, measures_text, prepare
from taskedge.cli.shared_options import json_option, print_json, progress

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
@json_option
def command(
    delta: Path, data: Path, text: tuple[str, ...], label: str | None, prompt: str | None, response: str | None,
    image: str | None, batch_size: int, as_json: bool, **kwargs: Any,
) -> None:  # fmt: skip
    """Measure a delta on data with answers, on a freshly loaded base.

    Classes: accuracy, macro F1 and loss. Numbers: mean squared error and correlations. Generation: perplexity, and the
    share of responses that are generated exactly.
    """
    from taskedge.delta.apply import applied_to

    columns = {"text": text, "label": label, "prompt": prompt, "response": response, "image": image}
    inference = prepare(delta, data, columns, kwargs, answers=True)
    with progress(len(inference.rows), "measuring") as on_progress:
        measures = inference.evaluate(batch_size, on_progress)
    if as_json:
        record = applied_to(inference.base.model)
        forced = {"forced": record.forced} if record is not None and record.forced else {}
        print_json({**measures, **forced})
        return
    classes = f", {len(inference.task.labels)} classes" if inference.task.labels else ""
    click.echo(f"{data}: {measures_text(measures)} ({measures['rows']:,} rows{classes})")
