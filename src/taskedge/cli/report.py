"""``taskedge report``: a page about a trained task, or about several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from taskedge.cli.info import describe
from taskedge.cli.shared_options import print_status, progress, refuse_existing, refuse_input_as_output, replace_option
from taskedge.errors import InputError
from taskedge.io.atomic import write_atomic
from taskedge.training.trainer_config import DEFAULTS

EPILOG = """\b
Examples:
  taskedge report task.safetensors --data heldout.csv --log run/
  taskedge report task.safetensors --data heldout.csv --no-examples --out task.html
  taskedge report a.safetensors b.safetensors --data heldout.csv --log run-a/ --log run-b/
"""

PLAN_FILE, EVENTS_FILE, RUN_LOG, LOG_FORMAT = "plan.json", "log.jsonl", "run.json", "taskedge-run-log/1"

_SUMS = ("bytes_down", "bytes_up", "predicted_seconds", "observed_seconds")


@click.command(epilog=EPILOG)
@click.argument("deltas", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Data with answers, to measure and to show mistakes.")
@click.option(
    "--log", "logs", multiple=True, type=click.Path(path_type=Path),
    help="Folder of a run: of `tune --log`, or of a cooperative run. One for each delta, in their order.",
)  # fmt: skip
@click.option("--plan", type=click.Path(path_type=Path), help="Plan of a fleet, from `taskedge plan --out`.")
@click.option(
    "--model", help="Base model: a local folder, a hub id or a GGUF file.  [default: the one the delta names]"
)
@click.option("--no-examples", is_flag=True, help="Show no text of the data.")
@click.option(
    "--batch-size", default=DEFAULTS.batch_size, show_default=True, type=click.IntRange(1), help="Rows in a batch."
)
@click.option("--out", type=click.Path(path_type=Path), help="Page to write.  [default: the first delta, as .html]")
@replace_option
def command(
    deltas: tuple[Path, ...], data: Path | None, logs: tuple[Path, ...], plan: Path | None, model: str | None,
    no_examples: bool, batch_size: int, out: Path | None, replace: bool,
) -> None:  # fmt: skip
    """Write one self-contained HTML page about a delta; of several deltas, a page that compares them.

    What was trained on what, curves of the loss, quality by class with the worst mistakes, where the entries are, what
    was predicted and observed, and the file's provenance. The page loads nothing from a network and runs no script.
    """
    from taskedge.reporting.task_report import report_page

    out = out or deltas[0].with_suffix(".html")
    refuse_input_as_output(out, *deltas, *([data] if data else []))
    refuse_existing([out], replace)
    if logs and len(logs) != len(deltas):
        raise InputError(f"{len(logs)} --log for {len(deltas)} deltas: give one for each, in their order, or none")
    reports = []
    for index, delta in enumerate(deltas):
        report: dict[str, Any] = {"name": delta.name, "delta": describe(delta)}
        if logs:
            report |= read_log(logs[index])
        if plan is not None:
            report["plan"] = _read_plan(plan)
        if data is not None:
            report["eval"] = _examine(delta, data, model, batch_size, examples=not no_examples and len(deltas) == 1)
        reports.append(report)
    page = report_page(reports).encode()
    write_atomic(out, page)
    click.echo(f"{out}: {len(page):,} bytes")


def read_log(folder: Path) -> dict[str, Any]:
    """Return what a folder tells about a run: ``run``, ``rounds``, ``devices`` and ``plan``, whichever it has.

    Raises:
        InputError: it has none of the files, or one cannot be read.
    """
    found: dict[str, Any] = {}
    path = folder / RUN_LOG
    if path.is_file():
        run = _read_json(path)
        if run.get("format") == LOG_FORMAT:
            found["run"] = run
    if (folder / EVENTS_FILE).is_file():
        found["rounds"], found["devices"] = _read_events(folder / EVENTS_FILE)
    if (folder / PLAN_FILE).is_file():
        found["plan"] = _read_plan(folder / PLAN_FILE)
    if not found:
        raise InputError(
            f"{folder}: no log of a run ({RUN_LOG} of `tune --log`, {EVENTS_FILE} of a cooperative run): name "
            "its folder"
        )
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}): name the folder of another run") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not the log of a run: name the folder of another run")
    return value


def _read_events(path: Path) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    """Return the last ``round`` event of every round, since an interrupted one appears twice, and sums by device."""
    rounds: dict[int, dict[str, Any]] = {}
    devices: dict[str, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the last line, if it is being written
        if not isinstance(event, dict):
            continue
        if event.get("event") == "round" and isinstance(event.get("round"), int):
            rounds[event["round"]] = event
        elif event.get("event") == "task":
            sums = devices.setdefault(str(event.get("device")), dict.fromkeys(("tasks", "accepted", *_SUMS), 0))
            sums["tasks"] += 1
            sums["accepted"] += event.get("result") == "accepted"
            for name in _SUMS:
                sums[name] += event.get(name) or 0
    return [rounds[number] for number in sorted(rounds)], dict(sorted(devices.items()))


def _read_plan(path: Path) -> dict[str, Any]:
    from taskedge.planning.plan import read_plan

    return read_plan(path).model_dump()


def _examine(delta: Path, data: Path, model: str | None, batch_size: int, *, examples: bool) -> dict[str, Any]:
    """Return measures of a delta on data, and for classes their figures and the worst mistakes."""
    from taskedge.training.inference import prepare_inference

    inference = prepare_inference(delta, data, answers=True, model=model, log=print_status)
    with progress(len(inference.rows), f"measuring {delta.name}") as on_progress:
        measures, prediction = inference.examine(batch_size, on_progress)
    examined: dict[str, Any] = {"path": data.name, "measures": measures}
    if prediction is not None:
        examined["figures"] = inference.figures(prediction)
        if examples:
            examined["mistakes"] = inference.mistakes(prediction)
    return examined
