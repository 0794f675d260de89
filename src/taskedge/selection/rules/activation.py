"""The rule ``activation``."""

import torch
from torch import Tensor

from taskedge.selection.rules import rule
from taskedge.selection.statistics import INPUTS, LinearStatistics


@rule("activation", needs=(INPUTS,))
def activation(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Input activation alone, ``‖X_j‖₂``: all neurons of a linear choose the same inputs, so few columns are stored."""
    return statistics.input_norm.expand_as(weight)
