"""Exact count of the bytes of live tensors while code runs.

The resident set also contains memory that the allocator keeps, and gives no history. This count sees every operation
below autograd, so it includes temporaries of backward passes and of optimizers. It does not include scratch memory
within one operation.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context that counts the storages that are allocated inside it, until they are freed.

    Attributes:
        live: bytes that are alive now.
        peak: the maximum of ``live``.
        made: all that were made, freed or not.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.allocated = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, operation: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        before: set[int] | None = None
        for tensor in _tensors((result,)):
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self._alive or not size:
                continue
            if before is None:
                before = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
            if key in before:  # a view of an older tensor, or changed in place
                continue
            self._alive.add(key)
            self.live += size
            self.allocated += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._freed, key, size)
        return result

    def _freed(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.live -= size


def _tensors(values: Any) -> Iterator[Tensor]:
    return (value for value in tree_leaves(values) if isinstance(value, Tensor))


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the storages of these tensors. Each storage counts once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
