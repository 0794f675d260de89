"""The separator of a CSV file is the one that its header and rows agree on."""

from __future__ import annotations

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskedge.errors import InputError
from taskedge.training.data.csv_files import read_csv, read_tsv


@pytest.mark.parametrize(
    ("content", "names", "first", "separator"),
    [
        ("text;label\nhello, world;1\n", ["text", "label"], "hello, world", "';'"),
        ("text|label\na,b;c|1\n", ["text", "label"], "a,b;c", "'|'"),
        ("text\tlabel\na;b\t1\n", ["text", "label"], "a;b", "tabs"),
        ("text,label\na;b,1\nc;d,2\n", ["text", "label"], "a;b", "','"),
        ("text,a;label\nx,1\n", ["text", "a;label"], "x", "','"),
        ("text;a,label\nx;1\n", ["text", "a,label"], "x", "';'"),
        ('text;label\n"a;b\nc";1\n', ["text", "label"], "a;b\nc", "';'"),
        ("sep=;\ntext;label\na;1\n", ["text", "label"], "a", "';'"),
        ("sep=^\ntext^label\na^1\n", ["text", "label"], "a", "'^'"),
    ],
)
def test_the_separator(tmp_path, content, names, first, separator):
    path = tmp_path / "x.csv"
    path.write_text(content)
    found = read_csv(path)
    assert (found.names, found.column(0)[0]) == (names, first)
    assert found.format == f"CSV in UTF-8, separated by {separator}"


def test_one_column_has_no_separator(tmp_path):
    (tmp_path / "x.csv").write_text("text;label\nno separator\nhere\n")
    found = read_csv(tmp_path / "x.csv")
    assert (found.names, found.format) == (["text;label"], "CSV in UTF-8")
    (tmp_path / "x.tsv").write_text("text,label\na,1\n")
    assert read_tsv(tmp_path / "x.tsv").format == "CSV in UTF-8, separated by ','"


def test_a_row_with_a_fault_is_named_by_the_separator_of_the_others(tmp_path):
    (tmp_path / "x.csv").write_text("text;label\na;1\nb;c;2\nd;3\n")
    with pytest.raises(InputError, match=r"x\.csv, row 2: 3 fields where the header has 2.*holds ';'"):
        read_csv(tmp_path / "x.csv").column(0)


cell = st.text('ab ,;|\t"\n', max_size=5)


@given(st.lists(st.tuples(cell, cell, cell), max_size=5), st.sampled_from(",;|\t"))
def test_what_csv_writes_is_read(tmp_path_factory, rows, separator):
    """A header of plain names is enough, whatever the cells hold."""
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL).writerows([("one", "two", "three"), *rows])
    found = read_csv(path)
    assert found.names == ["one", "two", "three"]
    assert [found.column(index) for index in range(3)] == [[row[index] for row in rows] for index in range(3)]
