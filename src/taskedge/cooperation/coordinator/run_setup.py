"""Set up a run, over any transport: which devices fit, which support is chosen, and the state that follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from torch import nn

from taskedge.backbone.candidates import candidates, head_parameters
from taskedge.backbone.cost_table import BlockTable
from taskedge.backbone.fingerprint import base_digest
from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.coordinator.run_state import RunState
from taskedge.cooperation.coordinator.statistics_audit import StatisticsAudit, audit_statistics, own_statistics
from taskedge.cooperation.protocol.bounds import short_text
from taskedge.cooperation.protocol.device_info import DeviceInfo
from taskedge.cooperation.protocol.message import Message, MessageLimits
from taskedge.cooperation.protocol.payloads import (
    Statistics,
    encode_support,
    read_statistics,
    statistics_limits,
    sum_statistics,
    support_digest,
)
from taskedge.cooperation.scheduling.estimates import (
    estimate_costs,
    merge_layers,
    text_block_table,
    with_trained_values,
)
from taskedge.cooperation.scheduling.fixed_plan import check_plan_blocks, plan_digest
from taskedge.cooperation.scheduling.freezing import FreezingConfig
from taskedge.cooperation.scheduling.round_planner import RoundPlanner
from taskedge.cooperation.scheduling.trained_blocks import HEAD, trained_blocks
from taskedge.errors import InputError
from taskedge.forms import STEP_EXPONENT
from taskedge.forms.install import install, installation
from taskedge.planning.fleet_spec import FleetSpec
from taskedge.planning.plan import Plan
from taskedge.selection.rules import RULES
from taskedge.selection.select import select
from taskedge.selection.statistics import INPUTS
from taskedge.selection.support import Support
from taskedge.training.data_order import derive_seed

TOKENS_PER_ROW = 128
"""Tokens of a row for the cost model, if no block table is given."""


class RunSetup:
    """Everything that is known before the first round.

    Args:
        model: The base with a head.
        config: The run's settings.
        full_parameters: Names of the parameters that are trained in full; None: the model's head.
        labels: The classes.
        fleet: Costs and links of devices; devices that it does not list are taken as they describe themselves.
        table: The model's block table, one block per layer; None: computed for rows of token ids.
        max_tokens: Most tokens in a row; None: the model's number of positions.
        freezing: Schedule of idle modules; None: the default one with the settings' ``active_share``.
        plan: Plan to follow while its devices are ready and can hold their blocks; None: rounds are planned from costs.

    Raises:
        InputError: The rule needs statistics that devices do not send, or the plan is not for this model and blocks.
    """

    def __init__(
        self,
        model: nn.Module,
        config: CooperationConfig,
        *,
        full_parameters: Sequence[str] | None = None,
        labels: Sequence[str] = (),
        fleet: FleetSpec | None = None,
        table: BlockTable | None = None,
        max_tokens: int | None = None,
        freezing: FreezingConfig | None = None,
        plan: Plan | None = None,
    ) -> None:
        needs = set(RULES[config.rule].needs) - {INPUTS}
        if needs:
            usable = " or ".join(name for name in RULES if set(RULES[name].needs) <= {INPUTS})
            raise InputError(
                f"the rule {config.rule!r} looks at {', '.join(sorted(needs))}, and devices send sums over inputs "
                f"only: choose {usable}"
            )
        self.model, self.config, self.labels = model, config, tuple(labels)
        self.full_parameters = list(head_parameters(model) if full_parameters is None else full_parameters)
        self._fleet, self._plan = fleet, plan
        positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        if table is None:
            length = min(TOKENS_PER_ROW, positions) if positions else TOKENS_PER_ROW
            self._table = text_block_table(model, length, config)
        else:
            self._table = merge_layers(table, config)
        if plan is not None:
            check_plan_blocks(plan, self._table)
        self.plan_digest = plan_digest(plan)
        self.max_tokens = max_tokens or max(positions or 0, self._table.sequence_tokens)
        self._freezing = freezing or FreezingConfig(active_share=config.active_share)
        self.base_digest = base_digest(model, self.full_parameters)

    def unfit_reason(self, device: str, info: DeviceInfo) -> str:
        """Return why a device cannot take part, or an empty string. Never raises: ``info`` is what the device says."""
        if info.base != self.base_digest:
            stated = short_text(info.base)[1:-1]
            return f"it holds another base ({stated}, not {self.base_digest}): install the same model there"
        if info.labels != self.labels:
            return f"its labels are {short_text(list(info.labels), 200)}, not {list(self.labels)}"
        try:
            estimates = estimate_costs({device: info}, self._fleet, self._table, self.config)
            costs, rows = estimates.costs, self.config.batch_size * estimates.accumulate[device]
        except Exception as error:  # such as a profile whose numbers contradict one another
            return f"its costs cannot be computed ({type(error).__name__}: {short_text(str(error), 200)})"
        if rows < info.min_rows:
            return f"it trains on no fewer than {info.min_rows} rows a step, and a step has {rows}: use larger batches"
        if not costs.fits.any():
            return (
                f"its memory of {costs.capacity[0]:,.0f} bytes holds no block: "
                f"{float(costs.memory.min()):,.0f} are needed for the smallest"
            )
        return ""

    def statistics_request(self, device: str, num_devices: int) -> Message:
        """Return the request for a device's share of the calibration batches, out of ``num_devices``."""
        batches = -(-self.config.calibration // num_devices)
        header = {"needs": [INPUTS], "batches": batches, "batch_size": self.config.batch_size}
        return Message("statistics", header | {"seed": derive_seed(self.config.seed, device)})

    @property
    def statistics_limits(self) -> MessageLimits:
        """The largest message that can be an answer with statistics."""
        return statistics_limits(self._shapes)

    def read_statistics_answer(self, answer: Message) -> Statistics:
        """Return the statistics in a device's answer.

        Raises:
            MessageError: They are no sound statistics of this model.
        """
        return read_statistics(answer, self._shapes)

    def audit_statistics(self, parts: Mapping[str, Statistics], num_devices: int) -> StatisticsAudit:
        """Return which devices' statistics may be summed, out of ``num_devices`` that were asked."""
        length = self._table.sequence_tokens
        own = own_statistics(self.model, length, self.config.seed)
        rows = -(-self.config.calibration // num_devices) * self.config.batch_size
        return audit_statistics(parts, own, float(rows * max(self.max_tokens, length)), length)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, int]]:
        return {name: layer.shape for name, layer in candidates(self.model).items()}

    def choose_support(self, parts: Sequence[Statistics]) -> Support:
        """Choose the support by the sum of the devices' statistics."""
        support = select(self.model, statistics=sum_statistics(parts), **self.config.select_kwargs())
        # with the support, so that devices and a resumed run scale steps alike
        return replace(support, settings=support.settings | {"step_exponent": STEP_EXPONENT})

    def install_support(self, support: Support) -> tuple[RunState, RoundPlanner]:
        """Install the support on the coordinator's own model, and return the initial state and the planner."""
        if installation(self.model) is None:
            exponent = support.settings.get("step_exponent", 0.0)
            install(self.model, support, trainable=self.full_parameters, step=self.config.step, step_exponent=exponent)
        blocks = trained_blocks(self.model, self._layers_per_block)
        state = RunState(self.model, blocks, self.full_parameters, self.config, self._freezing)
        sizes = {name: value.numel() for name, value in state.values.items()}
        head_values = sum(sizes[name] for name in blocks.names[HEAD])
        table = with_trained_values(self._table, blocks, sizes)
        return state, RoundPlanner(table, head_values, self._fleet, self.config, self._plan)

    def install_message(self, run_id: str, support: Support, state: RunState) -> Message:
        """Return the message that brings a device to the initial state of the run."""
        support_header, tensors = encode_support(support)
        head = {f"head/{name}": value for name, value in state.initial_full_parameters().items()}
        header = {
            "run": run_id,
            "step": self.config.step,
            "sizes": self._layers_per_block,
            "support": support_header,
            "digest": support_digest(support),
        }
        return Message("install", header, {**tensors, **head})

    @property
    def _layers_per_block(self) -> list[int]:
        return [len(names) for names in self._table.layers]
