"""Faults of cells against their distribution, and what a wrong mask does."""

from __future__ import annotations

import math

import pytest
import torch

from taskedge.errors import InputError
from taskedge.placement.cell_faults import CellFaults, rates_of_levels, read_mask
from taskedge.placement.memory_cells import CellLevels, load_cell

N = 200_000


def chi_square_p(observed: list[float], expected: list[float], freedom: int) -> float:
    """Return the probability of a larger chi-square, by the Wilson-Hilferty approximation."""
    chi = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    z = ((chi / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return 0.5 * math.erfc(z / math.sqrt(2))


def codes(bits: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 2**bits, (N,), generator=torch.Generator().manual_seed(seed))


def test_flips_follow_the_binomial_distribution_in_every_bit():
    rate, given = 0.01, codes(8)
    read, wrong = CellFaults.uniform(rate).inject(given, 8, torch.Generator().manual_seed(2))
    flipped = [float(((given ^ read) >> bit & 1).sum()) for bit in range(8)]
    assert wrong == sum(flipped)
    p = chi_square_p(
        [value for count in flipped for value in (count, N - count)], [N * rate, N * (1 - rate)] * 8, freedom=8
    )
    assert 0.001 < p < 0.999


def test_faults_in_a_code_are_independent():
    """The number of flips in a code of 8 bits is binomial, so flips of different bits do not come together."""
    rate, given = 0.05, codes(8)
    read, _ = CellFaults.uniform(rate).inject(given, 8, torch.Generator().manual_seed(3))
    flips = sum(((given ^ read) >> bit & 1) for bit in range(8))
    observed = [float((flips == count).sum()) for count in range(3)] + [float((flips > 2).sum())]
    pmf = [math.comb(8, k) * rate**k * (1 - rate) ** (8 - k) for k in range(3)]
    assert 0.001 < chi_square_p(observed, [N * p for p in (*pmf, 1 - sum(pmf))], freedom=3) < 0.999


@pytest.mark.parametrize("bits_per_cell", [1, 2, 3])
def test_each_level_errs_to_its_neighbors_at_the_rate_of_its_gaussian(bits_per_cell):
    means = [float(k) for k in range(2**bits_per_cell)]
    sigmas = [0.2 + 0.02 * k for k in range(2**bits_per_cell)]
    levels = {b: CellLevels(bits=b, means=means[: 2**b], sigmas=sigmas[: 2**b]) for b in range(1, bits_per_cell + 1)}
    faults = CellFaults.of_levels(levels, bits_per_cell)
    given = codes(bits_per_cell)
    read, _ = faults.inject(given, bits_per_cell, torch.Generator().manual_seed(4))
    observed, expected = [], []
    for level, (down, up) in enumerate(faults.rates[bits_per_cell]):
        count = int((given == level).sum())
        for step, rate in ((-1, down), (0, 1 - down - up), (1, up)):
            seen = int(((given == level) & (read == level + step)).sum())
            if rate == 0:
                assert seen == 0
            else:
                observed.append(float(seen))
                expected.append(count * rate)
    assert sum(observed) == N  # no level is read as one that is no neighbor
    assert 0.001 < chi_square_p(observed, expected, freedom=len(observed) - 2**bits_per_cell) < 0.999


def test_rates_are_the_mass_beyond_the_threshold():
    sigma = 0.25
    rates = rates_of_levels(CellLevels(bits=1, means=[0.0, 1.0], sigmas=[sigma, sigma]))
    tail = 0.5 * math.erfc(0.5 / sigma / math.sqrt(2))
    assert rates == [(0.0, pytest.approx(tail)), (pytest.approx(tail), 0.0)]
    wide = rates_of_levels(CellLevels(bits=1, means=[0.0, 1.0], sigmas=[0.1, 0.3]))
    threshold = next(
        x / 1e5 for x in range(1, 100_000)
        if math.exp(-((x / 1e5) ** 2) / 0.02) / 0.1 <= math.exp(-((1 - x / 1e5) ** 2) / 0.18) / 0.3
    )  # fmt: skip
    assert wide[0][1] == pytest.approx(0.5 * math.erfc(threshold / 0.1 / math.sqrt(2)), rel=1e-3)
    assert wide[1][0] == pytest.approx(0.5 * math.erfc((1 - threshold) / 0.3 / math.sqrt(2)), rel=1e-3)


def test_published_cells_with_more_bits_err_more():
    cell = load_cell("reram")
    levels = {bits: cell.levels_of(bits) for bits in (1, 2, 3)}
    rates = [CellFaults.of_levels(levels, bits).mean_rate() for bits in (1, 2, 3)]
    assert rates[0] < 1e-300
    assert 1e-9 < rates[1] < rates[2] < 0.1


def test_rate_0_reads_every_bit_and_rate_1_none():
    given = codes(8)
    for bits_per_cell in (1, 2, 3, 4):
        read, wrong = CellFaults.uniform(0.0, bits_per_cell).inject(given, 8, torch.Generator().manual_seed(0))
        assert torch.equal(read, given)
        assert wrong == 0
    read, wrong = CellFaults.uniform(1.0).inject(given, 8, torch.Generator().manual_seed(0))
    assert torch.equal(read, 255 - given)
    assert wrong == 8 * N


@pytest.mark.parametrize("bits", [5, 8])
def test_cells_that_do_not_divide_a_code(bits):
    """A code of 8 bits in cells of 3 has cells of 3, 3 and 2 bits; each moves by one level at most."""
    given = codes(bits)
    read, wrong = CellFaults.uniform(0.3, 3).inject(given, bits, torch.Generator().manual_seed(5))
    left, moved = bits, 0
    while left:
        width = min(3, left)
        left -= width
        step = (read >> left & (2**width - 1)) - (given >> left & (2**width - 1))
        assert int(step.abs().max()) == 1
        moved += int(step.count_nonzero())
    assert moved == wrong
    assert abs(wrong / (N * -(-bits // 3)) - 0.3) < 0.005


def test_a_wrong_mask_bit_shifts_the_values_after_it():
    values = torch.tensor([1.0, 2.0, 3.0])
    mask = torch.tensor([True, False, True, False, True])
    assert read_mask(mask, values).tolist() == [1, 0, 2, 0, 3]
    assert read_mask(torch.tensor([True, True, True, False, True]), values).tolist() == [1, 2, 3, 0, 0]
    assert read_mask(torch.tensor([False, False, True, False, True]), values).tolist() == [0, 0, 1, 0, 2]


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_a_rate_is_a_probability(rate):
    with pytest.raises(InputError, match="a probability from 0 to 1"):
        CellFaults.uniform(rate)
