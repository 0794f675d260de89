"""Bytes of tensors that are alive while work is done, counted exactly: what a step needs, without what holds it.

The resident set also holds what an allocator keeps for later, and says nothing of which bytes were when. Here every
operation below autograd is seen as it runs, so temporaries of a backward pass and of an optimiser count too; scratch
memory within one operation does not.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """As a context: counts storages that are made inside, until they are freed.

    Attributes:
        live: bytes alive now, of those made inside.
        peak: the most there have been.
        made: all that were made, freed or not.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.made = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, operation: Callable[..., Any], types: Any, given: Any = (), named: Any = None
    ) -> Any:  # the names of its parameters are torch's to pass by place
        result = operation(*given, **(named or {}))
        before: set[int] | None = None
        for tensor in _tensors((result,)):
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self._alive or not size:
                continue
            if before is None:
                before = {each.untyped_storage()._cdata for each in _tensors((given, named))}
            if key in before:  # a view of something older than the context, or changed in place
                continue
            self._alive.add(key)
            self.live += size
            self.made += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._freed, key, size)
        return result

    def _freed(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.live -= size


def _tensors(values: Any) -> Iterator[Tensor]:
    return (value for value in tree_leaves(values) if isinstance(value, Tensor))


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of the storages of these tensors, each counted once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
