"""One graph, many tasks: with each task's adapter it gives the answers of that task's own export."""

from __future__ import annotations

import pytest
import tiny
import torch

import taskedge as te
from taskedge.delta.interop.onnx_adapter import ADAPTER, GRAPH, run_adapter
from taskedge.delta.interop.onnx_graph import run_graph, session
from taskedge.errors import InputError

pytest.importorskip("onnxruntime")


def delta_of(make, seed, **options):
    model = make()
    te.install(model, te.select(model, [tiny.batch(model, seed=seed)], **options))
    return te.extract(tiny.train(model, lr=0.05 * (seed + 1)))


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2, tiny.vit], ids=["bert", "gpt2", "vit"])
def test_each_task_answers_as_its_own_export(make, tmp_path):
    deltas = {
        "a": delta_of(make, 0, columns=3),
        "b": delta_of(make, 1, per_neuron=1),
        "c": delta_of(make, 2, columns=1),
    }
    for name, delta in deltas.items():
        te.export(make(), delta, tmp_path / name, to="onnx-adapter")
        te.export(make(), delta, tmp_path / f"own-{name}", to="onnx")
    graphs = {(tmp_path / name / GRAPH).read_bytes() for name in deltas}
    assert len(graphs) == 1  # it depends on the base alone
    batch = {key: value for key, value in tiny.batch(make(), rows=6, seed=9).items() if key != "labels"}
    answers = {}
    for name in ("a", "b", "c", "a"):
        switched = run_adapter(tmp_path / "b" / GRAPH, tmp_path / name / ADAPTER)(batch)
        own = run_graph(session(tmp_path / f"own-{name}" / "model.onnx"))(batch)
        assert (switched - own).abs().max() <= 1e-5
        assert torch.equal(switched.argmax(-1), own.argmax(-1))
        answers.setdefault(name, switched)
        assert torch.equal(answers[name], switched)
    assert (answers["a"] - answers["b"]).abs().max() > 1e-2


def test_tasks_of_other_numbers_of_classes_share_a_graph(tmp_path):
    delta = delta_of(tiny.vit, 0, columns=2)
    te.export(tiny.vit(), delta, tmp_path / "three", to="onnx-adapter")
    two = te.Delta(
        delta.linears,
        {name: tensor[:2].clone() for name, tensor in delta.full_parameters.items()},
        delta.provenance,
    )
    model = tiny.vit()
    model.classifier = torch.nn.Linear(16, 2)
    te.export(model, two, tmp_path / "two", to="onnx-adapter")
    batch = {"pixel_values": tiny.batch(tiny.vit())["pixel_values"]}
    answers = {
        name: run_adapter(tmp_path / "three" / GRAPH, tmp_path / name / ADAPTER)(batch) for name in ("two", "three")
    }
    assert torch.allclose(answers["two"], answers["three"][:, :2], atol=1e-5)


def test_the_model_is_left_without_factors_and_a_high_rank_is_refused(tmp_path):
    model, delta = tiny.vit(), delta_of(tiny.vit, 0, columns=2)
    before = tiny.state(model)
    te.export(model, delta, tmp_path / "a", to="onnx-adapter")
    assert tiny.same_bits(model.state_dict(), before)
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(InputError, match="linears need a rank over 1"):
        te.export(model, delta, tmp_path / "b", to="onnx-adapter", max_rank=1)
