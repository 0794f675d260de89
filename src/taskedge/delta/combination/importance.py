"""How important each entry of a delta is for its task: a first-order term of the loss.

Resetting entry i of a tuned model changes the loss by ``g_i·τ_i`` to first order (τ: the change by the task), and
deleting the weight by ``g_i·θ_i``. Absolute gradients are summed batch by batch, so that signs do not cancel.

Source: Selective Task Arithmetic (arXiv 2411.16139); this project for the point where the gradient is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from taskedge.backbone.evaluation import evaluation_mode, loss_of, run_batch
from taskedge.backbone.layers import linears
from taskedge.delta.apply import applied
from taskedge.delta.combination.task_vectors import head_of, named_vectors, shared_parameters, task_vector
from taskedge.delta.delta import Delta
from taskedge.errors import InputError
from taskedge.forms.install import fuse, install
from taskedge.forms.sparse import sparse_layers
from taskedge.selection.support import LayerSupport, Support


def entry_importance(
    model: nn.Module,
    delta: Delta,
    batches: Iterable[Mapping[str, Any]],
    *,
    kind: Literal["change", "weight"] = "change",
    at: Literal["base", "tuned"] = "base",
    densify: bool = False,
) -> dict[str, Tensor]:
    """Return the importance of each entry of a delta, for ``method="selective"`` of :func:`taskedge.combine`.

    Args:
        model: the delta's base, with a head of the shape of the delta's. It is unchanged afterwards.
        delta: the delta of one task.
        batches: labeled batches of that task; the model's output has a ``loss``.
        kind: ``"change"``: |τ·g|, of what the task changed; ``"weight"``: |θ·g|, of the tuned weight.
        at: where the gradient g is taken: at the base's or at the tuned weights, in both cases with the task's head. A
            converged model has gradients near 0 at its tuned weights.
        densify: as for :func:`taskedge.combine`.

    Returns:
        float64 [n] by linear or parameter, in the order of the delta's entries.

    Raises:
        InputError, BaseMismatch: see :func:`.task_vectors.task_vector`; there are no batches, or they give no loss.
    """
    delta = delta.with_head(None)
    vector = task_vector(model, delta, "the delta", densify=densify)
    layers, parameters = linears(model), dict(model.named_parameters())
    shared = shared_parameters(model, delta)
    body = replace(delta, full_parameters=shared)
    supports = {
        name: LayerSupport.from_flat((part.shape[0], part.shape[1]), part.flat, name)
        for name, part in vector.linears.items()
        if len(part)
    }
    numbers = sum(parameter.numel() for parameter in parameters.values())
    with _own_head(model, head_of(model, delta)), applied(model, body) if at == "tuned" else nullcontext():
        if supports or shared:
            install(model, Support(supports, numbers, full_parameters=tuple(shared)), trainable=[])
            try:
                gradients = _gradient_sums(model, tuple(shared), batches)
            finally:
                fuse(model)
        else:
            gradients = {}
    importance = {}
    for name, part in named_vectors(vector).items():
        factor = part.differences
        if kind == "weight":
            stored = layers[name].weight if name in vector.linears else parameters[name].detach()
            factor = stored.flatten()[part.flat.to(stored.device)].cpu().double() + part.differences
        importance[name] = (gradients.get(name, torch.zeros(len(part))) * factor).abs()
    return importance


def _gradient_sums(
    model: nn.Module, full_parameters: tuple[str, ...], batches: Iterable[Mapping[str, Any]]
) -> dict[str, Tensor]:
    """Return ``Σ_batches |g|`` at each installed entry and of each parameter, float64 [n], by name."""
    trained = {name: layer.entries.get_parameter("offsets") for name, layer in sparse_layers(model).items()}
    parameters = dict(model.named_parameters())
    trained |= {name: parameters[name] for name in full_parameters}
    sums: dict[str, Tensor] = {}
    with evaluation_mode(model), torch.enable_grad():
        for batch in batches:
            loss = loss_of(run_batch(model, batch))
            gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
            for (name, parameter), gradient in zip(trained.items(), gradients, strict=True):
                size = torch.zeros(parameter.numel(), dtype=torch.float64) if gradient is None else gradient.flatten()
                sums[name] = sums.get(name, 0.0) + size.detach().abs().double().cpu()
    if not sums:
        raise InputError("there are no batches to compute the importance from: give labeled data of the task")
    return sums


@contextmanager
def _own_head(model: nn.Module, head: Mapping[str, Tensor]) -> Iterator[None]:
    """Put the task's head into the model inside the block."""
    parameters = dict(model.named_parameters())
    for name, tensor in head.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            found = list(parameters[name].shape) if name in parameters else "missing"
            raise InputError(
                f"the head's parameter {name!r} is {list(tensor.shape)} in the delta and {found} in the model: load "
                "the base with the delta's number of labels"
            )
    before = {name: parameters[name].detach().clone() for name in head}
    with torch.no_grad():
        for name, tensor in head.items():
            parameters[name].copy_(tensor)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in before.items():
                parameters[name].copy_(tensor)
