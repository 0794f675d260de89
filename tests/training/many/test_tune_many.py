"""Several tasks are trained at once, and the file does what the trained model did."""

from __future__ import annotations

import signal

import pytest
import tiny_server
import tiny_task
import torch
from killed_runs import killed_at
from tiny_task import forked, snapshot

import taskedge as te
from taskedge.errors import InputError
from taskedge.serving.one_pass import OnePass
from taskedge.serving.served_task import logits_of
from taskedge.training import checkpoint
from taskedge.training.inference import prepare_inference
from taskedge.training.many import tune_many as module
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
    larger = [line for line in lines if "for entries, which are in" in line]
    assert [line.split(":")[0] for line in larger] == [*data]  # every neuron has a shared entry


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


MOMENTS = {
    "before anything is kept": killed_at(module, "store_start"),
    "before the first checkpoint": killed_at(checkpoint, "write"),
    "between the files of a checkpoint": killed_at(checkpoint.Path, "write_text", call=2),
    "after a checkpoint": killed_at(checkpoint, "write", call=2, after=True),
    "before the file is written": killed_at(module, "save"),
    "after the file is written": killed_at(module, "save", after=True),
}


@pytest.fixture(scope="module")
def command(made):
    """The arguments of a short run, and the bytes of its file."""
    folder, data, *_ = made
    short = "--shared-budget 4% --task-budget 3% --flops-target 1.5x --lr 0.01 --batch-size 16 --epochs 2 --threads 1"
    tasks = [part for name, path in data.items() for part in ("--task", f"{name}={path}")]
    arguments = ["tune-many", "--model", str(folder / "base"), *short.split(), *tasks, "--checkpoint-every", "4"]
    out = folder / "short.safetensors"
    ended = forked([*arguments, "--out", str(out)])
    assert ended.code == 0, ended.err
    assert not out.with_name("short.safetensors.run").exists()
    return arguments, out.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed(command, tmp_path, moment) -> None:
    arguments, whole = command
    out = tmp_path / "a.safetensors"
    assert forked([*arguments, "--out", str(out)], MOMENTS[moment]).code == -signal.SIGKILL
    ended = forked([*arguments, "--out", str(out), "--resume"])
    assert ended.code == 0, ended.err
    assert out.read_bytes() == whole
    assert snapshot(tmp_path).keys() == {"a.safetensors"}


@pytest.mark.slow
def test_an_interrupted_run_is_resumed_with_its_settings_or_replaced(command, tmp_path) -> None:
    arguments, whole = command
    out = ["--out", str(tmp_path / "a.safetensors")]
    nothing = forked([*arguments, *out, "--resume"])
    assert nothing.code == 2
    assert "there is no interrupted run" in nothing.err
    assert forked([*arguments, *out], MOMENTS["after a checkpoint"]).code == -signal.SIGKILL
    for more, told in (
        ([], "holds an interrupted run: continue it with --resume"),
        (["--resume", "--gate-lr", "0.2"], "other settings: --gate-lr 0.1 (now --gate-lr 0.2)"),
    ):
        ended = forked([*arguments, *out, *more])
        assert (ended.code, told in ended.err) == (2, True), ended.err
    assert forked([*arguments, *out, "--replace"]).code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == whole
