"""Sums of gradients equal dense autograd, with one dense gradient in memory at a time."""

from __future__ import annotations

import copy
import tempfile
import weakref

import pytest
import tiny
import torch
from torch import nn
from transformers import AlbertConfig, AlbertForSequenceClassification

from taskedge.backbone.candidates import candidates
from taskedge.backbone.layers import linears
from taskedge.errors import InputError
from taskedge.selection.disk_accumulator import DiskAccumulator
from taskedge.selection.gradient_sums import GradientSums
from taskedge.selection.select import select
from taskedge.selection.statistics import GRADIENTS, INPUTS, SQUARED_GRADIENTS, measure


def albert():
    """A model that runs one linear three times."""
    torch.manual_seed(0)
    config = AlbertConfig(
        vocab_size=tiny.VOCABULARY,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=24,
        num_labels=tiny.LABELS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return AlbertForSequenceClassification(config).eval()


def dense(model, batches):
    """Return ``[(name, gradient)]`` for each batch by plain autograd, weights as [out, in]."""
    twin = copy.deepcopy(model).eval().requires_grad_(True)
    found = []
    for batch in batches:
        twin.zero_grad()
        twin(**batch).loss.backward()
        gradients = {name: parameter.grad.clone() for name, parameter in twin.named_parameters()}
        for name, linear in linears(twin).items():
            gradients[f"{name}.weight"] = linear.adapter.matrix(gradients[f"{name}.weight"])
        found.append(gradients)
    return found


@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2, tiny.vit, albert])
def test_sums_and_squares_have_the_bits_of_dense_autograd(make):
    model = make()
    batches = [tiny.batch(tiny.bert() if make is albert else model, seed=seed) for seed in range(3)]
    layers = candidates(model)
    found = measure(model, layers, batches, {GRADIENTS, SQUARED_GRADIENTS})
    expected = dense(model, batches)
    for name in layers:
        first, *others = [gradients[f"{name}.weight"] for gradients in expected]
        total, squares = first, first.square()
        for gradient in others:
            total, squares = total + gradient, squares + gradient.square()
        assert torch.equal(found[name].gradient, total)
        assert torch.equal(found[name].squared_gradient, squares)
        assert total.any()


def test_squares_of_vectors_are_kept_in_memory(bert):
    batches = [tiny.batch(bert, seed=seed) for seed in range(2)]
    vectors = {name: parameter for name, parameter in bert.named_parameters() if parameter.dim() == 1}
    found = measure(bert, candidates(bert), batches, {INPUTS}, vectors=vectors)
    one, two = dense(bert, batches)
    assert list(found.vectors) == list(vectors)
    for name, squares in found.vectors.items():
        torch.testing.assert_close(squares, one[name].square() + two[name].square())
    query = "bert.encoder.layer.0.attention.self.query"
    assert found[query].read_gradient is found[query].read_squared_gradient is None


def test_parts_that_the_loss_does_not_reach_are_zero():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, x):
            self.unused(x)
            return self.used(x).mean()

    model = Part()
    found = measure(
        model, linears(model), [torch.randn(2, 3)], {SQUARED_GRADIENTS}, vectors={"unused.bias": model.unused.bias}
    )
    assert torch.equal(found["unused"].squared_gradient, torch.zeros(1, 3))
    assert torch.equal(found.vectors["unused.bias"], torch.zeros(1))


@pytest.mark.parametrize("rule", ["gradient", "fisher", "spt"])
@pytest.mark.parametrize("allocation", ["per_neuron", "global_per_neuron", "2:4"])
@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2])
def test_one_dense_gradient_lives_at_a_time(make, rule, allocation, monkeypatch):
    model, most = make(), [0]
    alive: list[weakref.ref] = []
    add = GradientSums._add

    def watched(self, name, gradient):
        alive[:] = [reference for reference in alive if reference() is not None]
        alive.append(weakref.ref(gradient))
        most[0] = max(most[0], len(alive))
        assert all(parameter.grad is None for parameter in model.parameters() if parameter.dim() == 2)
        add(self, name, gradient)

    monkeypatch.setattr(GradientSums, "_add", watched)
    read, sums = DiskAccumulator.read, []

    def watched_read(self, key):
        sums[:] = [reference for reference in sums if reference() is not None]
        assert not sums  # nor a sum of the linear before
        matrix = read(self, key)
        sums.append(weakref.ref(matrix))
        return matrix

    monkeypatch.setattr(DiskAccumulator, "read", watched_read)
    budget = None if allocation == "2:4" and rule != "spt" else "5%"
    batches = [tiny.batch(model, seed=seed) for seed in range(2)]
    select(model, batches, budget=budget, rule=rule, allocation=None if rule == "spt" else allocation)
    assert most == [1]
    assert sums


@pytest.fixture
def files(monkeypatch):
    """Return a list of all temporary files that are opened."""
    made, make = [], tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: made.append(make(**options)) or made[-1])
    return made


@pytest.mark.parametrize("rule", ["gradient", "fisher", "spt"])
def test_the_file_is_closed_after_a_selection(bert, files, rule):
    select(bert, [tiny.batch(bert)], budget="5%", rule=rule)
    assert [file.closed for file in files] == [True]


def test_forward_rules_make_no_file(bert, files):
    select(bert, [tiny.batch(bert)], budget="5%")
    assert not files


@pytest.mark.parametrize("rule", ["gradient", "fisher", "spt"])
def test_the_file_is_closed_after_an_error(bert, files, rule):
    def batches():
        yield tiny.batch(bert)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        select(bert, batches(), budget="5%", rule=rule)
    with pytest.raises(InputError, match="no calibration batches"):
        select(bert, [], budget="5%", rule=rule)
    with pytest.raises(InputError, match="more than the"):
        select(bert, [tiny.batch(bert)], budget="99%", rule=rule)
    assert [file.closed for file in files] == [True] * 3


def test_a_full_disk_in_the_middle_of_a_backward_pass_is_one_clear_error(bert, monkeypatch):
    def full(self, start, chunk):
        raise self._failed(OSError(28, "No space left on device"))

    monkeypatch.setattr(DiskAccumulator, "_write", full)
    before = tiny.state(bert)
    with pytest.raises(InputError, match=r"No space left on device.*TMPDIR"):
        select(bert, [tiny.batch(bert)], budget="5%", rule="gradient")
    assert tiny.same_bits(bert.state_dict(), before)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in bert.parameters())
    assert not any(parameter._post_accumulate_grad_hooks for parameter in bert.parameters())
