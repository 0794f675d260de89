"""Messages read well on the command line and in Python: they name ideas, not keyword arguments."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from architecture import SOURCE

KEYWORD = re.compile(r"\b[a-z_]+=['\"{\[\dA-Z]")
"""The start of a keyword argument with its value, as in ``depth=99`` or ``form='sparse'``."""

PYTHON = {
    "delta/interop/patch.py": "safetensors.safe_open",  # lines of Python to run
    "serving/web_page.py": "<!doctype html>",
    "backbone/load_report.py": "python -c",  # a command that converts pickled weights
}
"""Files with messages that are code on purpose, and the start of these."""


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) for each string with several words that is no docstring; ``{}`` stands for a value."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    skipped |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if " " in text:
            yield node.lineno, text


MARKUP = re.compile(r"<[a-z/!][^>]*(>|$)")
"""Tags of HTML and SVG, whose attributes are not arguments."""


@pytest.mark.slow
def test_messages_have_no_keyword_arguments():
    wrong = [
        f"{path}:{line}: {text}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line, text in messages(path)
        if KEYWORD.search(MARKUP.sub("", text))
        and not text.startswith(PYTHON.get(path.relative_to(SOURCE).as_posix(), "\0"))
    ]
    assert not wrong
