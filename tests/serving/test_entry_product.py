"""The product with entries, compiled and not, against a dense product."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskedge.serving import entry_product
from taskedge.serving.entry_product import add_gathered, add_product
from taskedge.serving.task_table import EntryTable

OUT, IN = 7, 11


def table_of(form, generator):
    """A table of one form, and the same as a matrix."""
    matrix = torch.zeros(OUT, IN)
    if form == "shared":
        columns = torch.randperm(IN, generator=generator)[:3].sort().values
        matrix[:, columns] = torch.randn(OUT, 3, generator=generator)
        return EntryTable((OUT, IN), columns.to(torch.uint16), matrix[:, columns].contiguous(), None, 3), matrix
    counts = {"one": [1] * OUT, "three": [3] * OUT, "any": torch.randint(0, 5, (OUT,), generator=generator).tolist()}
    columns = [torch.randperm(IN, generator=generator)[:n].sort().values for n in counts[form]]
    for row, of_row in enumerate(columns):
        matrix[row, of_row] = torch.randn(len(of_row), generator=generator)
    differences = torch.cat([matrix[row, of_row] for row, of_row in enumerate(columns)])
    ends = torch.tensor([0, *np.cumsum(counts[form])]).int() if form == "any" else None
    per_row = 0 if form == "any" else counts[form][0]
    return EntryTable((OUT, IN), torch.cat(columns).to(torch.uint16), differences, ends, per_row), matrix


@pytest.mark.slow  # it compiles
@given(st.sampled_from(["one", "three", "any", "shared"]), st.integers(0, 2**31), st.booleans())
def test_rows_get_the_dense_product_and_others_nothing(form, seed, compiled):
    generator = torch.Generator().manual_seed(seed)
    table, matrix = table_of(form, generator)
    x, y = torch.randn(5, 4, IN, generator=generator), torch.randn(5, 4, OUT, generator=generator)
    rows = np.array([0, 3])
    expected = y.clone()
    expected[[0, 3]] += x[[0, 3]] @ matrix.t()
    if compiled or form == "shared":
        add_product(y, x, rows, table)
    else:
        add_gathered(y, x, rows, table)
    assert torch.allclose(y, expected, atol=1e-5)
    assert torch.equal(y[[1, 2, 4]], expected[[1, 2, 4]])


@pytest.mark.parametrize("form", ["one", "any", "shared"])
def test_half_precision(form):
    table, matrix = table_of(form, torch.Generator().manual_seed(1))
    x, y = torch.randn(2, 3, IN).bfloat16(), torch.zeros(2, 3, OUT).bfloat16()
    add_product(y, x, np.array([1]), table)
    assert torch.allclose(y[1].float(), x[1].float() @ matrix.t(), rtol=0.02, atol=0.05)
    assert not y[0].any()


def test_long_inputs_are_gathered_in_parts(monkeypatch):
    table, matrix = table_of("three", torch.Generator().manual_seed(2))
    monkeypatch.setattr(entry_product, "MAX_GATHERED", 50)  # two tokens of 21 entries
    x, y = torch.randn(1, 9, IN), torch.zeros(1, 9, OUT)
    add_gathered(y, x, np.array([0]), table)
    assert torch.allclose(y, x @ matrix.t(), atol=1e-5)
