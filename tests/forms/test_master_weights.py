"""Full parameters of a half-precision model train in fp32; the model computes as a plain one in its dtype."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from torch import nn

import taskedge as te
from taskedge.forms.master_weights import FixedDtypeModule, add_master_weights, remove_master_weights

HALF = [torch.bfloat16, torch.float16]


def selected(model):
    return te.select(model, [tiny.batch(model)], budget="2%")


def trained(kind, dtype, **install):
    """Return a model in ``dtype`` that was trained a few steps with entries and a head."""
    model = tiny.MODELS[kind]().to(dtype)
    given = tiny.batch(model)
    given = {key: value.to(dtype) if value.is_floating_point() else value for key, value in given.items()}
    te.install(model, te.select(model, [given], budget="2%"), **install)
    optimizer = torch.optim.AdamW(tiny.trained(model), lr=1e-2)
    for _ in range(3):
        model(**given).loss.float().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), given


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", ["bert", "gpt2", "vit"])
def test_a_delta_on_a_fresh_base_computes_what_was_trained(kind, dtype, tmp_path):
    """The bits are the same without ``force``, and reverting restores every bit."""
    model, given = trained(kind, dtype)
    delta = te.load(te.save(te.extract(model), tmp_path / "o"))
    assert {tensor.dtype for tensor in delta.full_parameters.values()} == {torch.float32}
    assert any(
        not torch.equal(t, t.to(dtype).float()) for t in delta.full_parameters.values()
    )  # more than dtype can hold
    fresh = tiny.MODELS[kind]().to(dtype)
    before = tiny.state(fresh)
    with torch.no_grad(), te.applied(fresh, delta):
        assert torch.equal(tiny.bits(fresh(**given).logits), tiny.bits(model(**given).logits))
        assert fresh(**given).logits.dtype == dtype
    assert tiny.same_bits(before, tiny.state(fresh))


@pytest.mark.parametrize("dtype", HALF)
def test_fused_it_is_plain_and_computes_the_same(dtype):
    model, given = trained("bert", dtype)
    with torch.no_grad():
        before = model(**given).logits
        te.fuse(model)
        assert torch.equal(tiny.bits(before), tiny.bits(model(**given).logits))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not [
        m for m in model.modules() if m._forward_pre_hooks or m._forward_hooks or "_taskedge_masters" in vars(m)
    ]


def test_steps_below_a_rounding_step_add_up():
    model = tiny.bert().to(torch.bfloat16)
    given = tiny.batch(model)
    te.install(model, te.select(model, [given], budget="2%"))
    bias = model.classifier.bias
    with torch.no_grad():
        bias.fill_(1.0)
        for _ in range(64):
            bias += 1e-3  # each is far below half a bf16 step at 1
    assert bias.dtype == torch.float32
    te.fuse(model)
    assert torch.equal(bias, torch.full_like(bias, 1.064))


def test_gradients_are_those_of_the_rounded_weights():
    """The oracle is autograd through an explicit rounding in the same model."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)).to(torch.bfloat16)
    trained = copy.deepcopy(plain)
    add_master_weights(trained, ["1.bias", "2.weight"])
    x = torch.randn(4, 6, dtype=torch.bfloat16)
    for model in (plain, trained):
        model(x).float().square().sum().backward()
    for name, parameter in trained.named_parameters():
        is_full = name in ("1.bias", "2.weight")
        assert parameter.dtype == (torch.float32 if is_full else torch.bfloat16)
        assert torch.equal(parameter.grad.to(torch.bfloat16), dict(plain.named_parameters())[name].grad)


def test_biases_of_layers_with_entries_and_norms_in_the_middle():
    model, given = trained("bert", torch.bfloat16, trainable=["*.bias", "classifier.weight"])
    delta = te.extract(model)
    assert len(delta.full_parameters) == 20
    with torch.no_grad():
        applied = te.apply(tiny.bert().to(torch.bfloat16), delta)(**given).logits
        assert torch.equal(tiny.bits(applied), tiny.bits(model(**given).logits))


def test_a_tied_parameter_stays_tied():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)).to(torch.bfloat16)
    model[1].weight = model[0].weight
    x = torch.randn(2, 4, dtype=torch.bfloat16)
    before = model(x)
    add_master_weights(model, ["0.weight"])
    assert model[0].weight is model[1].weight
    assert model[0].weight.dtype == torch.float32
    assert torch.equal(model(x), before)
    remove_master_weights(model)
    assert model[1].weight.dtype == torch.bfloat16
    assert torch.equal(model(x), before)


def test_a_forward_pass_that_fails_leaves_the_master_in_view():
    model = nn.Sequential(nn.Linear(4, 4)).to(torch.bfloat16)
    add_master_weights(model, ["0.weight"])
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 3, dtype=torch.bfloat16))
    assert model[0].weight is dict(model.named_parameters())["0.weight"]
    assert "weight" not in vars(model[0])


def test_a_copy_is_a_model_of_its_own():
    model, given = trained("bert", torch.bfloat16)
    other = copy.deepcopy(model)
    with torch.no_grad():
        before = model(**given).logits
        other.classifier.bias += 1
        assert not torch.equal(other(**given).logits, before)
        assert torch.equal(model(**given).logits, before)
        te.fuse(other)
        assert other.classifier.bias.dtype == torch.bfloat16
        assert torch.equal(model(**given).logits, before)


def test_full_precision_is_left_alone(bert):
    te.install(bert, selected(bert))
    assert not [module for module in bert.modules() if "_taskedge_masters" in vars(module)]


class Offsets(FixedDtypeModule):
    def __init__(self):
        super().__init__()
        self.offsets = nn.Parameter(torch.zeros(3))
        self.register_buffer("rows", torch.arange(3))


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
def test_a_module_of_fixed_dtype_is_not_converted(convert):
    model = nn.Sequential(nn.Linear(2, 2), Offsets())
    assert convert(model) is model
    assert model[0].weight.dtype != torch.float32
    assert (model[1].offsets.dtype, model[1].rows.dtype) == (torch.float32, torch.int64)


def test_a_module_of_fixed_dtype_moves():
    module = Offsets()
    assert module.to("meta") is module
    assert (module.offsets.device.type, module.rows.device.type) == ("meta", "meta")


def test_a_module_of_fixed_dtype_moves_and_is_not_converted():
    module = Offsets().to("meta", torch.float16)
    assert (module.offsets.device.type, module.offsets.dtype) == ("meta", torch.float32)
