"""A selection leaves out the entries of others and takes the next best instead."""

import pytest
import tiny
import torch

import taskedge as te
from taskedge.errors import BudgetError, InputError
from taskedge.selection.allocations import ALLOCATIONS
from taskedge.selection.avoid import flat_entries
from taskedge.selection.support import LayerSupport


def chosen(support):
    return {(name, int(flat)) for name, layer in support.linears.items() for flat in layer.flat}


def test_the_next_best_take_the_place():
    """Two entries a neuron, less the best one, are the second best ones."""
    model = tiny.bert()
    batches = [tiny.batch(model)]
    first = te.select(model, batches, per_neuron=1)
    both = te.select(model, batches, per_neuron=2)
    second = te.select(model, batches, per_neuron=1, avoid=[first.linears])
    assert chosen(second) == chosen(both) - chosen(first)
    assert second.settings["avoided"] == first.num_entries
    third = te.select(model, batches, per_neuron=1, avoid=[first.linears, second.linears, first.linears])
    assert not chosen(third) & chosen(both)


@pytest.mark.parametrize("allocation", [*ALLOCATIONS, "1:8"])
@pytest.mark.parametrize("rule", ["taskedge", "random"])
def test_every_allocation_avoids(allocation, rule):
    model = tiny.bert()
    batches = [tiny.batch(model)]
    how = {"rule": rule, "allocation": allocation} | ({} if ":" in allocation else {"budget": "1%"})
    first = te.select(model, batches, **how)
    second = te.select(model, batches, avoid=[first.linears], **how)
    assert len(chosen(second)) == len(chosen(first))
    assert not chosen(second) & chosen(first)


def test_entries_in_columns_avoid_others_and_keep_the_columns():
    model = tiny.bert()
    batches = [tiny.batch(model)]
    first = te.select(model, batches, columns=4, per_neuron=1)
    second = te.select(model, batches, columns=4, per_neuron=1, avoid=[first.linears])
    assert not chosen(second) & chosen(first)
    for name, layer in second.linears.items():
        everything = te.select(model, batches, columns=4).linears[name]
        assert set(layer.columns.tolist()) <= set(everything.columns.tolist())


def test_a_delta_of_the_tasks_is_avoided(tmp_path):
    """A delta has entries as a support does; two such deltas merge without collision."""
    model = tiny.bert()
    support = te.select(model, per_neuron=1, rule="random", seed=1)
    path = te.save(te.extract(te.install(tiny.bert(), support)), tmp_path / "a.safetensors")
    again = te.select(model, per_neuron=1, rule="random", seed=1, avoid=[te.load(path).linears])
    assert not chosen(again) & chosen(support)


def test_what_cannot_be_avoided_is_refused():
    model = tiny.bert()
    everything = te.select(model, per_neuron=16, rule="random")
    with pytest.raises(BudgetError, match=r"of the .* entries of the budget are among those to avoid, the first in"):
        te.select(model, per_neuron=1, rule="random", avoid=[everything.linears])
    name = next(iter(everything.linears))
    layer = everything.linears[name]
    with pytest.raises(InputError, match="which the model does not have"):
        te.select(model, per_neuron=1, rule="random", avoid=[{"other.linear": layer}])
    smaller = LayerSupport.from_flat((3, 3), torch.tensor([1]), name, None)
    with pytest.raises(InputError, match=r"of shape \[3, 3\], which is"):
        te.select(model, per_neuron=1, rule="random", avoid=[{name: smaller}])
    with pytest.raises(BudgetError, match="may train whole matrices"):
        te.select(model, [tiny.batch(model)], budget="1%", rule="spt", avoid=[everything.linears])


def test_flat_entries_are_each_once():
    part = {"a": LayerSupport.from_flat((2, 4), torch.tensor([1, 6]), "a", None)}
    other = {"a": LayerSupport.from_flat((2, 4), torch.tensor([6, 7]), "a", None)}
    assert {name: flat.tolist() for name, flat in flat_entries([part, other]).items()} == {"a": [1, 6, 7]}
