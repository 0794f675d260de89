"""A checkpoint holds what is trained and the position of the run, nothing of the base, and is complete or refused."""

import json
import random

import numpy as np
import pytest
import tiny
import torch

import taskedge as te
from taskedge.errors import InputError, TaskEdgeError
from taskedge.training import checkpoint as checkpoints
from taskedge.training.callbacks import TrainState
from taskedge.training.checkpoint import STATE, Checkpoint, latest, write


def run(model=None, per_neuron=1, steps=2):
    """A training run after some steps."""
    model = model or tiny.bert()
    te.install(model, te.select(model, rule="magnitude", per_neuron=per_neuron))
    state = TrainState(model, torch.optim.AdamW(tiny.trained(model), lr=1e-2), max_steps=10)
    advance(state, steps)
    return state


def advance(state, steps):
    for _ in range(steps):
        state.optimizer.zero_grad()
        tiny.loss(state.model, tiny.batch(state.model, seed=random.randrange(100))).backward()
        state.optimizer.step()
        state.step += 1
        state.loss_sum += 0.1 * state.step
        state.log.append({"step": state.step, "loss": 0.5})


def test_a_run_continues_bit_for_bit(tmp_path):
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    first = run()
    path = write(tmp_path, first)
    position = first.step, first.loss_sum, list(first.log)
    advance(first, steps=3)
    drawn = random.random(), np.random.rand(), torch.rand(1).item()

    second = run(steps=1)
    read = Checkpoint(path)
    for _ in range(2):  # reading it again changes nothing
        read.restore(second)
        read.restore_random()
    assert (second.step, second.loss_sum, second.log) == position
    advance(second, steps=3)
    assert tiny.same_bits(second.model.state_dict(), first.model.state_dict())
    assert (second.step, second.loss_sum, second.log) == (first.step, first.loss_sum, first.log)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn


def test_a_checkpoint_with_the_position_of_the_trainer_is_read(tmp_path):
    """Earlier versions trained with the Trainer of transformers, and stored its state."""
    state = run()
    position = {"global_step": 2, "log_history": [], "stateful_callbacks": {"taskedge_loss_sum": 1.5}, "epoch": 0.5}
    read = Checkpoint(write(tmp_path, state))
    read._position = json.dumps(position)
    other = run(steps=1)
    read.restore(other)
    assert (other.step, other.loss_sum, other.log) == (2, 1.5, [])


def test_it_holds_no_copy_of_the_base(tmp_path):
    state = run()
    model = state.model
    trained = sum(parameter.numel() for parameter in tiny.trained(model))
    path = write(tmp_path, state)
    tensors = Checkpoint(path)._tensors
    kept = sum(t.numel() for name, t in tensors.items() if not name.startswith("random/"))
    assert kept == 3 * trained + len(tiny.trained(model))  # values, two moments, and a step count each
    assert not [name for name in tensors if name.endswith(".weight") and "classifier" not in name]


def test_the_newest_counts_and_older_ones_go(tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "none") is None
    state = run()
    for state.step in (8, 9, 10):
        assert write(tmp_path, state) == latest(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-9", "checkpoint-10"}  # one may prove bad
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / ".checkpoint-11.99").mkdir()
    (tmp_path / "checkpoint-12").write_text("a file")
    assert latest(tmp_path).name == "checkpoint-10"


@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.rename", "pathlib.Path.write_bytes"])
def test_a_failing_write_leaves_the_older_checkpoint(tmp_path, monkeypatch, where):
    state = run(steps=1)
    path = write(tmp_path, state)
    state.step = 2

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(where, full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\); older ones are complete"):
        write(tmp_path, state)
    assert list(tmp_path.iterdir()) == [path]
    Checkpoint(path)


@pytest.mark.slow
def test_every_kind_of_damage_is_refused(tmp_path):
    state = run()
    model, path = state.model, write(tmp_path, state)
    before = tiny.state(model)
    content = (path / STATE).read_bytes()
    draw = random.Random(0)
    damaged = [content[: draw.randrange(len(content))] for _ in range(50)]
    damaged += [b"", b"x" * 100, (2**60).to_bytes(8, "little") + content[8:]]
    for _ in range(300):
        index = draw.randrange(len(content))
        damaged.append(content[:index] + bytes([content[index] ^ (1 << draw.randrange(8))]) + content[index + 1 :])
    for bad in damaged:
        (path / STATE).write_bytes(bad)
        with pytest.raises(InputError, match="the checkpoint is damaged"):
            Checkpoint(path)
    (path / STATE).unlink()
    with pytest.raises(InputError, match="the checkpoint is damaged"):
        Checkpoint(path)
    assert tiny.same_bits(model.state_dict(), before)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = write(tmp_path, run())
    for other in (run(per_neuron=2).model, run(tiny.mlp()).model):
        before = tiny.state(other)
        with pytest.raises(TaskEdgeError, match="made by another run: it differs in"):
            Checkpoint(path).restore_parameters(other)
        assert tiny.same_bits(other.state_dict(), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda read: read._header.pop("scalars"),
        lambda read: read._header.pop("groups"),
        lambda read: read._header.update(groups=[]),
        lambda read: read._header.update(groups=3),
        lambda read: setattr(read, "_position", "[]"),
        lambda read: setattr(read, "_position", "{"),
        lambda read: read._header.update(scalars={"x": 1}),
        lambda read: read._tensors.update({"optimizer/x/y": torch.zeros(1)}),
        lambda read: read._header.pop("random"),
        lambda read: read._header["random"].update(python=[1]),
        lambda read: read._header["random"]["numpy"].pop("state"),
        lambda read: read._tensors.pop("random/torch"),
        lambda read: read._tensors.update({"random/torch": torch.zeros(3)}),
    ],
)
def test_absurd_content_is_refused(tmp_path, change):
    state = run()
    read = Checkpoint(write(tmp_path, state))
    change(read)

    def restore():
        read.restore(state)
        read.restore_random()

    with pytest.raises(TaskEdgeError, match=r"checkpoint-2: .*start anew"):
        restore()


def test_no_pickle_is_written(tmp_path):
    path = write(tmp_path, run())
    assert sorted(file.name for file in path.iterdir()) == [STATE, "trainer_state.json"]
    assert checkpoints.PREFIX == "checkpoint-"
