"""How much more memory measuring may take."""

from __future__ import annotations

from taskedge.profiling.process_memory import lifetime_peak_bytes, resident_bytes
from taskedge.training.memory.measure_step import CPU

BEYOND = 1.05
"""Times the peak of loading and a first pass that measuring may go to, where that peak is above the budget already."""


class Room:
    """What a budget leaves for trying steps, in a process that has loaded its base.

    Where loading or a first pass took more than the budget, no way stays within. The room is then a little above what
    they took, so that the budget that the refusal names is measured.

    Args:
        budget: bytes; None for no limit.
    """

    def __init__(self, budget: int | None) -> None:
        self.budget = budget
        self.taken = lifetime_peak_bytes(CPU)
        """Bytes of the highest resident set before any step was tried."""

    def take_note(self) -> None:
        """What was done so far could not be done with less."""
        self.taken = lifetime_peak_bytes(CPU)

    @property
    def reached(self) -> int:
        """Bytes: the highest resident set so far, but for what went beyond a budget that was exceeded anyway."""
        return self.taken if self._exceeded else lifetime_peak_bytes(CPU)

    def has(self, more: int) -> bool:
        """Whether there is room for so many bytes more than there are now."""
        if self.budget is None:
            return True
        return resident_bytes() + more <= (self.taken * BEYOND if self._exceeded else self.budget)

    @property
    def _exceeded(self) -> bool:
        return self.budget is not None and self.taken > self.budget
