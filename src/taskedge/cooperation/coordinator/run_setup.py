"""How a run begins, whatever carries its messages: who fits, which support is chosen, and what is made of it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from taskedge.backbone.cost_table import BlockTable
from taskedge.backbone.linears import candidates, head_parameters
from taskedge.cooperation.cooperation_config import CooperateSettings
from taskedge.cooperation.coordinator.device_sessions import About
from taskedge.cooperation.coordinator.run_state import RunState
from taskedge.cooperation.protocol.base_identity import base_digest
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.protocol.payloads import Statistics, added, read_statistics, support_facts
from taskedge.cooperation.protocol.trained_blocks import HEAD, trained_blocks
from taskedge.cooperation.scheduling.estimates import merged, run_table, with_payload
from taskedge.cooperation.scheduling.freezing import ReviveSettings
from taskedge.cooperation.scheduling.round_planner import Planner
from taskedge.errors import InputError
from taskedge.forms.install import install, installation
from taskedge.planning.fleet_spec import Fleet
from taskedge.selection.rules import RULES
from taskedge.selection.select import select
from taskedge.selection.statistics import INPUTS
from taskedge.selection.support import Support
from taskedge.training.seeds import derive

LENGTH = 128
"""Tokens of a row where nothing says other, for the cost model."""


class Beginning:
    """What is known before the first round. The arguments are those of :class:`taskedge.cooperation.Coordinator`.

    Raises:
        InputError: a rule that needs more than devices send.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: CooperateSettings,
        *,
        whole: Sequence[str] | None = None,
        labels: Sequence[str] = (),
        fleet: Fleet | None = None,
        table: BlockTable | None = None,
        most_tokens: int | None = None,
        revive: ReviveSettings | None = None,
    ) -> None:
        needs = set(RULES[settings.rule].needs) - {INPUTS}
        if needs:
            raise InputError(
                f"the rule {settings.rule!r} looks at {', '.join(sorted(needs))}, and devices send sums over inputs "
                "only: choose one that looks at inputs, or at no data"
            )
        self.model, self.settings, self.labels = model, settings, tuple(labels)
        self.whole = list(head_parameters(model) if whole is None else whole)
        self._fleet = fleet
        positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        length = min(LENGTH, positions) if positions else LENGTH
        self._table = merged(table, settings) if table is not None else run_table(model, length, settings)
        self.most_tokens = most_tokens or max(positions or 0, self._table.sequence_tokens)
        self._revive = revive or ReviveSettings(active_share=settings.active_share)
        self.digest = base_digest(model, self.whole)

    def unfit(self, about: About) -> str:
        """Why a device cannot take part; empty: it can."""
        if about.base != self.digest:
            return f"it holds another base ({about.base}, not {self.digest}): install the same model there"
        if about.labels != self.labels:
            return f"its labels are {list(about.labels)}, not {list(self.labels)}"
        return ""

    def ask_statistics(self, device: str, devices: int) -> Message:
        """What to ask a device, where ``devices`` are asked."""
        s = self.settings
        batches = -(-s.calibration // devices)
        facts = {"needs": [INPUTS], "batches": batches, "batch_size": s.batch_size}
        return Message("statistics", facts | {"seed": derive(s.seed, device)})

    def statistics(self, answer: Message) -> Statistics:
        """What a device answered.

        Raises:
            MessageError: no sound statistics of this model.
        """
        return read_statistics(answer, {name: layer.shape for name, layer in candidates(self.model).items()})

    def choose(self, parts: Sequence[Statistics]) -> Support:
        """The support, from the sum of the devices' statistics."""
        s = self.settings
        return select(
            self.model,
            measured=added(parts),
            budget=s.budget if s.per_neuron is None else None,
            per_neuron=s.per_neuron,
            rule=s.rule,
            allocation=s.allocation,
            max_columns=s.max_columns,
            seed=s.seed,
        )

    def begin(self, support: Support) -> tuple[RunState, Planner]:
        """The support installed on the coordinator's own model, and what follows from it."""
        if installation(self.model) is None:
            install(self.model, support, trainable=self.whole, step=self.settings.step)
        blocks = trained_blocks(self.model, self._sizes)
        state = RunState(self.model, blocks, self.whole, self.settings, self._revive)
        sizes = {name: value.numel() for name, value in state.values.items()}
        head = sum(sizes[name] for name in blocks.names[HEAD])
        return state, Planner(with_payload(self._table, blocks, sizes), head, self._fleet, self.settings)

    def install_message(self, run: str, support: Support, state: RunState) -> Message:
        """What brings a device to the beginning of the run."""
        facts, tensors = support_facts(support)
        head = {f"head/{name}": value for name, value in state.head_start().items()}
        more = {"run": run, "step": self.settings.step, "sizes": self._sizes}
        return Message("install", {**more, "support": facts}, {**tensors, **head})

    @property
    def _sizes(self) -> list[int]:
        return [len(names) for names in self._table.layers]
