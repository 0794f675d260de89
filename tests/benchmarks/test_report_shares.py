"""Accuracy by share as a table and a figure."""

from typing import Any

from benchmarks.report import report_shares


def run(method: str, seed: int, test: float) -> dict[str, Any]:
    return {"method": method, "seed": seed, "test": test}


RUNS = {
    "tweets": [
        run("random, 1%", 0, 0.91),
        run("random, 0.01%", 1, 0.72),
        run("random, 0.01%", 0, 0.70),
        run("taskedge, 0.01%", 0, 0.80),
    ]
}


def test_shares_ascend_and_missing_runs_are_blank() -> None:
    assert report_shares.by_share(RUNS).splitlines() == [
        "| Tweets (2 classes) | 0.01 % | 1 % |",
        "| --- | ---: | ---: |",
        "| random | 0.710 ± 0.010 | 0.910 (one seed) |",
        "| taskedge | 0.800 (one seed) |  |",
    ]


def test_a_line_a_rule() -> None:
    (axes,) = report_shares.figure(RUNS).axes
    lines = {line.get_label(): list(line.get_xdata()) for line in axes.get_lines()}
    assert lines == {"random": [0.01, 1.0], "taskedge": [0.01]}
