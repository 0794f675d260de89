"""The outcome of a run of ``tune``: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskedge.training.tasks import Measures


@dataclass(frozen=True)
class TuneResult:
    """Outcome of :func:`taskedge.training.tune.tune`.

    Attributes:
        out: the delta file.
        task: name of the task.
        form: name of the form.
        lr: peak learning rate.
        entries: number of trained entries.
        share: their share of the base's parameters.
        low_rank: parameters of the low-rank products in the file, which are not entries.
        trained: values that the optimizer moved, without the head: the entries, or the factors that give them.
        head: number of fully trained parameters, which are not entries.
        steps: optimizer steps.
        train_loss: mean training loss.
        seconds: duration of this call.
        seconds_per_step: mean duration of a step.
        cpu_seconds_per_step: the same in processor time, which other users of the machine do not lengthen.
        peak_memory: bytes: the largest resident set of the process so far (on a GPU: the largest that torch reserved).
        run_peak_memory: the same since the memory was predicted, if it was: the peak of the run itself.
        predicted: with a memory budget, the prediction for the chosen configuration (``ConfigCost.as_json``).
        file_bytes: size of the delta file.
        quality: measures of the written file on the ``eval`` data, if there is any.
    """

    out: Path
    task: str
    form: str
    lr: float
    entries: int
    share: float
    low_rank: int
    trained: int
    head: int
    steps: int
    train_loss: float
    seconds: float
    seconds_per_step: float
    cpu_seconds_per_step: float
    peak_memory: int
    run_peak_memory: int
    predicted: dict[str, Any] | None
    file_bytes: int
    quality: Measures | None
