"""Freeze the modules that help little, and try them again at times.

This is "kill and revive" of DLoRA (arXiv 2404.05182). A module is the trained entries of one linear. A frozen module
is idle: no device computes its gradient, sends it, or receives its values. From the paper: modules are frozen early and
brought back. Source of measure and schedule: this project.

- The gain of a module in a round is what its steps take off the loss to first order, ``Σ g·(w_before - w_after)``. (If
  devices send values after local steps, it is the squared change.)
- At first all modules train. Each stage ends by keeping the half with the higher mean gains of the stage, until only
  the active share is left.
- Afterwards, every ``every`` rounds begin with a trial in which as many idle modules train as well, those idle
  longest. The gains of the trial decide which modules stay active.

Relative change, ``‖ΔW_t - ΔW_{t-p}‖ / ‖ΔW_t‖``, is no such measure: a module that was revived last has moved least, and
looks best.

The schedule is a function of round numbers and gains alone, so a resumed run continues as it would have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FreezingConfig:
    """Which share of the modules stays active, and the when they change, in rounds."""

    active_share: float = 1.0
    """Share of the modules that stay active, at least one; 1 freezes nothing."""
    stage: int = 9
    """Rounds from one halving of the active modules to the next."""
    window: int = 3
    """Rounds that idle modules are tried for."""
    every: int = 12
    """Rounds from the start of one trial to the start of the next."""


class ActiveModules:
    """The modules that train, round by round: DLoRA's "kill and revive" (arXiv 2404.05182).

    Call :meth:`begin_round` and :meth:`end_round` once in every round.

    Args:
        names: Names of the modules. The head is always active and not among them.
        config: The share and the rounds.
    """

    def __init__(self, names: Sequence[str], config: FreezingConfig) -> None:
        self._names, self._config = tuple(names), config
        self._num_active = max(1, math.ceil(config.active_share * len(names)))
        self._after_stage = list(_halvings(len(names), self._num_active))
        """Number of active modules after each stage."""
        self._active = set(names)
        self._on_trial: set[str] = set()
        self._last_active = dict.fromkeys(names, 0)
        self._gains: dict[str, float] = {}
        """Sum over this stage or trial, by module."""
        self._updates: dict[str, int] = {}
        """Rounds of this stage or trial in which the module was updated."""

    @property
    def all_active(self) -> bool:
        """Whether no module is ever frozen."""
        return self._num_active >= len(self._names)

    def begin_round(self, round_number: int) -> list[str]:
        """Start a round (from 1) and return the modules that train in it, in the order of ``names``."""
        if not self.all_active:
            if self._round_in_period(round_number) == 0:
                idle = sorted(set(self._names) - self._active, key=lambda name: (self._last_active[name], name))
                self._on_trial = set(idle[: self._num_active])
                self._reset_gains()
            for name in self._training():
                self._last_active[name] = round_number
        return self._training()

    def end_round(self, round_number: int, gains: Mapping[str, float]) -> list[str]:
        """End a round, given the gains of the modules that were updated in it.

        Returns:
            Lines for the log that say which modules were frozen and revived.
        """
        if self.all_active:
            return []
        for name, gain in gains.items():
            self._gains[name] = self._gains.get(name, 0.0) + gain
            self._updates[name] = self._updates.get(name, 0) + 1
        stages, into_stage = divmod(round_number, self._config.stage)
        if into_stage == 0 and 1 <= stages <= len(self._after_stage):
            self._active = self._best(self._active, self._after_stage[stages - 1])
            self._reset_gains()
            return [f"{len(self._active)} of {len(self._names)} modules stay active: {', '.join(sorted(self._active))}"]
        if self._round_in_period(round_number) == self._config.window - 1:
            return self._end_trial()
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return the state, JSON-able."""
        return {
            "active": sorted(self._active),
            "probed": sorted(self._on_trial),
            "gains": dict(self._gains),
            "updates": dict(self._updates),
            "last_active": dict(self._last_active),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._active, self._on_trial = set(state["active"]), set(state["probed"])
        self._gains = {name: float(gain) for name, gain in state["gains"].items()}
        self._updates = {name: int(count) for name, count in state["updates"].items()}
        self._last_active = {name: int(last) for name, last in state["last_active"].items()}

    def _round_in_period(self, round_number: int) -> int:
        """Return the round's index in its period, from 0; -1 during the stages."""
        after_stages = round_number - self._config.stage * len(self._after_stage) - 1
        if after_stages < 0:
            return -1
        return after_stages % max(self._config.every, self._config.window)

    def _training(self) -> list[str]:
        return [name for name in self._names if name in self._active or name in self._on_trial]

    def _reset_gains(self) -> None:
        self._gains, self._updates = {}, {}

    def _best(self, names: Iterable[str], count: int) -> set[str]:
        """Return the ``count`` modules with the highest mean gain per round."""
        mean_gains = {name: self._gains.get(name, 0.0) / max(self._updates.get(name, 0), 1) for name in names}
        return set(sorted(mean_gains, key=lambda name: (-mean_gains[name], name))[:count])

    def _end_trial(self) -> list[str]:
        """Choose the active modules anew. Only modules updated in every round of the trial can become active."""
        tried = {name for name in self._on_trial if self._updates.get(name, 0) == self._config.window}
        before = self._active
        self._on_trial = set()
        self._active = self._best(before | tried, self._num_active)
        revived, frozen = sorted(self._active - before), sorted(before - self._active)
        if not revived and not frozen:
            return []
        return [f"revived {', '.join(revived) or 'none'}; idle from now on {', '.join(frozen) or 'none'}"]


def _halvings(count: int, minimum: int) -> Iterator[int]:
    """Yield ``count`` halved again and again, down to ``minimum``."""
    while count > minimum:
        count = max(minimum, math.ceil(count / 2))
        yield count
