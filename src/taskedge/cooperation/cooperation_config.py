"""Settings of a cooperative run. The only place of their defaults and help texts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from taskedge.errors import InputError
from taskedge.training.config import Config
from taskedge.training.trainer_config import trainer_field


class CooperationConfig(Config):
    """Settings of one cooperative run.

    The default values of learning rate, batch size and schedule are those of a run on one machine
    (:class:`taskedge.training.trainer_config.TrainerConfig`).
    """

    old_names: ClassVar[Mapping[str, str]] = {
        "turns": "rotation_slack",
        "passing": "traversal_slack",
        "local_optimiser": "local_optimizer",  # codespell:ignore
        "optimiser": "server_optimizer",  # codespell:ignore
        "least_deadline": "min_deadline",
        "follow_pace": "calibrate",
        "drift": "replan_drift",
    }

    # what is trained
    budget: Annotated[str | float, Field(description="Share of the model's parameters to train.")] = "0.1%"
    per_neuron: Annotated[
        int | None, Field(description="Number of entries to train per neuron, instead of a budget.", ge=1)
    ] = None
    rule: Annotated[
        str, Field(description="Rule that ranks the weights; it may use statistics of inputs, or no data.")
    ] = "taskedge"
    allocation: Annotated[str, Field(description="How the entries are distributed over the model.")] = "per_neuron"
    max_columns: Annotated[
        int | None, Field(description="Largest number of distinct inputs used per linear layer; limits memory.", ge=1)
    ] = None
    max_rows: Annotated[
        int | None,
        Field(
            description="Largest number of neurons of every linear layer that have entries; with --max-columns and "
            "--allocation block, all entries of these rows and columns train instead of a budget.",
            ge=1,
        ),
    ] = None
    step: Annotated[
        Literal["activation", "plain"],
        Field(description="'activation' scales steps by the inverse norm of the inputs; 'plain' does not."),
    ] = "activation"
    calibration: Annotated[
        int, Field(description="Batches of data that the selection uses, over all devices together.")
    ] = 8

    # who trains it
    mode: Annotated[
        Literal["deft", "replicate", "fedavg"],
        Field(
            description="'deft': each block on one device; 'replicate': each on several; 'fedavg': all blocks on all "
            "devices."
        ),
    ] = "deft"
    copies: Annotated[int, Field(description="Number of devices per block with mode 'replicate'.", ge=1)] = 2
    blocks: Annotated[
        int | None,
        Field(description="Merge neighboring layers into this number of blocks.  [default: one block per layer]"),
    ] = None
    solver: Annotated[str, Field(description="Solver that plans the rounds (docs/planning.md).")] = "exact"
    rotation_slack: Annotated[
        float,
        Field(
            description="Allowed slowdown of a round (fraction) for giving blocks to idle devices, and for rotating "
            "blocks among devices; 0 disables rotation.",
            ge=0,
        ),
    ] = 0.1
    traversal_slack: Annotated[
        float,
        Field(
            description="Allowed slowdown of a round (fraction) for devices to also train blocks that their "
            "backpropagation traverses; 0 disables this.",
            ge=0,
        ),
    ] = 0.1
    head: Annotated[
        Literal["every", "first"],
        Field(
            description="'every': all devices that have a task train the head as well; 'first': only those that train "
            "the first block."
        ),
    ] = "every"
    active_share: Annotated[
        float,
        Field(
            description="Share of the trained linear layers that stay active, such as 1/8; the others are frozen and "
            "tried again at times. 1: all are active.",
            gt=0,
            le=1,
        ),
    ] = 1.0
    devices: Annotated[int, Field(description="Number of devices to wait for before the first round.", ge=1)] = 1
    wait_seconds: Annotated[
        float,
        Field(description="Seconds to wait for missing devices before the run stops.", gt=0, allow_inf_nan=True),
    ] = 60.0

    # how it is trained
    rounds: Annotated[
        int, Field(description="Number of rounds; each ends in one step of the server optimizer.", ge=1)
    ] = 100
    batch_size: int = trainer_field("batch_size", description="Rows in a batch.")
    accumulate: int = trainer_field("accumulate", description="Batches per local step.")
    local_steps: Annotated[
        int,
        Field(
            description="Optimizer steps of a device in a round. 1: devices send a gradient; more: they update their "
            "own values and send these.",
            ge=1,
        ),
    ] = 1
    local_optimizer: Annotated[
        Literal["sgd", "adamw"], Field(description="Optimizer on the devices, with more than one local step.")
    ] = "sgd"
    upload: Annotated[
        Literal["float8", "bfloat16", "float32"],
        Field(
            description="Number format of what devices send: 'float8' needs a quarter and 'bfloat16' half of the bytes "
            "of 'float32', which is exact."
        ),
    ] = "float8"
    server_optimizer: Annotated[
        Literal["sgd", "fedavgm", "fedadam", "fedadam-uncorrected", "fedadamw"] | None,
        Field(
            description="Optimizer of the coordinator.  [default: 'fedadamw' for gradients, 'sgd' (plain averaging) "
            "for values]"
        ),
    ] = None
    lr: float = trainer_field(
        "lr",
        description="Peak learning rate of the side that applies gradients: the coordinator, or with more than one "
        "local step the devices.",
        ge=None,
        gt=0,
    )
    head_lr: Annotated[
        float | None,
        Field(description="Peak learning rate of the fully trained parameters (the head).  [default: lr]"),
    ] = None
    server_lr: Annotated[
        float,
        Field(
            description="Step of the coordinator towards the mean of the devices' values, with more than one local "
            "step.",
            gt=0,
        ),
    ] = 1.0
    weight_decay: float = trainer_field("weight_decay")
    warmup: float = trainer_field(
        "warmup", description="Share of the rounds over which the learning rate rises; it falls linearly after."
    )
    clip: float = trainer_field(
        "clip",
        description="Largest norm of a round's gradient over all its blocks; 0 for no clipping. Values are not "
        "clipped.",
    )
    seed: int = trainer_field("seed")

    # deadlines, and which answers are rejected
    deadline_factor: Annotated[
        float,
        Field(description="Deadline of a round, as a multiple of its predicted duration.", gt=1),
    ] = 3.0
    min_deadline: Annotated[
        float, Field(description="Shortest deadline of a round in seconds, however short its prediction is.", gt=0)
    ] = 2.0
    first_deadline: Annotated[
        float,
        Field(
            description="Seconds that a device has to install the support, and for its tasks until one was timed.",
            gt=0,
        ),
    ] = 120.0
    calibrate: Annotated[
        bool,
        Field(
            description="Correct predicted durations by measured ones (the default). Without, plans depend only on the "
            "fleet file, the profiles and the devices that are present, so that a run can be repeated bit by bit."
        ),
    ] = True
    replan_drift: Annotated[
        float,
        Field(
            description="Relative change of a device's compute time that causes a new plan.", gt=0, allow_inf_nan=True
        ),
    ] = 0.25
    norm_factor: Annotated[
        float,
        Field(
            description="Scale an answer down to the median norm of its block if its norm exceeds this multiple of it.",
            ge=1,
            allow_inf_nan=True,
        ),
    ] = 3.0
    aggregate: Annotated[
        Literal["mean", "median", "trimmed", "krum"],
        Field(
            description="How the answers for a block become one: the 'mean' by tokens, the 'median' or 'trimmed' mean "
            "of each entry, or the mean of those nearest to one another ('krum'). All but the mean withstand wrong "
            "answers of a minority and need at least three answers for a block "
            "('krum' five); with fewer they are the mean."
        ),
    ] = "mean"
    quarantine_after: Annotated[
        int, Field(description="Rejected answers after which a device gets no more tasks.", ge=1)
    ] = 3

    @field_validator("solver")
    @classmethod
    def _check_solver(cls, value: str) -> str:
        from taskedge.planning.solvers import SOLVERS

        try:
            SOLVERS[value]
        except InputError as error:
            raise ValueError(str(error)) from None
        name = SOLVERS.current_name(value)
        if name != value:
            warnings.warn(f"the solver {value!r} is now {name!r}; the old name will go", FutureWarning, stacklevel=2)
        return name

    @model_validator(mode="after")
    def _check_selection(self) -> CooperationConfig:
        if not self.model_fields_set & {"rule", "allocation"}:
            return self
        from taskedge.selection.select import refuse_clashes

        names = ("budget", "per_neuron", "max_columns", "max_rows", "allocation")
        given = {name: getattr(self, name) if name in self.model_fields_set else None for name in names}
        try:
            refuse_clashes(self.rule, **given)
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    def select_kwargs(self) -> dict[str, Any]:
        """Return keyword arguments for :func:`taskedge.select`, without a budget that another setting replaces."""
        from taskedge.selection.allocations import BLOCK
        from taskedge.selection.patterns import read_pattern

        limited = self.max_rows is not None and self.max_columns is not None
        whole_block = self.allocation == BLOCK and limited and "budget" not in self.model_fields_set
        replaced = self.per_neuron is not None or read_pattern(self.allocation) is not None or whole_block
        names = ("per_neuron", "rule", "allocation", "max_columns", "max_rows", "seed")
        return {"budget": None if replaced else self.budget} | {name: getattr(self, name) for name in names}

    @property
    def sends_values(self) -> bool:
        """Whether devices send new values instead of a gradient."""
        return self.local_steps > 1

    @property
    def resolved_server_optimizer(self) -> str:
        """Name of the server optimizer, with the default resolved."""
        return self.server_optimizer or ("sgd" if self.sends_values else "fedadamw")

    @property
    def rows_per_round(self) -> int:
        """Rows that a device trains on in a round, unless the fleet file states another number."""
        return self.batch_size * self.accumulate * self.local_steps

    def lr_factor(self, round_number: int) -> float:
        """Return the factor of the learning rate in a round (from 1): a linear rise to 1, then a linear fall to 0."""
        warmup_rounds = int(self.warmup * self.rounds)
        completed = round_number - 1
        if completed < warmup_rounds:
            return round_number / warmup_rounds
        return (self.rounds - completed) / (self.rounds - warmup_rounds)
