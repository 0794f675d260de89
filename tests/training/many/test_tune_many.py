"""Several tasks are trained at once, and the file does what the trained model did."""

from __future__ import annotations

import pytest
import tiny_server
import tiny_task
import torch

import taskedge as te
from taskedge.errors import InputError
from taskedge.serving.one_pass import OnePass
from taskedge.serving.served_task import logits_of
from taskedge.training.inference import prepare_inference
from taskedge.training.many.many_config import TuneManyConfig
from taskedge.training.many.tune_many import tune_many


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A file of two tasks with two and three classes, and what the run said."""
    folder = tmp_path_factory.mktemp("many")
    tiny_task.bert(folder / "base")
    data = {
        "mood": tiny_task.table(folder / "mood.csv", tiny_task.rows(96)),
        "kind": tiny_task.table(folder / "kind.csv", tiny_task.rows(60, seed=5, names=("x", "y", "z"))),
    }
    lines: list[str] = []
    config = TuneManyConfig(
        model=str(folder / "base"), shared_budget="4%", task_budget="3%", flops_target="1.5x", epochs=10, lr=5e-2,
        batch_size=8, threads=1, out=folder / "both.safetensors",
    )  # fmt: skip
    return folder, data, tune_many(data, config, log=lines.append), lines, config


@pytest.mark.slow
def test_the_tasks_are_learned_and_the_target_is_met(made) -> None:
    folder, data, result, lines, _ = made
    assert result.cost == 1.5, "the target is met, and used"
    assert result.departures == (1, 1)
    assert all(kept > 0 for kept in result.own_entries)
    assert result.file_bytes == (folder / "both.safetensors").stat().st_size
    for name, path in data.items():
        inference = prepare_inference(result.out, path, answers=True, head=name, log=lambda _: None)
        assert inference.evaluate()["accuracy"] > {"mood": 0.6, "kind": 0.5}[name]
    assert any("entries are used by some task" in line for line in lines)


@pytest.mark.slow
def test_the_file_names_what_it_holds(made) -> None:
    _, data, result, _, config = made
    delta = te.load(result.out)
    assert list(delta.heads) == list(data)
    assert delta.num_entries == result.shared_entries
    about = delta.provenance.training["tune_many"]
    assert about["cost"] == pytest.approx(result.cost)
    assert about["flops_target"] == config.flops_target
    assert delta.heads["kind"].provenance.labels == ("x", "y", "z")


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(made, tmp_path) -> None:
    _, data, _, _, config = made
    first, again = (
        tune_many(data, config.model_copy(update={"out": tmp_path / name, "epochs": 0.5}), log=lambda _: None).out
        for name in ("first", "again")
    )
    assert again.read_bytes() == first.read_bytes()


@pytest.mark.slow
def test_it_is_served_and_all_tasks_are_answered_in_one_pass(made) -> None:
    folder, _, result, _, _ = made
    delta = te.load(result.out)
    tasks, engine = tiny_server.parts(folder / "base")
    try:
        served = {task.name.partition(".")[2]: task for task in tasks.add("both", result.out)}
        assert not any(task.alone for task in served.values())
        one_pass = OnePass(delta, served)
        assert one_pass.cost == pytest.approx(result.cost)
        view = served["mood"].view
        rows = tiny_server.rows_of(served["mood"].task, view.base, ["good film", "awful , not so fine"])
        batch = served["mood"].task.collate(view.base)(rows)
        found = one_pass.logits(batch)
        for name, task in served.items():
            alone = logits_of(view, batch, [task.table] * len(rows))[:, : task.num_outputs]
            assert torch.allclose(found[name], alone, atol=1e-5)
    finally:
        engine.close()


def test_fewer_than_two_tasks_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="1 tasks share nothing"):
        tune_many({"a": tmp_path}, TuneManyConfig(model="m", out=tmp_path / "x"))


@pytest.mark.slow
def test_a_delta_with_gates_is_not_combined(made) -> None:
    folder, _, result, _, _ = made
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder / "base")
    delta = te.load(result.out)
    with pytest.raises(InputError, match="have entries of their own"):
        te.combine([delta, delta], model)
