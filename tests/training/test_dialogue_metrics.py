"""Joint goal accuracy on turns made by hand, and the normalization of values."""

from __future__ import annotations

import pytest

from taskedge.training.dialogue_metrics import is_right, normalized, state_measures


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("The  Acorn House", "acorn house"),
        ("Two", "2"),
        ("5:30 pm", "17:30"),
        ("05.30", "05:30"),
        ("12:15 am", "00:15"),
        ("99:99", "99:99"),
        ("don\u2019t care", "dontcare"),
        ("Not mentioned", "none"),
        ("", "none"),
        ("north.", "north"),
        ("ﬁsh", "fish"),
    ],
)
def test_normalization(value, expected):
    assert normalized(value) == expected
    assert normalized(expected) == expected


def test_a_turn_counts_only_with_all_slots():
    slots = ("area", "price")
    truth = {1: ("north", "none"), 2: ("north", "cheap"), 3: ("none", "none"), 4: ("none", "none")}
    predicted = {1: ("North", "none"), 2: ("north", "moderate"), 3: ("none", "none"), 4: ("north", "none")}
    rows = [
        {"turn": (1, turn), "slot": slot, "right": [values[slot]]} for turn, values in truth.items() for slot in (0, 1)
    ]
    measures = state_measures(rows, [value for values in predicted.values() for value in values], slots)
    assert measures == {
        "joint_goal_accuracy": 0.5,
        "joint_goal_accuracy_not_empty": 0.5,
        "slot_accuracy": 0.75,
        "turns": 4,
        "turns_not_empty": 2,
        "accuracy of area": 0.75,
        "accuracy of price": 0.75,
    }
    nothing = state_measures(rows, ["none"] * len(rows), slots)
    assert (nothing["joint_goal_accuracy"], nothing["joint_goal_accuracy_not_empty"]) == (0.5, 0.0)


def test_several_values_can_be_right():
    assert is_right("2", ["two", "a pair"])
    assert not is_right("3", ["two", "a pair"])
    assert state_measures([], [], ())["joint_goal_accuracy_not_empty"] is None
