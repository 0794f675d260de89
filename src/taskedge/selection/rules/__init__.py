"""Selection rules: each gives every weight of a linear a score for the task, one file and one registration each.

A rule is a function ``(weight, statistics, generator) -> scores``, registered with the statistics it needs::

    @rule("activation", needs=(INPUTS,))
    def activation(weight, statistics, generator):
        "Input activation alone."
        return statistics.input_norm.expand_as(weight)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from taskedge.registry import Registry
from taskedge.selection.statistics import LinearStatistics

Score = Callable[[Tensor, LinearStatistics, torch.Generator], Tensor]


@dataclass(frozen=True)
class Rule:
    """A score function: weight [out, in] (any float dtype), statistics, generator -> float32 [out, in]."""

    name: str
    score: Score
    needs: tuple[str, ...]

    @property
    def summary(self) -> str:
        """The first line of the rule's docstring."""
        return (self.score.__doc__ or "").strip().partition("\n")[0]


RULES: Registry[Rule] = Registry("rule", __name__)


def rule(name: str, *, needs: tuple[str, ...] = ()) -> Callable[[Score], Score]:
    """Registers a score function under ``name`` with the statistics that it needs."""

    def register(score: Score) -> Score:
        RULES.add(name, Rule(name, score, needs))
        return score

    return register
