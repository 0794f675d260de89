"""Sums over batches of the gradients of many weights, with one dense gradient in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from taskedge.backbone.experts import ExpertLinear
from taskedge.backbone.layers import Linear
from taskedge.errors import InputError
from taskedge.selection.disk_accumulator import DiskAccumulator

GRADIENTS = "gradients"
SQUARED_GRADIENTS = "squared gradients"
FIRST_GRADIENTS = "gradients of the first batch"
GRADIENT_STATISTICS = frozenset({GRADIENTS, SQUARED_GRADIENTS, FIRST_GRADIENTS})
"""Statistics that need backward passes and, on the disk, 4 bytes for each weight."""


class GradientSums:
    """Adds each weight's gradient, or its square, to a sum on the disk once autograd has finished it, and frees it.

    Args:
        linears: linears whose weights are watched, by name.
        vectors: further small parameters, whose squared gradients are summed in memory.
        needs: GRADIENTS for ``Σ_batches g``, SQUARED_GRADIENTS for ``Σ_batches g²``, FIRST_GRADIENTS for g of the first
            batch.

    Attributes:
        vectors: ``Σ_batches g²`` of the vectors by name, float32 on the CPU.

    Raises:
        InputError: a linear has a read-only weight (:mod:`taskedge.backbone.storage.frozen_layer`).
    """

    def __init__(self, linears: Mapping[str, Linear], vectors: Mapping[str, nn.Parameter], needs: Collection[str]):
        for name, linear in linears.items():
            if linear.is_read_only:
                raise InputError(
                    f"the weight of linear {name!r} is read-only (coded or mapped from a file), so it has no gradient: "
                    "choose a rule that looks at inputs only, leave regrow out, or load the base with "
                    "weight storage 'resident'"
                )
        self._linears, self._vectors = linears, vectors
        self._kinds = [kind for kind in (GRADIENTS, SQUARED_GRADIENTS, FIRST_GRADIENTS) if kind in needs]
        self._num_batches = 0
        self._sums = DiskAccumulator(
            {_key(kind, name): linears[name].shape for kind in self._kinds for name in linears}
        )
        self.vectors = {name: torch.zeros(vector.shape) for name, vector in vectors.items()}

    def start_batch(self) -> None:
        """Note that the gradients that follow are those of the next batch."""
        self._num_batches += 1

    @property
    def is_complete(self) -> bool:
        """Whether a further batch would change no sum."""
        return self._num_batches > 0 and self._kinds == [FIRST_GRADIENTS] and not self.vectors

    def reader(self, kind: str, name: str) -> Callable[[], Tensor] | None:
        """Return a function that reads a linear's sum, [out, in] on its device; None for a kind that is not summed."""
        if kind not in self._kinds:
            return None
        device = self._linears[name].weight.device
        return lambda: self._sums.read(_key(kind, name)).to(device)

    def close(self) -> None:
        """Remove the file."""
        self._sums.close()

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Add up backward passes through the model inside the block; restore its gradients and settings afterwards."""
        with ExitStack() as stack:
            stack.enter_context(_only_these_require_grad(model, self._parameters()))
            for view in self._expert_weights():
                stack.callback(view.requires_grad_, False)
                view.requires_grad_(True)
            for name, linear in self._linears.items():
                weight = linear.module.weight
                assert isinstance(weight, Tensor)
                stack.callback(_on_gradient(weight, partial(self._add, name)))
            for name, vector in self._vectors.items():
                stack.callback(_on_gradient(vector, partial(self._add_vector, name)))
            yield

    def _add(self, name: str, gradient: Tensor) -> None:
        gradient = self._linears[name].adapter.matrix(gradient)  # from the layout that the model stores
        for kind in self._kinds:
            if kind == FIRST_GRADIENTS and self._num_batches > 1:
                continue
            self._sums.add(_key(kind, name), gradient, squared=kind == SQUARED_GRADIENTS)

    def _add_vector(self, name: str, gradient: Tensor) -> None:
        self.vectors[name] += gradient.float().square().cpu()

    def _expert_weights(self) -> list[Tensor]:
        """Return the weights that are no parameters of the model but views of one."""
        modules = [linear.module for linear in self._linears.values()]
        return [module.stored_weight() for module in modules if isinstance(module, ExpertLinear)]

    def _parameters(self) -> set[int]:
        return {id(linear.module.weight) for linear in self._linears.values()} | set(map(id, self._vectors.values()))


def _key(kind: str, name: str) -> str:
    return f"{kind} of {name}"


def _on_gradient(parameter: Tensor, add: Callable[[Tensor], None]) -> Callable[[], None]:
    """Call ``add`` with each finished gradient of the parameter, and free it; return a function that ends this."""

    def take(finished: Tensor) -> None:
        gradient = finished.grad
        finished.grad = None
        assert gradient is not None
        add(gradient.detach())

    remove: Callable[[], None] = parameter.register_post_accumulate_grad_hook(take).remove  # type: ignore[no-untyped-call]
    return remove


@contextmanager
def _only_these_require_grad(model: nn.Module, wanted: set[int]) -> Iterator[None]:
    before = {parameter: (parameter.requires_grad, parameter.grad) for parameter in model.parameters()}
    for parameter in before:
        parameter.requires_grad_(id(parameter) in wanted)
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, (required, gradient) in before.items():
            parameter.requires_grad_(required)
            parameter.grad = gradient
