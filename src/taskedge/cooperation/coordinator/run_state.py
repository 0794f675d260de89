"""The state of a run after a round: values, version, optimizer state and everything else that the next round needs."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.coordinator.aggregation import SERVER_OPTIMIZERS, clip_by_norm, weighted_mean
from taskedge.cooperation.coordinator.robust_aggregation import (
    KrumScores,
    aggregate,
    capped_weights,
    clip_factors,
    clip_to_median,
)
from taskedge.cooperation.coordinator.versions import add_prefix, strip_prefix
from taskedge.cooperation.protocol.flat_tensors import FlatLayout, flatten
from taskedge.cooperation.protocol.message import SharedTensors
from taskedge.cooperation.protocol.validation import (
    NORMS_KEPT,
    AcceptedAnswer,
    NormTracker,
    block_norms,
    block_sizes,
    flat_block_norms,
)
from taskedge.cooperation.scheduling.freezing import ActiveModules, FreezingConfig
from taskedge.cooperation.scheduling.trained_blocks import HEAD, TrainedBlocks

_OPTIMIZER = "optimiser"  # codespell:ignore optimiser
"""Prefix of the optimizer's tensors, in the spelling of the file format."""

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class RoundUpdate:
    """The changes at the end of a round."""

    norm: float = 0.0
    """l2 norm of the mean gradient (or of the mean change), before clipping; 0 if no answer was usable."""
    scaled: tuple[str, ...] = ()
    """Devices whose answer was scaled down to the median norm of a block."""
    capped: tuple[str, ...] = ()
    """Devices that count with fewer tokens than they claim."""
    by_mean: tuple[int, ...] = ()
    """Blocks with too few answers for a robust rule."""
    decisions: tuple[str, ...] = ()
    """Lines for the log that say which modules were frozen and revived."""


class RunState:
    """The coordinator's side of training.

    Args:
        model: With the support installed, before training. Its values are read here and never written.
        blocks: The names that it trains, by block.
        full_parameters: Names of fully trained parameters, which have the head's learning rate.
        config: The run's settings.
        freezing: Schedule of idle modules.

    Attributes:
        values: Current float32 values by name.
        initial_values: Values before the first round, by name.
        version: Number of rounds that changed values; 0 before the first.
        round: The last completed round.
        blocks: As given.
        training: The names that train in the current round, by block.
        active_modules: Which modules train, round by round.
        norms: Norms of accepted answers.
        optimizer: The server optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: TrainedBlocks,
        full_parameters: Sequence[str],
        config: CooperationConfig,
        freezing: FreezingConfig,
    ) -> None:
        self.config = config
        self.blocks = self.training = blocks
        self._block_of = blocks.block_of()
        self._full_parameters = frozenset(full_parameters)
        parameters = dict(model.named_parameters())
        self.initial_values = {name: parameters[name].detach().cpu().float().clone() for name in self._block_of}
        self.values = {name: value.clone() for name, value in self.initial_values.items()}
        self.version = self.round = 0
        self._changed_at = dict.fromkeys(self.values, 0)
        # devices that send values apply weight decay in their own steps
        weight_decay = 0.0 if config.sends_values else config.weight_decay
        self.optimizer = SERVER_OPTIMIZERS[config.resolved_server_optimizer](weight_decay)
        self.norms = NormTracker()
        self._tokens_per_row: deque[float] = deque(maxlen=NORMS_KEPT)
        self._scores = KrumScores()
        self._shared: dict[Hashable, Any] = {}
        """What follows from values, version and training names, and is the same for many devices."""
        self.active_modules = ActiveModules(blocks.names_in(range(1, len(blocks) + 1)), freezing)

    def begin_round(self, round_number: int) -> tuple[int, ...]:
        """Choose the modules that train in a round. Call once per round.

        Returns:
            Number of values that train per block, the first block first; 0 for an idle block.
        """
        self._shared.clear()
        self.training = self.blocks.restricted_to(set(self.active_modules.begin_round(round_number)))
        return tuple(sum(self.values[name].numel() for name in names) for names in self.training.names[1:])

    def end_round(self, answers: Sequence[AcceptedAnswer], round_number: int) -> RoundUpdate:
        """Make the next version from the accepted answers: aggregate, clip, one step of the server optimizer.

        Without an answer, values and version stay.
        """
        update, gains = self._step(answers, round_number) if answers else (RoundUpdate(), {})
        self.round = round_number
        return replace(update, decisions=tuple(self.active_modules.end_round(round_number, gains)))

    def shared(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        """Return ``make()``, made once until the values, the version or the training names change."""
        if key not in self._shared:
            self._shared[key] = make()
        return cast(_Made, self._shared[key])

    def record(self, answer: AcceptedAnswer) -> None:
        """Add an accepted answer to the norms and lengths that later ones are compared with."""
        self.norms.add(answer.norms)
        if answer.rows:
            self._tokens_per_row.append(answer.tokens / answer.rows)

    def _step(self, answers: Sequence[AcceptedAnswer], round_number: int) -> tuple[RoundUpdate, dict[str, float]]:
        """Step, and return what was done and the gain of each name but the head's.

        The gain is the decrease of the loss by the name's change, to first order: ``Σ g·(w_before - w_after)``.
        """
        config = self.config
        factors = clip_factors([a.norms or self.norms_of(a) for a in answers], self.norms.medians(), config.norm_factor)
        running = statistics.median_low(self._tokens_per_row) if self._tokens_per_row else 0.0
        weights = capped_weights([a.tokens for a in answers], [a.rows for a in answers], running)
        start = self.values if config.sends_values else None
        weighted = (  # one after the other: answers are dequantized as they are added
            (weight, clip_to_median(a.tensors, f, self._block_of, start) if f else a.tensors)
            for weight, a, f in zip(weights, answers, factors, strict=True)
        )
        devices = [answer.device for answer in answers]
        by_mean: list[int] = []
        if config.aggregate == "mean":
            mean = weighted_mean(weighted)
        else:
            held = [(weight, dict(tensors)) for weight, tensors in weighted]
            mean, by_mean = aggregate(config.aggregate, held, self._block_of, devices, self._scores)
        if config.sends_values:
            mean = {name: self.values[name].double() - tensor for name, tensor in mean.items()}
        mean, norm = clip_by_norm(mean, 0.0 if self.config.sends_values else self.config.clip)
        changed = self.optimizer.step(self.values, mean, self.learning_rate(round_number))
        gains = {
            name: float((mean[name].double() * (self.values[name].double() - value.double())).sum())
            for name, value in changed.items()
            if self._block_of[name] != HEAD
        }
        self.version += 1
        self._shared.clear()
        self.values = self.values | changed  # another mapping: answers still name the old one
        self._changed_at |= dict.fromkeys(changed, self.version)
        update = RoundUpdate(
            norm=norm,
            scaled=tuple(a.device for a, f in zip(answers, factors, strict=True) if f),
            capped=tuple(a.device for a, weight in zip(answers, weights, strict=True) if weight < a.tokens),
            by_mean=tuple(by_mean),
        )
        return update, gains

    def learning_rate(self, round_number: int) -> Callable[[str], float]:
        """Return the server's learning rate in a round as a function of the name."""
        config = self.config
        if config.sends_values:
            return lambda _: config.server_lr
        factor = config.lr_factor(round_number)
        head_lr = config.lr if config.head_lr is None else config.head_lr
        return lambda name: factor * (head_lr if name in self._full_parameters else config.lr)

    def values_since(self, version: int) -> SharedTensors:
        """Return the values that changed after ``version``, which a device with that version needs."""

        def changed() -> SharedTensors:
            return SharedTensors({name: self.values[name] for name, at in self._changed_at.items() if at > version})

        return self.shared(("values", version), changed)

    def update_of(self, answer: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the change that an answer asks for: its gradients, or the values here minus its own."""
        if not self.config.sends_values:
            return dict(answer)
        return {name: self.values[name] - tensor for name, tensor in answer.items()}

    def norms_of(self, answer: AcceptedAnswer) -> dict[int, float]:
        """Return the l2 norm of :meth:`update_of`, per block."""
        return block_norms(self.update_of(answer.tensors), self._block_of)

    def norms_of_flat(self, layout: FlatLayout, answer: Tensor) -> dict[int, float]:
        """Return :meth:`norms_of` of an answer's flat gradients or values."""
        if self.config.sends_values:
            values = self.values
            answer = self.shared(("flat", layout), lambda: flatten(values[name] for name in layout.names)) - answer
        return flat_block_norms(layout, answer, self._block_of)

    def sizes_of(self, names: Iterable[str]) -> dict[int, float]:
        """Return the size of the present values of some names, per block (:func:`block_sizes`)."""
        chosen = tuple(names)
        values = self.values
        return self.shared(("sizes", chosen), lambda: block_sizes({n: values[n] for n in chosen}, self._block_of))

    def initial_full_parameters(self) -> dict[str, Tensor]:
        """Return the initial values of the fully trained parameters, which all devices must share.

        All other trained values start at the base.
        """
        return {name: value for name, value in self.initial_values.items() if name in self._full_parameters}

    def write_into(self, model: nn.Module) -> None:
        """Copy the values into a model that has the support installed."""
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in self.values.items():
                parameters[name].copy_(value)

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the state as JSON-able fields and tensors, for :meth:`load_state_dict`."""
        fields = {
            "version": self.version,
            "round": self.round,
            "changed_at": self._changed_at,
            "norms": self.norms.state_dict(),
            "tokens_per_row": list(self._tokens_per_row),
            "scores": self._scores.state_dict(),
            "revival": self.active_modules.state_dict(),
        }
        tensors = {
            **add_prefix("value", self.values),
            **add_prefix("start", self.initial_full_parameters()),
            **add_prefix(_OPTIMIZER, self.optimizer.state_dict()),
        }
        return fields, tensors

    def load_state_dict(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._shared.clear()
        self.version, self.round = int(fields["version"]), int(fields["round"])
        self._changed_at = {str(name): int(version) for name, version in fields["changed_at"].items()}
        self.values = strip_prefix("value", tensors)
        self.initial_values |= strip_prefix("start", tensors)
        self.optimizer.load_state_dict(strip_prefix(_OPTIMIZER, tensors))
        self.norms.load_state_dict(fields["norms"])
        lengths = fields.get("tokens_per_row", ())  # earlier revisions saved none
        self._tokens_per_row = deque(map(float, lengths), maxlen=NORMS_KEPT)
        self._scores.load_state_dict(fields.get("scores", {}))
        self.active_modules.load_state_dict(fields["revival"])
