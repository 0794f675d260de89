"""Deltas and weight storage: a delta trained over int8 weights is bound to the base before and after quantization."""

from __future__ import annotations

import sys

import pytest
import tiny
import torch

import taskedge as te
from taskedge.backbone.fingerprint import digest
from taskedge.backbone.layers import linears
from taskedge.backbone.storage.coding import CODINGS, rounded_weight
from taskedge.backbone.storage.frozen_layer import FrozenWeightLayer
from taskedge.backbone.storage.set_storage import set_weight_storage
from taskedge.delta.apply import check_base
from taskedge.errors import BaseMismatch, InputError
from taskedge.selection.support import Support

MODELS = pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2], ids=["bert", "gpt2"])
codings = pytest.mark.parametrize("coding", CODINGS)


def learnt(make, how="int8"):
    model = set_weight_storage(make(), how)
    support = te.select(model, [tiny.batch(model)], budget="2%")
    return te.extract(tiny.train(te.install(model, support)))


@codings
@MODELS
def test_a_delta_trained_over_codes_records_the_storage_and_its_values(make, coding, tmp_path):
    delta = te.load(te.save(learnt(make, coding), tmp_path / "d"))
    plain = linears(make())
    for name, linear in delta.linears.items():
        layer = plain[name]
        weight = rounded_weight(layer, coding)
        assert linear.base_dtype == coding
        assert linear.base_digest == digest(weight[linear.rows, linear.columns])
        assert linear.base_digest != digest(layer.read(linear.rows, linear.columns))


@codings
@MODELS
def test_it_goes_onto_that_base_as_codes_and_as_it_is_and_off_again(make, coding):
    delta = learnt(make, coding)
    for how in (coding, "resident"):
        model = set_weight_storage(make(), how)
        before = tiny.state(model)
        with te.applied(model, delta):
            for name, linear in delta.linears.items():
                assert torch.equal(linears(model)[name].weight[linear.rows, linear.columns], linear.values)
        assert tiny.same_bits(tiny.state(model), before)


@codings
def test_a_delta_over_one_coding_is_not_compared_with_another(coding):
    delta = learnt(tiny.bert, coding)
    (other,) = set(CODINGS) - {coding}
    with pytest.raises(BaseMismatch, match=f"is {other}, the delta was trained on {coding}, and their values cannot"):
        te.apply(set_weight_storage(tiny.bert(), other), delta)


@codings
def test_applied_over_codes_it_computes_the_trained_function(coding):
    model = set_weight_storage(tiny.bert(), coding)
    tiny.train(te.install(model, te.select(model, [tiny.batch(model)], budget="2%")))
    delta, output = te.extract(model), tiny.logits(model, tiny.batch(model))
    fresh = te.apply(set_weight_storage(tiny.bert(), coding), delta)
    assert torch.equal(tiny.logits(fresh, tiny.batch(fresh)), output)
    assert torch.equal(tiny.logits(te.fuse(model), tiny.batch(model)), output)


@pytest.mark.parametrize("how", ["int8", "resident"])
def test_another_base_is_refused(how):
    delta, other = learnt(tiny.bert), tiny.bert()
    name, linear = next(iter(delta.linears.items()))
    other.get_submodule(name).weight.data[linear.rows[0]] *= -1
    with pytest.raises(BaseMismatch, match=f"1 of {len(delta.linears)} linears hold other values than the base"):
        te.apply(set_weight_storage(other, how), delta)


def test_a_base_of_the_same_values_in_other_steps_is_refused():
    """A neuron's largest weight sets its scale, whether or not it is an entry."""
    delta, other = learnt(tiny.bert), tiny.bert()
    name, linear = next(iter(delta.linears.items()))
    row = other.get_submodule(name).weight.data[int(linear.rows[0])]
    row[(torch.arange(len(row)) != linear.columns[0]).nonzero()[0]] = 2.9 * row.abs().max()
    with pytest.raises(BaseMismatch, match="1 of"):
        te.apply(other, delta)


def test_a_delta_trained_on_resident_weights_cannot_be_checked_against_int8():
    delta, model = learnt(tiny.bert, "resident"), tiny.bert()
    check_base(model, delta)
    before = tiny.state(set_weight_storage(model, "int8"))
    with pytest.raises(BaseMismatch, match=r"is int8, the delta was trained on float32.*load the base as it was"):
        te.apply(model, delta)
    assert tiny.same_bits(tiny.state(model), before)
    te.apply(model, delta, force=True)
    te.revert(model)
    assert tiny.same_bits(tiny.state(model), before)


def test_a_base_that_is_checked_is_left_as_it_was():
    delta, model = learnt(tiny.bert, "resident"), tiny.bert()
    before = tiny.state(model)
    check_base(model, delta)
    assert tiny.same_bits(tiny.state(model), before)
    name, linear = next(iter(delta.linears.items()))
    model.get_submodule(name).weight.data[linear.rows[0]] *= -1
    with pytest.raises(BaseMismatch, match="1 of"):
        check_base(model, delta)


def test_a_product_cannot_go_into_a_read_only_weight():
    model = tiny.bert()
    name = "bert.encoder.layer.0.attention.self.query"
    te.install(model, Support({}, 5859, low_rank={name: 2}), trainable=[])
    delta = te.extract(model)
    with pytest.raises(
        InputError,
        match=rf"{name!r} is read-only \(coded or mapped from a file\), so the delta's product cannot go into it",
    ):
        te.apply(set_weight_storage(tiny.bert(), "int8"), delta, force=True)


def test_a_head_with_fp32_master_weights_applies_to_a_bf16_base_stored_as_int8():
    def make():
        return tiny.bert().bfloat16()

    delta = learnt(make)
    assert delta.full_parameters["classifier.weight"].dtype == torch.float32
    te.apply(set_weight_storage(make(), "int8"), delta)
    te.apply(make(), delta)
    with pytest.raises(BaseMismatch, match="hold other values"):
        te.apply(tiny.bert(), delta)  # weights that were not rounded


@pytest.mark.slow
def test_a_merged_folder_of_an_int8_model_is_a_plain_folder(tmp_path):
    from transformers import AutoModelForSequenceClassification

    delta, model = learnt(tiny.bert), set_weight_storage(tiny.bert(), "int8")
    te.export(model, delta, tmp_path / "merged", to="merged")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert not any(isinstance(module, FrozenWeightLayer) for module in merged.modules())
    with te.applied(model, delta):
        assert torch.equal(tiny.logits(merged, tiny.batch(model)), tiny.logits(model, tiny.batch(model)))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")
def test_a_delta_trained_over_int8_applies_to_a_memory_mapped_base(tmp_path):
    tiny.bert().save_pretrained(tmp_path)
    delta, mapped = learnt(tiny.bert), set_weight_storage(tiny.bert().from_pretrained(tmp_path), "mmap")
    te.apply(mapped, delta)
    for name, linear in delta.linears.items():
        assert torch.equal(linears(mapped)[name].weight[linear.rows, linear.columns], linear.values)
