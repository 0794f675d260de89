"""One base in memory for all kinds of task."""

from __future__ import annotations

import pytest
import tiny_kinds

from taskedge.errors import InputError
from taskedge.serving.served_base import ServedBase, probe_batch


def test_a_classifier_and_a_language_model_share_the_weights(gpt2_tasks):
    lines = []
    base = ServedBase(gpt2_tasks[0], log=lines.append)
    language, classes = base.view("text-generation", ()), base.view("text-classification", ("x", "y"))
    assert language.base.model.transformer is classes.base.model.transformer
    assert base.view("text-regression", ()) is classes
    assert any("shares the weights of GPT2LMHeadModel" in line for line in lines)
    assert not any(parameter.requires_grad for parameter in language.base.model.parameters())


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("bert", "text-classification"),
        ("t5", "text-classification"),
        ("vit", "image-classification"),
        ("t5", "text-to-text"),
        ("bert", "token-classification"),
    ],
)
def test_the_probe_can_be_computed(tmp_path, kind, task):
    base = tiny_kinds.base_of(kind, task, tmp_path)
    assert len(base.model(**probe_batch(task, base, 3)).logits) == 3


def test_a_base_that_cannot_do_the_task(bert_tasks):
    with pytest.raises(InputError, match=r"cannot be used for text-generation|reads a text as a whole"):
        ServedBase(bert_tasks[0]).view("text-generation", ())


def test_a_tagger_and_a_classifier_share_what_both_have(tag_tasks):
    base = ServedBase(tag_tasks[0])
    tagger, classes = base.view("token-classification", ("x", "y")), base.view("text-classification", ("x", "y"))
    assert classes.base.model.bert.encoder is tagger.base.model.bert.encoder
    assert (tagger.base.model.bert.pooler is None, classes.base.model.bert.pooler is None) == (True, False)
