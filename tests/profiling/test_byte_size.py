"""Sizes of memory as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskedge.errors import InputError
from taskedge.profiling.byte_size import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("600MB", 600_000_000),
        ("600mb", 600_000_000),
        ("1.5 GiB", 3 * 2**29),
        ("2g", 2_000_000_000),
        (" 512MiB ", 2**29),
        (".5k", 500),
        ("1234567", 1_234_567),
        ("3B", 3),
        ("2.3GB", 2_300_000_000),
        ("1.GB", 10**9),
    ],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "0", "0.0GB", "6 00MB", "600MBs", "1e9", "nan", "600 MB/s"])
def test_other_text_is_refused(text):
    with pytest.raises(InputError, match="not a size of memory: write 600MB"):
        parse_bytes(text)


@given(st.integers(1, 10**15))
def test_plain_numbers_are_bytes(size):
    assert parse_bytes(str(size)) == size


def test_sizes_are_shown_in_megabytes():
    assert format_bytes(1_234_567_890) == "1,235 MB"
    assert parse_bytes(format_bytes(600e6)) == 600_000_000
