"""The examples run as they are told to, on tiny models, and what they write is a delta of the model they were given."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
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
    assert found == {"plain_loop.py", "trainer.py", "images.py", "onnx_without_torch.py"}
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


@pytest.mark.slow
def test_an_exported_task_runs_without_torch(tmp_path):
    """In a process that can import neither torch nor transformers nor taskedge, the answers are those of predict."""
    pytest.importorskip("onnxruntime")
    task = tiny_task.folder_of_a_task(tmp_path)
    delta, folder = tmp_path / "task.safetensors", tmp_path / "onnx"
    assert main(tiny_task.tuning(task, "--out", delta)) == 0
    assert main(["export", str(delta), "--to", "onnx", "--out", str(folder)]) == 0
    texts = ["the film was good", "bad", "never so long a night", "an unknown word " * 40]
    answers = tmp_path / "answers.jsonl"
    tiny_task.table(tmp_path / "new.csv", [(text, "") for text in texts])
    asked = [
        "predict",
        str(delta),
        "--data",
        str(tmp_path / "new.csv"),
        "--text",
        "text",
        "--out",
        str(answers),
        "--json",
    ]
    assert main(asked) == 0
    blocked = ("torch", "transformers", "taskedge", "onnx")
    code = (
        "import runpy, sys\n"
        f"for name in {blocked}: sys.modules[name] = None\n"
        f"sys.argv = ['x', {str(folder)!r}, *{texts!r}]\n"
        f"runpy.run_path({str(EXAMPLES / 'onnx_without_torch.py')!r}, run_name='__main__')\n"
        "loaded = {name.partition('.')[0] for name, module in sys.modules.items() if module is not None}\n"
        "assert not loaded & {'torch', 'transformers', 'taskedge', 'onnx', 'safetensors', 'datasets'}, loaded\n"
    )
    ended = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    expected = [json.loads(line) for line in answers.read_text().splitlines()]
    found = [line.split("\t") for line in ended.stdout.splitlines()]
    assert [label for label, _, _ in found] == [row["label"] for row in expected]
    for (_, chance, _), row in zip(found, expected, strict=True):
        assert abs(float(chance) - row["probability"]) <= 1e-3
