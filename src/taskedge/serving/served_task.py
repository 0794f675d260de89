"""A task that can be served: checked against the base in full, with the table or the delta that its rows need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.candidates import unusable_linears
from taskedge.backbone.layers import LinearAdapter, linears
from taskedge.backbone.loading import PRETRAINED_HEAD_TASKS, Base
from taskedge.backbone.own_head import output_parameters
from taskedge.delta.apply import applied, check_base
from taskedge.delta.delta import Delta, Provenance
from taskedge.errors import BaseMismatch, InputError
from taskedge.forms.prompt import PromptLayout
from taskedge.serving.mixed_model import NotRowByRow
from taskedge.serving.served_base import ServedBase, View, head_names, probe_batch
from taskedge.serving.task_table import EntryTable, TaskTable, entry_table
from taskedge.training.data.text_data import evaluating, is_same_answer
from taskedge.training.tasks import Task, task_of_delta

PROBE_ROWS = 3


@dataclass(frozen=True)
class ServedTask:
    """One task over the base.

    Attributes:
        name: in requests.
        task: the kind of task, bound to the base.
        provenance: of the delta.
        view: the base as the task's class of model.
        table: what its rows add beside the product; of the head only, if ``alone``.
        delta: for ``alone``: the delta without its head, to apply for a batch.
        alone: why its rows share no batch with those of other tasks; empty if they do.
        num_outputs: columns of the output that belong to the task.
        max_length: longest text in tokens; longer ones are cut.
        file: of the delta, for display.
        file_bytes: its size.
    """

    name: str
    task: Task
    provenance: Provenance
    view: View
    table: TaskTable
    delta: Delta | None
    alone: str
    num_outputs: int
    max_length: int
    file: str = ""
    file_bytes: int = 0

    @cached_property
    def memory_bytes(self) -> int:
        """Bytes that the task takes in memory beside the base."""
        delta = self.delta
        if delta is None:
            return self.table.nbytes
        tensors = [t for linear in delta.linears.values() for t in (linear.rows, linear.columns, linear.values)]
        tensors += [t for product in delta.low_rank.values() for t in (product.a, product.b)]
        tensors += [t for one in delta.filters.values() for t in one.tensors.values()]
        tensors += [] if delta.prompt is None else delta.prompt.tensors.values()
        tensors += delta.full_parameters.values()
        return self.table.nbytes + sum(t.numel() * t.element_size() for t in tensors)

    @property
    def reading_base(self) -> Base:
        """The base as rows are encoded for it: with the positions that the task's soft tokens leave."""
        base, prompt = self.view.base, self.prompt
        if prompt is None or base.max_positions is None:
            return base
        return replace(base, max_positions=base.max_positions - prompt.room)

    @property
    def prompt(self) -> PromptLayout | None:
        """The layout of the task's soft prompt, if it has one."""
        return None if self.delta is None or self.delta.prompt is None else self.delta.prompt.layout

    def describe(self) -> dict[str, Any]:
        """Return what ``/v1/tasks`` tells of the task, JSON-able."""
        return {
            "name": self.name,
            "task": self.task.name,
            "labels": list(self.task.labels),
            "batches": "alone" if self.alone else "mixed",
            **({"alone_because": self.alone} if self.alone else {}),
            "max_length": self.max_length,
            "file": self.file,
            "file_bytes": self.file_bytes,
            "memory_bytes": self.memory_bytes,
        }


def served_task(name: str, delta: Delta, base: ServedBase, *, file: str = "", file_bytes: int = 0) -> ServedTask:
    """Return a task after checking its delta against the base in full: values, shapes, and answers on a probe.

    The caller must be the only one to run the model meanwhile. The model is unchanged afterwards.

    Raises:
        InputError, BaseMismatch: the delta does not say how to serve it, is not for this base, or has no head.
    """
    task = task_of_delta(delta.provenance)
    view = base.view(task.name, task.labels)
    model = view.base.model
    task = task.bind(view.base)
    head, body = _split(model, delta)
    num_outputs = _checked_head(model, task, head)
    check_base(model, body)
    alone = _reason_alone(model, body)
    modules = _by_module(model, head)
    entries = {} if alone else _tables(model, body)
    table = TaskTable(entries, modules)
    trained_length = int(delta.provenance.training.get("max_length", task.max_length or 0))
    served = ServedTask(
        name=name,
        task=task,
        provenance=delta.provenance,
        view=view,
        table=table,
        delta=body if alone else None,
        alone=alone,
        num_outputs=num_outputs,
        max_length=min(trained_length, view.base.max_positions or trained_length),
        file=file,
        file_bytes=file_bytes,
    )
    reason = _probe(served, body)
    if reason:
        served = replace(served, alone=reason, delta=body, table=table.without_entries())
        _probe(served, body)
    return served


def _split(model: nn.Module, delta: Delta) -> tuple[dict[str, Tensor], Delta]:
    """Return the parameters of the task's head, and the delta without them."""
    names = head_names(model, list(delta.full_parameters))
    head = {name: delta.full_parameters[name] for name in delta.full_parameters if name in names}
    rest = {name: tensor for name, tensor in delta.full_parameters.items() if name not in names}
    return head, replace(delta, full_parameters=rest)


def _checked_head(model: Any, task: Task, head: dict[str, Tensor]) -> int:
    """Return the number of the task's outputs; raise BaseMismatch unless the head fits the model and the task."""
    parameters = dict(model.named_parameters())
    for name, tensor in head.items():
        if name not in parameters:
            raise BaseMismatch(f"wrong base: the model ({type(model).__name__}) has no parameter {name!r}")
        if tensor.dim() != parameters[name].dim():
            raise BaseMismatch(f"parameter {name!r} is {list(tensor.shape)}, not like {list(parameters[name].shape)}")
    if task.name in PRETRAINED_HEAD_TASKS:
        widths = dict.fromkeys(head, -1)
        outputs = int(model.config.vocab_size)
    else:
        widths = output_parameters(model)
        outputs = len(task.labels) or 1
        missing = [name for name in widths if name not in head]
        if missing:
            raise InputError(f"the delta has no head ({missing[0]!r} is missing): save it with its head")
    for name, tensor in head.items():
        expected = list(parameters[name].shape)
        if widths.get(name, -1) >= 0:
            expected[widths[name]] = outputs
        if list(tensor.shape) != expected:
            raise BaseMismatch(f"parameter {name!r} is {list(tensor.shape)} in the delta; the task needs {expected}")
    return outputs


def _reason_alone(model: nn.Module, body: Delta) -> str:
    """Return why the delta cannot be computed beside the product; empty if it can."""
    if body.prompt is not None:
        return "it has a soft prompt"
    if body.low_rank:
        return "it has low-rank products" + (" with filters" if body.filters else "")
    layers = linears(model)
    unusable = unusable_linears(model, {name: layers[name] for name in body.linears if name in layers})
    for name in body.linears:
        layer = layers[name]
        if not isinstance(layer.adapter, LinearAdapter) or name not in dict(model.named_modules()):
            return f"it changes {name!r}, a {type(layer.module).__name__}"
        if name in unusable:
            return f"it changes {name!r}: {unusable[name]}"
    if body.full_parameters:
        first = min(body.full_parameters)
        return f"it replaces {len(body.full_parameters)} parameters outside its head, {first!r} first"
    return ""


def _by_module(model: nn.Module, head: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the head's parameters by module, in the dtype of the model's own."""
    own = dict(model.named_parameters())
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in head.items():
        module, _, parameter = name.rpartition(".")
        if any(True for _ in model.get_submodule(module).children()):
            raise InputError(f"the head's parameter {name!r} belongs to a module with parts, which cannot be served")
        modules.setdefault(module, {})[parameter] = tensor.to(own[name].dtype)
    return modules


def _tables(model: nn.Module, body: Delta) -> dict[str, EntryTable]:
    layers = linears(model)
    return {name: entry_table(layers[name], linear) for name, linear in body.linears.items() if len(linear)}


def _probe(served: ServedTask, body: Delta) -> str:
    """Return why the task's rows cannot share a batch: the answers to a probe beside another row differ.

    Raises:
        InputError: the answers with the delta applied are not finite numbers.
    """
    batch = probe_batch(served.task.name, served.view.base, PROBE_ROWS)
    head = served.table.without_entries()
    expected = logits_of(served.view, batch, [head] * PROBE_ROWS, body)
    if not bool(expected.isfinite().all()):
        raise InputError("the answers of the task to a probe are not finite numbers: train it again")
    if served.alone:
        return ""
    try:
        mixed = logits_of(served.view, batch, [served.table, None, served.table])
    except NotRowByRow as error:
        return str(error)
    plain = logits_of(served.view, batch, [None] * PROBE_ROWS)
    for row in (0, 2):
        if not is_same_answer(expected[row : row + 1], mixed[row : row + 1, ..., : expected.shape[-1]]):
            return "its answers beside other rows are not those of the applied delta"
    if not is_same_answer(plain[1:2], mixed[1:2, ..., : plain.shape[-1]]):
        return "it changes the answers of the rows beside it"
    return ""


def logits_of(
    view: View, batch: dict[str, Tensor], tables: Sequence[TaskTable | None], delta: Delta | None = None
) -> Tensor:
    """Return the model's outputs for a batch whose rows have these tables, in fp32, with a delta applied if given."""
    model = view.base.model
    with evaluating(model), view.mixed.rows(tables):
        if delta is None:
            logits = model(**batch).logits
        else:
            with torch.inference_mode(False), torch.no_grad(), applied(model, delta):
                logits = model(**batch).logits
    return torch.as_tensor(logits).float()
