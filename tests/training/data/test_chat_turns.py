"""Whole conversations against texts written by hand, for three chat templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_templates import GEMMA, INSTRUCTION, OTHER_REQUEST, QWEN, byte_tokenizer

from taskedge.errors import InputError
from taskedge.training.data.chat_template import read_chat_template
from taskedge.training.data.chat_turns import (
    encode_turns,
    learned_runs,
    one_turn,
    read_conversations,
    request_ids,
    write_turns,
)

TALK = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three <|im_end|>"},
    {"role": "assistant", "content": " four "},
]
SYSTEM = {"role": "system", "content": "be brief"}
GEMMA_TEXT = (
    "[CLS]<start_of_turn>user\none<end_of_turn>\n<start_of_turn>model\n", "two<end_of_turn>",
    "\n<start_of_turn>user\nthree <|im_end|><end_of_turn>\n<start_of_turn>model\n", "four<end_of_turn>",
)  # fmt: skip
QWEN_TEXT = (
    "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n",
    "two<|im_end|>",
    "\n<|im_start|>user\nthree <|im_end|><|im_end|>\n<|im_start|>assistant\n",
    " four <|im_end|>",
)
INSTRUCTION_TEXT = ("[CLS][INST] one [/INST]", " two [SEP]", "[INST] three <|im_end|> [/INST]", "  four  [SEP]")


def written(path, rows, **columns):
    path.write_text("".join(json.dumps({"messages": row, **columns}) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("template", "talk", "parts"),
    [(GEMMA, TALK, GEMMA_TEXT), (QWEN, [SYSTEM, *TALK], QWEN_TEXT), (INSTRUCTION, TALK, INSTRUCTION_TEXT)],
)
def test_only_the_turns_of_the_assistant_are_learned(tmp_path, template, talk, parts):
    tokenizer = byte_tokenizer(template)
    read = read_chat_template(tokenizer, ())
    table = read_conversations(written(tmp_path / "c.jsonl", [talk]), "messages", answers=True)
    assert table.labels == [" four "]
    made = write_turns(read, table.texts[0], table.path, 1)
    assert tokenizer.decode(made.ids) == "".join(parts)
    assert [tokenizer.decode(run) for run in learned_runs(made.labels)] == [parts[1], parts[3]]
    assert tokenizer.decode(made.ids[: made.last]) == "".join(parts[:3])
    assert (made.whole, made.failed) == (True, False)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert made.ids.count(end) == (5 if template == QWEN else 0)  # what a user writes is text
    asked = read_conversations(written(tmp_path / "q.jsonl", [talk]), "messages", answers=False)
    assert tokenizer.decode(request_ids(read, asked.texts[0], table.path, 1)[0]) == "".join(parts[:3])


def test_rows_are_cut_at_their_start_and_counted(tmp_path):
    tokenizer = byte_tokenizer(QWEN)
    table = read_conversations(written(tmp_path / "c.jsonl", [[SYSTEM, *TALK]]), "messages", answers=True)
    lines = []
    (row,) = encode_turns(read_chat_template(tokenizer, ()), table, 20, 12, lines.append)
    assert len(row["input_ids"]) == len(row["labels"]) == 20
    assert [tokenizer.decode(run) for run in learned_runs(row["labels"])] == [" four <|im_end|>"]
    assert len(row["prompt"]) == 12
    assert row["response"] == "four"
    assert lines[1] == "1 answer of assistants lie wholly before the cut and are not learned"
    assert "at the start of the conversation" in lines[0]


def test_other_names_tools_and_turns_that_are_not_read(tmp_path):
    share = [{"from": "human", "value": "one"}, {"from": "gpt", "value": "two"}, {"from": "human", "value": "three"}]
    tools = [{"type": "function", "function": {"name": "add"}}]
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"talk": json.dumps(share), "tools": tools}) + "\n")
    table = read_conversations(path, "talk", answers=True)
    assert json.loads(table.texts[0])["messages"][-1] == {"role": "assistant", "content": "two"}
    assert table.understood.endswith(
        "1 turn of assistants in 'talk', 1 row with tools; not read: 1 turn after the last of an assistant"
    )
    template = "{% if tools %}{{ tools[0]['function']['name'] }};{% endif %}" + GEMMA
    tokenizer = byte_tokenizer(template)
    made = write_turns(read_chat_template(tokenizer, ()), table.texts[0], path, 1)
    assert tokenizer.decode(made.ids).startswith("add;[CLS]")
    called = [
        TALK[0],
        {"role": "assistant", "content": None, "tool_calls": [1]},
        {"role": "tool", "content": "3"},
        TALK[1],
    ]
    kept = read_conversations(written(tmp_path / "t.jsonl", [called]), "messages", answers=True)
    assert [turn["role"] for turn in json.loads(kept.texts[0])["messages"]] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert json.loads(kept.texts[0])["messages"][1]["tool_calls"] == [1]


def test_a_template_that_rewrites_turns_or_refuses_them_is_named_with_the_row(tmp_path):
    path = tmp_path / "c.jsonl"
    table = read_conversations(written(path, [[SYSTEM, *TALK]]), "messages", answers=True)
    with pytest.raises(InputError, match=r"row 3: the base's chat template refuses the turns system, .*no system turn"):
        write_turns(read_chat_template(byte_tokenizer(GEMMA), ()), table.texts[0], path, 3)
    last_only = QWEN.replace("turn['content'] +", "(turn['content'] if loop.last or turn['role'] == 'user' else '') +")
    assert last_only != QWEN
    with pytest.raises(
        InputError, match="row 2: the base's chat template writes turn 3 in another way when later turns"
    ):
        write_turns(read_chat_template(byte_tokenizer(last_only), ()), table.texts[0], path, 2)
    thoughts = [TALK[0], {"role": "assistant", "content": "x</think>two"}]
    table = read_conversations(written(path, [thoughts]), "messages", answers=True)
    made = write_turns(read_chat_template(byte_tokenizer(OTHER_REQUEST), ()), table.texts[0], path, 1)
    assert len(learned_runs(made.labels)) == 1


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("no json", "is no list of turns like"),
        ([], "is no list of turns like"),
        ([{"role": "pope", "content": "x"}], "turn 1 in 'messages' is of 'pope'; known roles are assistant, developer"),
        ([{"role": "user", "content": [{"type": "image"}]}], "turn 1 in 'messages' has no text"),
        ([{"role": "user", "content": "x"}], "has no answer of an assistant"),
        ([{"role": "assistant", "content": "x"}], "has no turn before the assistant's"),
    ],
)
def test_rows_that_are_no_conversation(tmp_path, row, told):
    with pytest.raises(InputError, match=f"row 2: .*{told}"):
        read_conversations(written(tmp_path / "c.jsonl", [TALK, row]), "messages", answers=True)


def test_a_lone_turn():
    assert json.loads(one_turn("x"))["messages"] == [{"role": "user", "content": "x"}]
    assert request_ids(read_chat_template(byte_tokenizer(GEMMA), ()), one_turn("x"), Path("p"), 1)[0]


def test_parquet_and_csv_hold_conversations_too(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"talk": [TALK, TALK[:2]]}), tmp_path / "c.parquet")
    (tmp_path / "c.csv").write_text('talk\n"' + json.dumps(TALK).replace('"', '""') + '"\n')
    for name, labels in (("c.parquet", [" four ", "two"]), ("c.csv", [" four "])):
        table = read_conversations(tmp_path / name, "talk", answers=True)
        assert table.labels == labels
        assert json.loads(table.texts[0])["messages"] == TALK
