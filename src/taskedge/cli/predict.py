"""``taskedge predict``: answers of a delta to new data."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import click

from taskedge.cli.inference_options import inference_options, prepare
from taskedge.cli.shared_options import json_option, print_status, progress, refuse_input_as_output, replace_option

EPILOG = """\b
Examples:
  taskedge predict task.safetensors --data new.csv --text review
  taskedge predict task.safetensors --data new.jsonl --out labeled.csv
  taskedge predict task.safetensors --data new.csv --json | head
  taskedge predict pets.safetensors --data photos/
"""


@click.command(epilog=EPILOG)
@inference_options
@click.option("--out", type=click.Path(path_type=Path), help="Write to this file instead of standard output.")
@replace_option
@json_option
def command(
    delta: Path, data: Path, text: tuple[str, ...], prompt: str | None, image: str | None, batch_size: int,
    out: Path | None, replace: bool, as_json: bool, **kwargs: Any,
) -> None:  # fmt: skip
    """Answer new data with a delta: one line for each row (CSV, or JSON lines).

    A line has the label and its probability, the number, or the response.
    """
    from taskedge.errors import InputError
    from taskedge.io.atomic import write_atomic
    from taskedge.io.lock import hold_lock

    if out is not None:
        refuse_input_as_output(out, delta, data)
        click.get_current_context().with_resource(hold_lock(out))
    if out is not None and out.exists() and not replace:
        raise InputError(f"{out} exists: name another file with --out, or replace it with --replace")
    inference = prepare(delta, data, {"text": text, "prompt": prompt, "image": image}, kwargs, answers=False)
    with progress(len(inference.rows), "predicting") as on_progress:
        answers = inference.predict(batch_size, on_progress)
    lines = io.StringIO()
    if as_json:
        for answer in answers:
            lines.write(json.dumps(answer, ensure_ascii=False) + "\n")
    else:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(answers[0])
        writer.writerows(answer.values() for answer in answers)
    if out is None:
        click.echo(lines.getvalue(), nl=False)
    else:
        write_atomic(out, lines.getvalue().encode())
        print_status(f"{out}: {len(answers):,} rows")
