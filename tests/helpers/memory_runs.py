"""Small runs for the tests of the memory profiler and its neighbors."""

from __future__ import annotations

from taskedge.training.run import Run, prepare_run
from taskedge.training.tune_config import TuneConfig


def quiet(_: str) -> None:
    pass


def config(task, **changes) -> TuneConfig:
    """Settings of a run on the ``task`` fixture; None removes a setting."""
    values = {"model": str(task / "base"), "train": task / "train.csv", "text": ["text"], "label": "label"}
    values |= {"per_neuron": 1, "batch_size": 8, "epochs": 1, "threads": 1} | changes
    return TuneConfig(**{name: value for name, value in values.items() if value is not None})


def run(task, **changes) -> Run:
    """Return a loaded run on the ``task`` fixture."""
    made = prepare_run(config(task, **changes), quiet)
    made.load()
    return made
