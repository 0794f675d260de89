"""Solvers of a placement: exhaustive search on small cases, mixed-integer programming (HiGHS, of scipy) beyond.

Tensors with equal options are one integer variable for each option, which counts how many of them take it. A base of
many equal layers thus stays small. The relative gap of the solver is 0, so a result is an optimum unless the time ends.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from taskedge.errors import InputError, TaskEdgeError
from taskedge.placement.chip_file import Chip
from taskedge.placement.placement_costs import (
    MEASURES,
    OBJECTIVES,
    PlacementProblem,
    problems,
    refusal,
)
from taskedge.placement.stored_tensors import StoredTensor
from taskedge.planning.pruning import import_scipy

MAX_EXHAUSTIVE = 20_000
"""Placements up to which the exhaustive search is the default."""
SOLVER_NAMES = ("auto", "exhaustive", "milp")
_SLACK = 1e-9
"""Relative slack of limits that are not integers."""


class NoPlacement(TaskEdgeError):
    """Tensors that do not fit into the memories, or limits that no placement keeps.

    Attributes:
        tensor: the tensor that does not fit; None if the limits are the reason.
    """

    exit_code = 3

    def __init__(self, reason: str, tensor: str | None = None) -> None:
        self.tensor = tensor
        super().__init__(reason)


@dataclass(frozen=True)
class Placement:
    """The best placement.

    Attributes:
        problem: the problem, with the memory of the buffer.
        chosen: index of the option of each tensor.
        objective: its value.
        solver: ``"exhaustive"`` or ``"milp"``.
        proved: whether it is known to be the best; False if the time ended.
        placements: the number of placements that the exhaustive search would compare; infinite from 1e300 on.
    """

    problem: PlacementProblem
    chosen: list[int]
    objective: float
    solver: str
    proved: bool
    placements: float


def solve_placement(
    tensors: list[StoredTensor], chip: Chip, *, objective: str = "energy", solver: str = "auto", seconds: float = 60.0
) -> Placement:
    """Return the placement of least cost.

    Args:
        tensors: what is placed.
        chip: the memories, the use and the limits.
        objective: one of ``OBJECTIVES``.
        solver: one of ``SOLVER_NAMES``; ``"auto"`` searches exhaustively up to ``MAX_EXHAUSTIVE`` placements.
        seconds: time of the solver for each choice of a memory for the buffer and of memories in standby.

    Raises:
        NoPlacement: a tensor does not fit, or a limit cannot be kept. The message names it.
        InputError: the objective or solver is unknown.
        TaskEdgeError: scipy is not installed, or no placement was found in time.
    """
    if objective not in OBJECTIVES:
        raise InputError(f"unknown objective {objective!r} (known: {', '.join(OBJECTIVES)})")
    if solver not in SOLVER_NAMES:
        raise InputError(f"unknown solver {solver!r} (known: {', '.join(SOLVER_NAMES)})")
    for tensor in tensors:
        reasons = [refusal(tensor, memory, chip) for memory in chip.memories]
        if all(reasons):
            raise NoPlacement(
                f"{tensor.name} ({_bytes(tensor.bits)}) fits into no memory: {'; '.join(map(str, reasons))}",
                tensor.name,
            )
    variants = problems(tensors, chip, objective)
    count = sum(math.prod(len(options) for options in variant.options) for variant in variants)
    if solver == "auto":
        solver = "exhaustive" if count <= MAX_EXHAUSTIVE else "milp"
    solve = search_all if solver == "exhaustive" else solve_milp
    best, variant_of_best, lowest, all_proved = None, None, math.inf, True
    for variant in variants:
        cheapest = cheapest_options(variant)
        if cheapest is None or _value(variant, cheapest) >= lowest:
            continue  # even without capacities and limits it is no better
        chosen, proved = (cheapest, True) if is_feasible(variant, cheapest) else solve(variant, seconds)
        all_proved = all_proved and proved
        if chosen is not None and _value(variant, chosen) < lowest:
            best, variant_of_best, lowest = chosen, variant, _value(variant, chosen)
    if best is None or variant_of_best is None:
        if not all_proved:
            raise TaskEdgeError(f"no placement was found in {seconds:g} seconds: give more with --seconds")
        raise _no_placement(tensors, chip)
    placements = float(count) if count < 10**300 else math.inf
    return Placement(variant_of_best, best, lowest, solver, all_proved, placements)


def cheapest_options(problem: PlacementProblem) -> list[int] | None:
    """Return the cheapest option of each tensor without regard to capacities and limits; None if one has no option."""
    if not all(problem.options):
        return None
    return [int(np.argmin([problem.weights @ option.measures for option in options])) for options in problem.options]


def _value(problem: PlacementProblem, chosen: list[int]) -> float:
    return float(problem.weights @ problem.measures(chosen))


def is_feasible(problem: PlacementProblem, chosen: list[int]) -> bool:
    """Return whether a placement keeps all capacities and limits."""
    used = np.zeros(len(problem.capacities), dtype=np.int64)
    for tensor, options, index in zip(problem.tensors, problem.options, chosen, strict=True):
        used[options[index].memory] += tensor.bits
    measures = problem.measures(chosen)
    within = all(measures[index] <= limit * (1 + _SLACK) for index, limit in problem.limits.items())
    return bool((used <= problem.capacities).all()) and within


def search_all(problem: PlacementProblem, seconds: float = math.inf) -> tuple[list[int] | None, bool]:
    """Return the best placement by comparing all, or None if none is possible; and whether the search ended in time."""
    end = time.monotonic() + seconds
    best, lowest = None, math.inf
    costs = [[float(problem.weights @ option.measures) for option in options] for options in problem.options]
    for number, chosen in enumerate(itertools.product(*(range(len(options)) for options in problem.options))):
        cost = sum(row[index] for row, index in zip(costs, chosen, strict=True))
        if cost < lowest and is_feasible(problem, list(chosen)):
            best, lowest = list(chosen), cost
        if number % 10_000 == 0 and time.monotonic() > end:
            return best, False
    return best, True


def solve_milp(problem: PlacementProblem, seconds: float = 60.0) -> tuple[list[int] | None, bool]:
    """Return the best placement by mixed-integer programming, or None; and whether it is known to be the best.

    The solver works in floating point, so each result is checked in integers. Tensors that exceed a capacity together
    are excluded, and the solver runs again.
    """
    if not all(problem.options):
        return None, True
    groups = _groups(problem)
    end = time.monotonic() + seconds
    cuts: list[tuple[list[int], int]] = []
    while True:
        counts, proved = _highs(problem, groups, cuts, max(end - time.monotonic(), 0.01))
        if counts is None:
            return None, proved
        chosen = _spread(problem, groups, counts)
        if is_feasible(problem, chosen):
            return chosen, proved
        if time.monotonic() > end:
            return None, False
        groups = [[index] for index in range(len(problem.tensors))]  # a cut excludes single tensors, not counts
        cuts.append(_cut(problem, chosen))


def _groups(problem: PlacementProblem) -> list[list[int]]:
    """Return the indices of tensors that have the same size and options, group by group."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for index, (tensor, options) in enumerate(zip(problem.tensors, problem.options, strict=True)):
        key = (tensor.bits, tuple((option.memory, option.measures.tobytes()) for option in options))
        groups[key].append(index)
    return list(groups.values())


def _highs(
    problem: PlacementProblem, groups: list[list[int]], cuts: list[tuple[list[int], int]], seconds: float
) -> tuple[list[int] | None, bool]:
    """Return how many tensors of each group take each option, one after the other; and whether that is the best."""
    optimize = import_scipy("optimize")
    sparse = import_scipy("sparse")
    variables = [(g, option) for g, group in enumerate(groups) for option in problem.options[group[0]]]
    sizes = np.array([problem.tensors[groups[g][0]].bits for g, _ in variables], dtype=float)
    measures = np.array([option.measures for _, option in variables]).reshape(len(variables), len(MEASURES))
    members = np.array([len(groups[g]) for g, _ in variables], dtype=float)
    one_each = sparse.csr_matrix(
        (np.ones(len(variables)), ([g for g, _ in variables], range(len(variables)))),
        shape=(len(groups), len(variables)),
    )
    each = np.array([len(group) for group in groups], dtype=float)
    constraints = [optimize.LinearConstraint(one_each, each, each)]
    for memory, capacity in enumerate(problem.capacities):
        row = np.where([option.memory == memory for _, option in variables], sizes, 0.0)
        if row @ members > capacity:  # else it holds everything
            scale = max(float(capacity), 1.0)
            constraints.append(optimize.LinearConstraint(row / scale, -np.inf, float(capacity) / scale))
    for index, limit in problem.limits.items():
        left = limit * (1 + _SLACK) - problem.fixed[index]
        constraints.append(optimize.LinearConstraint(measures[:, index] / limit, -np.inf, left / limit))
    for taken, bound in cuts:
        row = np.zeros(len(variables))
        row[taken] = 1.0
        constraints.append(optimize.LinearConstraint(row, -np.inf, bound))
    costs = measures @ problem.weights
    costs = costs / max(float(np.abs(costs).max(initial=0.0)), 1e-300)
    result = optimize.milp(
        costs, constraints=constraints, integrality=np.ones(len(variables)),
        bounds=optimize.Bounds(0, members), options={"mip_rel_gap": 0.0, "time_limit": seconds},
    )  # fmt: skip
    if result.x is None:
        return None, result.status == 2  # infeasible; else the time ended
    return [int(value) for value in np.round(result.x)], result.status == 0


def _spread(problem: PlacementProblem, groups: list[list[int]], counts: list[int]) -> list[int]:
    """Return the option of each tensor from how many of its group take each option."""
    chosen = [0] * len(problem.tensors)
    start = 0
    for group in groups:
        options = range(len(problem.options[group[0]]))
        taken = [option for option in options for _ in range(counts[start + option])]
        for tensor, option in zip(group, taken, strict=True):
            chosen[tensor] = option
        start += len(options)
    return chosen


def _cut(problem: PlacementProblem, chosen: list[int]) -> tuple[list[int], int]:
    """Return options of single tensors that cannot be taken together, and how many of them can be.

    They are the options in a memory whose capacity is exceeded, or else all (a limit is exceeded).
    """
    memories = [options[index].memory for options, index in zip(problem.options, chosen, strict=True)]
    used = np.bincount(memories, [tensor.bits for tensor in problem.tensors], len(problem.capacities))
    over = np.flatnonzero(used > problem.capacities)
    starts = np.cumsum([0, *(len(options) for options in problem.options[:-1])])
    taken = [int(start) + index for start, index in zip(starts, chosen, strict=True)]
    if len(over):
        taken = [index for index, memory in zip(taken, memories, strict=True) if memory == over[0]]
    return taken, len(taken) - 1


def _no_placement(tensors: list[StoredTensor], chip: Chip) -> NoPlacement:
    """Return the reason that there is no placement: a tensor that does not fit, or the limit that cannot be kept."""
    free = [memory.capacity_bits for memory in chip.memories]
    for tensor in sorted(tensors, key=lambda tensor: -tensor.bits):
        allowed = [index for index, memory in enumerate(chip.memories) if refusal(tensor, memory, chip) is None]
        home = max(allowed, key=lambda index: free[index])
        if tensor.bits > free[home]:
            left = ", ".join(f"{chip.memories[index].name} has {_bytes(max(free[index], 0))} left" for index in allowed)
            total = sum(tensor.bits for tensor in tensors)
            room = sum(memory.capacity_bits for memory in chip.memories)
            return NoPlacement(
                f"{tensor.name} ({_bytes(tensor.bits)}) does not fit: {left} after all larger tensors. Everything "
                f"together has {_bytes(total)}, the memories {_bytes(room)}; "
                "raise a capacity_bytes in the chip file, or store fewer bits per weight",
                tensor.name,
            )
        free[home] -= tensor.bits
    best = []
    for name in ("area_mm2", "pass_seconds", "switch_seconds"):
        limit = getattr(chip.limits, name)
        if limit is not None:
            best.append(f"{name} {limit:g} (at best {_least(tensors, chip, name):.6g})")
    return NoPlacement(f"no placement keeps the limits together: {', '.join(best)}; raise one in the chip file")


def _least(tensors: list[StoredTensor], chip: Chip, measure: str) -> float:
    """Return the least value of a measure without limits."""
    unlimited = replace(chip, limits=type(chip.limits)())
    weights = np.array([float(name == measure) for name in MEASURES])
    values = []
    for variant in problems(tensors, unlimited):
        variant = replace(variant, weights=weights)
        chosen, _ = solve_milp(variant, 10.0)
        if chosen is not None:
            values.append(float(weights @ variant.measures(chosen)))
    return min(values, default=math.nan)


def _bytes(bits: int) -> str:
    return f"{-(-bits // 8):,} bytes"
