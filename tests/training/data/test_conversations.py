"""Chat and instruction rows become prompts and responses; what is left out is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from taskedge.errors import InputError
from taskedge.training.data.conversations import convert, converted_names

PATH = Path("chat.jsonl")


def turns(*texts, roles=("user", "assistant"), keys=("role", "content")):
    return [dict(zip(keys, (roles[place % 2], text), strict=True)) for place, text in enumerate(texts)]


def prompts(column, values, wanted=("prompt", "response")):
    return convert(PATH, [column], {column: values}.__getitem__, wanted)


@pytest.mark.parametrize(
    ("names", "made"),
    [
        (["messages"], ["prompt", "response"]),
        (["id", "conversations"], ["prompt", "response"]),
        (["instruction", "input", "output"], ["prompt", "response"]),
        (["instruction"], ["prompt"]),
        (["instruction", "context", "response"], ["prompt"]),
        (["prompt", "messages"], ["response"]),
        (["prompt", "response", "messages"], []),
        (["text", "output", "input"], []),
    ],
)
def test_what_a_file_has_by_conversion(names, made):
    assert converted_names(names) == made


@pytest.mark.parametrize(
    "value",
    [
        turns("q", "a"),
        turns("q", "a", roles=("human", "gpt"), keys=("from", "value")),
        json.dumps(turns("q", "a")),
        [{"role": "user", "content": [{"type": "text", "text": "q"}]}, {"role": "assistant", "content": "a"}],
    ],
)
def test_one_exchange(value):
    assert prompts("messages", [value]) == (
        [["q"], ["a"]],
        "the prompt is the first turn of the user, the response that of the assistant in 'messages'",
    )


def test_what_is_left_out_is_counted():
    system = [{"role": "system", "content": "Be short."}, *turns("q", "a")]
    longer = [{"from": "gpt", "value": "hello"}, *turns("q", "a", "q2", "a2")]
    columns, sentence = prompts("conversations", [system, longer, turns("x", "y")])
    assert columns == [["Be short.\n\nq", "q", "x"], ["a", "a", "y"]]
    assert sentence.endswith(
        "; in 1 row a system turn begins the prompt; not read: 3 more turns in 1 row (--messages conversations learns "
        "every turn of the assistant)"
    )


def test_a_prompt_needs_no_answer():
    assert prompts("messages", [turns("q")], ["prompt"])[0] == [["q"]]
    with pytest.raises(InputError, match="row 1: 'messages' has no answer of an assistant"):
        prompts("messages", [turns("q")])


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("no json", "is no list of turns like"),
        (None, "is no list of turns like"),
        ([3], "is no list of turns like"),
        ([], "has no turn of a user"),
        ([{"role": "tool", "content": "x"}], "has a turn of 'tool'; user, assistant and system can be read"),
        ([{"role": ["user"], "content": "x"}], r"has a turn of \['user'\]"),
        ([{"role": "user", "content": [{"type": "image"}]}], "has a turn of 'user' without a text"),
    ],
)
def test_rows_that_are_no_conversation(value, told):
    with pytest.raises(InputError, match=rf"chat\.jsonl, row 2: 'messages' {told}"):
        prompts("messages", [turns("q", "a"), value])


def test_instructions():
    rows = {"instruction": ["Add.", "Name."], "input": ["1 and 2", ""], "output": ["3", "Ann"]}
    columns, sentence = convert(PATH, list(rows), rows.__getitem__, ["prompt", "response"])
    assert columns == [["Add.\n1 and 2", "Name."], ["3", "Ann"]]
    assert sentence == "the prompt is 'instruction', a line break and 'input', the response is 'output'"
    assert convert(PATH, list(rows), rows.__getitem__, ["response"]) == ([["3", "Ann"]], "the response is 'output'")
