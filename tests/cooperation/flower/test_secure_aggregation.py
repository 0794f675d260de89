"""The mean by SecAgg+ is the mean of the answers, and no single answer can be read from what the server gets."""

import io
from types import SimpleNamespace

import pytest
import tiny_fleet
import torch

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'taskedge[flower]' in an environment of its own")
import flower_grid
import numpy as np
from flwr.app import Error
from flwr.app import Message as FlowerMessage
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key

from taskedge.cooperation.flower.records import from_content, to_content
from taskedge.cooperation.flower.secure_aggregation import SecureStrategy, secure_client_app
from taskedge.cooperation.flower.strategy import TaskEdgeStrategy
from taskedge.cooperation.protocol.message import Message
from taskedge.errors import InputError

HOW = {"mode": "fedavg", "devices": 3, "rounds": 2}


def secure_grid(count=3):
    made = flower_grid.InProcess()
    for number in range(count):
        made.join(100 - number, secure_client_app(flower_grid.node_setup), name=f"d{number}", number=number)
    return made


def started(strategy, grid, rounds=2):
    strategy.start(grid, strategy.arrays(), num_rounds=rounds, timeout=60)
    return strategy.state.values


def alike(message, reply):
    """Every device counts alike, as with secure aggregation."""
    answer = from_content(reply.content)
    if answer.kind not in ("gradients", "values"):
        return reply
    return FlowerMessage(
        to_content(Message(answer.kind, {**answer.header, "tokens": 4}, answer.tensors)), reply_to=message
    )


def plain_values(how, absent=()):
    grid = flower_grid.grid(3)
    grid.changes = dict.fromkeys(grid.apps, alike)
    for node in absent:
        grid.changes[node] = dropped(lambda message: from_content(message.content).kind == "task")
    return started(TaskEdgeStrategy(tiny_fleet.model(), how), grid, how.rounds)


def dropped(when):
    return lambda message, reply: FlowerMessage(Error(0, "gone"), reply_to=message) if when(message) else reply


def is_masked_answer(message):
    configs = message.content.config_records.get(RECORD_KEY_CONFIGS)
    return configs is not None and Key.CIPHERTEXT_LIST in configs


@pytest.mark.slow
@pytest.mark.parametrize("local_steps", [1, 2])
def test_the_values_are_those_of_the_mean_in_the_clear(local_steps):
    how = tiny_fleet.settings(**HOW, local_steps=local_steps)
    secure = started(SecureStrategy(tiny_fleet.model(), how), secure_grid())
    for name, value in plain_values(how).items():
        torch.testing.assert_close(secure[name], value, rtol=0, atol=2e-5, msg=name)


@pytest.mark.slow
def test_a_device_that_drops_out_after_its_keys_are_shared_is_left_out_and_the_masks_come_off():
    how = tiny_fleet.settings(**{**HOW, "rounds": 1})
    grid, events = secure_grid(), []
    grid.changes[99] = dropped(is_masked_answer)
    secure = started(SecureStrategy(tiny_fleet.model(), how, on_event=events.append), grid, 1)
    for name, value in plain_values(how, absent=[99]).items():
        torch.testing.assert_close(secure[name], value, rtol=0, atol=2e-5, msg=name)
    assert {e["device"]: e["result"] for e in events if e["event"] == "task"} == {
        "d0": "accepted", "d1": "gone", "d2": "accepted",
    }  # fmt: skip


@pytest.mark.slow
def test_what_the_server_gets_of_one_device_tells_nothing_of_its_answer():
    how, seen = tiny_fleet.settings(**{**HOW, "rounds": 1}), {}
    grid = secure_grid()

    def look(message, reply):
        if is_masked_answer(message):
            masked = reply.content.config_records[RECORD_KEY_CONFIGS][Key.MASKED_PARAMETERS]
            arrays = [np.load(io.BytesIO(array), allow_pickle=False) for array in masked]
            seen[message.metadata.dst_node_id] = np.concatenate([array.ravel() for array in arrays]).astype(float)
            assert not any(len(record) for record in reply.content.array_records.values())
        return reply

    grid.changes = dict.fromkeys(grid.apps, look)
    strategy = SecureStrategy(tiny_fleet.model(), how)
    started(strategy, grid, 1)
    sums = sum(seen.values())
    assert len(seen) == 3
    for masked in seen.values():  # uniform over 2^32, whatever the gradients are
        assert abs(masked.mean() / 2**32 - 0.5) < 0.1
        assert masked.std() / 2**32 == pytest.approx(1 / 12**0.5, abs=0.05)
        assert abs(np.corrcoef(masked[1:], sums[1:] % 2**32)[0, 1]) < 0.3


@pytest.mark.slow
def test_too_few_devices_at_the_end_give_no_sum_and_the_values_stay():
    how, events = tiny_fleet.settings(**{**HOW, "rounds": 1}), []
    grid = secure_grid()
    for node in (98, 99):
        grid.changes[node] = dropped(is_masked_answer)
    strategy = SecureStrategy(tiny_fleet.model(), how, on_event=events.append)
    started(strategy, grid, 1)
    assert strategy.state.version == 0
    assert "masks cannot be taken off" in next(e["why"] for e in events if e["event"] == "no sum")


def test_metrics_and_sums_that_cannot_be_end_nothing():
    """They come from devices, and are used by the server."""
    events = []
    strategy = SecureStrategy(tiny_fleet.model(), tiny_fleet.settings(**HOW), on_event=events.append)
    done = SimpleNamespace(metrics={1: {"loss": 0.5, "tokens": 3}, 2: {"loss": float("nan"), "tokens": 2}, 3: {}})
    done.metrics[4] = {"loss": 0.5, "tokens": 10**30}
    strategy._nodes = {node: SimpleNamespace(name=f"d{node}") for node in done.metrics}
    assert strategy._measured(done) == ([0.5], 3)
    assert [event["device"] for event in events] == ["d2", "d3", "d4"]
    state = SimpleNamespace(values={"a": torch.zeros(2)}, training=SimpleNamespace(names_in=lambda _: ["a"]))
    strategy._run, strategy._tasks = SimpleNamespace(state=state), {1: SimpleNamespace(blocks=())}
    for mean in ([], [np.zeros(3)], [np.zeros(2), np.zeros(2)]):
        done.mean = mean
        assert strategy._mean(done) == (None, "a sum of other shapes than the task's")
    done.mean = [np.ones(2)]
    assert strategy._mean(done)[0].tokens == 3


@pytest.mark.parametrize("changes", [{"mode": "deft"}, {"upload": "float8"}, {"aggregate": "median"}])
def test_settings_that_need_single_answers_are_refused(changes):
    with pytest.raises(InputError, match=f"secure aggregation with {next(iter(changes))}"):
        SecureStrategy(tiny_fleet.model(), tiny_fleet.settings(**{**HOW, **changes}))
