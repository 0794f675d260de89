"""With a depth, entries are in the blocks nearest the output only, and backpropagation ends there."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch

import taskedge as te
from taskedge.backbone.blocks import blocks, blocks_within
from taskedge.errors import BudgetError, InputError
from taskedge.forms.sparse import sparse_layers

MODELS = [tiny.bert, tiny.gpt2, tiny.vit]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("rule", ["taskedge", "gradient", "magnitude"])
def test_only_linears_of_these_blocks_are_chosen_and_the_budget_is_a_share_of_the_whole_model(make, rule):
    model = make()
    support = te.select(model, [tiny.batch(model)], budget="2%", rule=rule, depth=1)
    (last,) = blocks_within(model, 1)
    assert support.linears
    assert all(name.startswith(f"{last.name}.") for name in support.linears)
    assert support.num_entries == round(0.02 * sum(p.numel() for p in model.parameters()))
    assert support.settings["depth"] == 1
    everything = te.select(model, [tiny.batch(model)], budget="2%", rule=rule)
    deep = te.select(model, [tiny.batch(model)], budget="2%", rule=rule, depth=2)
    assert {name: it.flat.tolist() for name, it in deep.linears.items()} == {
        name: it.flat.tolist() for name, it in everything.linears.items()
    }


def test_spt_takes_no_norm_below():
    model = tiny.bert()
    support = te.select(model, [tiny.batch(model)], budget="5%", rule="spt", depth=1, rank=1)
    last = blocks(model)[-1].name
    assert {*support.linears, *support.low_rank, *support.full_parameters}
    assert all(name.startswith(last) for name in {*support.linears, *support.low_rank, *support.full_parameters})


@pytest.mark.parametrize("make", MODELS)
def test_no_gradient_is_computed_below_and_above_they_are_those_of_the_full_run(make):
    model = make().double()
    given = tiny.batch(model)
    twin = copy.deepcopy(model)
    chosen = te.select(model, [given], per_neuron=2, depth=1)
    below, above = (block.module for block in blocks(model))
    te.install(model, chosen)
    kept = []
    below.register_forward_hook(lambda module, inputs, output: kept.append(output))
    above.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))

    outside = []
    inside = below.register_forward_pre_hook(lambda module, inputs: hooks.__enter__())
    done = below.register_forward_hook(lambda module, inputs, output: hooks.__exit__(None, None, None))
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: outside.append(tensor), lambda tensor: tensor)
    model(**given).loss.backward()
    inside.remove(), done.remove()
    assert not outside  # nothing was saved for a backward pass of the block below
    assert all(not (part if isinstance(part, torch.Tensor) else part[0]).requires_grad for part in kept)

    twin(**given).loss.backward()
    for name, layer in sparse_layers(model).items():
        dense = te.backbone.layers.linears(twin)[name]
        gradient = dense.adapter.matrix(dense.module.weight.grad)[layer.entries.rows, layer.entries.columns]
        torch.testing.assert_close(layer.entries.offsets.grad.double(), gradient, rtol=1e-6, atol=1e-12)


def test_a_depth_that_cannot_be():
    model = tiny.bert()
    for depth in (0, 3):
        with pytest.raises(InputError, match=f"depth {depth}: .* has 2 blocks: give 1 to 2"):
            te.select(model, rule="random", per_neuron=1, depth=depth)
    with pytest.raises(InputError, match="Mlp has no repeated blocks to count depth in"):
        te.select(tiny.mlp(), rule="random", per_neuron=1, depth=1)
    with pytest.raises(InputError, match="no linear at depth 1 or nearer the output can carry entries"):
        te.select(model, rule="random", per_neuron=1, depth=1, linears=["*layer.0.*"])
    with pytest.raises(BudgetError, match="is more than the 2,048 that 6 linears can carry"):
        te.select(model, rule="random", budget="90%", depth=1)
