"""Plan rounds: a plan is made when devices, blocks or speeds change, and kept while they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from taskedge.backbone.cost_table import BlockTable
from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.protocol.device_info import DeviceInfo
from taskedge.cooperation.protocol.quantization import bytes_per_value
from taskedge.cooperation.protocol.round_task import RoundTask
from taskedge.cooperation.scheduling.assign_blocks import assign_blocks
from taskedge.cooperation.scheduling.cost_calibration import Correction, CostCalibration, read_correction
from taskedge.cooperation.scheduling.estimates import Estimates, estimate_costs
from taskedge.cooperation.scheduling.fixed_plan import plan_obstacle, tasks_of_plan
from taskedge.cooperation.scheduling.rotation import rotate_blocks, update_counts
from taskedge.cooperation.scheduling.traversal import add_traversed_blocks
from taskedge.cooperation.transport.emulated import NOMINAL_FIELDS
from taskedge.planning.fleet_costs import FleetCosts
from taskedge.planning.fleet_spec import FleetSpec, ServerSpec
from taskedge.planning.plan import Plan

MAX_BITS_PER_SECOND = 1e15
"""Largest bit rate in a message: JSON has no infinity."""


@dataclass(frozen=True)
class RoundPlan:
    """The tasks of a round, and what they were planned for."""

    devices: tuple[str, ...]
    """The devices that were there, with or without a task."""
    payload: tuple[int, ...]
    """Values that train per block, the first block first; 0 in an idle block."""
    tasks: tuple[RoundTask, ...]
    unfrozen_tasks: tuple[RoundTask, ...]
    """What the tasks would be if no module were frozen; empty if none is."""
    corrections: dict[str, Correction]
    """The corrections in the tasks' seconds, by device."""
    accumulate: dict[str, int]
    """Batches per local step, by device."""
    tokens: dict[str, float]
    """Predicted tokens, by device."""
    follows_file: bool = False
    """Whether the assignment is that of a plan file."""

    @property
    def active(self) -> tuple[int, ...]:
        """The blocks that train something."""
        return active_blocks(self.payload)

    def split_seconds(self, task: RoundTask) -> tuple[float, float]:
        """Return the predicted seconds of training and of everything else, without corrections."""
        correction = self.corrections[task.device]
        compute = task.compute_seconds / correction.compute
        return compute, task.down_seconds - correction.transport + task.up_seconds


def active_blocks(payload: Sequence[int]) -> tuple[int, ...]:
    """Return the blocks (from 1) with a payload above 0."""
    return tuple(block for block, values in enumerate(payload, start=1) if values)


class RoundPlanner:
    """Plans rounds with a cost model that is calibrated by observed seconds.

    Args:
        table: The blocks that train, with the number of values that they train as payload.
        head_values: Trained values of the head.
        fleet: Devices and links of the fleet file. Costs of other devices are taken from their reports, or assumed.
        config: The run's settings.
        plan_file: Plan to follow, without rotation and added blocks, while its devices are ready and can hold their
            blocks; None: plan all rounds.
    """

    def __init__(
        self,
        table: BlockTable,
        head_values: int,
        fleet: FleetSpec | None,
        config: CooperationConfig,
        plan_file: Plan | None = None,
    ) -> None:
        self.table, self.calibration = table, CostCalibration()
        self._head_bits = 8.0 * bytes_per_value(config.upload) * head_values
        self._fleet, self._config, self._plan_file = fleet, config, plan_file
        self._plan: RoundPlan | None = None
        """Before rotation and added blocks."""
        self._estimates: Estimates | None = None
        """The arguments of the plan; None after a resumption, until they are needed."""
        self._counts: dict[str, dict[int, int]] = {}

    def plan(self, devices: Mapping[str, DeviceInfo], payload: tuple[int, ...]) -> tuple[RoundPlan, str]:
        """Return the round's plan, and why it is a new one. Call once per round: rotation counts the calls.

        Args:
            devices: The devices that are ready.
            payload: Values that train per block, the first block first; 0 in an idle block.

        Returns:
            The plan, and the reason. The reason is empty if the plan is the last round's, up to rotation.

        Raises:
            InfeasiblePlan: Some block fits no device.
        """
        reason = self._reason_to_replan(tuple(sorted(devices)), payload)
        if self._plan is None or reason:
            self._plan, note = self._new_plan(devices, payload)
            reason = f"{reason}; {note}" if note else reason
        plan = self._spread(self._plan, devices)
        self._counts = update_counts(self._counts, plan.tasks)
        return plan, reason

    def observe(self, plan: RoundPlan, task: RoundTask, seconds: float, compute_seconds: float) -> None:
        """Calibrate by a task that took ``seconds``, of which the device reports ``compute_seconds`` of training."""
        compute_seconds = min(compute_seconds, seconds)
        training, transport = plan.split_seconds(task)
        self.calibration.observe(task.device, (compute_seconds, training), (seconds - compute_seconds, transport))

    def nominal(self, plan: RoundPlan, task: RoundTask) -> dict[str, float]:
        """Return the uncorrected costs of a task, as an emulated device must keep to; keys: ``NOMINAL_FIELDS``."""
        compute_seconds, _ = plan.split_seconds(task)
        server = self._fleet.server if self._fleet else ServerSpec()
        downlink = server.downlink_bits_per_second
        uplink = min(task.uplink_bits_per_second, MAX_BITS_PER_SECOND)
        return dict(zip(NOMINAL_FIELDS, (compute_seconds, downlink, uplink), strict=True))

    def predicted_seconds(self, plan: RoundPlan, task: RoundTask) -> float:
        """Return the seconds from sending the task to receiving the answer, by the present corrections."""
        training, transport = plan.split_seconds(task)
        correction = self.calibration.correction(task.device)
        return correction.compute * training + correction.transport + transport

    def predicted_round_seconds(self, plan: RoundPlan) -> float:
        """Return the predicted seconds of the slowest device."""
        return max(self.predicted_seconds(plan, task) for task in plan.tasks)

    def summary(self, plan: RoundPlan) -> dict[str, Any]:
        """Return the plan's fields for the event log."""
        return {
            "predicted_seconds": self.predicted_round_seconds(plan),
            "shares": {task.device: list(task.blocks) for task in plan.tasks},
            "corrections": {name: round(self.calibration.correction(name).compute, 4) for name in plan.devices},
        }

    @property
    def planned_devices(self) -> tuple[str, ...]:
        """The devices of the present plan."""
        return self._plan.devices if self._plan else ()

    def state_dict(self) -> dict[str, Any]:
        """Return the state, JSON-able: a resumed run keeps its plan, so the same devices train the same blocks."""
        plan = self._plan
        stored = None
        if plan is not None:
            stored = {
                "members": list(plan.devices),
                "payload": list(plan.payload),
                "shares": [task.plan_state() for task in plan.tasks],
                "everything": [task.plan_state() for task in plan.unfrozen_tasks],
                "pace": {name: asdict(correction) for name, correction in plan.corrections.items()},
                "accumulate": dict(plan.accumulate),
                "tokens": dict(plan.tokens),
            }
            if plan.follows_file:
                stored["follows_file"] = True
        counts = {
            name: {str(block): times for block, times in of_device.items()} for name, of_device in self._counts.items()
        }
        return {"pace": self.calibration.state_dict(), "plan": stored, "counts": counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.calibration.load_state_dict(state["pace"])
        self._counts = {
            name: {int(block): times for block, times in of_device.items()}
            for name, of_device in state["counts"].items()
        }
        stored = state["plan"]
        corrections = {} if stored is None else {name: read_correction(at) for name, at in stored["pace"].items()}
        sound = {name: correction for name, correction in corrections.items() if correction is not None}
        if stored is not None and len(sound) == len(corrections):  # else it is planned anew
            self._plan = RoundPlan(
                devices=tuple(stored["members"]),
                payload=tuple(stored["payload"]),
                tasks=tuple(map(RoundTask.from_plan_state, stored["shares"])),
                unfrozen_tasks=tuple(map(RoundTask.from_plan_state, stored["everything"])),
                corrections=sound,
                accumulate=stored["accumulate"],
                tokens=stored["tokens"],
                follows_file=stored.get("follows_file", False),
            )

    def _reason_to_replan(self, names: tuple[str, ...], payload: tuple[int, ...]) -> str:
        plan = self._plan
        if plan is None:
            return "first round"
        reasons = []
        joined, left = sorted(set(names) - set(plan.devices)), sorted(set(plan.devices) - set(names))
        if joined:
            reasons.append(f"joined: {', '.join(joined)}")
        if left:
            reasons.append(f"left: {', '.join(left)}")
        if payload != plan.payload:
            reasons.append(f"values that train, by block: {list(payload)}")
        if self._config.calibrate:
            baseline = {name: plan.corrections[name] for name in names if name in plan.corrections}
            drifted = self.calibration.drifted(baseline, self._config.replan_drift)
            if drifted:
                reasons.append(f"other pace: {', '.join(drifted)}")
        return "; ".join(reasons)

    def _new_plan(self, devices: Mapping[str, DeviceInfo], payload: tuple[int, ...]) -> tuple[RoundPlan, str]:
        """Return a new plan, and whether it follows the plan file, in words for the log; empty without a file."""
        calibration = self.calibration if self._config.calibrate else CostCalibration()
        self._estimates = estimates = self._estimate(devices, calibration)
        follows_file, note = False, ""
        if self._plan_file is not None:
            obstacle = plan_obstacle(self._plan_file, estimates.names, estimates.costs)
            follows_file = not obstacle
            note = f"not by the plan file ({obstacle})" if obstacle else "by the plan file"
        assign = self._assign_by_file if follows_file else self._assign
        unfrozen = self._unfrozen_payload()
        plan = RoundPlan(
            devices=estimates.names,
            payload=payload,
            tasks=tuple(assign(estimates, payload)),
            unfrozen_tasks=() if payload == unfrozen else tuple(assign(estimates, unfrozen)),
            corrections={name: calibration.correction(name) for name in estimates.names},
            accumulate=estimates.accumulate,
            tokens=estimates.tokens,
            follows_file=follows_file,
        )
        return plan, note

    def _unfrozen_payload(self) -> tuple[int, ...]:
        return tuple(int(values) for values in self.table.payload_values)

    def _costs(self, estimates: Estimates, payload: Sequence[int]) -> FleetCosts:
        """Return the costs with the upload of ``payload`` values per block."""
        bits = 8.0 * bytes_per_value(self._config.upload) * np.asarray(payload, dtype=np.float64)
        return replace(estimates.costs, bits=bits)

    def _estimate(self, devices: Mapping[str, DeviceInfo], calibration: CostCalibration) -> Estimates:
        estimates = estimate_costs(devices, self._fleet, self.table, self._config)
        return replace(estimates, costs=calibration.corrected(estimates.costs, estimates.names))

    def _assign(self, estimates: Estimates, payload: Sequence[int]) -> list[RoundTask]:
        config = self._config
        return assign_blocks(
            config.mode,
            estimates.names,
            self._costs(estimates, payload),
            estimates.link,
            estimates.bandwidth_hz,
            active_blocks(payload),
            copies=config.copies,
            solver=config.solver,
            head=config.head,
            head_bits=self._head_bits,
            seed=config.seed,
            spread_slack=config.rotation_slack,
        )

    def _assign_by_file(self, estimates: Estimates, payload: Sequence[int]) -> list[RoundTask]:
        assert self._plan_file is not None
        return tasks_of_plan(
            self._plan_file,
            estimates.names,
            self._costs(estimates, payload),
            estimates.link,
            active_blocks(payload),
            head=self._config.head,
            head_bits=self._head_bits,
        )

    def _spread(self, plan: RoundPlan, devices: Mapping[str, DeviceInfo]) -> RoundPlan:
        """Return the plan with rotated tasks and added blocks, so that blocks learn from more data."""
        config = self._config
        if plan.follows_file or config.mode == "fedavg" or not (config.rotation_slack or config.traversal_slack):
            return plan
        if self._estimates is None:  # resumed: as they were when the plan was made
            calibration = CostCalibration()
            calibration.load_state_dict({name: asdict(correction) for name, correction in plan.corrections.items()})
            self._estimates = self._estimate(devices, calibration)
        estimates = self._estimates
        planned_seconds = max(task.seconds for task in plan.tasks)
        tasks = self._rotate(plan, estimates)
        return replace(
            plan,
            tasks=self._add_traversed(tasks, plan.payload, estimates, planned_seconds),
            unfrozen_tasks=self._add_traversed(plan.unfrozen_tasks, self._unfrozen_payload(), estimates),
        )

    def _rotate(self, plan: RoundPlan, estimates: Estimates) -> Sequence[RoundTask]:
        slack = self._config.rotation_slack
        if not slack:
            return plan.tasks
        costs = self._costs(estimates, plan.payload)
        return rotate_blocks(plan.tasks, estimates.names, costs, estimates.link, self._counts, slack, self._head_bits)

    def _add_traversed(
        self,
        tasks: Sequence[RoundTask],
        payload: Sequence[int],
        estimates: Estimates,
        planned_seconds: float | None = None,
    ) -> tuple[RoundTask, ...]:
        slack = self._config.traversal_slack
        if not slack or not tasks:
            return tuple(tasks)
        if planned_seconds is None:
            planned_seconds = max(task.seconds for task in tasks)
        costs = self._costs(estimates, payload)
        max_seconds = (1 + slack) * planned_seconds
        return tuple(add_traversed_blocks(tasks, active_blocks(payload), estimates.names, costs, max_seconds))
