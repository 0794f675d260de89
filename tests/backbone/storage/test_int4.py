"""Int4 codes are the nearest of 16 even steps in each group of inputs, and take five bits a weight."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import taskedge as te
from taskedge.backbone.coverage import coverage
from taskedge.backbone.layers import LinearAdapter
from taskedge.backbone.storage.frozen_layer import freeze_layer, num_weights
from taskedge.backbone.storage.int4 import GROUP, NUM_STEPS, dequantize_int4, quantize_int4
from taskedge.backbone.storage.set_storage import set_weight_storage
from taskedge.errors import InputError

PLAIN = LinearAdapter(transposed=False)


def drawn(out: int, inputs: int, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(out, inputs, generator=torch.Generator().manual_seed(out + inputs))


@pytest.mark.parametrize("inputs", [1, 31, 32, 33, 96, 100])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_codes_are_the_nearest_of_the_even_steps_of_a_group(inputs, size):
    weight = drawn(5, inputs, size)
    packed, scales = quantize_int4(weight, PLAIN)
    groups = -(-inputs // GROUP)
    assert (packed.shape, packed.dtype) == ((5, groups, GROUP // 2), torch.uint8)
    assert (scales.shape, scales.dtype) == ((2, 5, groups), torch.float16)
    decoded = dequantize_int4(packed, scales, inputs, PLAIN, torch.float32)
    for row in range(5):
        for group in range(groups):
            part = slice(group * GROUP, min((group + 1) * GROUP, inputs))
            scale, offset = scales[:, row, group].tolist()
            steps = torch.tensor([offset + scale * code for code in range(NUM_STEPS + 1)])
            nearest = (weight[row, part, None] - steps).abs().amin(1)
            found = (weight[row, part] - decoded[row, part]).abs()
            assert torch.allclose(found, nearest, atol=1e-5 * size)
            spread = float(weight[row, part].max() - weight[row, part].min())
            assert float(found.max()) <= spread / (2 * NUM_STEPS) + 2e-3 * size


def test_extremes_and_equal_weights_keep_their_values():
    weight = torch.tensor([[0.0] * 32, [0.5] * 32, [-1.0, 2.0] * 16])
    decoded = dequantize_int4(*quantize_int4(weight, PLAIN), 32, PLAIN, torch.float32)
    assert torch.equal(decoded[:2], weight[:2])
    torch.testing.assert_close(decoded[2], weight[2], rtol=1e-3, atol=1e-3)


def test_transposed_layers_have_groups_of_inputs_too():
    weight = drawn(6, 70)
    packed, scales = quantize_int4(weight.t(), LinearAdapter(transposed=True))
    plain = quantize_int4(weight, PLAIN)
    assert torch.equal(packed, plain[0])
    assert torch.equal(scales, plain[1])


def test_finer_groups_and_offsets_are_nearer():
    """The reason for asymmetric groups of 32: a scale and an offset are worth their bits."""
    weight = drawn(64, 256)
    errors = []
    for group in (32, 64, 128):
        packed, scales = quantize_int4(weight, PLAIN, group)
        errors.append(float((dequantize_int4(packed, scales, 256, PLAIN, torch.float32) - weight).norm()))
    assert errors == sorted(errors)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e5])
def test_what_has_no_code_is_refused(value):
    layer = nn.Linear(40, 3)
    with torch.no_grad():
        layer.weight[1, 33] = value
    with pytest.raises(InputError, match=r"'x' holds weights that are not finite, for which int4 has no code"):
        freeze_layer("x", layer, "int4")


def test_a_coded_model_counts_the_weights_that_codes_stand_for():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64), nn.Tanh(), nn.Linear(64, 2))
    coded = copy.deepcopy(plain)
    lines: list[str] = []
    set_weight_storage(coded, "int4", lines.append)
    assert num_weights(coded) == sum(parameter.numel() for parameter in plain.parameters())
    assert coverage(coded) == coverage(plain)
    count = 2 * 64 * 96
    assert lines == [f"the weights of 2 linears are stored as int4: {count * 5 / 8 / 1e6:.1f} MB, not 0.0"]
    batch = torch.randn(4, 64)
    supports = [te.select(model, [batch], budget="1%", rule="random") for model in (plain, coded)]
    assert supports[0].model_parameters == supports[1].model_parameters
    assert supports[0].num_entries == supports[1].num_entries
