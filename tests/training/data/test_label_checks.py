"""A run says what it understood of its data, and doubts labels that are probably mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskedge.training.data.label_checks import data_summary, label_warnings, understood_lines
from taskedge.training.data.table import Table, read_table


def table(*labels, name="train.csv"):
    return Table(Path(name), [f"text {index}" for index in range(len(labels))], list(labels))


def doubts(*labels, may_be_numbers=True):
    return label_warnings(table(*labels), may_be_numbers=may_be_numbers)


def test_classes_with_their_rows():
    assert data_summary(table("b", "a", "b"), None, 2) == ["3 rows, 2 classes: 'b' 2, 'a' 1"]
    many = [str(label) for label in range(9) for _ in range(10 - label)]
    assert data_summary(table(*many), None, 9) == ["54 rows, 9 classes: '0' 10, '1' 9, '2' 8, ..., '6' 4, '7' 3, '8' 2"]
    assert data_summary(Table(Path("x"), ["a", "b"]), None, 0) == ["2 rows"]


def test_held_out_rows_that_are_in_the_training_data():
    held_out = Table(Path("eval.csv"), ["text 1", "new", "text 1"], ["a", "b", "a"])
    lines = data_summary(table("a", "b"), held_out, 2)
    assert lines[1:] == ["3 held-out rows, 2 of which are in the training data too"]


def test_images_are_the_same_if_their_files_are(tmp_path):
    train, other = Table(tmp_path / "a.csv", ["x.png"]), Table(tmp_path / "b" / "c.csv", ["x.png"])
    assert data_summary(train, other, 0, images=True)[-1].startswith("1 held-out rows, 0 of which")
    same = Table(tmp_path / "d.csv", ["x.png"])
    assert data_summary(train, same, 0, images=True)[-1].startswith("1 held-out rows, 1 of which")


def test_removed_blanks_are_counted(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("text,label\na,negative\nb,negative \nc, positive\nd,positive\n")
    train = read_table(path, "text", "label")
    assert train.labels == ["negative", "negative", "positive", "positive"]
    assert data_summary(train, None, 2) == [
        "4 rows, 2 classes: 'negative' 2, 'positive' 2",
        f"{path}: blanks around the label are removed in 2 of 4 rows",
    ]
    assert label_warnings(train, may_be_numbers=True) == []
    assert read_table(path, "text", "label", strip_labels=False).labels[1:3] == ["negative ", " positive"]


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        (["Positive", "positive", "negative"], "'Positive' and 'positive'"),
        (["True", "true", "false"], "'True' and 'true'"),
        (["very  good", "very good", "bad"], "'very  good' and 'very good'"),
        (["caf\u00e9", "cafe\u0301", "bar"], r"'cafe\u0301' and 'caf\xe9'"),
    ],
)
def test_near_doubles(labels, shown):
    assert doubts(*labels * 2) == [
        f"train.csv: {shown} are classes of their own, but differ in case, blanks or Unicode form only"
    ]


def test_numbers_with_a_decimal_comma():
    """The labels of a regression become classes: 60 rows of 30 numbers."""
    labels = [f"{index % 30},5" for index in range(60)]
    (doubt,) = doubts(*labels)
    assert doubt.startswith("train.csv: 60 of 60 labels look like numbers with a decimal comma, '0,5' in row 1 first")
    assert doubts(*labels, may_be_numbers=False) == []


@pytest.mark.parametrize("stray", ["nan", "inf", "n/a"])
def test_a_stray_cell_among_numbers(stray):
    numbers = [f"{index % 20}.5" for index in range(63)]
    first, lone = doubts(*numbers[:40], stray, *numbers[40:])
    assert first == (
        f"train.csv: 63 of 64 labels are numbers, but {stray!r} in row 41 is none, so all are taken as classes: "
        "correct it, or give --task text-classification"
    )
    assert lone == f"train.csv: 1 class has one row only: {stray!r}"


def test_classes_of_one_row():
    assert doubts("a", "b", "b", "c") == ["train.csv: 2 classes have one row only: 'a', 'c'"]
    assert doubts(*"abcdefg", *"hh")[0].endswith("7 classes have one row only: 'a', 'b', 'c', 'd', 'e', ...")


@pytest.mark.parametrize("labels", [["1", "2", "3"], ["1.5", "2.5"], ["neg", "pos"], ["3", "many", "few", "4"]])
def test_no_doubts(labels):
    assert doubts(*labels * 3) == []


def test_a_file_is_described_by_format_rows_and_classes(tmp_path):
    (tmp_path / "x.csv").write_text("text;label\na;b\nc;b \n")
    read = read_table(tmp_path / "x.csv", "text", "label")
    assert understood_lines(read, 1) == [
        f"{tmp_path / 'x.csv'}: CSV in UTF-8, separated by ';'; 2 rows; columns 'text', 'label'",
        "2 rows, 1 classes: 'b' 2",
        f"{tmp_path / 'x.csv'}: blanks around the label are removed in 1 of 2 rows",
    ]
    assert understood_lines(table("a", "b")) == ["2 rows"]
