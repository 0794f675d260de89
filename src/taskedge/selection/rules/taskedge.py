"""The rule ``taskedge``."""

import torch
from torch import Tensor

from taskedge.selection.rules import rule
from taskedge.selection.statistics import INPUTS, LinearStatistics


@rule("taskedge", needs=(INPUTS,))
def taskedge(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Weight magnitude times input activation, ``|W_ij|·‖X_j‖₂``.

    Source: TaskEdge (arXiv 2504.03718); the l2 form is that of Wanda (arXiv 2306.11695, equation 1).
    """
    return weight.float().abs() * statistics.input_norm
