"""The loop of gated networks: weights, mixture and gates first, then weights and mixture with frozen gates.

The loss is ``Σ_t ω_t·L_t + λ·hinge``, with the hinge of :mod:`.feature_cost`. All tasks read the same batch. Source:
InterroGate (arXiv 2402.16848) as far as reviews name it; rates and shares of the steps are this project's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taskedge.errors import InputError, TrainingDiverged
from taskedge.training.many.feature_cost import FeatureCost
from taskedge.training.many.feature_gates import FeatureGates

GATE_SHARE = 0.7
"""Share of the steps in which gates train."""


@dataclass(frozen=True)
class FeaturesTrained:
    """The outcome of the loop.

    Attributes:
        steps: optimizer steps.
        cost: closed form of the frozen gates, in networks.
        closed: gates that were closed after their training, to meet the target.
        losses: of each task in the last step.
    """

    steps: int
    cost: float
    closed: int
    losses: tuple[float, ...]


def train_features(
    model: FeatureGates,
    batches: Iterable[tuple[Tensor, Sequence[Tensor]]],
    losses: Sequence[Callable[[Tensor, Tensor], Tensor]],
    *,
    steps: int,
    lr: float,
    target: float | None = None,
    gate_lr: float | None = None,
    flops_weight: float = 1.0,
    task_weights: Sequence[float] | None = None,
) -> FeaturesTrained:
    """Train all streams, heads, mixture and gates; the gates are frozen at the end.

    Args:
        model: its tasks may start from networks of their own (:meth:`.FeatureGates.start_from`).
        batches: inputs with the answers of each task, at least ``steps`` of them.
        losses: of each task: (outputs, answers) to a scalar.
        steps: optimizer steps.
        lr: rate of weights, heads and mixture.
        target: most that the networks may cost, in networks; None: no hinge.
        gate_lr: rate of the gates; by default ten times ``lr``.
        flops_weight: λ.
        task_weights: ω; by default 1 each.

    Raises:
        InputError: a target below one network, or too few batches.
        TrainingDiverged: a loss is not a finite number.
    """
    if target is not None and target < 1:
        raise InputError(f"{target} is less than one network, which every answer needs: give 1 or more")
    cost = FeatureCost.of_model(model)
    gates = model.alphas
    ids = {id(each) for each in gates}
    others = [each for each in model.parameters() if id(each) not in ids]
    groups: list[dict[str, Any]] = [
        {"params": others},
        {"params": gates, "lr": 10 * lr if gate_lr is None else gate_lr},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=0.0)
    weights = [1.0] * len(losses) if task_weights is None else list(task_weights)
    frozen_from = max(1, min(steps - 1, round(GATE_SHARE * steps)))
    closed, found, step = 0, [0.0] * len(losses), 0
    model.train()
    for step, (inputs, answers) in zip(range(1, steps + 1), batches, strict=False):
        if step == frozen_from + 1:
            closed = _freeze(model, cost, target)
        optimizer.zero_grad(set_to_none=True)
        each = [loss(out, answer) for loss, out, answer in zip(losses, model(inputs), answers, strict=True)]
        found = [float(loss.detach()) for loss in each]
        if not torch.tensor(found).isfinite().all():
            raise TrainingDiverged(f"the losses of the tasks are {found} in step {step}: give a smaller rate")
        total = torch.stack([weight * loss for weight, loss in zip(weights, each, strict=True)]).sum()
        if target is not None and step <= frozen_from:
            total = total + flops_weight * cost.hinge(gates, target)
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    if step < steps:
        raise InputError(f"{step} batches are fewer than the {steps} steps: give more")
    model.eval()
    return FeaturesTrained(steps, cost.products([gate.detach() > 0 for gate in gates]), closed, tuple(found))


@torch.no_grad()
def _freeze(model: FeatureGates, cost: FeatureCost, target: float | None) -> int:
    """Fix all gates; return how many the target closed."""
    closed = 0
    if target is not None:
        kept, closed = cost.closed_to([alpha.detach() for alpha in model.alphas], target)
        for alpha, gates in zip(model.alphas, kept, strict=True):
            alpha[~gates & (alpha > 0)] = -1.0
    model.freeze_gates()
    return closed
