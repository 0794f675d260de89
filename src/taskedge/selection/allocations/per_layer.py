"""The allocation ``per_layer``."""

from torch import Tensor

from taskedge.selection.allocations import ALLOCATIONS, Scores, Shapes, refuse_nan


@ALLOCATIONS.register("per_layer")
def per_layer(shapes: Shapes, scores: Scores, entries: int) -> dict[str, Tensor]:
    """The same share of every linear, met exactly by largest remainders; inside a linear the best entries anywhere."""
    chosen = {}
    for name, count in _quotas(shapes, entries).items():
        if count:
            top, flat = scores(name).flatten().topk(count)
            refuse_nan(name, top)
            chosen[name] = flat.sort().values.cpu()
    return chosen


def _quotas(shapes: Shapes, entries: int) -> dict[str, int]:
    """Whole numbers in proportion to the linears' sizes that sum to ``entries``."""
    sizes = {name: rows * columns for name, (rows, columns) in shapes.items()}
    total = sum(sizes.values())
    quotas = {name: entries * size // total for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: -(entries * sizes[name] % total))  # stable: ties in model order
    for name in by_remainder[: entries - sum(quotas.values())]:
        quotas[name] += 1
    return quotas
