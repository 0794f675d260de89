"""Tiny bases with several tasks for tests of serving: their files, the server's parts, and the answers to expect."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiny_kinds
import tiny_task
import torch
from tiny_task import WORDS

import taskedge as te
from taskedge.backbone.loading import Base, load_base
from taskedge.delta.delta import Provenance
from taskedge.selection.support import Support
from taskedge.serving.engine import Engine, EngineLimits
from taskedge.serving.http_guard import HttpLimits
from taskedge.serving.http_routes import http_app
from taskedge.serving.served_base import ServedBase
from taskedge.serving.serving_metrics import ServingMetrics
from taskedge.serving.task_files import ServedTasks
from taskedge.training.data.table import Table
from taskedge.training.tasks import TASKS, Columns, Task, task_of_delta

TEXTS = ("good film", "the plot was very very long and the actor so bad", "a", "never seen not awful a short night")
LABELS = {"a": ("neg", "neutral", "pos"), "b": ("x", "y"), "c": tuple("pqrst")}
MAX_LENGTH = 40


def delta_of(
    kind: str, task: str, folder: Path, seed: int, labels: Sequence[str] = (), *, size: float = 0.3, **options: Any
) -> te.Delta:
    """Return a delta with random values for a task on the base in ``folder``, with a head of its own."""
    base = load_base(task, folder, labels, keep_head=True)
    model = base.model
    model.eval()
    support = options.pop("support", None) or te.select(
        model, rule="random", seed=seed, **(options or {"per_neuron": 1})
    )
    te.install(model, support)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)
    delta = te.extract(model)
    training = {"max_length": MAX_LENGTH, "dtype": "auto"} | _about(task, te.fuse(model), base)
    return delta.with_provenance(task=task, labels=tuple(labels), training=training, base=str(folder))


def _about(task: str, model: Any, base: Base) -> dict[str, Any]:
    """Return what a delta of the task remembers of its training data."""
    if task.endswith("classification"):
        return {}
    if task == "text-regression":
        return TASKS[task].from_table(Table(Path("x"), ["a", "b"], ["1.5", "4"]), Columns()).to_provenance()
    table = Table(Path("x"), ["good", "bad"], ["very good film", "not good"])
    columns = Columns(prompt="prompt", response="response")
    return TASKS[task].from_table(table, columns).bind(base, table, MAX_LENGTH, 4).to_provenance()


def base_folder(kind: str, task: str, folder: Path) -> Path:
    """Save a tiny base of a kind, and return its folder."""
    tiny_kinds.base_of(kind, task, folder)
    return folder


def parts(folder: Path, watched: Path | None = None, **limits: int) -> tuple[ServedTasks, Engine]:
    """Return the tasks and the engine of a server on a base; close the engine at the end."""
    engine = Engine(EngineLimits(**limits))
    return ServedTasks(ServedBase(folder), engine, watched), engine


def app(
    tasks: ServedTasks, engine: Engine, *, token: str | None = None, log: Any = lambda *_, **__: None, **limits: Any
):
    """Return the HTTP application."""
    metrics = ServingMetrics()
    engine._on_batch = metrics.on_batch
    metrics.watch(engine, tasks)
    return http_app(tasks, engine, metrics, limits=HttpLimits(**limits), token=token, log=log, watch_seconds=0.05)


def expected(delta: te.Delta, folder: Path, inputs: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the answers with the delta applied, one input a batch: the library's own ``predict``."""
    provenance = delta.provenance
    base = load_base(provenance.task, folder, provenance.labels, keep_head=True)
    base.model.eval()
    te.apply(base.model, delta)
    task = task_of_delta(provenance).bind(base)
    rows = rows_of(task, base, inputs)
    return task.predict(base.model, base, rows, 1, lambda _: None)


def rows_of(task: Task, base: Base, inputs: Sequence[Any]) -> list[dict[str, Any]]:
    """Return inputs as rows; images are paths."""
    if task.max_length is None:
        return [{"path": path, "where": "", "image": Path(path).name} for path in inputs]
    return task.encode(base, Table(Path("inputs"), list(inputs)), MAX_LENGTH, lambda _: None)


def assert_close(answers: Sequence[dict[str, Any]], truth: Sequence[dict[str, Any]], tolerance: float = 1e-5) -> None:
    """Compare answers: numbers within the tolerance, all else exactly; keys of one side are left out."""
    assert len(answers) == len(truth)
    for answer, true in zip(answers, truth, strict=True):
        for key in (answer.keys() & true.keys()) - {"image"}:
            if isinstance(true[key], float):
                assert abs(answer[key] - true[key]) <= tolerance * max(1.0, abs(true[key])), (answer, true)
            else:
                assert answer[key] == true[key], (answer, true)


def images(folder: Path) -> list[Path]:
    """Return the paths of four small images."""
    return sorted(tiny_task.images(folder, 4).rglob("*.png"))


def without_head(delta: te.Delta) -> te.Delta:
    """Return the delta without its full parameters."""
    return te.Delta(delta.linears, provenance=delta.provenance)


def empty(labels: Sequence[str] = ("x", "y"), **about: Any) -> te.Delta:
    """Return a delta that changes nothing and has no head."""
    return te.Delta({}, provenance=Provenance(task="text-classification", labels=tuple(labels), **about))


def only(support: Support, names: Sequence[str]) -> Support:
    """Return the support of some linears."""
    chosen = copy.copy(support)
    object.__setattr__(chosen, "linears", {name: support.linears[name] for name in names})
    return chosen


__all__ = ["LABELS", "TEXTS", "WORDS"]
