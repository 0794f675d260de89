"""A small lint for habits of phrasing that make prose hard to read (`make lint` checks the spelling)."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

HABITS = {
    r"\b(is|are|was|were) (said|told)\b": "state who prints or returns it",
    r"\bso many\b": "name the number",
    r"(?<!y)\bours\b": "write `Source: this project`",
    r"\bwhat it takes\b": "name the requirement",
    r"\bas it is\b": "write `unchanged`",
    r"\bno one says\b": "name the default",
    r"\b[Rr]efused is\b": "put the subject first",
    r"\bis put (aside|away)\b": "name the act",
    r"(^|[.:;]\s+)(Itself|Of an answer|Of these|For the log)\.": "write a whole sentence",
    r"\b(goes|going|go|went) on (with|at|as|from|until|while)\b": "write `continue` or `resume`",
    r"\bas good as\b": "write `almost`",
    r"\b(by|of) itself\.": "say what acts",
    r"\basked of\b": "say what is checked",
    r"\bsays of itself\b": "name the header or the metadata",
    r"\bnothing (is|was) said\b": "say what is not printed",
    r"\bthe one that is\b": "name the thing",
    r"\b[Tt]hose that are\b": "use a noun",
    r"\bsay so\b": "say what is printed",
}
FIRST_WORDS = re.compile(r"^(What|Those|How many|Itself|Of|Whose) ")
"""A docstring starts with a verb or with the noun that it describes."""


def strings_and_comments(path: Path) -> list[tuple[int, str]]:
    """Return (line, text) of every string and comment of a source file."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    return [(token.start[0], token.string) for token in tokens if token.type in (tokenize.STRING, tokenize.COMMENT)]


def prose_of(page: Path) -> list[tuple[int, str]]:
    """Return (line, text) of a page without code blocks and generated tables."""
    lines: list[tuple[int, str]] = []
    fenced = generated = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif line.startswith("<!-- table:"):
            generated = True
        elif line.startswith("<!-- end"):
            generated = False
        elif not fenced and not generated:
            lines.append((number, line))
    return lines


def habits_in(texts: list[tuple[int, str]]) -> list[str]:
    """Return a line for each habit found."""
    return [
        f"line {number}: {match.group(0)!r}: {advice}"
        for number, text in texts
        for pattern, advice in HABITS.items()
        for match in re.finditer(pattern, text, re.MULTILINE)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_source_reads_well(path):
    assert habits_in(strings_and_comments(path)) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_docstrings_start_with_a_verb_or_a_noun(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node) or ""
            if FIRST_WORDS.match(docstring):
                found.append(f"{getattr(node, 'name', 'module')}: {docstring.splitlines()[0]}")
    assert found == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_pages_read_well(page):
    assert habits_in(prose_of(page)) == []


def test_the_habits_are_found():
    assert len(habits_in([(1, "It is said first, so many times, as it is; ours.")])) == 4
    assert habits_in([(1, "Yours truly: the default is printed.")]) == []
