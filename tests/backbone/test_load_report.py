"""Bases that cannot be loaded, or only in part: what is missing and what to do, in words."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest
import tiny_task
import torch
from safetensors.torch import load_file, save_file

from taskedge.backbone import load_report
from taskedge.backbone.load_report import CONVERT, cause
from taskedge.backbone.loading import load_base, load_classifier
from taskedge.errors import InputError


@pytest.fixture
def base(tmp_path):
    return tiny_task.bert(tmp_path / "base", classes=2)


def rewrite(base, change):
    """Change the tensors of a base's file."""
    tensors = load_file(base / "model.safetensors")
    change(tensors)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})


def refusal(base, labels=("a", "b")):
    with pytest.raises(InputError) as error:
        load_classifier(base, labels)
    return str(error.value)


def test_pickled_weights_are_never_read_and_the_command_converts_them(base):
    plain = load_file(base / "model.safetensors")
    torch.save(plain, base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    message = refusal(base)
    assert (
        "its weights are pickled (pytorch_model.bin), and pickles are never read, since reading one can run code"
        in message
    )
    assert CONVERT in message
    program, *arguments = shlex.split(re.search(r"python -c .*?(?= \(several)", message)[0])
    assert program == "python"
    subprocess.run([sys.executable, *arguments], cwd=base, check=True)
    assert load_classifier(base, ["a", "b"]).head == "new"
    assert all(torch.equal(value, plain[name]) for name, value in load_file(base / "model.safetensors").items())


def test_a_sentencepiece_tokenizer_names_its_library(base, monkeypatch):
    (base / "tokenizer.json").unlink()
    (base / "spiece.model").write_bytes(b"\n\x05\n\x01a")
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "T5Tokenizer"}))
    real = load_report.find_spec
    monkeypatch.setattr(load_report, "find_spec", lambda name: None if name == "sentencepiece" else real(name))
    error = ImportError("requires the SentencePiece library but it was not found")
    message = str(load_report.load_error(base, "a tokenizer", error))
    assert (
        "SentencePiece file (spiece.model), and sentencepiece is not installed: pip install 'taskedge[sentencepiece]'"
        in message
    )


def test_the_whole_cause_is_kept():
    error = ValueError("first line\nsecond line")
    error.__cause__ = OSError("the disk\n  is gone")
    assert cause(error) == "first line second line; because of: the disk is gone"
    assert cause(ValueError("x" * 3000)) == f"{'x' * 1000}... (3,000 characters)"
    assert cause(KeyError()) == "KeyError"


def test_weights_that_the_files_lack_are_not_drawn_at_random(base):
    rewrite(base, lambda tensors: tensors.pop("bert.encoder.layer.1.output.dense.weight"))
    assert (
        "its files lack 1 weights that its config.json describes, 'bert.encoder.layer.1.output.dense.weight' first"
        in refusal(base)
    )


def test_embeddings_of_another_size_name_the_field_of_the_config(base):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"vocab_size": 99}))
    message = refusal(base)
    assert (
        "'bert.embeddings.word_embeddings.weight' is [22, 16] in its files and [99, 16] by its config.json" in message
    )
    assert "(vocab_size 99, not 22)" in message


def test_what_starts_at_random_outside_the_blocks_and_what_is_not_used_is_stated(tmp_path):
    base = tiny_task.bert(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    rewrite(base, lambda tensors: tensors.pop("pooler.dense.bias"))
    lines = []
    load_base("text-classification", base, ["a", "b"], log=lines.append)
    assert (
        lines[0] == "the base's files lack 1 weights outside its blocks, which start at random: bert.pooler.dense.bias"
    )
    assert re.match(r"16 weights of the base's files have no place in the model of its config: ", lines[1])


def test_a_language_model_that_computes_no_numbers_or_fails_is_refused(tmp_path):
    base = tiny_task.gpt2_lm(tmp_path / "gpt2")
    rewrite(base, lambda tensors: tensors["transformer.h.0.mlp.c_fc.bias"].fill_(torch.nan))
    with pytest.raises(InputError, match="its logits are not numbers: a weight in its files is not finite"):
        load_base("text-generation", base)


def test_of_several_fields_with_the_value_the_one_that_gives_the_size_is_named(tmp_path):
    base = tiny_task.bert(tmp_path / "base", max_position_embeddings=22)  # as many as tokens
    config = json.loads((base / "config.json").read_text())
    changes = {"max_position_embeddings": 32, "intermediate_size": 32, "hidden_size": 16}
    (base / "config.json").write_text(json.dumps(config | changes))
    message = refusal(base)
    assert "position_embeddings.weight' is [22, 16] in its files and [32, 16]" in message
    assert "(max_position_embeddings 32, not 22)" in message


def test_a_file_in_place_of_a_folder_is_not_looked_up_at_the_hub(base):
    with pytest.raises(InputError, match=r"config.json is a file: name the folder of a model"):
        load_base("text-classification", base / "config.json", ["a", "b"])
