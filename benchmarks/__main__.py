"""``python -m benchmarks``: list every benchmark with its result, the minutes it took, and the result's age."""

from __future__ import annotations

import ast
import json
import subprocess
from datetime import UTC, date, datetime
from pathlib import Path

from benchmarks.record import BENCHMARKS, ROOT

SUPPORT = {
    "record",
    "workload",
    "llama_runtime",
    "storage_workload",
    "methods",
    "comparison",
    "cooperation_runs",
    "cut_setting",
    "planning_record",
    "protocol",
    "rivals",
    "kept_runs",
    "base_mutations",
    "data_mutations",
    "feature_task",
    "finding",
    "forgetting",
    "relatives",
    "__main__",
}
"""Modules that benchmarks share and that measure nothing themselves."""


def scripts() -> dict[str, Path]:
    """Return the benchmarks by module name: every script with results, in order of folder and name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in sorted(BENCHMARKS.glob("*/*.py"))
        if path.stem not in SUPPORT and path.stem != "__init__" and path.parent.name != "report"
    }


def declared(script: Path) -> list[str]:
    """Return the names in a script's ``RESULTS`` tuple: the results that it writes, relative to its results folder."""
    for node in ast.parse(script.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "RESULTS" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return []


def measured(path: Path) -> tuple[str, str]:
    """Return (minutes, day) of a result; the day of the last commit where the file states none."""
    about = json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else {}
    minutes = about.get("minutes")
    day = (
        about.get("date")
        or subprocess.run(
            ["git", "log", "--follow", "--diff-filter=AM", "-1", "--format=%cs", "--", str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
    )
    return ("" if minutes is None else f"{minutes:g}"), day


def age(day: str) -> str:
    """Return the age of a day in days."""
    return f"{(datetime.now(UTC).date() - date.fromisoformat(day)).days} days" if day else "not committed"


def main() -> None:
    """Print the index."""
    rows = [("benchmark", "result", "minutes", "age")]
    for module, script in scripts().items():
        for name in declared(script) or [""]:
            path = script.parent / "results" / name
            minutes, day = measured(path) if name and path.is_file() else ("", "")
            state = age(day) if name and path.is_file() else "not measured"
            if name.endswith("/"):
                minutes, state = "", f"{len(list(path.glob('*.jsonl')))} files"
            rows.append((module.removeprefix("benchmarks."), name, minutes, state))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\nRun one with `python -m benchmarks.QUESTION.NAME` (--help says how); `python -m benchmarks.report.tables`")
    print("writes the tables of the docs from the results.")


if __name__ == "__main__":
    main()
