"""A base loads with a head for the task, or an error says what is wrong with it."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny_task
import torch
import transformers

from taskedge.backbone.loading import load_base, load_classifier, locate_base
from taskedge.errors import InputError, UnknownName

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
    assert one.new_parameters == ("classifier.weight", "classifier.bias")
    assert torch.equal(one.model.classifier.weight, other.model.classifier.weight)
    assert one.model.config.id2label == {0: "neg", 1: "pos"}
    assert one.max_positions == 64
    assert capfd.readouterr() == ("", "")


def test_its_own_head_is_used_where_it_fits(tmp_path, capfd):
    own = tiny_task.bert(tmp_path / "own", classes=2, id2label={0: "neg", 1: "pos"})
    capfd.readouterr()
    stored = transformers.BertForSequenceClassification.from_pretrained(own)
    loaded = load_classifier(own, LABELS)
    assert loaded.new_parameters == ()
    assert torch.equal(loaded.model.classifier.weight, stored.classifier.weight)
    assert load_classifier(own, ["a", "b", "c"]).new_parameters == ("classifier.weight", "classifier.bias")
    assert "classifier" not in capfd.readouterr().err  # no load report of Hugging Face's


def test_padding_where_there_is_none(tmp_path):
    loaded = load_classifier(tiny_task.gpt2(tmp_path / "gpt2"), LABELS)
    assert loaded.tokenizer.pad_token_id == loaded.model.config.pad_token_id == 3
    assert loaded.new_parameters == ("score.weight",)
    assert loaded.max_positions == 64


def test_positions_that_are_counted_from_after_the_padding(tmp_path):
    config = transformers.RobertaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=20, pad_token_id=1,
    )  # fmt: skip
    folder = tiny_task._save(transformers.RobertaModel(config), tmp_path / "roberta")
    loaded = load_classifier(folder, LABELS)
    assert loaded.max_positions == 18
    loaded.model(input_ids=torch.full((1, 18), 5))
    with pytest.raises((IndexError, RuntimeError)):
        loaded.model(input_ids=torch.full((1, 19), 5))


def test_no_positions_at_all(tmp_path):
    config = transformers.XLNetConfig(vocab_size=30, d_model=16, n_layer=1, n_head=2, d_inner=32)
    folder = tiny_task._save(transformers.XLNetModel(config), tmp_path / "xlnet")
    assert load_classifier(folder, LABELS).max_positions is None


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


def test_a_regression_has_one_output(base, tmp_path):
    loaded = load_base("text-regression", base)
    assert (loaded.model.config.num_labels, loaded.model.config.problem_type) == (1, "regression")
    assert loaded.new_parameters == ("classifier.weight", "classifier.bias")
    assert load_base("text-regression", tiny_task.bert(tmp_path / "two", classes=2)).model.classifier.out_features == 1
    with pytest.raises(UnknownName, match="unknown task 'regression'; did you mean 'text-regression'"):
        load_base("regression", base)


@pytest.mark.parametrize(("dtype", "expected"), [("auto", "bfloat16"), ("fp32", "float32"), ("bf16", "bfloat16")])
def test_the_dtype_of_the_files_or_another(base, tmp_path, dtype, expected):
    half = transformers.BertModel.from_pretrained(base, dtype=torch.bfloat16)
    folder = tiny_task._save(half, tmp_path / "half")
    loaded = load_base("text-classification", folder, LABELS, dtype=dtype)
    assert {str(parameter.dtype) for parameter in loaded.model.parameters()} == {f"torch.{expected}"}


@pytest.mark.parametrize("make", [tiny_task.gpt2_lm, tiny_task.llama])
def test_a_language_model_brings_its_head(tmp_path, make):
    from taskedge.backbone.candidates import head_parameters

    folder = make(tmp_path / "lm")
    loaded = load_base("text-generation", folder)
    stored = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.new_parameters == ()
    assert head_parameters(loaded.model) == []
    assert loaded.model.config.pad_token_id == stored.config.pad_token_id
    assert torch.equal(loaded.model.get_output_embeddings().weight, stored.get_output_embeddings().weight)


def test_what_cannot_generate(base, tmp_path):
    with pytest.raises(InputError, match=r"type 'bert' that reads a text as a whole \(an encoder\).*--label"):
        load_base("text-generation", base)
    roberta = transformers.RobertaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"type 'roberta' that reads a text as a whole"):
        load_base("text-generation", tiny_task._save(transformers.RobertaForMaskedLM(roberta), tmp_path / "roberta"))
    config = transformers.LlamaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    )  # fmt: skip
    headless = tiny_task._save(transformers.LlamaModel(config), tmp_path / "headless", tiny_task.speaker())
    with pytest.raises(InputError, match=r"its files hold no language-model head \('lm_head.weight' is missing\)"):
        load_base("text-generation", headless)
    t5 = transformers.T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    with pytest.raises(InputError, match=r"type 't5' and cannot be used for text-generation: name another base"):
        load_base("text-generation", tiny_task._save(transformers.T5ForConditionalGeneration(t5), tmp_path / "t5"))


def test_a_model_of_images_brings_its_processor(tmp_path):
    said = []
    loaded = load_base("image-classification", tiny_task.vit(tmp_path / "vit"), LABELS, log=said.append)
    assert (loaded.tokenizer, loaded.max_positions, said) == (None, None, [])
    assert list(loaded.image_processor.image_mean) == [0.4, 0.5, 0.6]
    assert loaded.new_parameters == ("classifier.weight", "classifier.bias")
    plain = tiny_task.vit(tmp_path / "plain", processor=False)
    loaded = load_base("image-classification", plain, LABELS, log=said.append)
    assert said == [f"{plain} has no preprocessor_config.json: images become 8 x 8, their values -1 to 1"]
    (plain / "preprocessor_config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be loaded as a model with an image processor"):
        load_base("image-classification", plain, LABELS)


def test_what_takes_no_images_or_no_text(base, tmp_path):
    vit = tiny_task.vit(tmp_path / "vit")
    with pytest.raises(
        InputError, match=r"'bert' and cannot be used for image-class.* for text-class.*, text-regression or token-c"
    ):
        load_base("image-classification", base, LABELS)
    with pytest.raises(InputError, match=r"'vit' and cannot be used for text-classification.*for image-classification"):
        load_classifier(vit, LABELS)
    config = json.loads((vit / "config.json").read_text()) | {"num_channels": 1}
    (vit / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="for images of 1 channels; only those of 3 can be used"):
        load_base("image-classification", vit, LABELS)


def test_a_base_is_located_from_here_then_from_the_file_that_names_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("here/base", "there/base", "there/only/bert"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    there = tmp_path / "there"
    assert locate_base("base", there) == "base"
    assert locate_base("only/bert", there) == str(there / "only" / "bert")
    assert locate_base(str(there / "base"), tmp_path) == str(there / "base")
    assert locate_base("", there) == ""
    for hub_id in ("bert-base-uncased", "google/bert_uncased_L-2", "a.b/c-d"):
        assert locate_base(hub_id, there) == hub_id


@pytest.mark.parametrize(
    "name", ["./base", "../base", "~/base", "/no/base", "a/b/c", "models/", "my models/bert", "x/y"]
)
def test_a_path_that_does_not_exist_is_a_missing_folder(tmp_path, monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", None)  # nobody calls it
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"{name}: no such folder"):
        locate_base(name, tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"{name}: no such folder"):
        load_classifier(name, ["a", "b"])
