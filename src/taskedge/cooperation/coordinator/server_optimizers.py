"""The server's optimisers: a gradient, or a mean change turned into one, becomes the next version's values.

State is kept for trained values only, per name, and only where the optimiser has one. A name without a gradient in a
round keeps value and state, as a parameter without a gradient does in torch: its block had no usable answer.

Sources: FedAvgM, arXiv 1909.06335; FedAdam, arXiv 2003.00295, with the bias correction of Adam (which its algorithm
leaves out). On one device they are ``torch.optim``'s SGD, Adam and AdamW, weight decay included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from taskedge.errors import InputError


class ServerOptimiser:
    """Plain SGD, and the base of the others. Values and state are float32, arithmetic is float64.

    So with a learning rate of 1 a value becomes the mean that its gradient was made of, to the last bit.
    """

    slots: tuple[str, ...] = ()
    """Tensors of state per name, each like its value."""
    decoupled = False
    """Whether weight decay acts on the value itself instead of through the gradient."""

    def __init__(self, weight_decay: float = 0.0) -> None:
        self.weight_decay = weight_decay
        self._state: dict[str, dict[str, Tensor]] = {}
        self._steps: dict[str, int] = {}

    def step(
        self, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor], rate: Callable[[str], float]
    ) -> dict[str, Tensor]:
        """New values of every name in ``gradients``; ``rate`` gives each name's learning rate."""
        changed = {}
        for name, gradient in gradients.items():
            state = self._state.setdefault(name, {slot: torch.zeros_like(values[name]) for slot in self.slots})
            self._steps[name] = self._steps.get(name, 0) + 1
            value, gradient, decay = values[name].double(), gradient.double(), self.weight_decay
            if decay and self.decoupled:
                value = value * (1 - rate(name) * decay)
            elif decay:
                gradient = gradient + decay * value
            moved = value - rate(name) * self._direction(gradient, state, self._steps[name])
            changed[name] = moved.to(torch.float32)
        return changed

    def _direction(self, gradient: Tensor, state: dict[str, Tensor], step: int) -> Tensor:
        return gradient

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by ``SLOT/NAME`` and ``steps/NAME``, for safetensors."""
        state = {f"{slot}/{name}": tensor for name, kept in self._state.items() for slot, tensor in kept.items()}
        return state | {f"steps/{name}": torch.tensor(count) for name, count in self._steps.items()}

    def load_state_dict(self, stored: Mapping[str, Tensor]) -> None:
        """Takes up what :meth:`state_dict` gave.

        Raises:
            InputError: it is another optimiser's.
        """
        state: dict[str, dict[str, Tensor]] = {}
        steps: dict[str, int] = {}
        for key, tensor in stored.items():
            slot, _, name = key.partition("/")
            if slot == "steps":
                steps[name] = int(tensor)
            else:
                state.setdefault(name, {})[slot] = tensor.clone()
        for name in steps:
            if set(state.setdefault(name, {})) != set(self.slots):
                raise InputError(
                    f"the optimiser's state of {name!r} holds {sorted(state[name])}, not {sorted(self.slots)}: "
                    "it was written by another optimiser"
                )
        self._state, self._steps = state, steps


class FedAvgM(ServerOptimiser):
    """SGD with momentum: ``m ← βm + g``, ``x ← x - lr·m``."""

    slots = ("momentum",)

    def __init__(self, weight_decay: float = 0.0, momentum: float = 0.9) -> None:
        super().__init__(weight_decay)
        self.momentum = momentum

    def _direction(self, gradient: Tensor, state: dict[str, Tensor], step: int) -> Tensor:
        momentum = self.momentum * state["momentum"].double() + gradient
        state["momentum"] = momentum.to(torch.float32)
        return momentum


class FedAdam(ServerOptimiser):
    """Adam: first and second moments with bias correction, counted per name in the steps that it took."""

    slots = ("first", "second")

    def __init__(self, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        super().__init__(weight_decay)
        self.betas, self.eps = betas, eps

    def _direction(self, gradient: Tensor, state: dict[str, Tensor], step: int) -> Tensor:
        one, two = self.betas
        first = one * state["first"].double() + (1 - one) * gradient
        second = two * state["second"].double() + (1 - two) * gradient.square()
        state["first"], state["second"] = first.to(torch.float32), second.to(torch.float32)
        return first / (1 - one**step) / ((second / (1 - two**step)).sqrt() + self.eps)


class FedAdamW(FedAdam):
    """Adam with decoupled weight decay."""

    decoupled = True


OPTIMISERS: dict[str, type[ServerOptimiser]] = {
    "sgd": ServerOptimiser,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedadamw": FedAdamW,
}
