"""The report of a delta, or of several side by side, as one page. The input is plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from taskedge.profiling.byte_size import format_bytes
from taskedge.reporting.charts import bar_chart, confusion_chart, line_chart, plan_chart
from taskedge.reporting.page import facts, markup_table, note, page, section
from taskedge.reporting.tables import count_text, percent_text

MAX_TEXT = 600
"""Characters of an example that are shown."""
MAX_BARS = 60
Values = Mapping[str, Any]


def report_page(reports: Sequence[Values]) -> str:
    """Return the page of one report, or of several compared.

    Args:
        reports: each with ``name``, ``delta`` (of ``taskedge info --json``), and where they are known ``run`` (of
            ``tune --log``), ``rounds`` and ``devices`` (of a cooperative run), ``plan`` (``Plan.model_dump()``) and
            ``eval``: ``path``, ``measures``, ``figures`` (``class_figures``) and ``mistakes`` (``worst_mistakes``).
    """
    if len(reports) == 1:
        report = reports[0]
        provenance = report["delta"]["provenance"]
        subtitle = f"{provenance['task'] or 'a task that is not named'}, trained on {provenance['base'] or 'a base'}"
        return page(str(report["name"]), subtitle, _sections(report))
    names = ", ".join(str(report["name"]) for report in reports)
    return page(f"{len(reports)} runs compared", names, _compared(reports))


def _sections(report: Values) -> list[str]:
    delta, run = report["delta"], report.get("run")
    return [
        section("What was trained", _trained(delta)),
        section("Loss", _loss(report)),
        section("Predicted and observed", _costs(run) if run else ""),
        _quality(report.get("eval")),
        section("Where the entries are", _entries(delta)),
        section("Rounds", _rounds(report.get("rounds") or [])),
        section("Devices", _devices(report.get("devices") or {})),
        section("Plan", *([plan_chart(report["plan"]), _plan_note(report["plan"])] if report.get("plan") else [])),
        section("Provenance", _provenance(delta)),
    ]


def _loss(report: Values) -> str:
    if report.get("run"):
        return _curves({"": report["run"]})
    return "" if report.get("rounds") else note("no --log of the run was given, so there are no curves")


def _trained(delta: Values) -> str:
    provenance, training = delta["provenance"], delta["provenance"]["training"]
    labels = provenance["labels"]
    pairs = [
        ("base", f"{provenance['base'] or 'not named'}, {provenance['base_parameters']:,} parameters"),
        ("task", provenance["task"] or "not named"),
        ("entries", f"{delta['entries']:,} ({percent_text(delta['share'], 4)}) by rule {provenance['rule']}"),
        ("in full", f"{delta['whole_parameters']:,} parameters"),
        ("file", f"{delta['bytes']:,} bytes"),
    ]
    if labels:
        shown = ", ".join(labels[:30]) + (f" and {len(labels) - 30:,} more" if len(labels) > 30 else "")
        pairs.insert(2, ("classes", f"{len(labels):,}: {shown}"))
    if delta["low_rank_parameters"]:
        pairs.insert(
            3, ("low rank", f"{delta['low_rank_parameters']:,} parameters in {len(delta['low_rank'])} linears")
        )
    for name, title in (("rows", "training rows"), ("held_out_rows", "held-out rows"), ("steps", "steps")):
        if isinstance(training.get(name), int):
            pairs.append((title, f"{training[name]:,}"))
    if "kept_step" in training:
        pairs.append(("kept", f"values of step {training['kept_step']}, held-out loss {training['held_out_loss']:.4f}"))
    if isinstance(training.get("from_delta"), dict):
        pairs.append(("continues from", _lineage(training["from_delta"])))
    return facts(pairs)


def _lineage(origin: Values) -> str:
    names = []
    while isinstance(origin, Mapping):
        names.append(f"{origin.get('file')} ({str(origin.get('digest'))[:12]})")
        origin = origin.get("from_delta")  # type: ignore[assignment]
    return ", which continues from ".join(names)


def _curves(runs: Mapping[str, Values]) -> str:
    series: dict[str, list[tuple[float, float]]] = {}
    for name, run in runs.items():
        for key, title in (("loss", "training loss"), ("held_out_loss", "held-out loss")):
            points = [(float(entry["step"]), float(entry[key])) for entry in run["log"] if key in entry]
            if points:
                series[f"{name} {title}".strip()] = points
    kept = [run["settings"].get("keep") == "best" for run in runs.values()]
    mark = None
    if kept == [True]:
        held_out = next((points for name, points in series.items() if name.endswith("held-out loss")), [])
        if held_out:
            step = min(held_out, key=lambda point: point[1])[0]
            mark = (step, f"kept: step {step:.0f}")
    return line_chart(series, "step", "loss", mark) if series else note("the log has no losses")


def _costs(run: Values) -> str:
    result, predicted = run["result"], run["result"].get("predicted")
    rows: list[list[str]] = [["", "predicted", "observed"]]
    memory = seconds = "not predicted (no --memory)"
    if predicted:
        memory, seconds = format_bytes(predicted["memory"]["peak"]), f"{predicted['seconds']:.3f} s"
    rows.append(["peak memory", memory, format_bytes(result["run_peak_memory"])])
    rows.append(["a step", seconds, f"{result['seconds_per_step']:.3f} s"])
    rows.append(["the whole run", "", f"{result['seconds']:.1f} s, {result['steps']:,} steps"])
    return markup_table(rows)


def _quality(examined: Values | None) -> str:
    if not examined:
        return section("Quality", note("no --data was given, so nothing was measured"))
    measures = {name: value for name, value in examined["measures"].items() if name != "rows"}
    pairs = [(name.replace("_", " "), "undefined" if v is None else f"{v:.4f}") for name, v in measures.items()]
    parts = [note(f"{examined['measures']['rows']:,} rows of {examined['path']}"), facts(pairs)]
    figures = examined.get("figures")
    if figures:
        rows: list[list[str]] = [["class", "rows", "predicted", "precision", "recall", "F1"]]
        for one in figures["classes"]:
            ratios = ["-" if one[key] is None else f"{one[key]:.3f}" for key in ("precision", "recall", "f1")]
            rows.append([one["label"], f"{one['rows']:,}", f"{one['predicted']:,}", *ratios])
        parts.append(markup_table(rows))
        if "confusion" in figures:
            picture = confusion_chart(figures["labels"], figures["confusion"])
            parts.append(picture or note(f"{len(figures['labels']):,} classes are too many for a matrix"))
    mistakes = ""
    if examined.get("mistakes"):
        rows = [["row", "text", "label", "predicted", "probability"]]
        for one in examined["mistakes"]:
            text = one["text"] if len(one["text"]) <= MAX_TEXT else f"{one['text'][:MAX_TEXT]}…"
            rows.append([str(one["row"]), text, one["label"], one["predicted"], f"{one['probability']:.3f}"])
        mistakes = section("Worst mistakes", markup_table(rows, left=(1, 2, 3)))
    return section("Quality", *parts) + mistakes


def _entries(delta: Values) -> str:
    parts = []
    for title, key in (("entries by depth", "by_layer"), ("entries by kind of linear", "by_kind")):
        counts = delta[key]
        if counts:
            parts += [note(title), bar_chart(dict(list(counts.items())[:MAX_BARS]), title)]
            if len(counts) > MAX_BARS:
                parts.append(note(f"{len(counts) - MAX_BARS:,} more are not shown"))
    return "\n".join(parts) or note("the file has no entries")


def _rounds(rounds: Sequence[Values]) -> str:
    if not rounds:
        return ""
    total_bytes = sum(one.get("upload_bytes") or 0 for one in rounds)
    seconds = {
        name: [(float(one["round"]), float(one[key])) for one in rounds if one.get(key) is not None]
        for name, key in (("predicted", "predicted_seconds"), ("observed", "seconds"))
    }
    loss = [(float(one["round"]), float(one["loss"])) for one in rounds if one.get("loss") is not None]
    rows: list[list[str]] = [["round", "devices", "accepted", "loss", "uploads", "predicted", "observed"]]
    for one in rounds:
        cells = [str(one.get(key, "")) for key in ("round", "devices", "accepted")]
        numbers = (("loss", "{:.4f}"), ("upload_bytes", "{:,} bytes"), ("predicted_seconds", "{:.2f} s"))
        cells += ["-" if one.get(key) is None else form.format(one[key]) for key, form in numbers]
        rows.append([*cells, "-" if one.get("seconds") is None else f"{one['seconds']:.2f} s"])
    return "\n".join(
        [
            note(f"{len(rounds):,} rounds, uploads of {format_bytes(total_bytes)} in total"),
            line_chart({"loss of the devices": loss}, "round", "loss"),
            line_chart(seconds, "round", "seconds"),
            markup_table(rows),
        ]
    )


def _devices(devices: Mapping[str, Values]) -> str:
    if not devices:
        return ""
    rows: list[list[str]] = [["device", "tasks", "accepted", "bytes down", "bytes up", "predicted", "observed"]]
    for name, one in devices.items():
        counts = [f"{one[key]:,.0f}" for key in ("tasks", "accepted", "bytes_down", "bytes_up")]
        seconds = [f"{one[key]:.1f} s" for key in ("predicted_seconds", "observed_seconds")]
        rows.append([name, *counts, *seconds])
    return note("sums over all tasks that were answered or given up") + markup_table(rows)


def _plan_note(plan: Values) -> str:
    return note(
        f"{plan['model']}, solver {plan['solver']}: a round of {plan['latency_seconds']:.3f} s, lower bound "
        f"{plan['lower_bound_seconds']:.3f} s; {count_text(len(plan['idle']), 'device')} without work"
    )


def _provenance(delta: Values) -> str:
    training = delta["provenance"]["training"]
    pairs = [(key, value) for key, value in delta["provenance"].items() if key not in ("training", "labels")]
    pairs += [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in training.items()]
    sections = ", ".join(f"{name} {size:,}" for name, size in delta["sections"].items())
    return facts([*pairs, ("bytes by section", sections)])


def _compared(reports: Sequence[Values]) -> list[str]:
    names = [str(report["name"]) for report in reports]
    deltas = [report["delta"] for report in reports]
    rows: list[list[Any]] = [["", *names]]
    for title, key in (("entries", "entries"), ("parameters in full", "whole_parameters"), ("bytes", "bytes")):
        rows.append([title, *(f"{delta[key]:,}" for delta in deltas)])
    rows.append(["rule", *(delta["provenance"]["rule"] for delta in deltas)])
    measures = [(report.get("eval") or {}).get("measures", {}) for report in reports]
    for key in dict.fromkeys(key for one in measures for key in one):
        cells = [one.get(key) for one in measures]
        rows.append([key.replace("_", " "), *("-" if cell is None else f"{cell:.6g}" for cell in cells)])
    settings = [delta["provenance"]["training"] for delta in deltas]
    differing = []
    for key in dict.fromkeys(key for one in settings for key in one):
        values = [json.dumps(one[key]) if key in one else "-" for one in settings]
        if len(set(values)) > 1:
            differing.append([key, *values])
    runs = {name: report["run"] for name, report in zip(names, reports, strict=True) if report.get("run")}
    per_class: list[list[Any]] = []
    figures = [(report.get("eval") or {}).get("figures") or {} for report in reports]
    if all(figures) and len({tuple(one["labels"]) for one in figures}) == 1:
        per_class = [["F1 of class", *names]]
        for index, label in enumerate(figures[0]["labels"]):
            scores = [one["classes"][index]["f1"] for one in figures]
            per_class.append([label, *("-" if score is None else f"{score:.3f}" for score in scores)])
    return [
        section("Results", markup_table(rows)),
        section("Settings that differ", markup_table([["", *names], *differing]) if differing else note("none")),
        section("Loss", _curves(runs) if runs else note("no --log was given")),
        section("Classes", markup_table(per_class) if per_class else ""),
    ]
