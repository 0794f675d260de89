"""A page is self-contained: no script, no address, and texts of files are never markup."""

from __future__ import annotations

from taskedge.reporting.page import MAX_ROWS, facts, markup_table, note, page, section

HOSTILE = "<img src=x onerror=alert(1)>"


def test_every_text_is_escaped():
    made = page(
        HOSTILE, HOSTILE, [section(HOSTILE, note(HOSTILE), facts([(HOSTILE, HOSTILE)]), markup_table([[HOSTILE]]))]
    )
    assert "<img" not in made
    assert made.count("&lt;img src=x onerror=alert(1)&gt;") == 8


def test_nothing_is_loaded_and_nothing_runs():
    made = page("t", "s", [section("a", note("b"))])
    assert "default-src 'none'" in made
    assert not [word for word in ("<script", "http:", "https:", "url(", "@import", "<link") if word in made]
    assert "prefers-color-scheme:dark" in made


def test_a_long_table_says_how_many_rows_are_left_out():
    made = markup_table([["head"], *([str(number)] for number in range(MAX_ROWS + 7))])
    assert made.count("<tr>") == MAX_ROWS + 1
    assert "7 more rows are not shown" in made


def test_an_empty_section_is_left_out():
    assert section("title", "") == ""
