"""``install`` freezes all but the named parameters, an error leaves no trace, and ``fuse`` undoes it."""

import copy
import math
from dataclasses import replace

import pytest
import tiny
import torch
from torch import nn

import taskedge as te
from taskedge.backbone.candidates import candidates
from taskedge.backbone.layers import linears
from taskedge.errors import InputError
from taskedge.forms.install import installation, require_installation, step_sizes
from taskedge.forms.sparse import SparseLayer, sparse_layers
from taskedge.selection.support import LayerSupport, Support


def chosen(model, **options):
    return te.select(model, **({"rule": "magnitude"} | (options or {"per_neuron": 1})))


def snapshot(model):
    """Return everything that a failed install could have changed."""
    return (
        {name: tiny.bits(tensor).tolist() for name, tensor in model.state_dict().items()},
        {name: (type(module), sorted(module.__dict__)) for name, module in model.named_modules()},
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
    )


def test_only_the_entries_and_the_head_train(model):
    support = chosen(model)
    assert te.install(model, support) is model
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    heads = {name for name in names if not name.endswith(".entries.offsets")}
    assert names - heads == {f"{name}.entries.offsets" for name in support.linears}
    assert heads == set(require_installation(model).full_parameters)
    assert heads
    assert sum(parameter.numel() for name, parameter in model.named_parameters() if name in names - heads) == (
        support.num_entries
    )


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        ([], set()),
        (["classifier"], {"classifier.weight", "classifier.bias"}),
        (["classifier.bias"], {"classifier.bias"}),
        (["*.1.*LayerNorm.bias"], {f"bert.encoder.layer.1.{part}output.LayerNorm.bias" for part in ("", "attention.")}),
    ],
)
def test_full_parameters_can_be_named_or_matched(bert, trainable, expected):
    te.install(bert, chosen(bert), trainable=trainable)
    names = {name for name, parameter in bert.named_parameters() if parameter.requires_grad}
    assert {name for name in names if "entries" not in name} == expected


def test_objects_names_and_hooks_stay(bert):
    before = dict(bert.named_modules())
    te.install(bert, chosen(bert))
    after = dict(bert.named_modules())
    assert all(after[name] is module for name, module in before.items())
    layer = bert.bert.encoder.layer[0].attention.self.query
    assert isinstance(layer, nn.Linear)
    assert isinstance(layer, SparseLayer)
    assert type(layer).__name__ == "SparseLinear"
    assert set(linears(bert)) == set(linears(tiny.bert()))


def test_an_installed_conv1d_is_still_a_linear():
    model = tiny.gpt2()
    names = set(linears(model))
    te.install(model, chosen(model))
    assert set(linears(model)) == names


def test_a_lone_linear():
    layer = nn.Linear(4, 3)
    te.install(layer, chosen(layer, budget=0.2), trainable=["bias"])
    layer(torch.randn(2, 4)).sum().backward()
    assert layer.entries.offsets.grad is not None
    assert layer.bias.grad is not None
    assert type(te.fuse(layer)) is nn.Linear


def test_fuse_leaves_plain_layers_with_the_trained_values(model):
    model.requires_grad_(True)
    next(model.parameters()).requires_grad_(False)
    plain = snapshot(model)
    before = tiny.state(model)
    support = chosen(model)
    tiny.train(te.install(model, support))
    values = {name: layer.entries.values for name, layer in sparse_layers(model).items()}
    outputs = tiny.logits(model, tiny.batch(model))
    assert te.fuse(model) is model
    assert torch.equal(tiny.logits(model, tiny.batch(model)), outputs)
    assert snapshot(model)[1:] == plain[1:]
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, linear in linears(model).items():
        if name in values:
            entries = support.linears[name]
            assert torch.equal(linear.weight[entries.rows, entries.columns], values[name])
    changed = sum(int((after[name] != before[name]).sum()) for name in before)
    heads = sum(after[name].numel() for name in after if name.startswith(("classifier", "score", "head")))
    assert support.num_entries <= changed <= support.num_entries + heads
    assert installation(model) is None
    te.install(model, support)  # and again


def test_fuse_without_training_changes_no_bit(model):
    model.get_submodule(next(iter(chosen(model).linears))).weight.data[:] = -0.0
    before = tiny.state(model)
    te.fuse(te.install(model, chosen(model, rule="random", per_neuron=1)).to("cpu").float())
    assert tiny.same_bits(model.state_dict(), before)


def test_nothing_installed():
    for verb in (te.fuse, te.extract):
        with pytest.raises(InputError, match="no support installed: call taskedge"):
            verb(tiny.mlp())


def wrong_name(support):
    return Support({"secnnd": next(iter(support.linears.values()))}, support.model_parameters)


def wrong_shape(support):
    some = LayerSupport.from_flat((5, 5), torch.tensor([3]), "second")
    return Support(support.linears | {"second": some}, support.model_parameters)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (wrong_name, {}, r"no linear 'secnnd'; did you mean 'second'\?"),
        (wrong_shape, {}, r"linear 'second' is \[8, 10\], but the support was made for \[5, 5\]"),
        (lambda support: Support({}, 1), {}, "the support is empty"),
        (lambda support: support, {"trainable": ["haed"]}, "no parameter is named 'haed'"),
        (lambda support: support, {"trainable": ["head", "*.wight"]}, "no parameter is named"),
        (lambda support: support, {"step": "actvtion"}, r"unknown step 'actvtion'; did you mean 'activation'\?"),
        (lambda support: support, {"step": "activation"}, "needs the input norms of 'first'"),
        (lambda support: support, {"trainable": ["first"]}, r"'first\.weight' carries entries"),
        (lambda support: support, {"trainable": ["*"]}, "carries entries"),
    ],
)
def test_a_failed_install_leaves_the_model_unchanged(mlp, change, options, message):
    support = change(chosen(mlp))
    mlp.first.weight.requires_grad_(False)
    before = snapshot(mlp)
    with pytest.raises(InputError, match=message):
        te.install(mlp, support, **options)
    assert snapshot(mlp) == before


def test_a_head_with_entries_cannot_train_in_full(mlp):
    support = chosen(mlp, linears=["*"], budget="50%")
    with pytest.raises(InputError, match=r"'head\.weight' carries entries"):
        te.install(mlp, support)
    te.install(mlp, support, trainable=["head.bias"])


def test_an_integer_parameter_cannot_train(mlp):
    mlp.codes = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    support = chosen(mlp)
    before = snapshot(mlp)
    with pytest.raises(InputError, match=r"'codes' is torch\.int8"):
        te.install(mlp, support, trainable=["codes"])
    assert snapshot(mlp) == before


@pytest.mark.parametrize("make", [tiny.mlp, tiny.gpt2])
def test_a_second_support_is_refused_on_the_model_and_around_it(make):
    model = make()
    support = chosen(model)
    te.install(model, support)
    before = snapshot(model)
    with pytest.raises(InputError, match="already trains a support: fuse it"):
        te.install(model, support)
    outer = nn.Module()
    outer.inner = model
    wrapped = Support({f"inner.{name}": linear for name, linear in support.linears.items()}, support.model_parameters)
    with pytest.raises(InputError, match="already trains entries: fuse"):
        te.install(outer, wrapped, trainable=[])
    assert snapshot(model) == before


def test_linears_that_cannot_carry_entries_are_refused():
    model = tiny.mlp()
    support = chosen(model)
    model.third = nn.Linear(10, 8)
    model.third.weight = model.second.weight
    before = snapshot(model)
    with pytest.raises(InputError, match="'second' cannot carry entries: its weight is tied"):
        te.install(model, support)
    assert snapshot(model) == before

    attention = nn.Module()
    attention.inner = nn.MultiheadAttention(4, 2)
    given = Support({"inner.out_proj": LayerSupport.from_flat((4, 4), torch.tensor([1]), "inner.out_proj")}, 84)
    with pytest.raises(InputError, match="MultiheadAttention"):
        te.install(attention, given, trainable=[])


def test_the_step_of_an_entry_follows_its_input(bert):
    support = te.select(bert, [tiny.batch(bert)], per_neuron=1, rule="random")
    te.install(bert, support, step="activation")
    for name, layer in sparse_layers(bert).items():
        rms = support.linears[name].input_rms
        expected = (rms.square().mean().sqrt() / rms[layer.entries.columns]).clamp(0.01, 100)
        torch.testing.assert_close(layer.entries.step, expected)
    tiny.train(bert)
    outputs = tiny.logits(bert, tiny.batch(bert))
    assert torch.equal(tiny.logits(te.fuse(copy.deepcopy(bert)), tiny.batch(bert)), outputs)


def test_a_dead_input_gives_a_bounded_step():
    layer = nn.Linear(3, 2)
    support = te.select(layer, [torch.tensor([[1.0, 0.0, 1.0]])], rule="random", per_neuron=3)
    te.install(layer, support, step="activation", step_exponent=0, trainable=[])
    assert layer.entries.step.max() == 100.0


def test_the_step_of_an_entry_falls_with_the_entries_of_its_neuron(bert):
    support = te.select(bert, [tiny.batch(bert)], budget="10%", allocation="global")
    plain = te.install(copy.deepcopy(bert), support, step="activation", step_exponent=0)
    scaled = te.install(copy.deepcopy(bert), support, step="activation", step_exponent=0.5)
    counts_seen = set()
    for name, layer in sparse_layers(scaled).items():
        counts = torch.bincount(support.linears[name].rows)[support.linears[name].rows]
        counts_seen |= set(counts.tolist())
        torch.testing.assert_close(layer.entries.step, sparse_layers(plain)[name].entries.step / counts.sqrt())
    assert {1, 2, 3} <= counts_seen


def test_with_one_entry_per_neuron_steps_have_the_bits_that_they_had(bert):
    support = te.select(bert, [tiny.batch(bert)], per_neuron=1)
    for name, linear in support.linears.items():
        ratio = linear.input_rms.square().mean().sqrt() / linear.input_rms[linear.columns].clamp_min(1e-12)
        assert torch.equal(step_sizes(name, linear), ratio.clamp(1 / 100.0, 100.0))


@pytest.mark.parametrize(("entries", "allocation"), [(100, None), (20, None), (500, None), (300, "global")])
def test_steps_grow_as_fewer_neurons_have_entries(bert, entries, allocation):
    """In inverse proportion to their share, down to a tenth."""
    budget = entries / sum(p.numel() for p in bert.parameters())
    support = te.select(bert, [tiny.batch(bert)], budget=budget, allocation=allocation)
    with_entries = sum(len(set(linear.rows.tolist())) for linear in support.linears.values())
    share = with_entries / sum(layer.shape[0] for layer in candidates(bert).values())
    assert support.num_entries == entries
    assert support.neuron_share == pytest.approx(share)
    assert (share < 0.1, share == 1) == (entries == 20, entries == 500)
    without = replace(support, settings={})
    trained = te.install(bert, support, step="activation", step_exponent=0)
    for name, layer in sparse_layers(trained).items():
        plain = step_sizes(name, without.linears[name], 0.0)
        torch.testing.assert_close(layer.entries.step, plain / max(share, 0.1))


def test_the_steps_of_older_supports_are_as_they_were(bert):
    support = te.select(bert, [tiny.batch(bert)], budget="0.1%")
    older = replace(support, settings={"seed": 0})
    assert support.neuron_share < 1
    assert older.neuron_share == 1
    for name, layer in sparse_layers(te.install(bert, older, step="activation")).items():
        assert torch.equal(layer.entries.step, step_sizes(name, older.linears[name]))


@pytest.mark.parametrize("share", [0, -1, 1.5, math.nan, "many", None])
def test_a_broken_share_of_neurons_is_refused(bert, share):
    support = te.select(bert, [tiny.batch(bert)], per_neuron=1)
    with pytest.raises(InputError, match="of its neurons: select it again"):
        te.install(bert, replace(support, settings={"neuron_share": share}), step="activation")


@pytest.mark.parametrize("exponent", [-0.1, 1.5, math.nan])
def test_an_exponent_outside_its_range_is_refused(mlp, exponent):
    support = te.select(mlp, [tiny.batch(mlp)], per_neuron=1)
    with pytest.raises(InputError, match="no exponent of the steps: give a number from 0 to 1"):
        te.install(mlp, support, step="activation", step_exponent=exponent)
