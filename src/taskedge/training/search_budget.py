"""The budget of a search in seconds or optimizer steps, and whether further runs fit into it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskedge.errors import InputError

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_seconds(text: str) -> float:
    """Return the seconds of a text such as ``90``, ``90s``, ``10m`` or ``1.5h``.

    Raises:
        InputError: it is no such text, or not above 0.
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([smh]?)\s*", text.lower())
    if found is None or not float(found[1]):
        raise InputError(f"{text!r} is no time above 0: write 90s, 10m or 1.5h")
    return float(found[1]) * _UNITS[found[2]]


@dataclass(frozen=True)
class SearchBudget:
    """Largest cost of all runs of a search; None for no limit.

    Attributes:
        seconds: by wall clock, over all processes of a search that is resumed. A run starts only if it fits by the mean
            seconds a step of the runs before it; the first one starts in any case.
        steps: optimizer steps.
    """

    seconds: float | None = None
    steps: int | None = None

    def fits(self, trials: Sequence[Mapping[str, Any]], lost_seconds: float, steps: int) -> bool:
        """Return whether runs of ``steps`` optimizer steps fit beside what is done.

        Args:
            trials: the runs that are done, with ``seconds`` and ``spent_steps``.
            lost_seconds: of runs that were interrupted.
            steps: of the runs that may follow.
        """
        done = sum(int(trial.get("spent_steps", trial["steps"])) for trial in trials)
        if self.steps is not None and done + steps > self.steps:
            return False
        if self.seconds is None or not done:
            return True
        spent = sum(float(trial.get("seconds", 0.0)) for trial in trials)
        return lost_seconds + spent + steps * spent / done <= self.seconds

    def check(self, steps: int, rungs: int) -> None:
        """Check that one pair of rates can go through all rungs, which takes ``steps`` optimizer steps.

        Raises:
            InputError: the budget has fewer.
        """
        if self.steps is not None and steps > self.steps:
            raise InputError(
                f"--step-budget {self.steps}: one pair of rates takes {steps:,} steps in {rungs} rungs: give as many "
                "or more, or fewer --epochs or --rungs"
            )

    def __str__(self) -> str:
        parts = [] if self.seconds is None else [f"{self.seconds:,.0f} s"]
        parts += [] if self.steps is None else [f"{self.steps:,} steps"]
        return " and ".join(parts)
