"""The rule ``spt``."""

import torch
from torch import Tensor

from taskedge.selection.rules import rule
from taskedge.selection.spt import hybrid
from taskedge.selection.statistics import SQUARED_GRADIENTS, LinearStatistics


@rule("spt", needs=(SQUARED_GRADIENTS,), chooses=hybrid)
def spt(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Sensitivity, ``Σ_batches g²``, spent on entries, low-rank modules and whole biases and norms together.

    Source: SPT (arXiv 2303.08566); how the budget is met is ours (:mod:`taskedge.selection.spt`).
    """
    return statistics.squared_gradient
