"""Faults of memory cells: a code is cut into cells of 1 to 4 bits, and a read may give a neighboring level.

A fault rate is the same for all cells and levels. With published levels each is a Gaussian, and a read errs with the
mass of it that lies beyond the threshold to the next level. In the form with a bit mask, mask and values have faults
of their own; the mask is always in cells of one bit, since a wrong bit of it shifts all values after it.

Source: NVMExplorer (arXiv 2109.01188). It injects the expected number of faults; here each cell draws its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from taskedge.errors import InputError
from taskedge.placement.memory_cells import CellLevels

CHUNK_CODES = 1 << 18
"""Codes that draw their faults together: their arrays stay in the cache."""

MAX_SPARSE_RATE = 0.1
"""Rate up to which the number of faults is drawn first, and then their places."""

FaultRates = list[tuple[float, float]]
"""Probability that a cell that stores level k is read one level lower, and one level higher."""


@dataclass(frozen=True)
class CellFaults:
    """Fault rates of cells, by bits in a cell.

    Attributes:
        bits_per_cell: bits in a cell of values; the last cell of a value has fewer where they do not divide it.
        rates: by bits in a cell, from 1 to ``bits_per_cell``.
    """

    bits_per_cell: int
    rates: dict[int, FaultRates]

    @classmethod
    def uniform(cls, rate: float, bits_per_cell: int = 1) -> CellFaults:
        """Return faults with one rate for all cells; an inner level errs down and up with half of it.

        Raises:
            InputError: the rate is no probability.
        """
        if not 0 <= rate <= 1:
            raise InputError(f"a fault rate is a probability from 0 to 1, not {rate:g}")
        table: dict[int, FaultRates] = {}
        for bits in range(1, bits_per_cell + 1):
            inner = [(rate / 2, rate / 2)] * (2**bits - 2)
            table[bits] = [(0.0, rate), *inner, (rate, 0.0)]
        return cls(bits_per_cell, table)

    @classmethod
    def of_levels(cls, levels: dict[int, CellLevels], bits_per_cell: int) -> CellFaults:
        """Return faults from published levels of cells with 1 to ``bits_per_cell`` bits."""
        return cls(bits_per_cell, {bits: rates_of_levels(levels[bits]) for bits in range(1, bits_per_cell + 1)})

    def inject(self, codes: Tensor, bits: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """Return codes as they are read, and the number of cells that are read wrongly.

        Args:
            codes: int64 [n], each of ``bits`` bits.
            bits: of a code. Cells are cut from its highest bits down.
            generator: draws the faults.
        """
        parts = [self._inject(part, bits, generator) for part in torch.split(codes, CHUNK_CODES)]
        return torch.cat([read for read, _ in parts]), sum(wrong for _, wrong in parts)

    def _inject(self, codes: Tensor, bits: int, generator: torch.Generator) -> tuple[Tensor, int]:
        read, wrong, left = torch.zeros_like(codes), 0, bits
        while left:
            width = min(self.bits_per_cell, left)
            left -= width
            level = (codes >> left) & (2**width - 1)
            rates = torch.tensor(self.rates[width], dtype=torch.float64)  # [levels, 2]
            largest = float(rates.sum(1).max())
            if largest > 0 and len(codes):
                # only cells that err at the largest rate draw whether they err at the rate of their level
                place = _draw_places(len(codes), largest, generator)
                down, up = rates[level[place]].unbind(1)
                draw = largest * torch.rand(len(place), generator=generator, dtype=torch.float64)
                step = ((draw >= down) & (draw < down + up)).long() - (draw < down).long()
                wrong += int(step.count_nonzero())
                level[place] += step
            read |= level << left
        return read, wrong

    def mean_rate(self) -> float:
        """Return the share of wrong reads of cells of ``bits_per_cell`` bits, over levels that are equally frequent."""
        rates = self.rates[self.bits_per_cell]
        return sum(down + up for down, up in rates) / len(rates)


def _draw_places(count: int, rate: float, generator: torch.Generator) -> Tensor:
    """Return the indices of ``count`` cells that each are drawn with probability ``rate``."""
    if rate > MAX_SPARSE_RATE:
        return (torch.rand(count, generator=generator, dtype=torch.float64) < rate).nonzero().flatten()
    size = torch.tensor([float(count)], dtype=torch.float64)
    number = int(torch.binomial(size, torch.tensor([rate], dtype=torch.float64), generator=generator))
    places = torch.zeros(0, dtype=torch.long)
    while len(places) < number:  # never more than are missing, so every set of this size is equally likely
        more = torch.randint(0, count, (number - len(places),), generator=generator)
        places = torch.unique(torch.cat([places, more]))
    return places


def rates_of_levels(levels: CellLevels) -> FaultRates:
    """Return the rates of published levels: the mass beyond the threshold to each neighbor.

    The threshold between two levels is where their densities are equal.
    """
    thresholds = [
        _threshold(levels.means[k], levels.sigmas[k], levels.means[k + 1], levels.sigmas[k + 1])
        for k in range(len(levels.means) - 1)
    ]
    rates = []
    for k, (mean, sigma) in enumerate(zip(levels.means, levels.sigmas, strict=True)):
        down = _tail((mean - thresholds[k - 1]) / sigma) if k else 0.0
        up = _tail((thresholds[k] - mean) / sigma) if k < len(thresholds) else 0.0
        rates.append((down, up))
    return rates


def _tail(distance: float) -> float:
    """Return the mass of a standard Gaussian beyond ``distance``."""
    return 0.5 * math.erfc(distance / math.sqrt(2))


def _threshold(low: float, low_sigma: float, high: float, high_sigma: float) -> float:
    """Return the value between two means where the densities of two Gaussians are equal."""
    if math.isclose(low_sigma, high_sigma, rel_tol=1e-12):
        return (low + high) / 2
    a = 1 / low_sigma**2 - 1 / high_sigma**2
    b = 2 * (high / high_sigma**2 - low / low_sigma**2)
    c = low**2 / low_sigma**2 - high**2 / high_sigma**2 - 2 * math.log(high_sigma / low_sigma)
    root = math.sqrt(b * b - 4 * a * c)
    for value in ((-b + root) / (2 * a), (-b - root) / (2 * a)):
        if low < value < high:
            return value
    return (low + high) / 2  # one level lies within the other


def read_mask(mask: Tensor, values: Tensor) -> Tensor:
    """Return the tensor [n] of a mask bool [n] and the nonzero values in their order.

    A mask that was read wrongly may have more or fewer bits set than there are values: bits beyond the last value read
    0, and values without a bit are dropped.
    """
    full = torch.zeros(len(mask), dtype=values.dtype)
    places = mask.nonzero().flatten()[: len(values)]
    full[places] = values[: len(places)]
    return full
