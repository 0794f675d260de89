"""Estimates as text for a terminal. Reads their plain figures only."""

from __future__ import annotations

from typing import Any

from taskedge.profiling.byte_size import show_bytes

KINDS = {
    "process": "process before the base",
    "base": "base",
    "runtime": "libraries at work, rows",
    "entries": "entries and optimiser",
    "head": "head",
    "saved": "kept for the backward pass",
    "temporary": "temporary",
}


def choice_text(estimate: dict[str, Any]) -> str:
    """Which way was chosen, why, and what it is predicted to take, by kind."""
    chosen, memory = estimate["chosen"], estimate["chosen"]["memory"]
    others = [cost for cost in estimate["ladder"] if cost["needed"] > estimate["budget"]]
    quicker = [cost for cost in others if cost["work"] < chosen["work"] and cost["allowed"]]
    why = "no way that was measured is faster"
    if quicker:
        first = min(quicker, key=lambda cost: cost["work"])
        why = f"the fastest that fits ({first['way']!r} would need {show_bytes(first['needed'])})"
    kinds = ", ".join(f"{name} {show_bytes(memory[key])}" for key, name in KINDS.items())
    return (
        f"within {show_bytes(estimate['budget'])}: {chosen['way']}: {why}\n"
        f"predicted peak memory {show_bytes(memory['peak'])}, in the {memory['part']}; "
        f"{show_bytes(memory['above_idle'])} above the idle process with the base: {kinds}\n"
        f"predicted {chosen['seconds']:.2f} s a step, {chosen['steps']:,} steps: {_duration(chosen['run_seconds'])}"
    )


def ladder_text(estimate: dict[str, Any]) -> str:
    """Every way with its cost, and which one is chosen."""
    rows = [["way", "peak", "above idle", "give --memory", "step", "run", ""]]
    budget, chosen = estimate["budget"], estimate["chosen"]
    for cost in estimate["ladder"]:
        note = "" if cost["allowed"] else "not allowed"
        if budget is not None and cost["needed"] > budget:
            note = "does not fit"
        if chosen is not None and cost["way"] == chosen["way"]:
            note = "chosen"
        memory = cost["memory"]
        rows.append(
            [
                cost["way"],
                show_bytes(memory["peak"]),
                show_bytes(memory["above_idle"]),
                show_bytes(cost["needed"]),
                f"{cost['seconds']:.2f} s",
                _duration(cost["run_seconds"]),
                note,
            ]
        )
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) if place in (0, 6) else cell.rjust(width)
                  for place, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]  # fmt: skip
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
