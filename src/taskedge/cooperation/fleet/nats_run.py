"""The coordinator's side of a run over the NATS server of a fleet, from the connection to the delta."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.coordinator.coordinator import CooperationResult, Coordinator
from taskedge.cooperation.coordinator.event_log import Event
from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.cooperation.fleet.server_watch import keep_server_running
from taskedge.cooperation.joint_task import JointTask
from taskedge.cooperation.transport.links import Traffic
from taskedge.cooperation.transport.nats.coordinator_link import NatsCoordinatorLink
from taskedge.delta.delta import Delta
from taskedge.planning.fleet_spec import FleetSpec
from taskedge.planning.plan import Plan

PROVENANCE = ("lr", "batch_size", "accumulate", "seed", "step", "mode", "rounds", "local_steps")
"""Settings that the delta's provenance records."""


@dataclass(frozen=True)
class TrafficSummary:
    """Messages of one kind in one direction, over all devices."""

    kind: str
    direction: str
    """``down``: to devices; ``up``: from devices."""
    messages: int
    bytes: int


@dataclass(frozen=True)
class CoordinatorOutcome:
    """The delta of a run, its figures, and its traffic."""

    delta: Delta
    result: CooperationResult
    traffic: list[TrafficSummary]

    def to_json(self) -> dict[str, Any]:
        """Return figures and traffic, JSON-able."""
        return asdict(self.result) | {"traffic": [asdict(summary) for summary in self.traffic]}


async def run_over_nats(
    registry: DeviceRegistry,
    joint: JointTask,
    config: CooperationConfig,
    folder: Path,
    *,
    resume: bool = False,
    fleet: FleetSpec | None = None,
    plan: Plan | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
    on_server_started: Callable[[int | None], None] = lambda _: None,
) -> CoordinatorOutcome:
    """Run all rounds over the server of a fleet, which must be running. If it ends meanwhile, it is started again.

    Args:
        registry: The fleet's folder.
        joint: The base and the task.
        config: The run's settings.
        folder: The run's folder.
        resume: Whether to resume the run in ``folder``.
        fleet: The fleet file, if there is one.
        plan: The plan to follow, if there is one.
        on_event: Called with each event of the log, and with those of the server.
        on_server_started: Called with the process id of a server that was started again.

    Raises:
        TaskEdgeError: See :meth:`Coordinator.run`.
    """
    link = await NatsCoordinatorLink.connect(registry.coordinator_bundle)
    watching = asyncio.create_task(keep_server_running(registry, on_event, on_server_started))
    try:
        coordinator = Coordinator(
            link,
            joint.base.model,
            config,
            folder,
            full_parameters=joint.full_parameters,
            labels=joint.labels,
            fleet=fleet,
            table=joint.block_table(),
            plan=plan,
            on_event=on_event,
        )
        result = await coordinator.run(resume=resume)
        provenance = {name: getattr(config, name) for name in PROVENANCE} | {"devices": len(result.bytes_up)}
        delta = joint.with_run_provenance(coordinator.delta(), provenance)
        return CoordinatorOutcome(delta, result, summarize_traffic([link.traffic(name) for name in result.bytes_up]))
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await link.close()


def summarize_traffic(links: Sequence[tuple[Traffic, Traffic]]) -> list[TrafficSummary]:
    """Sum the (down, up) traffic of all devices by kind of message, in the order in which the kinds first came."""
    totals: dict[tuple[str, str], tuple[int, int]] = {}
    for i, direction in enumerate(("down", "up")):
        for traffic in links:
            for kind, num_bytes in traffic[i].bytes.items():
                messages, total = totals.get((kind, direction), (0, 0))
                totals[kind, direction] = messages + traffic[i].messages[kind], total + num_bytes
    return [TrafficSummary(kind, direction, *counts) for (kind, direction), counts in totals.items()]
