"""The rule ``random``."""

import torch
from torch import Tensor

from taskedge.selection.rules import rule
from taskedge.selection.statistics import LinearStatistics


@rule("random")
def random(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Uniform random scores: the control that every other rule must beat."""
    return torch.rand(weight.shape, generator=generator).to(weight.device)
