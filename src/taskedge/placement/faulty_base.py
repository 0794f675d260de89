"""Accuracy of a task while the base's weights in non-volatile memory are read with faults.

The base is stored in a number format. The task's entries are in memory without faults and are added beside the product:
an entry that is trained to v over the stored weight q acts as v while q is read rightly, and as v + (read - q) else.

Source: NVMExplorer (arXiv 2109.01188) for the faults; this project for entries beside a faulty base.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.layers import linears
from taskedge.delta.apply import applied_to, apply, revert
from taskedge.errors import InputError
from taskedge.placement.cell_faults import CellFaults, read_mask
from taskedge.placement.number_formats import format_for

Measures = dict[str, Any]


@dataclass(frozen=True)
class StorageSettings:
    """How weights are stored.

    Attributes:
        number_format: its name (:func:`taskedge.placement.number_formats.format_for`).
        bit_mask: whether matrices are stored as a mask and their nonzero values.
        protect_mask: whether the mask is read without faults.
    """

    number_format: str = "adaptive:8.3"
    bit_mask: bool = False
    protect_mask: bool = False


@dataclass(frozen=True)
class ReadCounts:
    """Cells that were read and those that were read wrongly, of values and of masks, and values that changed."""

    value_cells: int = 0
    wrong_value_cells: int = 0
    mask_cells: int = 0
    wrong_mask_cells: int = 0
    changed_values: int = 0

    def __add__(self, other: ReadCounts) -> ReadCounts:
        return ReadCounts(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


class StoredBase:
    """The base's weights as they are stored, in a model with a delta applied.

    Args:
        model: a model whose weights are plain tensors, with or without a delta applied.
        names: parameters of the base that are stored in faulty memory; the delta may change entries of them.
        settings: how they are stored.

    Raises:
        InputError: a parameter is not in the model, or is trained in full by the delta.
    """

    def __init__(self, model: nn.Module, names: list[str], settings: StorageSettings) -> None:
        parameters = dict(model.named_parameters())
        missing = [name for name in names if name not in parameters]
        if missing:
            raise InputError(f"the model has no parameter {missing[0]!r}, which the placement names")
        self._parameters = {name: parameters[name] for name in names}
        self._settings = settings
        record = applied_to(model)
        tuned = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        if record is not None:
            revert(model)
        self._original = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        if record is not None:
            apply(model, record.delta, force=bool(record.forced))
        self._tuned = {name: values for name, values in tuned.items() if not torch.equal(values, self._original[name])}
        self._codes: dict[str, Tensor] = {}
        self._values: dict[str, Tensor] = {}  # of every code
        self._bits: dict[str, int] = {}
        for name, values in self._original.items():
            number = format_for(settings.number_format, values)
            self._codes[name] = number.encode(values.flatten().float()).to(torch.int32)
            self._values[name] = number.decode(torch.arange(2**number.bits))
            self._bits[name] = number.bits
        self._added = {f"{name}.weight" for name in record.delta.low_rank} if record is not None else set()
        self._entries: dict[str, tuple[Tensor, ...]] = {}  # of weights that have a product as well
        if record is not None:
            layers = linears(model)
            for name in record.delta.overlap:
                index = layers[name].adapter.weight_index
                self._entries[f"{name}.weight"] = index(
                    record.delta.linears[name].rows, record.delta.linears[name].columns
                )

    def clipped_values(self) -> int:
        """Return the number of weights beyond the range of the format, which are stored as its end."""
        return sum(
            int(((values < self._values[name].min()) | (values > self._values[name].max())).sum())
            for name, values in self._original.items()
        )

    @torch.no_grad()
    def read(self, faults: CellFaults, generator: torch.Generator) -> ReadCounts:
        """Write the weights into the model as they are read with faults.

        Args:
            faults: of the cells.
            generator: draws them.
        """
        total = ReadCounts()
        for name, parameter in self._parameters.items():
            original = self._original[name]
            stored = self._values[name][self._codes[name]]
            read, counts = self._read(name, stored, faults, generator)
            total += counts + ReadCounts(changed_values=int((read != stored).sum()))
            read = read.view_as(original)
            if name in self._tuned:
                moved = self._tuned[name]
                beside = moved + (read - stored.view_as(original))
                if name in self._added:  # a product is added to the stored weight
                    read = read + (moved - original)
                    if name in self._entries:
                        read[self._entries[name]] = beside[self._entries[name]]
                else:
                    read = torch.where(moved != original, beside, read)
            parameter.copy_(read)
        return total

    @torch.no_grad()
    def restore(self) -> None:
        """Write the weights that the model had, bit for bit."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self._tuned.get(name, self._original[name]))

    def _read(
        self, name: str, stored: Tensor, faults: CellFaults, generator: torch.Generator
    ) -> tuple[Tensor, ReadCounts]:
        """Return the values [n] of a parameter as they are read, and the counts of cells."""
        codes, every, bits = self._codes[name].long(), self._values[name], self._bits[name]
        cells = -(-bits // faults.bits_per_cell)
        if not self._settings.bit_mask or self._original[name].dim() < 2:
            read, wrong = faults.inject(codes, bits, generator)
            return every[read], ReadCounts(len(codes) * cells, wrong)
        mask = stored != 0
        kept, wrong = faults.inject(codes[mask], bits, generator)
        counts = ReadCounts(len(kept) * cells, wrong, len(mask))
        if not self._settings.protect_mask:
            single = CellFaults(1, {1: faults.rates[1]})
            read_bits, wrong = single.inject(mask.long(), 1, generator)
            mask, counts = read_bits.bool(), counts + ReadCounts(wrong_mask_cells=wrong)
        return read_mask(mask, every[kept]), counts


def measure_faults(
    model: nn.Module,
    stored: StoredBase,
    settings: list[tuple[str, CellFaults]],
    evaluate: Callable[[], Measures],
    *,
    seed: int = 0,
    draws: int = 1,
    on_progress: Callable[[int], object] = lambda _: None,
) -> list[dict[str, Any]]:
    """Measure a task once for each setting and draw of faults, and restore the model.

    Args:
        model: it is in evaluation mode afterwards.
        stored: its stored weights.
        settings: (label, faults) of each row.
        evaluate: measures the model.
        seed: of the faults; the draws of a setting have seeds of their own.
        draws: of each setting that has faults; settings without are measured once.
        on_progress: called with 1 after each measurement.

    Returns:
        For each setting the label, the rate, the counts of the first draw and the measures of every draw.
    """
    rows = []
    model.eval()
    try:
        for label, faults in settings:
            measured, counts = [], []
            for draw in range(draws if faults.mean_rate() else 1):
                counts.append(stored.read(faults, torch.Generator().manual_seed(seed + draw)))
                measured.append(evaluate())
                on_progress(1)
            rows.append(
                {
                    "setting": label,
                    "cell_fault_rate": faults.mean_rate(),
                    **vars(counts[0]),
                    "measures": measured,
                }
            )
    finally:
        stored.restore()
    return rows
