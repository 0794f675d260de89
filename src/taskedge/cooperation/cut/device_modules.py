"""The device's half of its modules: from columns of an input to what is added to outputs, and back to gradients.

For entries of a weight, ``ΔW·x`` at their rows and columns: ``ΔW`` is what the delta file will have, the trained value
minus the base's. Its gradient is the kernel's of the sparse form. For a low-rank product, ``alpha/r·BA·x``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from taskedge.cooperation.cut.module_groups import Group, Module, Plan, groups_of
from taskedge.errors import InputError
from taskedge.forms.entries import Entries
from taskedge.forms.install import require_installation
from taskedge.forms.kernels import EntryIndex, entry_gradient
from taskedge.forms.low_rank import Product, low_rank_layers
from taskedge.forms.sparse import sparse_layers


class _EntryProduct(torch.autograd.Function):
    """``X ΔWᵀ`` for a ΔW [rows, columns] of which only entries are not 0."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, offsets: Tensor, step: Tensor | None, block: Tensor, index: EntryIndex
    ) -> Tensor:
        ctx.save_for_backward(x, block)
        ctx.step, ctx.index, ctx.dtype = step, index, offsets.dtype
        return x @ block.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, block = ctx.saved_tensors
        gradient = None
        if ctx.needs_input_grad[1]:
            gradient = entry_gradient(grad.contiguous(), x, ctx.index).to(ctx.dtype)
            if ctx.step is not None:
                gradient = ctx.step * gradient
        return grad @ block if ctx.needs_input_grad[0] else None, gradient, None, None, None


@dataclass
class _Active:
    """A group in a pass.

    Attributes:
        group: what crosses for it.
        parameters: that its modules train.
        forward: from the columns to the products, by module.
        graph: input and products of the present pass.
    """

    group: Group
    parameters: list[nn.Parameter]
    forward: list[Callable[[Tensor], Tensor]]
    graph: tuple[Tensor, Tensor] | None = None


class DeviceModules:
    """The modules of a model with an installed support.

    Args:
        model: has the linears under the names of the whole model; their weights are not here.
        shared_inputs: the first linear that reads the same input, by linear.
        cloud_name: of a linear, from its name in the model.

    Raises:
        InputError: the installed form cannot be cut.
    """

    def __init__(self, model: nn.Module, shared_inputs: Mapping[str, str], cloud_name: Callable[[str], str]) -> None:
        self._entries: dict[str, Entries] = {}
        self._products: dict[str, Product] = {}
        modules: dict[str, Module] = {}
        support = require_installation(model).support
        for own_name, layer in sparse_layers(model).items():
            name, entries = cloud_name(own_name), layer.entries
            self._entries[name] = entries
            modules[name] = Module(
                name,
                support.linears[own_name].shape,
                cloud_name(shared_inputs[own_name]),
                torch.unique(entries.rows),
                torch.unique(entries.columns),
            )
        for own_name, low_rank in low_rank_layers(model).items():
            if type(low_rank.product) is not Product:
                raise InputError(f"{own_name}: {type(low_rank.product).__name__} needs the base's own output: use lora")
            name, product = cloud_name(own_name), low_rank.product
            self._products[name] = product
            shape = (len(product.b), product.a.shape[1])
            modules[name] = Module(name, shape, cloud_name(shared_inputs[own_name]))
        order = [cloud_name(name) for name, _ in model.named_modules() if cloud_name(name) in modules]
        self.plan: Plan = {name: modules[name] for name in order}
        self._active: list[_Active] = []
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._remembered: dict[tuple[str, ...], list[_Active]] = {}

    def parameters_of(self, name: str) -> list[nn.Parameter]:
        """Return what a module trains."""
        owner: nn.Module = self._entries.get(name) or self._products[name]
        return [parameter for parameter in owner.parameters() if parameter.requires_grad]

    def parked(self, name: str) -> dict[str, Tensor]:
        """Return what the cloud needs to add for a module while it is idle; empty if it changes nothing."""
        if name in self._products:
            product = self._products[name]
            a, b = product.a.detach(), product.b.detach() * product.scale
            return {"a": a.contiguous(), "b": b.contiguous()} if bool(b.any()) else {}
        entries = self._entries[name]
        delta = _delta(entries)
        module = self.plan[name]
        assert module.rows is not None
        assert module.columns is not None
        block = _block(entries, delta, module.rows, module.columns)
        return {"block": block} if bool(block.any()) else {}

    def begin(self, active: Sequence[str]) -> list[Group]:
        """Start a pass with these modules and return their groups."""
        key = tuple(name for name in self.plan if name in set(active))
        if key not in self._remembered:
            if len(self._remembered) >= 8:
                self._remembered.clear()
            self._remembered[key] = [self._prepare(group) for group in groups_of(self.plan, key)]
        self._active = self._remembered[key]
        self._gradients = {}
        for active_group in self._active:
            active_group.graph = None
        return [active_group.group for active_group in self._active]

    def products(self, number: int, columns: Tensor, *, needs_input_gradient: bool, trains: bool) -> Tensor:
        """Return what the modules of a group add to their outputs, [tokens, rows of all]."""
        active = self._active[number]
        columns = columns.requires_grad_(trains and needs_input_gradient)
        with torch.set_grad_enabled(trains):
            products = torch.cat([forward(columns) for forward in active.forward], 1)
        active.graph = (columns, products) if trains else None
        return products.detach()

    def input_gradients(self, number: int, gradients: Tensor) -> Tensor | None:
        """Keep the gradients of a group's values, and return what it adds to the gradient of its input, if needed."""
        active = self._active[number]
        assert active.graph is not None, "a group has its columns before its gradients"
        columns, products = active.graph
        inputs = [columns] if columns.requires_grad else []
        found = torch.autograd.grad([products], [*inputs, *active.parameters], [gradients])
        self._gradients |= dict(zip(active.parameters, found[len(inputs) :], strict=True))
        active.graph = None
        return found[0] if inputs else None

    def finish(self) -> None:
        """Add the gradients of the pass to those of the parameters, as a backward pass does."""
        for parameter, gradient in self._gradients.items():
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self._gradients = {}

    def _prepare(self, group: Group) -> _Active:
        forward = [self._forward_of(module, group) for module in group.modules]
        parameters = [parameter for module in group.modules for parameter in self.parameters_of(module.name)]
        return _Active(group, parameters, forward)

    def _forward_of(self, module: Module, group: Group) -> Callable[[Tensor], Tensor]:
        if module.name in self._products:
            return self._products[module.name]
        entries, rows = self._entries[module.name], module.rows
        assert rows is not None
        assert group.columns is not None
        columns = group.columns
        index = EntryIndex(
            torch.searchsorted(rows, entries.rows), torch.searchsorted(columns, entries.columns), len(rows)
        )

        def forward(x: Tensor) -> Tensor:
            block = _block(entries, _delta(entries), rows, columns)
            product = _EntryProduct.apply(x, entries.current_offsets(), entries.step, block, index)  # type: ignore[no-untyped-call]
            return cast(Tensor, product)

        return forward


def _delta(entries: Entries) -> Tensor:
    """Return what the delta file will add to the base's values, float32 [n]."""
    return (entries.values - entries.base.to(torch.float32)).detach()


def _block(entries: Entries, delta: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return ΔW at some rows and columns, float32 [rows, columns]."""
    block = torch.zeros(len(rows), len(columns))
    block[torch.searchsorted(rows, entries.rows), torch.searchsorted(columns, entries.columns)] = delta
    return block
