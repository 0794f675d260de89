"""A base trains the same whatever its config says about the loss and the form of outputs."""

from __future__ import annotations

import json

import pytest
import tiny_task
import torch
import transformers

from taskedge.backbone.loading import load_base
from taskedge.backbone.task_config import NEUTRAL_FIELDS, class_names, set_task_config, task_of_classifier

LABELS = ["neg", "pos"]
NAMED = {"id2label": {"0": "neg", "1": "pos"}, "label2id": {"neg": 0, "pos": 1}}
FIELDS = {
    "multi-label": {"problem_type": "multi_label_classification"},
    "regression": {"problem_type": "regression"},
    "one number": {"problem_type": "regression", "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}},
    "tuples": {"return_dict": False},
    "hidden states": {"output_hidden_states": True},
    "attentions": {"output_attentions": True},
    "chunks": {"chunk_size_feed_forward": 5},
}


def with_fields(folder, fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def result(task, folder, labels=()):
    """Return the outputs of a batch of 2 rows, which is the number of classes."""
    torch.manual_seed(0)
    base = load_base(task, folder, labels)
    target = torch.tensor([1, 0]) if labels else torch.tensor([0.5, -0.5])
    if task == "image-classification":
        inputs = {"pixel_values": torch.linspace(-1, 1, 384).reshape(2, 3, 8, 8)}
    else:
        inputs = {"input_ids": torch.tensor([[4, 5, 6], [7, 8, 9]]), "attention_mask": torch.ones(2, 3).long()}
        if task == "text-generation":
            target = inputs["input_ids"]
    output = base.model.eval()(**inputs, labels=target)
    assert {"hidden_states", "attentions"}.isdisjoint(output)
    return output


@pytest.mark.parametrize(
    ("task", "make", "labels"),
    [
        ("text-classification", tiny_task.bert, LABELS),
        ("text-regression", tiny_task.bert, []),
        ("image-classification", tiny_task.vit, LABELS),
        ("text-generation", tiny_task.gpt2_lm, []),
    ],
)
@pytest.mark.parametrize("fields", FIELDS)
def test_results_are_those_without_the_field(tmp_path, task, make, labels, fields):
    expected = result(task, make(tmp_path / "plain"), labels)
    actual = result(task, with_fields(make(tmp_path / "base"), FIELDS[fields]), labels)
    if task == "text-generation":  # the loss needs logits at labeled positions only
        assert actual.logits is None
    else:
        assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(actual.loss, expected.loss)
    if task.endswith("classification"):
        assert actual.logits.shape == (2, 2)
        torch.testing.assert_close(actual.loss, torch.nn.functional.cross_entropy(actual.logits, torch.tensor([1, 0])))


@pytest.mark.parametrize("fields", ["multi-label", "regression"])
def test_a_classifier_of_another_loss_keeps_its_head(tmp_path, fields):
    plain = tiny_task.bert(tmp_path / "plain", classes=2, **NAMED)
    base = with_fields(tiny_task.bert(tmp_path / "base", classes=2, **NAMED), FIELDS[fields])
    expected, actual = (result("text-classification", folder, LABELS) for folder in (plain, base))
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(actual.loss, expected.loss)


def test_the_router_adds_nothing_to_the_loss_of_a_mixture_of_experts(tmp_path):
    config = transformers.MixtralConfig(
        vocab_size=len(tiny_task.WORDS) + 4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=32, num_local_experts=2, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tiny_task._save(transformers.MixtralForCausalLM(config), tmp_path / "moe", tiny_task.speaker())
    expected = result("text-generation", folder)
    assert torch.equal(
        result("text-generation", with_fields(folder, {"output_router_logits": True})).loss, expected.loss
    )


def test_configs_inside_a_config_are_set_as_well():
    config = transformers.CLIPConfig()
    for part in (config.text_config, config.vision_config):
        part.return_dict, part.output_hidden_states = False, True
    set_task_config(config, "image-classification", LABELS)
    for part in (config, config.text_config, config.vision_config):
        assert {name: getattr(part, name, value) for name, value in NEUTRAL_FIELDS.items()} == NEUTRAL_FIELDS
    assert class_names(config) == ("neg", "pos")
    assert config.label2id == {"neg": 0, "pos": 1}


def test_a_single_class_has_no_problem_type():
    """Only an imported adapter has one class, and transformers refuses it with a problem type."""
    config = transformers.BertConfig(problem_type="regression", num_labels=1)
    set_task_config(config, "text-classification", ["good"])
    assert (config.num_labels, config.problem_type) == (1, None)


def test_classifiers_are_recognized():
    for changes, found in [
        ({"num_labels": 2, "id2label": {0: "no", 1: "yes"}}, ("text-classification", ("no", "yes"))),
        (
            {"num_labels": 2, "problem_type": "multi_label_classification"},
            ("multi-label-classification", ("LABEL_0", "LABEL_1")),
        ),
        ({"num_labels": 1}, ("", ())),
    ]:
        config = transformers.BertConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9, **changes
        )
        assert task_of_classifier(transformers.BertForSequenceClassification(config)) == found
    assert task_of_classifier(transformers.BertModel(config)) == ("", ())
    assert task_of_classifier(torch.nn.Linear(2, 2)) == ("", ())
