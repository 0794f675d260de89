"""Kill and revive: blocks that change little are left idle, and tried again at times (DLoRA, arXiv 2404.05182).

An idle block is frozen: no device computes its gradient, sends it, or is sent values that do not change. That blocks
are frozen early and brought back is the paper's; measure and schedule are ours:

- a block's score is an average (exponential, over windows) of ``‖ΔW_t - ΔW_{t-p}‖ / ‖ΔW_t‖``, ΔW its change since the
  run began, over a window of p rounds in which it trained throughout;
- until the warm-up is over all blocks train, and every window scores them; then the share with the best scores stays;
- afterwards every ``every`` rounds begin with one window in which the idle blocks that have been idle longest train as
  well. At its end the best of them take the places of the weakest active ones where their scores are higher.

What happens follows from round numbers and values alone, so a run that is resumed goes on as it would have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ReviveSettings:
    """When what happens, in rounds."""

    active_share: float = 1.0
    """Share of the blocks that stay active, at least one; 1 turns all of this off."""
    warmup: int = 9
    """Rounds in which all blocks train; at least one window."""
    window: int = 3
    """Rounds that a score is measured over."""
    every: int = 12
    """Rounds from one probe of idle blocks to the next."""
    probes: int = 1
    """Idle blocks that train in a probe."""
    memory: float = 0.5
    """Weight of the score before in the average."""


class Revival:
    """Which blocks are active, round by round.

    Args:
        names: the trained names of every block, block 1 first; the head is always active and not among them.
    """

    def __init__(self, names: Mapping[int, tuple[str, ...]], settings: ReviveSettings) -> None:
        self._names, self._settings = dict(names), settings
        self._keep = max(1, math.ceil(settings.active_share * len(names)))
        self._active = sorted(names)
        self._probed: list[int] = []
        self._scores: dict[int, float] = {}
        self._last_active = dict.fromkeys(names, 0)
        self._trained: dict[int, int] = {}
        """Rounds of this window in which the block got an update."""
        self._before: dict[str, Tensor] = {}
        """Changes at the beginning of the window, of the blocks that train in it."""

    @property
    def everything(self) -> bool:
        """Whether all blocks are active all the time."""
        return self._keep == len(self._names)

    def active(self, round_number: int, change: Mapping[str, Tensor]) -> tuple[int, ...]:
        """The blocks that train in this round (from 1), given every name's change since the run began.

        Asked once at the beginning of every round, in order.
        """
        if self.everything:
            return tuple(sorted(self._names))
        place = self._place(round_number)
        if place == 0:
            if round_number > self._warmup:
                idle = [block for block in self._names if block not in self._active]
                idle.sort(key=lambda block: (self._last_active[block], block))
                self._probed = sorted(idle[: self._settings.probes])
            self._trained = {}
            self._before = {n: change[n].clone() for block in self._training() for n in self._names[block]}
        for block in self._training():
            self._last_active[block] = round_number
        return tuple(self._training())

    def ended(self, round_number: int, updated: set[int], change: Mapping[str, Tensor]) -> list[str]:
        """Takes note of a round that is over: which blocks got an update, and the changes now.

        Returns:
            What was decided, in words for the log.
        """
        if self.everything:
            return []
        for block in updated:
            self._trained[block] = self._trained.get(block, 0) + 1
        if self._place(round_number) != self._settings.window - 1:
            return []
        self._measure(change)
        if round_number < self._warmup:
            return []
        if round_number == self._warmup:
            best = sorted(self._names, key=lambda block: (-self._scores.get(block, 0.0), block))
            self._active = sorted(best[: self._keep])
            return [f"blocks {self._active} stay active, the others idle"]
        return self._swap()

    @property
    def _warmup(self) -> int:
        """In whole windows."""
        return self._settings.window * math.ceil(self._settings.warmup / self._settings.window)

    def _place(self, round_number: int) -> int | None:
        """Where the round stands in its window, from 0; None outside of one."""
        window = self._settings.window
        if round_number <= self._warmup:
            return (round_number - 1) % window
        place = (round_number - self._warmup - 1) % max(self._settings.every, window)
        return place if place < window else None

    def _training(self) -> list[int]:
        return sorted({*self._active, *self._probed})

    def _measure(self, change: Mapping[str, Tensor]) -> None:
        """Scores what trained throughout the window; a block whose device failed keeps the score it had."""
        for block in self._training():
            if self._trained.get(block, 0) < self._settings.window:
                continue
            names = self._names[block]
            moved = torch.stack([(change[n] - self._before[n]).double().square().sum() for n in names]).sum().sqrt()
            whole = torch.stack([change[n].double().square().sum() for n in names]).sum().sqrt()
            score = float(moved / whole) if whole > 0 else 0.0
            before = self._scores.get(block)
            memory = self._settings.memory
            probed = block in self._probed  # its score before is of long ago
            self._scores[block] = score if before is None or probed else memory * before + (1 - memory) * score

    def _swap(self) -> list[str]:
        said = []
        for probe in sorted(self._probed, key=lambda block: -self._scores.get(block, 0.0)):
            weakest = min(self._active, key=lambda block: (self._scores.get(block, 0.0), -block))
            if self._trained.get(probe, 0) == self._settings.window and self._scores[probe] > self._scores.get(
                weakest, 0
            ):
                self._active = sorted({*self._active, probe} - {weakest})
                said.append(
                    f"block {probe} revived ({self._scores[probe]:.3g}) for block {weakest} "
                    f"({self._scores.get(weakest, 0.0):.3g})"
                )
        self._probed = []
        return said

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON-able facts, and tensors."""
        facts = {
            "active": self._active,
            "probed": self._probed,
            "scores": {str(block): score for block, score in self._scores.items()},
            "last_active": {str(block): last for block, last in self._last_active.items()},
            "trained": {str(block): count for block, count in self._trained.items()},
        }
        return facts, dict(self._before)

    def load(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Takes up what :meth:`state` gave."""
        self._active, self._probed = list(facts["active"]), list(facts["probed"])
        self._scores = {int(block): float(score) for block, score in facts["scores"].items()}
        self._last_active = {int(block): int(last) for block, last in facts["last_active"].items()}
        self._trained = {int(block): int(count) for block, count in facts["trained"].items()}
        self._before = dict(tensors)
