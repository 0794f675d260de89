"""Fingerprints depend on the bits of the values, and not on their shape or storage."""

import hashlib
import struct

import pytest
import torch

from taskedge.backbone.fingerprint import DIGEST_BYTES, base_digest, digest


def test_it_is_short_hexadecimal_and_the_same_everywhere():
    little_endian = struct.pack("<2f", 1.0, -2.5)
    assert digest(torch.tensor([1.0, -2.5])) == hashlib.blake2b(little_endian, digest_size=12).hexdigest()
    assert len(digest(torch.zeros(3))) == 2 * DIGEST_BYTES


def test_values_order_and_the_sign_of_zero_count():
    seen = {digest(torch.tensor(values)) for values in ([1.0, 2.0], [2.0, 1.0], [1.0, 2.0000002], [0.0], [-0.0], [])}
    assert len(seen) == 6


def test_shape_and_strides_do_not_count():
    values = torch.arange(12.0).reshape(3, 4)
    assert digest(values) == digest(values.flatten()) == digest(values.t().contiguous().t())
    assert digest(values.t()) != digest(values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_dtype_has_the_digest_of_its_exact_fp32_values(dtype):
    values = torch.randn(50).to(dtype)
    assert digest(values) == digest(values.float())


def test_a_parameter_can_be_given():
    assert digest(torch.nn.Parameter(torch.ones(2))) == digest(torch.ones(2))


def test_the_digest_of_a_base_ignores_the_values_of_the_head():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    head = ["1.weight", "1.bias"]
    before = base_digest(model, head)
    with torch.no_grad():
        model[1].weight.zero_()
    assert base_digest(model, head) == before
    assert base_digest(model, []) != before
    with torch.no_grad():
        model[0].bias[0] += 1e-3
    assert base_digest(model, head) != before


def test_the_digest_of_a_base_depends_on_names_shapes_and_dtypes():
    def digest_of(**layers):
        model = torch.nn.ModuleDict(layers)
        for parameter in model.parameters():
            torch.nn.init.zeros_(parameter)
        return base_digest(model, ["head.weight", "head.bias"])

    def linear(*shape, dtype=torch.float32):
        return torch.nn.Linear(*shape, dtype=dtype)

    digests = [
        digest_of(a=linear(2, 4), head=linear(4, 2)),
        digest_of(b=linear(2, 4), head=linear(4, 2)),
        digest_of(a=linear(4, 2), head=linear(4, 2)),
        digest_of(a=linear(2, 4, dtype=torch.float16), head=linear(4, 2)),
        digest_of(a=linear(2, 4), head=linear(4, 3)),
    ]
    assert len(set(digests)) == len(digests)
