"""Many small tensors as one flat tensor.

An answer holds dozens of tensors of a few hundred numbers each. A call of torch costs more than its arithmetic on so
few numbers, so a coordinator of many devices checks, converts and sums an answer as one tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class FlatLayout:
    """Names and shapes of tensors, in the order in which they follow one another."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @cached_property
    def counts(self) -> Tensor:
        """int64 [names]: numbers per tensor."""
        return torch.tensor([shape.numel() for shape in self.shapes], dtype=torch.int64)

    @cached_property
    def places(self) -> dict[str, tuple[int, int, int]]:
        """Index, first number and number behind the last of each name."""
        ends = self.counts.cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        return {name: (i, starts[i], ends[i]) for i, name in enumerate(self.names)}

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the tensors as views of a flat one."""
        parts = flat.split(self.counts.tolist())  # type: ignore[no-untyped-call]
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def sums(self, flat: Tensor) -> list[float]:
        """Return the sum of each tensor's numbers in a flat one."""
        if not self.names:
            return []
        return [float(total) for total in torch.segment_reduce(flat, "sum", lengths=self.counts).tolist()]


def layout_of(tensors: Mapping[str, Tensor], names: Iterable[str] | None = None) -> FlatLayout:
    """Return the layout of some tensors, in the order of ``names`` or their own; equal ones are one object."""
    return _layout(tuple((name, tensors[name].shape) for name in (tensors if names is None else names)))


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Return tensors of one dtype one behind the other, as a copy; float32 [0] if there are none."""
    pieces = [tensor.reshape(-1) for tensor in tensors]
    return torch.cat(pieces) if pieces else torch.zeros(0)


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether all numbers of some tensors are finite."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    return all(bool(torch.isfinite(flatten(same).float()).all()) for same in by_dtype.values())


@lru_cache(maxsize=256)
def _layout(shapes: tuple[tuple[str, torch.Size], ...]) -> FlatLayout:
    return FlatLayout(tuple(name for name, _ in shapes), tuple(shape for _, shape in shapes))
