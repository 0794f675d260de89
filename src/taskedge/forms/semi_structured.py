"""An unmerged 2:4 delta beside its base: ``y = base(x) + x·Δᵀ``, on sparse tensor cores if the device has them.

2:4 is half of the matrix. Unmerged, Δ costs every linear a second product, of half the size at best, and memory for
half a weight and its indices (without sparse tensor cores: for a whole dense weight). In return the base is never
written to, so several tasks can share one copy of it; a merged delta costs nothing. On an H100 the sparse product was
slower than a dense one at every measured shape (benchmarks/cost/two_of_four.py), so no gain in time is claimed.

Source: TaskEdge (arXiv 2504.03718) names 2:4 for sparse tensor cores; torch for the product; this project for the form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskedge.backbone.layers import Linear, LinearAdapter, as_tokens, first_input, linears
from taskedge.errors import InputError, did_you_mean
from taskedge.selection.patterns import Entries, Pattern

Model = TypeVar("Model", bound=nn.Module)

TWO_OF_FOUR = Pattern(2, 4)


class LinearChange(Entries, Protocol):
    """New values of some entries of a weight, such as a linear of a delta."""

    @property
    def values(self) -> Tensor:
        """float32 [n], absolute."""


@contextmanager
def beside(model: Model, changes: Mapping[str, LinearChange]) -> Iterator[Model]:
    """Make every named linear return ``base(x) + x·Δᵀ`` within the ``with`` block; no weight is written.

    Δ is ``values - base`` in the dtype of the weight, computed once on entry. In 16 bits that difference
    is rounded, so results differ from those of the merged model in the last bits.

    Args:
        model: the base.
        changes: by name of the linear, as in ``delta.linears``; each must have the pattern 2:4.

    Raises:
        InputError: a linear that the model lacks or that has another shape; entries that are not 2:4.
    """
    layers = linears(model)
    for name, change in changes.items():
        _check(name, change, layers)
    with ExitStack() as stack:
        for name, change in changes.items():
            hook = _adding_hook(_delta_matrix(layers[name], change))
            stack.callback(layers[name].module.register_forward_hook(hook, with_kwargs=True).remove)
        yield model


def has_sparse_tensor_cores(device: torch.device) -> bool:
    """Return whether torch can multiply 2:4 matrices on ``device``: an NVIDIA GPU of compute capability 8.0 or up."""
    return (
        device.type == "cuda" and torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def _check(name: str, change: LinearChange, layers: Mapping[str, Linear]) -> None:
    if name not in layers:
        raise InputError(f"the model has no linear {name!r}{did_you_mean(name, layers)}")
    layer = layers[name]
    if layer.shape != tuple(change.shape):
        raise InputError(f"linear {name!r} is {list(layer.shape)}; the delta was made for {list(change.shape)}")
    if not isinstance(layer.adapter, LinearAdapter):
        raise InputError(f"linear {name!r} is a {type(layer.module).__name__}: apply the delta instead")
    if not TWO_OF_FOUR.matches(change):
        raise InputError(f"the entries of linear {name!r} are not 2:4: apply the delta instead, or select with '2:4'")


def _delta_matrix(linear: Linear, change: LinearChange) -> Tensor:
    """Return Δ [out, in] in the weight's dtype: semi-structured if the device and torch can multiply it, else dense."""
    base = linear.weight
    rows, columns = change.rows.to(base.device), change.columns.to(base.device)
    delta = torch.zeros(base.shape, dtype=base.dtype, device=base.device)
    # in fp64 both values are exact, so that the difference is rounded once
    delta[rows, columns] = (change.values.to(base.device).double() - base[rows, columns].double()).to(base.dtype)
    fits = delta.shape[0] % 32 == 0 and delta.shape[1] % 64 == 0  # what torch requires of 16-bit matrices
    if fits and base.dtype in (torch.float16, torch.bfloat16) and has_sparse_tensor_cores(base.device):
        sparse: Tensor = torch.sparse.to_sparse_semi_structured(delta)
        return sparse
    return delta


def _adding_hook(delta: Tensor) -> Callable[..., Tensor]:
    """Return a forward hook that adds ``x·Δᵀ`` to a linear's output."""

    def add(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        x = first_input(args, kwargs)
        return output + F.linear(as_tokens(x), delta).view(output.shape)  # [tokens, out] to the shape of the output

    return add
