"""``taskedge export``: every form from the command line, and refusals."""

from __future__ import annotations

import json

import peft
import pytest
import torch
import transformers
from tiny_task import snapshot, tuning

from taskedge.delta.load_with_delta import load_with_delta

TEXTS = ["the film was good", "bad", "never so long a night"]


def logits(model, tokenizer):
    model.eval()
    with torch.no_grad():
        return model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits


def assert_ours(model, delta):
    applied, _ = load_with_delta(delta)
    difference = logits(model, applied.tokenizer) - logits(applied.model, applied.tokenizer)
    assert difference.abs().max() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("peft_type", [None, "supertuning", "shira", "lora"])
def test_peft_loads_the_adapter(taskedge, tuned, task, here, peft_type):
    given = ["--peft-type", peft_type] if peft_type else []
    ended = taskedge("export", tuned[0], "--to", "peft", "--out", "adapter", *given)
    assert (ended.code, ended.err) == (0, "")
    assert "load it with peft.PeftModel.from_pretrained(base_model, 'adapter')" in ended.out
    base = transformers.AutoModelForSequenceClassification.from_pretrained(task / "base", num_labels=2)
    assert_ours(peft.PeftModel.from_pretrained(base, "adapter"), tuned[0])
    assert_ours(peft.AutoPeftModelForSequenceClassification.from_pretrained("adapter", num_labels=2), tuned[0])


@pytest.mark.slow
def test_gpt2_goes_as_lora(taskedge, task, here):
    assert taskedge(*tuning(task, model="gpt2")).code == 0
    ended = taskedge("export", "task.safetensors", "--to", "peft", "--out", "adapter", "--json")
    told = json.loads(ended.out)
    assert told["to"] == "peft"
    assert told["peft_type"] == "lora"
    assert told["bytes"] == sum(file.stat().st_size for file in (here / "adapter").iterdir())
    base = transformers.AutoModelForSequenceClassification.from_pretrained(task / "gpt2", num_labels=2)
    base.config.pad_token_id = 3
    assert_ours(peft.PeftModel.from_pretrained(base, "adapter"), here / "task.safetensors")
    ended = taskedge("export", "task.safetensors", "--to", "peft", "--peft-type", "shira", "--out", "other")
    assert ended.code == 2
    assert "this type supports nn.Linear only" in ended.err


def test_merged_is_merge(taskedge, tuned, here):
    assert taskedge("export", tuned[0], "--to", "merged", "--out", "one").code == 0
    assert taskedge("merge", tuned[0], "--out", "two").code == 0
    found = snapshot(here)
    both = [{name[3:]: content for name, content in found.items() if name[:3] == out} for out in ("one", "two")]
    assert both[0] == both[1]


@pytest.mark.slow
def test_the_self_check_is_told(taskedge, tuned, here):
    (here / "rows.txt").write_text("the film was good\n\nbad\n")
    ended = taskedge("export", tuned[0], "--to", "lora", "--out", "a", "--check-rows", "rows.txt")
    assert "rank " in ended.out
    assert "checked on 3 rows: logits differ by at most " in ended.out  # both together, and one alone
    ended = taskedge("export", tuned[0], "--to", "lora", "--out", "b", "--no-check")
    assert "not checked: no rows went through what was written" in ended.out
    told = json.loads(taskedge("export", tuned[0], "--to", "patch", "--out", "c", "--json").out)
    assert told["checked_rows"] == 7
    assert told["largest_difference"] <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--quantize", "int8"]])
def test_onnx(taskedge, tuned, here, more):
    pytest.importorskip("onnxruntime")
    ended = taskedge("export", tuned[0], "--to", "onnx", "--out", "o", "--json", *more)
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert told["largest_difference"] <= (1.0 if more else 1e-4)
    assert told["same_answers"] == 1 or more
    assert {"model.onnx", "task.json", "tokenizer.json"} <= {path.name for path in (here / "o").iterdir()}
    task = json.loads((here / "o" / "task.json").read_text())
    assert (task["labels"], task["weights"]) == (["neg", "pos"], "int8" if more else "fp32")


def test_patch(taskedge, tuned, here):
    ended = taskedge("export", tuned[0], "--to", "patch", "--out", "a.safetensors", "--json")
    told = json.loads(ended.out)
    assert told["entries"] == tuned[1]["entries"]
    assert told["bytes"] == (here / "a.safetensors").stat().st_size
    assert set(snapshot(here)) == {"a.safetensors"}


def test_what_is_refused(taskedge, tuned, task, here):
    (here / "mine").mkdir()
    (here / "mine" / "thesis.txt").write_text("precious")
    (here / "file").write_text("precious")
    before = snapshot(here)
    for given, told in (
        (["none.safetensors", "--to", "peft", "--out", "x"], "none.safetensors: cannot be read"),
        ([tuned[0], "--to", "peft", "--out", "mine"], "mine exists: name another folder with --out"),
        ([tuned[0], "--to", "patch", "--out", "file"], "file exists: name another file with --out"),
        ([tuned[0], "--to", "peft", "--out", "mine", "--replace"], "mine exists and is not an adapter folder"),
        ([tuned[0], "--to", "patch", "--out", "mine", "--replace"], "mine exists and is not a file"),
        ([tuned[0], "--to", "patch", "--out", "file", "--force"], "or replace it with --replace (--force skips"),
        ([tuned[0], "--to", "patch", "--out", "no/folder/x"], "(there is no folder no/folder): make it"),
        ([tuned[0], "--to", "peft", "--out", "no/folder/x"], "(there is no folder no/folder): make it"),
        ([tuned[0], "--to", "peft", "--out", "x", "--model", task / "other"], "wrong base"),
        (
            [tuned[0], "--to", "onyx", "--out", "x"],
            "unknown export 'onyx'; did you mean 'onnx'?",
        ),
        ([tuned[0], "--to", "gguf-lora", "--out", "x"], "2 parameters were trained in full ('classifier.bias' first)"),
        ([tuned[0], "--to", "lora", "--max-rank", "1", "--out", "x"], "linears need a rank over 1"),
        ([tuned[0], "--to", "merged", "--max-rank", "1", "--out", "x"], "--max-rank is for --to lora and --to onnx-a"),
        ([tuned[0], "--to", "lora", "--check-rows", "none.txt", "--out", "x"], "none.txt: cannot be read"),
        (
            [tuned[0], "--to", "peft", "--out", "x", "--peft-type", "lore"],
            "unknown PEFT type 'lore'; did you mean 'lora'?",
        ),
        ([tuned[0], "--to", "patch", "--out", "x", "--peft-type", "lora"], "--peft-type is for --to peft"),
    ):
        ended = taskedge("export", *given)
        assert ended.code == 2, given
        assert told in ended.err
        assert snapshot(here) == before


def test_force_applies_to_another_base(taskedge, tuned, task, here):
    ended = taskedge("export", tuned[0], "--to", "peft", "--out", "x", "--model", task / "other", "--force", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["forced"] == "11 of 11 linears hold other values than the delta's base"
    assert "forced: 11 of 11 linears hold other values than the delta's base" in ended.err
    config = json.loads((here / "x" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(task / "other")


def test_a_link_to_a_file_stays_one(taskedge, tuned, here):
    (here / "deep").mkdir()
    (here / "deep" / "patch").write_text("old")
    (here / "link").symlink_to("deep/patch")
    assert taskedge("export", tuned[0], "--to", "patch", "--out", "link", "--replace").code == 0
    assert (here / "link").is_symlink()
    assert taskedge("export", tuned[0], "--to", "patch", "--out", "plain").code == 0
    assert (here / "deep" / "patch").read_bytes() == (here / "plain").read_bytes()


def test_help_has_an_example_of_each(taskedge):
    told = taskedge("export", "--help").out
    for form in (
        "peft",
        "merged",
        "patch",
        "lora",
        "onnx",
        "onnx-adapter",
        "openvino",
        "executorch",
        "gguf-lora",
        "gguf",
    ):
        assert f"--to {form} " in told
