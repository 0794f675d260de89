"""The tables follow from the results, and a stale one is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import report_accuracy
from benchmarks.report import tables as report

DOCUMENT = (
    "# Title\n\n<!-- table:cost -->\n<!-- end -->\n\nbetween\n\n<!-- table:accuracy -->\nold\n<!-- end -->\n"
    "<!-- table:accuracy-by-task -->\n<!-- end -->\nafter\n"
)


def line(what: str, median: float, **more: Any) -> dict[str, Any]:
    return {
        "what": what,
        "median": median,
        "quartiles": [median - 0.01, median + 0.01],
        "unit": "",
        "samples": 9,
    } | more


def run(method: str, lr: float, seed: int, validation: float, test: float, **more: Any) -> dict[str, Any]:
    made_on = {"processor": "some", "threads": 1} | dict.fromkeys(report.PACKAGES, "1.0")
    facts = {"method": method, "lr": lr, "seed": seed, "validation": validation, "test": test, "entries": 20736}
    return facts | {"task": "movie-reviews", "machine": made_on} | more


RUNS = [
    run("random", 0.003, 0, 0.70, 0.99),
    run("random", 0.01, 0, 0.80, 0.75, columns_mean=100.0, stored_columns=2000),
    run("random", 0.03, 0, 0.80, 0.99),
    run("random", 0.01, 1, 0.10, 0.81, columns_mean=102.0, stored_columns=2002),
    run("head only", 0.01, 0, 0.60, 0.65, entries=0),
    run("taskedge, scaled step", 0.03, 0, 0.80, 0.72),
    run("taskedge, scaled step", 0.03, 1, 0.80, 0.74),
    run("LoRA r=8", 0.003, 0, 0.90, 0.98),
    run("full", 0.0003, 0, 0.90, 0.98),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with one cost result, one accuracy result and a README."""
    results = tmp_path / "benchmarks"
    (results / "accuracy" / "results" / "sweep").mkdir(parents=True)
    (results / "cost" / "results").mkdir(parents=True)
    figures = [
        line("step: ours / frozen", 1.05, bar=1.06, met=True, dropout=0.1),
        line("step: ours / frozen", 1.09, bar=1.06, met=False, dropout=0.0),
        line("step: theirs / frozen", 1.3, dropout=0.1),
        line("start", 0.14, unit="s", bar=0.3, met=True),
    ]
    (results / "cost" / "results" / "step_cost.json").write_text(
        json.dumps({"command": "python it", "machine": RUNS[0]["machine"], "figures": figures})
    )
    (results / "accuracy" / "results" / "sweep" / "movie-reviews.jsonl").write_text(
        "\n".join(map(json.dumps, RUNS)) + "\n"
    )
    cost = {"saved_bytes_per_token": 6000, "step": line("step", 1.06)}
    costs = {"method": "taskedge, scaled step", "file_bytes": 150_000, "entries": 20736, "dropout 0": cost}
    (results / "cost" / "results" / "method_costs.jsonl").write_text(
        json.dumps(costs | {"machine": RUNS[0]["machine"]}) + "\n"
    )
    (tmp_path / "README.md").write_text(DOCUMENT)
    return tmp_path


@pytest.mark.slow
def test_tables_are_written_between_their_marks_and_the_rest_is_kept(root: Path) -> None:
    assert report.main(["--root", str(root)]) == 0
    text = (root / "README.md").read_text()
    assert text.startswith("# Title\n\n<!-- table:cost -->\n| training |")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "\nbetween\n" in text
    assert "old" not in text
    assert "| step: ours / frozen | 1.050 (1.040 to 1.060) | 1.090 (1.080 to 1.100), **missed** | ≤ 1.06 |" in text
    assert "| start | 0.140 s (0.130 to 0.150) | ≤ 0.3 |" in text
    assert "theirs" not in text  # it has no bar
    assert "| random | 0.091% | 78.0 | 78.0 | +5.0 ± 25.4 |  |  |  |" in text
    assert "| **taskedge, scaled step** | 0.091% | 73.0 | 73.0 |  | 1.06 | 6,000 | 150 kB |" in text
    assert "| head only | - | 65.0 | 65.0 |  |  |  |  |" in text  # one seed: no interval
    assert "| random | 20,736 | 0.091% | 0.01 | 0.780 ± 0.030 | 101 | 2,001 |" in text
    assert "| head only | - | - | 0.01 | 0.650 (one seed) | - | - |" in text


@pytest.mark.slow
def test_methods_whose_head_trained_at_the_rate_of_the_body_are_left_out(root: Path) -> None:
    report.main(["--root", str(root)])
    text = (root / "README.md").read_text()
    assert "LoRA" not in text
    assert "| full |" not in text


@pytest.mark.slow
def test_figures_without_a_bar_have_a_table_of_their_own(root: Path) -> None:
    (root / "README.md").write_text("<!-- table:cost-more -->\n<!-- end -->\n<!-- table:machine -->\n<!-- end -->\n")
    report.main(["--root", str(root)])
    text = (root / "README.md").read_text()
    assert "| training | dropout 0.1 |\n| --- | ---: |\n| step: theirs / frozen | 1.300 (1.290 to 1.310) |\n" in text
    assert "`python it`" in text


@pytest.mark.slow
def test_check_notices_a_stale_table_and_changes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--check", "--root", str(root)]) == 1
    assert "README.md" in capsys.readouterr().err
    assert (root / "README.md").read_text() == DOCUMENT
    report.main(["--root", str(root)])
    assert report.main(["--check", "--root", str(root)]) == 0


def test_a_table_without_results_is_left_as_it_is(root: Path) -> None:
    (root / "benchmarks" / "accuracy" / "results" / "sweep" / "movie-reviews.jsonl").unlink()
    report.main(["--root", str(root)])
    assert "<!-- table:accuracy -->\nold\n<!-- end -->" in (root / "README.md").read_text()


def test_an_unknown_table_is_named(root: Path) -> None:
    (root / "README.md").write_text("<!-- table:costs -->\n<!-- end -->\n")
    with pytest.raises(SystemExit, match="'costs'"):
        report.main(["--root", str(root)])


@pytest.mark.slow
def test_the_figures_are_drawn_the_same_each_time(root: Path) -> None:
    pytest.importorskip("matplotlib")
    results = report.Results(root / "benchmarks")
    for folder in ("one", "two"):
        report_accuracy.save(report_accuracy.figures(results.accuracy, results.methods), root / folder)
    for name in ("accuracy.svg", "learning-rate.svg", "trade-off.svg"):
        assert (root / "one" / name).read_bytes() == (root / "two" / name).read_bytes()


def test_the_tables_of_this_project_are_up_to_date() -> None:
    assert report.main(["--check"]) == 0
