"""``taskedge merge``: a plain model folder with equal bits."""

from __future__ import annotations

import json
import os
import shutil

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


def assert_same(delta, merged):
    applied, _ = load_with_delta(delta)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(merged)
    tokenizer = transformers.AutoTokenizer.from_pretrained(merged)
    assert torch.equal(logits(model, tokenizer), logits(applied.model, applied.tokenizer))
    for (name, one), (_, other) in zip(model.named_parameters(), applied.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert model.config.id2label == {0: "neg", 1: "pos"}


def test_plain_transformers_loads_it(taskedge, tuned, here):
    ended = taskedge("merge", tuned[0], "--out", "merged")
    assert ended.code == 0
    assert ended.err == ""
    assert "load it with AutoModelForSequenceClassification.from_pretrained('merged')" in ended.out
    assert_same(tuned[0], here / "merged")
    assert {name.split("/")[0] for name in snapshot(here)} == {"merged"}


def test_gpt2(taskedge, task, here):
    assert taskedge(*tuning(task, model="gpt2")).code == 0
    ended = taskedge("merge", "task.safetensors", "--out", "merged", "--json")
    assert json.loads(ended.out) == {
        "out": "merged",
        "bytes": sum(file.stat().st_size for file in (here / "merged").iterdir()),
        "checked_rows": 7,
        "largest_difference": 0.0,
        "same_answers": 1.0,
    }
    assert_same(here / "task.safetensors", here / "merged")


def test_every_file_has_the_modes_of_the_umask(taskedge, tuned, here):
    """A server under another account reads the folder; safetensors makes files of mode 0600."""
    before = os.umask(0o022)
    try:
        assert taskedge("merge", tuned[0], "--out", "merged").code == 0
        assert taskedge("export", tuned[0], "--to", "peft", "--out", "adapter").code == 0
        assert taskedge("export", tuned[0], "--to", "patch", "--out", "patch").code == 0
    finally:
        os.umask(before)
    files = [file for file in here.rglob("*") if file.is_file()]
    assert {file.name for file in files} > {"model.safetensors", "adapter_model.safetensors", "patch"}
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o644"}


def test_what_is_there_is_left_alone(taskedge, tuned, task, here):
    (here / "mine").mkdir()
    (here / "mine" / "thesis.txt").write_text("precious")
    (here / "file").write_text("precious")
    before = snapshot(here)
    for out, flags, told in (
        ("mine", [], "mine exists: name another folder with --out, or replace it with --replace"),
        ("mine", ["--force"], "replace it with --replace (--force skips the check of the base only)"),
        ("mine", ["--replace"], "mine exists and is not a model folder, so --replace keeps it"),
        (".", ["--replace"], "is not a model folder"),
        ("file", ["--replace"], "file exists and is not a model folder"),
        (
            "no/folder",
            ["--replace"],
            "no/folder: cannot be written (there is no folder no): make it, or name a folder that exists",
        ),
    ):
        ended = taskedge("merge", tuned[0], "--out", out, *flags)
        assert ended.code == 2
        assert told in ended.err
    assert snapshot(here) == before


def test_replace_replaces_a_model(taskedge, tuned, here):
    assert taskedge("merge", tuned[0], "--out", "merged").code == 0
    first = snapshot(here)
    assert taskedge("merge", tuned[0], "--out", "merged").code == 2
    assert taskedge("merge", tuned[0], "--out", "merged", "--force").code == 2  # as it was up to 0.1
    (here / "merged" / "model-00001-of-00002.safetensors").write_text("a shard of an earlier, larger model")
    (here / "merged" / "config.json").write_text('{"model_type": "bert"}')
    ended = taskedge("merge", tuned[0], "--out", "merged/", "--replace")
    assert (ended.code, ended.err) == (0, "")
    assert snapshot(here) == first


def test_replace_loses_no_file_of_another_kind(taskedge, tuned, here):
    """A folder that has a config.json, the commonest name of all, and a user's files."""
    for config, told in (
        ('{"model_type": "bert"}', "proj holds 2 files that are not of a model folder and would be lost (sub/data.csv"),
        ('{"name": "my project"}', "proj exists and is not a model folder, so --replace keeps it"),
        ("no JSON", "proj exists and is not a model folder, so --replace keeps it"),
    ):
        (here / "proj" / "sub").mkdir(parents=True, exist_ok=True)
        (here / "proj" / "config.json").write_text(config)
        (here / "proj" / "thesis.txt").write_text("precious")
        (here / "proj" / "sub" / "data.csv").write_text("precious")
        before = snapshot(here)
        ended = taskedge("merge", tuned[0], "--out", "proj", "--replace", "--force")
        assert ended.code == 2
        assert told in ended.err
        assert snapshot(here) == before


@pytest.mark.parametrize("out", ["base", "link", "base/../base"])
def test_the_base_is_never_replaced(taskedge, tuned, task, here, out):
    shutil.copytree(task / "base", here / "base")
    (here / "link").symlink_to("base")
    before = snapshot(here)
    ended = taskedge("merge", tuned[0], "--model", "base", "--out", out, "--replace")
    assert ended.code == 2
    assert f"{out} is the base itself or a part of it, which is never replaced" in ended.err
    assert snapshot(here) == before
    ended = taskedge("export", tuned[0], "--model", "base", "--to", "patch", "--out", f"{out}/config.json", "--replace")
    assert "is the base itself or a part of it" in ended.err
    assert snapshot(here) == before


def test_the_delta_is_never_replaced(taskedge, tuned, here):
    (here / "a").mkdir()
    delta = here / "a" / "model.safetensors"
    delta.write_bytes(tuned[0].read_bytes())
    (here / "a" / "config.json").write_text('{"model_type": "bert"}')
    ended = taskedge("merge", delta, "--out", "a", "--replace")
    assert f"a holds {delta}, which this command reads" in ended.err
    ended = taskedge("export", delta, "--to", "patch", "--out", delta, "--replace")
    assert f"{delta} is {delta}, which this command reads" in ended.err
    assert delta.read_bytes() == tuned[0].read_bytes()


def test_a_wrong_base(taskedge, tuned, task, here):
    ended = taskedge("merge", tuned[0], "--out", "merged", "--model", task / "other")
    assert ended.code == 2
    assert "wrong base" in ended.err
    assert snapshot(here) == {}
    ended = taskedge("merge", tuned[0], "--out", "merged", "--model", task / "other", "--force", "--json")
    assert ended.code == 0
    difference = "11 of 11 linears hold other values than the delta's base"
    assert ended.err == f"forced: {difference}\n"
    assert json.loads(ended.out)["forced"] == difference


def test_force_says_nothing_if_the_base_is_right(taskedge, tuned, here):
    ended = taskedge("merge", tuned[0], "--out", "merged", "--force", "--json")
    assert ended.err == ""
    assert "forced" not in json.loads(ended.out)


@pytest.mark.parametrize("kind", ["os", "safetensors"])
def test_no_space_left(taskedge, tuned, here, monkeypatch, kind):
    from safetensors import SafetensorError

    def full(self, folder, **options):
        assert folder.is_dir()
        (folder / "model.safetensors").write_text("half")
        if kind == "os":
            raise OSError(28, "No space left on device")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    ended = taskedge("merge", tuned[0], "--out", "merged")
    assert ended.code == 2
    assert "merged: cannot be written (" in ended.err
    assert "No space left on device" in ended.err
    assert snapshot(here) == {}
