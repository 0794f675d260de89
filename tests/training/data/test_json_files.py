"""JSON is read in the shapes that programs write; faults are named with their row."""

from __future__ import annotations

import json

import pytest

from taskedge.errors import InputError
from taskedge.training.data.json_files import read_json, read_jsonl

ROWS = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (json.dumps(ROWS), "JSON array"),
        (json.dumps(ROWS, indent=2), "JSON array"),
        ("\n".join(map(json.dumps, ROWS)), "JSON objects"),
        ("\n".join(json.dumps(row, indent=1) for row in ROWS), "JSON objects"),
        (json.dumps({"version": 1, "data": ROWS}), "JSON array 'data'"),
        (json.dumps({"text": ["a", "b"], "label": ["x", "y"]}), "JSON columns"),
        (json.dumps({"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}}), "JSON columns"),
    ],
)
def test_the_shapes_of_json(tmp_path, content, what):
    path = tmp_path / "x.json"
    path.write_text(content)
    found = read_json(path)
    assert (found.names, found.format) == (["text", "label"], f"{what} in UTF-8")
    assert [found.column(index) for index in range(2)] == [["a", "b"], ["x", "y"]]
    if "\n" not in content and what != "JSON array":
        (tmp_path / "x.jsonl").write_text(content)
        assert read_jsonl(tmp_path / "x.jsonl").format == found.format


def test_one_object_is_a_row(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "q"}]}))
    assert read_json(path).names == ["messages"]
    path.write_text(json.dumps(ROWS[0] | {"entities": [{"start": 1}]}))
    for read in (read_json, read_jsonl):
        assert read(path).names == ["text", "label", "entities"]


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]])
def test_an_array_with_the_suffix_of_lines(tmp_path, rows):
    for indent in (None, 1):
        (tmp_path / "x.jsonl").write_text(json.dumps(rows, indent=indent))
        assert read_jsonl(tmp_path / "x.jsonl").format == "JSON array in UTF-8"
        assert read_jsonl(tmp_path / "x.jsonl").column(0) == ["a", "b"][: len(rows)]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('[{"text": "a"}, {"text": }]', "row 2: not valid JSON"),
        ('[{"text": "a"} {"text": "b"}]', "row 1: not valid JSON: a comma is missing after the row"),
        ('[{"text": "a"}, {"text": "b"}', "row 3: the JSON array has no end"),
        ('[{"text": "a"}] more', "there is text after the JSON array"),
        ('[{"text": "a"}, 3]', "row 2: not an object"),
        ('[{"text": "a", "text": "b"}]', r"row 1: .*occurs twice"),
        ('"text"', "row 1: not an object"),
        ("[" * 100_000, "row 1: not valid JSON"),
        ("null", "row 1: not an object"),
        (" ", "has no rows"),
    ],
)
def test_what_is_no_table(tmp_path, content, told):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=rf"x\.json.*{told}"):
        read_json(tmp_path / "x.json").column(0)


def test_a_byte_of_another_encoding_is_named_by_its_line(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes('[\n {"text": "a"},\n {"text": "é"}\n]'.encode("latin-1"))
    with pytest.raises(InputError, match=r"x\.json, line 3: byte 0xe9 is not UTF-8; save the file as UTF-8"):
        read_json(path)


@pytest.mark.parametrize("turn", [{"role": "user", "content": "x"}, {"from": "human", "value": "x"}])
def test_one_dialogue_is_a_row_whatever_its_column_is_called(tmp_path, turn):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"id": 1, "talk": [turn]}))
    assert read_jsonl(path).names == ["id", "talk"]
