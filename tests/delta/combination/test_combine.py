"""Combined deltas: identities, heads, refusals, and what is printed."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import task_deltas
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import taskedge as te
from taskedge.delta.combination.methods import METHODS
from taskedge.delta.delta import LowRankDelta
from taskedge.errors import BaseMismatch, InputError, UnknownName
from taskedge.forms.filtered import add_filters
from taskedge.forms.install_taps import install_taps, taps_support
from taskedge.forms.taps import layer_gates
from taskedge.training.lora import lora_support

LINEAR = "bert.encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def pair():
    return task_deltas.tuned(tiny.bert(), 1), task_deltas.tuned(tiny.bert(), 2, rule="taskedge")


def ones(delta):
    """The importance of entries, all equal."""
    return {name: torch.ones(len(linear)) for name, linear in delta.linears.items()}


def given_importance(method, *deltas):
    return {"importance": [ones(delta) for delta in deltas]} if METHODS[method].needs_importance else {}


@pytest.mark.parametrize("method", METHODS)
def test_one_delta_in_full_is_itself(pair, method):
    density = 1.0
    combined = te.combine([pair[0]], tiny.bert(), method=method, density=density, **given_importance(method, pair[0]))
    assert task_deltas.same_after_apply(pair[0], combined)


@pytest.mark.parametrize("method", ["arithmetic", "ties", "selective", "breadcrumbs"])
def test_the_order_does_not_matter(pair, method):
    a, b = pair
    one, other = (
        te.combine(deltas, tiny.bert(), method=method, names=names, **given_importance(method, *deltas))
        for deltas, names in (([a, b], ["a", "b"]), ([b, a], ["b", "a"]))
    )
    for head in ("a", "b"):
        assert task_deltas.same_after_apply(one, other, heads=(head, head))


def test_a_task_minus_itself_is_the_base(pair):
    combined = te.combine([pair[0]], tiny.bert(), subtract=[pair[0]], names=["a", "forgotten"])
    assert combined.num_entries == 0
    model = te.apply(tiny.bert(), replace(combined, heads={}))
    assert tiny.same_bits(tiny.state(model), tiny.state(tiny.bert()))


@pytest.mark.slow
@settings(max_examples=20)
@given(
    st.lists(
        st.dictionaries(st.integers(0, 255), st.floats(-1, 1).filter(lambda x: abs(x) > 1e-3), max_size=40),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.floats(-2, 2), min_size=4, max_size=4),
)
def test_the_weighted_sum_of_random_supports(changes, weights):
    model = tiny.bert()
    deltas = [task_deltas.by_hand(model, {LINEAR: change}) for change in changes]
    weights = weights[: len(deltas)]
    combined = te.combine(deltas, model, weights=weights)
    expected = sum(w * task_deltas.dense(model, delta)[LINEAR] for w, delta in zip(weights, deltas, strict=True))
    merged = te.apply(copy.deepcopy(model), combined).get_submodule(LINEAR).weight.double()
    assert torch.allclose(merged - model.get_submodule(LINEAR).weight.double(), expected, atol=1e-6)
    assert len(combined.linears[LINEAR]) <= len({key for change in changes for key in change})


def test_each_task_keeps_its_head(pair, tmp_path):
    combined = te.combine(pair, tiny.bert(), names=["spam", "mood"])
    te.save(combined, tmp_path / "both")
    loaded = te.load(tmp_path / "both")
    assert list(loaded.heads) == ["spam", "mood"]
    for name, delta in zip(("spam", "mood"), pair, strict=True):
        head = te.apply(tiny.bert(), loaded.with_head(name)).classifier
        assert torch.equal(head.weight, delta.full_parameters["classifier.weight"])
    with pytest.raises(InputError, match=r"heads spam, mood: name one"):
        te.apply(tiny.bert(), loaded)


def test_a_combined_delta_can_be_combined_again(pair):
    both = te.combine(pair, tiny.bert(), names=["a", "b"])
    only = te.combine([both], tiny.bert(), subtract=[pair[1]], names=["both", "b"])
    assert list(only.heads) == ["a", "b"]
    first, rest = (te.apply(tiny.bert(), delta) for delta in (pair[0], only.with_head("a")))
    pairs = zip(first.parameters(), rest.parameters(), strict=True)
    assert max(float((p - q).detach().abs().max()) for p, q in pairs) < 1e-6


def test_two_different_heads_of_one_name_are_refused(pair):
    both = te.combine(pair, tiny.bert(), names=["a", "b"])
    with pytest.raises(InputError, match="two deltas have different heads of the name 'a'"):
        te.combine([both, pair[1]], tiny.bert(), names=["both", "a"])


def test_tasks_without_heads_that_are_alike_give_a_plain_delta():
    model = tiny.bert()
    deltas = [task_deltas.by_hand(model, {LINEAR: {i: 0.5}}, task="text-generation") for i in (3, 8)]
    combined = te.combine(deltas, model)
    assert not combined.heads
    assert combined.provenance.task == "text-generation"
    other = replace(deltas[1], provenance=replace(deltas[1].provenance, task="text-regression"))
    assert list(te.combine([deltas[0], other], model).heads) == ["task1", "task2"]


def test_norms_trained_in_full_are_merged():
    norm = "bert.encoder.layer.0.output.LayerNorm.bias"
    model = tiny.bert()
    deltas = [te.Delta({}, {norm: torch.full((16,), value)}) for value in (1.0, 3.0)]
    combined = te.combine(deltas, model, weights=[1.0, 0.5])
    assert torch.allclose(combined.full_parameters[norm], torch.full((16,), 2.5))  # the base's bias is 0


def test_a_weight_in_full_beside_entries_of_it_is_refused():
    model = tiny.bert()
    entries = task_deltas.by_hand(model, {LINEAR: {0: 1.0}})
    full = te.Delta({}, {f"{LINEAR}.weight": torch.zeros(16, 16)})
    with pytest.raises(InputError, match=r"task2 replaces '.*query.weight' in full, and task1 changes entries"):
        te.combine([entries, full], model)


def test_a_low_rank_product_is_refused_or_densified():
    model = tiny.bert()
    generator = torch.Generator().manual_seed(0)
    weight = model.get_submodule(LINEAR).weight.detach()
    from taskedge.backbone.fingerprint import digest

    a, b = torch.randn(2, 16, generator=generator), torch.randn(16, 2, generator=generator)
    product = LowRankDelta(a, b, 0.5, "float32", digest(weight))
    delta, entries = te.Delta({}, low_rank={LINEAR: product}), task_deltas.by_hand(model, {LINEAR: {5: 1.0}})
    with pytest.raises(InputError, match="task2: 1 linears carry a low-rank product"):
        te.combine([entries, delta], model)
    assert task_deltas.same_after_apply(delta, te.combine([delta], model, densify=True))
    both = te.apply(tiny.bert(), te.combine([entries, delta], model, densify=True)).get_submodule(LINEAR).weight
    expected = weight + 0.5 * b @ a
    expected.flatten()[5] += 1
    assert torch.allclose(both, expected, atol=1e-6)


def test_entries_beside_a_product_are_densified_with_it():
    model = tiny.bert()
    support = te.select(model, rule="magnitude", per_neuron=1)
    delta = te.extract(tiny.train(te.install(tiny.bert(), support, form="sparse_plus_low_rank", rank=2)))
    with pytest.raises(InputError, match="task1: 12 linears carry a low-rank product"):
        te.combine([delta], model)
    combined = te.combine([delta], model, densify=True)
    assert not combined.low_rank
    one, other = te.apply(tiny.bert(), delta), te.apply(tiny.bert(), combined)
    for name in delta.overlap:
        weight = one.get_submodule(name).weight
        assert not torch.equal(weight, model.get_submodule(name).weight)
        assert torch.equal(weight, other.get_submodule(name).weight)


def test_another_base_is_refused_by_name():
    model = tiny.bert()
    delta = task_deltas.by_hand(model, {LINEAR: {3: 1.0}})
    with torch.no_grad():
        model.get_submodule(LINEAR).weight += 1
    with pytest.raises(BaseMismatch, match="mood: wrong base"):
        te.combine([task_deltas.by_hand(model, {LINEAR: {3: 1.0}}), delta], model, names=["spam", "mood"])


def test_other_storage_in_training_is_refused(pair):
    entries = pair[0].linears
    int8 = {name: replace(linear, base_dtype="bfloat16") for name, linear in entries.items()}
    with pytest.raises(BaseMismatch, match="task2: wrong base"):
        te.combine([pair[0], replace(pair[0], linears=int8)], tiny.bert())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "tie"}, "unknown method 'tie'; did you mean 'ties'"),
        ({"density": 0}, "a density of 0 keeps no share"),
        ({"density": 1.5}, "a density of 1.5"),
        ({"density": float("nan")}, "a density of nan"),
        ({"weights": [1.0, 2.0, 3.0]}, "3 weights for 2 deltas"),
        ({"weights": float("inf")}, "a weight is not a finite number"),
        ({"names": ["a", "a"]}, "1 different names for 2 deltas"),
        ({"names": ["a", "../b"]}, "letters, digits"),
        ({"method": "selective"}, "method 'selective' needs the importance"),
        ({"importance": [{}, {}]}, "method 'arithmetic' does not use the importance"),
        ({"method": "selective", "importance": [{}]}, "1 importances for 2 deltas"),
        ({"method": "selective", "importance": [{}, {}]}, "no importance of the"),
    ],
)
def test_options_that_cannot_be_used(pair, options, message):
    with pytest.raises((InputError, UnknownName), match=message.replace("(", r"\(")):
        te.combine(list(pair), tiny.bert(), **options)


def test_no_deltas_and_models_that_are_no_plain_base(pair):
    with pytest.raises(InputError, match="there is no delta to combine"):
        te.combine([], tiny.bert())
    with pytest.raises(InputError, match="a delta is applied"):
        te.combine([pair[0]], te.apply(tiny.bert(), pair[0]))


def test_overlaps_and_what_is_left_out_are_logged(pair):
    lines = []
    te.combine(pair, tiny.bert(), names=["a", "b"], method="ties", log=lines.append)
    assert lines[0].startswith("a and b: ")
    assert "shared entries" in lines[0]
    assert [line for line in lines if line.startswith("combined: ") and "are left out" in line]


def test_the_model_is_unchanged(pair):
    model = tiny.bert()
    te.combine(pair, model, method="dare")
    assert tiny.same_bits(tiny.state(model), tiny.state(tiny.bert()))


def test_bf16_is_rounded_once():
    model = tiny.bert().bfloat16()
    weight = model.get_submodule(LINEAR).weight.detach()
    delta = task_deltas.by_hand(model.float(), {LINEAR: {7: 0.3}})
    model = model.bfloat16()
    linear = replace(delta.linears[LINEAR], base_dtype="bfloat16")
    delta = te.Delta({LINEAR: linear})
    combined = te.combine([delta, delta, delta], model)
    exact = weight.flatten()[7].double() + 3 * (linear.values.double() - weight.flatten()[7].double())
    assert te.apply(model, combined).get_submodule(LINEAR).weight.flatten()[7] == exact.bfloat16()


def taps_delta(closed, **more):
    """A delta of TAPS whose gates are closed in these layers (by number)."""
    model = tiny.train(install_taps(tiny.bert(), taps_support(tiny.bert()), **more))
    with torch.no_grad():
        for index in closed:
            list(layer_gates(model).values())[index].score.fill_(0.0)
    return te.extract(model)


def test_open_layers_are_combined_with_entries_and_with_other_open_layers():
    """The merged change is the sum of both, and closed are the layers that are closed in all."""
    base = tiny.bert()
    support = te.select(base, [tiny.batch(base)], per_neuron=1, rule="random", seed=3)
    entries = te.extract(tiny.train(te.install(tiny.bert(), support)))
    one, other = taps_delta(range(0, 12, 2)), taps_delta(range(0, 12, 3), trainable=[])
    plain = tiny.state(tiny.bert())
    for deltas in ((one, entries), (one, other)):
        combined = te.combine(deltas, tiny.bert(), names=["a", "b"])
        shown = combined.with_head("a") if combined.heads else combined
        states = [tiny.state(te.apply(tiny.bert(), delta)) for delta in (*deltas, shown)]
        for name in {f"{linear}.weight" for delta in deltas for linear in delta.linears}:
            changes = [state[name] - plain[name] for state in states]
            torch.testing.assert_close(changes[2], changes[0] + changes[1], atol=1e-6, rtol=0)
    both = te.combine([other, replace(one, full_parameters={})], tiny.bert())
    names = list(layer_gates(install_taps(tiny.bert(), taps_support(tiny.bert()))))
    assert both.provenance.training["closed_layers"] == [names[0], names[6]]
    mixed = te.combine([other, replace(entries, full_parameters={})], tiny.bert())
    assert "closed_layers" not in mixed.provenance.training


def test_running_statistics_and_filters_are_refused():
    model = tiny.train(install_taps(tiny.resnet(), taps_support(tiny.resnet()), norms="task"))
    with pytest.raises(InputError, match="running statistics of norms"):
        te.combine([te.extract(model)], tiny.resnet())
    model = te.install(tiny.bert(), lora_support(tiny.bert(), 2, None))
    add_filters(model, "cosine", 2)
    with pytest.raises(InputError, match="filter"):
        te.combine([te.extract(model)], tiny.bert())
