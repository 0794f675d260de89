"""Cooperative runs as a table: what is learnt, and what it sends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.report.report_accuracy import table

Line = dict[str, Any]
NAMES = {
    ("tune", ""): "`tune`, all rows in one place",
    ("deft, iid", ""): "`deft`, rows parted at random",
    ("deft, iid", 'solver="exact"'): 'the same with the present planner, `solver = "exact"`',
    ("deft, iid", "passing=0"): "`deft` with `traversal_slack = 0`",
    ("deft, iid", "passing=0 turns=0"): "and with `rotation_slack = 0`",
    ("deft, iid, 1/8 active", ""): "`deft`, rows parted at random, `active_share = 1/8`",
    ("fedavg, iid", ""): "`fedavg`, rows parted at random",
    ("fedavg, iid, 1/8 active", ""): "the same, `active_share = 1/8`",
    ("deft, skewed", ""): "`deft`, rows parted by label",
    ("replicate, skewed", ""): "`replicate`, rows parted by label",
    ("fedavg, skewed", ""): "`fedavg`, rows parted by label",
}
"""The runs that are shown, by variant and changed settings, in order."""
SAVED = ("upload_saved", "entries_saved", "backward_saved", "flops_saved")


def read(path: Path) -> list[Line]:
    """What cooperation_accuracy.py measured."""
    return list(map(json.loads, path.read_text().splitlines())) if path.exists() else []


def overview(lines: Sequence[Line]) -> str:
    """A row a variant: test accuracy over seeds, kB that an answer takes, and what idle modules save."""
    head = ["", "test accuracy", "seeds", "kB an answer, mean", "largest", "saved: bytes up"]
    head += ["FLOPs of entries", "of the backward pass", "of all"]
    rows = []
    for key, name in NAMES.items():
        runs = [line for line in lines if (line["variant"], line["change"]) == key]
        if not runs:
            continue
        tests = [run["test"] for run in runs]
        spread = f" ± {stdev(tests):.3f}" if len(tests) > 1 else ""
        sent = [run["bytes_up"] for run in runs if "bytes_up" in run]
        rows.append(
            [
                name,
                f"{mean(tests):.3f}{spread}",
                str(len(tests)),
                f"{mean(one for one, _ in sent) / 1000:.1f}" if sent else "",
                f"{max(most for _, most in sent) / 1000:.1f}" if sent else "",
                *(f"{mean(run[key] for run in runs):.0%}" if key in runs[0] else "" for key in SAVED),
            ]
        )
    return table(head, rows)


def plans(lines: Sequence[Line]) -> str:
    """A row a plan of emulated_fleet.py: seconds of all rounds and to an accuracy, fleet by fleet; the means."""
    solvers = list(dict.fromkeys(line["solver"] for line in lines))
    rows = []
    for solver in solvers:
        runs = sorted((line for line in lines if line["solver"] == solver), key=lambda line: line["seed"])
        whole = [run["seconds"] for run in runs]
        soon = [seconds_to(run, TARGET) for run in runs]
        reached = [found for found in soon if found is not None]
        last = mean(run["accuracy"][str(run["rounds"])] for run in runs)
        rows.append(
            [
                f"`{solver}`",
                " / ".join(f"{one:.0f}" for one in whole),
                f"{mean(whole):.0f} s",
                " / ".join("never" if one is None else f"{one:.0f}" for one in soon),
                f"{mean(reached):.0f} s" if len(reached) == len(soon) else "",
                f"{last:.1%}",
            ]
        )
    count = lines[0]["rounds"] if lines else 0
    head = ["plan", f"{count} rounds, s", "mean", f"to {TARGET:.0%} of test rows, s", "mean", "accuracy at the end"]
    return table(head, rows)


TARGET = 0.70
"""Of the test rows, for the seconds that a plan takes to get there."""


def seconds_to(run: Line, accuracy: float) -> float | None:
    """When a run was first as accurate: between two looks on the straight line; None: it never was."""
    before_seconds, before = 0.0, 0.0
    for number, seconds in run["seconds_after"].items():
        now = run["accuracy"][number]
        if now >= accuracy:
            return before_seconds + (seconds - before_seconds) * (accuracy - before) / (now - before)
        before_seconds, before = seconds, now
    return None


def planned(figures: Sequence[Line]) -> str:
    """A row a baseline of planned_fleets.json: its round beside the exact plan's, by kind of fleet."""
    found: dict[str, dict[str, str]] = {}
    for line in figures:
        kind, _, what = line["what"].partition(": ")
        solver, _, of = what.partition(" / exact")
        if not of:
            low, high = line["quartiles"]
            found.setdefault(solver, {})[kind] = f"{line['median']:.2f} ({low:.2f} to {high:.2f})"
    kinds = list(next(iter(found.values()))) if found else []
    return table(["plan / `exact`", *kinds], [[f"`{name}`", *by.values()] for name, by in found.items()])


def sizes(figures: Sequence[Line]) -> str:
    """A row a run of cooperation_bytes.py: kB of the largest task and answer."""
    found: dict[str, dict[str, Line]] = {}
    for line in figures:
        way, _, about = line["what"].partition(": ")
        found.setdefault(about, {})[way] = line
    rows = [[about, *(_kilobytes(by[way]) for way in ("down", "up"))] for about, by in found.items()]
    return table(["", "task, kB", "answer, kB"], rows)


def _kilobytes(line: Line) -> str:
    missed = f", **above {line['bar']:g}**" if line.get("met") is False else ""
    return f"{line['median']:.1f}{missed}"
