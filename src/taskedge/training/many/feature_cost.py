"""The cost of T gated networks, the rows that are needed, and the hinge on a target.

The unit is one network: with all gates closed the cost is 1, with all open it is T. A task's row counts where its gate
is open. A shared row counts where some task's gate is closed. Products of the gated linears count; heads do not.

Source: this project. InterroGate (arXiv 2402.16848) has a target for the mean gate, which its reviews criticize as
neither FLOPs nor parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskedge.training.many.feature_gates import FeatureGates
from taskedge.training.many.row_gates import value_with_gradient


@dataclass(frozen=True)
class FeatureCost:
    """Inputs and outputs of the gated linears, input side first.

    Attributes:
        inputs, outputs: width of each linear.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @classmethod
    def of_model(cls, model: FeatureGates) -> FeatureCost:
        """Return the widths of a model's gated linears."""
        shapes = [layer.weight.shape for layer in model.layers.values()]
        return cls(tuple(shape[2] for shape in shapes), tuple(shape[1] for shape in shapes))

    @property
    def of_one(self) -> int:
        """Products of one network for one row."""
        return sum(i * o for i, o in zip(self.inputs, self.outputs, strict=True))

    def products(self, gates: Sequence[Tensor]) -> float:
        """Return the cost of gates [tasks, out] by linear, as closed form, in networks."""
        total = sum(
            width * (int(open_.sum()) + int((~open_.all(0)).sum()))
            for width, open_ in zip(self.inputs, gates, strict=True)
        )
        return total / self.of_one

    def soft(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the cost if each gate were open with the probability of its sigmoid, independently."""
        parts = []
        for width, each in zip(self.inputs, logits, strict=True):
            likely = each.sigmoid()
            parts.append(width * (likely.sum() + (1 - likely.prod(0)).sum()))
        return torch.stack(parts).sum() / self.of_one

    def hinge(self, logits: Sequence[Tensor], target: float) -> Tensor:
        """Return how far the present cost exceeds the target, 0 at or below it, with the gradient of the soft cost."""
        above = self.products([each > 0 for each in logits]) - target
        value = torch.tensor(max(0.0, above), dtype=logits[0].dtype)
        soft = self.soft(logits)
        return value_with_gradient(value, soft if above > 0 else soft * 0)

    def closed_to(self, logits: Sequence[Tensor], target: float) -> tuple[list[Tensor], int]:
        """Close the gates with the smallest logits until the cost is at most the target, of 1 or more.

        Returns:
            The gates, bool [tasks, out] by linear, and how many were closed for this.
        """
        gates = [each > 0 for each in logits]
        if self.products(gates) <= target:
            return gates, 0
        values = torch.cat([each[open_] for each, open_ in zip(logits, gates, strict=True)]).sort().values
        few, many = 1, len(values)  # closing a gate never costs more, so bisect how many
        while few < many:
            middle = (few + many) // 2
            if self.products([each > values[middle - 1] for each in logits]) <= target:
                many = middle
            else:
                few = middle + 1
        kept = [open_ & (each > values[many - 1]) for each, open_ in zip(logits, gates, strict=True)]
        return kept, sum(int(a.sum()) - int(b.sum()) for a, b in zip(gates, kept, strict=True))


@dataclass(frozen=True)
class NeededRows:
    """The rows that the answers depend on.

    Attributes:
        own: bool [tasks, out] by linear.
        shared: bool [out] by linear.
        mixed: whether the shared stream is needed after a linear, by linear.
        read: whether the features of each task are needed after a linear, bool [tasks] by linear.
    """

    own: tuple[Tensor, ...]
    shared: tuple[Tensor, ...]
    mixed: tuple[bool, ...]
    read: tuple[Tensor, ...]

    def cost(self, cost: FeatureCost) -> float:
        """Return the cost of the needed rows, in networks."""
        total = sum(
            width * (int(own.sum()) + int(shared.sum()))
            for width, own, shared in zip(cost.inputs, self.own, self.shared, strict=True)
        )
        return total / cost.of_one


def needed_rows(gates: Sequence[Tensor], *, residual: bool) -> NeededRows:
    """Return the needed rows of frozen gates [tasks, out] by linear, from the last linear backward.

    Heads read all tasks' features of the last linear. An own row is needed where its gate is open and the task's
    features are read; a shared row where a task whose features are read has a closed gate. The features of a task
    before a linear are read by its own rows there; the shared ones by shared rows. The mixture reads every task.

    Args:
        gates: bool, input side first.
        residual: features skip linears, so that what a later linear needs every earlier one has to give. Without it
            the linears must be a chain.
    """
    tasks = len(gates[0])
    reads, mixes = torch.ones(tasks, dtype=torch.bool), False
    own: list[Tensor] = []
    shared: list[Tensor] = []
    mixed: list[bool] = []
    read: list[Tensor] = []
    for open_ in reversed(gates):
        needed = reads | mixes
        rows = open_ & needed[:, None]
        common = (~open_ & needed[:, None]).any(0)
        own.append(rows)
        shared.append(common)
        mixed.append(mixes)
        read.append(needed)
        earlier, uses_shared = rows.any(1), bool(common.any())
        reads, mixes = (needed | earlier, mixes or uses_shared) if residual else (earlier, uses_shared)
    return NeededRows(tuple(own[::-1]), tuple(shared[::-1]), tuple(mixed[::-1]), tuple(read[::-1]))
