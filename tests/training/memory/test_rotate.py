"""Blocks in turn: one trains, backpropagation ends at it, the others and what the optimizer knows of them stay."""

from __future__ import annotations

import pytest
import tiny
import torch
from rotation_model import Watch, collate, model, rows

import taskedge as te
from taskedge.backbone.blocks import blocks
from taskedge.errors import InputError
from taskedge.training.memory.rotate import Rotation
from taskedge.training.trainer import train
from taskedge.training.trainer_config import TrainerConfig

SETTINGS = TrainerConfig(epochs=3, batch_size=4, accumulate=2, lr=1e-2, seed=5, checkpoint_every=2, rotate=2)


def run(folder, settings=SETTINGS, **options):
    made = model()
    torch.manual_seed(0)
    train(made, rows(), collate, settings, folder, progress=False, **options)
    return made


def test_only_the_block_whose_turn_it_is_trains_and_the_head(tmp_path):
    watch = Watch()
    made = run(tmp_path, callbacks=[watch])
    first, last = (f"{block.name}." for block in blocks(made))
    assert len(watch.moved) == 12
    for step, moved in enumerate(watch.moved):
        inside = {name for name in moved if not name.startswith("classifier.")}
        assert {"classifier.weight", "classifier.bias"} <= moved
        assert inside
        assert all(name.startswith(last if step // 2 % 2 == 0 else first) for name in inside), step
    assert all(p.requires_grad for name, p in made.named_parameters() if name.endswith("offsets"))


def test_backpropagation_ends_at_the_block():
    made = model().train()
    given = tiny.batch(made)
    reached = []
    lower = blocks(made)[0].module
    lower.register_forward_hook(lambda module, inputs, output: reached.append(torch.as_tensor(output[0]).requires_grad))
    rotation = Rotation(made, 1)
    for step in range(4):
        block = rotation.begin(step)
        made(**given).loss.backward()
        assert block.depth == 1 + step % 2
        grads = {name for name, p in made.named_parameters() if p.grad is not None and "offsets" in name}
        assert grads
        assert all(name.startswith(f"{block.name}.") for name in grads)
        made.zero_grad()
        rotation.end()
    assert reached == [False, True, False, True]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny.state(run(tmp_path_factory.mktemp("whole")))


@pytest.mark.slow
@pytest.mark.parametrize("stops", [[1], [3], [3, 6, 9]])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, uninterrupted, stops):
    for step in stops:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, resume=True, callbacks=[Watch(step)])
    assert tiny.same_bits(run(tmp_path, resume=True).state_dict(), uninterrupted)


def test_a_model_without_turns():
    with pytest.raises(InputError, match="has 0 blocks with something to train, and rotation needs two"):
        Rotation(tiny.mlp(), 1)
    made = tiny.bert()
    te.install(made, te.select(made, rule="random", per_neuron=1, depth=1))
    with pytest.raises(InputError, match="has 1 blocks with something to train"):
        Rotation(made, 1)
    with pytest.raises(InputError, match="turns of 0 steps"):
        Rotation(made, 0)


def test_with_recomputation_the_same_bits(tmp_path, uninterrupted):
    torch.set_num_threads(1)
    made = run(tmp_path, TrainerConfig(**SETTINGS.model_dump() | {"recompute": "blocks"}))
    assert tiny.same_bits(made.state_dict(), uninterrupted)
