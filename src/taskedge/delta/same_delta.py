"""Whether two deltas are one change, so that applying the second adds nothing to the first."""

from __future__ import annotations

import torch

from taskedge.delta.delta import Delta


def same_delta(first: Delta, second: Delta) -> bool:
    """Return whether two deltas write the same values to the same positions."""
    if (
        first.linears.keys() != second.linears.keys()
        or first.low_rank.keys() != second.low_rank.keys()
        or first.full_parameters.keys() != second.full_parameters.keys()
        or first.filters.keys() != second.filters.keys()
        or getattr(first.prompt, "layout", None) != getattr(second.prompt, "layout", None)
    ):
        return False
    for name, a in first.linears.items():
        b = second.linears[name]
        if not (torch.equal(a.rows, b.rows) and torch.equal(a.columns, b.columns) and torch.equal(a.values, b.values)):
            return False
    for name, product in first.low_rank.items():
        other = second.low_rank[name]
        if product.scale != other.scale or not (torch.equal(product.a, other.a) and torch.equal(product.b, other.b)):
            return False
    named = {f"{name}/{part}": tensor for name, one in first.filters.items() for part, tensor in one.tensors.items()}
    others = {f"{name}/{part}": tensor for name, one in second.filters.items() for part, tensor in one.tensors.items()}
    named |= {} if first.prompt is None else first.prompt.tensors
    others |= {} if second.prompt is None else second.prompt.tensors
    named, others = named | first.full_parameters, others | second.full_parameters
    return named.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in named.items())
