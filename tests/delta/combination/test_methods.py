"""Each method against PEFT's function on densified changes, and against its definition."""

from __future__ import annotations

from unittest import mock

import peft.utils.merge_utils as oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskedge.delta.combination.methods import METHODS, Choice, merged
from taskedge.delta.combination.task_vectors import SparseVector, TaskVector

SIZE = (9, 14)


@st.composite
def supports(draw):
    """Two to four random supports of one tensor, with changes that have different sizes."""
    seed = draw(st.integers(0, 2**32 - 1))
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(draw(st.integers(2, 4))):
        count = draw(st.integers(1, 60))
        flat = torch.randperm(SIZE[0] * SIZE[1], generator=generator)[:count].sort().values
        made.append(SparseVector(SIZE, flat, torch.randn(count, generator=generator, dtype=torch.float64)))
    return made


def dense(vector, kept=None):
    full = torch.zeros(SIZE[0] * SIZE[1], dtype=torch.float64)
    kept = torch.ones(len(vector), dtype=torch.bool) if kept is None else kept
    full[vector.flat[kept]] = vector.differences[kept]
    return full.view(SIZE)


def ours(name, vectors, weights, density, seed=0):
    """Return the masks and the merged change, dense."""
    method = METHODS[name]
    generator = torch.Generator().manual_seed(seed)
    masks = [method.keep(TaskVector({"w": vector}, {}, {}), Choice(density, generator))["w"] for vector in vectors]
    scale = 1 / density if method.rescale else 1.0
    part = merged(vectors, masks, weights, [scale] * len(vectors), method)
    return masks, dense(part)


def theirs(count):
    """Return the share of the whole tensor that makes PEFT keep ``count`` numbers."""
    return (count + 0.5) / (SIZE[0] * SIZE[1])


WEIGHTS = st.lists(st.floats(0.1, 2), min_size=4, max_size=4)


@given(supports(), WEIGHTS)
def test_arithmetic(vectors, weights):
    weights = torch.tensor(weights[: len(vectors)], dtype=torch.float64)
    _, got = ours("arithmetic", vectors, weights, 1.0)
    assert torch.allclose(got, oracle.task_arithmetic([dense(v) for v in vectors], weights), atol=1e-6, rtol=0)


@given(supports(), WEIGHTS, st.floats(0.05, 1))
def test_arithmetic_of_the_largest(vectors, weights, density):
    """PEFT prunes with one density; here each support has its own count."""
    weights = torch.tensor(weights[: len(vectors)], dtype=torch.float64)
    _, got = ours("arithmetic", vectors, weights, density)
    pruned = [oracle.prune(dense(v), theirs(int(density * len(v))), method="magnitude").double() for v in vectors]
    assert torch.allclose(got, oracle.task_arithmetic(pruned, weights), atol=1e-6, rtol=0)
    equal = [SparseVector(v.shape, v.flat[: len(vectors[0])], v.differences[: len(vectors[0])]) for v in vectors]
    equal = [v for v in equal if len(v) == len(equal[0])]
    count = int(density * len(equal[0]))
    _, got = ours("arithmetic", equal, weights[: len(equal)], density)
    expected = oracle.magnitude_prune([dense(v) for v in equal], weights[: len(equal)], theirs(count))
    assert torch.allclose(got, expected, atol=1e-6, rtol=0)


@given(supports(), WEIGHTS, st.floats(0.05, 1))
def test_ties(vectors, weights, density):
    weights = torch.tensor(weights[: len(vectors)], dtype=torch.float64)
    pruned = [oracle.prune(dense(v), theirs(int(density * len(v))), method="magnitude") for v in vectors]
    expected = oracle.ties(pruned, weights, density=1.0)
    _, got = ours("ties", vectors, weights, density)
    assert torch.allclose(got, expected, atol=1e-6, rtol=0)


@given(supports(), WEIGHTS, st.floats(0.05, 0.95), st.integers(0, 99))
def test_dare(vectors, weights, density, seed):
    weights = torch.tensor(weights[: len(vectors)], dtype=torch.float64)
    masks, got = ours("dare", vectors, weights, density, seed)
    draws = iter([(dense(v, m) != 0).double() for v, m in zip(vectors, masks, strict=True)])
    with mock.patch.object(oracle.torch, "bernoulli", side_effect=lambda _: next(draws)):
        expected = oracle.dare_linear([dense(v) for v in vectors], weights, density)
    assert torch.allclose(got, expected, atol=1e-6, rtol=0)


def test_dare_has_the_mean_of_all():
    vector = SparseVector(SIZE, torch.arange(20), torch.linspace(-1, 1, 20, dtype=torch.float64))
    one = torch.ones(1, dtype=torch.float64)
    drawn = torch.stack([ours("dare", [vector], one, 0.5, seed)[1].flatten()[:20] for seed in range(2000)])
    error = vector.differences.abs() * (1 / 2000) ** 0.5  # of the mean of τ/0.5 with probability 0.5
    assert bool(((drawn.mean(0) - vector.differences).abs() <= 4 * error).all())


def test_breadcrumbs_drops_both_ends():
    part = SparseVector((20, 10), torch.arange(200), torch.arange(1, 201, dtype=torch.float64))
    kept = METHODS["breadcrumbs"].keep(TaskVector({"w": part}, {}, {}), Choice(0.9, torch.Generator()))["w"]
    assert kept.nonzero().flatten().tolist() == list(range(18, 198))  # 2 largest and 18 smallest are dropped


def test_the_important_entries_of_the_delta_are_kept_wherever_they_are():
    vectors = {
        name: SparseVector((4, 4), torch.arange(4), torch.ones(4, dtype=torch.float64)) for name in ("first", "second")
    }
    importance = {"first": torch.tensor([9.0, 8, 7, 1]), "second": torch.tensor([0.0, 6, 0, 0])}
    keep = METHODS["selective"].keep(TaskVector(vectors, {}, {}), Choice(0.5, torch.Generator(), importance))
    assert keep["first"].tolist() == [True, True, True, False]
    assert keep["second"].tolist() == [False, True, False, False]


@pytest.mark.parametrize("name", METHODS)
def test_a_support_of_zeros_merges_to_zeros(name):
    vector = SparseVector((2, 2), torch.arange(3), torch.zeros(3, dtype=torch.float64))
    part = merged([vector], [torch.ones(3, dtype=torch.bool)], torch.ones(1).double(), [1.0], METHODS[name])
    assert not part.differences.any()
