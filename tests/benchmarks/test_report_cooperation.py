"""Cooperative runs as tables."""

from typing import Any

from benchmarks.report import report_cooperation


def run(variant: str, seed: int, test: float, change: str = "", **more: Any) -> dict[str, Any]:
    return {"variant": variant, "change": change, "seed": seed, "test": test, **more}


def test_rows_come_in_order_and_trials_of_other_settings_are_left_out() -> None:
    lines = [
        run("deft, iid", 0, 0.80, bytes_up=[10_000.0, 20_000]),
        run("deft, iid", 1, 0.82, bytes_up=[20_000.0, 30_000]),
        run("deft, iid", 0, 0.10, change="lr=1", bytes_up=[1.0, 1]),
        run("tune", 0, 0.81),
        run(
            "fedavg, iid, 1/8 active",
            0,
            0.7,
            bytes_up=[1e3, 2e3],
            upload_saved=0.5,
            entries_saved=0.6,
            backward_saved=0.25,
            flops_saved=0.1,
        ),
    ]
    _, _, *rows = report_cooperation.overview(lines).splitlines()
    assert rows == [
        "| `tune`, all rows in one place | 0.810 | 1 |  |  |  |  |  |  |",
        "| `deft`, rows parted at random | 0.810 ± 0.014 | 2 | 15.0 | 30.0 |  |  |  |  |",
        "| the same, `active_share = 1/8` | 0.700 | 1 | 1.0 | 2.0 | 50% | 60% | 25% | 10% |",
    ]


def test_sizes_side_by_side() -> None:
    figures = [
        {"what": "down: deft", "median": 98.71, "bar": 100.0, "met": True},
        {"what": "up: deft", "median": 34.9, "bar": 30.0, "met": False},
    ]
    assert report_cooperation.sizes(figures).splitlines()[2:] == ["| deft | 98.7 | 34.9, **above 30** |"]


def plan(solver: str, seed: int, seconds: float, *accuracies: float) -> dict[str, Any]:
    """Looked at after each of as many rounds, which all take as long."""
    looks = {str(number): accuracy for number, accuracy in enumerate(accuracies, start=1)}
    after = {number: seconds * int(number) / len(looks) for number in looks}
    return {
        "solver": solver,
        "seed": seed,
        "rounds": len(looks),
        "seconds": seconds,
        "seconds_after": after,
        "accuracy": looks,
    }


def test_plans_by_their_seconds_and_by_those_to_an_accuracy() -> None:
    lines = [
        plan("joint", 0, 40, 0.2, 0.6, 0.8, 0.79),
        plan("joint", 1, 20, 0.7, 0.6, 0.7, 0.7),
        plan("equal", 0, 80, 0.2, 0.3, 0.4, 0.5),
        plan("equal", 1, 40, 0.7, 0.7, 0.7, 0.7),
    ]
    head, _, *rows = report_cooperation.plans(lines).splitlines()
    assert "4 rounds, s" in head
    assert rows == [
        "| `joint` | 40 / 20 | 30 s | 25 / 5 | 15 s | 74.5% |",
        "| `equal` | 80 / 40 | 60 s | never / 10 |  | 60.0% |",
    ]


def test_an_accuracy_is_reached_on_the_straight_line_between_two_looks() -> None:
    run = plan("joint", 0, 30, 0.3, 0.5, 0.9)
    assert report_cooperation.seconds_to(run, 0.15) == 5
    assert report_cooperation.seconds_to(run, 0.5) == 20
    assert report_cooperation.seconds_to(run, 0.7) == 25
    assert report_cooperation.seconds_to(run, 0.95) is None


def test_planned_rounds_by_kind_of_fleet() -> None:
    figures = [
        {"what": "on radio: match / exact", "median": 1.004, "quartiles": [1.0, 1.02]},
        {"what": "mixed: match / exact", "median": 1.176, "quartiles": [1.08, 1.21]},
        {"what": "mixed: match / exact, share of fleets above 1.03", "median": 0.88, "quartiles": [0.88, 0.88]},
    ]
    assert report_cooperation.planned(figures).splitlines() == [
        "| plan / `exact` | on radio | mixed |",
        "| --- | ---: | ---: |",
        "| `match` | 1.00 (1.00 to 1.02) | 1.18 (1.08 to 1.21) |",
    ]
