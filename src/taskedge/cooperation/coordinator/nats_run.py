"""The coordinator's side of a run over the server of a fleet, from the connection to the delta."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from taskedge.cooperation.cooperation_config import CooperateSettings
from taskedge.cooperation.coordinator.coordinator import CooperateResult, Coordinator
from taskedge.cooperation.coordinator.event_log import Event
from taskedge.cooperation.fleet.device_registry import Fleet
from taskedge.cooperation.joint_task import JointTask
from taskedge.cooperation.transport.links import Traffic
from taskedge.cooperation.transport.nats.nats_links import NatsCoordinatorLink
from taskedge.delta.delta import Delta
from taskedge.planning.fleet_spec import Fleet as Described

_TOLD = ("lr", "batch_size", "accumulate", "seed", "step", "mode", "rounds", "local_steps")
"""Settings that a delta remembers."""


@dataclass(frozen=True)
class Sent:
    """What crossed the wire in one direction, of one kind."""

    kind: str
    direction: str
    """``down`` to devices, ``up`` from them."""
    messages: int
    bytes: int


@dataclass(frozen=True)
class Led:
    """What a run gave."""

    delta: Delta
    result: CooperateResult
    traffic: list[Sent]

    def facts(self) -> dict[str, Any]:
        """JSON-able, without the delta."""
        return asdict(self.result) | {"traffic": [asdict(sent) for sent in self.traffic]}


async def lead(
    fleet: Fleet,
    joint: JointTask,
    settings: CooperateSettings,
    folder: Path,
    *,
    resume: bool = False,
    described: Described | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Led:
    """Runs all rounds over the fleet's server, which must run; see :class:`Coordinator` for what it raises.

    Args:
        folder: of the run.
        described: the fleet file, where there is one.
    """
    link = await NatsCoordinatorLink.connect(fleet.coordinator_bundle)
    try:
        coordinator = Coordinator(
            link,
            joint.base.model,
            settings,
            folder,
            whole=joint.whole,
            labels=joint.labels,
            fleet=described,
            table=joint.costs(),
            on_event=on_event,
        )
        result = await coordinator.run(resume=resume)
        how = {name: getattr(settings, name) for name in _TOLD}
        delta = joint.told(coordinator.delta(), how | {"devices": len(result.bytes_up)})
        return Led(delta, result, _sums([link.traffic(name) for name in result.bytes_up]))
    finally:
        await link.close()


def _sums(links: list[tuple[Traffic, Traffic]]) -> list[Sent]:
    """Over all devices, in the order in which kinds first came."""
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for place, direction in enumerate(("down", "up")):
        for both in links:
            for kind, size in both[place].bytes.items():
                messages, total = sums.get((kind, direction), (0, 0))
                sums[kind, direction] = messages + both[place].messages[kind], total + size
    return [Sent(kind, direction, *counts) for (kind, direction), counts in sums.items()]
