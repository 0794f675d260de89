"""Deltas and bases that are held: what was trained over int8 is bound to the base that gave it, held or not."""

from __future__ import annotations

import sys

import pytest
import tiny
import torch

import taskedge as te
from taskedge.backbone.fingerprint import digest
from taskedge.backbone.linears import linears
from taskedge.backbone.storage.frozen_layer import INT8, HeldLayer, rounded_to_int8
from taskedge.backbone.storage.set_storage import hold
from taskedge.delta.apply import check_base
from taskedge.errors import BaseMismatch, InputError
from taskedge.selection.support import Support

MODELS = pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2], ids=["bert", "gpt2"])


def learnt(make, how="int8"):
    model = hold(make(), how)
    support = te.select(model, [tiny.batch(model)], budget="2%")
    return te.extract(tiny.train(te.install(model, support)))


@MODELS
def test_what_is_learnt_over_int8_names_it_and_its_values(make, tmp_path):
    delta = te.load(learnt(make).save(tmp_path / "d"))
    plain = linears(make())
    for name, linear in delta.linears.items():
        layer = plain[name]
        weight = layer.kind.matrix(rounded_to_int8(layer.module))
        assert linear.base_dtype == INT8
        assert linear.base_digest == digest(weight[linear.rows, linear.columns])
        assert linear.base_digest != digest(layer.read(linear.rows, linear.columns))


@MODELS
def test_it_goes_onto_that_base_as_int8_and_as_it_is_and_off_again(make):
    delta = learnt(make)
    for how in ("int8", "loaded"):
        model = hold(make(), how)
        before = tiny.state(model)
        with te.applied(model, delta):
            for name, linear in delta.linears.items():
                assert torch.equal(linears(model)[name].weight[linear.rows, linear.columns], linear.values)
        assert tiny.same_bits(tiny.state(model), before)


def test_applied_over_int8_it_computes_what_was_trained():
    model = hold(tiny.bert(), "int8")
    tiny.train(te.install(model, te.select(model, [tiny.batch(model)], budget="2%")))
    delta, output = te.extract(model), tiny.logits(model, tiny.batch(model))
    fresh = te.apply(hold(tiny.bert(), "int8"), delta)
    assert torch.equal(tiny.logits(fresh, tiny.batch(fresh)), output)
    assert torch.equal(tiny.logits(te.fuse(model), tiny.batch(model)), output)


@pytest.mark.parametrize("how", ["int8", "loaded"])
def test_another_base_is_refused(how):
    delta, other = learnt(tiny.bert), tiny.bert()
    name, linear = next(iter(delta.linears.items()))
    other.get_submodule(name).weight.data[linear.rows[0]] *= -1
    with pytest.raises(BaseMismatch, match=f"1 of {len(delta.linears)} linears hold other values than the base"):
        te.apply(hold(other, how), delta)


def test_a_base_of_the_same_values_in_other_steps_is_refused():
    """A neuron's largest weight sets its steps, be it an entry or not."""
    delta, other = learnt(tiny.bert), tiny.bert()
    name, linear = next(iter(delta.linears.items()))
    row = other.get_submodule(name).weight.data[int(linear.rows[0])]
    row[(torch.arange(len(row)) != linear.columns[0]).nonzero()[0]] = 2.9 * row.abs().max()
    with pytest.raises(BaseMismatch, match="1 of"):
        te.apply(other, delta)


def test_what_was_trained_on_the_base_as_it_is_cannot_be_checked_against_int8():
    delta, model = learnt(tiny.bert, "loaded"), tiny.bert()
    check_base(model, delta)
    before = tiny.state(hold(model, "int8"))
    with pytest.raises(BaseMismatch, match=r"is int8, the delta was trained on float32.*load the base as it was"):
        te.apply(model, delta)
    assert tiny.same_bits(tiny.state(model), before)
    te.apply(model, delta, force=True)
    te.revert(model)
    assert tiny.same_bits(tiny.state(model), before)


def test_a_base_that_is_checked_is_left_as_it_was():
    delta, model = learnt(tiny.bert, "loaded"), tiny.bert()
    before = tiny.state(model)
    check_base(model, delta)
    assert tiny.same_bits(tiny.state(model), before)
    name, linear = next(iter(delta.linears.items()))
    model.get_submodule(name).weight.data[linear.rows[0]] *= -1
    with pytest.raises(BaseMismatch, match="1 of"):
        check_base(model, delta)


def test_a_product_cannot_go_into_a_held_weight():
    model = tiny.bert()
    name = "bert.encoder.layer.0.attention.self.query"
    te.install(model, Support({}, 5859, low_rank={name: 2}), trainable=[])
    delta = te.extract(model)
    with pytest.raises(InputError, match=f"{name!r} is held and only read, so the delta's product cannot go into it"):
        te.apply(hold(tiny.bert(), "int8"), delta, force=True)


def test_a_head_from_a_master_in_fp32_goes_onto_a_bf16_base_held_as_int8():
    def make():
        return tiny.bert().bfloat16()

    delta = learnt(make)
    assert delta.whole["classifier.weight"].dtype == torch.float32
    te.apply(hold(make(), "int8"), delta)
    te.apply(make(), delta)
    with pytest.raises(BaseMismatch, match="hold other values"):
        te.apply(tiny.bert(), delta)  # weights that were not rounded


def test_a_merged_folder_of_a_held_model_is_a_plain_one(tmp_path):
    from transformers import AutoModelForSequenceClassification

    delta, model = learnt(tiny.bert), hold(tiny.bert(), "int8")
    te.export(model, delta, tmp_path / "merged", to="merged")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert not any(isinstance(module, HeldLayer) for module in merged.modules())
    with te.applied(model, delta):
        assert torch.equal(tiny.logits(merged, tiny.batch(model)), tiny.logits(model, tiny.batch(model)))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")
def test_what_was_trained_over_int8_goes_onto_a_mapped_base(tmp_path):
    tiny.bert().save_pretrained(tmp_path)
    delta, mapped = learnt(tiny.bert), hold(tiny.bert().from_pretrained(tmp_path), "mapped")
    te.apply(mapped, delta)
    for name, linear in delta.linears.items():
        assert torch.equal(linears(mapped)[name].weight[linear.rows, linear.columns], linear.values)
