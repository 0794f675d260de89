"""Texts and labels of a table: joined, checked, and sorted; a fault names its row and what to do."""

from pathlib import Path

import pytest

from taskedge.errors import InputError
from taskedge.training.data.table import Table, as_number, check_labels, label_indices, label_set, read_table


@pytest.fixture
def written(tmp_path):
    def write(content, name="rows.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_several_text_columns_are_joined(written):
    path = written("title,body,label\na,b,1\n,c,2\n")
    assert read_table(path, ["title", "body"], "label").texts == ["a\nb", "c"]


def test_values_stay_what_the_file_says(written):
    path = written("text,label\n007,NA\nnull,1.0\n2020-01-01,True\n")
    assert read_table(path, "text", "label") == Table(path, ["007", "null", "2020-01-01"], ["NA", "1.0", "True"])
    path = written(
        '{"text": "2020-01-01", "label": 1}\n{"text": 5, "label": 1.0}\n{"text": 1.5, "label": true}', "x.jsonl"
    )
    assert read_table(path, "text", "label") == Table(path, ["2020-01-01", "5", "1.5"], ["1", "1", "true"])


def test_columns_must_be_named_and_differ(written):
    path = written("text,label\na,b\n")
    with pytest.raises(InputError, match="no text column"):
        read_table(path, [])
    with pytest.raises(InputError, match="answer"):
        read_table(path, ["text", "label"], "label")


def test_labels_are_sorted_the_same_way_everywhere():
    def labels(*values):
        return label_set(Table(Path("x.csv"), list(values), list(values)))

    assert labels("10", "9", "-1", "9") == ["-1", "9", "10"]
    assert labels("1", "01", "0") == ["0", "01", "1"]
    assert labels("10", "9", "b") == ["10", "9", "b"]
    assert labels("é", "b", "B") == ["B", "b", "é"]
    with pytest.raises(InputError, match="every row has the label 'a'"):
        labels("a", "a")
    with pytest.raises(InputError, match="without labels"):
        label_set(Table(Path("x.csv"), ["a"]))


def test_a_label_that_training_lacks():
    table = Table(Path("eval.csv"), ["a", "b", "c"], ["good", "god", "worse"])
    check_labels(table, ["good", "god", "worse", "more"])
    with pytest.raises(InputError, match=r"eval\.csv, row 2: the label 'god' .*did you mean 'good'.*2 of 3 rows"):
        check_labels(table, ["bad", "good"])


def test_labels_in_another_unicode_form():
    """They look the same, so they are the same class."""
    composed, decomposed = "th\u00e9", "the\u0301"
    check_labels(Table(Path("eval.csv"), ["a"], [decomposed]), [composed, "cafe"])
    check_labels(Table(Path("eval.csv"), ["a"], [composed]), [decomposed, "cafe"])
    assert label_indices([decomposed, composed, "cafe"], ["cafe", composed]) == [1, 1, 0]
    assert label_indices([decomposed, composed], [composed, decomposed]) == [1, 0]
    assert label_indices(["a", "b"], ["a", "a ", "b "]) == [0, 2]  # classes of a delta that was trained with blanks


@pytest.mark.parametrize(
    ("label", "number"),
    [("1", 1.0), (" -1.5e3 ", -1500.0), (".5", 0.5), ("", None), ("1,5", None), ("nan", None), ("1e999", None)],
)
def test_a_label_as_a_number(label, number):
    assert as_number(label) == number


def test_placeholders_of_a_config_are_no_classes():
    with pytest.raises(InputError, match=r"these are placeholders: name the classes in id2label of the model's config"):
        check_labels(Table(Path("eval.csv"), ["a"], ["neg"]), ["LABEL_0", "LABEL_1"])
