"""Rows of tokens with tags, from lists and from CoNLL files."""

from __future__ import annotations

import json

import pytest

from taskedge.errors import InputError
from taskedge.training.data.label_checks import data_summary
from taskedge.training.data.table import check_labels, label_set
from taskedge.training.data.tagged_tokens import read_tagged, split_row


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_lists_and_blanks_become_rows(tmp_path):
    path = write(
        tmp_path / "x.jsonl",
        {"tokens": ["Ada", "wrote"], "tags": ["B-PER", "O"]},
        {"tokens": "in Rome", "tags": "O B-LOC"},
    )
    table = read_tagged(path, "tokens", "tags")
    assert [split_row(text) for text in table.texts] == [["Ada", "wrote"], ["in", "Rome"]]
    assert table.answers == ["B-PER", "O", "O", "B-LOC"]
    assert label_set(table) == ["B-LOC", "B-PER", "O"]
    assert data_summary(table, None, 3) == ["2 rows, 3 classes: 'O' 2, 'B-PER' 1, 'B-LOC' 1"]
    assert read_tagged(path, "tokens").labels is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens in 'tokens' and 1 tags in 'tags'"),
        ({"tokens": [], "tags": []}, "holds no list of texts"),
        ({"tokens": ["a", None], "tags": ["O", "O"]}, "holds None in its list"),
        ({"tokens": 3, "tags": ["O"]}, "holds no list of texts"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, row, message):
    path = write(tmp_path / "x.jsonl", {"tokens": ["a"], "tags": ["O"]}, row)
    with pytest.raises(InputError, match=f"row 2.*{message}"):
        read_tagged(path, "tokens", "tags")


def test_an_unknown_tag_is_named_with_its_row(tmp_path):
    path = write(tmp_path / "x.jsonl", {"tokens": ["a"], "tags": ["O"]}, {"tokens": ["a", "b"], "tags": ["O", "B-X"]})
    with pytest.raises(InputError, match="row 2: the label 'B-X' does not occur in training"):
        check_labels(read_tagged(path, "tokens", "tags"), ["O", "B-PER"])
