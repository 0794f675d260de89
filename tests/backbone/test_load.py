"""A base comes with a head for the task, or with a message that says what is wrong with it."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny_task
import torch
import transformers

from taskedge.backbone.load import load_classifier
from taskedge.errors import InputError

LABELS = ["neg", "pos"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_task.bert(tmp_path_factory.mktemp("load") / "base")


@pytest.fixture
def copy(base, tmp_path):
    return shutil.copytree(base, tmp_path / "base")


def test_a_fresh_head_is_told_and_comes_from_the_generator(base, capfd):
    torch.manual_seed(3)
    one = load_classifier(base, LABELS)
    torch.manual_seed(3)
    other = load_classifier(base, LABELS)
    assert one.fresh == ("classifier.weight", "classifier.bias")
    assert torch.equal(one.model.classifier.weight, other.model.classifier.weight)
    assert one.model.config.id2label == {0: "neg", 1: "pos"}
    assert one.longest == 64
    assert capfd.readouterr() == ("", "")


def test_its_own_head_is_used_where_it_fits(tmp_path, capfd):
    own = tiny_task.bert(tmp_path / "own", classes=2)
    capfd.readouterr()
    stored = transformers.BertForSequenceClassification.from_pretrained(own)
    loaded = load_classifier(own, LABELS)
    assert loaded.fresh == ()
    assert torch.equal(loaded.model.classifier.weight, stored.classifier.weight)
    assert load_classifier(own, ["a", "b", "c"]).fresh == ("classifier.weight", "classifier.bias")
    assert "classifier" not in capfd.readouterr().err  # no load report of Hugging Face's


def test_padding_where_there_is_none(tmp_path):
    loaded = load_classifier(tiny_task.gpt2(tmp_path / "gpt2"), LABELS)
    assert loaded.tokenizer.pad_token_id == loaded.model.config.pad_token_id == 3
    assert loaded.fresh == ("score.weight",)
    assert loaded.longest == 64


def test_positions_that_are_counted_from_after_the_padding(tmp_path):
    config = transformers.RobertaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=20, pad_token_id=1,
    )  # fmt: skip
    folder = tiny_task._save(transformers.RobertaModel(config), tmp_path / "roberta")
    loaded = load_classifier(folder, LABELS)
    assert loaded.longest == 18
    loaded.model(input_ids=torch.full((1, 18), 5))
    with pytest.raises((IndexError, RuntimeError)):
        loaded.model(input_ids=torch.full((1, 19), 5))


def test_no_positions_at_all(tmp_path):
    config = transformers.XLNetConfig(vocab_size=30, d_model=16, n_layer=1, n_head=2, d_inner=32)
    folder = tiny_task._save(transformers.XLNetModel(config), tmp_path / "xlnet")
    assert load_classifier(folder, LABELS).longest is None


def broken(folder, how):
    weights = folder / "model.safetensors"
    if how == "no config":
        (folder / "config.json").unlink()
    elif how == "no weights":
        weights.unlink()
    elif how == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "no weights but bytes":
        weights.write_bytes(b"x" * 100)
    elif how == "config that is no JSON":
        (folder / "config.json").write_text("{")
    elif how == "config without a type":
        (folder / "config.json").write_text("{}")
    elif how == "config of an unknown type":
        (folder / "config.json").write_text(json.dumps({"model_type": "brt"}))
    elif how == "no tokenizer":
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()


@pytest.mark.parametrize(
    "how",
    [
        "no config",
        "no weights",
        "cut weights",
        "no weights but bytes",
        "config that is no JSON",
        "config without a type",
        "config of an unknown type",
        "no tokenizer",
    ],
)
def test_a_folder_that_is_no_model(copy, how):
    broken(copy, how)
    with pytest.raises(InputError) as caught:
        load_classifier(copy, LABELS)
    assert str(caught.value).startswith((f"{copy}: the folder ", f"{copy}: it comes without a tokenizer"))
    assert not str(caught.value).rstrip().endswith(":")


@pytest.mark.parametrize("name", ["./nothere", "/nothere", "../no/there", "a/b/c"])
def test_no_such_folder(name):
    with pytest.raises(InputError, match="no such folder: name a local model folder or a hub id such as"):
        load_classifier(name, LABELS)


def test_a_hub_id_without_network(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="no-such/model: there is no such folder, and the hub does not give a model"):
        load_classifier("no-such/model", LABELS)


def test_no_token_to_pad_with(copy):
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config.pop("pad_token")
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="neither a padding nor an end token: set its pad_token"):
        load_classifier(copy, LABELS)


def test_pickled_weights_are_never_read(copy):
    class Bomb:
        def __reduce__(self):
            return (copy.joinpath("ran").write_text, ("code in a weight file ran",))

    (copy / "model.safetensors").unlink()
    torch.save({"bomb": Bomb()}, copy / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        load_classifier(copy, ["a", "b"])
    assert not (copy / "ran").exists()
