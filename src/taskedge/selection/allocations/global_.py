"""The allocation ``global``."""

import torch
from torch import Tensor

from taskedge.selection.allocations import ALLOCATIONS, Scores, Shapes, best, refuse_nan


@ALLOCATIONS.register("global")
def global_(shapes: Shapes, scores: Scores, entries: int) -> dict[str, Tensor]:
    """The best entries of the whole model, wherever they are: the uneven control."""
    values, flats, owners = torch.empty(0), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    for place, (name, (rows, columns)) in enumerate(shapes.items()):
        top, flat = scores(name).flatten().topk(min(entries, rows * columns))
        refuse_nan(name, top)
        values = torch.cat([values, top.cpu()])
        flats = torch.cat([flats, flat.cpu()])
        owners = torch.cat([owners, torch.full((len(flat),), place)])
        keep = best(values, entries)  # what fell out here can never come back
        values, flats, owners = values[keep], flats[keep], owners[keep]
    chosen = {name: flats[owners == place].sort().values for place, name in enumerate(shapes)}
    return {name: flat for name, flat in chosen.items() if len(flat)}
