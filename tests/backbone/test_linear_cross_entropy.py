"""The loss of a head in chunks equals that of all its logits, and takes the memory of one chunk."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from taskedge.backbone import linear_cross_entropy as module
from taskedge.backbone.linear_cross_entropy import (
    LogitMap,
    chunk_limit,
    chunk_tokens,
    head_bytes,
    linear_cross_entropy,
    module_cross_entropy,
)
from taskedge.profiling.tensor_memory import LiveBytes


def problem(tokens, seed, *, bias, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, 6, generator=generator, dtype=dtype)
    weight = torch.randn(11, 6, generator=generator, dtype=dtype)
    targets = torch.randint(0, 11, (tokens,), generator=generator)
    return hidden, weight, torch.randn(11, generator=generator, dtype=dtype) if bias else None, targets


def gradient(loss, hidden, *arguments):
    hidden = hidden.clone().requires_grad_()
    total = loss(hidden, *arguments)
    (3 * total).backward()
    return total.detach(), hidden.grad


MAPS = st.builds(LogitMap, st.sampled_from([1.0, 0.25, 2.0]), st.sampled_from([None, 3.0]))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    tokens=st.integers(0, 9), seed=st.integers(0, 99), bias=st.booleans(), logit_map=MAPS,
    chunk=st.sampled_from([1, 4 * 11 * 2, 2**20]), fused=st.booleans(),
)  # fmt: skip
def test_any_chunk_gives_the_loss_and_gradient_of_all_logits(tokens, seed, bias, logit_map, chunk, fused):
    hidden, weight, offset, targets = problem(tokens, seed, bias=bias, dtype=torch.float32 if fused else torch.float64)

    def dense(x):
        logits = logit_map(F.linear(x, weight.double(), None if offset is None else offset.double()))
        return F.cross_entropy(logits, targets, reduction="sum")

    expected = gradient(dense, hidden.double())
    tolerance = 1e-5 if fused else 1e-12
    with chunk_limit(chunk):
        plain = gradient(linear_cross_entropy, hidden, weight, offset, targets, logit_map)
        head = gradient(
            lambda x: module_cross_entropy(lambda part: F.linear(part, weight, offset), 11, x, targets, logit_map),
            hidden,
        )
    for found in (plain, head):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


def test_older_versions_of_torch_use_the_chunks_of_this_project(monkeypatch):
    hidden, weight, offset, targets = problem(5, 0, bias=True, dtype=torch.float32)
    expected = gradient(linear_cross_entropy, hidden, weight, offset, targets)
    monkeypatch.setattr(module, "has_fused", lambda: False)
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    for one, other in zip(gradient(linear_cross_entropy, hidden, weight, offset, targets), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("cap", [None, 3.0])
def test_memory_is_that_of_one_chunk(cap, monkeypatch):
    monkeypatch.setattr(module, "has_fused", lambda: False)
    hidden, targets = torch.randn(64, 8, requires_grad=True), torch.zeros(64, dtype=torch.long)
    weight = torch.randn(1000, 8)
    with chunk_limit(4 * 1000 * 4), LiveBytes() as live:
        linear_cross_entropy(hidden, weight, None, targets, LogitMap(1.0, cap)).backward()
        assert chunk_tokens(1000) == 4
        expected = head_bytes(1000, 64, buffers=1 if cap is None else 2)
        assert expected == (1 if cap is None else 2) * 4 * 4 * 1000
        assert live.peak <= expected + 3 * 4 * 64 * 8 + 1000  # of 256,000 bytes of logits


@pytest.mark.parametrize("tokens", [64, 256])
@pytest.mark.parametrize("trains", [True, False])
def test_the_frozen_fp32_head_keeps_the_logits_of_one_chunk_once(tokens, trains):
    """Whichever function computes it: torch's keeps logits and their gradient if all tokens make one chunk."""
    vocabulary = 2**14
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, 8, generator=generator, requires_grad=trains)
    weight = torch.randn(vocabulary, 8, generator=generator)
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    with chunk_limit(64 * 4 * vocabulary), LiveBytes() as live, torch.set_grad_enabled(trains):
        linear_cross_entropy(hidden, weight, None, targets)
    assert live.peak < 1.2 * head_bytes(vocabulary, tokens)


def test_half_precision_computes_the_loss_in_float32():
    hidden, weight, _, targets = problem(5, 1, bias=False, dtype=torch.float32)
    half = hidden.bfloat16(), weight.bfloat16()
    total = linear_cross_entropy(*half, None, targets)
    assert total.dtype == torch.float32
    expected = F.cross_entropy(F.linear(*half).float(), targets, reduction="sum")
    torch.testing.assert_close(total, expected)
