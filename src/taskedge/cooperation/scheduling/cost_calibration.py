"""The cost model, corrected online by what devices are seen to take (ours).

A device's predicted compute seconds are multiplied by the running mean of observed over predicted ones; what its
messages take longer than predicted is added to each round. The first task after a device was installed on is not
counted: it compiles kernels and fills caches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from taskedge.planning.fleet_costs import Costs

MEMORY = 0.7
"""Weight of what was known before, from the second observation on."""


@dataclass(frozen=True)
class Correction:
    """What is known of one device: ``compute`` multiplies, ``transport`` [s] is added; of ``seen`` tasks."""

    compute: float = 1.0
    transport: float = 0.0
    seen: int = 0


class Pace:
    """Corrections of all devices by name."""

    def __init__(self) -> None:
        self._known: dict[str, Correction] = {}
        self._cold: set[str] = set()

    def of(self, device: str) -> Correction:
        """What is known of the device."""
        return self._known.get(device, Correction())

    def cold(self, device: str) -> None:
        """The device was just installed on: its next task does not count."""
        self._cold.add(device)

    def known(self, device: str) -> bool:
        """Whether how long its tasks take was seen, since it was last installed on."""
        return device not in self._cold and self.of(device).seen > 0

    def observe(self, device: str, compute: tuple[float, float], transport: tuple[float, float]) -> None:
        """Seconds of a task, (observed, predicted without corrections): of training, and of all else."""
        if device in self._cold:
            self._cold.discard(device)
            return
        now = self.of(device)
        factor = compute[0] / compute[1] if compute[1] > 0 else now.compute
        extra = max(0.0, transport[0] - transport[1])
        keep = MEMORY if now.seen else 0.0
        self._known[device] = Correction(
            keep * now.compute + (1 - keep) * factor, keep * now.transport + (1 - keep) * extra, now.seen + 1
        )

    def late(self, device: str) -> None:
        """The device was not done in time: nothing says how long it takes, so twice of what was thought."""
        self._known[device] = replace(self.of(device), compute=2 * self.of(device).compute)

    def corrected(self, costs: Costs, names: Sequence[str]) -> Costs:
        """The costs with each device's correction; row k is device ``names[k]``."""
        known = [self.of(name) for name in names]
        factor = np.array([one.compute for one in known])
        extra = np.array([one.transport for one in known])
        return replace(costs, compute=costs.compute * factor[:, None], down=costs.down + extra)

    def drifted(self, since: Mapping[str, Correction], most: float) -> list[str]:
        """Devices whose compute correction changed by more than the share ``most`` since then."""
        return sorted(name for name, then in since.items() if abs(self.of(name).compute / then.compute - 1) > most)

    def state(self) -> dict[str, dict[str, float]]:
        """JSON-able."""
        return {name: asdict(one) for name, one in self._known.items()}

    def load(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Takes up what :meth:`state` gave."""
        self._known = {
            name: Correction(float(one["compute"]), float(one["transport"]), int(one["seen"]))
            for name, one in state.items()
        }
