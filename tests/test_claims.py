"""Every measured claim of the pages is beside the results that it stands on."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

CLAIM = re.compile(
    r"\d(\.\d+)? (points|times (as|faster|slower|less|more)\b)"
    r"|accuracy[^.|]{0,60} \d+(\.\d+)? %"
    r"|\d(\.\d+)? %[^.|]{0,40} accuracy"
)
SOURCE = re.compile(r"<!-- table:|\bbenchmarks[./][\w./]+")
RESULTS = {path.name for path in (ROOT / "benchmarks").rglob("results/**/*.json*")}


def sections(page: Path) -> Iterator[tuple[str, str]]:
    """Yield (heading, text) of the sections of a page, without code blocks."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for part in re.split(r"^(?=#+ )", text, flags=re.MULTILINE):
        heading, _, body = part.partition("\n")
        yield heading, body


def claims(text: str) -> list[str]:
    """Return the measured claims of a text outside tables."""
    prose = " ".join(line for line in text.splitlines() if not line.startswith("|"))
    return [match[0] for match in CLAIM.finditer(prose)]


def names_results(text: str) -> bool:
    """Return whether a text has a generated table, a benchmark or an existing file of results."""
    return bool(SOURCE.search(text)) or not RESULTS.isdisjoint(re.findall(r"[\w-]+\.jsonl?\b", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_section_with_a_measured_claim_names_its_results(page: Path) -> None:
    unsupported = [
        f"{heading}: {found}" for heading, body in sections(page) if (found := claims(body)) and not names_results(body)
    ]
    assert unsupported == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_benchmarks_and_results_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    modules = set(re.findall(r"python -m (benchmarks[.\w]+)", text))
    assert [name for name in modules if importlib.util.find_spec(name.rstrip(".")) is None] == []
    scripts = set(re.findall(r"\bbenchmarks/[\w/]+\.(?:py|jsonl?)", text))
    assert [path for path in scripts if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    ("text", "is_claim"),
    [
        ("It loses 1.2 points.", True),
        ("This takes 46 times as long.", True),
        ("Test accuracy is higher by 0.13 %.", True),
        ("| 1.2 points |", False),
        ("Four times a day.", False),
        ("Batches of 8 rows.", False),
    ],
)
def test_what_counts_as_a_claim(text: str, is_claim: bool) -> None:
    assert bool(claims(text)) == is_claim
