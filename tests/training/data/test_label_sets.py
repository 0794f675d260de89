"""Sets of labels: from columns of 0 and 1, and from a column that lists them."""

from __future__ import annotations

import json

import pytest
import tiny_task

from taskedge.errors import InputError
from taskedge.training.data.label_sets import read_label_sets, split_names
from taskedge.training.data.table import check_labels

HEADER = ("text", "toxic", "rude")


def test_columns_of_zero_and_one(tmp_path):
    rows = [("a", 1, 0), ("b", "true", "FALSE"), ("c", 0, "0"), ("d", 1, 1)]
    path = tiny_task.table(tmp_path / "rows.csv", rows, HEADER)
    table = read_label_sets(path, ["text"], labels=["toxic", "rude"])
    assert table.texts == ["a", "b", "c", "d"]
    assert table.answers_by_row == [["toxic"], ["toxic"], [], ["toxic", "rude"]]
    assert table.answers == ["toxic", "toxic", "toxic", "rude"]
    assert table.understood.endswith("1 row of 4 without a label, 1 with several")
    assert read_label_sets(path, ["text"]).labels is None


@pytest.mark.parametrize("cell", ["2", "", "yes", "0.5"])
def test_a_cell_that_is_neither_is_refused_with_its_row_and_column(tmp_path, cell):
    path = tiny_task.table(tmp_path / "rows.csv", [("a", 1, 0), ("b", 1, cell)], HEADER)
    with pytest.raises(InputError, match=r"row 2: column 'rude' holds .*; a column of one label has 0 or 1"):
        read_label_sets(path, ["text"], labels=["toxic", "rude"])


def test_a_column_that_lists_labels(tmp_path):
    path = tiny_task.table(tmp_path / "rows.csv", [("a", "x; y;x"), ("b", ""), ("c", " z  w ")], ("text", "tags"))
    table = read_label_sets(path, ["text"], label="tags", separator=";")
    assert table.answers_by_row == [["x", "y"], [], ["z w"]]
    assert "1 row of 3 without a label, 1 with several; in 1 row a label is repeated" in table.understood
    check_labels(table, ["x", "y", "z w"])
    with pytest.raises(InputError, match="row 3: the label 'z w' does not occur in training"):
        check_labels(table, ["x", "y"])


def test_lists_of_a_json_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "a", "tags": ["x", 7]}, {"text": "b", "tags": []}, {"text": "c", "tags": None}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_label_sets(path, ["text"], label="tags").answers_by_row == [["7", "x"], [], []]
    path.write_text(json.dumps({"text": "a", "tags": [["x"]]}) + "\n" + json.dumps({"text": "a", "tags": ["x"]}) + "\n")
    with pytest.raises(InputError, match=r"row 1: column 'tags' holds \['x'\] in its list"):
        read_label_sets(path, ["text"], label="tags")


def test_a_comma_parts_columns_unless_one_has_that_name(tmp_path):
    path = tiny_task.table(tmp_path / "rows.csv", [("a", 1, 0)], ("text", "toxic, rude", "rude"))
    assert split_names(path, "toxic, rude") == ("toxic, rude",)
    assert split_names(path, "text,rude") == ("text", "rude")
    assert split_names(path, "rude") == ("rude",)


def test_columns_that_cannot_be_labels(tmp_path):
    path = tiny_task.table(tmp_path / "rows.csv", [("a", 1, 0)], HEADER)
    with pytest.raises(InputError, match="'rude' is given twice"):
        read_label_sets(path, ["text"], labels=["rude", "rude"])
    with pytest.raises(InputError, match="named as a label and as a text"):
        read_label_sets(path, ["text"], labels=["rude", "text"])
    with pytest.raises(InputError, match="no column 'rued'; did you mean 'rude'"):
        read_label_sets(path, ["text"], labels=["toxic", "rued"])
