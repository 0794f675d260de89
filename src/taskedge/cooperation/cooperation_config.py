"""How a cooperative run trains. The only place where these names and defaults stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from taskedge.errors import InputError, did_you_mean
from taskedge.training.trainer_config import FitSettings

MODES = ("deft", "replicate", "fedavg")
HEADS = ("every", "first")
LOCAL_OPTIMISERS = ("sgd", "adamw")


@dataclass(frozen=True)
class CooperateSettings:
    """Settings of one run; checked when they are made, every fault in one message."""

    # what trains
    budget: Annotated[str | float, Field(description="Share of the model's parameters to train.")] = "0.1%"
    per_neuron: Annotated[int | None, Field(description="Instead of a budget: entries per neuron.")] = None
    rule: Annotated[str, Field(description="What ranks the weights; one that looks at inputs or at no data.")] = (
        "taskedge"
    )
    allocation: Annotated[str, Field(description="How they are spread.")] = "per_neuron"
    max_columns: Annotated[int | None, Field(description="Most distinct inputs used per linear: a cap on memory.")] = (
        None
    )
    step: Annotated[str, Field(description="'activation' scales steps by the inverse input norm; or 'plain'.")] = (
        "activation"
    )
    calibration: Annotated[
        int, Field(description="Batches that the selection looks at, over all devices together.")
    ] = 8

    # who trains it
    mode: Annotated[
        str,
        Field(
            description="'deft': each block on one device; 'replicate': on several; 'fedavg': every block on every "
            "device."
        ),
    ] = "deft"
    copies: Annotated[int, Field(description="Devices that a block is on with mode 'replicate'.")] = 2
    blocks: Annotated[
        int | None, Field(description="Merge neighbouring layers into so many blocks.  [default: one for each layer]")
    ] = None
    solver: Annotated[str, Field(description="What plans the rounds (docs/planning.md).")] = "joint"
    turns: Annotated[
        float,
        Field(
            description="By what share a round may take longer so that devices take turns with the blocks, and every "
            "block learns from all data; 0: the plan stays as it is."
        ),
    ] = 0.1
    passing: Annotated[
        float,
        Field(
            description="By what share a round may take longer so that devices also answer for blocks that their "
            "backpropagation passes on its way; 0: each answers for its own blocks alone."
        ),
    ] = 0.1
    head: Annotated[
        str,
        Field(
            description="'every': every device with a task trains the head, too; 'first': the one with the first block."
        ),
    ] = "every"
    active_share: Annotated[
        float,
        Field(description="Share of the trained linears that stay active (kill and revive), such as 1/8; 1: all."),
    ] = 1.0
    devices: Annotated[int, Field(description="How many devices to wait for before the first round.")] = 1
    wait_seconds: Annotated[
        float, Field(description="How long to wait for devices that are missing, before the run gives up.")
    ] = 60.0

    # how
    rounds: Annotated[int, Field(description="Rounds; each ends in one step of the server's optimiser.")] = 100
    batch_size: Annotated[int, Field(description="Rows in a batch.")] = FitSettings.batch_size
    accumulate: Annotated[int, Field(description="Batches per local step.")] = 1
    local_steps: Annotated[
        int,
        Field(
            description="1: devices answer with a gradient; more: they step by themselves and answer with new values."
        ),
    ] = 1
    local_optimiser: Annotated[str, Field(description="With more than one local step: 'sgd' or 'adamw'.")] = "sgd"
    upload: Annotated[
        str,
        Field(
            description="What answers are sent as: 'float8' or 'bfloat16' for a quarter or half of the bytes, or "
            "'float32' to the last bit."
        ),
    ] = "float8"
    optimiser: Annotated[
        str | None,
        Field(description="The server's.  [default: 'fedadamw' for gradients, 'sgd' (plain averaging) for values]"),
    ] = None
    lr: Annotated[
        float,
        Field(
            description="Peak learning rate of whoever applies gradients: the server, or with more than one local step "
            "the devices."
        ),
    ] = FitSettings.lr
    head_lr: Annotated[float | None, Field(description="That of what trains whole, if it is another.")] = None
    server_lr: Annotated[
        float,
        Field(description="The server's step towards the mean of the devices' values, with more than one local step."),
    ] = 1.0
    weight_decay: Annotated[float, Field(description="Pull of the weights towards the base.")] = (
        FitSettings.weight_decay
    )
    warmup: Annotated[
        float, Field(description="Share of the rounds over which the learning rate rises; it falls linearly after.")
    ] = FitSettings.warmup
    clip: Annotated[
        float,
        Field(description="Largest norm of a round's gradient over all its blocks; 0 for no clipping. Not for values."),
    ] = FitSettings.clip
    seed: Annotated[int, Field(description="Of the head, the order of the data, and dropout.")] = 0

    # how long, and what is refused
    deadline_factor: Annotated[float, Field(description="A round ends after so many times its predicted seconds.")] = (
        3.0
    )
    least_deadline: Annotated[
        float, Field(description="Seconds; no round ends before, however short it should be.")
    ] = 2.0
    first_deadline: Annotated[
        float,
        Field(
            description="Seconds for a device to be installed on, and for its first tasks after that, of which nothing "
            "was observed yet."
        ),
    ] = 120.0
    follow_pace: Annotated[
        bool,
        Field(
            description="Whether plans follow the pace that devices are seen to have (the default). Off, they follow "
            "from the fleet file, the profiles and who is there alone: then a run can be repeated bit by bit."
        ),
    ] = True
    drift: Annotated[
        float,
        Field(description="Relative change of a device's compute seconds at which the rounds are planned anew."),
    ] = 0.25
    norm_factor: Annotated[
        float,
        Field(
            description="An answer whose norm is more than so many times the running median of its block is refused."
        ),
    ] = 20.0
    quarantine_after: Annotated[int, Field(description="Refused answers after which a device gets no more tasks.")] = 3

    def __post_init__(self) -> None:
        from taskedge.cooperation.coordinator.server_optimizers import OPTIMISERS
        from taskedge.cooperation.protocol.quantization import UPLOADS
        from taskedge.planning.solvers import SOLVERS

        faults = []
        for name, known in (
            ("mode", MODES),
            ("head", HEADS),
            ("local_optimiser", LOCAL_OPTIMISERS),
            ("upload", tuple(UPLOADS)),
            ("optimiser", tuple(OPTIMISERS)),
            ("solver", tuple(SOLVERS)),
        ):
            value = getattr(self, name)
            if value is not None and value not in known:
                faults.append(f"{name}={value!r} is unknown{did_you_mean(value, known)} (known: {', '.join(known)})")
        for name in ("copies", "devices", "rounds", "batch_size", "accumulate", "local_steps", "quarantine_after"):
            if getattr(self, name) < 1:
                faults.append(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("lr", "server_lr", "wait_seconds", "least_deadline", "first_deadline", "drift", "norm_factor"):
            if not getattr(self, name) > 0:
                faults.append(f"{name}={getattr(self, name)} must be above 0")
        for name in ("turns", "passing"):
            if not getattr(self, name) >= 0:
                faults.append(f"{name}={getattr(self, name)} must be at least 0")
        if not 0 < self.active_share <= 1:
            faults.append(f"active_share={self.active_share} must be above 0 and at most 1")
        if not 0 <= self.warmup < 1:
            faults.append(f"warmup={self.warmup} must be a share from 0 to below 1")
        if not self.deadline_factor > 1:
            faults.append(f"deadline_factor={self.deadline_factor} must be above 1: half of all rounds take longer")
        if faults:
            raise InputError("; ".join(faults))

    @property
    def sends_values(self) -> bool:
        """Whether devices answer with new values instead of a gradient."""
        return self.local_steps > 1

    @property
    def server_optimiser(self) -> str:
        """The one that is used."""
        return self.optimiser or ("sgd" if self.sends_values else "fedadamw")

    @property
    def rows_per_round(self) -> int:
        """Rows that a device trains on in a round, unless the fleet file says other."""
        return self.batch_size * self.accumulate * self.local_steps

    def rate(self, round_number: int) -> float:
        """Factor of the learning rate in this round, from 1: a linear rise, then a linear fall to 0."""
        rise = int(self.warmup * self.rounds)
        before = round_number - 1
        if before < rise:
            return round_number / rise
        return (self.rounds - before) / (self.rounds - rise)
