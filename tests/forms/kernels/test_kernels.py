"""Every kernel gives the chosen entries of the dense product dYᵀX, whatever the shapes, rows and dtypes."""

import importlib.util

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskedge.errors import UnknownName
from taskedge.forms import kernels
from taskedge.forms.kernels import KERNELS, EntryIndex, choose, gather, using

numba = pytest.param(
    "numba", marks=pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
)
every_kernel = pytest.mark.parametrize("kernel", ["thin", "gather", numba])
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Of the largest sum of magnitudes that an entry adds up: what rounding to the dtype can cost."""


@st.composite
def problems(draw):
    """(dY [tokens, out], columns [tokens, m], index): uneven and empty rows, several entries a row, any strides."""
    tokens, out, m = draw(st.integers(0, 23)), draw(st.integers(1, 9)), draw(st.integers(1, 7))
    flat = draw(st.lists(st.integers(0, out * m - 1), unique=True).map(sorted))
    if draw(st.booleans()):  # an even part that all rows have
        flat = sorted({*flat, *(row * m + row % m for row in range(out))})
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    dy = torch.randn(tokens, out, generator=generator, dtype=torch.float64).to(dtype)
    x = torch.randn(tokens, m, generator=generator, dtype=torch.float64).to(dtype)
    if draw(st.booleans()):
        dy = dy.t().contiguous().t()
    if draw(st.booleans()):
        x = torch.stack([x, x], dim=-1)[..., 0]
    chosen = torch.tensor(flat, dtype=torch.int64)
    return dy, x, EntryIndex(chosen // m, chosen % m, out)


@every_kernel
@given(problem=problems())
def test_it_equals_the_dense_product(kernel, problem):
    dy, x, index = problem
    found = KERNELS[kernel](dy, x, index)
    dense = (dy.double().t() @ x.double())[index.rows, index.columns]
    scale = (dy.double().abs().t() @ x.double().abs())[index.rows, index.columns]
    assert found.dtype == (torch.float64 if dy.dtype == torch.float64 else torch.float32)
    assert found.shape == index.rows.shape
    assert bool(((found.double() - dense).abs() <= TOLERANCE[dy.dtype] * scale + 1e-30).all())


def large(tokens=203, out=517, m=31, extra=400, seed=0):
    """Enough rows for several threads: two entries in every row, more in some."""
    generator = torch.Generator().manual_seed(seed)
    even = torch.arange(out)[:, None] * m + torch.tensor([[3, 17]])
    more = torch.randint(0, out * m, (extra,), generator=generator)
    chosen = torch.cat([even.flatten(), more]).unique()
    dy, x = torch.randn(tokens, out, generator=generator), torch.randn(tokens, m, generator=generator)
    return dy, x, EntryIndex(chosen // m, chosen % m, out)


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


def test_the_index_knows_its_even_part_and_the_rank_of_each_entry():
    index = EntryIndex(torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([0, 1, 4, 0, 2, 3]), 3)
    assert index.even == 1
    assert index.rank.tolist() == [0, 1, 2, 0, 0, 1]
    assert EntryIndex(torch.tensor([0, 2]), torch.tensor([0, 0]), 3).even == 0
    assert EntryIndex(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64), 3).even == 0
    assert index.to(torch.device("cpu")) is index


def sparse_enough(out=3, m=100):
    """One entry a neuron, of many stored columns."""
    return torch.ones(5, out), torch.ones(5, m), EntryIndex(torch.arange(out), torch.arange(out), out)


def test_the_fastest_kernel_that_can_serve_is_chosen():
    dy, x, index = sparse_enough()
    fast = KERNELS["numba"] if importlib.util.find_spec("numba") else KERNELS["gather"]
    assert choose(dy, x, index) is fast
    assert choose(dy.to(torch.complex64), x, index) is KERNELS["thin"]
    assert choose(dy.to("meta"), x, index) is KERNELS["thin"]
    with using("thin"):
        assert choose(dy, x, index) is KERNELS["thin"]
    assert choose(dy, x, index) is fast


def test_one_that_cannot_serve_gives_way_to_a_slower_one_and_never_to_one_that_was_ruled_out():
    dy, x, index = sparse_enough()
    crowded = EntryIndex(torch.arange(3).repeat_interleave(7), torch.arange(7).repeat(3), 3)
    with using("gather"):
        assert choose(dy, x, index) is KERNELS["gather"]
        assert choose(dy, x, crowded) is KERNELS["thin"]


def test_gathering_serves_where_a_thin_product_would_do_fifty_times_as_much():
    most = gather.CROSSOVER
    row = EntryIndex(torch.zeros(2, dtype=torch.int64), torch.arange(2), 1)
    assert KERNELS["gather"].serves(torch.ones(4, 1), torch.ones(4, 2 * most), row)
    assert not KERNELS["gather"].serves(torch.ones(4, 1), torch.ones(4, 2 * most - 1), row)


@pytest.mark.parametrize("tokens", [1, 255, 256, 257, 700])
def test_tokens_are_gathered_in_parts_that_leave_none_out(tokens):
    generator = torch.Generator().manual_seed(tokens)
    dy, x = (torch.randn(tokens, size, generator=generator, dtype=torch.float64) for size in (4, 300))
    index = EntryIndex(torch.tensor([0, 1, 1, 2, 3]), torch.tensor([299, 0, 5, 5, 17]), 4)
    dense = (dy.t() @ x)[index.rows, index.columns]
    torch.testing.assert_close(KERNELS["gather"](dy, x, index), dense, rtol=1e-12, atol=1e-12)


def test_without_numba_the_portable_kernel_serves(monkeypatch):
    monkeypatch.setattr("taskedge.forms.kernels.numba._is_installed", lambda: False)
    with using("numba"):
        assert choose(*sparse_enough()) is KERNELS["gather"]


def test_forcing_an_unknown_kernel_is_refused():
    with pytest.raises(UnknownName, match="did you mean 'thin'"), using("thinn"):
        pass
    assert kernels._forced.get() is None


def test_forcing_ends_with_an_exception():
    with pytest.raises(RuntimeError), using("thin"):
        raise RuntimeError
    assert kernels._forced.get() is None
