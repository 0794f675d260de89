"""A sparse layer computes what its linear does, trains the chosen entries, and keeps nothing else."""

import copy

import pytest
import tiny
import torch
from sparse_models import (
    KERNELS,
    SHARED,
    Attention,
    Made,
    backward,
    compare,
    dense_twin,
    installed,
    saved_bytes,
    stored_columns,
    support_of,
)
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

import taskedge as te
from taskedge.backbone.layers import linears
from taskedge.forms.kernels import force_kernel
from taskedge.forms.sparse import SparseLayer, sparse_layers
from taskedge.selection.support import LayerSupport, Support

pytestmark = pytest.mark.usefixtures("gather_on_tiny_layers")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6), (2, 2, 3, 6), (0, 6)])
@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 4), lambda: nn.Linear(6, 4, bias=False), lambda: Conv1D(4, 6)])
def test_gradients_are_those_of_dense_autograd(make, shape, kernel):
    layer = make()
    twin = dense_twin(layer)
    installed(layer)
    x = torch.randn(shape)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    with force_kernel(kernel):
        for one, given in zip((layer, twin), inputs, strict=True):
            one(given).square().sum().backward()
    compare(layer, twin)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_whole_model_has_the_gradients_of_dense_autograd(model, kernel):
    twin = dense_twin(model)
    installed(model)
    given = tiny.batch(model)
    with force_kernel(kernel):
        for one in (model, twin):
            tiny.loss(one, given).backward()
    compare(model, twin)


@pytest.mark.parametrize("per_neuron", [None, 1])
def test_few_columns_of_every_input_have_the_gradients_of_dense_autograd_and_are_all_that_is_saved(model, per_neuron):
    support = te.select(model, [tiny.batch(model)], columns=2, per_neuron=per_neuron)
    twin = dense_twin(model)
    before = tiny.state(twin)
    te.install(model, support)
    stored = {id(layer.entries.shared_input): layer.entries.shared_input for layer in sparse_layers(model).values()}
    assert all(len(shared.columns) <= 2 for shared in stored.values())
    assert len(stored) == len({linear.shared_input for linear in support.linears.values()})
    for one in (model, twin):
        tiny.loss(one, tiny.batch(model)).backward()
    compare(model, twin)
    delta = te.extract(tiny.train(model))
    applied = te.apply(copy.deepcopy(twin), delta)
    assert not tiny.same_bits(applied.state_dict(), before)
    assert tiny.same_bits(te.revert(applied).state_dict(), before)


def test_the_forward_pass_is_bit_equal_to_the_untouched_model(model):
    given = tiny.batch(model)
    before = tiny.logits(model, given)
    installed(model)
    assert torch.equal(tiny.logits(model, given), before)
    with torch.no_grad():
        assert torch.equal(tiny.logits(model, given), before)


def test_a_layer_used_twice_in_a_forward_pass():
    model = nn.Linear(6, 6)
    twin = dense_twin(model)
    installed(model)
    x = torch.randn(5, 6)
    backward(model, twin, lambda one: one(torch.tanh(one(x))) + one(x))
    compare(model, twin)


def test_an_input_that_is_changed_in_place_after_the_layer_keeps_the_right_gradient():
    layer = nn.Linear(6, 4)
    twin = dense_twin(layer)
    installed(layer)
    x = torch.randn(5, 6)
    layer(x.clone()).sum().backward()
    twin(x).sum().backward()
    changed = x.clone()
    output = layer(changed)
    changed.zero_()  # dense autograd would refuse; the sparse layer keeps its own columns
    layer.entries.offsets.grad = None
    output.sum().backward()
    compare(layer, twin)


def test_an_activation_in_place_after_the_layer():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 2))
    twin = dense_twin(model)
    installed(model)
    x = torch.randn(7, 6)

    def run(one):
        hidden = one[:3](x)
        hidden += 1
        return one[3:](hidden.mul_(2))

    backward(model, twin, run)
    compare(model, twin)


def test_the_bias_trains_at_the_same_time(bert):
    twin = dense_twin(bert)
    installed(bert, trainable=["*.bias"])
    given = tiny.batch(bert)
    for one in (bert, twin):
        tiny.loss(one, given).backward()
    compare(bert, twin)
    theirs = dict(twin.named_parameters())
    for name, parameter in bert.named_parameters():
        if name.endswith(".bias"):
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-5, atol=1e-6)


def test_only_chosen_entries_move_and_they_move_as_the_optimizer_says(bert):
    before = tiny.state(bert)
    installed(bert)
    tiny.train(bert)
    after = bert.state_dict()
    for name, layer in sparse_layers(bert).items():
        chosen = torch.zeros(linears(bert)[name].shape, dtype=torch.bool)
        chosen[layer.entries.rows, layer.entries.columns] = True
        old, new = (linears(bert)[name].adapter.matrix(state[f"{name}.weight"]) for state in (before, after))
        assert torch.equal(old[~chosen], new[~chosen])
        assert torch.equal(new[chosen], layer.entries.values)
        torch.testing.assert_close(new[chosen], old[chosen] + layer.entries.offsets.detach())
        assert not torch.equal(old[chosen], new[chosen])


def test_training_equals_dense_training_with_a_masked_gradient():
    model = tiny.mlp()
    twin = dense_twin(model)
    installed(model)
    masks = {}
    for name, layer in sparse_layers(model).items():
        masks[name] = torch.zeros(layer._parameters["weight"].shape)
        masks[name][layer.entries.rows, layer.entries.columns] = 1
    ours = torch.optim.SGD(tiny.trained(model), lr=0.1, momentum=0.9)
    theirs = torch.optim.SGD([linears(twin)[name].module.weight for name in masks], lr=0.1, momentum=0.9)
    for step in range(5):
        for one, optimizer in ((model, ours), (twin, theirs)):
            optimizer.zero_grad()
            tiny.loss(one, tiny.batch(one, seed=step)).backward()
            if one is twin:
                for name, mask in masks.items():
                    linears(twin)[name].module.weight.grad.mul_(mask)
            optimizer.step()
    for name in masks:
        torch.testing.assert_close(model.get_submodule(name).weight, linears(twin)[name].module.weight)


# -- what training keeps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_the_used_columns_are_saved_once_for_each_distinct_input(bert, precision):
    lowest = "bert.embeddings.LayerNorm.bias"
    given = tiny.batch(bert, rows=4, tokens=6)
    shared_inputs = {}
    for name in linears(bert):
        for reader in ("key", "value"):
            if name.endswith(f"self.{reader}"):
                shared_inputs[name] = name.removesuffix(reader) + "query"
    support = support_of(bert, shared_inputs=shared_inputs)
    inside = {name: linear for name, linear in support.linears.items() if ".encoder." in name}

    def run(one):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return tiny.logits(one, given)

    frozen = copy.deepcopy(bert).requires_grad_(False)
    for name, parameter in frozen.named_parameters():
        parameter.requires_grad_(name == lowest or name.startswith("classifier."))
    limit, _ = saved_bytes(frozen, run)
    te.install(bert, Support(inside, support.model_parameters), trainable=[lowest, "classifier"])
    ours, _ = saved_bytes(bert, run)
    width = 4 if precision == "fp32" else 2
    assert stored_columns(bert) < sum(len(linear.distinct_columns) for linear in inside.values())  # some are shared
    assert ours == limit + 4 * 6 * width * stored_columns(bert)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("make", [lambda: nn.Linear(37, 53), lambda: Conv1D(53, 37)])
def test_no_copy_of_the_weight_and_no_dense_gradient_is_ever_made(make, kernel):
    layer = make()
    support = LayerSupport.from_flat((53, 37), torch.arange(53) * 37 + 5, "")
    te.install(layer, Support({"": support}, 2000), trainable=[])
    optimizer = torch.optim.AdamW(tiny.trained(layer), lr=0.1)
    x = torch.randn(11, 37, requires_grad=True)
    with force_kernel(kernel), Made(list(layer.parameters())) as watch:
        for _ in range(2):
            layer(x).square().sum().backward()
            optimizer.step()
    assert watch.made
    assert max(tensor.numel() for tensor in watch.made) < 37 * 53
    assert layer._parameters["weight"].grad is None


def test_the_optimizer_keeps_state_for_the_entries_alone(bert):
    installed(bert, trainable=[])
    optimizer = torch.optim.AdamW(tiny.trained(bert), lr=0.1)
    tiny.loss(bert, tiny.batch(bert)).backward()
    optimizer.step()
    entries = sum(len(layer.entries.offsets) for layer in sparse_layers(bert).values())
    moments = [value for state in optimizer.state.values() for value in state.values() if value.numel() > 1]
    assert sum(value.numel() for value in moments) == 2 * entries


# -- modes, precision, and what else a training loop does ------------------------------------------------------------


def test_autocast_to_bfloat16(bert):
    twin = dense_twin(bert)
    installed(bert)
    given = tiny.batch(bert)
    outputs = []
    for one in (bert, twin):
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(tiny.logits(one, given))
        outputs[-1].float().square().sum().backward()
    assert torch.equal(*outputs)
    for layer in sparse_layers(bert).values():
        assert layer.entries.offsets.grad.dtype == torch.float32
    compare(bert, twin, rtol=5e-2, atol=5e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_another_dtype_trains_fp32_offsets(dtype):
    model = tiny.mlp().to(dtype)
    twin = dense_twin(model)
    installed(model)
    x = torch.randn(9, 12, dtype=dtype)
    for one in (model, twin):
        one(x).float().square().sum().backward()
    compare(model, twin, rtol=3e-2, atol=3e-3)
    assert {layer.entries.offsets.dtype for layer in sparse_layers(model).values()} == {torch.float32}


def test_gradient_accumulation_and_clipping(bert):
    twin = dense_twin(bert)
    installed(bert)
    for one in (bert, twin):
        for seed in range(3):
            (tiny.loss(one, tiny.batch(one, seed=seed)) / 3).backward()
    compare(bert, twin)
    offsets = tiny.trained(bert)
    norm = torch.linalg.vector_norm(torch.cat([offset.grad for offset in offsets]))
    assert nn.utils.clip_grad_norm_(offsets, float(norm) / 2).item() == pytest.approx(norm.item())
    clipped = torch.linalg.vector_norm(torch.cat([offset.grad for offset in offsets]))
    assert clipped.item() == pytest.approx(norm.item() / 2, rel=1e-4)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    model = nn.Sequential(Attention(), nn.Linear(5, 6), nn.ReLU(inplace=True), Attention())
    twin = dense_twin(model)
    shared_inputs = {f"{part}.{name}": f"{part}.query" for part in (0, 3) for name in SHARED}
    installed(model, shared_inputs=shared_inputs)
    x = torch.randn(3, 4, 6, requires_grad=True)

    def run(one):
        return checkpoint(one[3:], checkpoint(one[:3], x, use_reentrant=reentrant), use_reentrant=reentrant)

    run(model).square().sum().backward()
    twin(x).square().sum().backward()
    compare(model, twin)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_gradient_checkpointing_of_transformers():
    model = tiny.bert()
    twin = dense_twin(model)
    installed(model)
    model.gradient_checkpointing_enable()
    given = tiny.batch(model)
    for one in (model.train(), twin.train()):
        tiny.loss(one, given).backward()
    compare(model, twin)


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
def test_evaluation_between_training_steps(bert, quiet):
    installed(bert)
    optimizer = torch.optim.SGD(tiny.trained(bert), lr=0.5)
    given = tiny.batch(bert)
    seen = []
    for _ in range(3):
        bert.train()
        optimizer.zero_grad()
        tiny.loss(bert, given).backward()
        optimizer.step()
        bert.eval()
        with quiet():
            output = tiny.logits(bert, given)
        assert not output.requires_grad
        seen.append(output.clone())
        assert torch.equal(tiny.logits(bert, given), seen[-1])  # the weight it wrote serves training too
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(tiny.logits(te.fuse(copy.deepcopy(bert)), given), seen[-1])


def test_frozen_offsets_leave_a_plain_layer():
    layer = installed(nn.Linear(4, 3))
    layer.requires_grad_(False)
    assert not layer(torch.randn(2, 4)).requires_grad


def test_a_weight_that_is_not_contiguous():
    layer = nn.Linear(6, 6)
    layer.weight = nn.Parameter(torch.randn(12, 6).t()[:, ::2])
    assert not layer.weight.is_contiguous()
    twin = dense_twin(layer)
    installed(layer)
    x = torch.randn(4, 6)
    backward(layer, twin, lambda one: one(x))
    compare(layer, twin)
    before = twin.weight.detach().clone()
    layer.entries.offsets.data.fill_(0.25)
    chosen = layer.entries.rows, layer.entries.columns
    before[chosen] += 0.25
    assert torch.equal(layer.weight, before)


# -- copies, files, hooks --------------------------------------------------------------------------------------------


def test_a_deep_copy_is_independent_and_both_train():
    model = installed(Attention(), shared_inputs=SHARED)
    x = torch.randn(4, 6)
    model(x).sum().backward()
    twin = copy.deepcopy(model)
    mine = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    assert not mine & {tensor.untyped_storage().data_ptr() for tensor in twin.state_dict().values()}
    assert twin.query.entries.shared_input is twin.key.entries.shared_input is not model.query.entries.shared_input
    before = model(x)
    optimizer = torch.optim.SGD(tiny.trained(twin), lr=0.5)
    for _ in range(2):
        twin(x).square().sum().backward()
        optimizer.step()
    assert torch.equal(model(x), before)
    assert not torch.equal(twin(x), before)
    model.query.entries.offsets.data.fill_(1.0)
    after = twin(x)
    model(x)
    assert torch.equal(twin(x), after)
    te.fuse(twin)
    assert isinstance(model.query, SparseLayer)
    assert type(twin.query) is nn.Linear


def test_a_pre_hook_that_changes_the_input():
    layer = nn.Linear(6, 4)
    layer.register_forward_pre_hook(lambda module, given: (given[0] * 3,))
    twin = dense_twin(layer)
    installed(layer)
    x = torch.randn(5, 6)
    backward(layer, twin, lambda one: one(x))
    compare(layer, twin)


def test_a_hook_that_changes_the_output_and_one_that_came_later():
    layer = nn.Linear(6, 4)
    layer.register_forward_hook(lambda module, given, output: output.tanh())
    twin = dense_twin(layer)
    installed(layer)
    for one in (layer, twin):
        one.register_forward_hook(lambda module, given, output: output * 2)
    x = torch.randn(5, 6)
    assert torch.equal(layer(x), twin(x))
    backward(layer, twin, lambda one: one(x))
    compare(layer, twin)


def test_full_backward_hooks():
    model = Attention()
    twin = dense_twin(model)
    installed(model, shared_inputs=SHARED)
    seen = [[], []]
    for one, log in zip((model, twin), seen, strict=True):
        one.key.register_full_backward_hook(lambda _, given, received, log=log: log.append((*given, *received)))
        one.key.register_full_backward_pre_hook(lambda module, received: tuple(2 * gradient for gradient in received))
    inputs = [torch.ones(4, 6).cumsum(0).mul(0.1).requires_grad_() for _ in range(2)]
    for one, x in zip((model, twin), inputs, strict=True):
        one(x).square().sum().backward()
    compare(model, twin)
    torch.testing.assert_close(*seen)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


def test_a_tensor_hook_on_the_offsets_is_called():
    layer = installed(nn.Linear(6, 4))
    layer.entries.offsets.register_hook(torch.zeros_like)
    layer(torch.randn(3, 6)).sum().backward()
    assert not layer.entries.offsets.grad.any()


def test_an_argument_given_by_name():
    layer = installed(nn.Linear(6, 4))
    x = torch.randn(3, 6)
    assert torch.equal(layer(input=x), layer(x))


def test_features_made_in_inference_mode_train_as_well():
    layer = nn.Linear(6, 4)
    twin = dense_twin(layer)
    installed(layer)
    with torch.inference_mode():
        x = torch.randn(3, 6)
    backward(layer, twin, lambda one: one(x if one is layer else x.clone()))
    compare(layer, twin)


def test_a_linear_without_entries_trains_nothing():
    layer = installed(nn.Linear(6, 4), entries=0)
    layer(torch.randn(3, 6)).sum().backward()
    assert layer.entries.offsets.grad.shape == (0,)
