"""Correct the cost model online by the seconds that devices take. Source: this project.

A device's predicted compute seconds are multiplied by the running mean of observed over predicted seconds. The extra
seconds of its messages are added to each round. The first task after an installation does not count: it compiles
kernels and fills caches.

Observed seconds are a device's own statement, so a correction is always within bounds: a factor of 0 or infinity would
make every plan with that device impossible, and a saved one would make the run so for good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from taskedge.planning.fleet_costs import FleetCosts

MEMORY = 0.7
"""Weight of the running mean, from the second observation on."""
MIN_FACTOR, MAX_FACTOR = 1e-6, 1e6
"""Bounds of the factor of the compute seconds: from 1e16 FLOP/s to 1e4, where 1e10 is assumed."""
MAX_TRANSPORT_SECONDS = 1e5
MAX_LATE_DOUBLINGS = 6
"""Times that a missed deadline doubles a factor, until the device answers again."""


@dataclass(frozen=True)
class Correction:
    """Correction of one device's costs."""

    compute: float = 1.0
    """Factor of the compute seconds."""
    transport: float = 0.0
    """Seconds added to each round."""
    seen: int = 0
    """Tasks that it is the mean of."""

    @property
    def is_sound(self) -> bool:
        """Return whether its numbers are within bounds."""
        return (
            MIN_FACTOR <= self.compute <= MAX_FACTOR and 0 <= self.transport <= MAX_TRANSPORT_SECONDS and self.seen >= 0
        )

    def clamped(self) -> Correction:
        """Return the correction with its numbers moved to the nearest bounds; neutral where one is not a number."""
        return replace(
            self,
            compute=_clamp(self.compute, MIN_FACTOR, MAX_FACTOR, 1.0),
            transport=_clamp(self.transport, 0.0, MAX_TRANSPORT_SECONDS, 0.0),
        )


def read_correction(fields: Mapping[str, Any]) -> Correction | None:
    """Return a saved correction; None if its numbers are not within bounds."""
    correction = Correction(float(fields["compute"]), float(fields["transport"]), int(fields["seen"]))
    return correction if correction.is_sound else None


class CostCalibration:
    """Corrections of all devices by name."""

    def __init__(self) -> None:
        self._corrections: dict[str, Correction] = {}
        self._cold: set[str] = set()
        self._num_late: dict[str, int] = {}
        self.healed: list[str] = []
        """Devices whose saved correction was out of bounds and is neutral since :meth:`load_state_dict`."""

    def correction(self, device: str) -> Correction:
        """Return the device's correction; neutral before its first observation."""
        return self._corrections.get(device, Correction())

    def mark_cold_start(self, device: str) -> None:
        """Ignore the device's next task: it has just been installed on."""
        self._cold.add(device)

    def is_known(self, device: str) -> bool:
        """Return whether a task of the device was observed since its last installation."""
        return device not in self._cold and self.correction(device).seen > 0

    def observe(self, device: str, compute: tuple[float, float], transport: tuple[float, float]) -> None:
        """Take in the seconds of a finished task.

        Args:
            device: Name of the device.
            compute: Seconds of training: observed, and predicted without corrections.
            transport: The same for all other seconds of the task.
        """
        self._num_late.pop(device, None)
        if device in self._cold:
            self._cold.discard(device)
            return
        before = self.correction(device)
        factor = compute[0] / compute[1] if compute[1] > 0 else before.compute
        extra = max(0.0, transport[0] - transport[1])
        keep = MEMORY if before.seen else 0.0
        self._corrections[device] = Correction(
            compute=keep * before.compute + (1 - keep) * factor,
            transport=keep * before.transport + (1 - keep) * extra,
            seen=before.seen + 1,
        ).clamped()

    def mark_late(self, device: str) -> None:
        """Double the device's compute factor: it missed the deadline, and its seconds are unknown.

        After ``MAX_LATE_DOUBLINGS`` in a row the factor stays: a device that never answers must not make every deadline
        longer.
        """
        self._num_late[device] = self._num_late.get(device, 0) + 1
        if self._num_late[device] <= MAX_LATE_DOUBLINGS:
            before = self.correction(device)
            self._corrections[device] = replace(before, compute=2 * before.compute).clamped()

    def corrected(self, costs: FleetCosts, names: Sequence[str]) -> FleetCosts:
        """Return the costs with each device's correction; row k is device ``names[k]``."""
        corrections = [self.correction(name) for name in names]
        factor = np.array([correction.compute for correction in corrections])
        extra = np.array([correction.transport for correction in corrections])
        return replace(costs, compute=costs.compute * factor[:, None], down=costs.down + extra)

    def drifted(self, baseline: Mapping[str, Correction], tolerance: float) -> list[str]:
        """Return the devices whose compute factor differs from ``baseline`` by more than the fraction ``tolerance``."""
        return sorted(
            name
            for name, before in baseline.items()
            if abs(self.correction(name).compute / before.compute - 1) > tolerance
        )

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Return the corrections, JSON-able. A cold start is not kept."""
        return {name: asdict(correction) for name, correction in self._corrections.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Restore what :meth:`state_dict` returned. A correction out of bounds becomes neutral (``healed``)."""
        read = {name: read_correction(fields) for name, fields in state.items()}
        self._corrections = {name: correction for name, correction in read.items() if correction is not None}
        self.healed = sorted(read.keys() - self._corrections.keys())


def _clamp(value: float, low: float, high: float, otherwise: float) -> float:
    return otherwise if math.isnan(value) else min(high, max(low, value))
