"""CoNLL files become rows of tokens and tags."""

from __future__ import annotations

import pytest

from taskedge.errors import InputError
from taskedge.training.data.conll_files import read_conll
from taskedge.training.data.table_readers import column_names

TEXT = "-DOCSTART- -X- O O\n\nAda NNP B-PER\nwrote VB O\n\n\nParis NNP B-LOC\n"


def test_first_and_last_fields_are_tokens_and_tags(tmp_path):
    path = tmp_path / "x.conll"
    path.write_text(TEXT)
    content = read_conll(path)
    assert content.names == column_names(path) == ["tokens", "tags"]
    assert content.column(0) == [["Ada", "wrote"], ["Paris"]]
    assert content.column(1) == [["B-PER", "O"], ["B-LOC"]]
    path.write_text("New York\tB-LOC\n")
    assert read_conll(path).column(0) == [["New York"]]  # tabs separate, so a token may hold a blank


def test_a_line_without_a_tag_is_named(tmp_path):
    path = tmp_path / "x.iob2"
    path.write_text("Ada B-PER\nwrote\n")
    with pytest.raises(InputError, match="line 2: 'wrote' is no token with a tag"):
        read_conll(path)
