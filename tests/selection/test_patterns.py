"""N:M patterns: parse, match and find."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskedge.errors import BudgetError
from taskedge.selection.patterns import Pattern, find_pattern, read_pattern
from taskedge.selection.support import LayerSupport


def support(mask):
    return LayerSupport.from_flat(tuple(mask.shape), mask.flatten().nonzero()[:, 0], "x")


def random_mask(rows, width, pattern, generator):
    mask = torch.zeros(rows, width, dtype=torch.bool)
    for row in mask:
        for start in range(0, width, pattern.m):
            size = min(pattern.m, width - start)
            row[start + torch.randperm(size, generator=generator)[: pattern.n]] = True
    return mask


def holds(mask, n, m):
    """Check a pattern group by group."""
    return all(
        int(row[start : start + m].sum()) == min(n, mask.shape[1] - start)
        for row in mask
        for start in range(0, mask.shape[1], m)
    )


def by_brute_force(masks):
    for m in range(2, max(mask.shape[1] for mask in masks) + 1):
        for n in range(1, m):
            if all(holds(mask, n, m) for mask in masks):
                return Pattern(n, m)
    return None


def test_reading():
    assert read_pattern("2:4") == Pattern(2, 4)
    assert read_pattern(" 1 : 384 ") == Pattern(1, 384)
    assert read_pattern("per_neuron") is None
    assert str(Pattern(2, 4)) == "2:4"


@pytest.mark.parametrize("name", ["2:", ":4", "a:b", "2:4:8", "-1:4", "1.5:4", "2:4x", ":"])
def test_texts_that_are_not_patterns(name):
    with pytest.raises(BudgetError, match="is not an N:M pattern: write two whole numbers, such as '2:4'"):
        read_pattern(name)


@pytest.mark.parametrize("name", ["0:4", "4:4", "5:4", "0:0"])
def test_patterns_that_keep_nothing_or_all(name):
    with pytest.raises(BudgetError, match="N must be at least 1 and below M"):
        read_pattern(name)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 13)), min_size=1, max_size=3),
    m=st.integers(2, 8),
    n=st.integers(1, 7),
    flips=st.integers(0, 1),
    seed=st.integers(0, 99),
)
def test_the_pattern_found_is_the_smallest_that_brute_force_finds(sizes, m, n, flips, seed):
    pattern, generator = Pattern(min(n, m - 1), m), torch.Generator().manual_seed(seed)
    masks = [random_mask(rows, width, pattern, generator) for rows, width in sizes]
    assert all(pattern.matches(support(mask)) for mask in masks)
    for rows, width in sizes:
        assert pattern.per_row(width) * rows == int(random_mask(rows, width, pattern, generator).sum())
    for _ in range(flips):
        mask = masks[0].view(-1)
        place = int(torch.randint(len(mask), (1,), generator=generator))
        mask[place] = ~mask[place]
        assert not pattern.matches(support(masks[0]))
    assert find_pattern(map(support, masks)) == by_brute_force(masks)


def test_a_moved_entry_breaks_the_pattern_though_the_counts_stay():
    mask = torch.tensor([[1, 1, 0, 0, 1, 0, 1, 0]], dtype=torch.bool)
    assert Pattern(2, 4).matches(support(mask))
    mask = torch.tensor([[1, 1, 1, 0, 1, 0, 0, 0]], dtype=torch.bool)
    assert not Pattern(2, 4).matches(support(mask))
    assert find_pattern([support(mask)]) == Pattern(4, 8)


def test_of_nothing_there_is_none():
    assert find_pattern([]) is None
    assert find_pattern([support(torch.zeros(2, 6, dtype=torch.bool))]) is None
