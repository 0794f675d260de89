from __future__ import annotations

import json

import pytest
import tiny_task
import transformers

from taskedge.cli.main import main

FLEET = """\
[server]
downlink_bits_per_second = 1e6
[channel]
bandwidth_hz = 1e6
[model]
path = "tiny"
budget = "1%"
sequence_tokens = 16
"""

DEVICE = """\
[[device]]
name = "d{index}"
flops_per_second = {flops}
utilisation_ratio = 0.5
memory_bytes = 2e9
tokens_per_round = 1024
batch_sequences = 2
transmit_watts = 0.1
gain_db = -{loss}
"""


@pytest.fixture
def planning(tmp_path):
    """A folder with a tiny model's config and a fleet of five for it."""
    transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=50,
        max_position_embeddings=64,
    ).save_pretrained(tmp_path / "tiny")
    rows = [DEVICE.format(index=n, flops=1e9 * (n + 1), loss=90 + 3 * n) for n in range(5)]
    (tmp_path / "fleet.toml").write_text(FLEET + "".join(rows))
    return tmp_path


@pytest.fixture(scope="session")
def task(tmp_path_factory):
    """Tiny models and data (tiny_task.folder_of_a_task); tests only read here."""
    return tiny_task.folder_of_a_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="session")
def tuned(task, tmp_path_factory):
    """Return a delta trained on ``task``, and the JSON output of ``tune``."""
    out = tmp_path_factory.mktemp("tuned") / "task.safetensors"
    ended = tiny_task.forked(
        tiny_task.tuning(task, "--eval", task / "eval.csv", "--out", out, "--epochs", "3", "--json")
    )
    assert ended.code == 0, ended.err
    return out, json.loads(ended.out)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Change to an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def taskedge(capsys):
    """Run the command line in this process: ``taskedge("info", path)`` returns its exit code and output."""

    def call(*arguments):
        capsys.readouterr()
        code = main(list(map(str, arguments)))
        captured = capsys.readouterr()
        return tiny_task.Ended(code, captured.out, captured.err)

    return call


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """Time one pass only: no test depends on timings."""
    monkeypatch.setattr("taskedge.training.memory.profiler.BRIEF_PASS_SECONDS", 0.0)
    monkeypatch.setattr("taskedge.training.memory.measure_step.LONG_PASS_SECONDS", 0.0)
