"""Learned tokens of a prompt and its response, and the same treatment when the delta is used."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_task
from tiny_task import WORDS

from taskedge.backbone.loading import load_base
from taskedge.delta.delta import Provenance
from taskedge.errors import InputError
from taskedge.training.data.table import Table
from taskedge.training.generation import IGNORED
from taskedge.training.tasks import Columns, task_of_delta
from taskedge.training.tasks.text_generation import CHAT, LINE, PLAIN, TextGeneration

START, END, FIRST = 2, 3, 4  # [CLS], [SEP], and the first word
UNKNOWN = 1
PAIRS = Columns(prompt="prompt", response="response")


def ids(text):
    return [FIRST + WORDS.index(word) if word in WORDS else UNKNOWN for word in text.split()]


def table(*pairs):
    return Table(Path("x.csv"), [prompt for prompt, _ in pairs], [response for _, response in pairs])


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    return {
        "plain": load_base("text-generation", tiny_task.llama(folder / "plain")),
        "start": load_base("text-generation", tiny_task.gpt2_lm(folder / "start", start=True)),
        "chat": load_base("text-generation", tiny_task.llama(folder / "chat", chat=True)),
    }


def met(base, data, columns=PAIRS, max_length=40, new_tokens=None):
    return TextGeneration.from_table(data, columns).bind(base, data, max_length, new_tokens)


@pytest.mark.parametrize(
    ("kind", "form", "before"),
    [
        ("plain", LINE, ids("the film was")),
        ("start", LINE, [START, *ids("the film was")]),
        ("chat", CHAT, [UNKNOWN, UNKNOWN, *ids("the film was"), START]),
    ],
)
def test_only_the_response_and_its_end_are_learnt(bases, kind, form, before):
    base, data = bases[kind], table(("the film was", "very good"), ("a plot", "bad"))
    task = met(base, data)
    assert task.form == form
    rows = task.encode(base, data, 40, str)
    assert rows[0]["prompt"] == before
    assert rows[0]["input_ids"] == [*before, *ids("very good"), END]
    assert rows[0]["labels"] == [IGNORED] * len(before) + [*ids("very good"), END]
    assert task.new_tokens == 3  # the longest response and its end
    asked = task.encode(base, Table(data.path, data.texts), 40, str)
    assert [row["prompt"] for row in asked] == [row["prompt"] for row in rows]
    assert "labels" not in asked[0]
    batch = task.collate(base)(rows)
    assert batch["attention_mask"].sum(1).tolist() == [len(row["input_ids"]) for row in rows]
    assert (batch["labels"] != IGNORED).sum(1).tolist() == [3, 2]
    assert batch["labels"][1, -2:].tolist() == [IGNORED, IGNORED]  # padding


def test_plain_text_is_learnt_whole(bases):
    data = Table(Path("x.txt"), ["the film was good", "bad"])
    task = met(bases["start"], data, Columns(text=("text",)))
    rows = task.encode(bases["start"], data, 40, str)
    assert task.form == PLAIN
    assert rows[0]["input_ids"] == rows[0]["labels"] == [START, *ids("the film was good"), END]
    assert rows[0]["prompt"] == [START, *ids("the film was good")]


def test_long_rows_are_cut_and_counted(bases):
    base, said = bases["plain"], []
    data = table(("a the film was", "so good"), ("a", "very good fine bad not"), ("a", "so"))
    task = met(base, data, max_length=5)
    rows = task.encode(base, data, 5, said.append)
    assert [row["input_ids"] for row in rows] == [
        [*ids("film was so good"), END],  # the prompt at its start
        ids("a very good fine bad"),  # the response at its end
        [*ids("a so"), END],
    ]
    assert all(label != IGNORED for row in rows for label in row["labels"][-1:])
    assert said == [
        "2 of 3 rows have more than 5 tokens and are cut: the prompt at its start, then the response at its end"
    ]
    plain = Table(Path("x.txt"), ["a the film was good", "bad"])
    said.clear()
    made = met(base, plain, Columns(text=("text",)), 4).encode(base, plain, 4, said.append)
    assert made[0]["input_ids"] == ids("a the film was")
    assert said == ["1 of 2 rows have more than 4 tokens and are cut: at their end"]
    with pytest.raises(InputError, match="--max-length 1 leaves no room"):
        met(base, data, max_length=1)


def test_prompts_leave_room_for_what_is_generated(bases):
    base = bases["plain"]  # 96 positions
    data = table(("a " * 200 + "good", "bad " * 9))
    task = met(base, data, max_length=96)
    (row,) = task.encode(base, data, 96, str)
    assert task.new_tokens == 10
    assert len(row["prompt"]) == 96 - 10
    assert row["prompt"][-1] == ids("good")[0]
    assert met(base, data, new_tokens=500).new_tokens == 95
    task = met(base, data, new_tokens=2)
    assert (
        len(task.predict(base.model, base, task.encode(base, data, 96, str), 4, [].append)[0]["response"].split()) <= 2
    )


@pytest.mark.parametrize("kind", ["plain", "start", "chat"])
def test_what_is_remembered_is_done_again(bases, kind):
    base, data = bases[kind], table(("the film was", "very good"))
    task = met(base, data)
    again = task_of_delta(Provenance(task="text-generation", training=task.to_provenance())).bind(base)
    assert again == task
    assert again.encode(base, data, 40, str) == task.encode(base, data, 40, str)


def test_another_chat_template_is_refused(bases):
    task = met(bases["chat"], table(("a", "b")))
    with pytest.raises(InputError, match="another chat template than the delta was trained with"):
        task_of_delta(Provenance(task="text-generation", training=task.to_provenance())).bind(bases["plain"])
    # a template that the base got later does not change what the delta does
    task = met(bases["plain"], table(("a", "b")))
    assert (
        task_of_delta(Provenance(task="text-generation", training=task.to_provenance())).bind(bases["chat"]).form
        == LINE
    )


def test_a_delta_that_does_not_say(bases):
    with pytest.raises(InputError, match="does not say how its prompts were written"):
        task_of_delta(Provenance(task="text-generation"))
    with pytest.raises(InputError, match="does not say which kind of task"):
        task_of_delta(Provenance())


def test_a_tokenizer_without_an_end(bases, tmp_path):
    base = load_base("text-generation", tiny_task.llama(tmp_path / "x"))
    base.tokenizer.eos_token = None
    with pytest.raises(InputError, match="has no end token"):
        met(base, table(("a", "b")))


def test_a_template_that_refuses(tmp_path):
    base = load_base("text-generation", tiny_task.llama(tmp_path / "x", chat=True))
    base.tokenizer.chat_template = "{{ raise_exception('a system turn first') }}"
    with pytest.raises(InputError, match="refuses a lone turn of the user: a system turn first"):
        met(base, table(("a", "b"))).encode(base, table(("a", "b")), 9, str)


def test_measures(bases):
    """Exact match counts equal responses; perplexity is over learned tokens."""
    import math

    base = bases["plain"]
    texts = ["the film was", "a plot", "bad"]
    task = met(base, table(*((text, "very good") for text in texts)))
    found = task.predict(base.model, base, task.encode(base, Table(Path("x"), texts), 40, str), 2, [].append)
    responses = [found[0]["response"], found[1]["response"] + " bad", found[2]["response"]]
    rows = task.encode(base, table(*zip(texts, responses, strict=True)), 40, str)
    done = []
    measured = task.evaluate(base.model, base, rows, 2, done.append)
    assert measured["exact_match"] == pytest.approx(2 / 3)
    assert measured["perplexity"] == pytest.approx(math.exp(measured["loss"]))
    assert measured.keys() == {"rows", "loss", "perplexity", "exact_match"}
    assert sum(done) == 3
    plain = Table(Path("x.txt"), texts)
    task = met(base, plain, Columns(text=("text",)))
    measured = task.evaluate(base.model, base, task.encode(base, plain, 40, str), 2, done.append)
    assert measured.keys() == {"rows", "loss", "perplexity"}
    assert sum(done) == 6
