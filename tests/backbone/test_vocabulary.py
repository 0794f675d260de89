"""A tokenizer with tokens that have no embedding is refused, unless ordinary texts never have them."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_task
import torch
import transformers
from tokenizers import AddedToken

from taskedge.backbone.loading import load_base
from taskedge.backbone.vocabulary import check_token_ids, check_vocabulary
from taskedge.errors import InputError
from taskedge.training.data.table import Table
from taskedge.training.tasks import TASKS, Columns

ROWS = len(tiny_task.WORDS) + 4


def add(folder, tokens=(), **special):
    """Add tokens to the tokenizer in the folder; the base is not resized."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("tokens", "named"),
    [
        (["zebra"], "has 23 tokens, but the base has embeddings for 22 tokens only: 'zebra' cannot be read"),
        (["zebra", "gnu"], "has 24 tokens, but the base has embeddings for 22 tokens only: 'zebra' and 1 more"),
    ],
)
@pytest.mark.parametrize("task", ["text-classification", "text-regression", "text-generation"])
def test_a_word_without_an_embedding(tmp_path, task, tokens, named):
    assert ROWS == 22
    folder = add(tiny_task.bert(tmp_path / "base"), tokens)
    with pytest.raises(InputError, match=named):
        load_base(task, folder, ["a", "b"])


@pytest.mark.parametrize("make", [tiny_task.gpt2, tiny_task.gpt2_lm])
def test_a_padding_token_without_an_embedding_is_replaced(tmp_path, make):
    task, labels = ("text-classification", ["a", "b"]) if make is tiny_task.gpt2 else ("text-generation", ())
    lines = []
    folder = add(make(tmp_path / "base"), pad_token="<|pad|>")
    base = load_base(task, folder, labels, log=lines.append)
    assert base.tokenizer.pad_token_id == 3
    if labels:
        assert base.model.config.pad_token_id == 3
    assert lines == [
        "the base has embeddings for 22 tokens only: texts are padded with '[SEP]', not with '<|pad|>'; "
        "padding is masked"
    ]
    batch = base.tokenizer(["good film", "bad"], padding=True, return_tensors="pt")
    alone = base.tokenizer(["bad"], return_tensors="pt")
    assert 0 in batch["attention_mask"]
    with torch.no_grad():
        model = base.model.eval()
        together, single = model(**batch).logits[1], model(**alone).logits[0]
    torch.testing.assert_close(together if labels else together[: len(single)], single)


@pytest.mark.parametrize("role", ["eos_token", "unk_token", "cls_token"])
def test_a_control_token_that_rows_get_is_refused(tmp_path, role):
    folder = add(tiny_task.bert(tmp_path / "base"), **{role: "<new>"})
    with pytest.raises(InputError, match="'<new>' cannot be read"):
        load_base("text-classification", folder, ["a", "b"])


def test_a_control_token_of_the_chat_template_is_refused(tmp_path):
    folder = tiny_task.llama(tmp_path / "base", chat=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken("<turn>", special=True)])
    tokenizer.chat_template = "<turn>" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="'<turn>' cannot be read"):
        load_base("text-generation", folder)


@pytest.mark.parametrize("task", ["text-classification", "text-regression"])
def test_another_control_token_is_refused_in_a_row(tmp_path, task):
    lines = []
    folder = add(tiny_task.bert(tmp_path / "base"), [AddedToken("<image>", special=True)])
    base = load_base(task, folder, ["neg", "pos"], log=lines.append)
    assert lines == ["the base has embeddings for 22 tokens only: rows with the control token '<image>' cannot be used"]
    train = Table(Path("x.csv"), ["good film", "bad film", "a film"], ["1", "2", "1"])
    bound = (
        TASKS[task].from_table(train, Columns(text=("text",), prompt="text", response="label")).bind(base, train, 32)
    )
    assert len(bound.encode(base, train, 32, str)) == 3
    with pytest.raises(InputError, match=r"new\.csv, row 2: the base has no embedding for the token '<image>'"):
        bound.encode(base, Table(Path("new.csv"), ["good film", "a <image> film"]), 32, str)


def test_a_control_token_in_a_prompt_is_text(tmp_path):
    folder = add(tiny_task.gpt2_lm(tmp_path / "base"), [AddedToken("<image>", special=True)])
    base = load_base("text-generation", folder, log=lambda line: None)
    train = Table(Path("x.csv"), ["good film", "bad film"], ["1", "2"])
    bound = TASKS["text-generation"].from_table(train, Columns(prompt="text", response="label")).bind(base, train, 32)
    rows = bound.encode(base, Table(Path("new.csv"), ["good film", "a <image> film"]), 32, str)
    assert all(index not in base.tokens_without_embedding for row in rows for index in row["prompt"])


def test_more_embeddings_than_tokens_are_fine(tmp_path):
    folder = tiny_task.bert(tmp_path / "base", vocab_size=64)
    assert load_base("text-classification", folder, ["a", "b"]).tokens_without_embedding == {}


def test_a_model_without_a_table_of_tokens():
    assert check_vocabulary("x", tiny_task.tokenizer(), torch.nn.Linear(2, 2)) == {}


def test_rows_are_checked_only_for_tokens_without_embedding():
    check_token_ids([[1, 2], [3]], {}, Path("x"))
    check_token_ids([[1, 2], [3]], {4: "<x>"}, Path("x"))
    with pytest.raises(InputError, match="x, row 2: "):
        check_token_ids([[1, 2], [3]], {3: "<x>"}, Path("x"))
