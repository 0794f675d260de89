"""What a run is after a round: values, version, optimiser and everything else that the next round follows from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.cooperation.cooperation_config import CooperateSettings
from taskedge.cooperation.coordinator.aggregation import clipped, weighted_mean
from taskedge.cooperation.coordinator.server_optimizers import OPTIMISERS
from taskedge.cooperation.coordinator.versions import prefixed, under
from taskedge.cooperation.protocol.trained_blocks import HEAD, TrainedBlocks
from taskedge.cooperation.protocol.validation import Accepted, Norms, block_norms
from taskedge.cooperation.scheduling.freezing import Revival, ReviveSettings


@dataclass(frozen=True)
class Step:
    """What a step did."""

    norm: float = 0.0
    """Of the mean gradient (or of the mean change), before clipping."""
    gains: Mapping[str, float] = field(default_factory=dict)
    """By how much each name's change lowers the loss, to first order: ``Σ g·(w_before - w_after)``; no head."""


class RunState:
    """The coordinator's side of training.

    Args:
        model: with the support installed, as the run begins; its values are read here and never written.
        blocks: what it trains, by block.
        whole: names that train whole, at the head's learning rate.

    Attributes:
        values: float32 by name, of the version.
        version: counts the rounds that changed something; 0 is the beginning.
        training: what of the blocks trains in this round.
        round: the last one that is over.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: TrainedBlocks,
        whole: Sequence[str],
        settings: CooperateSettings,
        revive: ReviveSettings,
    ) -> None:
        self.blocks, self.settings = blocks, settings
        self._whole = frozenset(whole)
        self._block_of = blocks.block_of()
        parameters = dict(model.named_parameters())
        self.start = {name: parameters[name].detach().cpu().float().clone() for name in self._block_of}
        self.values = {name: value.clone() for name, value in self.start.items()}
        self.version = self.round = 0
        self._changed_at = dict.fromkeys(self.values, 0)
        decay = 0.0 if settings.sends_values else settings.weight_decay  # devices that step decay by themselves
        self.optimiser = OPTIMISERS[settings.server_optimiser](decay)
        self.norms = Norms(settings.norm_factor)
        self.training = blocks
        self.revival = Revival(blocks.of(range(1, len(blocks) + 1)), revive)

    def begin(self, round_number: int) -> tuple[int, ...]:
        """Settles what trains in this round; asked once at its beginning.

        Returns:
            Per block, the first one first, how many values of it train; 0 for a block that is idle.
        """
        self.training = self.blocks.only(set(self.revival.active(round_number)))
        return tuple(sum(self.values[name].numel() for name in names) for names in self.training.names[1:])

    def since(self, version: int) -> dict[str, Tensor]:
        """The values that changed after ``version``: what a device that holds it lacks."""
        return {name: self.values[name] for name, at in self._changed_at.items() if at > version}

    def update_of(self, answer: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What an answer would change: its gradients, or the way from the values to its own."""
        if not self.settings.sends_values:
            return dict(answer)
        return {name: self.values[name] - tensor for name, tensor in answer.items()}

    def norms_of(self, answer: Accepted) -> dict[int, float]:
        """The norm per block of what it would change."""
        return block_norms(self.update_of(answer.tensors), self._block_of)

    def rate(self, round_number: int) -> Callable[[str], float]:
        """The server's learning rate of a name in a round."""
        s = self.settings
        if s.sends_values:
            return lambda _: s.server_lr
        factor, head = s.rate(round_number), s.lr if s.head_lr is None else s.head_lr
        return lambda name: factor * (head if name in self._whole else s.lr)

    def apply(self, accepted: Sequence[Accepted], round_number: int) -> Step:
        """One step of the server's optimiser over the accepted answers, which makes the next version."""
        mean = weighted_mean([(answer.tokens, answer.tensors) for answer in accepted])
        if self.settings.sends_values:
            mean = {name: self.values[name].double() - tensor for name, tensor in mean.items()}
        mean, norm = clipped(mean, 0.0 if self.settings.sends_values else self.settings.clip)
        self.version += 1
        stepped = self.optimiser.step(self.values, mean, self.rate(round_number))
        gains = {
            name: float((mean[name].double() * (self.values[name].double() - value.double())).sum())
            for name, value in stepped.items()
            if self._block_of[name] != HEAD
        }
        self.values |= stepped
        self._changed_at |= dict.fromkeys(mean, self.version)
        return Step(norm, gains)

    def head_start(self) -> dict[str, Tensor]:
        """Where what trains whole begins, which every device must share; all else begins at the base."""
        return {name: self.start[name] for name in self.start if name in self._whole}

    def write_into(self, model: nn.Module) -> None:
        """Puts the values into a model on which the support is installed."""
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in self.values.items():
                parameters[name].copy_(value)

    def saved(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON-able facts, and tensors."""
        facts = {
            "version": self.version,
            "round": self.round,
            "changed_at": self._changed_at,
            "norms": self.norms.state(),
            "revival": self.revival.state(),
        }
        tensors = {
            **prefixed("value", self.values),
            **prefixed("start", self.head_start()),
            **prefixed("optimiser", self.optimiser.state_dict()),
        }
        return facts, tensors

    def load(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Takes up what :meth:`saved` gave."""
        self.version, self.round = int(facts["version"]), int(facts["round"])
        self._changed_at = {str(name): int(at) for name, at in facts["changed_at"].items()}
        self.values = under("value", tensors)
        self.start |= under("start", tensors)
        self.optimiser.load_state_dict(under("optimiser", tensors))
        self.norms.load(facts["norms"])
        self.revival.load(facts["revival"])
