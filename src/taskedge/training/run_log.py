"""The log of a finished run: its curves, what was predicted and what was observed, as a file of plain values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from taskedge.errors import InputError
from taskedge.io.atomic import write_atomic
from taskedge.training.classification import examines_rows
from taskedge.training.run import Run
from taskedge.training.tasks import Measures
from taskedge.training.tune_result import TuneResult

RUN_LOG, FORMAT = "run.json", "taskedge-run-log/1"


def measure_and_hint(run: Run, model: nn.Module, batch_size: int) -> Measures:
    """Measure the held-out data of a run, and log a hint about classes that are never predicted."""
    if not examines_rows(run.task):
        return run.task.evaluate(model, run.base, run.eval_rows(), batch_size, lambda _: None)
    rows = run.eval_rows()
    measures, prediction = run.task.examine(model, run.base, rows, batch_size, lambda _: None)
    if hint := run.task.never_predicted(rows, prediction):
        run.log(hint)
    return measures


def write_run_log(run: Run, result: TuneResult, log: Sequence[dict[str, Any]]) -> None:
    """Write ``run.json`` into the folder of the setting ``log``, if there is one.

    Raises:
        InputError: the folder cannot be made.
    """
    folder = run.config.log
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: the log cannot be written ({error.strerror}); {result.out} is complete: name another --log"
        ) from None
    values = {
        "format": FORMAT,
        "result": asdict(result) | {"out": str(result.out)},
        "log": list(log),
        "settings": json.loads(run.config.model_dump_json()),
        "rows": len(run.rows),
        "eval_rows": 0 if run.data.eval is None else len(run.data.eval),
    }
    write_atomic(folder / RUN_LOG, json.dumps(values, indent=1).encode())
