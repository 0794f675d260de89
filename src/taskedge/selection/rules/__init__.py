"""Selection rules: each gives every weight of a linear a score for the task, one file and one registration each.

A rule is a function ``(weight, statistics, generator) -> scores``, registered with the statistics it needs::

    @rule("squared", needs=(INPUTS,))
    def squared(weight, statistics, generator):
        "Squared weight times input activation: large weights count for more."
        return weight.float().square() * statistics.input_norm
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from taskedge.registry import Registry
from taskedge.selection.allocations import Scores, Shapes
from taskedge.selection.spt import Chosen
from taskedge.selection.statistics import GRADIENTS, SQUARED_GRADIENTS, LinearStatistics

Score = Callable[[Tensor, LinearStatistics, torch.Generator], Tensor]
Choose = Callable[[Shapes, Scores, Mapping[str, Tensor], int, int], Chosen]
"""(shapes, scores of the linears, ``Σ_batches g²`` of biases and norms, parameters, rank) -> what is trained."""


@dataclass(frozen=True)
class Rule:
    """A score function: weight [out, in] (any float dtype), statistics, generator -> float32 [out, in]."""

    name: str
    score: Score
    needs: tuple[str, ...]
    chooses: Choose | None = None
    """Where a rule looks at biases and norms too and spends the budget in its own way: it takes no allocation then."""

    @property
    def of_gradients(self) -> bool:
        """Whether it looks at gradients of the loss."""
        return self.chooses is not None or not {GRADIENTS, SQUARED_GRADIENTS}.isdisjoint(self.needs)

    @property
    def summary(self) -> str:
        """The first line of the rule's docstring."""
        return (self.score.__doc__ or "").strip().partition("\n")[0]


RULES: Registry[Rule] = Registry("rule", __name__)


def rule(name: str, *, needs: tuple[str, ...] = (), chooses: Choose | None = None) -> Callable[[Score], Score]:
    """Registers a score function under ``name`` with the statistics that it needs."""

    def register(score: Score) -> Score:
        RULES.add(name, Rule(name, score, needs, chooses))
        return score

    return register
