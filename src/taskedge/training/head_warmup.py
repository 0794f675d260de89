"""Training the head alone, before the rest: on features that the frozen base computes once.

The base runs over all rows once, in evaluation mode, and the inputs of the head are kept. The head is then fitted to
them with L-BFGS, which costs far less than passes through the base. Gradients that select weights, and the first steps
of training, then come through a head that fits the task instead of one of random numbers.

Source: linear probing before fine-tuning, LP-FT (arXiv 2202.10054); this project for the features and the stop.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskedge.backbone.candidates import head_parameters
from taskedge.backbone.evaluation import evaluation_mode, run_batch
from taskedge.backbone.layers import first_input
from taskedge.errors import InputError
from taskedge.training.guard import guarded

Row = dict[str, Any]
Batch = Mapping[str, Any]

MAX_ITERATIONS = 500
"""Iterations of L-BFGS at most."""
GRADIENT_STOP = 1e-4
"""The head is fitted when no number of the gradient of the mean loss is larger."""
MATCH = 1e-3
"""Largest difference, relative to the largest logit, between the base's logits and those from the kept features."""


@dataclass(frozen=True)
class HeadWarmup:
    """Outcome of :func:`warm_head`.

    Attributes:
        module: name of the module that was trained.
        rows: rows that it was trained on.
        feature_bytes: memory of their features.
        iterations: iterations of L-BFGS.
        converged: whether the gradient fell below :data:`GRADIENT_STOP`.
        loss_before, loss_after: mean loss over the rows, without the penalty.
        seconds: duration.
    """

    module: str
    rows: int
    feature_bytes: int
    iterations: int
    converged: bool
    loss_before: float
    loss_after: float
    seconds: float

    def __str__(self) -> str:
        stop = "" if self.converged else ", the most that are tried"
        return (
            f"head: {self.module!r} trained alone on the features of {self.rows:,} rows "
            f"({self.feature_bytes / 1e6:.1f} MB): loss {self.loss_before:.3f} -> {self.loss_after:.3f} in "
            f"{self.iterations} iterations{stop}, {self.seconds:.1f} s"
        )


def warm_head(
    model: nn.Module, rows: Sequence[Row], collate: Callable[[list[Row]], Batch], batch_size: int
) -> HeadWarmup:
    """Fit the head of a classifier or a regression to ``rows``, in place; nothing else changes.

    The loss is that of transformers: cross entropy for whole labels, squared error for floating-point ones, and binary
    cross entropy for several floating-point labels a row. A penalty
    of ``‖W‖² / (2·rows)`` keeps the weights of the head finite where the features separate the classes.

    Args:
        model: returns ``logits`` [batch, outputs].
        rows: examples with labels.
        collate: makes a batch of a list of them.
        batch_size: rows in a pass through the base.

    Raises:
        InputError: the model has no head of its own, or one whose logits do not follow from one vector a row.
    """
    begin = time.perf_counter()
    name = _head_module(model)
    features, labels = _features(model, name, rows, collate, batch_size)
    head = copy.deepcopy(model.get_submodule(name)).float().eval()
    parameters = list(head.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=MAX_ITERATIONS,
        tolerance_grad=GRADIENT_STOP,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        logits = _logits(head, features)
        if labels.dim() > 1:
            return F.binary_cross_entropy_with_logits(logits, labels)
        if labels.is_floating_point():
            return F.mse_loss(logits.squeeze(-1), labels.view(logits.squeeze(-1).shape))
        return F.cross_entropy(logits, labels)

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = loss()
        for matrix in matrices:
            total = total + matrix.square().sum() / (2 * len(rows))
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.no_grad():
        before = float(loss())
    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        after = float(loss())
        fitted = dict(head.named_parameters())
        for key, parameter in model.get_submodule(name).named_parameters():
            parameter.copy_(fitted[key])
    closure()
    steepest = max(float(parameter.grad.abs().max()) for parameter in parameters if parameter.grad is not None)
    return HeadWarmup(
        module=name,
        rows=len(rows),
        feature_bytes=features.numel() * features.element_size(),
        iterations=int(optimizer.state[parameters[0]]["n_iter"]),
        converged=steepest <= GRADIENT_STOP,
        loss_before=before,
        loss_after=after,
        seconds=time.perf_counter() - begin,
    )


def _head_module(model: nn.Module) -> str:
    """Return the name of the module that holds the head; of the last one, if no single module does."""
    owners = [name.rpartition(".")[0] for name in head_parameters(model)]
    if not owners:
        raise InputError("the model has no head of its own to train alone: leave out the warm-up of the head")
    common = owners[0].split(".")
    for owner in owners:
        parts = owner.split(".")
        common = [a for a, b in zip(common, parts, strict=False) if a == b][: len(common)]
    return ".".join(common) or owners[-1]


@torch.no_grad()
def _features(
    model: nn.Module, name: str, rows: Sequence[Row], collate: Callable[[list[Row]], Batch], batch_size: int
) -> tuple[Tensor, Tensor]:
    """Return what the head reads of each row, float32 [rows, ..., in], and the labels [rows] or [rows, outputs]."""
    features, labels = [], []
    head = model.get_submodule(name)
    with evaluation_mode(model):
        for start in range(0, len(rows), batch_size):
            indices = range(start, min(start + batch_size, len(rows)))
            batch = collate([rows[index] for index in indices])
            if batch["labels"].dim() > 1 and not batch["labels"].is_floating_point():
                raise InputError("the head of a model with several labels a row is not warmed up: leave it out")
            with guarded(model, rows, indices, collate), _first_input_of(head) as inputs:
                logits = run_batch(model, batch).logits
            features.append(_one_vector_a_row(name, head, inputs, logits))
            labels.append(batch["labels"].to(logits.device))
    every_label = torch.cat(labels)
    return torch.cat(features), every_label.float() if every_label.is_floating_point() else every_label


def _one_vector_a_row(name: str, head: nn.Module, inputs: list[Tensor], logits: Tensor) -> Tensor:
    """Return the vectors from which the head gives the logits, float32 [rows, in]; [rows, 1, in] if it reads sequences.

    A head that reads a sequence uses the vector of one token, which is found by its logits.

    Raises:
        InputError: no single vector gives them.
    """
    problem = InputError(
        f"the logits of the model do not follow from one vector a row through {name!r}, so the head cannot be trained "
        "alone: leave out the warm-up of the head"
    )
    if len(inputs) != 1 or inputs[0].dim() not in (2, 3) or len(inputs[0]) != len(logits):
        raise problem
    x = inputs[0]
    if x.dim() == 3:
        rows, tokens, width = x.shape
        by_token = _logits(head, x.reshape(rows * tokens, 1, width)).view(rows, tokens, -1)
        if by_token.shape[2] != logits.shape[1]:
            raise problem
        token = (by_token - logits[:, None]).abs().amax(2).argmin(1)
        x = x[torch.arange(rows, device=x.device), token][:, None]
    found = _logits(head, x)
    if found.shape != logits.shape or bool((found - logits).abs().max() > MATCH * logits.abs().max().clamp_min(1.0)):
        raise problem
    return x.float()


def _logits(head: nn.Module, features: Tensor) -> Tensor:
    """Return [rows, outputs], the output of the head for one vector a row."""
    output: Tensor = head(features)
    return output.squeeze(1) if output.dim() == 3 else output


@contextmanager
def _first_input_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list that receives the first input of each call of the module inside the block."""
    inputs: list[Tensor] = []
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: inputs.append(first_input(args, kwargs).detach()), with_kwargs=True
    )
    try:
        yield inputs
    finally:
        handle.remove()
