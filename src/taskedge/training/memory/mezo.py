"""Zeroth-order training (MeZO): two forward passes a step and no backward pass, with the memory of inference.

The trained parameters move along a random direction and back. The difference of the losses gives the slope along the
direction. A direction is drawn from a seed and drawn again when needed, so none is stored. Training takes many more
steps than with gradients.

The head needs no estimate: no trained parameter lies downstream of it, so its exact gradient comes from the same two
passes at next to no cost. AdamW trains it.

Source: MeZO (arXiv 2305.17333, algorithm 1) for the estimate and the seeds. This project: directions over sparse
entries only; positions that are copied and restored bit for bit, since few parameters train; the gradient of the head.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.candidates import head_parameters
from taskedge.training.data_order import derive_seed
from taskedge.training.trainer_config import DEFAULTS

MEZO_WARNING = (
    "zeroth order (MeZO): two forward passes a step and gradients for the head only: the memory of inference, many "
    "more steps than with gradients, no dropout"
)


def downstream_names(model: nn.Module, names: Collection[str]) -> frozenset[str]:
    """Return the fully trained parameters among ``names`` that lie downstream of every sparse entry: the task head.

    Their exact gradient costs no extra pass.
    """
    return frozenset(names) & frozenset(head_parameters(model))


def parameter_groups(model: nn.Module, names: Collection[str]) -> list[dict[str, Any]]:
    """Return the trainable parameters as groups for :class:`Mezo`: the probed ones, and the head.

    Args:
        model: the installed model.
        names: its fully trained parameters.
    """
    exact_names = downstream_names(model, names)
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    probed = {"params": [p for name, p in trainable if name not in exact_names], "exact": False}
    exact = {"params": [p for name, p in trainable if name in exact_names], "exact": True}
    return [group for group in (probed, exact) if group["params"]]


class Mezo(torch.optim.Optimizer):
    """Descends along seeded directions: ``θ ← θ - lr·g·z``, ``g = (L(θ+εz) - L(θ-εz)) / 2ε``, z standard normal.

    Call :meth:`probe` once for each part of the step's batch, then :meth:`step`. Parameters that do not require
    gradients stay unchanged.

    Args:
        params: parameters or groups of them, with their own rates and weight decay. A group with ``"exact": True`` is
            not probed: AdamW trains it on the mean gradient of the two passes. This is for parameters downstream of
            everything that is probed, such as the head.
        lr: learning rate of the descent above. It needs other values than Adam.
        perturbation: ε, in units of z; by default MeZO's. The weight of an entry moves ``step`` times as far, as in
            training: with ``step="activation"`` neuron outputs move equally far for any choice of inputs.
        weight_decay: decoupled weight decay, as in AdamW.
        seed: seed of the directions; the seed of a step follows from it and the number of steps done.

    Attributes:
        slope: slope of the loss along the direction of this step, summed over the probes.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        perturbation: float = DEFAULTS.perturbation,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "done": 0, "exact": False})
        keys = ("params", "lr", "weight_decay")
        exact = [{key: group[key] for key in keys} for group in self.param_groups if group["exact"]]
        self._adamw = torch.optim.AdamW(exact) if exact else None
        self.perturbation, self.seed = perturbation, seed
        self.slope = 0.0

    @torch.no_grad()
    def probe(self, loss: Callable[[], Tensor]) -> Tensor:
        """Return the mean loss of both sides, and add their slope to the slope of the step.

        Args:
            loss: computes the loss. It runs twice, without gradients except for exact groups. The model should be in
                evaluation mode, because dropout would differ between the two runs.
        """
        moving = self._moving()
        before = [parameter.clone() for parameter, _ in moving]
        losses = []
        try:
            for parameter, _ in moving:
                parameter.requires_grad_(False)
            for side in (1, -1):
                for parameter, direction, _ in self._directions(moving):
                    parameter.add_(direction, alpha=side * self.perturbation)
                losses.append(self._loss_of_side(loss))
                _copy_back(moving, before)
        finally:
            _copy_back(moving, before)
            for parameter, _ in moving:
                parameter.requires_grad_(True)
        self.slope += float(losses[0].double() - losses[1].double()) / (2 * self.perturbation)
        return (losses[0] + losses[1]) / 2

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move against the slope along the direction, and advance to the next direction."""
        for parameter, direction, group in self._directions(self._moving()):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(direction, alpha=-group["lr"] * self.slope)
        self.slope = 0.0
        self._step_exact()
        for group in self.param_groups:
            group["done"] += 1
        return None

    def _loss_of_side(self, loss: Callable[[], Tensor]) -> Tensor:
        """Return the loss of one side, and add half of its gradient to the gradients of exact groups."""
        if self._adamw is None:
            return loss().detach()
        with torch.enable_grad():
            value = loss()
            (value / 2).backward()  # type: ignore[no-untyped-call]
        return value.detach()

    def _step_exact(self) -> None:
        if self._adamw is None:
            return
        self._adamw.state = self.state  # shared, so that checkpoints hold the state of both
        exact = (group for group in self.param_groups if group["exact"])
        for inner, group in zip(self._adamw.param_groups, exact, strict=True):
            inner["lr"] = group["lr"]
        self._adamw.step()
        self._adamw.zero_grad()

    def _moving(self) -> list[tuple[nn.Parameter, dict[str, Any]]]:
        """Return the parameters that move along directions, each with its group."""
        groups = (group for group in self.param_groups if not group["exact"])
        return [(parameter, group) for group in groups for parameter in group["params"] if parameter.requires_grad]

    def _directions(
        self, moving: list[tuple[nn.Parameter, dict[str, Any]]]
    ) -> Iterator[tuple[nn.Parameter, Tensor, dict[str, Any]]]:
        """Yield (parameter, direction, group) of this step, always the same ones; one direction is alive at a time."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.param_groups[0]["done"]))
        for parameter, group in moving:
            direction = torch.randn(parameter.shape, generator=generator)
            yield parameter, direction.to(parameter.device, parameter.dtype), group


def _copy_back(moving: Iterable[tuple[nn.Parameter, dict[str, Any]]], before: Iterable[Tensor]) -> None:
    for (parameter, _), position in zip(moving, before, strict=True):
        parameter.copy_(position)
