"""Cooperative runs of many devices as tables: one coordinator, JetStream, and a tree of coordinators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.report.report_accuracy import table

Line = dict[str, Any]
COLUMNS = {
    "coordinator, processor time of a round": "processor of a round, ms",
    "wall time of a round": "wall time, ms",
    "longest pause of the event loop": "longest pause of the loop, ms",
    "processor time before the first round": "processor before round 1, s",
    "largest resident memory": "memory, MB",
    "devices that left": "lost",
}
"""Figures of a run with many devices, by the beginning of their names, and the columns that show them."""
CONNECTIONS = {
    "a device's connection": "connection, median s",
    "slowest of them": "slowest, s",
    "connections that the server ended": "ended by the server",
    "server, processor time of a connection": "server a connection, ms",
    "server, processor time of the run": "server in the run, s",
    "server, resident memory": "server, MB",
}
LINKS = {"memory": "in memory", "nats": "TLS"}


def coordinators(lines: Sequence[Line]) -> str:
    """A row a run with many devices."""
    return _runs(lines, COLUMNS)


def connections(lines: Sequence[Line]) -> str:
    """A row a number of real connections."""
    return _runs([line for line in lines if line["links"] == "nats"], CONNECTIONS)


def jetstream(figures: Sequence[Line]) -> str:
    """A row a question and way, a column a quantity."""
    found: dict[str, dict[str, str]] = {}
    for line in figures:
        what, _, quantity = line["what"].partition(": ")
        found.setdefault(what, {})[quantity or "result"] = f"{_three_digits(line['median'])} {line['unit']}".strip()
    columns = ("wall time", "both ends, processor", "device, processor", "server, processor", "result")
    return table(["", *columns], ([what, *(cells.get(c, "") for c in columns)] for what, cells in found.items()))


def hierarchy(rounds: Sequence[Line]) -> str:
    """A row a fleet and tree."""
    head = ["devices", "coordinators below the root", "round, s", "into the root, MB", "out of it, MB", "all links, MB"]
    head += ["root's core, s", "a region's core, s", "largest coordinator, GB", "TLS of its devices, core s"]
    rows = []
    for line in rounds:
        tiers = " x ".join(f"{count:,}" for count in line["regional coordinators"])
        cells = [line[key] for key in ("root_in_mb", "root_out_mb", "all_links_mb", "root_core_s", "region_core_s")]
        rows.append(
            [
                f"{line['devices']:,}",
                tiers.replace(" x ", ", then ") or "none",
                f"{line['round_s']:,.1f}",
                *(f"{cell:,.1f}" for cell in cells),
                f"{line['largest_coordinator_mb'] / 1000:.1f}",
                f"{line['reconnect_core_s']:,.1f}",
            ]
        )
    return table(head, rows)


def _runs(lines: Sequence[Line], columns: dict[str, str]) -> str:
    rows = []
    for line in sorted(lines, key=lambda run: (run["links"], run["devices"], run["revision"] != "before")):
        figures = {
            begin: next((f["median"] for f in line["figures"] if f["what"].startswith(begin)), None)
            for begin in columns
        }
        before = ", before" if line["revision"] == "before" else ""
        cells = ["" if value is None else f"{value:,.{_decimals(value)}f}" for value in figures.values()]
        rows.append([f"{line['devices']:,} {LINKS[line['links']]}{before}", *cells])
    return table(["devices", *columns.values()], rows)


def _decimals(value: float) -> int:
    return 0 if value >= 20 or value == int(value) else 2


def _three_digits(value: float) -> str:
    """Return a number with three digits or more, and without an exponent."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
