"""The distance of the default rate from the best, as a table."""

from benchmarks.accuracy.step_law import DEFAULT_LR
from benchmarks.report import report_step_law

SETTING = "1% in batches of 16"


def test_a_setting_that_both_tasks_have_has_a_row() -> None:
    found = {
        SETTING: {
            "question-types": {0.01: 0.8, DEFAULT_LR: 0.82, 0.1: 0.7},
            "tweets": {0.01: 0.93, DEFAULT_LR: 0.89, 0.1: 0.8},
        },
        "3% in batches of 16": {"tweets": {DEFAULT_LR: 0.9}},
    }
    rows = report_step_law.by_setting(found).splitlines()
    assert len(rows) == 3
    cells = [cell.strip() for cell in rows[2].strip("|").split("|")]
    assert [cells[0], cells[1], cells[2], cells[4]] == [
        "1 % in batches of 16", "80.0 / 93.0", "82.0 / 89.0", "1.0, **missed**",
    ]  # fmt: skip


def test_nothing_is_shown_beyond_the_measured_rates() -> None:
    curve = {DEFAULT_LR / 1.05: 0.8, DEFAULT_LR * 1.5: 0.85, DEFAULT_LR * 2: 0.9}
    found = {SETTING: {"question-types": curve, "tweets": curve}}
    cells = report_step_law.by_setting(found).splitlines()[2].split("|")
    assert [cells[2].strip(), cells[4].strip()] == ["- / -", "- / -"]
    assert cells[3].strip() != "- / -"
