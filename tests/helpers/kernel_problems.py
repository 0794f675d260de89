"""Products for kernels to compute, shared by their tests."""

import importlib.util

import torch
from hypothesis import strategies as st

from taskedge.forms.kernels import EntryIndex

HAS_NUMBA = importlib.util.find_spec("numba") is not None

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Relative to the largest sum of magnitudes that an entry adds up: what rounding to the dtype can cost."""


@st.composite
def problems(draw):
    """Draw dY [tokens, out], columns [tokens, m] and an index: uneven and empty rows, several entries a row."""
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


def large(tokens=203, out=517, m=31, extra=400, seed=0):
    """Return a problem with enough rows for several threads: two entries in every row, more in some."""
    generator = torch.Generator().manual_seed(seed)
    even = torch.arange(out)[:, None] * m + torch.tensor([[3, 17]])
    more = torch.randint(0, out * m, (extra,), generator=generator)
    chosen = torch.cat([even.flatten(), more]).unique()
    dy, x = torch.randn(tokens, out, generator=generator), torch.randn(tokens, m, generator=generator)
    return dy, x, EntryIndex(chosen // m, chosen % m, out)


def sparse_enough(out=3, m=100):
    """Return a problem with one entry per neuron and many stored columns."""
    return torch.ones(5, out), torch.ones(5, m), EntryIndex(torch.arange(out), torch.arange(out), out)
