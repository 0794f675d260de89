"""The rule ``magnitude``."""

import torch
from torch import Tensor

from taskedge.selection.rules import rule
from taskedge.selection.statistics import LinearStatistics


@rule("magnitude")
def magnitude(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Weight magnitude alone, ``|W_ij|``: a control that looks at no data."""
    return weight.float().abs()
