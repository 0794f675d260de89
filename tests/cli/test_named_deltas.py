"""Names of deltas on the command line."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from taskedge.cli.named_deltas import NamedDelta


@pytest.mark.parametrize(
    ("given", "name", "path"),
    [
        ("spam=a/b.safetensors", "spam", "a/b.safetensors"),
        ("a/b.safetensors", "b", "a/b.safetensors"),
        ("a=b/c=d.safetensors", "a", "b/c=d.safetensors"),
        ("a/x=y/c.safetensors", "c", "a/x=y/c.safetensors"),
    ],
)
def test_names(given, name, path):
    assert NamedDelta().convert(given, None, None) == (name, Path(path))


def test_a_file_with_an_equals_sign_in_its_name(here):
    (here / "a=b").write_text("")
    with pytest.raises(click.BadParameter, match="task 'a=b': a name has"):
        NamedDelta().convert("a=b", None, None)
    assert NamedDelta().convert("x=a=b", None, None) == ("x", Path("a=b"))
