"""``taskedge cut serve``: its faults, and a whole run over a server with keys."""

from __future__ import annotations

import gc
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import cut_runs
import pytest
import tiny_task
import torch
from killed_runs import killed_at

from taskedge.cooperation.cut.base_parts import write_parts
from taskedge.cooperation.cut.cloud import Cloud, Session, _Asking
from taskedge.cooperation.cut.cloud_base import Pass, load_cloud_base
from taskedge.cooperation.cut.conversation import LoopThread
from taskedge.cooperation.cut.device_end import DeviceEnd
from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.cooperation.transport.nats.coordinator_link import NatsCoordinatorLink
from taskedge.cooperation.transport.nats.server import free_port
from taskedge.delta.file import load


@pytest.fixture
def plant(taskedge, tmp_path, monkeypatch):
    pytest.importorskip("nats", reason="needs the extra 'fleet'")
    monkeypatch.chdir(tmp_path)
    assert taskedge("cooperate", "init", "--name", "plant", "--port", free_port()).code == 0
    return tmp_path


def test_a_fleet_without_devices_is_refused(taskedge, plant):
    ended = taskedge("cut", "serve", "--model", plant / "base", "--name", "plant")
    assert ended.code == 2
    assert "enrol" in ended.err


def test_one_name_of_the_fleet_is_enough(taskedge, plant):
    ended = taskedge("cut", "serve", "--model", plant / "base", "--name", "plant", "--folder", "plant")
    assert ended.code == 2
    assert "give one" in ended.err


def enrolled(taskedge, plant, *names):
    for name in names:
        assert taskedge("cooperate", "enrol", name).code == 0
        shutil.copytree(plant / "plant" / "devices" / name, plant / name)


def training(plant, name, *more):
    """Return the command of a device: a checkpoint every two of its five steps."""
    about = ["--bundle", plant / name, "--train", plant / "train.csv", "--out", plant / f"{name}.safetensors"]
    settings = ["--budget", "3%", "--max-columns", 4, "--epochs", 1, "--batch-size", 8, "--calibration", 2]
    more = (*more, "--checkpoint-every", 2, "--threads", 1)
    return list(map(str, ["cut", "train", *about, *settings, *more]))


def serving(plant):
    return ["cut", "serve", "--model", str(plant / "base"), "--name", "plant", "--threads", "1"]


def same_values(files, *paths):
    """Return whether deltas have the bits of a run with both ends in one process."""
    done, _ = files.run(max_columns=4)
    expected = load(done.result.out)
    for path in paths:
        delta = load(path)
        assert delta.provenance.base == str(files.base)
        if not all(torch.equal(linear.values, expected.linears[key].values) for key, linear in delta.linears.items()):
            return False
        pairs = [(value, expected.full_parameters[key]) for key, value in delta.full_parameters.items()]
        if not all(torch.equal(one, other) for one, other in pairs):
            return False
    return True


@pytest.fixture
def without_dropout(plant):
    return cut_runs.files(plant, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.mark.slow
def test_two_devices_train_over_one_server_as_on_one_machine(taskedge, plant, without_dropout):
    """Over NATS with mutual TLS, without dropout: the values are those of a run with both ends in one process."""
    names = ["d1", "d2"]
    enrolled(taskedge, plant, *names)
    with ThreadPoolExecutor(3) as threads:
        served = threads.submit(tiny_task.forked, serving(plant))
        runs = [threads.submit(tiny_task.forked, training(plant, name)) for name in names]
        try:
            ends = [run.result(timeout=90) for run in runs]
        finally:
            assert taskedge("cooperate", "stop", "--folder", plant / "plant").code == 0
    assert [end.code for end in ends] == [0, 0], [end.err for end in ends]
    assert served.result().code == 130
    assert "trains 12 linears" in served.result().err
    assert same_values(without_dropout, *(plant / f"{name}.safetensors" for name in names))


@pytest.mark.slow
def test_a_killed_device_leaves_nothing_at_the_cloud_and_resumes(taskedge, plant, without_dropout):
    """It dies in the backward part of a step, while the cloud holds the pass."""
    enrolled(taskedge, plant, "d1")
    registry = DeviceRegistry.open(plant / "plant")
    registry.start_server()
    base, said = load_cloud_base(str(plant / "base"), log=cut_runs.quiet), []
    parts = write_parts(str(plant / "base"), base.stack, len(base.blocks), plant / "parts")
    try:
        with LoopThread() as loop:
            link = loop.run(NatsCoordinatorLink.connect(registry.coordinator_bundle))
            cloud = Cloud(link, base, parts, log=said.append)
            loop.start(cloud.serve())
            killed = tiny_task.forked(training(plant, "d1"), killed_at(DeviceEnd, "_backward", call=4))
            assert killed.code == -signal.SIGKILL, killed.err
            assert not (plant / "d1.safetensors").exists()
            eventually(lambda: not cloud.sessions and not alive(Pass, Session))
            assert said[-1] == "d1: left after 3 passes; nothing of it is kept"
            again = tiny_task.forked(training(plant, "d1", "--resume"))
            assert again.code == 0, again.err
            loop.run(link.close())
    finally:
        registry.server.stop()
    assert same_values(without_dropout, plant / "d1.safetensors")


def alive(*classes):
    """Return the instances that anything still holds."""
    gc.collect()
    return [held for held in gc.get_objects() if isinstance(held, classes)]


def eventually(holds, seconds=20.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never holds"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_cloud_is_started_again_and_the_device_goes_on(taskedge, plant, without_dropout):
    """It dies in the backward part of the third pass: 8 groups ask twice in each."""
    enrolled(taskedge, plant, "d1")
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(tiny_task.forked, serving(plant), killed_at(_Asking, "ask", call=16 + 16 + 8 + 3))
        run = threads.submit(tiny_task.forked, training(plant, "d1"))
        try:
            assert first.result(timeout=60).code == -signal.SIGKILL, first.result().err
            second = threads.submit(tiny_task.forked, serving(plant))
            ended = run.result(timeout=60)
        finally:
            assert taskedge("cooperate", "stop", "--folder", plant / "plant").code == 0
    assert ended.code == 0, ended.err
    assert "the cloud is back: the step under way starts again" in ended.err
    assert "of which 1 ran again" in ended.out
    assert second.result().code == 130
    assert same_values(without_dropout, plant / "d1.safetensors")
