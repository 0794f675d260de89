"""``taskedge cut serve``: its faults, and a whole run over a server with keys."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import cut_runs
import pytest
import tiny_task
import torch

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


@pytest.mark.slow
def test_two_devices_train_over_one_server_as_on_one_machine(taskedge, plant):
    """Over NATS with mutual TLS, without dropout: the values are those of a run with both ends in one process."""
    files = cut_runs.files(plant, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    names = ["d1", "d2"]
    for name in names:
        assert taskedge("cooperate", "enrol", name).code == 0
        shutil.copytree(plant / "plant" / "devices" / name, plant / name)
    settings = ["--budget", "3%", "--max-columns", 4, "--epochs", 1, "--batch-size", 8, "--calibration", 2]

    def train(name):
        about = [
            "--bundle",
            plant / name,
            "--train",
            files.folder / "train.csv",
            "--out",
            plant / f"{name}.safetensors",
        ]
        return list(map(str, ["cut", "train", *about, *settings, "--threads", 1]))

    serve = ["cut", "serve", "--model", str(files.base), "--name", "plant", "--threads", "1"]
    with ThreadPoolExecutor(3) as threads:
        served = threads.submit(tiny_task.forked, serve)
        runs = [threads.submit(tiny_task.forked, train(name)) for name in names]
        try:
            ends = [run.result(timeout=90) for run in runs]
        finally:
            assert taskedge("cooperate", "stop", "--folder", plant / "plant").code == 0
    assert [end.code for end in ends] == [0, 0], [end.err for end in ends]
    assert served.result().code == 130
    assert "trains 12 linears" in served.result().err
    done, _ = files.run(max_columns=4)
    expected = load(done.result.out)
    for name in names:
        delta = load(plant / f"{name}.safetensors")
        assert delta.provenance.base == str(files.base)
        assert all(torch.equal(linear.values, expected.linears[key].values) for key, linear in delta.linears.items())
