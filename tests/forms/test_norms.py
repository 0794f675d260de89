"""Running statistics stay those of the base while something else trains, in every form; norms are found by class."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn

import taskedge as te
from taskedge.backbone.candidates import candidates
from taskedge.forms.norms import (
    FixedStatistics,
    fix_statistics,
    norm_parameters,
    norm_statistics,
    release_statistics,
    statistics_of,
)
from taskedge.selection.support import Support


def statistics(model):
    return {name: buffer.clone() for name, buffer in norm_statistics(model).items()}


def test_a_fixed_norm_computes_and_keeps_what_it_does_in_inference():
    model = tiny.resnet()
    batch, before = tiny.batch(model), statistics(model)
    expected = tiny.logits(model, batch)
    fix_statistics(model)
    model.train()
    assert torch.equal(tiny.logits(model, batch), expected)
    assert tiny.same_bits(statistics(model), before)
    release_statistics(model)
    assert not any(isinstance(module, FixedStatistics) for module in model.modules())
    assert all(module.training for module in model.modules())
    tiny.logits(model, batch)
    assert not tiny.same_bits(statistics(model), before)


@pytest.mark.parametrize("how", ["sparse", "sparse_lora", "sparse_taps", "low_rank"])
def test_training_leaves_the_statistics_of_the_base(how):
    """A delta has none of them, so the model that trained and the base with the delta must compute the same."""
    model, batch = tiny.resnet(), tiny.batch(tiny.resnet())
    if how == "low_rank":
        support = Support({}, 100, low_rank={"linear": 2})
        model.linear = nn.Linear(4, 4)
        with pytest.raises(te.errors.InputError):
            te.install(model, Support({}, 100, low_rank=dict.fromkeys(candidates(model), 1)))
        del model.linear
        support = Support({}, 100, full_parameters=("resnet.embedder.embedder.convolution.weight",))
        te.install(model, support)
    else:
        support = te.select(model, [batch], per_neuron=2, rule="magnitude")
        te.install(model, support, form=how)
    before = statistics(model)
    tiny.train(model.train())
    assert tiny.same_bits(statistics(model), before)
    trained = tiny.logits(model.eval(), batch)
    other = tiny.resnet()
    te.apply(other, te.extract(model))
    assert torch.equal(tiny.logits(other, batch), trained)
    te.revert(other)
    assert tiny.same_bits(tiny.state(other), tiny.state(tiny.resnet()))


def test_norms_are_found_by_class():
    model = tiny.bert()
    names = norm_parameters(model)
    assert len(names) == 10
    assert all("LayerNorm" in name for name in names)
    assert norm_statistics(model) == {}
    convolutional = tiny.resnet()
    norms = [module for module in convolutional.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norm_parameters(convolutional)) == len(norm_statistics(convolutional)) == 2 * len(norms)


def test_statistics_are_found_by_name():
    model = tiny.resnet()
    name = next(iter(norm_statistics(model)))
    found = statistics_of(model, [name, "none.running_mean", "resnet.running_var", "classifier.1.weight"])
    assert list(found) == [name]
    assert found[name] is model.get_buffer(name)
