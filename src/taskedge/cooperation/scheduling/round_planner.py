"""The coordinator's plan: made when devices, blocks or speeds change, and kept while they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from taskedge.backbone.cost_table import BlockTable
from taskedge.cooperation.cooperation_config import CooperateSettings
from taskedge.cooperation.coordinator.device_sessions import About
from taskedge.cooperation.protocol.quantization import bytes_per_value
from taskedge.cooperation.scheduling.cost_calibration import Correction, Pace
from taskedge.cooperation.scheduling.estimates import Estimates, estimate
from taskedge.cooperation.scheduling.rotation import counted, in_turn
from taskedge.cooperation.scheduling.round_tasks import Share, read_share, shares
from taskedge.cooperation.scheduling.traversal import in_passing
from taskedge.cooperation.transport.emulated import STATED
from taskedge.planning.fleet_costs import Costs
from taskedge.planning.fleet_spec import Fleet, Server

MOST_BITS_PER_SECOND = 1e15
"""In messages, which are JSON and know no infinity."""


@dataclass(frozen=True)
class RoundPlan:
    """Who does what, and what that was planned for."""

    members: tuple[str, ...]
    payload: tuple[int, ...]
    """Values that train per block, the first block first; 0 where it is idle."""
    shares: tuple[Share, ...]
    everything: tuple[Share, ...]
    """What it would be if all of every block trained, where some is idle; else empty."""
    pace: dict[str, Correction]
    """The corrections that its seconds hold."""
    accumulate: dict[str, int]
    """Batches per local step, by device."""
    tokens: dict[str, float]
    """Predicted, by device."""

    @property
    def active(self) -> tuple[int, ...]:
        """The blocks that train something."""
        return active_blocks(self.payload)

    def apart(self, share: Share) -> tuple[float, float]:
        """Predicted seconds of training and of all else, without corrections."""
        then = self.pace[share.device]
        return share.compute_seconds / then.compute, share.down_seconds - then.transport + share.up_seconds


def active_blocks(payload: Sequence[int]) -> tuple[int, ...]:
    """Those with a payload, from 1."""
    return tuple(block for block, values in enumerate(payload, start=1) if values)


class Planner:
    """Plans rounds; its cost model learns from what devices were seen to take.

    Args:
        table: of the blocks that are trained, with what they really train as payload.
        head_values: trained values of the head.
        fleet: what is known of devices and links beforehand; others are taken as they say.
    """

    def __init__(self, table: BlockTable, head_values: int, fleet: Fleet | None, settings: CooperateSettings) -> None:
        self.table, self.pace = table, Pace()
        self._head_bits = 8.0 * bytes_per_value(settings.upload) * head_values
        self._fleet, self._settings = fleet, settings
        self._plan: RoundPlan | None = None
        self._known: Estimates | None = None
        """What the plan was made with; None after a resumption, until it is wanted."""
        self._counts: dict[str, dict[int, int]] = {}

    def plan(self, abouts: Mapping[str, About], payload: tuple[int, ...]) -> tuple[RoundPlan, str]:
        """The plan for these devices and what trains, and why it is a new one; asked once for every round.

        Args:
            payload: values that train per block, the first block first; 0 where it is idle.

        Returns:
            The plan, and the reason; that is empty where it is the one before, but for what is spread in another way.

        Raises:
            InfeasiblePlan: some block fits no device.
        """
        why = self._why(tuple(sorted(abouts)), payload)
        if self._plan is None or why:
            self._plan = self._made(abouts, payload)
        plan = self._spread(self._plan, abouts)
        self._counts = counted(self._counts, plan.shares)
        return plan, why

    def observe(self, plan: RoundPlan, share: Share, seconds: float, compute_seconds: float) -> None:
        """A task that took ``seconds``, of which the device says it trained ``compute_seconds``."""
        computed = min(compute_seconds, seconds)
        training, transport = plan.apart(share)
        self.pace.observe(share.device, (computed, training), (seconds - computed, transport))

    def stated(self, plan: RoundPlan, share: Share) -> dict[str, float]:
        """What the fleet file, the profile or a guess says of a device's part, whatever was observed of it."""
        training, _ = plan.apart(share)
        server = self._fleet.server if self._fleet else Server()
        rates = (server.downlink_bits_per_second, min(share.uplink_bits_per_second, MOST_BITS_PER_SECOND))
        return dict(zip(STATED, (training, *rates), strict=True))

    def predicted(self, plan: RoundPlan, share: Share) -> float:
        """Seconds from the task's leaving to the answer, by what is known of the device now."""
        training, transport = plan.apart(share)
        known = self.pace.of(share.device)
        return known.compute * training + known.transport + transport

    def predicted_round(self, plan: RoundPlan) -> float:
        """Seconds of the slowest device."""
        return max(self.predicted(plan, share) for share in plan.shares)

    def summary(self, plan: RoundPlan) -> dict[str, Any]:
        """For the log."""
        return {
            "predicted_seconds": self.predicted_round(plan),
            "shares": {share.device: list(share.blocks) for share in plan.shares},
            "corrections": {name: round(self.pace.of(name).compute, 4) for name in plan.members},
        }

    @property
    def members(self) -> tuple[str, ...]:
        """The devices that the plan at hand was made for."""
        return self._plan.members if self._plan else ()

    def state(self) -> dict[str, Any]:
        """JSON-able: so that a resumed run keeps its plan, and with it who trains what."""
        plan = self._plan
        stored = None
        if plan is not None:
            stored = asdict(plan) | {
                "shares": [share.facts() for share in plan.shares],
                "everything": [share.facts() for share in plan.everything],
            }
        counts = {name: {str(block): times for block, times in mine.items()} for name, mine in self._counts.items()}
        return {"pace": self.pace.state(), "plan": stored, "counts": counts}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes up what :meth:`state` gave."""
        self.pace.load(state["pace"])
        counts = state["counts"]
        self._counts = {name: {int(block): times for block, times in mine.items()} for name, mine in counts.items()}
        plan = state["plan"]
        if plan is not None:
            self._plan = RoundPlan(
                members=tuple(plan["members"]),
                payload=tuple(plan["payload"]),
                shares=tuple(map(read_share, plan["shares"])),
                everything=tuple(map(read_share, plan["everything"])),
                pace={name: Correction(**one) for name, one in plan["pace"].items()},
                accumulate=plan["accumulate"],
                tokens=plan["tokens"],
            )

    def _why(self, names: tuple[str, ...], payload: tuple[int, ...]) -> str:
        plan = self._plan
        if plan is None:
            return "first round"
        came, went = sorted(set(names) - set(plan.members)), sorted(set(plan.members) - set(names))
        reasons = [f"joined: {', '.join(came)}"] * bool(came) + [f"left: {', '.join(went)}"] * bool(went)
        if payload != plan.payload:
            reasons.append(f"values that train, by block: {list(payload)}")
        drifted = []
        if self._settings.follow_pace:
            drifted = self.pace.drifted({n: plan.pace[n] for n in names if n in plan.pace}, self._settings.drift)
        return "; ".join([*reasons, *([f"other pace: {', '.join(drifted)}"] if drifted else [])])

    def _made(self, abouts: Mapping[str, About], payload: tuple[int, ...]) -> RoundPlan:
        pace = self.pace if self._settings.follow_pace else Pace()
        self._known = known = self._estimates(abouts, pace)
        whole = self._whole()
        return RoundPlan(
            members=known.names,
            payload=payload,
            shares=tuple(self._shares(known, payload)),
            everything=() if payload == whole else tuple(self._shares(known, whole)),
            pace={name: pace.of(name) for name in known.names},
            accumulate=known.accumulate,
            tokens=known.tokens,
        )

    def _whole(self) -> tuple[int, ...]:
        """The payload with nothing idle."""
        return tuple(int(values) for values in self.table.payload_values)

    def _costs(self, known: Estimates, payload: Sequence[int]) -> Costs:
        """The costs where so many values of the blocks are sent."""
        bits = 8.0 * bytes_per_value(self._settings.upload) * np.asarray(payload, dtype=np.float64)
        return replace(known.costs, bits=bits)

    def _estimates(self, abouts: Mapping[str, About], pace: Pace) -> Estimates:
        known = estimate(abouts, self._fleet, self.table, self._settings)
        return replace(known, costs=pace.corrected(known.costs, known.names))

    def _spread(self, plan: RoundPlan, abouts: Mapping[str, About]) -> RoundPlan:
        """The plan with parts and answers spread so that blocks learn from more data."""
        s = self._settings
        if s.mode == "fedavg" or not (s.turns or s.passing):
            return plan
        if self._known is None:
            pace = Pace()
            pace.load({name: asdict(one) for name, one in plan.pace.items()})
            self._known = self._estimates(abouts, pace)
        known = self._known
        found = self._in_turn(plan, known)
        latest = max(share.seconds for share in plan.shares)
        return replace(
            plan,
            shares=self._in_passing(found, plan.payload, known, latest),
            everything=self._in_passing(plan.everything, self._whole(), known),
        )

    def _in_turn(self, plan: RoundPlan, known: Estimates) -> Sequence[Share]:
        longer, costs = self._settings.turns, self._costs(known, plan.payload)
        if not longer:
            return plan.shares
        return in_turn(plan.shares, known.names, costs, known.link, self._counts, longer, self._head_bits)

    def _in_passing(
        self, planned: Sequence[Share], payload: Sequence[int], known: Estimates, seconds: float | None = None
    ) -> tuple[Share, ...]:
        longer = self._settings.passing
        if not (longer and planned):
            return tuple(planned)
        seconds = max(share.seconds for share in planned) if seconds is None else seconds
        costs = self._costs(known, payload)
        return tuple(in_passing(planned, active_blocks(payload), known.names, costs, (1 + longer) * seconds))

    def _shares(self, known: Estimates, payload: Sequence[int]) -> list[Share]:
        s = self._settings
        return shares(
            s.mode,
            known.names,
            self._costs(known, payload),
            known.link,
            known.bandwidth_hz,
            active_blocks(payload),
            copies=s.copies,
            solver=s.solver,
            head=s.head,
            head_bits=self._head_bits,
            seed=s.seed,
        )
