"""The gradient of each row of a batch on its own, clipped and summed: what differential privacy adds noise to.

A row's gradient of an entry is ``Σ_t dY[t, row] · X[t, column]`` over the row's own tokens, and of a linear that trains
in full the same product over all of its weights. Both come from one pass over the batch, recorded at the layers. What
else trains, or a loss that is no mean over rows, needs a pass for every row.

Source: clipping per row, arXiv 1607.00133; the products of recorded inputs and output gradients, arXiv 1510.01799.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.evaluation import loss_of, run_batch
from taskedge.backbone.layers import first_input
from taskedge.forms.kernels import EntryIndex
from taskedge.forms.sparse import FreeEntries, SparseLayer

_TOLERANCE = 1e-3
"""Largest relative difference between the sum over rows and the gradient of the batch."""
_MAX_PRODUCTS = 2**24
"""Products of a token and an entry that are held at once: 64 MiB."""

_Record = tuple[Tensor, Tensor]
"""Inputs [tokens, m] or [rows, ..., in] of a layer's call, and the gradient of its output."""


@dataclass(frozen=True)
class RowGradients:
    """The clipped sum over some rows.

    Attributes:
        total: Sum of the clipped gradients by name, float32.
        losses: [rows].
        norms: [rows, groups], l2 norms before clipping.
    """

    total: dict[str, Tensor]
    losses: Tensor
    norms: Tensor


def clipped_sum(
    model: nn.Module,
    rows: Sequence[Any],
    collate: Callable[[list[Any]], Any],
    parameters: Mapping[str, nn.Parameter],
    clip: float,
    groups: Sequence[Collection[str]] = (),
) -> RowGradients:
    """Return the sum over ``rows`` of each row's gradient, scaled to an l2 norm of at most ``clip``.

    Args:
        model: Any module whose loss is in its output.
        rows: At least one.
        collate: Makes a batch from a list of rows.
        parameters: What trains, by its name in the model. Their ``grad`` is not touched.
        clip: Largest norm of each group.
        groups: Names that are clipped together; empty: all in one group. Groups keep a part with small gradients
            (entries) from being scaled by one with large ones (a head).
    """
    groups = groups or [list(parameters)]
    per_row = _in_one_pass(model, collate(list(rows)), len(rows), parameters)
    if per_row is None:
        per_row = _one_by_one(model, [collate([row]) for row in rows], parameters)
    gradients, losses = per_row
    squares = {name: gradient.square().flatten(1).sum(1) for name, gradient in gradients.items()}
    norms = torch.stack([torch.stack([squares[name] for name in group]).sum(0).sqrt() for group in groups], dim=1)
    finite = torch.isfinite(norms)  # what is not finite counts as 0, or it would show in the sum
    factors = (clip / norms.clamp_min(1e-30)).clamp_max(1.0).where(finite, torch.zeros(()).to(norms))
    total = {}
    for place, group in enumerate(groups):
        for name in group:
            gradient = gradients[name].flatten(1).where(finite[:, place, None], torch.zeros(()).to(norms))
            total[name] = (factors[:, place] @ gradient).reshape(parameters[name].shape)
    return RowGradients(total, losses, norms)


def _one_by_one(
    model: nn.Module, batches: Sequence[Any], parameters: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the gradients [rows, ...] by name and the losses of batches of one row."""
    found: list[tuple[Tensor, ...]] = []
    losses = []
    for batch in batches:
        loss = loss_of(run_batch(model, batch))
        found.append(_gradients(loss, parameters))
        losses.append(loss.detach().float())
    return {name: torch.stack([g[i] for g in found]) for i, name in enumerate(parameters)}, torch.stack(losses)


def _in_one_pass(
    model: nn.Module, batch: Any, num_rows: int, parameters: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], Tensor] | None:
    """Return what :func:`_one_by_one` returns, by one pass; None if this model or batch needs single rows."""
    owners = {name: _owner(model, name) for name in parameters}
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if any(owner is None for owner in owners.values()) or _mixes_rows(model):
        return None
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != (num_rows,):
        return None  # a loss over tokens weights rows by their length
    with _recorded({owner for owner in owners.values() if owner is not None}) as records:
        output = run_batch(model, batch)
        logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            return None
        loss = loss_of(output)
        losses = nn.functional.cross_entropy(logits.detach().float(), labels.to(logits.device), reduction="none")
        if not torch.isclose(losses.mean(), loss.detach().float(), rtol=_TOLERANCE, atol=1e-5):
            return None
        whole = _gradients(loss, parameters)
    per_row = {}
    for (name, owner), expected in zip(owners.items(), whole, strict=True):
        assert owner is not None
        gradient = _row_gradients(owner, name, records.get(owner, []), num_rows, expected.shape)
        if gradient is None or (gradient.mean(0) - expected).norm() > _TOLERANCE * expected.norm() + 1e-7:
            return None  # the parameter has another part in the loss than this layer's output
        per_row[name] = gradient
    return per_row, losses


def _gradients(loss: Tensor, parameters: Mapping[str, nn.Parameter]) -> tuple[Tensor, ...]:
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return tuple(
        torch.zeros_like(p, dtype=torch.float32) if g is None else g.float()
        for g, p in zip(found, parameters.values(), strict=True)
    )


def _owner(model: nn.Module, name: str) -> nn.Module | None:
    """Return the layer whose inputs and output gradients give the gradient of a parameter; None if none does."""
    path, _, last = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, FreeEntries):
        return model.get_submodule(path.rpartition(".")[0])
    return module if type(module) is nn.Linear and last in ("weight", "bias") else None


def _mixes_rows(model: nn.Module) -> bool:
    """Return whether the loss of a row depends on the other rows of its batch."""
    config = getattr(model, "config", None)
    experts = any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    return experts or any("BatchNorm" in type(module).__name__ for module in model.modules())


@contextmanager
def _recorded(layers: set[nn.Module]) -> Iterator[dict[nn.Module, list[_Record]]]:
    """Record the calls of some layers in the block, while their gradients are computed."""
    records: dict[nn.Module, list[_Record]] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if not output.requires_grad:
            return
        inputs = first_input(args, kwargs).detach()
        if isinstance(module, SparseLayer):
            shared = module.entries.shared_input
            inputs = module.entries.adapter.gather(inputs, shared.columns.to(inputs.device)).to(output.dtype)
        output.register_hook(lambda gradient: records.setdefault(module, []).append((inputs, gradient.detach())))  # type: ignore[no-untyped-call]

    handles = [layer.register_forward_hook(record, with_kwargs=True) for layer in layers]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def _row_gradients(
    owner: nn.Module, name: str, records: Sequence[_Record], num_rows: int, shape: torch.Size
) -> Tensor | None:
    """Return the gradient of one parameter for each row [rows, *shape] from the calls of its layer."""
    result = torch.zeros(num_rows, *shape, device=records[0][1].device if records else None)
    for inputs, gradient in records:
        if gradient.shape[0] != num_rows:
            return None
        if isinstance(owner, SparseLayer):
            entries, tokens = owner.entries, owner.entries.adapter.output_tokens(gradient).contiguous()
            found = _entry_gradients(tokens, inputs, entries.entry_index(), num_rows)
            result += found if entries.step is None else entries.step * found
        else:
            dy = gradient.reshape(num_rows, -1, gradient.shape[-1]).float()
            x = inputs.reshape(num_rows, -1, inputs.shape[-1]).float()
            result += dy.sum(1) if name.endswith("bias") else torch.einsum("rto,rti->roi", dy, x)
    return num_rows * result  # the loss is the mean over rows


def _entry_gradients(gradient: Tensor, columns: Tensor, index: EntryIndex, num_rows: int) -> Tensor:
    """Return ``Σ_t dY[t, row_e] · X[t, column_e]`` over the tokens of each row, [rows, n].

    The kernels of :mod:`taskedge.forms.kernels` sum over all tokens at once. A call of one for each row of a batch
    takes longer than these products of all rows together.
    """
    tokens = len(gradient) // num_rows
    step = max(1, _MAX_PRODUCTS // max(1, tokens * len(index.rows))) * tokens
    parts = []
    for start in range(0, len(gradient), step):
        dy, x = gradient[start : start + step].float(), columns[start : start + step].float()
        products = dy[:, index.rows] * x[:, index.columns]
        parts.append(products.reshape(-1, tokens, products.shape[1]).sum(1))
    return torch.cat(parts)
