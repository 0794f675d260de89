"""Each kind of layer as matrices, against dense autograd in fp64: Y = X Wᵀ, dW = dYᵀ X, and sums over tokens."""

import copy

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from transformers.models.bart.modeling_bart import BartLearnedPositionalEmbedding
from transformers.pytorch_utils import Conv1D

from taskedge.backbone.layer_adapters import as_tokens, kind_of
from taskedge.backbone.linears import as_linear, candidates
from taskedge.errors import InputError

TIGHT = {"rtol": 1e-9, "atol": 1e-12}


def check(module, x, kept=None):
    """Everything that a kind promises, on one input."""
    module = module.double()
    kind = kind_of(module)
    linear = as_linear("", module)
    out, inputs = linear.shape
    output = module(x)
    above = torch.randn(output.shape, dtype=torch.float64)
    output.backward(above)

    columns = torch.randperm(inputs)[: max(inputs // 2, 1)].sort().values
    everything = kind.gather(x, torch.arange(inputs)).double()  # (tokens, in)
    assert torch.equal(kind.gather(x, columns).double(), everything[:, columns])
    assert len(everything) == kind.positions(x).numel()

    gradient = kind.matrix(module.weight.grad)
    torch.testing.assert_close(kind.tokens(above).t() @ everything, gradient, **TIGHT)
    if not isinstance(module, nn.Embedding):  # which does not read its padding as zeros, forward
        bias = 0 if module.bias is None else module.bias.detach()
        torch.testing.assert_close(everything @ linear.weight.t() + bias, kind.tokens(output.detach()), **TIGHT)

    rows, columns = torch.randint(out, (5,)), torch.randint(inputs, (5,))
    place = kind.place(rows, columns)
    assert torch.equal(module.weight.grad[place], gradient[rows, columns])

    kept = torch.ones(len(everything)) if kept is None else kept
    for of in (torch.square, torch.abs, torch.cos):  # the last is not 0 at 0
        direct = (kept[:, None] * of(everything)).sum(0)
        torch.testing.assert_close(kind.sums(x.detach(), kept, of), direct, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(kind.sums(x.detach(), None, torch.square), everything.square().sum(0), rtol=1e-5, atol=0)


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
    kept = torch.randint(2, (x.numel(),)).float() if masked else None
    check(nn.Embedding(8, 5, padding_idx=padding), x, kept)


def test_no_one_hot_of_the_vocabulary_is_made(monkeypatch):
    kind = kind_of(nn.Embedding(1000, 2))
    assert kind.gather(torch.arange(10), torch.tensor([3, 999])).shape == (10, 2)
    monkeypatch.setattr(type(kind), "gather", None)
    assert kind.sums(torch.arange(10), None, torch.square).sum() == 10


def test_more_tokens_than_float32_can_sum():
    x = torch.full((5000, 2), 0.1)
    x[0] = 3000.0  # a large square first, so that fp32 would lose the small ones
    for module, given_ in ((nn.Linear(2, 2), x), (nn.Conv2d(2, 2, 1), x.t().reshape(1, 2, 50, 100))):
        found = kind_of(module).sums(given_, None, torch.square)
        assert float((found - x.double().square().sum(0)).abs().max()) < 5.0  # fp32 all the way misses all 50 of them


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


class Scaled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x * 2)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Conv2d(4, 4, 1, groups=2), "2 groups"),
        (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding_mode='reflect'"),
        (lambda: Scaled(4, 4, 1), "Scaled has a forward pass of its own"),
        (lambda: nn.Embedding(4, 4, max_norm=1.0), "max_norm"),
        (lambda: nn.Embedding(4, 4, scale_grad_by_freq=True), "scale_grad_by_freq"),
        (lambda: nn.Embedding(4, 4, sparse=True), "sparse=True"),
        (lambda: BartLearnedPositionalEmbedding(4, 4), "BartLearnedPositionalEmbedding has a forward pass of its own"),
    ],
)
def test_what_cannot_carry_entries_is_refused_with_the_reason(make, reason):
    model = nn.Sequential(make(), nn.Linear(4, 4))
    with pytest.raises(InputError, match=f"linear '0' cannot carry entries: .*{reason}"):
        candidates(model, ["0"])
