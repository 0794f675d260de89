"""The allocation ``per_neuron``."""

import torch
from torch import Tensor

from taskedge.selection.allocations import ALLOCATIONS, Scores, Shapes, best, refuse_nan


@ALLOCATIONS.register("per_neuron")
def per_neuron(shapes: Shapes, scores: Scores, entries: int) -> dict[str, Tensor]:
    """Evenly: every neuron keeps its K best inputs; what is left goes to the neurons with the highest next score.

    K is the largest whole number that the budget allows; a row shorter than K is taken whole. Source: TaskEdge
    (arXiv 2504.03718); meeting a share that is not whole exactly is ours.
    """
    even = _whole_entries(shapes, entries)
    left = entries - sum(rows * min(even, columns) for rows, columns in shapes.values())

    chosen: dict[str, list[Tensor]] = {}
    next_scores, next_entries, owners = [], [], []
    for place, (name, (rows, columns)) in enumerate(shapes.items()):
        score = scores(name)
        width = score.shape[1]
        top, column = score.topk(min(even + 1, columns), dim=1)  # (rows, depth), best first
        del score  # before the next is made
        refuse_nan(name, top)
        flat = column + torch.arange(rows, device=column.device)[:, None] * width
        chosen[name] = [flat[:, :even].flatten().cpu()]
        if columns > even:
            next_scores.append(top[:, even].cpu())
            next_entries.append(flat[:, even].cpu())
            owners.append(torch.full((rows,), place))
    if left:
        winners = best(torch.cat(next_scores), left)
        winner, owner = torch.cat(next_entries)[winners], torch.cat(owners)[winners]
        for place, name in enumerate(shapes):
            chosen[name].append(winner[owner == place])
    return {name: torch.cat(parts).sort().values for name, parts in chosen.items()}


def _whole_entries(shapes: Shapes, entries: int) -> int:
    """The largest K with ``Σ rows·min(K, columns) ≤ entries``."""
    low, high = 0, max(columns for _, columns in shapes.values())
    while low < high:
        middle = (low + high + 1) // 2
        fits = sum(rows * min(middle, columns) for rows, columns in shapes.values()) <= entries
        low, high = (middle, high) if fits else (low, middle - 1)
    return low
