"""Task vectors: what deltas change a base by, as sparse vectors of differences.

A delta holds absolute values. Its task vector holds ``value - base`` at the same positions, in float64, so that the sum
of base and difference is the value again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from taskedge.backbone.candidates import head_parameters
from taskedge.backbone.layers import Linear, linears
from taskedge.backbone.storage.coding import CODINGS, rounded_weight
from taskedge.delta.apply import applied_to, check_base
from taskedge.delta.delta import Delta
from taskedge.delta.entry_access import changed_weight
from taskedge.delta.filter_delta import refuse_filters
from taskedge.delta.prompt_delta import refuse_prompt
from taskedge.errors import BaseMismatch, InputError, did_you_mean
from taskedge.forms.install import installation
from taskedge.forms.norms import statistics_of


@dataclass(frozen=True)
class SparseVector:
    """Differences at some positions of one tensor.

    Attributes:
        shape: of the tensor; (out, in) of a linear's weight.
        flat: int64 [n], ascending: positions as ``row * in + column``.
        differences: float64 [n], the changed value minus that of the base.
    """

    shape: tuple[int, ...]
    flat: Tensor
    differences: Tensor

    def __len__(self) -> int:
        return len(self.flat)

    def negated(self) -> SparseVector:
        """Return the opposite change."""
        return replace(self, differences=-self.differences)


@dataclass(frozen=True)
class TaskVector:
    """The change of a base by one delta, without its head.

    Attributes:
        linears: changes of entries, by linear.
        parameters: changes of parameters that were trained in full, by name.
        base_dtypes: dtype in which the base's weight was stored in training, by linear.
    """

    linears: dict[str, SparseVector]
    parameters: dict[str, SparseVector]
    base_dtypes: dict[str, str]

    def __len__(self) -> int:
        """Return the number of changed numbers."""
        return sum(map(len, self.linears.values())) + sum(map(len, self.parameters.values()))

    def negated(self) -> TaskVector:
        """Return the opposite change, to subtract a task."""
        return replace(
            self,
            linears={name: vector.negated() for name, vector in self.linears.items()},
            parameters={name: vector.negated() for name, vector in self.parameters.items()},
        )


def task_vector(model: nn.Module, delta: Delta, name: str, *, densify: bool = False) -> TaskVector:
    """Return the task vector of a delta, after checking that the model is its base.

    Args:
        model: the base, without a support or an applied delta. Its head does not matter.
        delta: the delta; its head is left out.
        name: of the delta, for messages.
        densify: turn low-rank products into entries.

    Raises:
        BaseMismatch: the model is not the delta's base.
        InputError: the model is not a plain base; the delta has a low-rank product, and ``densify`` is not set.
    """
    check_plain(model)
    refuse_filters(delta, f"combining {name}")
    refuse_prompt(delta, f"combining {name}")
    if delta.low_rank and not densify:
        raise InputError(
            f"{name}: {len(delta.low_rank)} linears carry a low-rank product ({min(delta.low_rank)!r}), which has no "
            "entries to combine by index: densify it (--densify), which makes entries of every number of these weights"
        )
    shared = shared_parameters(model, delta)
    try:
        check_base(model, replace(delta, full_parameters=shared, heads={}))
    except BaseMismatch as error:
        raise BaseMismatch(f"{name}: {error}") from None
    layers, parameters = linears(model), dict(model.named_parameters())
    changed = {
        key: _difference(linear.shape, linear.rows * linear.shape[1] + linear.columns, linear.values,
                         base_values(layers[key], linear.rows, linear.columns, linear.base_dtype))
        for key, linear in delta.linears.items() if key not in delta.low_rank
    }  # fmt: skip
    for key, product in delta.low_rank.items():
        weight = layers[key].weight.float()
        values = changed_weight(weight, delta, key).flatten()
        changed[key] = _difference(product.shape, torch.arange(len(values)), values, weight.flatten(), keep_all=False)
    return TaskVector(
        changed,
        {
            key: _difference(
                tuple(tensor.shape), torch.arange(tensor.numel()), tensor.flatten(), parameters[key].detach().flatten()
            )
            for key, tensor in shared.items()
        },
        {key: linear.base_dtype for key, linear in delta.linears.items()}
        | {key: product.base_dtype for key, product in delta.low_rank.items()},
    )


def check_plain(model: nn.Module) -> None:
    """Raise InputError if the model trains a support or has a delta applied."""
    if installation(model) is not None:
        raise InputError("the model trains a support: fuse it, or give a freshly loaded base")
    if applied_to(model) is not None:
        raise InputError("a delta is applied to the model: revert it first")


def base_values(layer: Linear, rows: Tensor, columns: Tensor, base_dtype: str) -> Tensor:
    """Return the base's values at entries as they were in training: rounded, if the base was stored as codes."""
    if base_dtype in CODINGS and layer.storage_dtype != base_dtype:
        return rounded_weight(layer, base_dtype)[rows.to(layer.device), columns.to(layer.device)]
    return layer.read(rows, columns)


def head_of(model: nn.Module, delta: Delta) -> dict[str, Tensor]:
    """Return the delta's parameters of its task's head: those outside the part that all tasks share."""
    return {name: tensor for name, tensor in delta.full_parameters.items() if _is_head(model, name)}


def shared_parameters(model: nn.Module, delta: Delta) -> dict[str, Tensor]:
    """Return the delta's full parameters that are not its task's head: biases and norms.

    Raises:
        BaseMismatch: the model has no such parameter.
        InputError: the delta has running statistics of its own.
    """
    known = dict(model.named_parameters())
    shared = {name: tensor for name, tensor in delta.full_parameters.items() if not _is_head(model, name)}
    if own := statistics_of(model, shared):
        raise InputError(
            f"the delta has {len(own)} running statistics of norms ({min(own)!r} first), which cannot be added to "
            "those of another task: serve or merge the delta alone, or train it with --norms shared"
        )
    for name in shared:
        if name not in known:
            raise BaseMismatch(f"wrong base: it has no parameter {name!r}{did_you_mean(name, known)}")
    return shared


def _is_head(model: nn.Module, name: str) -> bool:
    prefix = getattr(model, "base_model_prefix", "")
    if prefix and hasattr(model, prefix):
        return not name.startswith(f"{prefix}.")
    return name in head_parameters(model)


def _difference(
    shape: tuple[int, ...], flat: Tensor, values: Tensor, base: Tensor, *, keep_all: bool = True
) -> SparseVector:
    differences = values.cpu().double() - base.cpu().double()
    if not keep_all:
        changed = differences != 0
        flat, differences = flat[changed], differences[changed]
    return SparseVector(shape, flat, differences)


def named_vectors(vector: TaskVector) -> Mapping[str, SparseVector]:
    """Return all sparse vectors of a task vector by name; linears and parameters never have equal names."""
    return {**vector.linears, **vector.parameters}
