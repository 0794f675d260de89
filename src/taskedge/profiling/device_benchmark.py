"""Benchmark of a machine on models of several kinds, with the figures that compare "very edge" devices.

The figures are tokens per second, the model FLOP/s utilization (MFU) relative to the machine's matrix products, tokens
per joule, and the granularity: seconds of computing in a round per second of communication.

Source: arXiv 2310.03150 for the figures; this project for sparse training as the workload, and for rounds with both
directions of traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field

from taskedge.backbone.cost_model import block_table, dummy_inputs
from taskedge.backbone.shapes import Shape
from taskedge.forms.install import install
from taskedge.profiling.profile_file import Energy, Machine, NonNegative, Positive, StrictRecord
from taskedge.profiling.step_profile import Effort, measure_profile
from taskedge.profiling.training_steps import DepthTraining
from taskedge.selection.select import select


class RoundLink(StrictRecord):
    """The link between device and server, and the local work of a round.

    ``local_steps`` steps lie between two uses of the link.
    """

    uplink_bits_per_second: Positive
    downlink_bits_per_second: Positive
    bytes_per_value: Positive
    local_steps: Annotated[int, Field(ge=1)]

    def seconds(self, values: float) -> float:
        """Return the seconds to send ``values`` trained values, and to receive as many."""
        bits = 8 * self.bytes_per_value * values
        return bits / self.uplink_bits_per_second + bits / self.downlink_bits_per_second


class RoundFigures(StrictRecord):
    """Times of one round of a cooperative run: local steps, then ``values`` values up and down."""

    values: Positive
    compute_seconds: Positive
    communication_seconds: Positive
    granularity_ratio: Positive


class ModelFigures(StrictRecord):
    """Figures of one model on the machine.

    A step trains entries in all blocks, so its backward FLOPs are those of dX alone. ``full_round`` has the same steps
    and the traffic of all parameters. Tokens of a seq2seq model include source and target.
    """

    model: str
    kind: Literal["encoder", "causal LM", "seq2seq"]
    weights: Literal["its own", "random"]
    parameters: Annotated[int, Field(ge=1)]
    trained: str
    batch_sequences: Annotated[int, Field(ge=1)]
    tokens_per_step: Annotated[int, Field(ge=1)]
    forward_seconds: Positive
    step_seconds: Positive
    forward_tokens_per_second: Positive
    training_tokens_per_second: Positive
    gemm_peak_flops_per_second: Positive
    forward_mfu_ratio: Positive
    training_mfu_ratio: Positive
    peak_bytes: NonNegative
    energy: Energy
    sparse_round: RoundFigures
    full_round: RoundFigures


class DeviceReport(StrictRecord):
    """Result file of ``taskedge bench device``."""

    format: Literal["taskedge-device-1"] = "taskedge-device-1"
    machine: Machine
    clock: Literal["wall", "cpu"]
    link: RoundLink
    models: Annotated[list[ModelFigures], Field(min_length=1)]


def bench_device(
    shapes: Sequence[Shape],
    link: RoundLink,
    effort: Effort,
    *,
    sequences: int,
    length: int,
    per_neuron: int = 1,
    watts: float | None = None,
    device: str = "cpu",
    log: Callable[[str], None] = lambda _: None,
) -> DeviceReport:
    """Run each model for some seconds, one after the other.

    Args:
        shapes: the models (:mod:`taskedge.backbone.shapes`), with random weights if a model has none.
        link: the link of a round.
        effort: extent of the measurement. Forward passes and steps alternate.
        sequences, length: size of a batch of random token ids. A seq2seq model reads as many tokens as it writes.
        per_neuron: trained entries in every neuron of the blocks' linears.
        watts: power of the machine, for a machine without a power counter.
        device: torch device.
        log: called with a message for each model.

    Raises:
        InputError: a model takes no tokens or fewer tokens, or has no repeated blocks.
    """
    figures: list[ModelFigures] = []
    for shape in shapes:
        log(f"running {shape.name} ({shape.kind})")
        model_figures, machine = _figures(shape, link, sequences, length, per_neuron, effort, watts, device, log)
        figures.append(model_figures)
    return DeviceReport(machine=machine, clock=effort.clock, link=link, models=figures)


def _figures(
    shape: Shape,
    link: RoundLink,
    sequences: int,
    length: int,
    per_neuron: int,
    effort: Effort,
    watts: float | None,
    device: str,
    log: Callable[[str], None],
) -> tuple[ModelFigures, Machine]:
    skeleton = shape.skeleton()
    table = block_table(skeleton, dummy_inputs(skeleton, 1, length), share=0.001, name=shape.name)
    torch.manual_seed(0)
    model, has_weights = shape.load(log)
    model.to(device)
    inputs = dummy_inputs(model, sequences, length)
    support = select(model, [inputs], per_neuron=per_neuron)
    install(model, support, trainable=[])
    profile = measure_profile(
        DepthTraining(model, f"{per_neuron} entries per neuron"), table, inputs, [len(table)], effort, watts
    )
    step = profile.step_seconds[-1]
    source_tokens = sequences * length
    tokens = source_tokens * len(inputs)  # one tensor of ids for each input stream
    forward_flops = float(table.forward_flops.sum() + table.other_forward_flops) * source_tokens
    forward = forward_flops / profile.forward_flops_per_second
    step_flops = forward_flops + float(table.backward_flops.sum()) * source_tokens
    parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    return ModelFigures(
        model=shape.name,
        kind=shape.kind,
        weights="its own" if has_weights else "random",
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
        training_mfu_ratio=step_flops / step / profile.gemm_peak_flops_per_second,
        peak_bytes=profile.peak_bytes[-1],
        energy=_with_tokens(profile.energy, tokens),
        sparse_round=_round(link, support.num_entries, step),
        full_round=_round(link, parameters, step),
    ), profile.machine


def _with_tokens(energy: Energy, tokens: int) -> Energy:
    if not energy.joules_per_step:
        return energy
    return energy.model_copy(update={"tokens_per_joule": tokens / energy.joules_per_step})


def _round(link: RoundLink, values: int, step_seconds: float) -> RoundFigures:
    compute, communication = link.local_steps * step_seconds, link.seconds(values)
    return RoundFigures(
        values=float(values),
        compute_seconds=compute,
        communication_seconds=communication,
        granularity_ratio=compute / communication,
    )
