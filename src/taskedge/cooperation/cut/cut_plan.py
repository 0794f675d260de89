"""Bytes, round trips, seconds, and work and memory of the device in a training step of the cut, in closed form.

With N tokens in a batch, hidden states of width d, and groups of modules that share an input, of which C columns and
outputs in R rows take part:

| message | direction | numbers |
|---|---|---|
| embedded tokens | up | N·d, once |
| columns of a group / what its modules add to outputs | down / up | N·C / N·R |
| last hidden states / their gradient | down / up | N·d / N·d |
| gradients of a group's outputs / what it adds to its input's | down / up | N·R / N·C, none of the lowest group |

A low-rank module has all its inputs and outputs. Without an active module only embedded tokens and last states cross.

Source: this project, for the cut of DLoRA (arXiv 2404.05182).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from taskedge.cooperation.cut.cut_coding import DEFAULT_CODING, coded_bytes
from taskedge.errors import InputError

_FP32 = 4
TRAINED_COPIES = 4
"""A trained number, its gradient and the two averages of AdamW."""


@dataclass(frozen=True)
class PlanGroup:
    """Active modules that share an input.

    Attributes:
        name: Of the first module.
        columns: Distinct columns of the input that the modules read.
        rows: Distinct rows that each module changes.
        inputs: Width of the input.
        outputs: Rows of each module's weight.
        rank: Of low-rank modules; None for entries.
        block: Index of the block of the base that it is in.
        entries: Numbers that train in entries; None: all of the rows and columns.
    """

    name: str
    columns: int
    rows: tuple[int, ...]
    inputs: int
    outputs: tuple[int, ...]
    rank: int | None = None
    block: int = 0
    entries: int | None = None

    @property
    def down(self) -> int:
        """Numbers of a token that the modules read."""
        return self.inputs if self.rank is not None else self.columns

    @property
    def up(self) -> int:
        """Numbers of a token that the modules change."""
        return sum(self.outputs) if self.rank is not None else sum(self.rows)

    @property
    def trained(self) -> int:
        """Numbers that train."""
        if self.rank is not None:
            return self.rank * sum(self.inputs + outputs for outputs in self.outputs)
        return self.columns * sum(self.rows) if self.entries is None else self.entries

    def flops(self, tokens: int, *, needs_input_gradient: bool) -> int:
        """Return the floating-point operations of a step on the device.

        Three products a module: what is added, the gradient of the trained numbers, and that of the input, which the
        lowest group does without. A low-rank module has two factors, so twice as many.
        """
        if self.rank is not None:
            down, up = len(self.outputs) * self.inputs, sum(self.outputs)
            return 2 * tokens * self.rank * (3 * (down + up) - (0 if needs_input_gradient else down))
        return 2 * tokens * self.columns * sum(self.rows) * (3 if needs_input_gradient else 2)


@dataclass(frozen=True)
class StepPlan:
    """A training step.

    Attributes:
        coding: Of what crosses.
        tokens: N, with padding.
        groups: Active groups; a round trip each way for each.
        down_bytes, up_bytes: Coded activations and gradients, from the cloud and from the device.
        round_trips: Requests of the cloud that the device answers, one after the other.
        device_flops: Floating-point operations on the device, without embedding and head.
        device_bytes: Memory of the device for embedding, head, trained numbers, what a step keeps, and messages.
        cloud_flops: Floating-point operations in the cloud; 0: not asked for.
        seconds: At the stated link and speeds; None without them.
    """

    coding: str
    tokens: int
    groups: int
    down_bytes: int
    up_bytes: int
    round_trips: int
    device_flops: int
    device_bytes: int
    cloud_flops: int
    seconds: float | None

    @property
    def step_bytes(self) -> int:
        """Bytes in both directions."""
        return self.down_bytes + self.up_bytes

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"step_bytes": self.step_bytes}


@dataclass(frozen=True)
class StatedLink:
    """A link, and what the ends need beside it.

    Attributes:
        bits_per_second: In each direction; the two take turns.
        delay: Seconds of a round trip.
        compute_seconds: Of a step at both ends together, such as a measured step on a fast link.
        framing_bytes: Of a request and its answer, beside what is coded.
    """

    bits_per_second: float
    delay: float
    compute_seconds: float = 0.0
    framing_bytes: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.bits_per_second < float("inf"):
            raise InputError(f"a bandwidth of {self.bits_per_second:g} bit/s: it must be above 0 and finite")
        if not 0 <= self.delay < float("inf") or not 0 <= self.compute_seconds < float("inf"):
            raise InputError(
                f"a delay of {self.delay:g} s and {self.compute_seconds:g} s of computing: 0 or above, and finite"
            )

    def seconds(self, num_bytes: int, round_trips: int) -> float:
        """Return the seconds of a step: computing, delays and transfers do not overlap."""
        crossing = num_bytes + round_trips * self.framing_bytes
        return self.compute_seconds + round_trips * self.delay + 8 * crossing / self.bits_per_second


def plan_step(
    groups: Sequence[PlanGroup],
    tokens: int,
    width: int,
    coding: str = DEFAULT_CODING,
    *,
    link: StatedLink | None = None,
    own_parameters: int = 0,
    head_parameters: int = 0,
    block_parameters: Sequence[int] = (),
) -> StepPlan:
    """Return what a training step costs.

    Args:
        groups: Active groups, input side first; none: only the head trains.
        tokens: N = rows·length of the batch, with padding.
        width: d, of the hidden states.
        coding: Of what crosses.
        link: For the seconds.
        own_parameters: Numbers on the device that do not train: the embedding.
        head_parameters: Numbers of the head, which train.
        block_parameters: Weights of the linears of each block in the cloud, for its work.

    Raises:
        InputError: A size is below 1.
        UnknownName: There is no coding of that name.
    """
    if tokens < 1 or width < 1:
        raise InputError(f"{tokens} tokens of width {width}: both must be 1 or more")
    states = coded_bytes((tokens, width), coding)
    down, up, kept = states, states, 0
    messages = [width]
    flops = 0
    for number, group in enumerate(groups):
        columns, rows = (coded_bytes((tokens, count), coding) for count in (group.down, group.up))
        down += columns + rows
        up += rows + (columns if number else 0)
        messages += [group.down, group.up]
        flops += group.flops(tokens, needs_input_gradient=bool(number))
        kept += tokens * group.down * _FP32
    if groups:
        up += states  # the gradient of the last states
    trained = sum(group.trained for group in groups) + head_parameters
    largest = max(messages)
    # hidden states that go in, come out and get a gradient; a message and what it is decoded to or made of
    passing = 3 * tokens * width * _FP32 + 2 * coded_bytes((tokens, largest), coding) + 2 * tokens * largest * _FP32
    round_trips = 2 * len(groups) + 2 if groups else 2
    lowest = min((group.block for group in groups), default=len(block_parameters))
    passed_back = sum(block_parameters[lowest:]) if groups else 0
    return StepPlan(
        coding=coding,
        tokens=tokens,
        groups=len(groups),
        down_bytes=down,
        up_bytes=up,
        round_trips=round_trips,
        device_flops=flops,
        device_bytes=own_parameters * _FP32 + trained * TRAINED_COPIES * _FP32 + kept + passing,
        cloud_flops=2 * tokens * (sum(block_parameters) + passed_back),
        seconds=None if link is None else link.seconds(down + up, round_trips),
    )
