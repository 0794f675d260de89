"""The plan of a placement as plain values: homes, memories, totals, what else was compared, and what is assumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from taskedge.placement.chip_file import Chip
from taskedge.placement.placement_costs import (
    MEASURES,
    Floats,
    buffer_bits,
    home_option,
    lifetime_years,
    objective_weights,
    refusal,
    words,
    writes_per_hour,
)
from taskedge.placement.solve_placement import Placement, solve_placement
from taskedge.placement.stored_tensors import ActivationTraffic, BaseTensor, StoredTensor, TaskSize, stored_tensors

FORMAT = "taskedge-placement/1"
MODEL_ASSUMPTIONS = (
    "Area and leakage grow in proportion to the bytes in use; a memory leaks all the time, and none is switched off. "
    "The standby power of a chip beside the die is paid in full as soon as anything lives in it.",
    "Accesses follow one another; memories do not work at the same time. A word is the unit of an access.",
    "A weight is read once a call of its layer, for all tokens of the pass; an embedding reads one row for each id.",
    "Writes spread evenly over the cells of a tensor; the lowest published endurance counts.",
)
"""Assumptions of the model beside those of the cells."""


def make_plan(
    model: str,
    chip: Chip,
    base: list[BaseTensor],
    activations: ActivationTraffic | None,
    tasks: list[TaskSize],
    *,
    objective: str = "energy",
    solver: str = "auto",
    seconds: float = 60.0,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Place a base and its tasks and return the plan.

    Args:
        model: its name, for the plan.
        chip: memories, use and limits.
        base, activations: from :func:`taskedge.placement.model_tensors.model_traffic`.
        tasks: from :func:`taskedge.placement.model_tensors.task_size`.
        objective, solver, seconds: see :func:`taskedge.placement.solve_placement.solve_placement`.
        notes: further assumptions, for the plan.

    Raises:
        NoPlacement, InputError, TaskEdgeError: see :func:`taskedge.placement.solve_placement.solve_placement`.
    """
    tensors = stored_tensors(base, activations, tasks, chip.use)
    placement = solve_placement(tensors, chip, objective=objective, solver=solver, seconds=seconds)
    problem = placement.problem
    measures = problem.measures(placement.chosen)
    cells = {memory.cell.title: memory.cell for memory in chip.memories}
    return {
        "format": FORMAT,
        "model": model,
        "tasks": [task.name for task in tasks],
        "objective": objective,
        "solver": placement.solver,
        "proved_optimal": placement.proved,
        "possible_placements": placement.placements if math.isfinite(placement.placements) else None,
        "use": chip.use.model_dump(),
        "limits": chip.limits.model_dump(),
        "totals": _totals(measures, chip),
        "buffer": None
        if problem.buffer is None
        else {"memory": chip.memories[problem.buffer].name, "bytes": -(-buffer_bits(tensors) // 8)},
        "memories": _memories(placement, chip),
        "tensors": [
            {
                "name": tensor.name,
                "kind": tensor.kind,
                "bytes": -(-tensor.bits // 8),
                "memory": chip.memories[options[index].memory].name,
                "buffered": options[index].buffered,
            }
            for tensor, options, index in zip(tensors, problem.options, placement.chosen, strict=True)
        ],
        "compared": [_everything_in(index, tensors, chip) for index in range(len(chip.memories))],
        "sources": {title: [cell.source, *filter(None, [cell.endurance_source])] for title, cell in cells.items()},
        "assumptions": [
            *MODEL_ASSUMPTIONS,
            *notes,
            *(f"{title}: {line}" for title, cell in cells.items() for line in cell.assumptions),
        ],
    }


def non_volatile_base(plan: dict[str, Any], chip: Chip) -> dict[str, str]:
    """Return the base's tensors that a plan puts into non-volatile memory, with the name of that memory."""
    kept = {memory.name for memory in chip.memories if not memory.cell.volatile}
    return {row["name"]: row["memory"] for row in plan["tensors"] if row["kind"] == "base" and row["memory"] in kept}


def _totals(measures: Floats, chip: Chip) -> dict[str, float]:
    totals = {name: float(value) for name, value in zip(MEASURES, measures, strict=True)}
    totals["memory_seconds"] = totals["pass_seconds"]
    totals["pass_seconds"] = max(totals["pass_seconds"], chip.use.compute_seconds_per_pass)
    totals["joules_per_hour"] = float(objective_weights("energy", chip.use) @ measures)
    return totals


def _memories(placement: Placement, chip: Chip) -> list[dict[str, Any]]:
    problem = placement.problem
    rows = []
    for index, memory in enumerate(chip.memories):
        here = [
            (tensor, options[chosen])
            for tensor, options, chosen in zip(problem.tensors, problem.options, placement.chosen, strict=True)
            if options[chosen].memory == index
        ]
        buffered = buffer_bits(problem.tensors) if problem.buffer == index else 0
        used = sum(tensor.bits for tensor, _ in here) + buffered
        area = 0.0 if memory.cell.off_chip else used * memory.cell.area_mm2_per_bit
        rates = [writes_per_hour(tensor, chip.use) for tensor, _ in here]
        rates += [chip.use.switches_per_hour] if buffered else []
        years = lifetime_years(max(rates, default=0.0), memory)
        read_here = [tensor for tensor, option in here if not option.buffered]
        if buffered:
            chosen_options = zip(problem.tensors, problem.options, placement.chosen, strict=True)
            read_here += [tensor for tensor, options, chosen in chosen_options if options[chosen].buffered]
        rows.append(
            {
                "name": memory.name,
                "cell": memory.cell.title,
                "volatile": memory.cell.volatile,
                "tensors": len(here),
                "used_bytes": -(-used // 8),
                "capacity_bytes": memory.spec.capacity_bytes,
                "area_mm2": area,
                "leakage_watts": used * memory.cell.leakage_watts_per_bit
                + (memory.standby_watts if index in problem.powered else 0.0),
                "words_read_per_pass": sum(tensor.share * words(tensor.read_bits, memory) for tensor in read_here),
                "words_written_per_pass": sum(
                    tensor.share * words(tensor.written_bits, memory) for tensor in read_here
                ),
                "lifetime_years": years if math.isfinite(years) else None,
            }
        )
    return rows


def _everything_in(index: int, tensors: list[StoredTensor], chip: Chip) -> dict[str, Any]:
    """Return the totals of a chip with everything in one memory, and why it cannot be built."""
    memory = chip.memories[index]
    measures = np.sum([home_option(tensor, index, chip).measures for tensor in tensors], axis=0)
    measures[MEASURES.index("leakage_watts")] += memory.standby_watts
    size = sum(tensor.bits for tensor in tensors)
    reasons = [f"{tensor.name}: {reason}" for tensor in tensors if (reason := refusal(tensor, memory, chip))]
    if size > memory.capacity_bits:
        reasons.insert(0, f"{-(-size // 8):,} bytes do not fit into {memory.spec.capacity_bytes:,}")
    return {"memory": memory.name, **_totals(measures, chip), "possible": not reasons, "reasons": reasons[:3]}
