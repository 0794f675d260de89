"""Sensitivity-aware hybrid selection (SPT): single entries, low-rank modules and whole vectors under one budget.

Source: SPT (arXiv 2303.08566): one global top-τ of all parameters by sensitivity; a matrix with at least a tenth as
many chosen entries as a low-rank module has parameters gets that module instead; a vector of which at least a fifth is
chosen is tuned whole, any other not at all.

Ours: the budget counts what is trained, not τ. As τ grows, a matrix goes from k to k+1 entries, then at once to its
module, and stays there; a vector goes from nothing to all of it. So the number trained never falls, and there is a
largest τ within the budget. Only the parameters at which it rises matter, some thousand of a matrix, so they are all
that is kept of it: sorted by sensitivity, the largest τ ends before the first whose running sum is above the budget.
Ours as well: a module that would be no smaller than its matrix is never taken, the entries are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from taskedge.backbone.blocks import blocks, blocks_within
from taskedge.backbone.linears import Linear, head_parameters
from taskedge.backbone.linears import linears as every_linear
from taskedge.errors import BudgetError
from taskedge.selection.allocations import Scores, Shapes, refuse_nan

STRUCTURED_SHARE, WHOLE_SHARE = 10, 5
"""One over the share of a module's parameters, and of a vector, from which on it is taken."""


@dataclass(frozen=True)
class Chosen:
    """What is trained: flat indices, int64 ascending, of each linear's entries, and what is more than entries."""

    entries: dict[str, Tensor]
    low_rank: dict[str, int] = field(default_factory=dict)
    """Rank of the module by linear."""
    whole: tuple[str, ...] = ()
    """Parameters that train whole."""


@dataclass(frozen=True)
class _Steps:
    """Where the number of trained parameters of one tensor rises as τ grows: n times, best first."""

    values: Tensor
    """float32 [n]: the sensitivities at which it does."""
    costs: Tensor
    """int64 [n]: by how much."""


def hybrid(shapes: Shapes, sensitivity: Scores, vectors: Mapping[str, Tensor], budget: int, rank: int) -> Chosen:
    """Spends at most ``budget`` trained parameters on the most sensitive parts of a model.

    Args:
        shapes: (out, in) by linear.
        sensitivity: gives float32 [out, in] of one linear; asked for once each.
        vectors: float32 [n] by name: sensitivities of biases and norms.
        budget: trained parameters.
        rank: of a low-rank module, which has ``rank·(in + out)`` parameters.

    Raises:
        BudgetError: the budget does not reach for the first choice, or is more than all choices together.
        InputError: a sensitivity that is not a number.
    """
    steps, flats = {}, {}
    for name, (out, inputs) in shapes.items():
        parameters = rank * (out + inputs)
        structured = parameters < out * inputs
        count = -(-parameters // STRUCTURED_SHARE) if structured else out * inputs
        values, flats[name] = _best(name, sensitivity(name).flatten(), min(count, budget + 1))
        costs = torch.ones(len(values), dtype=torch.int64)
        if structured and len(values) == count:
            costs[-1] = parameters - (count - 1)
        steps[name] = _Steps(values, costs)
    for name, vector in vectors.items():
        values, _ = _best(name, vector.flatten(), -(-vector.numel() // WHOLE_SHARE))
        steps[name] = _Steps(values[-1:], torch.tensor([vector.numel()]))

    taken = _taken(steps, budget)
    entries, low_rank = {}, {}
    for name in shapes:
        if int(steps[name].costs[: taken[name]].sum()) > taken[name]:  # more than one each: the last was the module
            low_rank[name] = rank
        elif taken[name]:
            entries[name] = flats[name][: taken[name]].sort().values
    return Chosen(entries, low_rank, tuple(name for name in vectors if taken[name]))


def vectors_beside(
    model: nn.Module, linears: Mapping[str, Linear], *, all_norms: bool = True, depth: int | None = None
) -> dict[str, nn.Parameter]:
    """The vectors that may train whole beside entries in ``linears``, by name in the model's order.

    These are the linears' biases and, with ``all_norms``, every other vector inside the repeated blocks that is no
    linear's bias: the scales and shifts of norms. Where the model has no repeated blocks, those outside its head count.
    ``depth`` leaves the norms of so many blocks nearest the output.
    """
    biases = {f"{name}.bias" for name in linears}
    of_linears = {f"{name}.bias" for name in every_linear(model)}
    found = blocks(model) if depth is None else blocks_within(model, depth)
    inside, head = tuple(f"{block.name}." for block in found), set(head_parameters(model))
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.dim() == 1
        and parameter.is_floating_point()
        and (
            name in biases
            or (all_norms and name not in of_linears and (name.startswith(inside) if inside else name not in head))
        )
    }


def _taken(steps: Mapping[str, _Steps], budget: int) -> dict[str, int]:
    """How many steps of each tensor lie above the largest τ within the budget; ties to the earlier tensor."""
    values = torch.cat([step.values for step in steps.values()])
    costs = torch.cat([step.costs for step in steps.values()])
    owners = torch.cat([torch.full((len(step.values),), place) for place, step in enumerate(steps.values())])
    order = torch.sort(values, descending=True, stable=True).indices
    spent = costs[order].cumsum(0)
    count = int(torch.searchsorted(spent, budget, right=True))
    if not count:
        raise BudgetError(
            f"a budget of {budget:,} parameters does not reach for the most sensitive part, "
            f"which has {int(spent[0]):,}: give a larger one"
        )
    if int(spent[-1]) < budget:
        raise BudgetError(
            f"a budget of {budget:,} parameters is more than the {int(spent[-1]):,} that can be trained in this way: "
            "lower the budget, or raise the rank"
        )
    per_tensor = torch.bincount(owners[order[:count]], minlength=len(steps)).tolist()
    return dict(zip(steps, per_tensor, strict=True))


def _best(name: str, values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(values, indices) [count] on the CPU of the largest, best first, ties to the lower index."""
    top = values.topk(count).values
    refuse_nan(name, top)
    above = (values > top[-1]).nonzero()[:, 0]
    level = (values == top[-1]).nonzero()[: count - len(above), 0]
    found = torch.cat([above, level])
    order = torch.sort(values[found], descending=True, stable=True).indices
    return values[found][order].cpu(), found[order].cpu()
