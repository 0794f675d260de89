"""Sensitivity-aware hybrid selection (SPT): entries, low-rank modules and complete vectors under one budget.

Source: SPT (arXiv 2303.08566). One global top-τ ranks all parameters by sensitivity. If the entries chosen in a matrix
are at least a tenth of the parameters of a low-rank module, the matrix gets that module instead. A vector (bias or
norm) of which at least a fifth is chosen is trained in full, any other not at all.

Source of the following: this project. The budget counts trained parameters, not τ. As τ grows, a matrix goes from k to
k+1 entries, then at once to its module, and keeps it; a vector goes from nothing to all of it. So the number of trained
parameters never falls, and there is a largest τ within the budget. Only the parameters at which the number rises
matter, a few thousand of each matrix, so only they are kept: sorted by sensitivity, the largest τ ends before the first
of them whose running sum exceeds the budget. A module that would not be smaller than its matrix is never used; its
entries are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from taskedge.backbone.blocks import blocks, blocks_within
from taskedge.backbone.candidates import head_parameters
from taskedge.backbone.layers import Linear
from taskedge.backbone.layers import linears as every_linear
from taskedge.errors import BudgetError
from taskedge.selection.allocations import Scores, Shapes, refuse_nan

MODULE_DIVISOR = 10
"""A matrix gets a low-rank module from a tenth of the module's parameters on."""
VECTOR_DIVISOR = 5
"""A vector is trained from a fifth of its numbers on."""


@dataclass(frozen=True)
class SelectedParameters:
    """The parameters that a selection trains.

    Attributes:
        entries: flat indices of each linear's entries, int64 [n], ascending.
        low_rank: rank of the low-rank module, by linear.
        full_parameters: names of parameters that are trained in full.
    """

    entries: dict[str, Tensor]
    low_rank: dict[str, int] = field(default_factory=dict)
    full_parameters: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Steps:
    """The points at which the number of trained parameters of one tensor rises as τ grows, best first.

    Attributes:
        values: sensitivities of these points, float32 [n].
        costs: by how much the number rises, int64 [n].
    """

    values: Tensor
    costs: Tensor


def select_hybrid(
    shapes: Shapes, sensitivity: Scores, vectors: Mapping[str, Tensor], budget: int, rank: int
) -> SelectedParameters:
    """Spend at most ``budget`` trained parameters on the most sensitive parts of a model.

    Args:
        shapes: (out, in) by linear.
        sensitivity: returns float32 [out, in] of one linear; called once for each.
        vectors: sensitivities of biases and norms, float32 [n] by name.
        budget: trained parameters.
        rank: rank of a low-rank module, which has ``rank·(in + out)`` parameters.

    Raises:
        BudgetError: the budget is below the cost of the first part, or above the cost of all parts.
        InputError: a sensitivity is not a number.
    """
    steps, flats = {}, {}
    for name, (out, inputs) in shapes.items():
        module_parameters = rank * (out + inputs)
        may_use_module = module_parameters < out * inputs
        count = -(-module_parameters // MODULE_DIVISOR) if may_use_module else out * inputs
        values, flats[name] = _top(name, sensitivity(name).flatten(), min(count, budget + 1))
        costs = torch.ones(len(values), dtype=torch.int64)
        if may_use_module and len(values) == count:
            costs[-1] = module_parameters - (count - 1)
        steps[name] = _Steps(values, costs)
    for name, vector in vectors.items():
        values, _ = _top(name, vector.flatten(), -(-vector.numel() // VECTOR_DIVISOR))
        steps[name] = _Steps(values[-1:], torch.tensor([vector.numel()]))

    num_steps = _steps_within(steps, budget)
    entries, low_rank = {}, {}
    for name in shapes:
        count = num_steps[name]
        if int(steps[name].costs[:count].sum()) > count:  # a step that costs more than 1 is the module
            low_rank[name] = rank
        elif count:
            entries[name] = flats[name][:count].sort().values
    return SelectedParameters(entries, low_rank, tuple(name for name in vectors if num_steps[name]))


def trainable_vectors(
    model: nn.Module, linears: Mapping[str, Linear], *, all_norms: bool = True, depth: int | None = None
) -> dict[str, nn.Parameter]:
    """Return the vectors that may be trained in full beside entries in ``linears``, by name in the model's order.

    These are the biases of the linears and, with ``all_norms``, the scales and shifts of norms: every other vector in
    the repeated blocks that is not the bias of a linear. In a model without repeated blocks, vectors outside its head
    count. ``depth`` limits norms to that many blocks nearest the output.
    """
    biases = {f"{name}.bias" for name in linears}
    biases_of_all_linears = {f"{name}.bias" for name in every_linear(model)}
    in_scope = blocks(model) if depth is None else blocks_within(model, depth)
    prefixes = tuple(f"{block.name}." for block in in_scope)
    head = set(head_parameters(model))

    def is_norm(name: str) -> bool:
        return name not in biases_of_all_linears and (name.startswith(prefixes) if prefixes else name not in head)

    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.dim() == 1 and parameter.is_floating_point() and (name in biases or (all_norms and is_norm(name)))
    }


def _steps_within(steps: Mapping[str, _Steps], budget: int) -> dict[str, int]:
    """Return the number of steps of each tensor at the largest τ within the budget; ties go to the earlier tensor."""
    values = torch.cat([step.values for step in steps.values()])
    costs = torch.cat([step.costs for step in steps.values()])
    owners = torch.cat([torch.full((len(step.values),), index) for index, step in enumerate(steps.values())])
    order = torch.sort(values, descending=True, stable=True).indices
    spent = costs[order].cumsum(0)
    count = int(torch.searchsorted(spent, budget, right=True))
    if not count:
        raise BudgetError(
            f"a budget of {budget:,} parameters is below the cost of the most sensitive part, {int(spent[0]):,}: "
            "give a larger one"
        )
    if int(spent[-1]) < budget:
        raise BudgetError(
            f"a budget of {budget:,} parameters is more than the {int(spent[-1]):,} that can be trained in this way: "
            "lower the budget, or raise the rank"
        )
    per_tensor = torch.bincount(owners[order[:count]], minlength=len(steps)).tolist()
    return dict(zip(steps, per_tensor, strict=True))


def _top(name: str, values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return (values, indices) [count] of the largest, on the CPU, best first, ties to the lower index."""
    top = values.topk(count).values
    refuse_nan(name, top)
    above = (values > top[-1]).nonzero()[:, 0]
    equal = (values == top[-1]).nonzero()[: count - len(above), 0]
    indices = torch.cat([above, equal])
    order = torch.sort(values[indices], descending=True, stable=True).indices
    return values[indices][order].cpu(), indices[order].cpu()
