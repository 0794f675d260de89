"""Held-out loss while a run trains: what stops it, what is kept, and a resumed run that ends with the same bytes."""

from __future__ import annotations

import json
import signal

import pytest
import tiny_task
import torch
from killed_runs import OFTEN, killed_at
from tiny_task import forked, snapshot, tune_config, tuning

from taskedge.delta.extract import extract
from taskedge.delta.file import load
from taskedge.training import checkpoint, held_out
from taskedge.training.callbacks import Callback, TrainState
from taskedge.training.held_out import HELD_OUT_LOSS, HeldOut, held_out_loss
from taskedge.training.run import prepare_run
from taskedge.training.trainer import train
from taskedge.training.tune import tune

WATCHED = ("--validation", "25%", "--eval-every", 2, "--keep", "best", "--lr", 0.3, *OFTEN)


@pytest.fixture(scope="module")
def prepared(task, tmp_path_factory):
    run = prepare_run(tune_config(task, tmp_path_factory.mktemp("p") / "o", validation="25%", eval_every=2), str)
    run.load()
    return run


def test_the_loss_is_that_of_all_rows_in_one_batch_and_moves_nothing(prepared):
    rows, _ = prepared.held_out_rows()
    assert (len(rows), len(prepared.rows)) == (24, 72)
    model = prepared.base.model.train()
    before = torch.random.get_rng_state()
    loss = held_out_loss(model, rows, prepared.collate, 7)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.no_grad():
        logits = model.eval()(**{k: v for k, v in prepared.collate(list(rows)).items() if k != "labels"}).logits
    labels = torch.tensor([row["labels"] for row in rows])
    assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)


class Played(HeldOut):
    """Losses that a test gives."""

    def __init__(self, folder, losses, **more):
        given = {"every": 1, "patience": None, "keep_best": False, "batch_size": 4, "log": str} | more
        super().__init__([], list, folder, folder, **given)
        self.losses = iter(losses)


@pytest.mark.parametrize(
    ("losses", "patience", "stops", "best"),
    [
        ([3.0, 2.0, 1.0, 0.5], 1, 4, 4),
        ([3.0, 2.0, 2.5, 2.6, 1.0], 2, 4, 2),
        ([3.0, 3.0, 3.0], 2, 3, 1),
        ([3.0, float("inf"), 2.0, 2.1, 2.2], 2, 5, 3),
    ],
)
def test_patience_counts_evaluations_without_a_new_best(tmp_path, monkeypatch, losses, patience, stops, best):
    watch = Played(tmp_path, losses, patience=patience)
    monkeypatch.setattr(held_out, "held_out_loss", lambda *_: next(watch.losses))
    state = TrainState(None, None, 100)
    watch.on_train_begin(state)
    while not state.stop and state.step < len(losses):
        state.step += 1
        watch.on_step_end(state)
    assert (state.step, watch.best["step"]) == (stops, best)
    again = Played(tmp_path, [], patience=patience)
    resumed = TrainState(None, None, 100, step=state.step, log=json.loads(json.dumps(state.log)))
    again.on_train_begin(resumed)
    assert (resumed.stop, again.best) == (state.stop, watch.best)


def test_the_kept_values_are_those_of_the_best_step_bit_for_bit(task, tmp_path):
    """The twin trains without evaluations; its values are copied at every step."""
    kept = tune_config(task, tmp_path / "kept", validation="25%", eval_every=1, keep="best", lr=0.3)
    lines = []
    tune(kept, progress=False, log=lines.append)
    file = load(tmp_path / "kept")
    step = file.provenance.training["kept_step"]
    assert 0 < step < 9, "the test needs a best step before the last"
    assert file.provenance.training | {"validation": "25%", "keep": "best", "held_out_rows": 24, "steps": 9} == (
        file.provenance.training
    )
    assert any(line.startswith(f"kept the values of step {step}, held-out loss ") for line in lines)
    seen = {}

    class Copy(Callback):
        def on_step_end(self, state):
            seen[state.step] = extract(state.model)

    twin = prepare_run(kept, str)
    twin.load()
    installed = twin.install(twin.select())
    train(
        installed.model, twin.rows, twin.collate, kept.trainer_config(), tmp_path, head=twin.full_names,
        callbacks=[Copy()], progress=False,
    )  # fmt: skip
    assert len(seen) == 9
    for name, linear in seen[step].linears.items():
        assert torch.equal(linear.values, file.linears[name].values)
    for name, value in seen[step].full_parameters.items():
        assert torch.equal(value, file.full_parameters[name])
    assert any(not torch.equal(seen[9].linears[name].values, file.linears[name].values) for name in file.linears)


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--early-stop", 2)], ids=["to the end", "stopped early"])
def test_a_resumed_run_keeps_the_same_bytes(task, tmp_path, more):
    whole = tmp_path / "whole"
    assert forked([*tuning(task, *WATCHED, *more, "--epochs", 2, "--out", whole)]).code == 0
    for number, arrange in enumerate(
        (
            killed_at(held_out, "held_out_loss", call=2),
            killed_at(checkpoint, "write", call=2, after=True),
            killed_at(checkpoint, "write_as", call=2, after=True),
            killed_at(checkpoint, "write_as", call=3),
        )
    ):
        out = tmp_path / f"o{number}"
        arguments = tuning(task, *WATCHED, *more, "--epochs", 2, "--out", out)
        assert forked(arguments, arrange).code == -signal.SIGKILL
        ended = forked([*arguments, "--resume"])
        assert ended.code == 0, ended.err
        assert out.read_bytes() == whole.read_bytes()
        assert f"o{number}.run" not in snapshot(tmp_path)


def test_other_held_out_data_is_no_resumption(task, tmp_path):
    held = tiny_task.table(tmp_path / "h.csv", tiny_task.rows(12, seed=3))
    arguments = tuning(task, "--validation", held, "--eval-every", 2, *OFTEN, "--out", tmp_path / "o")
    assert forked(arguments, killed_at(checkpoint, "write", after=True)).code == -signal.SIGKILL
    tiny_task.table(held, tiny_task.rows(12, seed=4))
    ended = forked([*arguments, "--resume"])
    assert "the interrupted run had other settings: other held-out data" in ended.err


def test_evaluations_are_no_part_of_a_step(task, tmp_path, monkeypatch):
    watch = Played(tmp_path, [1.0])
    monkeypatch.setattr(held_out, "held_out_loss", lambda *_: next(watch.losses))
    state = TrainState(None, None, 1, step=1)
    watch.on_step_end(state)
    assert state.outside_seconds > 0
    assert state.log == [{"step": 1, HELD_OUT_LOSS: 1.0}]
