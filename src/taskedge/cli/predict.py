"""``taskedge predict``: answers of a delta to new data."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskedge.cli.inference_options import INPUT_COLUMNS, inference_options, prepare
from taskedge.cli.shared_options import json_option, print_status, progress, refuse_input_as_output, replace_option
from taskedge.errors import InputError, Interrupted
from taskedge.reporting.tables import count_text

if TYPE_CHECKING:
    from taskedge.training.inference import Inference

EPILOG = """\b
Examples:
  taskedge predict task.safetensors --data new.csv --text review
  taskedge predict task.safetensors --data new.jsonl --out labeled.csv
  taskedge predict task.safetensors --data new.jsonl --out labeled.csv --resume
  taskedge predict task.safetensors --data new.csv --json | head
  taskedge predict pets.safetensors --data photos/
"""


@click.command(epilog=EPILOG)
@inference_options
@click.option("--out", type=click.Path(path_type=Path), help="Write to this file instead of standard output.")
@click.option("--resume", is_flag=True, help="Continue the interrupted prediction of --out.")
@replace_option
@json_option
def command(
    delta: Path, data: Path, text: tuple[str, ...], prompt: str | None, image: str | None, batch_size: int,
    out: Path | None, resume: bool, replace: bool, as_json: bool, **kwargs: Any,
) -> None:  # fmt: skip
    """Answer new data with a delta: one line for each row (CSV, or JSON lines).

    A line has the label and its probability, the labels of a set and the probability of each, the number, or the
    response. Lines are written as the work proceeds. A
    file gets its name when it is complete; an interrupted prediction continues with --resume.
    """
    if out is None and resume:
        raise InputError("--resume continues a prediction into a file: name the file with --out")
    if out is not None:
        _claim(out, delta, data, resume=resume, replace=replace)
    columns = {"text": text, "prompt": prompt, "image": image} | {name: kwargs.pop(name) for name in INPUT_COLUMNS}
    inference = prepare(delta, data, columns, kwargs, answers=False)
    if out is None:
        with progress(len(inference.rows), "predicting") as on_progress:
            for answers in inference.iter_answers(batch_size, on_progress):
                click.echo(_lines(answers, as_json=as_json), nl=False)
        return
    options = columns | {"text": list(text), "batch-size": batch_size}
    options |= {name.replace("_", "-"): value for name, value in kwargs.items() if name != "model"}
    options |= {"force": kwargs["force"] or None, "json": as_json or None}
    _write(inference, out, file_options=options, delta=delta, resume=resume)


def _claim(out: Path, delta: Path, data: Path, *, resume: bool, replace: bool) -> None:
    """Lock the output until the command ends, and check that it may be written, before any work."""
    from taskedge.io.atomic import link_target, require_writable
    from taskedge.io.lock import hold_lock
    from taskedge.training.prediction_run import check_prediction_output

    refuse_input_as_output(out, delta, data)
    require_writable(out)
    with ExitStack() as stack:
        stack.enter_context(hold_lock(out))
        if out.is_symlink():  # a prediction through another link writes the same file
            stack.enter_context(hold_lock(link_target(out)))
        check_prediction_output(out, resume=resume, replace=replace)
        click.get_current_context().call_on_close(stack.pop_all().close)


def _write(inference: Inference, out: Path, *, file_options: dict[str, Any], delta: Path, resume: bool) -> None:
    """Write the answers to a file, block by block."""
    from taskedge.training.prediction_run import PredictionRun, file_digest, inference_digests

    as_json, batch_size = file_options["json"], file_options["batch-size"]
    identity = {"delta": file_digest(delta), **inference_digests(inference), **file_options}
    run = PredictionRun(out)
    if resume:
        run.resume(identity)
        print_status(f"{out}: continues after {count_text(run.num_rows, 'row')}")
    else:
        run.start(identity)
    try:
        with progress(len(inference.rows) - run.num_rows, "predicting") as on_progress:
            for answers in inference.iter_answers(batch_size, on_progress, start=run.num_rows):
                run.append(_lines(answers, as_json=as_json), len(answers))
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted after {count_text(run.num_rows, 'row')}: continue with --resume") from None
    run.finish()
    print_status(f"{out}: {count_text(run.num_rows, 'row')}")


def _lines(answers: Sequence[dict[str, Any]], *, as_json: bool) -> str:
    """Return answers as JSON lines or CSV; the header precedes the first row."""
    if as_json:
        return "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    if answers[0]["row"] == 1:
        writer.writerow(answers[0])
    quoting = csv.writer(lines, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for answer in answers:
        values = [",".join(value) if isinstance(value, list) else value for value in answer.values()]
        ends_line = any("\r" in value for value in values if isinstance(value, str))  # Python < 3.13 leaves it unquoted
        (quoting if ends_line else writer).writerow(values)
    return lines.getvalue()
