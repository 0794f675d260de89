"""``taskedge predict``."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import click

from taskedge.cli.config_options import json_option, note
from taskedge.cli.delta_options import delta_options, prepared, progress

EPILOG = """\b
Examples:
  taskedge predict task.safetensors --data new.csv --text review
  taskedge predict task.safetensors --data new.jsonl --out labelled.csv
  taskedge predict task.safetensors --data new.csv --json | head
  taskedge predict pets.safetensors --data photos/
"""


@click.command(epilog=EPILOG)
@delta_options
@click.option("--out", type=click.Path(path_type=Path), help="Write here and not to standard output.")
@click.option("--replace", is_flag=True, help="Replace --out where it exists.")
@json_option
def command(
    delta: Path, data: Path, text: tuple[str, ...], prompt: str | None, image: str | None, batch_size: int,
    out: Path | None, replace: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Put a delta to work on new data: one line per row (CSV, or JSON lines).

    A line has the label and its probability, the number, or the response.
    """
    from taskedge.errors import InputError
    from taskedge.io.atomic import write_aside

    if out is not None and out.exists() and not replace:
        raise InputError(f"{out} exists: name another file with --out, or replace it with --replace")
    work = prepared(delta, data, {"text": text, "prompt": prompt, "image": image}, options, answers=False)
    with progress(len(work.rows), "predicting") as done:
        found = work.predict(batch_size, done)
    lines = io.StringIO()
    if as_json:
        for one in found:
            lines.write(json.dumps(one, ensure_ascii=False) + "\n")
    else:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(found[0])
        writer.writerows(one.values() for one in found)
    if out is None:
        click.echo(lines.getvalue(), nl=False)
    else:
        write_aside(out, lines.getvalue().encode())
        note(f"{out}: {len(found):,} rows")
