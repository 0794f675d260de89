"""Exceptions of the library, with the exit code of the command line for each (docs/exit-codes.md).

Every message says what is wrong, where (name, shape, path, row), and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TaskEdgeError(Exception):
    """Base class of all errors that taskedge raises on purpose."""

    exit_code = 2


class InputError(TaskEdgeError):
    """Unusable input: a file, a column, a setting, a model."""


class BudgetError(InputError):
    """A budget that selects nothing, or more than the model can carry."""


class DoesNotFit(TaskEdgeError):
    """No training configuration stays within the memory budget.

    Attributes:
        needed: the smallest sufficient budget, in bytes.
    """

    exit_code = 3

    def __init__(self, needed: int, reason: str) -> None:
        self.needed = needed
        super().__init__(reason)


class DeltaError(TaskEdgeError):
    """A delta file that is damaged or contradicts itself."""


class BaseMismatch(DeltaError):
    """A delta that was trained on another base than the model."""


class TrainingDiverged(TaskEdgeError):
    """A training loss that is not a finite number."""


class Interrupted(TaskEdgeError):
    """The user stopped the program; the message says how to resume."""

    exit_code = 130


class UnknownName(InputError):
    """A name that is not registered; the message suggests the nearest one."""

    def __init__(self, kind: str, name: str, names: Iterable[str]) -> None:
        names = sorted(names)
        self.kind, self.name, self.names = kind, name, names
        super().__init__(f"unknown {kind} {name!r}{did_you_mean(name, names)} (known: {', '.join(names)})")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest of ``names``, or an empty text if none is near."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
