"""The allocation ``global_per_neuron``."""

from torch import Tensor

from taskedge.selection.allocations import ALLOCATIONS, Scores, Shapes
from taskedge.selection.allocations.global_ import global_
from taskedge.selection.allocations.per_neuron import per_neuron


@ALLOCATIONS.register("global_per_neuron")
def global_per_neuron(shapes: Shapes, scores: Scores, entries: int) -> dict[str, Tensor]:
    """As many entries of each linear as ``global`` would take, spread over its neurons as ``per_neuron`` does.

    Source: TR-PTS (arXiv 2507.22872): the global top share sets each layer's budget, then rows choose.
    """
    quotas = {name: len(flat) for name, flat in global_(shapes, scores, entries).items()}
    return {
        name: per_neuron({name: shapes[name]}, scores, quota)[name] for name, quota in quotas.items()
    }  # of each linear by itself, so that one row more or less is settled inside it
