"""What a machine does with models of several kinds: the figures by which "very edge" devices are compared.

Tokens per second, the share of the machine's matrix products that a model reaches (MFU), tokens per joule, and the
granularity: how long a device computes in a round for every second that it communicates.

Source: arXiv 2310.03150 for the figures; sparse training as what is measured, and whole rounds both ways, are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field

import taskedge as te
from taskedge.backbone.cost_model import block_table, dummy_inputs
from taskedge.backbone.shapes import Shape
from taskedge.profiling.profile_file import Energy, Machine, NotNegative, Positive, Row
from taskedge.profiling.step_profile import Effort, measure
from taskedge.profiling.training_steps import Training


class Link(Row):
    """A device's way to the server and back, and how much of a round lies between two uses of it."""

    uplink_bits_per_second: Positive
    downlink_bits_per_second: Positive
    bytes_per_value: Positive
    local_steps: Annotated[int, Field(ge=1)]

    def seconds(self, values: float) -> float:
        """To send ``values`` trained values up, and to receive as many."""
        bits = 8 * self.bytes_per_value * values
        return bits / self.uplink_bits_per_second + bits / self.downlink_bits_per_second


class Round(Row):
    """A round of a cooperative run: local steps, then ``values`` values up and down."""

    values: Positive
    compute_seconds: Positive
    communication_seconds: Positive
    granularity_ratio: Positive


class ModelFigures(Row):
    """One model on the machine. A step trains entries in all blocks; its backward FLOPs are those of dX alone."""

    model: str
    kind: Literal["encoder", "causal LM", "seq2seq"]
    weights: Literal["its own", "random"]
    parameters: Annotated[int, Field(ge=1)]
    trained: str
    batch_sequences: Annotated[int, Field(ge=1)]
    tokens_per_step: Annotated[int, Field(ge=1)]  # of a seq2seq model: source and target
    forward_seconds: Positive
    step_seconds: Positive
    forward_tokens_per_second: Positive
    training_tokens_per_second: Positive
    gemm_peak_flops_per_second: Positive
    forward_mfu_ratio: Positive
    training_mfu_ratio: Positive
    peak_bytes: NotNegative
    energy: Energy
    sparse_round: Round
    full_round: Round
    """The same steps, if every parameter had to be sent."""


class DeviceReport(Row):
    """What ``taskedge bench device`` writes."""

    format: Literal["taskedge-device-1"] = "taskedge-device-1"
    machine: Machine
    clock: Literal["wall", "cpu"]
    link: Link
    models: Annotated[list[ModelFigures], Field(min_length=1)]


def bench_device(
    shapes: Sequence[Shape],
    link: Link,
    effort: Effort,
    *,
    sequences: int,
    length: int,
    per_neuron: int = 1,
    watts: float | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = lambda _: None,
) -> DeviceReport:
    """Runs each model for a while, one after the other.

    Args:
        shapes: the models (:mod:`taskedge.backbone.shapes`); random weights where there are none.
        link: what a round sends its values over.
        effort: how long; forward passes and steps take turns.
        sequences, length: of a batch of random token ids; a seq2seq model reads as many tokens as it writes.
        per_neuron: entries that train in every neuron of the blocks' linears.
        watts: the machine's power, for where it has no counter.
        device: of torch.
        say: told which model runs.

    Raises:
        InputError: a model that takes no tokens, not as many, or has no repeated blocks.
    """
    figures: list[ModelFigures] = []
    for shape in shapes:
        say(f"running {shape.name} ({shape.kind})")
        found, machine = _figures(shape, link, sequences, length, per_neuron, effort, watts, device, say)
        figures.append(found)
    return DeviceReport(machine=machine, clock=effort.clock, link=link, models=figures)


def _figures(
    shape: Shape,
    link: Link,
    sequences: int,
    length: int,
    per_neuron: int,
    effort: Effort,
    watts: float | None,
    device: str,
    say: Callable[[str], None],
) -> tuple[ModelFigures, Machine]:
    skeleton = shape.skeleton()
    table = block_table(skeleton, dummy_inputs(skeleton, 1, length), share=0.001, name=shape.name)
    torch.manual_seed(0)
    model, own = shape.load(say)
    model.to(device)
    inputs = dummy_inputs(model, sequences, length)
    support = te.select(model, [inputs], per_neuron=per_neuron)
    te.install(model, support, trainable=[])
    profile = measure(Training(model, f"{per_neuron} entries per neuron"), table, inputs, [len(table)], effort, watts)
    step = profile.step_seconds[-1]
    source_tokens = sequences * length
    tokens = source_tokens * len(inputs)  # one tensor of ids for each stream
    forward_flops = float(table.forward_flops.sum() + table.other_forward_flops) * source_tokens
    forward = forward_flops / profile.forward_flops_per_second
    whole_flops = forward_flops + float(table.backward_flops.sum()) * source_tokens
    parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    return ModelFigures(
        model=shape.name,
        kind=shape.kind,
        weights="its own" if own else "random",
        parameters=parameters,
        trained=profile.trained,
        batch_sequences=sequences,
        tokens_per_step=tokens,
        forward_seconds=forward,
        step_seconds=step,
        forward_tokens_per_second=tokens / forward,
        training_tokens_per_second=tokens / step,
        gemm_peak_flops_per_second=profile.gemm_peak_flops_per_second,
        forward_mfu_ratio=profile.forward_mfu_ratio,
        training_mfu_ratio=whole_flops / step / profile.gemm_peak_flops_per_second,
        peak_bytes=profile.peak_bytes[-1],
        energy=_of_all_tokens(profile.energy, tokens),
        sparse_round=_round(link, support.entries, step),
        full_round=_round(link, parameters, step),
    ), profile.machine


def _of_all_tokens(energy: Energy, tokens: int) -> Energy:
    if not energy.joules_per_step:
        return energy
    return energy.model_copy(update={"tokens_per_joule": tokens / energy.joules_per_step})


def _round(link: Link, values: int, step_seconds: float) -> Round:
    compute, communication = link.local_steps * step_seconds, link.seconds(values)
    return Round(
        values=float(values),
        compute_seconds=compute,
        communication_seconds=communication,
        granularity_ratio=compute / communication,
    )
