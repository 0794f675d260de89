"""Experts of a mixture that share 3-D parameters: linears of their own, in plain transformers' arithmetic."""

from __future__ import annotations

import copy

import pytest
import tiny_experts
import torch

import taskedge as te
from taskedge.backbone.experts import ExpertLinear, _Stack, exposed
from taskedge.backbone.layers import linears
from taskedge.errors import InputError
from taskedge.forms.sparse import sparse_layers
from taskedge.selection.statistics import ABSOLUTE_INPUTS, GRADIENTS, INPUTS, SQUARED_GRADIENTS, measure

KINDS = pytest.mark.parametrize("kind", tiny_experts.CONFIGS)


def experts_of(model):
    return {name: linear for name, linear in linears(model).items() if isinstance(linear.module, ExpertLinear)}


def dense_gradients(model, batch):
    """Return the gradients of all parameters by plain autograd on a copy, with the base's own implementation."""
    twin = copy.deepcopy(model)
    twin(**batch).loss.backward()
    return {name: parameter.grad for name, parameter in twin.named_parameters()}


def matrix(linear, stack):
    """Return one expert's slice of a 3-D tensor as [out, in]."""
    part = stack[linear.module.expert]
    return part.T if linear.module.transposed else part


@KINDS
def test_each_slice_is_a_linear(kind):
    model = tiny_experts.model_of(kind)
    found = experts_of(model)
    assert len(found) == 2 * tiny_experts.EXPERTS * 2
    for name, linear in found.items():
        assert torch.equal(linear.weight, matrix(linear, model.get_parameter(linear.parameter)))
        assert name.endswith(f".{linear.module.expert}.{linear.module.projection}")
    assert linears(model)[name].module is linear.module  # the same at each call
    assert not any("experts.0" in name for name, _ in model.named_modules())


@KINDS
def test_exposed_experts_compute_the_same_and_leave_no_trace(kind):
    model, batch = tiny_experts.model_of(kind), tiny_experts.batch()
    names, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    plain = model(**batch).logits
    calls = []
    with exposed(linear.module for linear in linears(model).values()):
        for linear in experts_of(model).values():
            linear.module.register_forward_hook(lambda module, *_: calls.append(module))
        assert list(linears(model)) == list(linears(tiny_experts.model_of(kind)))
        with torch.no_grad():
            assert torch.allclose(model(**batch).logits, plain, atol=1e-6)
        assert list(model.state_dict()) == names
    assert len(calls) > 8
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(model(**batch).logits, plain)


@KINDS
def test_statistics_are_of_the_tokens_that_are_routed_to_an_expert(kind):
    model, batch = tiny_experts.model_of(kind), tiny_experts.batch()
    expected = tiny_experts.seen_tokens(model, batch)
    layers = experts_of(model)
    found = measure(model, layers, [batch], (INPUTS, ABSOLUTE_INPUTS))
    assert found.idle == tuple(name for name in layers if not len(expected[name]))
    for name, statistics in found.items():
        assert statistics.tokens == len(expected[name])
        assert torch.allclose(statistics.input_squares, expected[name].square().sum(0), rtol=1e-5, atol=1e-9)
        assert torch.allclose(statistics.input_absolutes, expected[name].abs().sum(0), rtol=1e-5, atol=1e-9)


@KINDS
def test_gradient_sums_equal_dense_autograd(kind):
    model, batch = tiny_experts.model_of(kind), tiny_experts.batch()
    dense = dense_gradients(model, batch)
    layers = experts_of(model)
    with measure(model, layers, [batch, batch], (INPUTS, GRADIENTS, SQUARED_GRADIENTS)) as found:
        for name, linear in layers.items():
            gradient = matrix(linear, dense[linear.parameter])
            assert torch.allclose(found[name].gradient, 2 * gradient, atol=1e-6)
            assert torch.allclose(found[name].squared_gradient, 2 * gradient.square(), atol=1e-6)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@KINDS
@pytest.mark.parametrize("form", ["sparse", "sparse_lora", "sparse_plus_low_rank"])
def test_trained_entries_get_the_gradients_of_dense_autograd(kind, form):
    model, batch = tiny_experts.model_of(kind), tiny_experts.batch()
    plain, dense = model(**batch), dense_gradients(model, batch)
    te.install(model, te.select(model, [batch], per_neuron=2), form=form)
    output = model(**batch)
    assert torch.allclose(output.logits, plain.logits, atol=1e-6)
    output.loss.backward()
    experts = 0
    for name, layer in sparse_layers(model).items():
        linear = linears(model)[name]
        stack = dense[linear.parameter]
        whole = matrix(linear, stack) if isinstance(layer, ExpertLinear) else linear.adapter.matrix(stack)
        experts += isinstance(layer, ExpertLinear)
        if form != "sparse_lora":
            assert torch.allclose(
                layer.entries.offsets.grad, whole[layer.entries.rows, layer.entries.columns], atol=1e-6
            )
    assert experts > 8
    te.fuse(model)


@KINDS
def test_a_delta_goes_there_and_back_bit_for_bit(kind, tmp_path):
    model, batch = tiny_experts.model_of(kind), tiny_experts.batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    te.install(model, te.select(model, [batch], per_neuron=1))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for seed in range(3):
        optimizer.zero_grad()
        model(**tiny_experts.batch(seed)).loss.backward()
        optimizer.step()
    te.save(te.extract(model), tmp_path / "delta.safetensors")
    state = {name: value.clone() for name, value in model.state_dict().items() if name in before}
    te.fuse(model)
    fused = {name: value.clone() for name, value in model.state_dict().items()}
    assert fused.keys() == before.keys()
    assert all(torch.equal(state[name], fused[name]) for name in before)
    assert any("experts" in name and not torch.equal(fused[name], before[name]) for name in before)
    model.load_state_dict(before)
    te.apply(model, te.load(tmp_path / "delta.safetensors"))
    assert all(torch.equal(model.state_dict()[name], fused[name]) for name in before)
    te.revert(model)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def test_a_moved_model_keeps_its_trained_experts():
    model, batch = tiny_experts.model_of("mixtral"), tiny_experts.batch()
    te.install(model, te.select(model, [batch], per_neuron=1))
    for layer in sparse_layers(model).values():
        layer.entries.offsets.data += 0.5
    twin = copy.deepcopy(model).to(torch.bfloat16)
    expected = te.fuse(model).to(torch.bfloat16)(**batch).logits
    assert torch.allclose(twin(**batch).logits, expected, atol=0.1)
    te.fuse(twin)
    assert all(torch.equal(twin.state_dict()[name], value) for name, value in model.state_dict().items())


def test_an_expert_that_no_token_reaches_is_left_out_and_stated():
    model, batch = tiny_experts.model_of("mixtral"), tiny_experts.batch()
    for module in model.modules():
        if type(module).__name__ == "MixtralTopKRouter":
            with torch.no_grad():
                module.weight[3] = 0.0
                module.weight[:3] = module.weight[:3].abs()
            module.register_forward_pre_hook(lambda _, args: (args[0].abs() + 1.0,))  # the last never wins
    support = te.select(model, [batch], per_neuron=1)
    idle = [name for name in linears(model) if ".experts.3." in name]
    assert support.settings["never_ran"] == idle
    assert not set(idle) & support.linears.keys()
    assert "left out: 4 linears that never ran" in str(support)


def test_a_whole_stack_may_train_beside_entries_of_another():
    model, batch = tiny_experts.model_of("mixtral"), tiny_experts.batch()
    dense = dense_gradients(model, batch)
    chosen = te.select(model, [batch], per_neuron=1, linears=["*.gate_up_proj"])
    te.install(model, chosen, trainable=["*.experts.down_proj"])
    model(**batch).loss.backward()
    name = "model.layers.0.mlp.experts.down_proj"
    assert torch.allclose(model.get_parameter(name).grad, dense[name], atol=1e-6)
    te.fuse(model)
    with pytest.raises(InputError, match=r"experts.gate_up_proj' carries entries"):
        te.install(model, chosen, trainable=["*.experts.gate_up_proj"])


def test_a_patch_names_positions_in_the_parameter_of_all_experts(tmp_path):
    model, batch = tiny_experts.model_of("gpt_oss"), tiny_experts.batch()
    te.install(model, te.select(model, [batch], per_neuron=1))
    for layer in sparse_layers(model).values():
        layer.entries.offsets.data += 0.5
    delta = te.extract(model)
    te.fuse(model)
    merged = {name: value.clone() for name, value in model.state_dict().items()}
    base = tiny_experts.model_of("gpt_oss")
    te.export(base, delta, tmp_path / "patch", to="patch")
    from safetensors.torch import load_file

    patched = {name: value.clone() for name, value in base.state_dict().items()}
    tensors = load_file(tmp_path / "patch")
    for name in {name.rpartition(".")[0] for name in tensors}:
        patched[name].view(-1)[tensors[f"{name}.indices"].long()] = tensors[f"{name}.values"]
    assert all(torch.equal(patched[name], merged[name]) for name in merged)
    with pytest.raises(InputError, match="one expert of several"):
        te.export(base, delta, tmp_path / "lora", to="peft")


class Unusual(torch.nn.Module):
    """Experts whose eager code changes a weight before it multiplies."""

    is_transposed, has_gate = False, True

    def __init__(self):
        super().__init__()
        self.gate_up_proj = torch.nn.Parameter(torch.randn(2, 4, 4))

    def forward(self, x):
        return x @ torch.relu(self.gate_up_proj[0])

    forward.__wrapped__ = forward


def test_code_that_uses_a_weight_otherwise_is_refused():
    module = Unusual()
    experts = [linear.module for linear in linears(module).values()]
    with exposed(experts), torch.no_grad(), pytest.raises(InputError, match=r"than as a product \(relu\)"):
        module(torch.randn(3, 4))
    assert module(torch.randn(3, 4)).shape == (3, 4)


def test_a_whole_stack_is_no_other_operand_either():
    found = [linear.module for linear in experts_of(tiny_experts.model_of("llama4")).values()]
    with pytest.raises(InputError, match=r"than as a product \(matmul\)"):
        torch.matmul(torch.ones(4, 2, 16), _Stack(found[: tiny_experts.EXPERTS]))
