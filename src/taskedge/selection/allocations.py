"""Allocations: functions that spread a number of entries over linears and their neurons, given scores.

An allocation is a function ``(shapes, scores, num_entries) -> {name: flat indices}``. It reads the scores of one linear
at a time and keeps only entries that can still be chosen, so it never holds a second copy of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from taskedge.errors import BudgetError, InputError
from taskedge.registry import Registry
from taskedge.selection.patterns import Pattern, read_pattern

Shapes = Mapping[str, tuple[int, int]]
"""(rows, columns that may be chosen in a row) by linear; of linears with chosen rows only, the number of these."""
Scores = Callable[[str], Tensor]
"""Scores of one linear, float32 [out, in], equal at every call; columns that may not be chosen are -inf."""
Allocation = Callable[[Shapes, Scores, int], dict[str, Tensor]]
"""Returns ``row * in + column`` by linear, int64 [n], ascending, on the CPU; linears without entries may be absent."""

DEFAULT_ALLOCATION = "per_neuron"
BLOCK = "block"

ALLOCATIONS: Registry[Allocation] = Registry("allocation", __name__)


def allocate(allocation: str, shapes: Shapes, scores: Scores, num_entries: int) -> dict[str, Tensor]:
    """Choose exactly ``num_entries`` entries by the allocation of a name.

    Raises:
        BudgetError: ``num_entries`` is below 1 or above what the linears can carry.
        InputError: a score is not a number.
    """
    capacity = sum(rows * columns for rows, columns in shapes.values())
    if num_entries < 1:
        raise BudgetError(
            f"a budget of {num_entries} entries trains nothing: give a larger share, or 1 entry per neuron"
        )
    if num_entries > capacity:
        raise BudgetError(
            f"a budget of {num_entries:,} entries is more than the {capacity:,} that {len(shapes)} linears can carry: "
            "lower the budget, or let more linears, rows or columns take part"
        )
    return ALLOCATIONS[allocation](shapes, scores, num_entries)


def top_indices(values: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` largest of ``values`` [n], best first, ties to the lower index."""
    return torch.sort(values, descending=True, stable=True).indices[:count]


def best_of_rows(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` largest of the last dimension and their indices, best first, ties to the lower index.

    ``topk`` alone breaks ties in an order of its own. Only rows with ties are sorted.
    """
    values, indices = scores.topk(min(count + 1, scores.shape[-1]), dim=-1)
    tied = (values[..., 1:] == values[..., :-1]).any(-1)
    if tied.any():
        ordered = torch.sort(scores[tied], dim=-1, descending=True, stable=True)
        values[tied], indices[tied] = (part[..., : values.shape[-1]] for part in ordered)
    return values[..., :count], indices[..., :count]


def best_of_all(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` largest of ``scores`` [n] and their indices, by index; ties go to the lower index."""
    values, indices = scores.topk(min(count + 1, len(scores)))
    indices = indices[:count]
    if count < len(values) and values[count] == values[count - 1]:  # which of the equal ones are taken is not said
        cut = values[count]
        above, level = (~(scores <= cut)).nonzero().flatten(), (scores == cut).nonzero().flatten()  # with NaN
        indices = torch.cat([above, level[: count - len(above)]])
    indices = indices.sort().values
    return scores[indices], indices


def row_sums(scores: Tensor) -> Tensor:
    """Return float64 [rows], the sum of each row's scores; entries that may not be chosen (-inf) add nothing.

    Entries that a rule puts last, at the lowest float32, count as the lowest score above it: added as they are, they
    would hide the differences of all others.
    """
    last = torch.finfo(torch.float32).min
    ranked = scores > last
    lowest = scores[ranked].min() if bool(ranked.any()) else scores.new_zeros(())
    known = torch.where(scores == last, lowest, torch.where(scores == -torch.inf, 0.0, scores))
    return known.double().sum(1)


def refuse_nan(name: str, top_scores: Tensor) -> None:
    """Raise InputError if a chosen score is NaN; NaN sorts above every number, so it is always among the chosen."""
    if top_scores.isnan().any():
        raise InputError(f"the scores of linear {name!r} are not numbers: does the model hold NaN weights?")


@ALLOCATIONS.register("per_neuron")
def per_neuron(shapes: Shapes, scores: Scores, num_entries: int) -> dict[str, Tensor]:
    """Evenly: every neuron gets its K best inputs, and the rest goes to the neurons with the highest next score.

    K is the largest whole number within the budget; a row shorter than K is chosen completely. Source: TaskEdge (arXiv
    2504.03718). How the rest is spent, so that a budget is met exactly, is this project's.
    """
    per_row = _entries_per_row(shapes, num_entries)
    num_left = num_entries - sum(rows * min(per_row, columns) for rows, columns in shapes.values())

    chosen: dict[str, list[Tensor]] = {}
    next_scores, next_entries, owners = [], [], []
    for index, (name, (rows, columns)) in enumerate(shapes.items()):
        score = scores(name)
        width = score.shape[1]
        top, column = best_of_rows(score, min(per_row + 1, columns))  # [rows, depth], best first
        del score  # before the next is computed
        refuse_nan(name, top)
        flat = column + torch.arange(rows, device=column.device)[:, None] * width
        chosen[name] = [flat[:, :per_row].flatten().cpu()]
        if columns > per_row:
            next_scores.append(top[:, per_row].cpu())
            next_entries.append(flat[:, per_row].cpu())
            owners.append(torch.full((rows,), index))
    if num_left:
        winners = top_indices(torch.cat(next_scores), num_left)
        winner, owner = torch.cat(next_entries)[winners], torch.cat(owners)[winners]
        for index, name in enumerate(shapes):
            chosen[name].append(winner[owner == index])
    return {name: torch.cat(parts).sort().values for name, parts in chosen.items()}


def _entries_per_row(shapes: Shapes, num_entries: int) -> int:
    """Return the largest K with ``Σ rows·min(K, columns) ≤ num_entries``."""
    low, high = 0, max(columns for _, columns in shapes.values())
    while low < high:
        middle = (low + high + 1) // 2
        if sum(rows * min(middle, columns) for rows, columns in shapes.values()) <= num_entries:
            low = middle
        else:
            high = middle - 1
    return low


@ALLOCATIONS.register("per_layer")
def per_layer(shapes: Shapes, scores: Scores, num_entries: int) -> dict[str, Tensor]:
    """An equal share of every linear, met exactly by largest remainders; within a linear, the best entries anywhere."""
    chosen = {}
    for name, count in _proportional_counts(shapes, num_entries).items():
        if count:
            top, flat = best_of_all(scores(name).flatten(), count)
            refuse_nan(name, top)
            chosen[name] = flat.sort().values.cpu()
    return chosen


def _proportional_counts(shapes: Shapes, num_entries: int) -> dict[str, int]:
    """Return whole numbers that sum to ``num_entries``, in proportion to the sizes of the linears."""
    sizes = {name: rows * columns for name, (rows, columns) in shapes.items()}
    total = sum(sizes.values())
    counts = {name: num_entries * size // total for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: -(num_entries * sizes[name] % total))  # stable: ties in model order
    for name in by_remainder[: num_entries - sum(counts.values())]:
        counts[name] += 1
    return counts


@ALLOCATIONS.register("global")
def global_(shapes: Shapes, scores: Scores, num_entries: int) -> dict[str, Tensor]:
    """The best entries of the model, in any linear: the uneven control."""
    values, flats, owners = torch.empty(0), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    for index, (name, (rows, columns)) in enumerate(shapes.items()):
        top, flat = best_of_all(scores(name).flatten(), min(num_entries, rows * columns))
        refuse_nan(name, top)
        values = torch.cat([values, top.cpu()])
        flats = torch.cat([flats, flat.cpu()])
        owners = torch.cat([owners, torch.full((len(flat),), index)])
        keep = top_indices(values, num_entries)  # an entry dropped here can never be chosen
        values, flats, owners = values[keep], flats[keep], owners[keep]
    chosen = {name: flats[owners == index].sort().values for index, name in enumerate(shapes)}
    return {name: flat for name, flat in chosen.items() if len(flat)}


@ALLOCATIONS.register("global_per_neuron")
def global_per_neuron(shapes: Shapes, scores: Scores, num_entries: int) -> dict[str, Tensor]:
    """As many entries of each linear as ``global`` chooses, spread over its neurons as ``per_neuron`` does.

    Source: TR-PTS (arXiv 2507.22872): the global top share sets each layer's budget, then rows choose.
    """
    counts = {name: len(flat) for name, flat in global_(shapes, scores, num_entries).items()}
    # one linear at a time, so that entries beyond K per neuron stay in their linear
    return {name: per_neuron({name: shapes[name]}, scores, count)[name] for name, count in counts.items()}


@ALLOCATIONS.register(BLOCK)
def block(shapes: Shapes, scores: Scores, num_entries: int) -> dict[str, Tensor]:
    """An equal share of every linear, in few neurons: those with the largest sums of scores get all columns they may.

    The rest of a share, less than a row, is the best entries of the next neuron. With C columns that may be chosen and
    a share of R·C, a linear gets a block of R x C. Source: this project, after the submatrices of SMT (arXiv
    2405.15525).
    """
    chosen = {}
    for name, count in _proportional_counts(shapes, num_entries).items():
        if not count:
            continue
        score = scores(name)
        refuse_nan(name, score)
        whole, left = divmod(count, shapes[name][1])
        rows = top_indices(row_sums(score), whole + (left > 0))
        column = best_of_rows(score[rows], shapes[name][1])[1]
        flat = column + rows[:, None] * score.shape[1]
        chosen[name] = torch.cat([flat[:whole].flatten(), flat[whole:, :left].flatten()]).sort().values.cpu()
    return chosen


@dataclass(frozen=True)
class PatternAllocation:
    """The allocation ``N:M``: in each row, the N best of every group of M consecutive inputs.

    A last, shorter group of r inputs gets its min(N, r) best. The pattern is the budget, so ``num_entries`` is ignored.
    Source: TaskEdge (arXiv 2504.03718), for sparse tensor cores; the shorter group is this project's.
    """

    pattern: Pattern

    def num_entries(self, shapes: Shapes) -> int:
        """Return how many entries the pattern chooses."""
        return sum(rows * self.pattern.per_row(columns) for rows, columns in shapes.values())

    def __call__(self, shapes: Shapes, scores: Scores, num_entries: int) -> dict[str, Tensor]:
        """Choose the entries; see :data:`Allocation`."""
        return {name: self._choose(name, scores(name)) for name in shapes}

    def _choose(self, name: str, score: Tensor) -> Tensor:
        """Return the flat indices of one linear, ascending."""
        n, m = self.pattern.n, self.pattern.m
        rows, width = score.shape
        grouped = width // m * m  # columns in full groups
        parts = []
        if grouped:
            top, offset = best_of_rows(score[:, :grouped].reshape(rows, -1, m), n)  # [rows, groups, n]
            refuse_nan(name, top)
            parts.append((offset + torch.arange(0, grouped, m, device=score.device)[:, None]).flatten(1))
        if width > grouped:
            top, offset = best_of_rows(score[:, grouped:], min(n, width - grouped))
            refuse_nan(name, top)
            parts.append(offset + grouped)
        columns = torch.cat(parts, dim=1).sort(dim=1).values
        return (columns + torch.arange(rows, device=score.device)[:, None] * width).flatten().cpu()


def _pattern_allocation(name: str) -> PatternAllocation | None:
    pattern = read_pattern(name)
    return None if pattern is None else PatternAllocation(pattern)


ALLOCATIONS.add_family("N:M", _pattern_allocation)
