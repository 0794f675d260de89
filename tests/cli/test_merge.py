"""``taskedge merge``: a plain model folder, the same to the bit."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from tiny_task import snapshot, tuning

from taskedge.delta.load_with_delta import load_applied

TEXTS = ["the film was good", "bad", "never so long a night"]


def logits(model, tokenizer):
    model.eval()
    with torch.no_grad():
        return model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits


def assert_same(delta, merged):
    applied, _ = load_applied(delta)
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
    ended = taskedge("merge", "task.safetensors", "--out", "deep/er", "--json")
    assert json.loads(ended.out)["bytes"] == sum(file.stat().st_size for file in (here / "deep" / "er").iterdir())
    assert_same(here / "task.safetensors", here / "deep" / "er")


def test_what_is_there_is_left_alone(taskedge, tuned, task, here):
    (here / "mine").mkdir()
    (here / "mine" / "thesis.txt").write_text("precious")
    (here / "file").write_text("precious")
    before = snapshot(here)
    for out, force, told in (
        ("mine", [], "mine exists: name another folder with --out, or replace it with --force"),
        ("mine", ["--force"], "mine is there and is no model folder, so --force leaves it alone"),
        (".", ["--force"], "is no model folder"),
        ("file", ["--force"], "file is there and is no model folder"),
    ):
        ended = taskedge("merge", tuned[0], "--out", out, *force)
        assert ended.code == 2
        assert told in ended.err
    assert snapshot(here) == before


def test_force_replaces_a_model(taskedge, tuned, task, here):
    assert taskedge("merge", tuned[0], "--out", "merged").code == 0
    first = snapshot(here)
    assert taskedge("merge", tuned[0], "--out", "merged").code == 2
    (here / "merged" / "stale.txt").write_text("old")
    assert taskedge("merge", tuned[0], "--out", "merged/", "--force").code == 0
    assert snapshot(here) == first


def test_a_wrong_base(taskedge, tuned, task, here):
    ended = taskedge("merge", tuned[0], "--out", "merged", "--model", task / "other")
    assert ended.code == 2
    assert "wrong base" in ended.err
    assert snapshot(here) == {}
    assert taskedge("merge", tuned[0], "--out", "merged", "--model", task / "other", "--force").code == 0


@pytest.mark.parametrize("kind", ["os", "safetensors"])
def test_no_space_left(taskedge, tuned, here, monkeypatch, kind):
    from safetensors import SafetensorError

    def full(self, folder, **options):
        folder.mkdir()
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
