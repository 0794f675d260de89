"""A checkpoint holds what is trained and where the run was, nothing of the base, and is whole or refused."""

import random

import numpy as np
import pytest
import tiny
import torch

import taskedge as te
from taskedge.errors import InputError, TaskEdgeError
from taskedge.training import checkpoint as checkpoints
from taskedge.training.checkpoint import STATE, Checkpoint, latest, write


def run(model=None, per_neuron=1, steps=2):
    """A model in training, with its optimiser and schedule."""
    model = model or tiny.bert()
    te.install(model, te.select(model, rule="magnitude", per_neuron=per_neuron))
    optimizer = torch.optim.AdamW(tiny.trained(model), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    advance(model, optimizer, scheduler, steps)
    return model, optimizer, scheduler


def advance(model, optimizer, scheduler, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        tiny.loss(model, tiny.batch(model, seed=random.randrange(100))).backward()
        optimizer.step()
        scheduler.step()


def test_a_run_goes_on_bit_for_bit(tmp_path):
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    first = run()
    path = write(tmp_path, 2, *first, trainer_state="{}")
    advance(*first, steps=3)
    drawn = random.random(), np.random.rand(), torch.rand(1).item()

    second = run(steps=1)
    read = Checkpoint(path)
    for _ in range(2):  # reading it again changes nothing
        read.restore_parameters(second[0])
        read.restore_optimizer(*second[1:])
        read.restore_random()
    advance(*second, steps=3)
    assert tiny.same_bits(second[0].state_dict(), first[0].state_dict())
    assert second[2].get_last_lr() == first[2].get_last_lr()
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn


def test_it_holds_no_copy_of_the_base(tmp_path):
    model, *rest = run()
    trained = sum(parameter.numel() for parameter in tiny.trained(model))
    path = write(tmp_path, 2, model, *rest, trainer_state="{}")
    tensors = Checkpoint(path)._tensors
    kept = sum(t.numel() for name, t in tensors.items() if not name.startswith("random/"))
    assert kept == 3 * trained + len(tiny.trained(model))  # values, two moments, and a step count each
    assert not [name for name in tensors if name.endswith(".weight") and "classifier" not in name]


def test_the_newest_counts_and_older_ones_go(tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "none") is None
    going = run()
    for step in (8, 9, 10):
        assert write(tmp_path, step, *going, trainer_state="{}") == latest(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-9", "checkpoint-10"}  # one may prove bad
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / ".checkpoint-11.99").mkdir()
    (tmp_path / "checkpoint-12").write_text("a file")
    assert latest(tmp_path).name == "checkpoint-10"


@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.rename", "pathlib.Path.write_bytes"])
def test_a_failing_write_leaves_the_older_checkpoint(tmp_path, monkeypatch, where):
    going = run()
    path = write(tmp_path, 1, *going, trainer_state="{}")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(where, full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\); older ones are whole"):
        write(tmp_path, 2, *going, trainer_state="{}")
    assert list(tmp_path.iterdir()) == [path]
    Checkpoint(path)


def test_every_kind_of_damage_is_refused(tmp_path):
    model, *rest = run()
    path = write(tmp_path, 2, model, *rest, trainer_state="{}")
    before = tiny.state(model)
    content = (path / STATE).read_bytes()
    draw = random.Random(0)
    damaged = [content[: draw.randrange(len(content))] for _ in range(50)]
    damaged += [b"", b"x" * 100, (2**60).to_bytes(8, "little") + content[8:]]
    for _ in range(300):
        place = draw.randrange(len(content))
        damaged.append(content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :])
    for bad in damaged:
        (path / STATE).write_bytes(bad)
        with pytest.raises(InputError, match="the checkpoint is damaged"):
            Checkpoint(path)
    (path / STATE).unlink()
    with pytest.raises(InputError, match="the checkpoint is damaged"):
        Checkpoint(path)
    assert tiny.same_bits(model.state_dict(), before)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = write(tmp_path, 2, *run(), trainer_state="{}")
    for other in (run(per_neuron=2)[0], run(tiny.mlp())[0]):
        before = tiny.state(other)
        with pytest.raises(TaskEdgeError, match="made by another run: it differs in"):
            Checkpoint(path).restore_parameters(other)
        assert tiny.same_bits(other.state_dict(), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda read: read._rest.pop("scalars"),
        lambda read: read._rest.pop("groups"),
        lambda read: read._rest.update(groups=[]),
        lambda read: read._rest.update(groups=3),
        lambda read: read._rest.update(scheduler=None),
        lambda read: read._rest.update(scalars={"x": 1}),
        lambda read: read._tensors.update({"optimizer/x/y": torch.zeros(1)}),
        lambda read: read._rest.pop("random"),
        lambda read: read._rest["random"].update(python=[1]),
        lambda read: read._rest["random"]["numpy"].pop("state"),
        lambda read: read._tensors.pop("random/torch"),
        lambda read: read._tensors.update({"random/torch": torch.zeros(3)}),
    ],
)
def test_absurd_content_is_refused(tmp_path, change):
    model, *rest = run()
    read = Checkpoint(write(tmp_path, 2, model, *rest, trainer_state="{}"))
    change(read)

    def restore():
        read.restore_parameters(model)
        read.restore_optimizer(*rest)
        read.restore_random()

    with pytest.raises(TaskEdgeError, match=r"checkpoint-2: .*start anew"):
        restore()


def test_no_pickle_is_written(tmp_path):
    path = write(tmp_path, 2, *run(), trainer_state="{}")
    assert sorted(file.name for file in path.iterdir()) == [STATE, "trainer_state.json"]
    assert checkpoints.PREFIX == "checkpoint-"
