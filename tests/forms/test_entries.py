"""Entries keep fp32 offsets, write the trained values into the weight, and share the columns of one input."""

import copy

import pytest
import tiny
import torch
import torch.nn.functional as F
from sparse_models import SHARED, Attention, backward, compare, dense_twin, installed
from torch import nn

import taskedge as te
from taskedge.backbone.layers import stored_weight
from taskedge.errors import InputError
from taskedge.forms.sparse import sparse_layers
from taskedge.selection.support import LayerSupport, Support

pytestmark = pytest.mark.usefixtures("gather_on_tiny_layers")


def test_readers_of_one_input_share_its_columns():
    model = Attention()
    twin = dense_twin(model)
    installed(model, shared_inputs=SHARED)
    x = torch.randn(3, 7, 6)
    backward(model, twin, lambda one: one(x))
    compare(model, twin)
    assert model.query.entries.shared_input is model.key.entries.shared_input


def test_shared_readers_that_run_in_part_twice_or_on_other_inputs():
    model = Attention()
    twin = dense_twin(model)
    installed(model, shared_inputs=SHARED)
    x, other = torch.randn(4, 6), torch.randn(4, 6)
    for run in (
        lambda one: one(x),
        lambda one: one.query(x) + one.key(x),
        lambda one: one.value(other) + one.query(x) + one.key(other),
        lambda one: one.query(x) + one.query(x) + one.key(x) + one.value(x) + one.value(x),
        lambda one: one.query(x) + one.key(x.clone().mul_(2)),
    ):
        backward(model, twin, run)  # gradients add up
        compare(model, twin)


def test_an_input_changed_in_place_between_two_readers_is_gathered_again():
    model = Attention()
    twin = dense_twin(model)
    installed(model, shared_inputs=SHARED)

    def run(one):
        x = torch.linspace(-1, 1, 24).reshape(4, 6).clone()
        first = one.query(x).detach()  # whose own backward pass dense autograd would refuse
        x.mul_(3)
        return first + one.key(x) + one.value(x)

    backward(model, twin, run)
    for name in ("key", "value"):
        gradient = getattr(twin, name).weight.grad
        entries = getattr(model, name).entries
        torch.testing.assert_close(entries.offsets.grad, gradient[entries.rows, entries.columns])


def test_columns_are_not_kept_alive_after_all_readers_have_run():
    model = Attention()
    installed(model, shared_inputs=SHARED)
    model(torch.randn(3, 6))
    assert model.query.entries.shared_input._gathered is None


def test_a_step_scales_how_far_an_offset_moves_its_weight():
    layer = nn.Linear(3, 2, bias=False)
    twin = dense_twin(layer)
    support = LayerSupport.from_flat((2, 3), torch.tensor([0, 4]), "", torch.tensor([1.0, 2.0, 4.0]))
    te.install(layer, Support({"": support}, 6), step="activation", trainable=[])
    x = torch.randn(5, 3)
    layer(x).sum().backward()
    twin(x).sum().backward()
    step = (torch.tensor([1.0, 4.0, 16.0]).mean().sqrt() / torch.tensor([1.0, 2.0, 4.0]))[torch.tensor([0, 1])]
    torch.testing.assert_close(layer.entries.step, step)
    torch.testing.assert_close(layer.entries.offsets.grad, step * twin.weight.grad.flatten()[[0, 4]])
    base = layer.entries.base.clone()
    layer.entries.offsets.data.fill_(0.5)
    torch.testing.assert_close(layer.weight.flatten()[[0, 4]], base + 0.5 * step)


@pytest.mark.parametrize("convert", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double()])
def test_offsets_stay_fp32_when_the_model_is_converted(convert):
    model = tiny.train(installed(tiny.mlp()))
    values = {name: layer.entries.values for name, layer in sparse_layers(model).items()}
    convert(model)
    for name, layer in sparse_layers(model).items():
        assert layer.entries.offsets.dtype == layer.entries.base.dtype == torch.float32
        assert torch.equal(layer.entries.values, values[name])
        stored = layer.weight[layer.entries.rows, layer.entries.columns]
        assert stored.dtype == layer.bias.dtype != torch.float32
        assert torch.equal(stored, values[name].to(stored.dtype))
    dtype = model.first.bias.dtype
    model(torch.randn(4, 12, dtype=dtype)).float().sum().backward()
    assert model.first.entries.offsets.grad.dtype == torch.float32


def test_small_steps_add_up_in_fp32_under_a_bfloat16_weight():
    layer = nn.Linear(2, 1, bias=False).to(torch.bfloat16)
    layer.weight.data.fill_(1.0)
    installed(layer, entries=1)
    for _ in range(64):
        layer.entries.offsets.data += 1e-3  # each is far below half a bf16 step at 1
    assert layer.weight.max().item() == torch.tensor(1.064).to(torch.bfloat16).item()


def test_changes_through_data_are_seen():
    layer = installed(nn.Linear(6, 4))
    x = torch.randn(3, 6)
    before = layer(x)
    layer.entries.offsets.data.add_(1.0)
    assert not torch.equal(layer(x), before)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    layer.entries.offsets.data = torch.zeros_like(layer.entries.offsets)
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("assign", [False, True])
def test_state_goes_round(bert, assign):
    tiny.train(installed(bert))
    stored = {name: tensor.clone() for name, tensor in bert.state_dict().items()}
    other = installed(tiny.bert())
    given = tiny.batch(bert)
    other.load_state_dict(stored, assign=assign)
    assert torch.equal(tiny.logits(other, given), tiny.logits(bert, given))
    assert tiny.same_bits(other.state_dict(), stored)
    tiny.train(other)


def test_state_is_up_to_date_right_after_a_step(mlp):
    installed(mlp)
    mlp.first.entries.offsets.data.fill_(1.0)
    entries = mlp.first.entries
    assert torch.equal(mlp.state_dict()["first.weight"][entries.rows, entries.columns], entries.values)


def test_the_sign_of_a_zero_survives_even_if_it_comes_with_a_state():
    layer, other = installed(nn.Linear(6, 4)), installed(nn.Linear(6, 4))
    assert not layer.weight.signbit().all()
    with torch.no_grad():
        other._parameters["weight"].fill_(-0.0)
        other.entries.base.fill_(-0.0)
    layer.entries.offsets.data.fill_(1.0)
    assert torch.equal(layer.entries.values, layer.entries.base + 1)
    layer.load_state_dict(other.state_dict())
    assert layer.entries.values.signbit().all()
    assert layer.weight.signbit().all()


def test_state_of_another_support_is_refused(mlp):
    stored = tiny.state(installed(mlp))
    for other in (installed(tiny.mlp(), seed=1), installed(tiny.mlp(), entries=8)):
        with pytest.raises(InputError, match="another support"):
            other.load_state_dict(stored)


def test_reading_the_weight_writes_the_trained_values_and_only_once():
    layer = installed(nn.Linear(6, 4))
    before = stored_weight(layer).clone()
    layer.entries.offsets.data.fill_(1.0)
    assert torch.equal(stored_weight(layer), before)  # not read through the layer, so not written yet
    assert not torch.equal(layer.weight, before)
    version = stored_weight(layer)._version
    layer.sync_weight()
    assert layer.weight._version == version


def test_new_columns_of_a_shared_input_are_found_after_reindexing():
    layer = installed(nn.Linear(6, 4), entries=5)
    twin, x = copy.deepcopy(layer), torch.randn(3, 6)
    layer.entries.shared_input.set_columns(torch.arange(6))  # more than it needs
    layer.entries.reindex()
    for each in (layer, twin):
        each(x).square().sum().backward()
    torch.testing.assert_close(layer.entries.offsets.grad, twin.entries.offsets.grad)
