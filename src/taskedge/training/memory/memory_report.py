"""Memory predictions as text for a terminal. The input is plain values: ``BudgetDecision.as_json()``."""

from __future__ import annotations

from typing import Any

from taskedge.profiling.byte_size import format_bytes
from taskedge.reporting.tables import columns, duration

KINDS = {
    "process": "process before the base",
    "base": "base",
    "runtime": "active libraries and rows",
    "entries": "entries and optimizer",
    "head": "head",
    "saved": "kept for the backward pass",
    "temporary": "temporary",
}
"""Text for each kind of memory."""


def decision_text(decision: dict[str, Any]) -> str:
    """Return the chosen configuration, the reason, and its predicted memory by kind."""
    chosen, memory = decision["chosen"], decision["chosen"]["memory"]
    faster = [
        cost
        for cost in decision["costs"]
        if cost["needed"] > decision["budget"] and cost["work"] < chosen["work"] and cost["allowed"]
    ]
    reason = "no faster configuration was measured"
    if faster:
        first = min(faster, key=lambda cost: cost["work"])
        reason = f"the fastest that fits ({first['config']!r} would need {format_bytes(first['needed'])})"
    kinds = ", ".join(f"{name} {format_bytes(memory[key])}" for key, name in KINDS.items())
    return (
        f"within {format_bytes(decision['budget'])}: {chosen['config']}: {reason}\n"
        f"predicted peak memory {format_bytes(memory['peak'])}, in the {memory['part']}; "
        f"{format_bytes(memory['above_idle'])} above the idle process with the base: {kinds}\n"
        f"predicted {chosen['seconds']:.2f} s a step, {chosen['steps']:,} steps: {duration(chosen['run_seconds'])}"
    )


def costs_text(decision: dict[str, Any]) -> str:
    """Return a table of all configurations with their costs; the chosen one is marked."""
    rows = [["configuration", "peak", "above idle", "give --memory", "step", "run", ""]]
    budget, chosen = decision["budget"], decision["chosen"]
    for cost in decision["costs"]:
        note = "" if cost["allowed"] else "not allowed"
        if budget is not None and cost["needed"] > budget:
            note = "does not fit"
        if chosen is not None and cost["config"] == chosen["config"]:
            note = "chosen"
        memory = cost["memory"]
        rows.append(
            [
                cost["config"],
                format_bytes(memory["peak"]),
                format_bytes(memory["above_idle"]),
                format_bytes(cost["needed"]),
                f"{cost['seconds']:.2f} s",
                duration(cost["run_seconds"]),
                note,
            ]
        )
    return columns(rows, left=(0, 6))
