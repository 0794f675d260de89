"""From the answers of a round to the next values: weighted mean, clipping, and a step of the server optimizer.

Sources: FedAvg, arXiv 1602.05629; FedAvgM, arXiv 1909.06335; FedAdam, arXiv 2003.00295, with the bias correction of
Adam, which its algorithm omits. With one device the optimizers are SGD, Adam and AdamW, weight decay included.

The optimizers do not use ``torch.optim`` although their formulas are the same. Values and state are stored as float32
and computed in float64, so that a resumed run, and one with more or fewer devices, reproduces its bits. ``torch.optim``
over float64 copies evaluates the formulas with other roundings (``lerp``, fused multiply-add): up to 0.4 % of the
float32 moments of Adam differ in their last bit after one step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from taskedge.cooperation.coordinator.answer_sum import AnswerSum
from taskedge.errors import InputError


def weighted_mean(answers: Iterable[tuple[float, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """Return the weighted mean of each name over the answers that contain it, summed in the order of the answers.

    All devices train one support, so entry i of a tensor is the same weight on every device, and the mean of the
    entries is the entry of the mean. This is exact, unlike a mean of the factors of a low-rank product.

    Args:
        answers: (weight above 0, tensors by name) of each device.

    Returns:
        float64 tensors by name.
    """
    total = AnswerSum()
    for weight, tensors in answers:
        total.add(weight, tensors)
    return total.mean()


def clip_by_norm(gradients: dict[str, Tensor], max_norm: float) -> tuple[dict[str, Tensor], float]:
    """Return the gradients scaled to a common l2 norm of at most ``max_norm`` (0: no limit), and their norm before."""
    norm = float(torch.stack([tensor.double().square().sum() for tensor in gradients.values()]).sum().sqrt())
    if not max_norm or norm <= max_norm:
        return gradients, norm
    return {name: tensor * (max_norm / norm) for name, tensor in gradients.items()}, norm


class ServerOptimizer:
    """Plain SGD, and the base class of the other server optimizers.

    Values and state are float32, arithmetic is float64. With a learning rate of 1 and the gradient ``value - mean``, a
    value therefore becomes ``mean`` to the last bit.

    State is kept only for names that were trained. A name without a gradient in a round keeps its value and its state,
    as a parameter without a gradient does in torch: its block had no usable answer.

    Args:
        weight_decay: Decay of the values towards 0.
    """

    slots: tuple[str, ...] = ()
    """Names of the state tensors per trained name, each of the shape of its value."""
    decoupled = False
    """Whether weight decay acts on the value instead of the gradient."""

    def __init__(self, weight_decay: float = 0.0) -> None:
        self.weight_decay = weight_decay
        self._state: dict[str, dict[str, Tensor]] = {}
        self._steps: dict[str, int] = {}

    def step(
        self, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor], learning_rate: Callable[[str], float]
    ) -> dict[str, Tensor]:
        """Return new float32 values of every name in ``gradients``; ``learning_rate`` is called with each name."""
        changed = {}
        for name, gradient in gradients.items():
            state = self._state.setdefault(name, {slot: torch.zeros_like(values[name]) for slot in self.slots})
            self._steps[name] = self._steps.get(name, 0) + 1
            value, gradient, lr = values[name].double(), gradient.double(), learning_rate(name)
            if self.weight_decay and self.decoupled:
                value = value * (1 - lr * self.weight_decay)
            elif self.weight_decay:
                gradient = gradient + self.weight_decay * value
            new_value = value - lr * self._direction(gradient, state, self._steps[name])
            changed[name] = new_value.to(torch.float32)
        return changed

    def _direction(self, gradient: Tensor, state: dict[str, Tensor], step: int) -> Tensor:
        return gradient

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state as tensors named ``SLOT/NAME`` and ``steps/NAME``, for safetensors."""
        state = {f"{slot}/{name}": tensor for name, slots in self._state.items() for slot, tensor in slots.items()}
        return state | {f"steps/{name}": torch.tensor(count) for name, count in self._steps.items()}

    def load_state_dict(self, stored: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            InputError: The state was written by another optimizer.
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
                    f"the optimizer state of {name!r} has {sorted(state[name])}, not {sorted(self.slots)}: "
                    "it was written by another optimizer"
                )
        self._state, self._steps = state, steps


class FedAvgM(ServerOptimizer):
    """SGD with momentum: ``m ← βm + g``, ``x ← x - lr·m``."""

    slots = ("momentum",)

    def __init__(self, weight_decay: float = 0.0, momentum: float = 0.9) -> None:
        super().__init__(weight_decay)
        self.momentum = momentum

    def _direction(self, gradient: Tensor, state: dict[str, Tensor], step: int) -> Tensor:
        momentum = self.momentum * state["momentum"].double() + gradient
        state["momentum"] = momentum.to(torch.float32)
        return momentum


class FedAdam(ServerOptimizer):
    """Adam. The bias correction of a name counts the steps of that name."""

    slots = ("first", "second")

    def __init__(self, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        super().__init__(weight_decay)
        self.betas, self.eps = betas, eps

    def _direction(self, gradient: Tensor, state: dict[str, Tensor], step: int) -> Tensor:
        beta1, beta2 = self.betas
        first = beta1 * state["first"].double() + (1 - beta1) * gradient
        second = beta2 * state["second"].double() + (1 - beta2) * gradient.square()
        state["first"], state["second"] = first.to(torch.float32), second.to(torch.float32)
        return first / (1 - beta1**step) / ((second / (1 - beta2**step)).sqrt() + self.eps)


class UncorrectedFedAdam(ServerOptimizer):
    """Adam without bias correction, with the constants of its authors: ``x ← x - lr·m / (√v + τ)``.

    Source: arXiv 2003.00295, algorithm 2, with β 0.9 and 0.99 and τ = 1e-3. The first steps are small, since both
    averages start at 0.
    """

    slots = ("first", "second")

    def __init__(self, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.99), tau: float = 1e-3) -> None:
        super().__init__(weight_decay)
        self.betas, self.tau = betas, tau

    def _direction(self, gradient: Tensor, state: dict[str, Tensor], step: int) -> Tensor:
        beta1, beta2 = self.betas
        first = beta1 * state["first"].double() + (1 - beta1) * gradient
        second = beta2 * state["second"].double() + (1 - beta2) * gradient.square()
        state["first"], state["second"] = first.to(torch.float32), second.to(torch.float32)
        return first / (second.sqrt() + self.tau)


class FedAdamW(FedAdam):
    """Adam with decoupled weight decay."""

    decoupled = True


SERVER_OPTIMIZERS: dict[str, type[ServerOptimizer]] = {
    "sgd": ServerOptimizer,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedadam-uncorrected": UncorrectedFedAdam,
    "fedadamw": FedAdamW,
}
