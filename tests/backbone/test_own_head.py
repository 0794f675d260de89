"""A head in the base's files starts the training only if its classes have the names of the labels."""

from __future__ import annotations

import pytest
import tiny_task
import torch
import transformers

from taskedge.backbone.loading import load_base
from taskedge.backbone.own_head import class_order, output_parameters

TEXT = torch.tensor([[2, 4, 5, 6, 3], [2, 7, 8, 9, 3]])


def own(folder, names, **changes):
    return tiny_task.bert(folder, classes=len(names), id2label=dict(enumerate(names)), **changes)


def loaded(folder, labels, **options):
    lines = []
    torch.manual_seed(3)
    base = load_base("text-classification", folder, labels, log=lines.append, **options)
    with torch.no_grad():
        return base, base.model.eval()(input_ids=TEXT).logits, lines


@pytest.mark.parametrize(
    ("names", "labels", "order"),
    [
        (("POSITIVE", "NEGATIVE"), ("negative", "positive"), [1, 0]),
        ((" caf\u00e9", "Stra\u00dfe"), ("STRASSE", "cafe\u0301 "), [1, 0]),
        (("entailment", "neutral", "contradiction"), ("contradiction", "entailment", "neutral"), [2, 0, 1]),
        (("LABEL_0", "LABEL_1"), ("LABEL_1", "LABEL_0"), [1, 0]),
        (("LABEL_0", "LABEL_1"), ("negative", "positive"), None),
        (("joy", "anger"), ("negative", "positive"), None),
        (("negative", "positive", "neutral"), ("negative", "positive"), None),
        (("Pos", "pos"), ("pos", "POS"), None),
        ((), ("a", "b"), None),
    ],
)
def test_classes_are_matched_by_name(names, labels, order):
    assert class_order(names, labels) == order


def test_the_outputs_come_in_the_order_of_the_labels(tmp_path):
    folder = own(tmp_path / "own", ["POSITIVE", "NEGATIVE", "Neutral"])
    with torch.no_grad():
        stored = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()(input_ids=TEXT).logits
    base, logits, lines = loaded(folder, ["negative", "neutral", "positive"])
    torch.testing.assert_close(logits, stored[:, [1, 2, 0]])
    assert lines == ["head: the base's own, 3 classes matched by name"]
    assert (base.head, base.new_parameters) == ("base", ())
    assert base.model.config.id2label == {0: "negative", 1: "neutral", 2: "positive"}


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["LABEL_0", "LABEL_1"], "head: new; the base's own does not name its 2 outputs ('LABEL_0', 'LABEL_1')"),
        (["joy", "anger"], "head: new; the base's own has other classes: 'joy', 'anger'"),
        (["neg", "pos", "so"], "head: new; the base's own has other classes: 'neg', 'pos', 'so'"),
        (list("abcdefgh"), "head: new; the base's own has other classes: 'a', 'b', 'c', 'd', 'e', 'f' and 2 more"),
    ],
)
def test_a_head_of_other_classes_is_replaced_by_that_of_a_base_without_one(tmp_path, names, line):
    base, logits, lines = loaded(own(tmp_path / "own", names), ["neg", "pos"])
    assert lines == [line]
    assert base.head == "new"
    assert base.new_parameters == ("classifier.weight", "classifier.bias")
    bare = tmp_path / "bare"
    tiny_task._save(transformers.BertModel.from_pretrained(tmp_path / "own"), bare)
    plain, expected, no_lines = loaded(bare, ["neg", "pos"])
    assert (plain.head, no_lines) == ("", [])
    assert torch.equal(logits, expected)
    assert all(parameter.requires_grad for parameter in base.model.parameters())


def test_a_delta_gets_the_head_as_it_is_in_the_files(tmp_path):
    folder = own(tmp_path / "own", ["POSITIVE", "NEGATIVE"])
    with torch.no_grad():
        stored = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()(input_ids=TEXT).logits
    base, logits, lines = loaded(folder, ["negative", "positive"], keep_head=True)
    assert torch.equal(logits, stored)
    assert (base.head, lines) == ("", [])


def test_a_regression_head(tmp_path):
    lines = []
    tiny_task.bert(tmp_path / "one", classes=1)
    assert load_base("text-regression", tmp_path / "one", log=lines.append).head == "base"
    own(tmp_path / "two", ["joy", "anger"])
    assert load_base("text-regression", tmp_path / "two", log=lines.append).head == "new"
    assert lines == [
        "head: the base's own, of one output",
        "head: new; the base's own has other classes: 'joy', 'anger'",
    ]


def test_an_image_head(tmp_path):
    tiny_task.vit(tmp_path / "vit")
    config = transformers.ViTConfig.from_pretrained(tmp_path / "vit", id2label={0: "Red", 1: "Blue"})
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    stored = transformers.ViTForImageClassification.from_pretrained(tmp_path / "vit")
    base = load_base("image-classification", tmp_path / "vit", ["blue", "red"])
    assert torch.equal(base.model.classifier.weight, stored.classifier.weight[[1, 0]])
    assert torch.equal(base.model.classifier.bias, stored.classifier.bias[[1, 0]])


@pytest.mark.parametrize(
    ("auto_class", "config", "outputs"),
    [
        ("RobertaForSequenceClassification", transformers.RobertaConfig,
         {"classifier.out_proj.weight", "classifier.out_proj.bias"}),
        ("GPT2ForSequenceClassification", transformers.GPT2Config, {"score.weight"}),
        ("DeiTForImageClassificationWithTeacher", transformers.DeiTConfig,
         {f"{kind}_classifier.{part}" for kind in ("cls", "distillation") for part in ("weight", "bias")}),
    ],
)  # fmt: skip
def test_the_output_layer_of_a_head(auto_class, config, outputs):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    made = config(**small, num_labels=16)  # as many classes as the width
    state = torch.get_rng_state()
    with torch.device("meta"):
        model = getattr(transformers, auto_class)(made)
    torch.set_rng_state(state)
    assert output_parameters(model) == dict.fromkeys(outputs, 0)
    assert torch.equal(torch.get_rng_state(), state)
