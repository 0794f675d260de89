"""Adapters saved by the real PEFT keep their logits; those that a delta cannot represent are refused."""

from __future__ import annotations

import json
import shutil

import peft
import pytest
import tiny_task
import torch
import transformers
from safetensors.torch import load_file, save_file

import taskedge as te
from taskedge.delta.interop.peft_import import CONFIG, WEIGHTS, import_peft
from taskedge.delta.load_with_delta import load_with_delta
from taskedge.errors import DeltaError, InputError

TEXTS = ["the film was good", "bad", "never so long a night"]


@pytest.fixture(scope="session")
def task(tmp_path_factory):
    return tiny_task.folder_of_a_task(tmp_path_factory.mktemp("task"))


def logits(model, tokenizer):
    model.eval()
    with torch.no_grad():
        return model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits


def adapter(base, folder, classes=2, kind="SEQ_CLS", stir=True, **options):
    """Save an adapter with random factors made by the real PEFT; return its logits."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=classes)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    model = peft.get_peft_model(
        model, peft.LoraConfig(task_type=kind, **{"target_modules": ["query", "dense"]} | options)
    )
    if stir:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn_like(parameter) * 0.3
    model.save_pretrained(folder)
    return logits(model, tokenizer)


KINDS = {
    "plain": {},
    "alpha": {"r": 4, "lora_alpha": 32},
    "rslora": {"r": 4, "lora_alpha": 3, "use_rslora": True},
    "patterns": {
        "r": 4,
        "rank_pattern": {"layer.1.attention.self.query": 2, r"output\.dense": 3},
        "alpha_pattern": {r"layer\.\d+\.intermediate.dense": 7, "query": 5},
    },
    "dropout": {"lora_dropout": 0.5},
    "all linears": {"target_modules": "all-linear"},
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layer"},
    "a pattern": {"target_modules": r".*layer\.0\.attention.*(query|value)"},
    "the pooler whole": {"target_modules": ["query"], "modules_to_save": ["classifier", "pooler"]},
    "gaussian": {"init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("what", KINDS)
def test_logits_are_those_of_peft(task, tmp_path, what):
    expected = adapter(task / "base", tmp_path / "a", **KINDS[what])
    te.save(import_peft(tmp_path / "a", labels=["neg", "pos"]), tmp_path / "d")
    base, delta = load_with_delta(tmp_path / "d")
    assert (logits(base.model, base.tokenizer) - expected).abs().max() <= 1e-5
    assert {"classifier.weight", "classifier.bias"} <= set(delta.full_parameters)
    assert delta.provenance.labels == ("neg", "pos")
    assert delta.provenance.base == str(task / "base")
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("said", [True, False])
def test_conv1d(task, tmp_path, said):
    options = {"fan_in_fan_out": said, "target_modules": ["c_attn", "c_proj", "c_fc"]}
    expected = adapter(task / "gpt2", tmp_path / "a", **options)
    te.save(import_peft(tmp_path / "a"), tmp_path / "d")
    base, delta = load_with_delta(tmp_path / "d")
    assert (logits(base.model, base.tokenizer) - expected).abs().max() <= 1e-5
    assert delta.low_rank["transformer.h.0.attn.c_attn"].shape == (48, 16)


def test_a_base_with_a_head_of_its_own(task, tmp_path):
    """Without modules_to_save the head is from the base, and its config names the classes."""
    expected = adapter(task / "own", tmp_path / "a", kind=None)
    delta = import_peft(tmp_path / "a")
    assert not delta.full_parameters
    assert delta.provenance.labels == ("LABEL_0", "LABEL_1")
    te.save(delta, tmp_path / "d")
    base, _ = load_with_delta(tmp_path / "d")
    assert (logits(base.model, base.tokenizer) - expected).abs().max() <= 1e-5
    with pytest.raises(InputError, match=r"neither the adapter nor .* has 'classifier"):
        import_peft(tmp_path / "a", str(task / "base"))


@pytest.mark.parametrize("labels", [["neg", "pos"], ["LABEL_1", "LABEL_0"]])
def test_the_head_of_the_base_keeps_its_order(task, tmp_path, labels):
    """Labels are in the adapter's order, whatever the base's config calls its outputs."""
    expected = adapter(task / "own", tmp_path / "a", kind=None)
    te.save(import_peft(tmp_path / "a", labels=labels), tmp_path / "d")
    base, _ = load_with_delta(tmp_path / "d")
    assert (logits(base.model, base.tokenizer) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_adapter(task, tmp_path, dtype):
    adapter(task / "base", tmp_path / "a")
    file = tmp_path / "a" / WEIGHTS
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(task / "base")
    expected = logits(
        peft.PeftModel.from_pretrained(model, tmp_path / "a"), transformers.AutoTokenizer.from_pretrained(task / "base")
    )
    te.save(import_peft(tmp_path / "a"), tmp_path / "d")
    base, _ = load_with_delta(tmp_path / "d")
    assert (logits(base.model, base.tokenizer) - expected).abs().max() <= 1e-5


def test_it_binds_to_the_base_it_was_imported_with(task, tmp_path):
    adapter(task / "base", tmp_path / "a")
    te.save(import_peft(tmp_path / "a"), tmp_path / "d")
    with pytest.raises(DeltaError, match="wrong base"):
        load_with_delta(tmp_path / "d", str(task / "other"))


# -- language models ---------------------------------------------------------------------------------------------------


def language_model(folder, base, **options):
    """Save a LoRA of a causal language model with random factors, and return peft's logits."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    chosen = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options
    model = peft.get_peft_model(model, peft.LoraConfig(**chosen))
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.3
    model.save_pretrained(folder)
    return logits(model, transformers.AutoTokenizer.from_pretrained(base))


@pytest.mark.parametrize("kind", ["llama", "gpt2_lm"])
@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True, "rank_pattern": {"0.mlp.up_proj": 2}}], ids=["plain", "more"]
)
def test_language_models(tmp_path, kind, options):
    base = getattr(tiny_task, kind)(tmp_path / "base")
    expected = language_model(tmp_path / "a", base, **options)
    te.save(import_peft(tmp_path / "a"), tmp_path / "d")
    loaded, delta = load_with_delta(tmp_path / "d")
    assert (logits(loaded.model, loaded.tokenizer) - expected).abs().max() <= 1e-5
    assert delta.provenance.task == "text-generation"
    assert delta.provenance.training["generation"] == {"form": "plain text", "max_new_tokens": 64}
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    assert (logits(plain, loaded.tokenizer) - expected).abs().max() > 0.1


def test_a_language_model_has_no_labels(tmp_path):
    language_model(tmp_path / "a", tiny_task.llama(tmp_path / "base"))
    refused(tmp_path / "a", "a language model has no classes: leave out --labels", labels=["a", "b"])


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    adapter(task / "base", folder / "a")
    return folder / "a"


def refused(folder, message, **options):
    with pytest.raises(InputError, match=message) as caught:
        import_peft(folder, **options)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "biases"),
        ({"bias": "all"}, "biases"),
        ({"lora_bias": True}, "biases"),
        ({"init_lora_weights": "pissa"}, "'pissa' changed the base as well"),
        ({"init_lora_weights": "olora"}, "'olora' changed the base as well"),
        ({"target_modules": ["query", "word_embeddings"]}, "LoRA on an embedding"),
        ({"target_modules": ["query"], "trainable_token_indices": [1]}, "uses trainable_token_indices="),
    ],
)
def test_peft_adapters_that_a_delta_cannot_represent(task, tmp_path, options, message):
    adapter(task / "base", tmp_path / "a", stir=False, **options)
    refused(tmp_path / "a", message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "of type LOHA: only LoRA"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "an adapter for SEQ_2_SEQ_LM: only adapters of classifiers .* and of causal"),
        ({"revision": "v2"}, "revision 'v2' of its base: give that base"),
        ({"base_model_name_or_path": None}, "does not name its base"),
        ({"alora_invocation_tokens": [1, 2]}, r"uses alora_invocation_tokens=\[1, 2\]"),
        ({"layer_replication": [[0, 2]]}, "uses layer_replication"),
        ({"use_something_new": True}, "uses use_something_new=True, which a delta cannot represent"),
        ({"r": 4}, r"the factors of '.*' are \[8, 16\] and \[16, 8\]; by its config and the base they must be \[4, 16"),
        ({"r": 0}, "r: Input should be greater"),
        ({"r": "much"}, "r: Input should be"),
        ({"lora_alpha": None}, "lora_alpha: Input should be"),
        ({"lora_alpha": float("nan")}, "lora_alpha: Input should be a finite"),
        ({"rank_pattern": {"(": 8}}, "'\\(' is not a regular expression"),
        ({"modules_to_save": []}, "'classifier.bias' is neither a LoRA factor nor in a module of modules_to_save"),
    ],
)
def test_a_config_that_cannot_be_used(plain, tmp_path, changes, message):
    folder = shutil.copytree(plain, tmp_path / "a")
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))
    refused(folder, message)


def renamed(old, new):
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def without(part):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed("query", "qurey"), "LoRA on '.*qurey', which in the base does not exist; did you mean '.*query'"),
        (renamed("attention.self.query", "attention.self"), "which in the base is a BertSelfAttention"),
        (without("layer.0.attention.self.query.lora_A"), r"the factors of '.*' are None and \[16, 8\]"),
        (without("lora_"), "holds no LoRA factors"),
        (renamed("lora_A", "lora_C"), "is neither a LoRA factor nor in a module of modules_to_save"),
        (lambda tensors: {name: tensor.int() for name, tensor in tensors.items()}, "not floating point"),
    ],
)
def test_weights_that_do_not_fit_the_base(plain, tmp_path, change, message):
    folder = shutil.copytree(plain, tmp_path / "a")
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    refused(folder, message)


def test_values_that_are_not_finite(plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "a")
    save_file({name: tensor * torch.nan for name, tensor in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    with pytest.raises(DeltaError, match="not a finite number"):
        import_peft(folder)


def test_classes_that_do_not_fit(task, tmp_path):
    expected = adapter(task / "base", tmp_path / "a", classes=3)
    refused(tmp_path / "a", r"'classifier\.\w+' is \[2(, 16)?\] in the base, the adapter has \[3(, 16)?\]: .* --labels")
    te.save(import_peft(tmp_path / "a", labels=["a", "b", "c"]), tmp_path / "d")
    base, _ = load_with_delta(tmp_path / "d")
    assert (logits(base.model, base.tokenizer) - expected).abs().max() <= 1e-5


def test_a_tied_weight(plain, tmp_path, task):
    from taskedge.delta.interop.peft_import import read_adapter, to_delta

    model = transformers.AutoModelForSequenceClassification.from_pretrained(task / "base")
    layers = model.bert.encoder.layer
    layers[0].attention.self.query.weight = layers[1].attention.self.query.weight
    with pytest.raises(InputError, match="query' is not supported: its weight is tied"):
        to_delta(read_adapter(plain), model)


def test_folders_that_are_no_adapter(plain, tmp_path):
    refused(tmp_path, "not a PEFT adapter: it has no adapter_config.json")
    folder = shutil.copytree(plain, tmp_path / "a")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    refused(folder, "adapter_model.bin is a pickle, which can run code: save the adapter as safetensors")
    (folder / "adapter_model.bin").unlink()
    refused(folder, "it has no adapter_model.safetensors")
    for content in (b"", b"\x10" * 50, (plain / WEIGHTS).read_bytes()[:-1]):
        (folder / WEIGHTS).write_bytes(content)
        refused(folder, "damaged")
    shutil.copy(plain / WEIGHTS, folder / WEIGHTS)
    for text in ("", "{", "[" * 100_000, "\x00"):
        (folder / CONFIG).write_text(text)
        refused(folder, "damaged")
    for text in ("[]", "{}", "3"):
        (folder / CONFIG).write_text(text)
        refused(folder, "is it a LoRA adapter")


def test_peft_is_not_needed(plain, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    assert te.Delta.__name__ == type(import_peft(plain)).__name__
