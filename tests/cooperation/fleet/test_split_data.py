"""One table parted among devices: nothing lost, nothing twice, as even as can be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskedge.cooperation.fleet.split_data import split
from taskedge.errors import InputError


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.integers(1, 12), st.booleans(), st.integers(0, 9))
def test_every_row_is_on_exactly_one_device(labels, devices, skew, seed):
    if len(labels) < devices:
        with pytest.raises(InputError, match="ask for fewer"):
            split(labels, len(labels), devices, skew=skew, seed=seed)
        return
    parts = split(labels, len(labels), devices, skew=skew, seed=seed)
    assert sorted(place for part in parts for place in part) == list(range(len(labels)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == split(labels, len(labels), devices, skew=skew, seed=seed)
    if skew:
        order = [labels[place] for part in parts for place in part]
        assert order == sorted(order)


def test_a_skewed_split_parts_the_classes_and_another_does_not():
    labels = ["a", "b"] * 50
    assert [{labels[p] for p in part} for part in split(labels, 100, 2, skew=True, seed=0)] == [{"a"}, {"b"}]
    assert [{labels[p] for p in part} for part in split(labels, 100, 2, skew=False, seed=0)] == [{"a", "b"}] * 2
    assert split(labels, 100, 2, skew=False, seed=0) != split(labels, 100, 2, skew=False, seed=1)


def test_what_has_no_classes_is_not_skewed():
    with pytest.raises(InputError, match="no classes"):
        split(None, 9, 2, skew=True, seed=0)
