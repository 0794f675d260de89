"""Every kernel gives the chosen entries of the dense product dYᵀX; the fastest that supports the tensors is chosen."""

import pytest
import torch
from hypothesis import given
from kernel_problems import HAS_NUMBA, TOLERANCE, large, problems, sparse_enough

from taskedge.errors import UnknownName
from taskedge.forms import kernels
from taskedge.forms.kernels import KERNELS, EntryIndex, choose_kernel, entry_gradient, force_kernel

numba = pytest.param("numba", marks=pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed"))
every_kernel = pytest.mark.parametrize("kernel", ["thin", "gather", numba])


@every_kernel
@given(problem=problems())
def test_a_kernel_equals_the_dense_product(kernel, problem):
    dy, x, index = problem
    result = KERNELS[kernel](dy, x, index)
    dense = (dy.double().t() @ x.double())[index.rows, index.columns]
    scale = (dy.double().abs().t() @ x.double().abs())[index.rows, index.columns]
    assert result.dtype == (torch.float64 if dy.dtype == torch.float64 else torch.float32)
    assert result.shape == index.rows.shape
    assert bool(((result.double() - dense).abs() <= TOLERANCE[dy.dtype] * scale + 1e-30).all())


@every_kernel
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_a_second_run_gives_the_same_bits(kernel, dtype):
    dy, x, index = large()
    dy, x = dy.to(dtype), x.to(dtype)
    first, again = KERNELS[kernel](dy, x, index), KERNELS[kernel](dy.clone(), x.clone(), index)
    assert torch.equal(first, again)


@every_kernel
def test_several_threads_agree_with_one(kernel):
    dy, x, index = large()
    one = KERNELS[kernel](dy, x, index)
    torch.set_num_threads(4)
    several = [KERNELS[kernel](dy, x, index) for _ in range(5)]
    assert all(torch.equal(several[0], other) for other in several)
    torch.testing.assert_close(several[0], one, rtol=1e-5, atol=1e-5)


def test_the_fastest_kernel_that_supports_the_tensors_is_chosen():
    dy, x, index = sparse_enough()
    fast = KERNELS["numba"] if HAS_NUMBA else KERNELS["gather"]
    assert choose_kernel(dy, x, index) is fast
    assert choose_kernel(dy.to(torch.complex64), x, index) is KERNELS["thin"]
    assert choose_kernel(dy.to("meta"), x, index) is KERNELS["thin"]
    with force_kernel("thin"):
        assert choose_kernel(dy, x, index) is KERNELS["thin"]
    assert choose_kernel(dy, x, index) is fast


def test_a_forced_kernel_gives_way_to_a_slower_one_only():
    dy, x, index = sparse_enough()
    crowded = EntryIndex(torch.arange(3).repeat_interleave(7), torch.arange(7).repeat(3), 3)
    with force_kernel("gather"):
        assert choose_kernel(dy, x, index) is KERNELS["gather"]
        assert choose_kernel(dy, x, crowded) is KERNELS["thin"]


def test_forcing_an_unknown_kernel_is_refused():
    with pytest.raises(UnknownName, match="did you mean 'thin'"), force_kernel("thinnn"):
        pass
    assert kernels._forced.get() is None


def test_forcing_ends_with_an_exception():
    with pytest.raises(RuntimeError), force_kernel("thin"):
        raise RuntimeError
    assert kernels._forced.get() is None


def test_entry_gradient_runs_the_chosen_kernel():
    dy, x, index = large()
    for name in ("thin", "gather"):
        with force_kernel(name):
            assert torch.equal(entry_gradient(dy, x, index), choose_kernel(dy, x, index)(dy, x, index))


def test_a_pass_for_every_entry_that_all_rows_have_and_one_for_the_rest():
    index = EntryIndex(torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([0, 1, 4, 0, 2, 3]), 3)
    even, rest = index.passes
    assert (even.where.tolist(), even.rows, even.columns.tolist()) == ([0, 3, 4], None, [0, 0, 2])
    assert (rest.where.tolist(), rest.rows.tolist(), rest.columns.tolist()) == ([1, 2, 5], [0, 0, 2], [1, 4, 3])
    assert index.join([torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])], torch.float32).tolist() == [
        1.0,
        4.0,
        5.0,
        2.0,
        3.0,
        6.0,
    ]
    assert index.to(torch.device("cpu")) is index


def test_rows_without_entries_make_one_pass_and_no_entries_none():
    (only,) = EntryIndex(torch.tensor([0, 2]), torch.tensor([0, 0]), 3).passes
    assert only.rows.tolist() == [0, 2]
    assert EntryIndex(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64), 3).passes == []
