"""Tags of tokens: alignment to sub-words, cut rows, measures, and a run that learns them."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import tiny_task
import torch
import transformers
from tiny_task import WORDS

import taskedge as te
from taskedge.backbone.loading import load_base
from taskedge.errors import InputError
from taskedge.training.data.infer_task import infer_task
from taskedge.training.data.tagged_tokens import read_tagged
from taskedge.training.tasks import Columns
from taskedge.training.tasks.token_classification import TokenClassification, _first_positions

TAGS = ("B-X", "I-X", "O")


def subword_tokenizer():
    """Return a tokenizer that parts ``goodfilm`` in two sub-words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    words[words.index("not")] = "##film"
    made = Tokenizer(WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tiny_task.bert(tmp_path_factory.mktemp("ner") / "bert")
    subword_tokenizer().save_pretrained(folder)
    return load_base("token-classification", folder, TAGS)


@pytest.fixture
def data(tmp_path):
    rows = [(["the", "goodfilm", "was"], ["O", "B-X", "O"]), (["a", "plot"], ["O", "B-X"])]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"tokens": tokens, "tags": tags}) + "\n" for tokens, tags in rows))
    return read_tagged(path, "tokens", "tags")


def task_for(base):
    return TokenClassification(TAGS).bind(base)


def test_the_first_sub_word_has_the_tag(base, data):
    rows = task_for(base).encode(base, data, 40, str)
    tokens = base.tokenizer.convert_ids_to_tokens(rows[0]["input_ids"])
    assert tokens == ["[CLS]", "the", "good", "##film", "was", "[SEP]"]
    assert rows[0]["words"] == [1, 2, 4]
    assert rows[0]["labels"] == [-100, 2, 0, -100, 2, -100]
    batch = task_for(base).collate(base)(rows)
    assert batch["labels"][1].tolist() == [-100, 2, 0, -100, -100, -100]
    assert set(batch) <= {"input_ids", "attention_mask", "token_type_ids", "labels"}


def test_positions_follow_the_characters():
    starts = np.array([0, 4, 8])  # "abc def gh"
    spans = [(0, 0), (0, 2), (2, 3), (3, 5), (5, 7), (7, 9), (0, 0)]  # sub-words that begin with their blank
    assert _first_positions(spans, starts, [3, 3, 2]) == [1, 3, 5]
    assert _first_positions([(0, 7)], starts, [3, 3, 2]) == [0, 0, -1]
    assert _first_positions([], starts, [3, 3, 2]) == [-1, -1, -1]


def test_tokens_behind_the_cut_are_counted_and_have_no_entity(base, data):
    said = []
    rows = task_for(base).encode(base, data, 4, said.append)
    assert rows[0]["words"] == [1, 2, -1]
    assert said[0].startswith("1 of 2 rows have more than 4 sub-words and are cut: 1 of their tokens are not read")
    answers = task_for(base).predict(base.model, base, rows, 2, str)
    assert answers[0]["tags"].split()[-1] == "O"


def test_answers_do_not_depend_on_the_batch_and_measures_are_right(base, data):
    task = task_for(base)
    rows = task.encode(base, data, 40, str)
    alone, together = (task.predict(base.model, base, rows, size, str) for size in (1, 2))
    assert alone == together
    assert [len(answer["tags"].split()) for answer in alone] == [3, 2]
    measures = task.evaluate(base.model, base, rows, 2, str)
    with torch.no_grad():
        loss = base.model.eval()(**task.collate(base)(rows)).loss
    assert measures["loss"] == pytest.approx(float(loss), rel=1e-5)
    truth = [tag for row in data.labels for tag in row.split("\n")]
    found = [tag for answer in alone for tag in answer["tags"].split()]
    assert measures["accuracy"] == sum(a == b for a, b in zip(truth, found, strict=True)) / 5


def test_columns_and_files_are_found_by_name(tmp_path, data):
    expected = Columns(tokens="tokens", tags="tags")
    conll = tmp_path / "x.conll"
    conll.write_text("a O\nplot B-X\n")
    for path in (data.path, conll):
        found = infer_task(path, Columns())
        assert (found.task, found.columns) == ("token-classification", expected)


def test_a_tokenizer_without_offsets_is_refused(base):
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="does not tell where its sub-words are"):
        TokenClassification(TAGS).bind(replace(base, tokenizer=Slow()))


def test_entries_and_head_learn_the_tags(base, data):
    model = copy.deepcopy(base.model)
    task = task_for(base)
    rows = task.encode(base, data, 40, str)
    batch = task.collate(base)(rows)
    te.install(model, te.select(model, [batch], per_neuron=2))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    measures = task.evaluate(model, base, rows, 2, str)
    assert measures["accuracy"] == 1.0
    assert measures.get("entity_f1", 1.0) == 1.0
