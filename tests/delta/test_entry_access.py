"""Entries by flat position, against the layer's own index."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from taskedge.backbone.layers import Linear, as_linear
from taskedge.delta.delta import LinearDelta
from taskedge.delta.entry_access import read_entries, write_values


def layer_of(kind: str) -> Linear:
    torch.manual_seed(0)
    module: nn.Module = nn.Linear(5, 4)
    if kind == "strided":
        module.weight = nn.Parameter(torch.randn(5, 4).t())
    elif kind == "transposed":
        module = Conv1D(4, 5)
    elif kind == "convolution":
        module = nn.Conv2d(5, 4, 1)
    elif kind == "bf16":
        module = module.bfloat16()
    elif kind == "parametrized":
        nn.utils.parametrizations.weight_norm(module)
    layer = as_linear("x", module)
    assert layer is not None
    return layer


def entries() -> LinearDelta:
    rows, columns = torch.tensor([0, 1, 1, 3]), torch.tensor([4, 0, 2, 1])
    return LinearDelta((4, 5), rows, columns, torch.tensor([1.0, 1.001, -3.0, 0.3]), "float32", "")


@pytest.mark.parametrize("kind", ["plain", "strided", "transposed", "convolution", "bf16", "parametrized"])
def test_entries_are_read_where_the_weight_holds_them(kind: str) -> None:
    layer, linear = layer_of(kind), entries()
    expected = layer.weight[linear.rows, linear.columns]
    found = read_entries(layer, linear)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["plain", "strided", "transposed", "convolution", "bf16"])
def test_entries_are_written_where_the_weight_holds_them_and_nowhere_else(kind: str) -> None:
    layer, linear = layer_of(kind), entries()
    expected = layer.weight.clone()
    expected[linear.rows, linear.columns] = linear.values.to(expected.dtype)
    version = layer.stored._version
    write_values(layer, linear, linear.values)
    assert torch.equal(layer.weight, expected)
    assert layer.stored._version > version, "autograd must notice the write"


def test_a_copy_is_read() -> None:
    layer, linear = layer_of("plain"), entries()
    before = read_entries(layer, linear)
    kept = before.clone()
    write_values(layer, linear, linear.values)
    assert torch.equal(before, kept)
    write_values(layer, linear, before)
    assert torch.equal(read_entries(layer, linear), kept)
