"""The report of plain values: sections for what is known, and a line for what is not."""

from __future__ import annotations

import pytest

from taskedge.reporting.task_report import MAX_TEXT, report_page

PROVENANCE = {
    "rule": "taskedge", "allocation": "per_neuron", "budget": "1%", "base": "b", "base_parameters": 1000, "task": "t",
    "labels": ["neg", "pos"], "training": {"rows": 10, "steps": 4, "lr": 0.1},
}  # fmt: skip
DELTA = {
    "bytes": 100, "entries": 10, "share": 0.01, "low_rank": {}, "low_rank_parameters": 0, "whole_parameters": 4,
    "by_layer": {f"layer.{depth}": depth + 1 for depth in range(70)}, "by_kind": {"query": 10},
    "sections": {"values": 40}, "provenance": PROVENANCE,
}  # fmt: skip
RESULT = {
    "run_peak_memory": 2_000_000, "seconds_per_step": 0.5, "seconds": 9.0, "steps": 4,
    "predicted": {"memory": {"peak": 1_000_000}, "seconds": 0.25},
}  # fmt: skip
FIGURES = {
    "labels": ["neg", "pos"], "confusion": [[1, 2], [3, 4]],
    "classes": [{"label": name, "rows": 3, "predicted": 4, "precision": 0.25, "recall": None, "f1": 0.5}
                for name in ("neg", "pos")],
}  # fmt: skip


def run(keep, *losses):
    log = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
    held_out = [{"step": step, "held_out_loss": loss + 0.5} for step, loss in enumerate(losses, start=1)]
    return {"log": [*log, *held_out], "settings": {"keep": keep}, "result": RESULT}


def test_what_is_not_known_is_said():
    made = report_page([{"name": "n", "delta": DELTA}])
    assert "no --log of the run was given" in made
    assert "no --data was given" in made
    assert "Predicted and observed" not in made
    assert "10 more are not shown" in made


def test_predicted_and_observed_stand_side_by_side():
    made = report_page([{"name": "n", "delta": DELTA, "run": run("best", 3.0, 1.0, 2.0)}])
    for shown in ("0.250 s", "0.500 s", "held-out loss", "kept: step 2"):
        assert shown in made


def test_long_examples_are_cut_and_undefined_ratios_are_dashes():
    mistake = {"row": 3, "text": "x" * 5000, "label": "neg", "predicted": "pos", "probability": 0.9}
    measured = {"path": "p", "measures": {"rows": 10, "pearson": None}, "figures": FIGURES, "mistakes": [mistake]}
    made = report_page([{"name": "n", "delta": DELTA, "eval": measured}])
    assert "x" * MAX_TEXT + "\u2026" in made
    assert "x" * (MAX_TEXT + 1) not in made
    assert "<td>-</td>" in made
    assert "undefined" in made


def test_lineage_is_followed():
    origin = {"file": "b", "digest": "22", "from_delta": {"file": "a", "digest": "11"}}
    delta = DELTA | {"provenance": PROVENANCE | {"training": {"from_delta": origin}}}
    assert "b (22), which continues from a (11)" in report_page([{"name": "n", "delta": delta}])


def test_a_comparison_shows_what_differs_only():
    other = DELTA | {"provenance": PROVENANCE | {"training": {"rows": 10, "steps": 4, "lr": 0.2}}}
    runs = [{"name": "a", "delta": DELTA, "run": run("last", 2.0, 1.0)}, {"name": "b", "delta": other}]
    made = report_page([one | {"eval": {"measures": {"rows": 2, "accuracy": 0.5}, "figures": FIGURES}} for one in runs])
    differing = made.split("Settings that differ")[1].split("</section>")[0]
    assert "lr" in differing
    assert "steps" not in differing
    assert "F1 of class" in made


@pytest.mark.parametrize("count", [1, 400])
def test_many_rounds_stay_small(count):
    rounds = [
        {
            "round": n,
            "devices": 3,
            "accepted": 3,
            "loss": 1.0,
            "upload_bytes": 10,
            "predicted_seconds": 1.0,
            "seconds": 2.0,
        }
        for n in range(count)
    ]
    made = report_page([{"name": "n", "delta": DELTA, "rounds": rounds}])
    assert f"{count} rounds, uploads of " in made
    assert len(made) < 200_000
