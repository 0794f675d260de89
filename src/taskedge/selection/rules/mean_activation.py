"""The rule ``mean_activation``."""

import torch
from torch import Tensor

from taskedge.selection.rules import rule
from taskedge.selection.statistics import ABSOLUTE_INPUTS, LinearStatistics


@rule("mean_activation", needs=(ABSOLUTE_INPUTS,))
def mean_activation(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Weight magnitude times mean input magnitude, ``|W_ij|·mean|x_j|``: rare large inputs count for less.

    Source: FPS (arXiv 2510.27359).
    """
    return weight.float().abs() * statistics.input_mean
