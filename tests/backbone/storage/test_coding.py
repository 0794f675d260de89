"""The weight that a coding stands for is the one that a frozen layer computes with."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from taskedge.backbone.layers import as_linear
from taskedge.backbone.storage.coding import CODINGS, decode, encode, rounded_weight
from taskedge.backbone.storage.frozen_layer import freeze_layer

codings = pytest.mark.parametrize("coding", CODINGS)


@codings
@pytest.mark.parametrize("make", [lambda: nn.Linear(70, 7), lambda: Conv1D(7, 70)], ids=["linear", "conv1d"])
def test_the_rounded_weight_is_the_one_that_a_frozen_layer_computes_with(coding, make):
    plain = make().requires_grad_(False)
    nn.init.normal_(plain.weight)
    before = plain.weight.clone()
    frozen = as_linear("x", freeze_layer("x", copy.deepcopy(plain), coding))
    assert torch.equal(rounded_weight(as_linear("x", plain), coding), frozen.weight)
    assert torch.equal(plain.weight, before)
    assert not torch.equal(frozen.stored, before)
    assert (frozen.shape, frozen.storage_dtype) == ((7, 70), coding)
    assert frozen.stored.shape == before.shape


@codings
def test_decoding_gives_the_layout_and_dtype_that_are_asked_for(coding):
    layer = as_linear("x", Conv1D(6, 40))
    codes, scale = encode(layer.stored, layer.adapter, coding)
    decoded = decode(codes, scale, coding, (6, 40), layer.adapter, torch.bfloat16)
    assert (decoded.shape, decoded.dtype) == (layer.stored.shape, torch.bfloat16)
    assert decoded.is_contiguous()
