"""The rule ``magnitude_bottom``."""

import torch
from torch import Tensor

from taskedge.selection.rules import rule
from taskedge.selection.statistics import LinearStatistics


@rule("magnitude_bottom")
def magnitude_bottom(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """The smallest weights first, ``-|W_ij|``: a control that looks at no data."""
    return -weight.float().abs()
