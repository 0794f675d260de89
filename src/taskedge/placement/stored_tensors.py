"""Stored tensors: their sizes and how often they are read and written, as plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass

from taskedge.placement.chip_file import ChipUse, TensorKind


@dataclass(frozen=True)
class StoredTensor:
    """Values that live in one memory together.

    Attributes:
        name: for plans and messages.
        kind: of content.
        bits: its size.
        read_bits, written_bits: traffic of one pass that uses it.
        share: share of the passes that use it.
        task: the task that it belongs to; None if every pass uses it.
    """

    name: str
    kind: TensorKind
    bits: int
    read_bits: int
    written_bits: int = 0
    share: float = 1.0
    task: str | None = None


@dataclass(frozen=True)
class TaskSize:
    """Sizes of what one task stores.

    Attributes:
        name: of the task.
        entries: trained entries of the base's weights.
        parameters: all other values: of the head, of low-rank factors.
    """

    name: str
    entries: int
    parameters: int


@dataclass(frozen=True)
class BaseTensor:
    """A parameter of the base, and the values of it that one pass reads.

    Attributes:
        name: of the parameter.
        values: their number.
        is_matrix: whether it is stored with a mask if the base is sparse.
        values_read: in one pass; more than ``values`` where several layers share it, fewer in an embedding.
    """

    name: str
    values: int
    is_matrix: bool
    values_read: int


@dataclass(frozen=True)
class ActivationTraffic:
    """Activations of one pass: the largest number of values at a time, and how many are written and read."""

    values: int
    written: int
    read: int


def masked_bits(values: int, density: float, bits: int) -> int:
    """Return the bits of a sparse tensor: one mask bit a value, and ``bits`` for each value that is not zero."""
    return values + math.ceil(values * density) * bits


def stored_tensors(
    base: list[BaseTensor], activations: ActivationTraffic | None, tasks: list[TaskSize], use: ChipUse
) -> list[StoredTensor]:
    """Return what the chip stores: each parameter of the base, the activations, and two tables for each task.

    A pass reads a task's tables once, beside the product with the base's weights: a base in non-volatile memory is not
    patched. Tasks have equal shares of the passes.
    """
    tensors = []
    for part in base:
        size, read = part.values * use.weight_bits, part.values_read * use.weight_bits
        if part.is_matrix and use.base_density < 1:
            size = masked_bits(part.values, use.base_density, use.weight_bits)
            read = masked_bits(part.values_read, use.base_density, use.weight_bits)
        tensors.append(StoredTensor(part.name, "base", size, read))
    if activations is not None:
        bits = use.activation_bits
        tensors.append(
            StoredTensor(
                "activations", "activations", activations.values * bits, activations.read * bits,
                activations.written * bits,
            )
        )  # fmt: skip
    for task in tasks:
        tables = {"entries": task.entries * use.entry_bits, "parameters": task.parameters * use.parameter_bits}
        tensors += [
            StoredTensor(f"{task.name}: {name}", "task", bits, bits, share=1 / len(tasks), task=task.name)
            for name, bits in tables.items()
            if bits
        ]
    return tensors
