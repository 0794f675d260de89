"""The examples run as they are told to, on tiny models, and what they write is a delta of the model they were given."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import tiny
import tiny_task
import transformers

import taskedge as te
from taskedge.cli.main import main

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs an example in an empty folder and gives what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return call


def test_every_example_is_run_here_and_short():
    found = {path.name for path in EXAMPLES.glob("*.py")}
    assert found == {"plain_loop.py", "trainer.py", "images.py"}
    for name in found:
        assert len((EXAMPLES / name).read_text().splitlines()) < 60


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain_loop.py", "trainer.py"])
@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_text(run, tmp_path, name, model):
    folder = getattr(tiny_task, model)(tmp_path / "base")
    if model == "gpt2":  # as the examples are short, the model they are given must know how to pad
        words = transformers.AutoTokenizer.from_pretrained(folder)
        words.pad_token = "[PAD]"
        words.save_pretrained(folder)
        config = transformers.AutoConfig.from_pretrained(folder)
        config.pad_token_id = words.pad_token_id
        config.save_pretrained(folder)
    data = tiny_task.table(tmp_path / "data.csv", tiny_task.rows(600))
    told = run(name, folder, data, "--rows", 240)
    if name == "trainer.py":
        command = re.search(r"taskedge (export .*)$", told, re.MULTILINE).group(1)
        assert main(command.split()) == 0
        assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert re.search(r"with .*\d entries: [01]\.\d{3}$", told, re.MULTILINE), told
    delta = te.load(tmp_path / "task.safetensors")
    assert delta.num_entries == round(0.001 * delta.provenance.base_parameters)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    before = tiny.state(base)
    after = te.apply(base, delta).state_dict()
    changed = sum(int((before[name] != after[name]).sum()) for name in after if name not in delta.full_parameters)
    assert changed == delta.num_entries
    assert main(["eval", str(tmp_path / "task.safetensors"), "--data", str(data)]) == 0


@pytest.mark.slow
def test_images(run, tmp_path):
    tiny.vit().save_pretrained(tmp_path / "base")
    told = run("images.py", tmp_path / "base", "--rows", 1500, "--lr", 0.03)
    assert re.search(r"accuracy with \d+ entries of 5,?\d*: 0\.\d{3}", told), told
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", told)]
    assert sum(losses[-5:]) < sum(losses[:5])
    base = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "base", num_labels=10, ignore_mismatched_sizes=True
    )
    te.apply(base, te.load(tmp_path / "digits.safetensors"))
