"""Writes the results of the benchmarks into README.md and the pages under docs, and draws the figures.

    python -m benchmarks.report.tables          # rewrite the tables and draw the figures
    python -m benchmarks.report.tables --check  # change nothing; exit 1 where a table is out of date

A table stands between `<!-- table:NAME -->` and `<!-- end -->`. One whose results are not there is left as it is.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy import comparison, step_law
from benchmarks.record import ROOT
from benchmarks.report import (
    report_accuracy,
    report_compare,
    report_cooperation,
    report_gates,
    report_kinds,
    report_merging,
    report_planning,
    report_scale,
    report_shares,
    report_step_law,
    report_trust,
)
from benchmarks.report.report_accuracy import table

DOCUMENTS = (
    "README.md",
    "docs/benchmarks.md",
    "docs/combine.md",
    "docs/cooperation.md",
    "docs/cooperation-scale.md",
    "docs/forms.md",
    "docs/interoperability.md",
    "docs/memory.md",
    "docs/planning.md",
    "docs/privacy.md",
    "docs/selection.md",
    "docs/supports.md",
    "docs/tasks.md",
    "docs/tune-many.md",
)
COSTS = dict.fromkeys(("step_cost", "saved_bytes", "selection_cost", "delta_cost"), "cost")
"""Results of the table of costs, and the question that each belongs to."""
SEPARATE = {
    "step_cost_kinds": "cost",
    "forms_cost": "cost",
    "selection_memory": "cost",
    "memory_options": "memory",
    "label_loss_memory": "memory",
    "inference_memory": "memory",
    "int4_base": "memory",
    "step_cost_t5": "cost",
    "exports": "interop",
    "cooperation_bytes": "cooperation",
    "planned_fleets": "cooperation",
    "jetstream": "cooperation",
    "hierarchy": "planning",
}
"""Results that have a table of their own, and the question that each belongs to."""
MARKED = re.compile(r"(<!-- table:(\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

Result = dict[str, Any]


# --- results ----------------------------------------------------------------------------------------------------------


class Results:
    """The results under a ``benchmarks`` folder."""

    def __init__(self, folder: Path) -> None:
        paths = {name: folder / question / "results" / f"{name}.json" for name, question in (COSTS | SEPARATE).items()}
        loaded: dict[str, Result] = {
            name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()
        }
        self.costs = [loaded[name] for name in COSTS if name in loaded]
        self.separate = {name: loaded[name] for name in SEPARATE if name in loaded}
        self.accuracy = comparison.read(folder / "accuracy" / "results" / "sweep")
        self.compare = report_compare.read(folder / "accuracy" / "results" / "compare")
        self.compare_costs = report_compare.read_costs(folder / "cost" / "results" / "compare_costs.jsonl")
        self.shares = comparison.read(folder / "accuracy" / "results" / "shares")
        self.step_law = step_law.curves(folder / "accuracy" / "results" / "step_law")
        self.gate_penalties = report_gates.read(folder / "accuracy" / "results" / "gate_penalties")
        costs = folder / "cost" / "results" / "method_costs.jsonl"
        lines = costs.read_text().splitlines() if costs.exists() else []
        self.methods: dict[str, Result] = {cost["method"]: cost for cost in map(json.loads, lines)}
        self.cooperation = report_cooperation.read(folder / "cooperation" / "results" / "cooperation_accuracy.jsonl")
        self.plans = report_cooperation.read(folder / "cooperation" / "results" / "emulated_plans.jsonl")
        self.attacks = report_cooperation.read(folder / "cooperation" / "results" / "attacks.jsonl")
        self.scale = report_cooperation.read(folder / "cooperation" / "results" / "thousand_devices.jsonl")
        self.many = report_cooperation.read(folder / "accuracy" / "results" / "many_tasks.jsonl")
        self.merged = report_cooperation.read(folder / "combination" / "results" / "merged_tasks.jsonl")
        self.forgotten = [line for line in self.merged if line["part"] == "forgotten"]
        self.privacy = report_cooperation.read(folder / "cooperation" / "results" / "differential_privacy.jsonl")
        self.planning = report_planning.read(folder / "planning" / "results")
        self.kinds = report_kinds.read(folder / "tasks" / "results" / "kinds.jsonl")

    def has(self, name: str) -> bool:
        """Whether there is what a table needs."""
        return name in self.separate or bool(getattr(self, name, None))


# --- tables -----------------------------------------------------------------------------------------------------------


def cost(results: Results) -> str:
    """The figures that have a bar."""
    return _costs(results, lambda line: "bar" in line)


def headline(results: Results) -> str:
    """The figures of README.md: the least and the most of both settings of dropout."""
    found: dict[str, list[float]] = {}
    for line in (line for result in results.costs for line in result["figures"]):
        found.setdefault(line["what"], []).append(line["median"])

    def span(what: str) -> str:
        low, high = min(found[what]), max(found[what])
        return f"{low:.2f} to {high:.2f}"

    rows = [
        [
            "time of a training step, relative to a step that computes no weight gradients",
            span("step: taskedge, numba kernel / frozen limit"),
        ],
        ["bytes saved for the backward pass, relative to the same step", span("saved bytes: taskedge / frozen limit")],
        [
            "delta file in fp32",
            f"{found['delta file without the head, fp32 values'][0]:.1f} bytes per weight, plus the head",
        ],
        ["apply and revert", f"{found['apply + revert of 20,736 entries and the head'][0]:.1f} ms"],
    ]
    return table(["", "measured"], rows)


def cost_more(results: Results) -> str:
    """The figures that have none."""
    return _costs(results, lambda line: "bar" not in line)


def _costs(results: Results, wanted: Callable[[Result], bool]) -> str:
    """Figures of training with and without dropout side by side, then those to which dropout means nothing."""
    lines = [line for result in results.costs for line in result["figures"] if wanted(line)]
    settings = sorted({line["dropout"] for line in lines if "dropout" in line}, reverse=True)
    training: dict[str, dict[float, Result]] = {}
    for line in lines:
        if "dropout" in line:
            training.setdefault(line["what"], {})[line["dropout"]] = line
    others = [line for line in lines if "dropout" not in line]
    parts = []
    if training:
        head = ["training", *(f"dropout {share:g}" if share else "no dropout" for share in settings), "bar"]
        rows = [
            [what, *(_measured(by[share]) if share in by else "" for share in settings), _bar(next(iter(by.values())))]
            for what, by in training.items()
        ]
        parts.append(table(head, rows))
    if others:
        parts.append(
            table(
                ["selection, file, command line", "measured", "bar"],
                ([line["what"], _measured(line), _bar(line)] for line in others),
            )
        )
    return "\n".join(_without_empty_last(part) for part in parts)


def figures(result: Result) -> str:
    """One result whose figures stand for themselves."""
    rows = ([line["what"], _measured(line), _bar(line)] for line in result["figures"])
    return _without_empty_last(table(["", "measured", "bar"], rows))


def forms(result: Result) -> str:
    """A row a form, a column a quantity."""
    return _by_way(result["figures"], "form")


def rungs(result: Result) -> str:
    """A row a rung, a column a quantity; a table for each setting of dropout."""
    settings = dict.fromkeys(line["dropout"] for line in result["figures"])
    return "\n".join(
        _by_way(
            [line for line in result["figures"] if line["dropout"] == share],
            f"dropout {share:g}" if share else "no dropout",
        )
        for share in settings
    )


def exports(result: Result) -> str:
    """A row a quantity, a column a support."""
    found: dict[str, dict[str, str]] = {}
    for line in result["figures"]:
        quantity, _, support = line["what"].partition(": ")
        found.setdefault(quantity, {})[support] = _measured(line)
    supports = dict.fromkeys(support for cells in found.values() for support in cells)
    return table(["", *supports], ([quantity, *cells.values()] for quantity, cells in found.items()))


def _by_way(figures: Sequence[Result], name: str) -> str:
    """A row a way, a column a quantity, from figures named ``QUANTITY: WAY`` or ``QUANTITY: WAY / RIVAL``."""
    found: dict[str, dict[str, str]] = {}
    for line in figures:
        quantity, _, form = line["what"].partition(": ")
        way, _, to = form.partition(" / ")
        found.setdefault(way, {})[f"{quantity} / {to}" if to else quantity] = _measured(line)
    quantities = dict.fromkeys(quantity for cells in found.values() for quantity in cells)
    return table(
        [name, *quantities], ([way, *(cells.get(it, "") for it in quantities)] for way, cells in found.items())
    )


def _measured(line: Result) -> str:
    low, high = line["quartiles"]
    unit = f" {line['unit']}" if line["unit"] else ""
    spread = f" ({_number(low)} to {_number(high)})" if line["samples"] > 1 else ""
    missed = ", **missed**" if line.get("met") is False else ""
    return f"{_number(line['median'])}{unit}{spread}{missed}"


def _number(value: float) -> str:
    if 0 < abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def _bar(line: Result) -> str:
    return f"≤ {line['bar']:g}" if "bar" in line else ""


def _without_empty_last(rows: str) -> str:
    """A table without its last column where no cell of that column holds anything."""
    cells = [line.strip("|").split("|") for line in rows.splitlines()]
    if any(line[-1].strip() for line in cells[2:]):
        return rows
    return "".join(f"|{'|'.join(line[:-1])}|\n" for line in cells)


def machine(results: Results) -> str:
    """Command, processor and versions of every result."""
    measured = [(result["command"], result["machine"]) for result in results.costs]
    measured += [(result["command"], result["machine"]) for result in results.separate.values()]
    measured += [
        ("python -m benchmarks.cost.method_costs", cost["machine"]) for cost in list(results.methods.values())[:1]
    ]
    for name, by_task in (
        ("sweep", results.accuracy),
        ("compare", results.compare),
        ("shares", results.shares),
    ):
        for task, runs in by_task.items():
            measured += [(f"python -m benchmarks.accuracy.{name} --task {task}", about) for about in _machines(runs)]
    if results.kinds:
        measured.append(("python -m benchmarks.tasks.kinds", results.kinds[0]["machine"]))
    rows = (
        [
            f"`{command}`",
            about.get("accelerator", about["processor"]),
            *(str(about[key]) for key in ("threads", *PACKAGES)),
        ]
        for command, about in measured
    )
    return table(["command", "processor", "threads", *PACKAGES], rows)


def _machines(runs: Sequence[Result]) -> list[Result]:
    """Each once that some of the runs were made on."""
    return list({json.dumps(run["machine"], sort_keys=True): run["machine"] for run in runs}.values())


PACKAGES = ("python", "torch", "transformers", "peft", "numba", "numpy")
TABLES: dict[str, tuple[Callable[[Results], str], str]] = {  # what writes it, and the results that it needs
    "cost": (cost, "costs"),
    "cost-more": (cost_more, "costs"),
    "headline": (headline, "costs"),
    "compare": (lambda results: report_compare.overview(results.compare, results.compare_costs), "compare"),
    "compare-pairs": (lambda results: report_compare.pairs(results.compare), "compare"),
    "compare-details": (lambda results: report_compare.details(results.compare), "compare"),
    "accuracy": (lambda results: report_accuracy.overview(results.accuracy, results.methods), "accuracy"),
    "accuracy-by-task": (lambda results: report_accuracy.by_task(results.accuracy), "accuracy"),
    "shares": (lambda results: report_shares.by_share(results.shares), "shares"),
    "step-law": (lambda results: report_step_law.by_setting(results.step_law), "step_law"),
    "gate-penalties": (lambda results: report_gates.by_way(results.gate_penalties), "gate_penalties"),
    "kinds": (lambda results: report_kinds.measured(results.kinds), "kinds"),
    "kinds-costs": (lambda results: report_kinds.costs(results.kinds), "kinds"),
    "kinds-precision": (lambda results: report_kinds.precision(results.kinds), "kinds"),
    "kinds-tried": (lambda results: report_kinds.tried(results.kinds), "kinds"),
    "kinds-step": (lambda results: figures(results.separate["step_cost_kinds"]), "step_cost_kinds"),
    "cooperation": (lambda results: report_cooperation.overview(results.cooperation), "cooperation"),
    "attacks": (lambda results: report_trust.attacks(results.attacks), "attacks"),
    "privacy": (lambda results: report_trust.privacy(results.privacy), "privacy"),
    "many": (lambda results: report_merging.many(results.many), "many"),
    "merged": (lambda results: report_merging.merged(results.merged), "merged"),
    "forgotten": (lambda results: report_merging.forgotten(results.forgotten), "forgotten"),
    "planning-solvers": (lambda results: report_planning.solvers(results.planning), "planning"),
    "planning-savings": (lambda results: report_planning.savings(results.planning), "planning"),
    "emulated-plans": (lambda results: report_cooperation.plans(results.plans), "plans"),
    "planned-fleets": (
        lambda results: report_cooperation.planned(results.separate["planned_fleets"]["figures"]),
        "planned_fleets",
    ),
    "cooperation-bytes": (
        lambda results: report_cooperation.sizes(results.separate["cooperation_bytes"]["figures"]),
        "cooperation_bytes",
    ),
    "scale-coordinators": (lambda results: report_scale.coordinators(results.scale), "scale"),
    "scale-connections": (lambda results: report_scale.connections(results.scale), "scale"),
    "scale-jetstream": (
        lambda results: report_scale.jetstream(results.separate["jetstream"]["figures"]),
        "jetstream",
    ),
    "scale-hierarchy": (
        lambda results: report_scale.hierarchy(results.separate["hierarchy"]["details"]["rounds"]),
        "hierarchy",
    ),
    "forms": (lambda results: forms(results.separate["forms_cost"]), "forms_cost"),
    "exports": (lambda results: exports(results.separate["exports"]), "exports"),
    "memory-options": (lambda results: rungs(results.separate["memory_options"]), "memory_options"),
    "label-loss-memory": (lambda results: figures(results.separate["label_loss_memory"]), "label_loss_memory"),
    "inference-memory": (lambda results: figures(results.separate["inference_memory"]), "inference_memory"),
    "int4-base": (lambda results: figures(results.separate["int4_base"]), "int4_base"),
    "t5-step": (lambda results: figures(results.separate["step_cost_t5"]), "step_cost_t5"),
    "selection-memory": (lambda results: figures(results.separate["selection_memory"]), "selection_memory"),
    "machine": (machine, "costs"),
}


def rewritten(text: str, results: Results) -> str:
    """A document with its tables as the results have them."""

    def replace(match: re.Match[str]) -> str:
        name = match[2]
        if name not in TABLES:
            raise SystemExit(f"no table is named {name!r} (there are: {', '.join(TABLES)})")
        write, needs = TABLES[name]
        return f"{match[1]}{write(results)}{match[3]}" if results.has(needs) else match[0]

    return MARKED.sub(replace, text)


# --- the command ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a table is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder that holds README.md and benchmarks/")
    options = parser.parse_args(arguments)
    results = Results(options.root / "benchmarks")
    stale = []
    for name in DOCUMENTS:
        path = options.root / name
        if not path.exists():
            continue
        before = path.read_text(encoding="utf-8")
        after = rewritten(before, results)
        if after != before:
            stale.append(name)
            if not options.check:
                path.write_text(after, encoding="utf-8")
    if options.check:
        for name in stale:
            print(f"{name}: a table is out of date: run python -m benchmarks.report.tables", file=sys.stderr)
        return int(bool(stale))
    if results.accuracy:
        drawn = report_accuracy.figures(results.accuracy, results.methods)
        if results.shares:
            drawn["shares"] = report_shares.figure(results.shares)
        if report_compare.has_figure(results.compare, results.compare_costs):
            drawn["compare"] = report_compare.figure(results.compare, results.compare_costs)
        report_accuracy.save(drawn, options.root / "docs" / "images")
    print(f"rewrote {', '.join(stale) or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
