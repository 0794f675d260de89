"""The rule ``gradient``."""

import torch
from torch import Tensor

from taskedge.selection.rules import rule
from taskedge.selection.statistics import GRADIENTS, LinearStatistics


@rule("gradient", needs=(GRADIENTS,))
def gradient(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Magnitude of the loss gradient, ``|∂L/∂W_ij|``, L summed over the calibration batches.

    Source: GPS (arXiv 2312.10136).
    """
    return statistics.gradient.abs_()  # ours to change
