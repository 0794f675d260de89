"""Regrowth during a run: the entries that move, the steps, and equal bits after an interruption."""

from __future__ import annotations

import copy
import os
import signal

import pytest
import tiny
import torch
from tiny_task import forked, tuning

import taskedge as te
from taskedge.errors import InputError, TaskEdgeError
from taskedge.forms.install import installation
from taskedge.forms.regrow import moved_positions
from taskedge.training import checkpoint, regrow_callback
from taskedge.training.callbacks import Callback
from taskedge.training.regrow_callback import NUM_BATCHES, Regrow
from taskedge.training.trainer import train
from taskedge.training.trainer_config import TrainerConfig

SETTINGS = TrainerConfig(epochs=3, batch_size=4, accumulate=2, lr=1e-2, seed=5, checkpoint_every=2, regrow=3)


def rows(count=26):
    draw = torch.Generator().manual_seed(0)
    return [
        {"input_ids": torch.randint(1, tiny.VOCABULARY, (6,), generator=draw), "labels": place % tiny.LABELS}
        for place in range(count)
    ]


def collate(examples):
    return {
        "input_ids": torch.stack([row["input_ids"] for row in examples]),
        "labels": torch.tensor([row["labels"] for row in examples]),
    }


def model(step="activation"):
    made = tiny.bert(dropout=0.2)
    return te.install(made, te.select(made, [tiny.batch(made)], per_neuron=2), step=step)


def run(folder, settings=SETTINGS, **options):
    made = model()
    torch.manual_seed(0)
    train(made, rows(), collate, settings, folder, progress=False, **options)
    return made


def support(made):
    return {name: linear.flat for name, linear in installation(made).support.linears.items()}


class Watch(Callback):
    """Record the positions of the entries after every step, and interrupt the run at step ``stop``."""

    def __init__(self, stop=None):
        self.stop, self.seen = stop, []

    def on_step_end(self, state):
        self.seen.append(support(state.model))
        if state.step == self.stop:
            raise KeyboardInterrupt


def moved(one, other):
    return {name: int((~torch.isin(one[name], other[name])).sum()) for name in one}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    torch.set_num_threads(1)
    watch = Watch()
    made = run(tmp_path_factory.mktemp("whole"), callbacks=[watch])
    return tiny.state(made), watch.seen


def test_a_falling_share_moves_every_so_many_steps(uninterrupted):
    before = support(model())
    for step, now in enumerate(uninterrupted[1], start=1):
        share = 0.2 * (1 - step / 12) if step % 3 == 0 else 0
        assert moved(before, now) == {name: int(share * len(flat)) for name, flat in before.items()}, step
        before = now
    assert len(uninterrupted[1]) == 12


@pytest.mark.slow
@pytest.mark.parametrize("stops", [[2], [3], [4], [5, 9], [7, 8], [11]])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, uninterrupted, stops):
    for step in stops:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, resume=True, callbacks=[Watch(step)])
        torch.rand(7)
    made = run(tmp_path, resume=True)
    assert tiny.same_bits(made.state_dict(), uninterrupted[0])


def test_new_entries_are_where_the_loss_pulls_most(tmp_path, monkeypatch):
    """Compare with plain autograd on a fused copy, in evaluation mode, over the same batches."""
    seen = []

    def watched(model, optimizer, gradient, share):
        seen.append((copy.deepcopy(model).eval(), {name: gradient(name).clone() for name in support(model)}))

    monkeypatch.setattr(regrow_callback, "regrow", watched)
    run(tmp_path, SETTINGS.model_copy(update={"regrow": 7, "checkpoint_every": 0}))
    ((frozen, gradients),) = seen
    batches = Regrow(rows(), collate, SETTINGS)._batches(7)
    assert len(batches) == NUM_BATCHES
    plain = te.fuse(frozen).requires_grad_(True)
    for batch in batches:
        (plain(**batch).loss / NUM_BATCHES).backward()
    for name, found in gradients.items():
        torch.testing.assert_close(found, plain.get_submodule(name).weight.grad, rtol=1e-4, atol=1e-8)


def test_the_run_itself_is_not_disturbed(tmp_path, monkeypatch):
    """Taking gradients draws no random number and leaves no gradient: a move of no entry changes nothing."""
    still = tiny.state(run(tmp_path / "none", SETTINGS.model_copy(update={"regrow": 0})))
    monkeypatch.setattr(regrow_callback, "regrow", lambda *arguments: 0)
    assert tiny.same_bits(run(tmp_path / "looks").state_dict(), still)


@pytest.mark.slow
def test_checkpoints_hold_where_the_entries_are_only_if_they_moved(tmp_path):
    run(tmp_path / "moved")
    made = run(tmp_path / "still", SETTINGS.model_copy(update={"regrow": 0}))
    assert moved_positions(made) == {}
    for folder, held in (("moved", True), ("still", False)):
        names = checkpoint.Checkpoint(checkpoint.latest(tmp_path / folder))._tensors
        assert any(name.startswith("support/") for name in names) is held


def test_a_checkpoint_with_another_support_is_refused(tmp_path):
    run(tmp_path)
    read = checkpoint.Checkpoint(checkpoint.latest(tmp_path))
    other = model()
    before, stood = tiny.state(other), support(other)
    name = [name for name in read._tensors if name.startswith("support/")][-1]
    for bad in (read._tensors[name][1:], read._tensors[name].flip(0), read._tensors[name] + 10**6):
        read._tensors[name] = bad
        with pytest.raises((InputError, TaskEdgeError)):
            read.restore_parameters(other)
        assert tiny.same_bits(other.state_dict(), before)
        assert all(torch.equal(stood[linear], flat) for linear, flat in support(other).items())


def test_what_cannot_move_is_refused_before_the_first_step(tmp_path):
    made = tiny.bert()
    before = tiny.state(made)
    te.install(made, te.select(made, rule="magnitude", per_neuron=1), form="sparse_lora")
    for model, told in ((made, "only in the form 'sparse'"), (tiny.bert(), "no support installed")):
        with pytest.raises(InputError, match=told):
            train(model, rows(), collate, SETTINGS, tmp_path, progress=False)
    assert tiny.same_bits(te.fuse(made).state_dict(), before)


@pytest.mark.slow
def test_tune_killed_and_resumed(task, tmp_path):
    arguments = ["--regrow", "2", "--regrow-share", "0.5", "--checkpoint-every", "3"]
    assert forked(tuning(task, "--out", tmp_path / "whole", *arguments)).code == 0
    assert forked(tuning(task, "--out", tmp_path / "still", "--checkpoint-every", "3")).code == 0
    whole, still = te.load(tmp_path / "whole"), te.load(tmp_path / "still")
    assert whole.num_entries == still.num_entries
    assert any(not torch.equal(whole.linears[name].columns, still.linears[name].columns) for name in whole.linears)
    assert (still.provenance.allocation, whole.provenance.allocation) == ("per_neuron", "per_neuron, regrown")

    def arrange():
        original, calls = checkpoint.write, iter(range(9))

        def last(*given, **named):
            original(*given, **named)
            if next(calls) == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoint.write = last

    killed = tuning(task, "--out", tmp_path / "killed", *arguments)
    assert forked(killed, arrange).code == -signal.SIGKILL
    ended = forked([*killed, "--resume"])
    assert ended.code == 0, ended.err
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()
