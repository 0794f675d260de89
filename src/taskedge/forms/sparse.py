"""Sparse in place: a linear that trains a few of its own weights, and computes, keeps and stores nothing else.

Forward is the untouched layer on its own weight. Backward gives ``dX = dY·W`` as it would with a frozen weight, and the
chosen entries of dW from the few columns of X that they use. The trained number is an *offset* in fp32; the weight
itself holds ``base + step·offset`` at the chosen entries, brought up to date whenever someone reads it.

Source: TaskEdge (arXiv 2504.03718) for training chosen weights in place; the form and its engine are ours.
"""

from __future__ import annotations

import abc
import copy
import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from taskedge.backbone.layer_adapters import Kind
from taskedge.backbone.linears import Linear, version
from taskedge.backbone.storage.frozen_layer import HeldLayer
from taskedge.errors import InputError
from taskedge.forms import form
from taskedge.forms.kernels import EntryIndex, entry_gradient
from taskedge.forms.low_rank import Factors
from taskedge.selection.support import LinearSupport


class SharedInput:
    """The columns of one input tensor that its readers need, gathered once for all of them.

    Query, key and value read the same tensor; each hands it in, the first gathers, the others get the same columns.
    A reader that is given another tensor than the others simply gathers for itself.
    """

    def __init__(self, columns: Tensor, readers: int, kind: Kind) -> None:
        self.columns = columns
        self._readers, self._kind = readers, kind
        self._served = 0
        self._version = -1
        self._input: weakref.ref[Tensor] | None = None
        self._gathered: Tensor | None = None

    def gather(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """What the layer reads -> its needed columns [tokens, m] in the dtype of its output, without gradient."""
        gathered = self._gathered if self._holds(x, dtype) else None
        if gathered is None:
            self.columns = self.columns.to(x.device)
            gathered = self._kind.gather(x.detach(), self.columns).to(dtype)
            self._input, self._gathered, self._version, self._served = weakref.ref(x), gathered, version(x), 0
        self._served += 1
        if self._served == self._readers:  # from here on only the backward pass keeps the columns alive
            self._forget()
        return gathered

    def _holds(self, x: Tensor, dtype: torch.dtype) -> bool:
        """Whether the columns at hand are those of ``x`` as it is now, and in that dtype (autocast changes it)."""
        if self._input is None or self._gathered is None:
            return False
        return self._input() is x and self._version == version(x) and self._gathered.dtype == dtype

    def cover(self, columns: Tensor) -> None:
        """From now on the needed columns are these, int64 [m], ascending; `Entries.place` tells its readers."""
        self.columns, self._served = columns, 0
        self._forget()

    def _forget(self) -> None:
        self._input = self._gathered = None

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedInput:
        return SharedInput(copy.deepcopy(self.columns, memo), self._readers, self._kind)

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedInput, (self.columns, self._readers, self._kind)


class Entries(nn.Module, abc.ABC):
    """The trained entries of one linear; what trains, and what offsets it amounts to, is up to the derived class.

    Attributes:
        base: [n] in the weight's dtype, what the base holds at the entries.
        step: float32 [n] or None, how far a unit of offset moves a weight; None means 1.
        rows, columns: int64 [n], sorted by row and then column.
    """

    base: Tensor
    step: Tensor | None
    rows: Tensor
    columns: Tensor

    def __init__(self, linear: Linear, support: LinearSupport, shared: SharedInput, step: Tensor | None) -> None:
        super().__init__()
        device = linear.weight.device
        rows, columns = support.rows.to(device), support.columns.to(device)
        self.kind, self._out = linear.kind, support.shape[0]
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        self.register_buffer("base", linear.read(rows, columns))
        self.register_buffer("step", None if step is None else step.to(device=device, dtype=torch.float32))
        self.input = shared
        self.place()
        self._written: Tensor | None = torch.zeros(len(support), device=device)  # the offsets that the weight holds now
        self._negative_zeros: bool | None = None  # whether the base holds -0.0; None: not asked yet

    def place(self) -> None:
        """Finds the entries among the columns that its input keeps; needed after either changed."""
        among = torch.searchsorted(self.input.columns.to(self.rows.device), self.columns)
        self._index = EntryIndex(self.rows, among, self._out)

    @abc.abstractmethod
    def trained(self) -> Tensor:
        """The offsets as they are now, float32 [n], through which gradients reach what trains; all 0 at the start."""

    @property
    def values(self) -> Tensor:
        """float32 [n]: the absolute values of the chosen weights, ``base + step·offset``."""
        moved = self.trained().detach()
        base, moved = self.base.to(moved.dtype), moved if self.step is None else self.step * moved
        if self._negative_zeros is None:
            self._negative_zeros = bool((base.signbit() & (base == 0)).any())
        # -0.0 + 0.0 would be 0.0; asked once, since each of these small operations costs 20 microseconds in a step
        return torch.where(moved == 0, base, base + moved) if self._negative_zeros else base + moved

    def index(self) -> EntryIndex:
        """Where the entries sit, on the device where they are now."""
        self._index = self._index.to(self.rows.device)
        return self._index

    def write_into(self, layer: nn.Module) -> None:
        """Brings the layer's weight up to date with the offsets; touches it only where they changed.

        Compared by content, so that it does not matter how an optimiser, a checkpoint or a broadcast changed them.
        """
        offsets = self.trained().detach()
        if self._written is not None and torch.equal(self._written, offsets):
            return
        place = self.kind.place(self.rows, self.columns)
        with torch.no_grad():
            if isinstance(layer, HeldLayer):
                layer.lay_over(place, self.values)
            else:
                weight = cast(Tensor, layer._parameters["weight"])
                weight.index_put_(place, self.values.to(weight.dtype))
        self._written = offsets.clone()

    def forget_written(self) -> None:
        """The stored weight may hold other values than the offsets say: it is written anew when it is next read."""
        self._written = self._negative_zeros = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Entries:
        """Moves between devices, but never changes a dtype: offsets stay fp32 under ``model.to(bfloat16)``."""

        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        if self._written is not None:
            self._written = None  # the weight may have been rounded: write it anew
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("rows", "columns"):
            stored = state_dict.get(prefix + name)
            if stored is not None and not torch.equal(stored.to(self.rows.device), getattr(self, name)):
                raise InputError(
                    f"the state at {prefix!r} was made with another support: install the support it was made with"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._written = self._negative_zeros = None


class FreeEntries(Entries):
    """Entries that move independently of one another.

    Attributes:
        offsets: float32 [n], the only trained tensor; 0 where nothing was learnt.
    """

    def __init__(self, linear: Linear, support: LinearSupport, shared: SharedInput, step: Tensor | None) -> None:
        super().__init__(linear, support, shared, step)
        self.offsets = nn.Parameter(torch.zeros(len(support), device=self.rows.device))

    def trained(self) -> Tensor:
        return self.offsets


MakeEntries = Callable[[Linear, LinearSupport, SharedInput, Tensor | None], Entries]


@form("sparse")
def free(rank: int, factors: Factors) -> MakeEntries:
    """Every entry moves by itself."""
    return FreeEntries


class _EntryGradient(torch.autograd.Function):
    """The identity on a layer's output, whose backward also gives the gradient of the layer's entries."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, output: Tensor, offsets: Tensor, step: Tensor | None, columns: Tensor, index: EntryIndex, kind: Kind
    ) -> Tensor:
        ctx.save_for_backward(columns)
        ctx.step, ctx.index, ctx.kind, ctx.dtype = step, index, kind, offsets.dtype
        return output.detach()  # the same memory; returned as it is it would be a view that no one may write to

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_output = grad_output.contiguous()  # once, for both this product and that of the input's gradient
        gradient = None
        if ctx.needs_input_grad[1]:
            (columns,) = ctx.saved_tensors
            gradient = entry_gradient(ctx.kind.tokens(grad_output), columns, ctx.index).to(ctx.dtype)
            gradient = gradient if ctx.step is None else ctx.step * gradient
        return grad_output, gradient, None, None, None, None


class SparseLayer(nn.Module):
    """What a linear becomes while some of its own weights train: the same object, with ``entries``.

    The class is swapped and the object kept, so hooks, references and names stay as they were.
    """

    entries: Entries
    keeps_forward = True  # what it computes is what the class below does

    @property
    def weight(self) -> Tensor:
        """The layer's own weight, up to date with the trained values."""
        self.update()
        return self.held.dense() if isinstance(self, HeldLayer) else cast(Tensor, self._parameters["weight"])

    def update(self) -> None:
        """Brings the weight up to date, without reading it."""
        self.entries.write_into(self)

    def forward(self, *given: Tensor, **named: Tensor) -> Tensor:
        output: Tensor = super().forward(*given, **named)
        if not torch.is_grad_enabled():
            return output
        entries = self.entries
        offsets = entries.trained()
        if not offsets.requires_grad:
            return output
        x = next(iter((*given, *named.values())))  # every class has its own name for it
        columns = entries.input.gather(x, output.dtype)
        return cast(
            Tensor,
            _EntryGradient.apply(  # type: ignore[no-untyped-call]
                output, offsets, entries.step, columns, entries.index(), entries.kind
            ),
        )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.update()
        super()._save_to_state_dict(destination, prefix, keep_vars)


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def check(linear: Linear, support: LinearSupport) -> None:
    """Raises InputError where the linear cannot train the entries of ``support``."""
    if isinstance(linear.module, SparseLayer):
        raise InputError(
            f"linear {linear.name!r} already trains entries: fuse the model before a new support is installed"
        )
    if linear.shape != support.shape:
        raise InputError(
            f"linear {linear.name!r} is {list(linear.shape)}, but the support was made for {list(support.shape)}"
        )


def from_base(
    linear: Linear,
    support: LinearSupport,
    shared: SharedInput,
    step: Tensor | None = None,
    make: MakeEntries = FreeEntries,
) -> SparseLayer:
    """Makes the linear train the entries of ``support``, in place. ``fuse`` is its mirror image."""
    check(linear, support)
    linear.module.requires_grad_(False)
    entries = make(linear, support, shared, step)
    base = type(linear.module)
    if base not in _classes:
        _classes[base] = type(f"Sparse{base.__name__}", (SparseLayer, base), {"__module__": __name__})
    linear.module.__class__ = _classes[base]
    linear.module.add_module("entries", entries)
    return cast(SparseLayer, linear.module)


def fuse(layer: SparseLayer) -> nn.Module:
    """Makes the layer plain again, holding the trained values."""
    layer.update()
    del layer.entries
    layer.__class__ = type(layer).__mro__[2]
    return layer


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """The layers of the model that train entries, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseLayer)}
