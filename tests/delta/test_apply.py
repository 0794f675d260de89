"""Apply and revert are exact to the bit; a delta that does not fit leaves the model unchanged."""

import copy
import dataclasses

import pytest
import tiny
import torch
from torch import nn

import taskedge as te
from taskedge.backbone.layers import linears
from taskedge.delta.apply import applied_to, base_difference, force_apply
from taskedge.errors import BaseMismatch, InputError


def tuned(make, lr=3e-2, dtype=torch.float32, **options):
    model = make().to(dtype)
    support = te.select(model, **({"rule": "random", "budget": "2%"} | options))
    te.install(model, support)
    return tiny.train(model, lr=lr) if dtype == torch.float32 else model


@pytest.mark.parametrize("make", list(tiny.MODELS.values()), ids=list(tiny.MODELS))
@pytest.mark.parametrize("allocation", ["per_neuron", "global"])
def test_from_select_to_revert(make, allocation, tmp_path):
    """select, install, a plain loop, extract, save, load, apply on a fresh model, revert, fuse."""
    model = make()
    support = te.select(model, [tiny.batch(model)], budget="2%", allocation=allocation)
    tiny.train(te.install(model, support))
    given = tiny.batch(model, seed=9)
    expected = tiny.logits(model, given)
    te.save(te.extract(model), tmp_path / "task.safetensors")

    fresh = make()
    before = tiny.state(fresh)
    untrained = tiny.logits(fresh, given)
    delta = te.load(tmp_path / "task.safetensors")
    assert te.apply(fresh, delta) is fresh
    assert torch.equal(tiny.logits(fresh, given), expected)
    assert te.revert(fresh, delta) is fresh
    assert tiny.same_bits(fresh.state_dict(), before)
    assert torch.equal(tiny.logits(fresh, given), untrained)
    with te.applied(fresh, delta) as changed:
        assert torch.equal(tiny.logits(changed, given), expected)
    assert tiny.same_bits(fresh.state_dict(), before)

    te.fuse(model)
    assert torch.equal(tiny.logits(model, given), expected)
    te.apply(fresh, delta)
    assert tiny.same_bits(fresh.state_dict(), model.state_dict())


def test_applying_twice_is_harmless_and_needs_one_revert(mlp, tmp_path):
    delta = te.extract(tuned(tiny.mlp))
    before = tiny.state(mlp)
    te.apply(mlp, delta)
    once = tiny.state(mlp)
    te.apply(mlp, delta)
    te.apply(mlp, te.load(te.save(delta, tmp_path / "x")))
    assert tiny.same_bits(mlp.state_dict(), once)
    te.revert(mlp)
    assert tiny.same_bits(mlp.state_dict(), before)
    with pytest.raises(InputError, match="nothing to revert"):
        te.revert(mlp)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_revert_gives_back_every_bit_of_odd_values(dtype):
    delta = te.extract(tuned(tiny.mlp, dtype=dtype))
    odd = torch.tensor([-0.0, 0.0, torch.finfo(dtype).smallest_normal / 2, torch.finfo(dtype).max, torch.nan])
    model = tiny.mlp().to(dtype)
    for linear in linears(model).values():
        linear.weight.copy_(odd.repeat(linear.weight.numel())[: linear.weight.numel()].view(linear.shape))
    before = tiny.state(model)
    te.apply(model, delta, force=True)
    assert not tiny.same_bits(model.state_dict(), before)
    te.revert(model, delta)
    assert tiny.same_bits(model.state_dict(), before)


def test_a_half_precision_base_gets_the_values_of_the_trained_model():
    trained = tuned(tiny.mlp, dtype=torch.bfloat16)
    for module in (trained.first, trained.second):
        if "entries" in module._modules:
            module.entries.offsets.data.normal_()
    delta = te.extract(trained)
    fresh = te.apply(tiny.mlp().to(torch.bfloat16), delta)
    assert tiny.same_bits(fresh.state_dict(), te.fuse(trained).state_dict())


def test_the_block_restores_after_an_exception(mlp):
    delta = te.extract(tuned(tiny.mlp))
    before = tiny.state(mlp)

    with pytest.raises(ZeroDivisionError), te.applied(mlp, delta):
        raise ZeroDivisionError
    assert tiny.same_bits(mlp.state_dict(), before)
    assert applied_to(mlp) is None


def test_the_block_leaves_a_delta_that_was_applied_before_it(mlp):
    delta = te.extract(tuned(tiny.mlp))
    te.apply(mlp, delta)
    before = tiny.state(mlp)
    with te.applied(mlp, delta):
        pass
    assert tiny.same_bits(mlp.state_dict(), before)
    te.revert(mlp, delta)


def test_a_copy_of_the_model_reverts_by_itself(mlp):
    delta = te.extract(tuned(tiny.mlp))
    before = tiny.state(mlp)
    te.apply(mlp, delta)
    twin = copy.deepcopy(mlp)
    te.revert(twin, delta)
    assert tiny.same_bits(twin.state_dict(), before)
    assert not tiny.same_bits(mlp.state_dict(), before)


def test_another_delta_must_wait_until_the_first_is_off(mlp):
    one, other = te.extract(tuned(tiny.mlp)), te.extract(tuned(tiny.mlp, lr=1e-2))
    te.apply(mlp, one)
    before = tiny.state(mlp)
    with pytest.raises(InputError, match="another delta is applied"):
        te.apply(mlp, other)
    with pytest.raises(InputError, match="another delta than this"):
        te.revert(mlp, other)
    assert tiny.same_bits(mlp.state_dict(), before)
    te.revert(mlp, one)
    te.apply(mlp, other)


def test_a_model_that_trains_must_be_fused_first(mlp):
    delta = te.extract(tuned(tiny.mlp))
    te.install(mlp, te.select(mlp, rule="random", per_neuron=1))
    with pytest.raises(InputError, match="fuse it before"):
        te.apply(mlp, delta)


def nudge(model):
    delta_name = next(iter(te.extract(tuned(tiny.mlp)).linears))
    model.get_submodule(delta_name).weight.data += 1e-3


def without(model):
    model.second = nn.Identity()


def narrower(model):
    model.second = nn.Linear(10, 7)


def other_head(model):
    model.head = nn.Linear(8, 5)


def renamed_head(model):
    model.haed = model.head
    del model.head


def head_dtype(model):
    model.head.to(torch.float16)


def test_only_linears_are_suggested_for_a_missing_linear(mlp):
    delta = te.extract(tuned(tiny.mlp, per_neuron=1, budget=None))
    del mlp.second
    mlp.seconds = torch.nn.LayerNorm(8)
    with pytest.raises(BaseMismatch, match=r"has no linear 'second'$"):
        te.apply(mlp, delta)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nudge, r"wrong base: \d of 2 linears hold other values than the base of this delta .* 'first' first: load"),
        (without, r"wrong base: the model \(Mlp\) has no linear 'second'"),
        (narrower, r"wrong base: linear 'second' is \[7, 10\], the delta was made for \[8, 10\]"),
        (other_head, r"parameter 'head.weight' is \[5, 8\], the delta holds \[3, 8\]: .*number of labels"),
        (renamed_head, r"has no parameter 'head.weight'; did you mean 'haed.weight'"),
        (lambda model: model.half(), "the delta was trained on float32: load the base in float32"),
        (head_dtype, "parameter 'head.weight' is float16, the delta holds float32"),
    ],
)
def test_a_wrong_base_is_refused_with_the_difference(mlp, change, message):
    delta = te.extract(tuned(tiny.mlp, per_neuron=1, budget=None)).with_provenance(base="tiny/mlp")
    change(mlp)
    before = tiny.state(mlp)
    with pytest.raises(BaseMismatch, match=message):
        te.apply(mlp, delta)
    assert tiny.same_bits(mlp.state_dict(), before)
    assert applied_to(mlp) is None


@pytest.mark.parametrize("change", [nudge, lambda model: model.half(), head_dtype])
def test_a_wrong_base_of_the_right_shape_can_be_forced_and_reverted(mlp, change):
    delta = te.extract(tuned(tiny.mlp, per_neuron=1, budget=None))
    change(mlp)
    before = tiny.state(mlp)
    te.apply(mlp, delta, force=True)
    linear = delta.linears["first"]
    assert torch.equal(mlp.first.weight[linear.rows, linear.columns], linear.values.to(mlp.first.weight.dtype))
    te.revert(mlp)
    assert tiny.same_bits(mlp.state_dict(), before)


@pytest.mark.parametrize("change", [without, narrower, other_head])
def test_wrong_names_and_shapes_cannot_be_forced(mlp, change):
    delta = te.extract(tuned(tiny.mlp, per_neuron=1, budget=None))
    change(mlp)
    before = tiny.state(mlp)
    with pytest.raises(BaseMismatch):
        te.apply(mlp, delta, force=True)
    assert tiny.same_bits(mlp.state_dict(), before)


def test_values_that_the_base_cannot_hold_are_refused(mlp):
    delta = te.extract(tuned(tiny.mlp, per_neuron=1, budget=None, dtype=torch.float16))
    first = delta.linears["first"]
    huge = dataclasses.replace(first, values=torch.full_like(first.values, 1e6))
    delta = dataclasses.replace(delta, linears=delta.linears | {"first": huge})
    mlp.half()
    before = tiny.state(mlp)
    with pytest.raises(BaseMismatch, match="'first' cannot hold the delta's values as float16"):
        te.apply(mlp, delta, force=True)
    assert tiny.same_bits(mlp.state_dict(), before)


def test_a_model_without_taskedge_layers_is_left_plain(mlp):
    delta = te.extract(tuned(tiny.mlp))
    types = [type(module) for module in mlp.modules()]
    te.apply(mlp, delta)
    assert [type(module) for module in mlp.modules()] == types


class TestBaseDifference:
    """What ``force`` overrules, in numbers."""

    @pytest.fixture
    def delta(self):
        model = tiny.bert()
        te.install(model, te.select(model, [tiny.batch(model)], per_neuron=1))
        return te.extract(tiny.train(model))

    def test_the_base(self, bert, delta):
        assert base_difference(bert, delta) == ""
        te.apply(bert, delta, force=True)
        assert applied_to(bert).forced == ""

    def test_other_values(self, bert, delta):
        name = next(iter(delta.linears))
        with torch.no_grad():
            bert.get_submodule(name).weight[0, 0] += 1
            bert.get_submodule(name).weight[:, :] += 1
        difference = f"1 of {len(delta.linears)} linears hold other values than the delta's base"
        assert base_difference(bert, delta) == difference
        force_apply(bert, delta)
        assert applied_to(bert).forced == difference
        force_apply(bert, delta)  # it is applied already
        assert applied_to(bert).forced == difference

    def test_another_dtype(self, bert, delta):
        count = len(delta.linears)
        assert base_difference(bert.bfloat16(), delta) == (
            f"{count} of {count} linears have another dtype than the delta's base (bfloat16, not float32); "
            "2 of 2 parameters in full have another dtype (bfloat16, not float32)"
        )

    def test_another_architecture(self, mlp, delta):
        with pytest.raises(BaseMismatch, match="has no linear"):
            base_difference(mlp, delta)


def test_a_second_name_of_a_shared_layer_is_not_one_of_the_base(mlp):
    """Two names of one weight would take two sets of values."""
    delta = te.extract(tuned(lambda: copy.deepcopy(mlp)))
    first, second = list(delta.linears)[:2]
    model = copy.deepcopy(mlp)
    model.add_module("again", model.get_submodule(first))
    renamed = {"again": delta.linears[first], second: delta.linears[second]}
    with pytest.raises(BaseMismatch, match="no linear 'again'"):
        te.apply(model, dataclasses.replace(delta, linears=renamed))
