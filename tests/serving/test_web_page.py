"""The page loads nothing from elsewhere and never makes HTML of what it shows."""

from __future__ import annotations

import re

from taskedge.serving.web_page import PAGE, PAGE_HEADERS


def test_nothing_is_loaded_from_elsewhere():
    assert not re.search(r"https?://|src=|<link", PAGE)
    assert "connect-src 'self'" in PAGE_HEADERS["content-security-policy"]


def test_names_are_shown_as_text():
    assert "innerHTML" not in PAGE
    assert "textContent" in PAGE
