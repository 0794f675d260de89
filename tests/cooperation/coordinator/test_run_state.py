"""The coordinator's side of training: one step over the answers, versions, and a state that can be restored."""

import json

import pytest
import tiny_fleet
import torch
from safetensors.torch import load, save

import taskedge as te
from taskedge.cooperation.coordinator.run_state import RunState
from taskedge.cooperation.protocol.validation import AcceptedAnswer
from taskedge.cooperation.scheduling.freezing import FreezingConfig
from taskedge.cooperation.scheduling.trained_blocks import trained_blocks

FULL = ("classifier.weight", "classifier.bias")


def new_state(seed=7, freezing=None, **settings):
    model = tiny_fleet.model(seed=seed)
    te.install(model, te.select(model, rule="magnitude", per_neuron=1), trainable=FULL, step="plain")
    return RunState(model, trained_blocks(model), FULL, tiny_fleet.settings(**settings), freezing or FreezingConfig())


def answer(state, blocks, scale=1.0, tokens=4, round_number=1):
    draw = torch.Generator().manual_seed(round_number)
    names = state.training.names_in(blocks)
    tensors = {name: scale * torch.randn(state.values[name].shape, generator=draw) for name in names}
    return AcceptedAnswer(tensors, tokens, 0.5, 0.1)


def test_a_gradient_moves_the_values_of_its_blocks():
    state = new_state(lr=0.5, head_lr=0.25)
    state.begin_round(1)
    gradient = answer(state, (0, 2))
    update = state.end_round([gradient], 1)
    assert (state.round, state.version) == (1, 1)
    for name, value in state.values.items():
        rate = 0.25 if name in FULL else 0.5
        expected = state.initial_values[name]
        if name in gradient.tensors:
            expected = (expected.double() - rate * gradient.tensors[name].double()).float()
        assert torch.equal(value, expected), name
    squares = sum(float(tensor.double().square().sum()) for tensor in gradient.tensors.values())
    assert update.norm == pytest.approx(squares**0.5)
    assert state.values_since(0).keys() == gradient.tensors.keys()
    assert state.values_since(1) == {}


def test_clipping_is_by_the_norm_over_all_blocks():
    free, clipped = new_state(), new_state(clip=0.1)
    for state in (free, clipped):
        state.begin_round(1)
        norm = state.end_round([answer(state, (0, 1)), answer(state, (2,))], 1).norm
    name = clipped.blocks.names[1][0]
    moved, limited = (s.values[name] - s.initial_values[name] for s in (free, clipped))
    torch.testing.assert_close(limited, moved * (0.1 / norm), rtol=1e-4, atol=1e-6)


def test_values_are_averaged_with_the_servers_rate():
    state = new_state(local_steps=2, server_optimizer=None, server_lr=0.5)
    state.begin_round(1)
    name = state.blocks.names[1][0]
    values = [state.values[name] + 1, state.values[name] + 2.5]
    answers = [AcceptedAnswer({name: v}, tokens, 0.5, 0.1) for v, tokens in zip(values, (2, 1), strict=True)]
    state.end_round(answers, 1)
    torch.testing.assert_close(state.values[name], state.initial_values[name] + 0.5 * 1.5)
    assert state.update_of(answers[0].tensors)[name].mean() == pytest.approx(-0.25)


def test_a_round_without_answers_changes_nothing_but_its_number():
    state = new_state()
    state.begin_round(1)
    assert state.end_round([], 1).norm == 0.0
    assert (state.round, state.version) == (1, 0)
    assert all(torch.equal(value, state.initial_values[name]) for name, value in state.values.items())


def test_the_payload_counts_what_trains_in_the_round():
    state = new_state(freezing=FreezingConfig(0.25, stage=1, window=1, every=9))
    full = tuple(sum(state.values[name].numel() for name in names) for names in state.blocks.names[1:])
    assert state.begin_round(1) == full
    state.end_round([answer(state, range(5))], 1)
    assert sum(state.begin_round(2)) < sum(full)
    assert state.training.names[0] == state.blocks.names[0]  # the head is never frozen


@pytest.mark.parametrize("optimizer", ["sgd", "fedavgm", "fedadamw"])
def test_a_restored_state_continues_to_the_same_bits(optimizer):
    """Through JSON and safetensors, into a state whose head was initialized differently."""

    def rounds(state, numbers):
        for number in numbers:
            state.begin_round(number)
            accepted = answer(state, (0, 1 + number % 4), round_number=number)
            state.norms.add(state.norms_of(accepted))
            state.end_round([accepted], number)

    settings = {"server_optimizer": optimizer, "active_share": 0.5, "freezing": FreezingConfig(0.5, 2, 1, 3)}
    whole = new_state(**settings)
    rounds(whole, range(1, 9))
    first, second = new_state(**settings), new_state(seed=55, **settings)
    rounds(first, range(1, 5))
    fields, tensors = first.state_dict()
    second.load_state_dict(json.loads(json.dumps(fields)), load(save(tensors)))
    assert second.version == first.version
    assert all(torch.equal(v, first.initial_values[n]) for n, v in second.initial_full_parameters().items())
    rounds(second, range(5, 9))
    assert all(torch.equal(value, second.values[name]) for name, value in whole.values.items())
    assert json.dumps(whole.state_dict()[0]) == json.dumps(second.state_dict()[0])


def test_values_are_written_into_a_model():
    state = new_state()
    state.begin_round(1)
    state.end_round([answer(state, range(5))], 1)
    model = tiny_fleet.model(seed=3)
    te.install(model, te.select(model, rule="magnitude", per_neuron=1), trainable=FULL, step="plain")
    state.write_into(model)
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name].detach(), value) for name, value in state.values.items())
