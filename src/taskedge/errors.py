"""The errors a user can meet, and the exit code each one ends the command line with.

Every message says what is wrong, where (name, shape, path, row), and what to do next.
The codes are documented in docs/exit-codes.md.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TaskEdgeError(Exception):
    """Base of every error that taskedge raises on purpose."""

    exit_code = 2


class InputError(TaskEdgeError):
    """Something the user gave cannot be used: a file, a column, a setting, a model."""


class BudgetError(InputError):
    """A budget that selects nothing, or more than the model can carry."""


class DoesNotFit(TaskEdgeError):
    """No way to train stays within the memory budget. ``needed``: bytes, the least budget that does."""

    exit_code = 3

    def __init__(self, needed: int, reason: str) -> None:
        self.needed = needed
        super().__init__(reason)


class DeltaError(TaskEdgeError):
    """A delta file is broken, or does not describe itself truthfully."""


class BaseMismatch(DeltaError):
    """A delta was made on another base than the model it should be applied to."""


class TrainingDiverged(TaskEdgeError):
    """The loss stopped being a finite number."""


class Interrupted(TaskEdgeError):
    """The user stopped it; the message says how to go on."""

    exit_code = 130


class UnknownName(InputError):
    """A name that is not registered; the message gives the nearest known one."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        self.kind, self.name, self.known = kind, name, known
        super().__init__(f"unknown {kind} {name!r}{did_you_mean(name, known)} (known: {', '.join(known)})")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest of ``known``, or an empty string where nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
