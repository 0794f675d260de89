"""Figures of dialogue states, and the normalization of values under which two are the same."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from taskedge.training.data.dialogues import NONE

NORMALIZATION = "plain-1"
"""Name of the normalization, which a delta records. It is this project's, not the script of any published result."""
_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905
_DONT_CARE = {"dont care", "don't care", "do not care", "doesn't care", "does not care", "do n't care", "dontcare"}
_ABSENT = {"", "none", "not mentioned"}
_TIME = re.compile(r"(\d{1,2})[:.](\d{2})\s*([ap])?\.?m?\.?")


def normalized(value: str) -> str:
    """Return a value in the form in which values are compared.

    Unicode NFKC, lower case, single blanks, without ``"'.,!?`` around it and without a leading "the". Numbers from zero
    to twelve are digits, times have the form 17:30, all ways to write "don't care" are ``dontcare``, and an absent
    value is ``none``.
    """
    text = " ".join(unicodedata.normalize("NFKC", value).replace("\u2019", "'").lower().split()).strip("\"'.,!? ")
    text = text.removeprefix("the ")
    if text in _ABSENT:
        return NONE
    if text in _DONT_CARE:
        return "dontcare"
    if text in _NUMBERS:
        return str(_NUMBERS.index(text))
    if match := _TIME.fullmatch(text):
        hour, minute, half = int(match[1]), int(match[2]), match[3]
        if half:
            hour = hour % 12 + (12 if half == "p" else 0)
        if hour < 24 and minute < 60:
            return f"{hour:02}:{minute:02}"
    return text


def is_right(value: str, right: Sequence[str]) -> bool:
    """Return whether a value is one of the right ones, after normalization."""
    return normalized(value) in set(map(normalized, right))


def state_measures(rows: Sequence[dict[str, Any]], values: Sequence[str], slots: Sequence[str]) -> dict[str, Any]:
    """Return joint goal accuracy, that of turns whose true state is not empty, and the accuracy of each slot.

    A turn counts for the joint goal only if the values of all slots are right.

    Args:
        rows: one for each slot of each turn: ``turn`` (equal for the slots of a turn), ``slot`` and ``right``.
        values: predicted for each row.
        slots: names of the slots.
    """
    hits: defaultdict[int, list[bool]] = defaultdict(list)
    joint: dict[Any, bool] = {}
    filled: dict[Any, bool] = {}
    for row, value in zip(rows, values, strict=True):
        hit = is_right(value, row["right"])
        hits[row["slot"]].append(hit)
        joint[row["turn"]] = joint.get(row["turn"], True) and hit
        filled[row["turn"]] = filled.get(row["turn"], False) or any(normalized(one) != NONE for one in row["right"])
    not_empty = [joint[turn] for turn in joint if filled[turn]]
    measures: dict[str, Any] = {
        "joint_goal_accuracy": sum(joint.values()) / max(len(joint), 1),
        "joint_goal_accuracy_not_empty": sum(not_empty) / len(not_empty) if not_empty else None,
        "slot_accuracy": sum(map(sum, hits.values())) / max(len(rows), 1),
        "turns": len(joint),
        "turns_not_empty": len(not_empty),
    }
    return measures | {f"accuracy of {slots[slot]}": sum(found) / len(found) for slot, found in sorted(hits.items())}
