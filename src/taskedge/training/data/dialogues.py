r"""Dialogues with their states: what the user wants so far, as a value for each slot.

    {"dialogue": "d1", "turns": [
        {"role": "user", "content": "A cheap place in the north.", "state": {"hotel-area": "north", ...}},
        {"role": "system", "content": "For how many people?"},
        {"role": "user", "content": "Two.", "state": {"hotel-area": "north", "hotel-people": ["2", "two"], ...}}]}

A state is complete: it has every slot that has a value after that turn of the user, and no other. A list holds values
that are all right; the first one is learned. Converters for published data write such lines.

A :class:`~taskedge.training.data.table.Table` holds texts, so a row has the turns of a dialogue as JSON, and its label
the states of the user's turns as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskedge.errors import InputError
from taskedge.reporting.tables import count_text
from taskedge.training.data.file_text import row_error
from taskedge.training.data.table import Table
from taskedge.training.data.table_readers import check_column_names, read_columns

NONE = "none"
"""The value of a slot that a state does not have."""
USER_ROLE, SYSTEM_ROLE = "user", "system"
_ROLES = {"user": USER_ROLE, "human": USER_ROLE, "system": SYSTEM_ROLE, "assistant": SYSTEM_ROLE}

Turn = tuple[str, str]
"""Role and text."""
State = dict[str, list[str]]
"""Values that are right, by slot."""


def read_dialogues(path: Path, turns: str, *, answers: bool) -> Table:
    """Read dialogues and, with ``answers``, the state after each turn of the user.

    Raises:
        InputError: see :func:`taskedge.training.data.table.read_table`; a row that is no dialogue, or a turn of
            the user without a state.
    """
    read = read_columns(path, lambda available: check_column_names(path, [turns], available))
    (cells,) = read.values
    if not cells:
        raise InputError(f"{path} has columns but no rows; give a file with at least one row")
    texts, labels, num_turns = [], [], 0
    for row, cell in enumerate(cells, start=1):
        spoken, states = _dialogue(path, row, turns, cell, answers=answers)
        texts.append(json.dumps(spoken, ensure_ascii=False))
        labels.append(json.dumps(states, ensure_ascii=False))
        num_turns += len(states)
    understood = f"{read.understood}; {count_text(num_turns, 'turn')} of users"
    return Table(path, texts, labels if answers else None, understood=understood)


def turns_of(text: str) -> list[Turn]:
    """Return the turns of a row."""
    return [(role, content) for role, content in json.loads(text)]


def states_of(label: str) -> list[State]:
    """Return the state after each turn of the user."""
    return [dict(state) for state in json.loads(label)]


def slots_of(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the slots that have a value in some state, sorted."""
    return tuple(sorted({slot for label in labels for state in states_of(label) for slot in state}))


def _dialogue(path: Path, row: int, column: str, cell: Any, *, answers: bool) -> tuple[list[Turn], list[State]]:
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            cell = None
    if not isinstance(cell, list) or not all(isinstance(turn, dict) for turn in cell):
        raise row_error(
            path, row, f'{column!r} is no list of turns like {{"role": "user", "content": "...", "state": {{...}}}}'
        )
    spoken: list[Turn] = []
    states: list[State] = []
    for number, turn in enumerate(cell, start=1):
        role, text = turn.get("role"), turn.get("content")
        if not isinstance(role, str) or role.lower() not in _ROLES:
            raise row_error(path, row, f"turn {number} is of {role!r}; turns of user and system can be read")
        if not isinstance(text, str) or not text.strip():
            raise row_error(path, row, f"turn {number} has no text; remove it")
        spoken.append((_ROLES[role.lower()], " ".join(text.split())))
        if _ROLES[role.lower()] == SYSTEM_ROLE:
            if turn.get("state") is not None:
                raise row_error(path, row, f"turn {number} of the system has a state; give it to the user's turn")
            continue
        states.append(_state(path, row, number, turn.get("state"), required=answers))
    if not states:
        raise row_error(path, row, f"{column!r} has no turn of a user; add one or remove the row")
    return spoken, states


def _state(path: Path, row: int, number: int, state: Any, *, required: bool) -> State:
    if state is None and not required:
        return {}
    if not isinstance(state, dict):
        raise row_error(
            path, row, f'turn {number} of the user has no state; give one, such as {{"hotel-area": "north"}}'
        )
    made: State = {}
    for slot, value in state.items():
        values = value if isinstance(value, list) else [value]
        texts = [str(one) if isinstance(one, str | int) and not isinstance(one, bool) else "" for one in values]
        if not texts or not all(text.strip() for text in texts):
            raise row_error(
                path, row, f"turn {number}: the value of {slot!r} is {value!r}; give a text, or leave it out"
            )
        if not slot.strip():
            raise row_error(path, row, f"turn {number}: a slot has no name")
        made[slot] = texts
    return made
