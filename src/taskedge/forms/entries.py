"""The trained entries of one linear, and the inputs that their gradients need.

The trained number of an entry is an *offset* in fp32; the weight holds ``base + step·offset`` there. A form of the
entries is a subclass of :class:`Entries`, which decides which parameters train and what offsets they amount to.
"""

from __future__ import annotations

import abc
import copy
import weakref
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from taskedge.backbone.layers import LayerAdapter, Linear, tensor_version, write_entries
from taskedge.errors import InputError
from taskedge.forms.kernels import EntryIndex
from taskedge.forms.master_weights import FixedDtypeModule
from taskedge.selection.support import LayerSupport


class SharedInput:
    """The columns of one input tensor that its readers need, gathered once for all of them.

    Query, key and value read the same tensor; each passes it in, the first gathers, the others get the same columns.
    A reader that gets another tensor than the others gathers for itself.

    Args:
        columns: int64 [m], ascending: the columns that some reader needs.
        num_readers: layers that read the input.
        adapter: of these layers.
    """

    def __init__(self, columns: Tensor, num_readers: int, adapter: LayerAdapter) -> None:
        self.columns = columns
        self._num_readers, self._adapter = num_readers, adapter
        self._num_served = 0
        self._version = -1
        self._input: weakref.ref[Tensor] | None = None
        self._gathered: Tensor | None = None

    def gather(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the needed columns of the input ``x`` of a layer, [tokens, m] in ``dtype``, without gradient."""
        gathered = self._gathered if self._is_gathered(x, dtype) else None
        if gathered is None:
            self.columns = self.columns.to(x.device)
            gathered = self._adapter.gather(x.detach(), self.columns).to(dtype)
            self._input, self._gathered = weakref.ref(x), gathered
            self._version = tensor_version(x)
            self._num_served = 0
        self._num_served += 1
        if self._num_served == self._num_readers:  # from here on only the backward pass keeps the columns alive
            self._forget()
        return gathered

    def set_columns(self, columns: Tensor, num_readers: int | None = None) -> None:
        """Replace the needed columns by int64 [m], ascending; each reader must call :meth:`Entries.reindex` after.

        ``num_readers`` is given if their number changed as well.
        """
        self.columns, self._num_served = columns, 0
        self._num_readers = self._num_readers if num_readers is None else num_readers
        self._forget()

    def _is_gathered(self, x: Tensor, dtype: torch.dtype) -> bool:
        """Return whether the gathered columns are the present ones of ``x``, in ``dtype`` (autocast changes it)."""
        if self._input is None or self._gathered is None:
            return False
        return self._input() is x and self._version == tensor_version(x) and self._gathered.dtype == dtype

    def _forget(self) -> None:
        self._input = self._gathered = None

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedInput:
        return SharedInput(copy.deepcopy(self.columns, memo), self._num_readers, self._adapter)

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedInput, (self.columns, self._num_readers, self._adapter)


class Entries(FixedDtypeModule, abc.ABC):
    """The trained entries of one linear. A subclass holds the trained parameters and computes the offsets from them.

    Attributes:
        rows, columns: int64 [n], sorted by row and then column.
        base: [n] in the weight's dtype, the values of the base at the entries.
        step: float32 [n], how far a unit of offset moves a weight; None means 1.
        shared_input: gathers the columns of the input that the gradients need.
        active: int64 [k], ascending: the entries that get a gradient; None means all. :meth:`reindex` follows a change.
    """

    rows: Tensor
    columns: Tensor
    base: Tensor
    step: Tensor | None

    def __init__(self, linear: Linear, support: LayerSupport, shared_input: SharedInput, step: Tensor | None) -> None:
        super().__init__()
        device = linear.device
        rows, columns = support.rows.to(device), support.columns.to(device)
        self.adapter = linear.adapter
        self.shared_input = shared_input
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        self.register_buffer("base", linear.read(rows, columns))
        self.register_buffer("step", None if step is None else step.to(device=device, dtype=torch.float32))
        self._out_features = support.shape[0]
        self._written_offsets: Tensor | None = torch.zeros(len(support), device=device)  # None: unknown
        self._has_negative_zeros: bool | None = None  # whether the base holds -0.0; None: not checked yet
        self.active: Tensor | None = None
        self.reindex()

    @abc.abstractmethod
    def current_offsets(self) -> Tensor:
        """Return the offsets, float32 [n], through which gradients reach the parameters; all 0 before training."""

    @property
    def is_open(self) -> bool:
        """Whether the entries have their changes; a form may close a linear, which is then the base's."""
        return True

    @property
    def values(self) -> Tensor:
        """float32 [n]: the trained values of the chosen weights, ``base + step·offset``."""
        moved = self.current_offsets().detach()
        base = self.base.to(moved.dtype)
        if self.step is not None:
            moved = self.step * moved
        if self._has_negative_zeros is None:
            self._has_negative_zeros = bool((base.signbit() & (base == 0)).any())
        # -0.0 + 0.0 would be 0.0; checked once, since each of these small operations costs 20 microseconds in a step
        return torch.where(moved == 0, base, base + moved) if self._has_negative_zeros else base + moved

    def reindex(self) -> None:
        """Find the entries among the columns that the shared input gathers; needed after either of them changed."""
        rows, columns = self.rows, self.columns
        if self.active is not None:
            rows, columns = rows[self.active], columns[self.active]
        gathered_columns = torch.searchsorted(self.shared_input.columns.to(rows.device), columns)
        self._index = EntryIndex(rows, gathered_columns, self._out_features)

    def entry_index(self) -> EntryIndex:
        """Return where the active entries are, on the device where they are now."""
        self._index = self._index.to(self.rows.device)
        return self._index

    def write_into(self, layer: nn.Module) -> None:
        """Write the trained values into the weight of ``layer`` if the offsets changed since the last time.

        Offsets are compared by content, so it does not matter how an optimizer, a checkpoint or a broadcast changed
        them.
        """
        offsets = self.current_offsets().detach()
        if self._written_offsets is not None and torch.equal(self._written_offsets, offsets):
            return
        with torch.no_grad():
            write_entries(layer, self.adapter.weight_index(self.rows, self.columns), self.values)
        self._written_offsets = offsets.clone()

    def invalidate_written(self) -> None:
        """Note that the stored weight may differ from the offsets: the next read writes the values again."""
        self._written_offsets = self._has_negative_zeros = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.active is not None:
            self.active = fn(self.active)
        self._written_offsets = None  # the weight may have been rounded: write it again
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("rows", "columns"):
            stored = state_dict.get(prefix + name)
            if stored is not None and not torch.equal(stored.to(self.rows.device), getattr(self, name)):
                raise InputError(
                    f"the state at {prefix!r} was made with another support: install the support it was made with"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.invalidate_written()


MakeEntries = Callable[[Linear, LayerSupport, SharedInput, Tensor | None], Entries]
"""Makes the entries of one linear from its support, the input it shares and the step of each entry."""
