"""An unmerged 2:4 delta beside its base: ``y = base(x) + x·Δᵀ``, with sparse tensor cores where there are any.

2:4 is half of the matrix: unmerged, Δ costs every linear a second product, of half the size at best, and memory for
half a weight and its indices (elsewhere than on sparse tensor cores: a whole dense one). It buys that the base stays as
it is, for several tasks beside one copy; a merged delta costs nothing. On an H100 the sparse product is slower than a
dense one at every shape that was tried (benchmarks/two_of_four.py), so no gain in time is claimed.

Source: TaskEdge (arXiv 2504.03718) names 2:4 for sparse tensor cores; the product is torch's, the form ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskedge.backbone.layer_adapters import Features, as_tokens
from taskedge.backbone.linears import Linear, linears
from taskedge.errors import InputError, did_you_mean
from taskedge.selection.patterns import Entries, Pattern

Model = TypeVar("Model", bound=nn.Module)

TWO_OF_FOUR = Pattern(2, 4)


class Change(Entries, Protocol):
    """New values of some entries of a weight: a linear of a delta."""

    @property
    def values(self) -> Tensor:
        """float32 [n], absolute."""


@contextmanager
def beside(model: Model, changes: Mapping[str, Change]) -> Iterator[Model]:
    """Within, every named linear gives ``base(x) + x·Δᵀ``; no weight is written.

    Δ holds ``values - base`` in the dtype of the weight. It is made once, on entering, from the base as it is then. In
    16 bits that difference is rounded, so results differ from those of the merged model in the last bits.

    Args:
        model: the base.
        changes: by name of the linear, as in ``delta.linears``; each must hold the pattern 2:4.

    Raises:
        InputError: a linear that the model lacks or that has another shape; entries that are not 2:4.
    """
    known = linears(model)
    for name, change in changes.items():
        _check(name, change, known)
    with ExitStack() as stack:
        for name, change in changes.items():
            add = _adding(_operand(known[name], change))
            stack.callback(known[name].module.register_forward_hook(add, with_kwargs=True).remove)
        yield model


def has_sparse_tensor_cores(device: torch.device) -> bool:
    """Whether torch can multiply 2:4 matrices on that device: an NVIDIA GPU of compute capability 8.0 or later."""
    return (
        device.type == "cuda" and torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def _check(name: str, change: Change, known: Mapping[str, Linear]) -> None:
    if name not in known:
        raise InputError(f"the model has no linear {name!r}{did_you_mean(name, known)}")
    if known[name].shape != tuple(change.shape):
        raise InputError(f"linear {name!r} is {list(known[name].shape)}; the delta was made for {list(change.shape)}")
    if not isinstance(known[name].kind, Features):
        raise InputError(f"linear {name!r} is a {type(known[name].module).__name__}: apply the delta instead")
    if not TWO_OF_FOUR.holds(change):
        raise InputError(f"the entries of linear {name!r} are not 2:4: apply the delta instead, or select with '2:4'")


def _operand(linear: Linear, change: Change) -> Tensor:
    """Δ [out, in] in the weight's dtype: semi-structured where the device and torch can multiply it, else dense."""
    base = linear.weight
    rows, columns = change.rows.to(base.device), change.columns.to(base.device)
    delta = torch.zeros(base.shape, dtype=base.dtype, device=base.device)
    # in fp64 both values are exact, so that the difference is rounded once
    delta[rows, columns] = (change.values.to(base.device).double() - base[rows, columns].double()).to(base.dtype)
    fits = delta.shape[0] % 32 == 0 and delta.shape[1] % 64 == 0  # what torch asks of 16-bit matrices
    if fits and base.dtype in (torch.float16, torch.bfloat16) and has_sparse_tensor_cores(base.device):
        sparse: Tensor = torch.sparse.to_sparse_semi_structured(delta)
        return sparse
    return delta


def _adding(delta: Tensor) -> Callable[..., Tensor]:
    """A forward hook that adds ``x·Δᵀ`` to a linear's output."""

    def add(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
        x = next(iter((*given, *named.values())))
        return output + F.linear(as_tokens(x), delta).view(output.shape)  # (tokens, out) as the linear gave it

    return add
