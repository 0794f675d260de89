"""Cooperative runs as tables."""

from typing import Any

import report_cooperation


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
            backward_saved=0.25,
            flops_saved=0.1,
        ),
    ]
    _, _, *rows = report_cooperation.overview(lines).splitlines()
    assert rows == [
        "| `tune`, all rows in one place | 0.810 | 1 |  |  |  |  |  |",
        "| `deft`, rows parted at random | 0.810 ± 0.014 | 2 | 15.0 | 30.0 |  |  |  |",
        "| the same, `active_share = 1/8` | 0.700 | 1 | 1.0 | 2.0 | 50% | 25% | 10% |",
    ]


def test_sizes_side_by_side() -> None:
    figures = [
        {"what": "down: deft", "median": 98.71, "bar": 100.0, "met": True},
        {"what": "up: deft", "median": 34.9, "bar": 30.0, "met": False},
    ]
    assert report_cooperation.sizes(figures).splitlines()[2:] == ["| deft | 98.7 | 34.9, **above 30** |"]
