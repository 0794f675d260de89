"""The filter of a low-rank product in a delta, and its tensors in a delta file (``filter/LINEAR/PART``)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taskedge.delta.manifest import FilterEntry
from taskedge.errors import DeltaError, InputError
from taskedge.forms.filtered import CANNOT_BE_FUSED, FILTERS

FILTER = "filter/"


@dataclass(frozen=True)
class FilterDelta:
    """The trained filter of one linear, beside its low-rank product (:mod:`taskedge.forms.filtered`).

    Attributes:
        kind: ``"cosine"`` or ``"gate"``.
        tensors: float32, by the names in ``FILTERS``.
    """

    kind: str
    tensors: dict[str, Tensor]

    @property
    def rank(self) -> int:
        """Rank of the filtered product."""
        return len(self.tensors["c"])

    @property
    def num_parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def check(self, name: str, out: int) -> None:
        """Raise DeltaError if the tensors contradict themselves or the ``out`` features of linear ``name``."""
        if self.kind not in FILTERS or {*self.tensors} != {*FILTERS[self.kind]}:
            raise DeltaError(f"linear {name!r}: a filter {self.kind!r} with the tensors {', '.join(self.tensors)}")
        for part, tensor in self.tensors.items():
            if tuple(tensor.shape) != filter_shape(part, out, self.rank):
                raise DeltaError(f"linear {name!r}: {part} of its filter is {list(tensor.shape)}")
            if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
                raise DeltaError(f"linear {name!r}: {part} of its filter holds a value that is not a finite float32")


def filter_shape(part: str, out: int, rank: int) -> tuple[int, ...]:
    """Return the shape of a tensor of a filter."""
    return {"v": (out,), "d": (out, rank), "w2": (out, rank)}.get(part, (rank, out))


def filter_tensors(filters: Mapping[str, FilterDelta], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of a file that hold these filters."""
    return {
        f"{FILTER}{name}/{part}": tensor.to(dtype)
        for name, one in filters.items()
        for part, tensor in one.tensors.items()
    }


def filter_names(entries: Iterable[FilterEntry]) -> set[str]:
    """Return the names of the tensors of filters."""
    return {f"{FILTER}{entry.name}/{part}" for entry in entries for part in FILTERS[entry.kind]}


def filters_from_tensors(
    entries: Iterable[FilterEntry],
    outs: Mapping[str, int],
    tensors: Mapping[str, Tensor],
    read: Callable[[Mapping[str, Tensor], str, tuple[int, ...], Collection[torch.dtype]], Tensor],
    dtypes: Collection[torch.dtype],
) -> dict[str, FilterDelta]:
    """Return the filters of a file.

    Args:
        entries: of the manifest.
        outs: out features of each linear with a low-rank product.
        tensors: of the file.
        read: returns a tensor of a name after checking its shape and dtype.
        dtypes: that a tensor may have.

    Raises:
        DeltaError: a filter belongs to no product, or a tensor is missing or has another shape.
    """
    filters = {}
    for entry in entries:
        if entry.name not in outs:
            raise DeltaError(f"linear {entry.name!r} has a filter and no low-rank product")
        shapes = {part: filter_shape(part, outs[entry.name], entry.rank) for part in FILTERS[entry.kind]}
        parts = {
            part: read(tensors, f"{FILTER}{entry.name}/{part}", shape, dtypes).float() for part, shape in shapes.items()
        }
        filters[entry.name] = FilterDelta(entry.kind, parts)
    return filters


def refuse_filters(delta: Any, what: str) -> None:
    """Raise InputError if a delta has filters; ``what`` cannot be done with them."""
    if delta.filters:
        raise InputError(
            f"{what} is not possible: {len(delta.filters)} linears have filters ({min(delta.filters)!r} first), and "
            f"{CANNOT_BE_FUSED}; apply or serve the delta, or train it with --form lora"
        )
