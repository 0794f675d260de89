"""Int8 codes are the nearest of even steps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskedge.backbone.layers import LinearAdapter
from taskedge.backbone.storage.int8 import LEVELS, dequantize, quantize


@pytest.mark.slow
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.booleans(),
    st.sampled_from([1e-38, 1e-3, 1.0, 1e30]),
    st.integers(0, 2**16),
)
def test_codes_are_the_nearest_of_the_even_steps(out, inputs, transposed, size, seed):
    adapter = LinearAdapter(transposed)
    weight = torch.randn(out, inputs, generator=torch.Generator().manual_seed(seed)) * size
    weight[0] = 0  # a neuron without weights
    codes, scale = quantize(adapter.matrix(weight), adapter)
    assert codes.dtype == torch.int8
    codes, decoded = adapter.matrix(codes), adapter.matrix(dequantize(codes, scale, torch.float32))
    assert not decoded[0].any()
    assert decoded.isfinite().all()
    if size < 1e-30:  # smaller steps than fp32 has
        return
    exact = weight.double()
    for row in range(1, out):
        step = exact[row].abs().max() / LEVELS
        nearest = (exact[row] / step).round()
        distance = (codes[row] - nearest).abs()  # fp32 may take the other one of two that are equally near
        assert distance.max() <= 1
        assert ((distance == 0) | ((exact[row] / step - nearest).abs() > 0.4999)).all()
        assert codes[row].abs().max() == LEVELS
        assert ((decoded[row] - exact[row]).abs() <= 0.5001 * step).all()
