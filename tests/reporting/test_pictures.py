from __future__ import annotations

import sys

import pytest

from taskedge.errors import TaskEdgeError
from taskedge.reporting.pictures import draw_plan, draw_simulation
from taskedge.reporting.tables import columns, plan_text, simulation_text

PLAN = {
    "model": "toy",
    "solver": "joint",
    "aggregation_seconds": 0.1,
    "latency_seconds": 2.1,
    "lower_bound_seconds": 2.0,
    "gap_ratio": 0.05,
    "blocks": [{"layers": ["a"], "trained_values": 10.0, "upload_bits": 320.0}],
    "parts": [
        {
            "device": "phone & <co>",
            "blocks": [1],
            "reaches_layer": 1,
            "bandwidth_hz": 1e6,
            "down_seconds": 0.1,
            "compute_seconds": 1.5,
            "up_seconds": 0.4,
            "memory_bytes": 1e9,
            "capacity_bytes": 2e9,
        }
    ],
    "idle": ["spare"],
    "notes": ["a note"],
    "compared_seconds": {"equal": 4.2, "fedavg": None, "exact": 2.0},
}

ROUNDS = {
    "model": "toy",
    "rounds": 3,
    "devices": 2,
    "fading": "rayleigh",
    "churn": 0.1,
    "seed": 0,
    "devices_present": [2, 1, 2],
    "latency_seconds": {"joint": [1.0, None, 2.0], "equal": [2.0, None, 30.0], "never": [None, None, None]},
    "summary": {
        "joint": {
            "mean_seconds": 1.5,
            "median_seconds": 1.5,
            "p95_seconds": 2.0,
            "worst_seconds": 2.0,
            "rounds_without_plan": 1,
            "saved_ratio": 0.0,
        },
        "never": {
            "mean_seconds": None,
            "median_seconds": None,
            "p95_seconds": None,
            "worst_seconds": None,
            "rounds_without_plan": 3,
            "saved_ratio": None,
        },
    },
}


@pytest.mark.parametrize(("draw", "figures"), [(draw_plan, PLAN), (draw_simulation, ROUNDS)])
def test_a_picture_is_whole_and_always_the_same(tmp_path, draw, figures) -> None:
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    draw(figures, first)
    draw(figures, second)
    assert first.read_text().rstrip().endswith("</svg>")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "b.svg"]


def test_no_matplotlib(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(TaskEdgeError, match=r"pip install 'taskedge\[plot\]'"):
        draw_plan(PLAN, tmp_path / "a.svg")


def test_an_unknown_kind_of_picture(tmp_path) -> None:
    with pytest.raises(TaskEdgeError, match=r"ends in .svg"):
        draw_plan(PLAN, tmp_path / "a.docx")
    assert not list(tmp_path.iterdir())


def test_a_plan_in_words() -> None:
    text = plan_text(PLAN)
    for part in ("idle: spare", "note: a note", "50.0 % less", "5.0 % more", "no plan", "gap 5.00 %", "1,000.0 kHz"):
        assert part in text


def test_rounds_in_words() -> None:
    text = simulation_text(ROUNDS)
    assert "1 to 2 of 2 devices present" in text
    assert "never" in text


def test_columns_line_up() -> None:
    assert columns([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc   d"
