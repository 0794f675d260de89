"""Kill and revive: modules that help little are left idle, and tried again at times (DLoRA, arXiv 2404.05182).

A module is what trains of one linear. An idle one is frozen: no device computes its gradient, sends it, or is sent
values that do not change. That modules are frozen early and brought back is the paper's; measure and schedule are ours:

- a module's gain is what its steps take off the loss to first order, ``Σ g·(w_before - w_after)``, a round (after local
  steps, where devices send values: the squared change);
- at first all modules train; after every stage the half with the higher gains in it stays, until the share is left;
- afterwards every ``every`` rounds begin with one window in which as many idle modules train as well, those that have
  been idle longest. At its end the gains of that window decide anew who stays.

Relative change, ``‖ΔW_t - ΔW_{t-p}‖ / ‖ΔW_t‖``, is no such measure: what was revived last has moved least, and looks
best.

What happens follows from round numbers and gains alone, so a run that is resumed goes on as it would have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ReviveSettings:
    """When what happens, in rounds."""

    active_share: float = 1.0
    """Share of the modules that stay active, at least one; 1 turns all of this off."""
    stage: int = 9
    """Rounds from one halving of the active modules to the next."""
    window: int = 3
    """Rounds that idle modules are tried for."""
    every: int = 12
    """Rounds from the beginning of one such window to the next."""


class Revival:
    """Which modules are active, round by round.

    Args:
        names: of the modules; the head is always active and not among them.
    """

    def __init__(self, names: Sequence[str], settings: ReviveSettings) -> None:
        self._names, self._settings = tuple(names), settings
        self._keep = max(1, math.ceil(settings.active_share * len(names)))
        self._left = list(_halved(len(names), self._keep))
        """How many stay active after each stage."""
        self._active = set(names)
        self._probed: set[str] = set()
        self._last_active = dict.fromkeys(names, 0)
        self._gains: dict[str, float] = {}
        """Of this stage or window, by module."""
        self._updates: dict[str, int] = {}
        """Rounds of it in which the module was updated."""

    @property
    def everything(self) -> bool:
        """Whether all modules are active all the time."""
        return self._keep >= len(self._names)

    def active(self, round_number: int) -> list[str]:
        """The modules that train in this round (from 1), in the order of ``names``; asked once at its beginning."""
        if not self.everything:
            if self._place(round_number) == 0:
                idle = sorted(set(self._names) - self._active, key=lambda name: (self._last_active[name], name))
                self._probed = set(idle[: self._keep])
                self._gains, self._updates = {}, {}
            for name in self._training():
                self._last_active[name] = round_number
        return self._training()

    def ended(self, round_number: int, gains: Mapping[str, float]) -> list[str]:
        """Takes note of a round that is over, with the gains of the modules that were updated.

        Returns:
            What was decided, in words for the log.
        """
        if self.everything:
            return []
        for name, gain in gains.items():
            self._gains[name] = self._gains.get(name, 0.0) + gain
            self._updates[name] = self._updates.get(name, 0) + 1
        stages, into = divmod(round_number, self._settings.stage)
        if into == 0 and 1 <= stages <= len(self._left):
            self._active = self._best(self._active, self._left[stages - 1])
            self._gains, self._updates = {}, {}
            return [f"{len(self._active)} of {len(self._names)} modules stay active: {', '.join(sorted(self._active))}"]
        if self._place(round_number) == self._settings.window - 1:
            return self._swapped()
        return []

    def _place(self, round_number: int) -> int:
        """Where the round stands between the beginnings of two windows, from 0; -1 while the active ones are halved."""
        after = round_number - self._settings.stage * len(self._left) - 1
        return after % max(self._settings.every, self._settings.window) if after >= 0 else -1

    def _training(self) -> list[str]:
        return [name for name in self._names if name in self._active or name in self._probed]

    def _best(self, names: Iterable[str], count: int) -> set[str]:
        """So many, by gain a round."""
        gains = {name: self._gains.get(name, 0.0) / max(self._updates.get(name, 0), 1) for name in names}
        return set(sorted(gains, key=lambda name: (-gains[name], name))[:count])

    def _swapped(self) -> list[str]:
        """Only a module that was updated in the whole window comes in."""
        tried = {name for name in self._probed if self._updates.get(name, 0) == self._settings.window}
        before, self._probed = self._active, set()
        self._active = self._best(before | tried, self._keep)
        came, went = sorted(self._active - before), sorted(before - self._active)
        return [f"revived {', '.join(came) or 'none'}; idle from now on {', '.join(went) or 'none'}"] * bool(
            came or went
        )

    def state(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "active": sorted(self._active),
            "probed": sorted(self._probed),
            "gains": dict(self._gains),
            "updates": dict(self._updates),
            "last_active": dict(self._last_active),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes up what :meth:`state` gave."""
        self._active, self._probed = set(state["active"]), set(state["probed"])
        self._gains = {name: float(gain) for name, gain in state["gains"].items()}
        self._updates = {name: int(count) for name, count in state["updates"].items()}
        self._last_active = {name: int(last) for name, last in state["last_active"].items()}


def _halved(count: int, least: int) -> Iterator[int]:
    """``count`` halved again and again, down to ``least``."""
    while count > least:
        count = max(least, math.ceil(count / 2))
        yield count
