"""One pass computes at a time in the cloud; while it waits for its device, others do.

A turn holds a lock, so passes do not compete for cores. Every pass has random numbers of its own: its generator's state
is put in place when it computes and taken out when it waits. So dropout does not depend on what other devices do.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class ComputeTurns:
    """The lock of all passes.

    Args:
        own_random: whether each pass has its own random numbers; False: the process' generator, for one device in the
            same process, whose draws so interleave as in one model.
    """

    def __init__(self, *, own_random: bool = True) -> None:
        self._lock = threading.Lock()
        self._own_random = own_random

    @contextmanager
    def computing(self, seed: int) -> Iterator[Turn]:
        """Compute a pass inside the block, with random numbers by ``seed``."""
        turn = Turn(self._lock, seed if self._own_random else None)
        turn.take()
        try:
            yield turn
        finally:
            turn.give()


class Turn:
    """One pass' right to compute."""

    def __init__(self, lock: threading.Lock, seed: int | None) -> None:
        self._lock, self._seed = lock, seed
        self._state: Tensor | None = None
        self._outer: Tensor | None = None

    def take(self) -> None:
        """Wait until no other pass computes."""
        self._lock.acquire()
        if self._seed is None:
            return
        self._outer = torch.get_rng_state()
        if self._state is None:
            torch.manual_seed(self._seed)
        else:
            torch.set_rng_state(self._state)

    def give(self) -> None:
        """Let others compute."""
        if self._seed is not None and self._outer is not None:
            self._state = torch.get_rng_state()
            torch.set_rng_state(self._outer)
        self._lock.release()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let others compute inside the block."""
        self.give()
        try:
            yield
        finally:
            self.take()
