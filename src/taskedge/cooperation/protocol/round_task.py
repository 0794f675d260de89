"""One device's work in one round, under one name from the planner to the wire and into local training.

The scheduler makes a :class:`RoundTask` (blocks, bandwidth, predicted seconds). The coordinator completes it (seed,
batches, idle names) and sends it with the round's :class:`TrainingRecipe`. The device trains by both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskedge.cooperation.protocol.message import MessageError


@dataclass(frozen=True)
class TrainingRecipe:
    """How every device trains in one round."""

    round: int
    """From 1."""
    batch_size: int
    """Rows in a batch."""
    local_steps: int
    optimizer: str
    """Of the device, if ``local_steps`` is above 1: ``sgd`` or ``adamw``."""
    lr: float
    head_lr: float
    weight_decay: float


@dataclass(frozen=True)
class RoundTask:
    """One device's work in one round.

    Bandwidth and predicted seconds stay with the coordinator. They are 0 in a task that a device received.
    """

    device: str
    """Empty in a task that a device received: the link knows whose it is."""
    blocks: tuple[int, ...]
    """Depths, shallow first. The head (0) is among them if the device trains it."""
    bandwidth_hz: float = 0.0
    uplink_bits_per_second: float = 0.0
    """Bit rate of the device's link at that bandwidth."""
    down_seconds: float = 0.0
    compute_seconds: float = 0.0
    up_seconds: float = 0.0
    idle: tuple[int, ...] = ()
    """Names of these blocks that do not train in this round, as indices into ``TrainedBlocks.names_in(blocks)``."""
    seed: int = 0
    """Of the device: for the order of its rows and for dropout."""
    accumulate: int = 1
    """Batches per local step."""

    @property
    def seconds(self) -> float:
        """Predicted seconds from sending the task to receiving the answer."""
        return self.down_seconds + self.compute_seconds + self.up_seconds

    @property
    def deepest(self) -> int:
        """Depth of the deepest block, which backpropagation must reach."""
        return max(self.blocks)

    def plan_state(self) -> dict[str, Any]:
        """Return the planner's fields, JSON-able, for :meth:`from_plan_state`."""
        return {
            "device": self.device,
            "blocks": list(self.blocks),
            "bandwidth_hz": self.bandwidth_hz,
            "uplink_bits_per_second": self.uplink_bits_per_second,
            "down_seconds": self.down_seconds,
            "compute_seconds": self.compute_seconds,
            "up_seconds": self.up_seconds,
        }

    @classmethod
    def from_plan_state(cls, fields: Mapping[str, Any]) -> RoundTask:
        """Return the task whose :meth:`plan_state` is ``fields``."""
        return cls(**{**fields, "blocks": tuple(fields["blocks"])})

    def header(self, recipe: TrainingRecipe) -> dict[str, Any]:
        """Return the fields that the device needs, JSON-able, for :func:`read_round_task`."""
        fields = dict(vars(recipe))
        fields["optimiser"] = fields.pop("optimizer")  # the spelling of the wire format  # codespell:ignore
        return {
            "blocks": list(self.blocks),
            "seed": self.seed,
            "accumulate": self.accumulate,
            "idle": list(self.idle),
            **fields,
        }


def read_round_task(header: Mapping[str, Any]) -> tuple[RoundTask, TrainingRecipe]:
    """Read what :meth:`RoundTask.header` wrote.

    Raises:
        MessageError: A field is missing, unknown, or of the wrong type.
    """
    try:
        fields = dict(header)
        task = RoundTask(
            device="",
            blocks=tuple(fields.pop("blocks")),
            idle=tuple(fields.pop("idle")),
            seed=fields.pop("seed"),
            accumulate=fields.pop("accumulate"),
        )
        return task, TrainingRecipe(optimizer=fields.pop("optimiser"), **fields)  # codespell:ignore
    except (KeyError, TypeError, ValueError) as error:
        raise MessageError(f"a task that cannot be read ({type(error).__name__}: {error})") from None
