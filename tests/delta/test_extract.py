"""The extracted delta has the trained values, their positions and the digests of the base."""

import pytest
import tiny
import torch

import taskedge as te
from taskedge.backbone.fingerprint import digest
from taskedge.backbone.layers import linears
from taskedge.errors import DeltaError


def tuned(model, **options):
    support = te.select(model, [tiny.batch(model)], **({"budget": "2%"} | options))
    return tiny.train(te.install(model, support)), support


def test_entries_values_head_and_provenance(model):
    base = {name: linear.weight.clone() for name, linear in linears(model).items()}
    model, support = tuned(model)
    delta = te.extract(model)
    state = tiny.state(model)
    assert delta.num_entries == support.num_entries
    for name, linear in delta.linears.items():
        rows, columns = support.linears[name].rows, support.linears[name].columns
        assert torch.equal(linear.rows, rows)
        assert torch.equal(linear.columns, columns)
        assert torch.equal(linear.values, linears(model)[name].weight[rows, columns])
        assert not torch.equal(linear.values, base[name][rows, columns])
        assert linear.base_digest == digest(base[name][rows, columns])
        assert (linear.base_dtype, linear.shape) == ("float32", linears(model)[name].shape)
    assert delta.full_parameters
    assert all(torch.equal(tensor, state[name]) for name, tensor in delta.full_parameters.items())
    about = delta.provenance
    assert (about.rule, about.allocation, about.budget) == ("taskedge", "per_neuron", "2%")
    assert about.base_parameters == support.model_parameters


def test_it_is_a_copy_and_the_model_trains_on(mlp):
    tuned(mlp)
    delta = te.extract(mlp)
    before = {name: linear.values.clone() for name, linear in delta.linears.items()}
    head = delta.full_parameters["head.weight"].clone()
    tiny.train(mlp)
    assert all(torch.equal(delta.linears[name].values, values) for name, values in before.items())
    assert torch.equal(delta.full_parameters["head.weight"], head)
    assert any(not torch.equal(te.extract(mlp).linears[name].values, values) for name, values in before.items())


def test_full_parameters_are_extracted_and_no_others(bert):
    te.install(bert, te.select(bert, rule="magnitude", budget="1%"), trainable=["*.LayerNorm.bias"])
    assert all(name.endswith("LayerNorm.bias") for name in te.extract(bert).full_parameters)
    te.fuse(bert)
    te.install(bert, te.select(bert, rule="magnitude", budget="1%"), trainable=[])
    assert te.extract(bert).full_parameters == {}


def test_a_narrow_base_gives_fp32_values_bound_to_its_own_digest():
    model = tiny.mlp().to(torch.bfloat16)
    te.install(model, te.select(model, rule="magnitude", per_neuron=1))
    model.first.entries.offsets.data.fill_(2**-12)
    linear = te.extract(model).linears["first"]
    assert linear.base_dtype == "bfloat16"
    assert linear.values.dtype == torch.float32
    assert torch.equal(linear.values, model.first.entries.base.float() + 2**-12)


def test_a_value_that_is_not_finite_is_refused(mlp):
    te.install(mlp, te.select(mlp, rule="magnitude", per_neuron=1))
    mlp.second.entries.offsets.data[3] = torch.inf
    with pytest.raises(DeltaError, match="linear 'second': a value is not a finite number"):
        te.extract(mlp)
