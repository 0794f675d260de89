"""How a cooperative run trains. The only place where these names and defaults stand."""

from __future__ import annotations

from dataclasses import dataclass

from taskedge.errors import InputError, did_you_mean

MODES = ("deft", "replicate", "fedavg")
HEADS = ("every", "first")
LOCAL_OPTIMISERS = ("sgd", "adamw")


@dataclass(frozen=True)
class CooperateSettings:
    """Settings of one run; checked when they are made, every fault in one message."""

    # what trains
    budget: str | float = "0.1%"
    per_neuron: int | None = None
    """Instead of ``budget``: entries per neuron."""
    rule: str = "taskedge"
    allocation: str = "per_neuron"
    max_columns: int | None = None
    step: str = "activation"
    calibration: int = 8
    """Batches that the selection looks at, over all devices together."""

    # who trains it
    mode: str = "deft"
    """``deft``: each block on one device; ``replicate``: on ``copies``; ``fedavg``: every block on every device."""
    copies: int = 2
    blocks: int | None = None
    """Neighbouring layers are merged into so many blocks; None: every layer is one."""
    solver: str = "joint"
    head: str = "every"
    """``every``: every device with a task trains the head, too; ``first``: the one with the first block."""
    active_share: float = 1.0
    """Share of the blocks that train in a round (kill and revive); 1: all."""
    devices: int = 1
    """How many to wait for before the first round."""
    wait_seconds: float = 60.0
    """How long to wait for devices that are missing, before the run gives up."""

    # how
    rounds: int = 100
    batch_size: int = 32
    accumulate: int = 1
    """Batches per local step."""
    local_steps: int = 1
    """1: devices answer with a gradient; more: they step by themselves and answer with new values."""
    local_optimiser: str = "sgd"
    optimiser: str | None = None
    """The server's; None: ``fedadamw`` for gradients, ``sgd`` (plain averaging) for values."""
    lr: float = 3e-2
    """Peak learning rate of whoever applies gradients: the server, or with more than one local step the devices."""
    head_lr: float | None = None
    """That of what trains whole; None: the same."""
    server_lr: float = 1.0
    """The server's step towards the mean of the devices' values, with more than one local step."""
    weight_decay: float = 0.0
    """Pulls offsets towards 0, that is, weights towards the base."""
    warmup: float = 0.06
    """Share of the rounds over which the learning rate rises; it falls linearly after."""
    clip: float = 1.0
    """Largest norm of a round's gradient over all its blocks; 0 for no clipping. Not for values."""
    seed: int = 0

    # how long, and what is refused
    deadline_factor: float = 3.0
    """A round ends after so many times its predicted seconds."""
    least_deadline: float = 2.0
    """Seconds; no round ends before, however short it should be."""
    first_deadline: float = 120.0
    """Seconds for a device of which nothing was observed yet, to be installed on and for its first task."""
    follow_pace: bool = True
    """Whether plans follow the pace that devices are seen to have. Off, they follow from fleet file, profiles and
    membership alone: then a run can be repeated bit by bit."""
    drift: float = 0.25
    """Relative change of a device's compute seconds at which the rounds are planned anew."""
    norm_factor: float = 20.0
    """An answer whose norm is more than so many times the running median of its block is refused."""
    quarantine_after: int = 3
    """Refused answers after which a device gets no more tasks."""

    def __post_init__(self) -> None:
        from taskedge.cooperation.optimisers import OPTIMISERS

        faults = []
        for name, known in (
            ("mode", MODES),
            ("head", HEADS),
            ("local_optimiser", LOCAL_OPTIMISERS),
            ("optimiser", tuple(OPTIMISERS)),
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
