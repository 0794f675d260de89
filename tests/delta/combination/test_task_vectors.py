"""Task vectors hold the exact differences, and tell heads from shared parameters."""

from __future__ import annotations

import pytest
import task_deltas
import tiny
import torch

import taskedge as te
from taskedge.delta.combination.task_vectors import head_of, named_vectors, shared_parameters, task_vector
from taskedge.errors import BaseMismatch, InputError


def test_base_plus_difference_is_the_value(bert):
    delta = task_deltas.tuned(tiny.bert(), 1)
    vector = task_vector(bert, delta, "a")
    assert len(vector) == delta.num_entries
    for name, part in vector.linears.items():
        base = bert.get_submodule(name).weight.detach().flatten()[part.flat]
        assert torch.equal((base.double() + part.differences).float(), delta.linears[name].values)
        assert torch.equal(part.negated().differences, -part.differences)


def test_heads_are_outside_the_shared_part(bert):
    norm = "bert.encoder.layer.0.output.LayerNorm.bias"
    delta = te.Delta({}, {"classifier.bias": torch.zeros(9), norm: torch.ones(16)})
    assert list(head_of(bert, delta)) == ["classifier.bias"]
    assert list(shared_parameters(bert, delta)) == [norm]
    assert list(named_vectors(task_vector(bert, delta, "a"))) == [norm]
    with pytest.raises(BaseMismatch, match=r"no parameter 'bert\.embeddings\.x'"):
        shared_parameters(bert, te.Delta({}, {"bert.embeddings.x": torch.zeros(1)}))


def test_a_model_that_trains_is_no_base(bert):
    delta = task_deltas.tuned(tiny.bert(), 1)
    te.install(bert, te.select(bert, rule="random", budget="2%"))
    with pytest.raises(InputError, match="trains a support"):
        task_vector(bert, delta, "a")


def test_int8_differences_are_those_of_the_rounded_base(bert):
    from taskedge.backbone.storage.set_storage import set_weight_storage

    model = set_weight_storage(tiny.bert(), "int8")
    delta = task_deltas.tuned(model, 1)
    vector = task_vector(bert, delta, "a")  # the base as it was before it was stored as int8
    stored = task_vector(set_weight_storage(tiny.bert(), "int8"), delta, "a")
    for name, part in vector.linears.items():
        assert torch.equal(part.differences, stored.linears[name].differences)
