"""The rule ``fisher``."""

import torch
from torch import Tensor

from taskedge.selection.rules import rule
from taskedge.selection.statistics import SQUARED_GRADIENTS, LinearStatistics


@rule("fisher", needs=(SQUARED_GRADIENTS,))
def fisher(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Fisher information, ``E[g²]``, g the gradient of one calibration batch's loss; here the sum, which ranks alike.

    Taken per batch and not per row: smaller batches come closer to the diagonal of the Fisher matrix. Source: TR-PTS
    (arXiv 2507.22872); its budget per layer is the allocation ``global_per_neuron``.
    """
    return statistics.squared_gradient
