"""The compiled kernel agrees with itself on any number of threads, and another takes its place where it is missing."""

import pytest
import torch
from kernel_problems import HAS_NUMBA, large, sparse_enough

from taskedge.forms.kernels import KERNELS, choose_kernel, force_kernel


def test_without_numba_the_portable_kernel_runs(monkeypatch):
    monkeypatch.setattr("taskedge.forms.kernels.numba._is_installed", lambda: False)
    with force_kernel("numba"):
        assert choose_kernel(*sparse_enough()) is KERNELS["gather"]


@pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
def test_threads_divide_rows_so_their_number_changes_no_bit():
    dy, x, index = large()
    one = KERNELS["numba"](dy, x, index)
    torch.set_num_threads(3)
    assert torch.equal(KERNELS["numba"](dy, x, index), one)


@pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
def test_half_precision_is_summed_in_float32():
    dy, x, index = large()
    half = KERNELS["numba"](dy.bfloat16(), x.bfloat16(), index)
    assert torch.equal(half, KERNELS["numba"](dy.bfloat16().float(), x.bfloat16().float(), index))
