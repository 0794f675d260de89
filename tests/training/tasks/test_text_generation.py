"""Learned tokens of a prompt and its response, and the same treatment when the delta is used."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_kinds
import tiny_task
import torch
import transformers
from chat_templates import GEMMA, QWEN, THOUGHTS, chat_tokenizer
from tiny_task import WORDS

from taskedge.backbone.loading import load_base
from taskedge.cli.main import main
from taskedge.delta.delta import Provenance
from taskedge.delta.file import load
from taskedge.errors import InputError
from taskedge.training.data.table import Table
from taskedge.training.generation import IGNORED
from taskedge.training.tasks import Columns, task_of_delta
from taskedge.training.tasks.text_generation import CHAT, LINE, PLAIN, PROMPT_TURN, TextGeneration

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
        ("chat", CHAT, [UNKNOWN, UNKNOWN, *ids("the film was"), START, UNKNOWN, UNKNOWN]),
    ],
)
def test_only_the_response_and_its_end_are_learnt(bases, kind, form, before):
    end = START if kind == "chat" else END  # the template ends turns with [CLS]
    base, data = bases[kind], table(("the film was", "very good"), ("a plot", "bad"))
    task = met(base, data)
    assert task.form == form
    rows = task.encode(base, data, 40, str)
    assert rows[0]["prompt"] == before
    assert rows[0]["input_ids"] == [*before, *ids("very good"), end]
    assert rows[0]["labels"] == [IGNORED] * len(before) + [*ids("very good"), end]
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
        "2 of 3 rows have more than 5 tokens and are cut (the prompt at its start, then the response at its end): "
        "4 tokens are lost (longest row: 7 tokens)",
        "1 of 3 responses have more than 5 tokens, which is the most that is generated: they cannot be matched exactly "
        "(see --max-new-tokens)",
    ]
    plain = Table(Path("x.txt"), ["a the film was good", "bad"])
    said.clear()
    made = met(base, plain, Columns(text=("text",)), 4).encode(base, plain, 4, said.append)
    assert made[0]["input_ids"] == ids("a the film was")
    assert said == [
        "1 of 2 rows have more than 4 tokens and are cut at their end: 2 tokens are lost (longest row: 6 tokens)"
    ]
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


def test_another_end_of_a_turn_is_refused(bases):
    fields = met(bases["chat"], table(("a", "b"))).to_provenance()
    fields["generation"]["end"] = "<end_of_turn>"
    with pytest.raises(
        InputError, match=r"end a response with '\[CLS\]', but the delta was trained with '<end_of_turn>'"
    ):
        task_of_delta(Provenance(task="text-generation", training=fields)).bind(bases["chat"])


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


def test_prompts_that_are_cut_before_generation_are_counted(bases):
    """``predict`` and ``eval`` say it as training does, and which responses are too long to be generated."""
    base, said = bases["plain"], []  # 96 positions
    task = met(base, table(("a", "very good")), max_length=96)
    task.encode(base, Table(Path("x.csv"), ["a " * 200, "film"]), 96, said.append)
    assert said == [
        "1 of 2 rows have more than 93 tokens and are cut at the start of the prompt when a response is generated: "
        "107 tokens are lost (longest row: 200 tokens)"
    ]
    said.clear()
    task.encode(base, table(("a " * 94, "so"), ("a", "very good not bad")), 96, said.append)
    assert said == [
        "1 of 2 rows have more than 93 tokens and are cut at the start of the prompt when a response is generated: "
        "1 token is lost (longest row: 94 tokens)",
        "1 of 2 responses have more than 3 tokens, which is the most that is generated: they cannot be matched exactly "
        "(see --max-new-tokens)",
    ]
    said.clear()
    TextGeneration(LINE).bind(base, table(("a", "b")), 40, 500, said.append)
    assert said[0] == "at most 95 tokens are generated, not 500: the model has no more positions"


def test_what_ends_a_response_is_said(bases):
    base, said = bases["chat"], []
    data = table(("a film", "good"))
    TextGeneration(LINE).bind(base, data, 40, None, said.append)
    assert said == [
        "chat template: 'user said PROMPT [CLS] assistant said', then ' RESPONSE [CLS]'",
        "'[CLS]' ends a response; generation also stops at '[SEP]'",
    ]
    said.clear()
    TextGeneration(LINE).bind(bases["plain"], data, 40, None, said.append)
    TextGeneration(PLAIN).bind(bases["plain"], data, 40, None, said.append)
    assert said == ["'[SEP]' ends a response", "'[SEP]' ends a text"]


def test_texts_that_a_template_alters_are_counted(tmp_path):
    base = load_base("text-generation", tiny_task.llama(tmp_path / "x", chat=True))
    base.tokenizer.chat_template = tiny_task.CHAT.replace(
        "turn['content']", "turn['content'].replace('bad', '') | trim"
    )
    data, said = table(("a film", " good"), ("a bad plot", "very bad"), ("a", "so")), []
    met(base, data).encode(base, data, 40, said.append)
    assert said == [
        f"the chat template alters 1 of 3 {name}, such as blanks around them or parts that it leaves out (first: row 2)"
        for name in ("prompts", "responses")
    ]


def test_a_delta_from_before_is_used_as_it_was_trained(bases):
    """It learned the tokenizer's end token after the response, whatever the template writes there."""
    base, data = bases["chat"], table(("the film was", "very good"))
    old = met(base, data).to_provenance()
    assert old["generation"].pop("end") == "[CLS]"
    old["generation"]["form"] = "chat template"
    task = task_of_delta(Provenance(task="text-generation", training=old)).bind(base)
    assert task.form == PROMPT_TURN
    (row,) = task.encode(base, data, 40, str)
    before = [UNKNOWN, UNKNOWN, *ids("the film was"), START, UNKNOWN, UNKNOWN]
    assert row["prompt"] == before
    assert row["input_ids"] == [*before, *ids("very good"), END]
    assert task_of_delta(Provenance(task="text-generation", training=task.to_provenance())).bind(base) == task
    with pytest.raises(InputError, match="another chat template than the delta was trained with"):
        task_of_delta(Provenance(task="text-generation", training=old)).bind(bases["plain"])


def test_a_base_whose_loss_is_not_that_of_the_next_token(tmp_path):
    base = tiny_kinds.base_of("bart", "text-generation", tmp_path / "bart")
    with pytest.raises(InputError, match="the loss of a model of type 'bart' is not that of the next token"):
        met(base, table(("a", "b")))


def answering(template, folder, pairs):
    """Save a Llama that a plain loop has trained on the template until it answers each prompt exactly and stops."""
    tokenizer = chat_tokenizer(template)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=96, bos_token_id=2, eos_token_id=END, pad_token_id=0,
        )
    )  # fmt: skip
    conversations = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": response}] for text, response in pairs
    ]
    batch = tokenizer.apply_chat_template(conversations, padding=True, return_dict=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    for row, turns in enumerate(conversations):
        asked = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
        labels[row, : len(asked)] = IGNORED
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        if loss < 0.01:
            break
    model.eval()
    return tiny_task._save(model, folder, tokenizer)


def generated_by_transformers(folder, texts, ends):
    """The answers of transformers alone, with the template's own end of a turn."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    answers = []
    for text in texts:
        turns = [{"role": "user", "content": text}]
        asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        made = model.generate(**asked, max_new_tokens=20, do_sample=False, eos_token_id=ends)
        answers.append(tokenizer.decode(made[0, asked["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return answers


@pytest.mark.parametrize(
    ("template", "token", "lead"),
    [
        pytest.param(GEMMA, "<end_of_turn>", "", marks=pytest.mark.slow),
        pytest.param(THOUGHTS, "<|im_end|>", "<think> </think> ", marks=pytest.mark.slow),
    ],
)
def test_a_chat_base_answers_as_transformers_does(template, token, lead, tmp_path):
    """A base that answers every row has exact match 1 and perplexity 1, and ends where transformers ends."""
    pairs = [(f"{WORDS[4 + row]} film", "good" if row % 2 else "not so very bad") for row in range(6)]
    base = load_base("text-generation", answering(template, tmp_path / "chat", pairs))
    data = table(*pairs)
    task = met(base, data, new_tokens=20)
    measured = task.evaluate(base.model, base, task.encode(base, data, 96, str), 4, lambda _: None)
    assert measured["exact_match"] == 1.0
    assert measured["perplexity"] == pytest.approx(1.0, abs=0.05)
    asked = task.encode(base, Table(data.path, data.texts), 96, str)
    found = [answer["response"] for answer in task.predict(base.model, base, asked, 4, lambda _: None)]
    ends = [END, base.tokenizer.convert_tokens_to_ids(token)]
    assert found == data.labels
    answers = generated_by_transformers(tmp_path / "chat", data.texts, ends)
    assert answers == [f"{lead}{response}" for response in found]


def test_all_end_tokens_of_the_base_stop_it(bases, tmp_path):
    base = load_base("text-generation", tiny_task.llama(tmp_path / "x"))
    data = table(("the film was", "very good"))
    task = met(base, data, new_tokens=9)
    rows = task.encode(base, data, 40, str)
    (full,) = task.predict(base.model, base, rows, 1, lambda _: None)
    words = full["response"].split()
    assert len(words) > 2
    base.model.generation_config.eos_token_id = [END, ids(words[2])[0]]
    (short,) = task.predict(base.model, base, rows, 1, lambda _: None)
    assert short["response"].split() == words[: words.index(words[2])]


@pytest.mark.parametrize(("kind", "form"), [("plain", LINE), ("start", LINE)])
def test_control_tokens_in_a_prompt_or_a_response_are_text(bases, kind, form):
    base, lines = bases[kind], []
    data = table(("the [SEP] film", "very [SEP] good"), ("a plot", "bad"))
    task = met(base, data)
    assert task.form == form
    rows = task.encode(base, data, 40, lines.append)
    start = [START] if kind == "start" else []
    written = [UNKNOWN] * 3  # "[", "sep" and "]"
    assert rows[0]["prompt"] == [*start, *ids("the"), *written, *ids("film")]
    assert rows[0]["input_ids"] == [*rows[0]["prompt"], *ids("very"), *written, *ids("good"), END]
    assert rows[1]["input_ids"] == [*start, *ids("a plot bad"), END]
    assert lines == ["1 of 2 rows hold a control token of the base, such as '[SEP]' in row 1: it is read as plain text"]
    plain = Table(Path("x.txt"), ["the [SEP] film"])
    (row,) = met(base, plain, Columns(text=("text",))).encode(base, plain, 40, lines.append)
    assert row["input_ids"] == [*start, *ids("the"), *written, *ids("film"), END]


@pytest.mark.parametrize("template", [GEMMA, QWEN])
def test_control_tokens_in_the_turns_of_a_chat_are_text(tmp_path, template):
    base = replace(load_base("text-generation", tiny_task.llama(tmp_path)), tokenizer=chat_tokenizer(template))
    lines: list[str] = []
    data = table(("the <end_of_turn> film <|im_end|>", "good <|im_end|> bad <end_of_turn>"), ("a plot", "bad"))
    task = met(base, data)
    assert task.form == CHAT
    first, second = task.encode(base, data, 60, lines.append)
    end = task.template.end_id
    assert (
        first["input_ids"][len(first["prompt"]) :].count(end)
        == second["input_ids"][len(second["prompt"]) :].count(end)
        == 1
    )
    assert first["prompt"].count(end) == second["prompt"].count(end)
    assert first["response"] == "good <|im_end|> bad <end_of_turn>"
    assert (
        "1 of 2 rows hold a control token of the base, such as '<end_of_turn>' in row 1: it is read as plain text"
        in lines
    )
    (asked,) = task.encode(base, Table(data.path, data.texts[:1]), 60, str)
    assert asked["prompt"] == first["prompt"]
    stored = Provenance(task="text-generation", training=task.to_provenance())
    assert stored.training["generation"]["controls"] == "text"
    again = task_of_delta(stored).bind(base)
    assert again.encode(base, data, 60, str)[0]["input_ids"] == first["input_ids"]
    del stored.training["generation"]["controls"]  # a delta of an earlier version reads them as it learned them
    before = task_of_delta(stored).bind(base)
    (old, _) = before.encode(base, data, 60, lines.append)
    turn = [{"role": "user", "content": data.texts[0]}]
    assert old["prompt"] == base.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    assert "it is read as the control token, as in the training of the delta" in lines[-1]


def test_a_control_token_that_cannot_be_text_is_told(bases):
    base, lines = bases["plain"], []
    copied = replace(base, tokenizer=copy.deepcopy(base.tokenizer))
    copied.tokenizer.add_special_tokens({"pad_token": "plot"})
    data = table(("the film", "bad"), ("a plot", "good"))
    met(copied, data).encode(copied, data, 40, lines.append)
    assert lines[-1] == (
        "in 1 of these rows it is read as the control token (first: row 2), since the base's tokenizer makes it of "
        "plain text too: remove it from the text if it is not meant"
    )


def test_whole_conversations_on_the_command_line(tmp_path, capsys):
    talk = [
        {"role": "system", "content": "a short film"},
        {"role": "user", "content": "the plot"},
        {"role": "assistant", "content": "good"},
        {"role": "user", "content": "the actor"},
        {"role": "assistant", "content": "very bad"},
    ]
    data = tmp_path / "talk.jsonl"
    data.write_text("".join(json.dumps({"talk": talk}) + "\n" for _ in range(8)))
    base, out = tiny_task.llama(tmp_path / "chat", chat=True), tmp_path / "t.safetensors"
    fixed = ["--train", data, "--messages", "talk", "--budget", "2%", "--epochs", 1, "--threads", 1, "--out", out]
    run = ["tune", "--model", base, *fixed, "--eval", data, "--json"]
    assert main(list(map(str, run))) == 0
    told = capsys.readouterr()
    measures = json.loads(told.out)["quality"]
    assert "16 turns of assistants in 'talk'" in told.err
    assert main(["eval", str(out), "--data", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(measures)
    model = load_base("text-generation", base)
    bound = TextGeneration.from_provenance(load(out).provenance).bind(model)
    (row,) = bound.encode(model, TextGeneration.read(data, Columns(messages="talk"), answers=True, log=str), 64, str)[
        :1
    ]
    learned = [model.tokenizer.decode([token for token in row["labels"] if token != -100])]
    assert learned == ["good [CLS] very bad [CLS]"]
    plain = tiny_task.llama(tmp_path / "plain")
    assert main(list(map(str, ["tune", "--model", plain, *fixed, "--force"]))) == 2
    assert "has no chat template, which --messages needs" in capsys.readouterr().err


def test_a_soft_prompt_on_the_command_line(tmp_path, capsys):
    data = tiny_task.table(tmp_path / "train.csv", tiny_task.dialogs(16), ("prompt", "response"))
    base, out = tiny_task.llama(tmp_path / "base", start=True), tmp_path / "t.safetensors"
    flags = ["--form", "prompt", "--prompt-tokens", 3, "--prompt-repeat", "--prompt-segments"]
    run = [
        "tune",
        "--model",
        base,
        "--train",
        data,
        "--eval",
        data,
        *flags,
        "--epochs",
        1,
        "--threads",
        1,
        "--out",
        out,
    ]
    assert main(list(map(str, [*run, "--json"]))) == 0
    told = capsys.readouterr()
    measures = json.loads(told.out)["quality"]
    assert f"{3 * 16 + 3 * 16} numbers of soft tokens and segments" in told.err
    assert main(["eval", str(out), "--data", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(measures)
    assert main(["export", str(out), "--to", "merged", "--out", str(tmp_path / "m")]) == 2
    assert "the delta has a soft prompt" in capsys.readouterr().err
