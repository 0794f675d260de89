"""The cost of answering all tasks in one pass: a shared trunk of blocks, and a stream for each task that left it.

A task leaves the trunk at the first block in which it has rows of its own: from there on its activations differ. A
block is computed once for all tasks that have not left, and once for each that has. The unit is one pass of one task,
so the cost is between 1 (all tasks share all blocks) and the number of tasks. Products of the blocks' linears are
counted; attention's own products, norms and heads are not.

Source: this project. InterroGate's target (arXiv 2402.16848) is a share of gates, which reviews criticize as neither
FLOPs nor parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskedge.backbone.blocks import blocks
from taskedge.backbone.layers import linears
from taskedge.errors import InputError
from taskedge.training.many.row_gates import value_with_gradient


@dataclass(frozen=True)
class TrunkCost:
    """Costs of the blocks of a model, input side first.

    Attributes:
        names: of the blocks' modules.
        products: multiplications of one token in the linears of each block.
    """

    names: tuple[str, ...]
    products: tuple[int, ...]

    @classmethod
    def of_model(cls, model: nn.Module) -> TrunkCost:
        """Return the costs of a model's blocks.

        Raises:
            InputError: the model has no repeated blocks, so no task can leave a trunk.
        """
        names = [block.name for block in blocks(model)]
        if not names:
            raise InputError(f"{type(model).__name__} has no repeated blocks, which tasks could share")
        layers = linears(model)
        products = []
        for name in names:
            shapes = [layer.shape for key, layer in layers.items() if key.startswith(f"{name}.")]
            products.append(sum(out * inputs for out, inputs in shapes))
        return cls(tuple(names), tuple(products))

    def block_of(self, linear: str) -> int:
        """Return the index of the block that a linear belongs to.

        Raises:
            InputError: it is in none.
        """
        for index, name in enumerate(self.names):
            if linear.startswith(f"{name}."):
                return index
        raise InputError(f"linear {linear!r} is in none of the blocks that tasks can share: choose linears in blocks")

    def departures(self, gates: Tensor) -> list[int]:
        """Return the block at which each task leaves the trunk, the number of blocks if it never does.

        Args:
            gates: bool [tasks, blocks], whether a task has rows of its own in a block.
        """
        return [int(own.nonzero()[0]) if bool(own.any()) else len(self.names) for own in gates]

    def departures_of_names(self, owned: Sequence[Iterable[str]]) -> list[int]:
        """Return the same for tasks that have rows of their own in these linears."""
        last = len(self.names)
        return [min((self.block_of(name) for name in names), default=last) for names in owned]

    def of_departures(self, departures: Sequence[int]) -> float:
        """Return the cost of one pass for all tasks, in passes of one task."""
        total = sum(sum(self.products[at:]) for at in departures)
        total += sum(cost for index, cost in enumerate(self.products) if max(departures) > index)
        return total / sum(self.products)

    def soft(self, logits: Tensor) -> Tensor:
        """Return the cost if each gate were open with the probability that its sigmoid says, independently.

        Args:
            logits: float [tasks, blocks].
        """
        stays = (1 - logits.sigmoid()).cumprod(1)  # the task is still in the trunk after its gate of the block
        products = torch.tensor(self.products, dtype=logits.dtype)
        in_trunk = 1 - (1 - stays).prod(0)
        return (products * (in_trunk + (1 - stays).sum(0))).sum() / products.sum()

    def hinge(self, logits: Tensor, target: float) -> Tensor:
        """Return how far the present cost exceeds the target, 0 at or below it, with the gradient of the soft cost."""
        cost = self.of_departures(self.departures(logits > 0))
        value = torch.tensor(max(0.0, cost - target), dtype=logits.dtype)
        return value_with_gradient(value, self.soft(logits) if cost > target else logits.sum() * 0)

    def closed_to(self, logits: Tensor, target: float) -> tuple[Tensor, int]:
        """Close gates until the cost is at most the target.

        Of the gates at which tasks leave the trunk, the one with the smallest logit closes first.

        Returns:
            The gates, bool [tasks, blocks], and how many were closed for this.
        """
        gates = logits > 0
        closed = 0
        while self.of_departures(departures := self.departures(gates)) > target and bool(gates.any()):
            open_tasks = [task for task, at in enumerate(departures) if at < len(self.names)]
            task = min(open_tasks, key=lambda each: float(logits[each, departures[each]]))
            gates[task, departures[task]] = False
            closed += 1
        return gates, closed
