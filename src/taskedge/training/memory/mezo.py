"""Zeroth order: two forward passes a step and no backward pass, with the memory of inference.

The trained parameters move along a random direction and back; how the loss differs gives the slope along it. Directions
come from a seed and are drawn again when needed, so none is stored. It takes many more steps than gradients do.

The head needs no such estimate: its gradient asks for nothing of the model behind it, so it comes from the same two
passes, exact and at next to no cost, and goes to AdamW.

Source: MeZO (arXiv 2305.17333, algorithm 1) for the estimate and the seeds, here on the entries only; the positions
that are kept and put back, bit for bit (few numbers train, so a copy is small), and the head's gradient are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.linears import head_parameters
from taskedge.training.seeds import derive
from taskedge.training.trainer_config import FitSettings

CAUTION = (
    "zeroth order (MeZO): two forward passes a step and no gradients but the head's: the memory of inference, but many "
    "more steps than gradients need, without dropout"
)


def exact_names(model: nn.Module, whole: Collection[str]) -> frozenset[str]:
    """Of what trains whole, what lies behind all entries, so that its exact gradient comes for nothing: the head."""
    return frozenset(whole) & frozenset(head_parameters(model))


def parted(model: nn.Module, whole: Collection[str]) -> list[dict[str, Any]]:
    """Groups for :class:`Mezo` of what requires gradients: what is probed, and the head."""
    names, groups = exact_names(model, whole), []
    for exact in (False, True):
        found = [p for name, p in model.named_parameters() if p.requires_grad and (name in names) == exact]
        groups += [{"params": found, "exact": exact}] * bool(found)
    return groups


class Mezo(torch.optim.Optimizer):
    """Descends along seeded directions: ``θ ← θ - lr·g·z``, ``g = (L(θ+εz) - L(θ-εz)) / 2ε``, z standard normal.

    :meth:`probe` once for each part of the step's batch, then :meth:`step`. Parameters that do not require gradients
    stay as they are.

    Args:
        params: parameters or groups of them, with rates and weight decay of their own. A group with ``"exact": True``
            is not probed but trained by AdamW on the mean gradient of the two passes: for what lies behind all that is
            probed, the head.
        lr: of the plain descent above; it wants other rates than Adam.
        perturbation: ε, how far parameters move to either side, in units of z; by default MeZO's. An entry's weight
            moves ``step`` times as far, as it does when it trains: with ``step="activation"`` outputs of neurons move
            equally far whichever inputs are chosen.
        weight_decay: decoupled, as AdamW's.
        seed: of the directions; with the number of steps done it gives that of the next.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        perturbation: float = FitSettings.perturbation,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "done": 0, "exact": False})
        own = ("params", "lr", "weight_decay")
        exact = [{key: group[key] for key in own} for group in self.param_groups if group["exact"]]
        self._adamw = torch.optim.AdamW(exact) if exact else None
        self.perturbation, self.seed = perturbation, seed
        self.slope = 0.0
        """Of the loss along the direction of this step, summed over what was probed."""

    @torch.no_grad()
    def probe(self, loss: Callable[[], Tensor]) -> Tensor:
        """The mean of the losses on either side; their slope is added to that of the step.

        ``loss`` runs twice, without gradient but for that of exact groups; the model should be in eval mode, since
        dropout would differ.
        """
        moving = self._moving()
        before = [parameter.clone() for parameter, _ in moving]
        found = []
        try:
            for parameter, _ in moving:
                parameter.requires_grad_(False)
            for side in (1, -1):
                for parameter, direction, _ in self._directions(moving):
                    parameter.add_(direction, alpha=side * self.perturbation)
                found.append(self._passed(loss))
                for (parameter, _), position in zip(moving, before, strict=True):
                    parameter.copy_(position)
        finally:
            for (parameter, _), position in zip(moving, before, strict=True):
                parameter.copy_(position)
                parameter.requires_grad_(True)
        self.slope += float(found[0].double() - found[1].double()) / (2 * self.perturbation)
        return (found[0] + found[1]) / 2

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Moves against the slope along the direction, and goes on to the next one."""
        for parameter, direction, group in self._directions(self._moving()):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(direction, alpha=-group["lr"] * self.slope)
        self.slope = 0.0
        self._step_exact()
        for group in self.param_groups:
            group["done"] += 1
        return None

    def _passed(self, loss: Callable[[], Tensor]) -> Tensor:
        """The loss of one side; half of its gradient is added to those of exact groups."""
        if self._adamw is None:
            return loss().detach()
        with torch.enable_grad():
            value = loss()
            (value / 2).backward()  # type: ignore[no-untyped-call]
        return value.detach()

    def _step_exact(self) -> None:
        if self._adamw is None:
            return
        self._adamw.state = self.state  # one place for both, which checkpoints hold
        exact = (group for group in self.param_groups if group["exact"])
        for inner, group in zip(self._adamw.param_groups, exact, strict=True):
            inner["lr"] = group["lr"]
        self._adamw.step()
        self._adamw.zero_grad()

    def _moving(self) -> list[tuple[nn.Parameter, dict[str, Any]]]:
        """What moves along directions, with its group."""
        groups = (group for group in self.param_groups if not group["exact"])
        return [(parameter, group) for group in groups for parameter in group["params"] if parameter.requires_grad]

    def _directions(
        self, moving: list[tuple[nn.Parameter, dict[str, Any]]]
    ) -> Iterator[tuple[nn.Parameter, Tensor, dict[str, Any]]]:
        """(parameter, direction, its group) of this step, the same whenever asked; one direction at a time."""
        draw = torch.Generator().manual_seed(derive(self.seed, self.param_groups[0]["done"]))
        for parameter, group in moving:
            direction = torch.randn(parameter.shape, generator=draw)
            yield parameter, direction.to(parameter.device, parameter.dtype), group
