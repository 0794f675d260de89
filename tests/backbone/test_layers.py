"""Each class of layer as matrices, against dense autograd in fp64: Y = X Wᵀ, dW = dYᵀ X, and sums over tokens."""

import copy

import pytest
import tiny
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from taskedge.backbone.layers import (
    adapter_of,
    as_linear,
    as_tokens,
    first_input,
    linears,
    overridden_forward,
    stored_weight,
    tensor_version,
)
from taskedge.backbone.storage.frozen_layer import freeze_layer

TIGHT = {"rtol": 1e-9, "atol": 1e-12}


def check(module, x, mask=None):
    """Check everything that an adapter promises, on one input."""
    module = module.double()
    adapter = adapter_of(module)
    linear = as_linear("", module)
    out, inputs = linear.shape
    output = module(x)
    grad_output = torch.randn(output.shape, dtype=torch.float64)
    output.backward(grad_output)

    columns = torch.randperm(inputs)[: max(inputs // 2, 1)].sort().values
    everything = adapter.gather(x, torch.arange(inputs)).double()  # [tokens, in]
    assert torch.equal(adapter.gather(x, columns).double(), everything[:, columns])
    assert len(everything) == adapter.token_shape(x).numel()

    gradient = adapter.matrix(module.weight.grad)
    torch.testing.assert_close(adapter.output_tokens(grad_output).t() @ everything, gradient, **TIGHT)
    if not isinstance(module, nn.Embedding):  # whose forward pass does not read its padding as zeros
        bias = 0 if module.bias is None else module.bias.detach()
        expected = adapter.output_tokens(output.detach())
        torch.testing.assert_close(everything @ linear.weight.t() + bias, expected, **TIGHT)

    rows, columns = torch.randint(out, (5,)), torch.randint(inputs, (5,))
    assert torch.equal(module.weight.grad[adapter.weight_index(rows, columns)], gradient[rows, columns])

    mask = torch.ones(len(everything)) if mask is None else mask
    for function in (torch.square, torch.abs, torch.cos):  # the last is not 0 at 0
        direct = (mask[:, None] * function(everything)).sum(0)
        torch.testing.assert_close(adapter.reduce_inputs(x.detach(), mask, function), direct, rtol=1e-5, atol=1e-6)
    squares = adapter.reduce_inputs(x.detach(), None, torch.square)
    torch.testing.assert_close(squares, everything.square().sum(0), rtol=1e-5, atol=0)


def shapes(width):
    return st.sampled_from([(width,), (5, width), (2, 3, width), (2, 1, 3, width), (0, width)])


@given(st.booleans(), st.booleans(), shapes(6))
def test_linear_and_conv1d(transposed, bias, shape):
    module = Conv1D(4, 6) if transposed else nn.Linear(6, 4, bias=bias)
    check(module, torch.randn(shape, dtype=torch.float64))


sides = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    kernel=sides,
    stride=sides,
    dilation=sides,
    padding=st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.sampled_from(["same", "valid"])),
    image=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    batch=st.sampled_from([None, 0, 1, 3]),
    channels=st.integers(1, 3),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    bias=st.booleans(),
)
def test_conv2d(kernel, stride, dilation, padding, image, batch, channels, layout, bias):
    if padding == "same":
        stride = (1, 1)
    module = nn.Conv2d(channels, 4, kernel, stride, padding, dilation, bias=bias).to(memory_format=layout)
    x = torch.randn((batch or 1, channels, *image), dtype=torch.float64).contiguous(memory_format=layout)
    x = x[0] if batch is None else x[:batch]
    try:
        with torch.no_grad():
            copy.deepcopy(module).double()(x)
    except RuntimeError:  # the kernel is larger than the image
        assume(False)
    check(module, x)


@given(
    ids=st.lists(st.lists(st.integers(0, 7), min_size=3, max_size=3), min_size=1, max_size=4),
    padding=st.sampled_from([None, 0, 3, -1]),
    dtype=st.sampled_from([torch.int64, torch.int32]),
    masked=st.booleans(),
)
def test_embedding(ids, padding, dtype, masked):
    x = torch.tensor(ids, dtype=dtype)
    mask = torch.randint(2, (x.numel(),)).float() if masked else None
    check(nn.Embedding(8, 5, padding_idx=padding), x, mask)


def test_no_one_hot_of_the_vocabulary_is_made(monkeypatch):
    adapter = adapter_of(nn.Embedding(1000, 2))
    assert adapter.gather(torch.arange(10), torch.tensor([3, 999])).shape == (10, 2)
    monkeypatch.setattr(type(adapter), "gather", None)
    assert adapter.reduce_inputs(torch.arange(10), None, torch.square).sum() == 10


def test_more_tokens_than_float32_can_sum():
    x = torch.full((5000, 2), 0.1)
    x[0] = 3000.0  # a large square first, so that fp32 would lose the small ones
    for module, given_ in ((nn.Linear(2, 2), x), (nn.Conv2d(2, 2, 1), x.t().reshape(1, 2, 50, 100))):
        result = adapter_of(module).reduce_inputs(given_, None, torch.square)
        assert float((result - x.double().square().sum(0)).abs().max()) < 5.0  # fp32 all the way misses all 50 of them


@pytest.mark.parametrize(
    ("shape", "tokens"), [((3,), 1), ((2, 3), 2), ((2, 4, 3), 8), ((0, 3), 0), ((2, 0, 3), 0), ((2, 0), 2)]
)
def test_anything_that_a_linear_reads_is_a_row_for_each_token(shape, tokens):
    assert as_tokens(torch.zeros(shape)).shape == (tokens, shape[-1])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(8, 4), lambda: Conv1D(4, 8), lambda: nn.Conv2d(2, 4, 2), lambda: nn.Embedding(8, 4)]
)
def test_entries_are_read_and_written_in_the_model(make, layout):
    module = make().to(memory_format=layout)
    linear = as_linear("x", module)
    assert linear.shape == (4, 8)
    rows, columns = torch.tensor([0, 3, 2]), torch.tensor([7, 0, 5])
    assert torch.equal(linear.read(rows, columns), linear.weight[rows, columns])
    before = linear.weight.clone()
    linear.write(rows, columns, torch.tensor([1.0, 2.0, 3.0]))
    before[rows, columns] = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(as_linear("x", module).weight, before)


def test_a_conv1d_is_seen_as_out_by_in_and_writes_go_through():
    linear = linears(tiny.gpt2())["transformer.h.0.attn.c_attn"]
    assert linear.shape == (48, 16)
    assert linear.module.weight.shape == (16, 48)
    linear.weight[47, 3] = 9.0
    assert linear.module.weight[3, 47] == 9.0
    assert not linear.weight.requires_grad


def test_other_modules_are_no_linears():
    assert as_linear("x", nn.LayerNorm(3)) is None
    assert as_linear("x", nn.Conv1d(3, 3, 1)) is None
    assert as_linear("x", nn.Bilinear(3, 3, 3)) is None


def test_what_a_linear_says_of_its_weight():
    plain = as_linear("x", nn.Linear(8, 4).bfloat16())
    assert (plain.storage_dtype, plain.is_read_only, plain.device) == ("bfloat16", False, torch.device("cpu"))
    plain.overwrite(torch.full((4, 8), 0.1))
    assert torch.equal(plain.module.weight, torch.full((4, 8), 0.1).bfloat16())
    frozen = as_linear("x", freeze_layer("x", Conv1D(4, 8), "int8"))
    assert (frozen.storage_dtype, frozen.is_read_only, frozen.shape) == ("int8", True, (4, 8))
    assert frozen.weight.dtype == torch.float32


def test_entries_of_a_read_only_weight_are_written_beside_it():
    module = freeze_layer("x", nn.Linear(8, 4), "int8")
    codes, linear = module._parameters["weight"].clone(), as_linear("x", module)
    linear.write(torch.tensor([1, 3]), torch.tensor([0, 7]), torch.tensor([5.0, -5.0], dtype=torch.float64))
    assert linear.read(torch.tensor([1, 3]), torch.tensor([0, 7])).tolist() == [5.0, -5.0]
    assert torch.equal(module._parameters["weight"], codes)


def test_a_computed_weight_is_read_through_the_attribute():
    module = torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))
    linear = as_linear("x", module)
    assert (linear.shape, linear.storage_dtype) == ((4, 8), "float32")
    assert torch.equal(stored_weight(module), module.weight)


def test_the_first_input_by_position_and_by_name():
    assert first_input((1, 2), {"x": 3}) == 1
    assert first_input((), {"hidden_states": 3, "mask": 4}) == 3
    assert first_input((None,), {}) is None


def test_the_version_counts_changes_in_place():
    x = torch.zeros(2)
    before = tensor_version(x)
    x.add_(1)
    assert tensor_version(x) == before + 1
    with torch.inference_mode():
        assert tensor_version(torch.zeros(2)) == 0


def test_a_class_with_a_forward_pass_of_its_own_is_named():
    class Renamed(nn.Linear):
        pass

    class Doubled(Renamed):
        def forward(self, x):
            return 2 * super().forward(x)

    assert overridden_forward(Renamed(2, 2), nn.Linear) is None
    assert overridden_forward(freeze_layer("x", Renamed(2, 2), "int8"), nn.Linear) is None
    assert overridden_forward(Doubled(2, 2), nn.Linear) == "Doubled has a forward pass of its own"
