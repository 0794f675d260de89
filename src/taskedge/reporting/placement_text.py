"""The plan of a placement, and accuracy over faults, as text. The input is plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taskedge.reporting.tables import columns, count_text

KIND_NAMES = {"base": "base", "task": "tasks", "activations": "activations", "buffer": "buffer"}


def placement_text(plan: dict[str, Any], *, tensors: bool = False) -> str:
    """Return a plan (``make_plan``) as tables of memories, homes, totals and one-memory chips, with its assumptions.

    Args:
        plan: the plan.
        tensors: whether to list every tensor.
    """
    totals = plan["totals"]
    best = "the best" if plan["proved_optimal"] else "the best found in time"
    count = plan["possible_placements"]
    of = f" of {count:.3g} placements" if count is not None else ""
    lines = [
        f"{plan['model']} with {count_text(len(plan['tasks']), 'task')}: {best}{of} by {plan['objective']} "
        f"({plan['solver']})",
        "",
        columns(_memory_rows(plan["memories"])),
        "",
        columns(_home_rows(plan), left=(0, 1)),
    ]
    if plan["buffer"] is not None:
        buffer = plan["buffer"]
        lines.append(f"buffer of the task in use: {buffer['bytes']:,} bytes in {buffer['memory']}")
    if tensors:
        rows = [["tensor", "memory", "bytes", "read from"]]
        rows += [
            [row["name"], row["memory"], f"{row['bytes']:,}", "buffer" if row["buffered"] else "there"]
            for row in plan["tensors"]
        ]
        lines += ["", columns(rows, left=(0, 1, 3))]
    rows = [["", "J/hour", "area mm2", "leakage mW", "pass", "energy", "switch", "energy", ""]]
    rows.append(["this placement", *_total_cells(totals), ""])
    for other in plan["compared"]:
        rows.append([f"everything in {other['memory']}", *_total_cells(other), _impossible(other)])
    lines += ["", columns(rows, left=(0, 8)), ""]
    lines.append("A model over published numbers of cells, not a measurement of hardware. It assumes:")
    lines += [f"- {line}" for line in plan["assumptions"]]
    return "\n".join(lines)


def faults_text(rows: Sequence[dict[str, Any]], measure: str) -> str:
    """Return accuracy over faults as a table.

    Args:
        rows: of :func:`taskedge.placement.faulty_base.measure_faults`.
        measure: name of the measure to show.
    """
    table = [["faults", "wrong cells", "of cells", "changed weights", measure, "lowest draw"]]
    for row in rows:
        values = [measures[measure] for measures in row["measures"]]
        wrong, cells = (row[f"{kind}value_cells"] + row[f"{kind}mask_cells"] for kind in ("wrong_", ""))
        mean = sum(values) / len(values)
        lowest = f"{min(values):.4f} of {len(values)}" if len(values) > 1 else ""
        table.append([row["setting"], f"{wrong:,}", f"{cells:,}", f"{row['changed_values']:,}", f"{mean:.4f}", lowest])
    return columns(table)


def _memory_rows(memories: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [["memory", "cell", "used bytes", "of", "area mm2", "leakage mW", "words read", "written", "lasts"]]
    for memory in memories:
        years = memory["lifetime_years"]
        rows.append(
            [
                memory["name"],
                memory["cell"],
                f"{memory['used_bytes']:,}",
                f"{memory['capacity_bytes']:,}",
                f"{memory['area_mm2']:.3g}",
                f"{1e3 * memory['leakage_watts']:.3g}",
                f"{memory['words_read_per_pass']:,.0f}",
                f"{memory['words_written_per_pass']:,.0f}",
                "no limit" if years is None else f"{years:.3g} years",
            ]
        )
    return rows


def _home_rows(plan: dict[str, Any]) -> list[list[str]]:
    """Return one row for each kind of content in each memory."""
    sums: dict[tuple[str, str, bool], list[int]] = {}
    for row in plan["tensors"]:
        total = sums.setdefault((row["kind"], row["memory"], row["buffered"]), [0, 0])
        total[0] += 1
        total[1] += row["bytes"]
    rows = [["content", "home", "tensors", "bytes", ""]]
    for (kind, memory, buffered), (count, size) in sums.items():
        note = "copied to the buffer at a switch" if buffered else ""
        rows.append([KIND_NAMES[kind], memory, f"{count:,}", f"{size:,}", note])
    return rows


def _total_cells(totals: dict[str, Any]) -> list[str]:
    return [
        f"{totals['joules_per_hour']:.4g}",
        f"{totals['area_mm2']:.3g}",
        f"{1e3 * totals['leakage_watts']:.3g}",
        time_text(totals["pass_seconds"]),
        f"{1e6 * totals['pass_joules']:.3g} uJ",
        time_text(totals["switch_seconds"]),
        f"{1e6 * totals['switch_joules']:.3g} uJ",
    ]


def time_text(seconds: float) -> str:
    """Return a time in ns, us, ms or s."""
    for factor, unit in ((1e9, "ns"), (1e6, "us"), (1e3, "ms")):
        if seconds * factor < 1000:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def _impossible(other: dict[str, Any]) -> str:
    return "" if other["possible"] else f"impossible: {other['reasons'][0]}"
