"""``taskedge import``: an adapter of real PEFT through every verb."""

from __future__ import annotations

import json
import shutil

import peft
import pytest
import torch
import transformers
from tiny_task import snapshot


@pytest.fixture(scope="module")
def adapter(task, tmp_path_factory):
    """Return an adapter folder written by PEFT, with nonzero factors."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(task / "base")
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]))
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.3
    folder = tmp_path_factory.mktemp("adapter") / "a"
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_through_all_verbs(taskedge, adapter, task, here):
    ended = taskedge("import", adapter, "--labels", "neg, pos", "--json")
    assert ended.code == 0
    said = json.loads(ended.out)
    numbers = 4 * 4 * (16 + 16)
    assert said["bytes"] == (here / "task.safetensors").stat().st_size
    assert (said["linears"], said["low_rank_parameters"], said["whole_parameters"]) == (4, numbers, 34)
    assert (said["base"], said["labels"]) == (str(task / "base"), ["neg", "pos"])

    about = json.loads(taskedge("info", "task.safetensors", "--json").out)
    assert (about["entries"], about["low_rank_parameters"], about["whole_parameters"]) == (0, numbers, 34)
    assert about["low_rank"]["bert.encoder.layer.0.attention.self.query"] == {
        "shape": [16, 16],
        "rank": 4,
        "scale": 2.0,
    }
    assert sum(about["sections"].values()) == about["bytes"]
    assert about["base_dtype"] == "float32"
    shown = taskedge("info", "task.safetensors").out
    assert f"low rank  {numbers} parameters: products of rank 4 in 4 linears" in shown
    assert "entries by" not in shown

    data = ("--data", task / "eval.csv", "--text", "text")
    measured = json.loads(taskedge("eval", "task.safetensors", *data, "--label", "label", "--json").out)
    assert measured["rows"] == 40
    predicted = taskedge("predict", "task.safetensors", *data).out.splitlines()[1:]
    assert taskedge("merge", "task.safetensors", "--out", "merged").code == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained("merged")
    merged = transformers.AutoModelForSequenceClassification.from_pretrained("merged")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(task / "base")
    theirs = peft.PeftModel.from_pretrained(plain, adapter).eval()
    texts = [line.split(",")[0] for line in (task / "eval.csv").read_text().splitlines()[1:]]
    given = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**given).logits
        assert (merged.eval()(**given).logits - expected).abs().max() <= 1e-5
    assert [line.split(",")[1] for line in predicted] == [["neg", "pos"][place] for place in expected.argmax(-1)]


def test_what_a_person_reads(taskedge, adapter, task, here):
    ended = taskedge("import", adapter, "--out", "x", "--model", task / "other")
    assert ended.code == 0
    assert ended.out.startswith(
        f"x: {(here / 'x').stat().st_size:,} bytes; low-rank products of 512 parameters in 4 li"
    )
    assert f"for {task / 'other'}" in ended.out


def test_what_is_there_is_left_alone(taskedge, adapter, here):
    (here / "x").write_text("precious")
    before = snapshot(here)
    ended = taskedge("import", adapter, "--out", "x")
    assert ended.code == 2
    assert "x exists; give --replace to overwrite, or another name" in ended.err
    assert snapshot(here) == before
    for flag in ("--replace", "--force"):  # the name of this flag up to 0.1
        assert taskedge("import", adapter, "--out", "x", flag).code == 0


def test_the_adapter_is_never_replaced(taskedge, adapter, here):
    copy = shutil.copytree(adapter, here / "a")
    before = snapshot(here)
    ended = taskedge("import", copy, "--out", "a/adapter_model.safetensors", "--replace")
    assert ended.code == 2
    assert "which this command reads: name another with --out" in ended.err
    assert snapshot(here) == before


def test_classes_without_names_are_reported(taskedge, adapter, here):
    """``eval`` refuses all rows of such a delta, because no row has the label LABEL_0."""
    ended = taskedge("import", adapter, "--out", "x")
    assert ended.err == (
        "warning: the base's config does not name its 2 classes, so they are named 'LABEL_0', 'LABEL_1', and data with "
        "other labels cannot be evaluated: name them with --labels, in the adapter's order\n"
    )
    assert taskedge("import", adapter, "--out", "y", "--labels", "neg,pos").err == ""


@pytest.mark.parametrize(
    ("labels", "told"),
    [("neg,neg", "the label 'neg' occurs twice"), ("neg,,pos", "the label '' is empty"), ("", "the label '' is empty")],
)
def test_every_class_is_named_once(taskedge, adapter, here, labels, told):
    ended = taskedge("import", adapter, "--out", "x", "--labels", labels)
    assert ended.code == 2
    assert told in ended.err
    assert snapshot(here) == {}


def test_no_adapter(taskedge, here):
    ended = taskedge("import", here, "--out", "x")
    assert ended.code == 2
    assert "not a PEFT adapter: it has no adapter_config.json" in ended.err
    assert "missing: there is no such folder" in taskedge("import", "missing", "--out", "x").err
    assert snapshot(here) == {}
