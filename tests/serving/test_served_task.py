"""A task is checked in full before it is served, and its answers are those of the applied delta."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import tiny
import tiny_server
import torch

import taskedge as te
from taskedge.backbone.fingerprint import digest
from taskedge.backbone.loading import load_base
from taskedge.delta.delta import LowRankDelta
from taskedge.errors import BaseMismatch, InputError
from taskedge.forms.dash import add_directions, choose_directions
from taskedge.forms.filtered import add_filters
from taskedge.forms.install_taps import install_taps, taps_support
from taskedge.forms.taps import layer_gates
from taskedge.serving.engine import Work
from taskedge.serving.request_bodies import text_rows
from taskedge.serving.served_base import ServedBase
from taskedge.serving.served_task import served_task
from taskedge.training.lora import lora_support


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["albert", "distilbert", "roberta", "modernbert", "llama", "t5", "deberta-v2", "xlnet"]
)
def test_answers_of_mixed_rows_are_those_of_the_applied_deltas(kind, tmp_path):
    """The last two do not keep rows apart in every layer, so their tasks are served alone, with the same answers."""
    folder = tiny_server.base_folder(kind, "text-classification", tmp_path / "base")
    deltas = {
        name: tiny_server.delta_of(kind, "text-classification", folder, seed, tiny_server.LABELS[name])
        for seed, name in enumerate("abc")
    }
    tasks, engine = tiny_server.parts(folder)
    try:
        for name, delta in deltas.items():
            tasks.add(name, te.save(delta, tmp_path / name))
        assert {bool(task.alone) for task in tasks.all()} == {kind in ("deberta-v2", "xlnet")}
        works = [
            (name, Work(tasks.get(name), row, time.monotonic() + 60))
            for name in deltas
            for row in text_rows(tasks.get(name), tiny_server.TEXTS)[0]
        ]
        engine.submit([work for _, work in works[::2] + works[1::2]])
        for name, delta in deltas.items():
            answers = [work.answer.result() for owner, work in works if owner == name]
            tiny_server.assert_close(answers, tiny_server.expected(delta, folder, tiny_server.TEXTS))
    finally:
        engine.close()


def test_the_model_is_the_base_afterwards(bert_tasks):
    folder, deltas, _ = bert_tasks
    base = ServedBase(folder)
    model = base.view("text-classification", tiny_server.LABELS["a"]).base.model
    before = tiny.state(model)
    served = served_task("a", deltas["a"], base)
    assert tiny.same_bits(tiny.state(model), before)
    assert served.describe()["batches"] == "mixed"
    assert served.memory_bytes == served.table.nbytes


def wrong_value(delta):
    name, linear = next(iter(delta.linears.items()))
    return replace(delta, linears=delta.linears | {name: replace(linear, base_digest="0" * 24)})


def wrong_name(delta):
    name, linear = next(iter(delta.linears.items()))
    return replace(delta, linears={f"{name}x": linear})


def wide_head(delta):
    return replace(delta, full_parameters=delta.full_parameters | {"classifier.weight": torch.zeros(9, 16)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong_value, "wrong base: 1 of"),
        (wrong_name, "has no linear"),
        (wide_head, r"'classifier.weight' is \[9, 16\] in the delta; the task needs \[3, 16\]"),
        (tiny_server.without_head, "the delta has no head"),
        (lambda delta: delta.with_provenance(task=""), "does not say which kind of task"),
        (lambda delta: delta.with_provenance(task="poetry"), "unknown task"),
        (lambda delta: delta.with_provenance(labels=("x",)), r"the task needs \[1, 16\]"),
        (
            lambda delta: replace(delta, full_parameters=delta.full_parameters | {"x": torch.zeros(1)}),
            "no parameter 'x'",
        ),
        (
            lambda delta: replace(
                delta, full_parameters=delta.full_parameters | {"classifier.bias": torch.full((3,), 3e38)}
            ).with_provenance(),
            None,
        ),
    ],
)
def test_what_is_refused(bert_tasks, change, message):
    folder, deltas, _ = bert_tasks
    base = ServedBase(folder)
    if message is None:
        served_task("a", change(deltas["a"]), base)  # large and finite: it is served
        return
    with pytest.raises((BaseMismatch, InputError), match=message):
        served_task("a", change(deltas["a"]), base)


def test_answers_that_are_not_finite_are_refused(bert_tasks):
    folder, deltas, _ = bert_tasks
    name, linear = next(iter(deltas["a"].linears.items()))
    huge = replace(linear, values=torch.full_like(linear.values, 3e38))
    head = {"classifier.weight": torch.full((3, 16), 3e38), "classifier.bias": torch.full((3,), 3e38)}
    delta = replace(deltas["a"], linears={name: huge}, full_parameters=head)
    with pytest.raises(InputError, match="not finite numbers"):
        served_task("a", delta, ServedBase(folder))


def form_delta(folder, form):
    """A delta with random values of a form, for the task ``a``."""
    labels = tiny_server.LABELS["a"]
    model = load_base("text-classification", folder, labels, keep_head=True).model.eval()
    if form == "taps":
        install_taps(model, taps_support(model))
    elif form in ("sparse_taps", "sparse_plus_low_rank"):
        te.install(model, te.select(model, rule="random", per_neuron=1), form=form)
    else:
        te.install(model, lora_support(model, 2, None))
        add_directions(model, 2) if form == "dash" else add_filters(model, "cosine", 2)
        choose_directions(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        for gate in list(layer_gates(model).values())[::2]:
            gate.score.fill_(0.0)
        for gate in list(layer_gates(model).values())[1::2]:
            gate.score.fill_(0.15)
    training = {"max_length": tiny_server.MAX_LENGTH, "dtype": "auto"}
    return te.extract(model).with_provenance(
        task="text-classification", labels=labels, training=training, base=str(folder)
    )


@pytest.mark.parametrize("form", ["taps", "sparse_taps", "dash", "filtered", "sparse_plus_low_rank"])
def test_answers_of_every_form_are_those_of_its_applied_delta(bert_tasks, tmp_path, form):
    folder, deltas, _ = bert_tasks
    delta = form_delta(folder, form)
    tasks, engine = tiny_server.parts(folder)
    try:
        tasks.add("form", te.save(delta, tmp_path / "form"))
        tasks.add("b", te.save(deltas["b"], tmp_path / "b"))
        alone = dict.fromkeys(("dash", "sparse_plus_low_rank"), "it has low-rank products")
        alone["filtered"] = "it has low-rank products with filters"
        assert tasks.get("form").alone == alone.get(form, "")
        works = [
            (name, Work(tasks.get(name), row, time.monotonic() + 60))
            for name in ("form", "b")
            for row in text_rows(tasks.get(name), tiny_server.TEXTS)[0]
        ]
        engine.submit([work for _, work in works[::2] + works[1::2]])
        for name, own in {"form": delta, "b": deltas["b"]}.items():
            answers = [work.answer.result() for owner, work in works if owner == name]
            tiny_server.assert_close(answers, tiny_server.expected(own, folder, tiny_server.TEXTS))
    finally:
        engine.close()


def test_other_forms_are_served_alone(bert_tasks):
    folder, deltas, _ = bert_tasks
    base = ServedBase(folder)
    model = base.view("text-classification", tiny_server.LABELS["a"]).base.model
    linear = "bert.encoder.layer.0.output.dense"
    product = LowRankDelta(
        torch.randn(2, 32), torch.randn(16, 2), 1.0, "float32", digest(model.get_submodule(linear).weight)
    )
    head = deltas["a"].full_parameters
    low_rank = te.Delta({}, head, deltas["a"].provenance, {linear: product})
    assert served_task("p", low_rank, base).alone == "it has low-rank products"
    norm = "bert.encoder.layer.0.output.LayerNorm.weight"
    with_norm = te.Delta({}, head | {norm: torch.full((16,), 2.0)}, deltas["a"].provenance)
    served = served_task("n", with_norm, base)
    assert served.alone.startswith("it replaces 1 parameters outside its head")
    assert served.memory_bytes > served.table.nbytes
