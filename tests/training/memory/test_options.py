"""Which ways there are: what was given stays, and what changes the result needs leave."""

from __future__ import annotations

import pytest

from taskedge.training.memory.options import BASES, BY_HAND, LOOPS, Rung, Way, allowable, loops, micro_batches, places
from taskedge.training.tune_config import TuneSettings


def settings(**more) -> TuneSettings:
    return TuneSettings(**{"model": "m", "train": "t.csv", "batch_size": 8} | more)


def changes(found):
    return [place.changes for place in found]


def test_places_begin_with_what_was_asked_for():
    found = changes(places(settings(), 12))
    assert found[0] == {}
    assert found[1:5] == [{"depth": 6}, {"depth": 3}, {"depth": 1}, {"optimizer": "mezo"}]
    bases = [{"dtype": "bf16"}, {"base": "int8"}]
    assert found[5:] == [*bases, *(base | {"depth": depth} for base in bases for depth in (6, 3, 1))]


@pytest.mark.parametrize(
    ("given", "gone"),
    [
        ({"depth": 2}, "depth"),
        ({"rotate": 4}, "depth"),
        ({"rule": "spt"}, "depth"),
        ({"dtype": "fp32"}, "dtype"),
        ({"base": "mapped"}, "base"),
        ({"rule": "gradient"}, "base"),
        ({"form": "lora"}, "base"),
        ({"optimizer": "mezo", "lr": 0.1}, "optimizer"),
    ],
)
def test_what_was_given_stays(given, gone):
    assert all(gone not in place for place in changes(places(settings(**given), 4)))


def test_a_model_without_blocks_has_its_batches_only():
    assert changes(places(settings(), 0)) == [{}, {"optimizer": "mezo"}, {"dtype": "bf16"}, {"base": "int8"}]
    assert list(loops(settings(), 0)) == [()]


def test_loops():
    assert list(loops(settings(), 4)) == [(), *((rung,) for rung in LOOPS)]
    assert list(loops(settings(recompute="blocks"), 4)) == [()]
    assert list(loops(settings(optimizer="mezo", lr=0.1), 4)) == [()]


def test_micro_batches_divide_the_batch_most_rows_first():
    assert micro_batches(settings(batch_size=12), ()) == [None, 12, 6, 4, 3, 2, 1]
    assert micro_batches(settings(batch_size=4), (LOOPS[0],)) == [None, 2, 1]  # which spares memory as it is
    assert micro_batches(settings(recompute="blocks"), ()) == [None, 4, 2, 1]
    assert micro_batches(settings(micro_batch=2), ()) == [2]
    for rows in micro_batches(settings(batch_size=12), ()):
        settings(batch_size=12, micro_batch=rows).fit().passes  # noqa: B018


def test_a_way_is_settings_and_a_name():
    way = Way((BASES[0], Rung("depth", 3, "depth"), LOOPS[1]), 4)
    assert way.changes == {"dtype": "bf16", "depth": 3, "recompute": "blocks", "micro_batch": 4}
    assert way.name == "dtype bf16, depth 3, recompute blocks, micro-batch 4"
    assert Way((), None).name == "as it is"
    assert Way((BY_HAND,), None).name == "mezo"


def test_what_changes_the_result_needs_leave():
    exact, shallow = Way((LOOPS[0],), 2), Way((Rung("depth", 1, "depth"), LOOPS[0]), None)
    assert exact.exact
    assert exact.allowed(None)
    assert not shallow.exact
    assert [shallow.allowed(given) for given in (None, ["bf16"], ["depth"])] == [False, False, True]
    assert not Way((BY_HAND,), None).allowed(allowable())
    assert allowable() == ["bf16", "depth", "int8"]
