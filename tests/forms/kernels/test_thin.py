"""The thin kernel supports every tensor, and never makes more than the columns that are stored."""

import torch
from kernel_problems import large, sparse_enough
from sparse_models import Made

from taskedge.forms.kernels import KERNELS


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


def test_sums_are_float32_and_float64_for_float64():
    dy, x, index = large(tokens=9)
    assert KERNELS["thin"](dy.bfloat16(), x.bfloat16(), index).dtype == torch.float32
    assert KERNELS["thin"](dy.double(), x.double(), index).dtype == torch.float64
