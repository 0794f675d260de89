"""Two text columns go in as a pair where the tokenizer separates pairs."""

from __future__ import annotations

import pytest
import tiny_task
from tokenizers.processors import TemplateProcessing

from taskedge.backbone.loading import Base
from taskedge.delta.delta import Provenance
from taskedge.errors import InputError
from taskedge.training.data.table import read_table
from taskedge.training.data.text_pairs import pair_of, separates_pairs
from taskedge.training.tasks import Columns
from taskedge.training.tasks.text_classification import TextClassification
from taskedge.training.tasks.text_regression import TextRegression

COLUMNS = Columns(text=("premise", "claim"), label="label")


def pair_tokenizer():
    made = tiny_task.tokenizer()
    made._tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return made


@pytest.fixture
def data(tmp_path):
    rows = [("the film was good", "a good film", "1"), ("bad", "", "0")]
    return read_table(tiny_task.table(tmp_path / "x.csv", rows, ("premise", "claim", "label")), COLUMNS.text, "label")


def base_of(tokenizer):
    return Base(tiny_task.torch.nn.Linear(1, 1), tokenizer, (), None)


@pytest.mark.parametrize("kind", [TextClassification, TextRegression])
def test_pairs_equal_those_of_the_tokenizer(data, kind):
    base, said = base_of(pair_tokenizer()), []
    task = kind.from_table(data, COLUMNS).bind(base, data, 40, log=said.append)
    assert said == ["the two texts go in as a pair, such as '[CLS] a [SEP] [UNK] [SEP]'"]
    rows = task.encode(base, data, 40, said.append)
    expected = base.tokenizer(["the film was good", "bad"], ["a good film", ""])
    assert [row["input_ids"] for row in rows] == expected["input_ids"]
    assert [row["token_type_ids"] for row in rows] == expected["token_type_ids"]
    again = kind.from_provenance(Provenance(labels=("0", "1"), training=task.to_provenance()))
    assert again == task
    with pytest.raises(InputError, match="name both columns"):
        pair_of(read_table(data.path, "premise"))


def test_without_separators_the_texts_are_joined_by_a_line_break(data):
    base, said = base_of(tiny_task.speaker()), []
    assert not separates_pairs(base.tokenizer)
    task = TextClassification.from_table(data, COLUMNS).bind(base, data, 40, log=said.append)
    assert said[0].startswith("the two texts go in as one, joined by a line break")
    assert task.to_provenance() == {}
    rows = task.encode(base, data, 40, str)
    assert rows[0]["input_ids"] == base.tokenizer("the film was good\na good film")["input_ids"]


def test_long_pairs_are_cut_and_counted(data):
    base, said = base_of(pair_tokenizer()), []
    task = TextClassification.from_table(data, COLUMNS).bind(base, data, 8)
    rows = task.encode(base, data, 8, said.append)
    assert len(rows[0]["input_ids"]) == 8
    assert said == [
        "1 of 2 rows have more than 8 tokens and are cut at their end: 2 tokens are lost (longest row: 10 tokens)"
    ]


def test_deltas_of_earlier_versions_join_their_texts(data):
    task = TextClassification.from_provenance(Provenance(labels=("0", "1"), training={"text": ["premise", "claim"]}))
    base = base_of(pair_tokenizer())
    rows = task.bind(base).encode(base, data, 40, str)
    assert rows[0]["input_ids"] == base.tokenizer("the film was good\na good film")["input_ids"]
