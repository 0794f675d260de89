"""The thin kernel supports every tensor, and never makes more than the columns that are stored."""

import pytest
import torch
from kernel_problems import large, sparse_enough
from sparse_models import Made

from taskedge.forms.kernels import KERNELS, EntryIndex, choose_kernel


def test_any_device_and_dtype():
    dy, x, index = sparse_enough()
    for made in (dy.to(torch.complex64), dy.to("meta"), dy.double()):
        assert KERNELS["thin"].supports(made, x, index)
    assert KERNELS["thin"](dy.to("meta"), x.to("meta"), index.to(torch.device("meta"))).shape == index.rows.shape


def test_the_largest_temporary_is_the_thin_product():
    dy, x, index = large(out=50, extra=20)
    with Made([dy, x, index.rows, index.columns]) as watch:
        KERNELS["thin"](dy, x, index)
    assert max(tensor.numel() for tensor in watch.made) == 50 * 31


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_entries_in_every_stored_column_of_every_row_are_the_product(dtype):
    dy, x, _ = large(out=50, extra=0)
    dy, x = dy.to(dtype), x.to(dtype)
    rows, columns = torch.arange(50).repeat_interleave(31), torch.arange(31).repeat(50)
    index = EntryIndex(rows, columns, 50)
    assert choose_kernel(dy, x, index) is KERNELS["thin"]
    torch.testing.assert_close(KERNELS["thin"](dy, x, index), (dy.t() @ x).flatten())
    fewer = EntryIndex(rows[1:], columns[1:], 50)
    assert torch.equal(KERNELS["thin"](dy, x, fewer), KERNELS["thin"](dy, x, index)[1:])


def test_sums_are_float32_and_float64_for_float64():
    dy, x, index = large(tokens=9)
    assert KERNELS["thin"](dy.bfloat16(), x.bfloat16(), index).dtype == torch.float32
    assert KERNELS["thin"](dy.double(), x.double(), index).dtype == torch.float64
