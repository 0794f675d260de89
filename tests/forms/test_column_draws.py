"""Only the entries of one draw train at a time, with the gradients that dense autograd gives."""

import copy

import pytest
import tiny
import torch

import taskedge as te
from taskedge.errors import BudgetError, InputError
from taskedge.forms.column_draws import number_of_draws, use_draw
from taskedge.forms.sparse import sparse_layers


@pytest.fixture
def drawn(bert):
    """A model that trains 3 columns of every input, drawn 4 times."""
    support = te.select(bert, [tiny.batch(bert)], columns=3, column_draws=4, seed=1)
    return te.install(bert, support, step="activation")


def loss_of(model):
    return model.eval()(**tiny.batch(model)).loss


def test_a_pass_keeps_the_columns_of_one_draw(drawn):
    inputs = {id(layer.entries.shared_input): layer.entries.shared_input for layer in sparse_layers(drawn).values()}
    assert number_of_draws(drawn) == 4
    assert max(len(each.columns) for each in inputs.values()) > 3
    for draw in range(4):
        use_draw(drawn, draw)
        assert {len(each.columns) for each in inputs.values()} == {3}


@pytest.mark.parametrize("draw", range(4))
def test_gradients_are_the_dense_ones_in_the_draw_and_zero_outside(bert, draw):
    dense = copy.deepcopy(bert).double().requires_grad_(True)
    loss_of(dense).backward()
    bert = bert.double()
    support = te.select(bert, [tiny.batch(bert)], columns=3, column_draws=4, seed=1)
    te.install(bert, support)
    use_draw(bert, draw)
    loss_of(bert).backward()
    for name, layer in sparse_layers(bert).items():
        expected = dense.get_submodule(name).weight.grad[layer.entries.rows, layer.entries.columns]
        inside = torch.isin(layer.entries.columns, torch.tensor(support.settings["drawn_columns"][name][draw]))
        assert 0 < inside.sum() < len(inside)
        assert torch.allclose(layer.entries.offsets.grad.double(), expected * inside, atol=1e-6, rtol=1e-6)


def test_values_of_an_earlier_draw_stay_while_another_trains(drawn):
    optimizer = torch.optim.AdamW([p for p in drawn.parameters() if p.requires_grad], lr=0.1, weight_decay=0.0)

    def steps(draw):
        use_draw(drawn, draw, optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(drawn).backward()
            optimizer.step()
        return {name: layer.entries.offsets.detach().clone() for name, layer in sparse_layers(drawn).items()}

    first = steps(0)
    was_active = {name: layer.entries.active for name, layer in sparse_layers(drawn).items()}
    second = steps(1)
    for name, layer in sparse_layers(drawn).items():
        outside = torch.ones(len(first[name]), dtype=torch.bool)
        outside[layer.entries.active] = False
        assert torch.equal(first[name][outside], second[name][outside])
        assert first[name][was_active[name]].abs().min() > 0
    delta = te.extract(drawn)
    name = next(iter(second))
    assert torch.equal(delta.linears[name].values, sparse_layers(drawn)[name].entries.values)


def test_a_moved_model_moves_its_active_entries(drawn):
    use_draw(drawn, 0)
    drawn.to(torch.float64).to("meta")
    assert next(iter(sparse_layers(drawn).values())).entries.active.device.type == "meta"


def test_unusable_draws_are_refused(bert, drawn):
    with pytest.raises(InputError, match="4 draws of columns, and none with index 4"):
        use_draw(drawn, 4)
    te.fuse(drawn)
    with pytest.raises(BudgetError, match="need their number"):
        te.select(drawn, [tiny.batch(drawn)], per_neuron=1, column_draws=2)
    with pytest.raises(BudgetError, match="0 draws"):
        te.select(drawn, [tiny.batch(drawn)], columns=2, column_draws=0)
    te.install(drawn, te.select(drawn, [tiny.batch(drawn)], columns=2))
    assert number_of_draws(drawn) == 1
    with pytest.raises(InputError, match="1 draws"):
        use_draw(drawn, 0)
