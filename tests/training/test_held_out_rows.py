"""Rows that are held out: a share of every class, the same for the same seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskedge.errors import InputError
from taskedge.training.held_out_rows import PartRows, parse_validation, split_rows


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=60), st.floats(0.02, 0.9), st.integers(0, 9))
def test_each_class_gives_its_share(classes, share, seed):
    counts = Counter(classes)
    if max(counts.values()) < 2:
        with pytest.raises(InputError, match="leave none to hold out"):
            split_rows(len(classes), share, seed, classes)
        return
    training, held_out = split_rows(len(classes), share, seed, classes)
    assert sorted(training + held_out) == list(range(len(classes)))
    assert split_rows(len(classes), share, seed, classes) == (training, held_out)
    taken = Counter(classes[index] for index in held_out)
    for label, count in counts.items():
        assert count == 1 or 1 <= taken[label] < count
        assert abs(taken[label] - share * count) <= 1


def test_another_seed_takes_other_rows_and_answers_need_no_classes():
    assert split_rows(100, 0.1, 0, None) != split_rows(100, 0.1, 1, None)
    assert len(split_rows(100, 0.1, 0, None)[1]) == 10


@pytest.mark.parametrize(("text", "meant"), [("10%", 0.1), ("0.25", 0.25), ("held.csv", Path("held.csv"))])
def test_a_share_or_a_file(text, meant):
    assert parse_validation(text) == meant


@pytest.mark.parametrize("text", ["0%", "100%", "-1", "nan"])
def test_a_share_that_is_none(text):
    with pytest.raises(InputError, match="is not a share between 0 and 1: write 10% or 0"):
        parse_validation(text)


def test_a_part_knows_the_numbers_of_its_rows():
    assert PartRows([{"a": 1}], [7]).numbers == (7,)
