"""The portable kernel gathers in parts, where that costs less than a thin product."""

import pytest
import torch
from kernel_problems import sparse_enough

from taskedge.forms.kernels import KERNELS, EntryIndex, gather


def test_it_runs_where_a_thin_product_would_compute_fifty_times_as_much():
    ratio = gather.PRODUCT_COST
    row = EntryIndex(torch.zeros(2, dtype=torch.int64), torch.arange(2), 1)
    assert KERNELS["gather"].supports(torch.ones(4, 1), torch.ones(4, 2 * ratio), row)
    assert not KERNELS["gather"].supports(torch.ones(4, 1), torch.ones(4, 2 * ratio - 1), row)


@pytest.mark.parametrize("tokens", [1, 255, 256, 257, 700])
def test_tokens_are_gathered_in_parts_that_leave_none_out(tokens):
    generator = torch.Generator().manual_seed(tokens)
    dy, x = (torch.randn(tokens, size, generator=generator, dtype=torch.float64) for size in (4, 300))
    index = EntryIndex(torch.tensor([0, 1, 1, 2, 3]), torch.tensor([299, 0, 5, 5, 17]), 4)
    dense = (dy.t() @ x)[index.rows, index.columns]
    torch.testing.assert_close(KERNELS["gather"](dy, x, index), dense, rtol=1e-12, atol=1e-12)


def test_it_runs_on_the_cpu_in_floating_point_only():
    dy, x, index = sparse_enough()
    assert KERNELS["gather"].supports(dy, x, index)
    assert not KERNELS["gather"].supports(dy.to(torch.complex64), x, index)
    assert not KERNELS["gather"].supports(dy.to("meta"), x, index)
