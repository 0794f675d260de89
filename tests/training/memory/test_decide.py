"""Which way is taken within a budget, and what is said where none is. The ladder's figures are made up here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from example_costs import cost

from taskedge.errors import DoesNotFit
from taskedge.training.memory import decide as choose
from taskedge.training.memory.options import Place, Rung
from taskedge.training.memory.profiler import Group
from taskedge.training.memory.step_cost import MARGIN_BYTES, Memory
from taskedge.training.tune_config import TuneSettings

MB = 10**6
SHALLOW = Place((Rung("depth", 1, "depth"),))


def way(name, megabytes, seconds, **more):
    """A way that needs so many MB, margin included."""
    memory = Memory(megabytes * MB - MARGIN_BYTES, 0, 0, 0, 0, 0, 0)
    return cost(way=name, changes={"way": name}, memory=memory, cpu_seconds=seconds, seconds=seconds, **more)


class FakeRun:
    def __init__(self, memory, allow=None):
        self.settings = TuneSettings(model="m", train="t.csv", memory=memory, allow=allow)
        self.taken = None

    def changed(self, changes):
        self.taken = changes
        return self


@pytest.fixture
def ladder(monkeypatch):
    """Puts groups in the place of measurements; tells how many were asked for."""

    def put(*groups, reached=0, compiled=0, least=0):
        class Fake:
            asked = 0

            def __init__(self, run, budget, on_group):
                self.room, self.compiled, self.least = SimpleNamespace(reached=reached), compiled, least

            def groups(self, *, all_places=False, go_on=lambda: True):
                before = Place()
                for group in groups:
                    if group.place != before and not go_on():
                        return
                    before = group.place
                    if all_places or all(one.allowed for one in group.costs):
                        Fake.asked += 1
                        yield group

        monkeypatch.setattr(choose, "Ladder", Fake)
        return Fake

    return put


PLAIN = Group(Place(), [way("as it is", 900, 1.0), way("micro-batch 2", 600, 1.1)])
SLOW = Group(Place(), [way("recompute", 500, 1.6)])
DEPTH = Group(SHALLOW, [way("depth 1", 300, 0.5, exact=False)])


def test_the_fastest_that_fits_is_taken_and_slower_ones_are_not_looked_at(ladder):
    for memory, taken, asked in (("900MB", "as it is", 1), ("899MB", "micro-batch 2", 1), ("599MB", "recompute", 2)):
        fake, run = ladder(PLAIN, SLOW, DEPTH), FakeRun(memory)
        found, estimate = choose.within(run, lambda _: None)
        assert found.taken == {"way": taken}
        assert estimate.chosen.way == taken
        assert estimate.budget == int(memory[:-2]) * MB
        assert fake.asked == asked


def test_of_ways_that_are_as_fast_the_first_is_taken(ladder):
    ladder(Group(Place(), [way("large", 500, 1.04), way("small", 400, 1.0)]))
    assert choose.within(FakeRun("1GB"), lambda _: None)[1].chosen.way == "large"


def test_what_changes_the_result_is_taken_only_where_nothing_else_fits(ladder):
    ladder(PLAIN, SLOW, DEPTH)
    assert choose.within(FakeRun("500MB", ["depth"]), lambda _: None)[1].chosen.way == "recompute"
    ladder(PLAIN, SLOW, DEPTH)
    assert choose.within(FakeRun("400MB", ["depth"]), lambda _: None)[1].chosen.way == "depth 1"


def test_a_refusal_names_a_budget_just_above_the_least_and_that_one_does(ladder):
    ladder(PLAIN, SLOW)
    with pytest.raises(DoesNotFit, match=r"--memory 499MB: nothing fits: .* give --memory 510MB; or allow") as refused:
        choose.within(FakeRun("499MB"), lambda _: None)
    assert refused.value.exit_code == 3
    assert refused.value.needed == 500 * MB + choose.SLACK
    assert "--allow bf16 --allow depth --allow int8" in str(refused.value)
    ladder(PLAIN, SLOW)
    assert choose.within(FakeRun("500MB"), lambda _: None)[1].chosen.way == "recompute"


def test_what_the_measuring_itself_took_counts(ladder):
    ladder(PLAIN, SLOW, reached=520 * MB)
    with pytest.raises(DoesNotFit, match=r"to try a few rows took 520 MB already: give --memory 530MB"):
        choose.within(FakeRun("510MB"), lambda _: None)
    ladder(PLAIN, SLOW, reached=520 * MB)
    assert choose.within(FakeRun("525MB"), lambda _: None)[1].chosen.way == "recompute"
    ladder(PLAIN, SLOW, reached=450 * MB)
    with pytest.raises(DoesNotFit, match=r"the least is 'recompute', .* give --memory 510MB"):
        choose.within(FakeRun("400MB"), lambda _: None)


@pytest.mark.parametrize(("least", "reached"), [(692, 600), (600, 692)])
def test_nothing_could_be_measured(ladder, least, reached):
    ladder(reached=reached * MB, least=least * MB)
    with pytest.raises(DoesNotFit, match="not even a step of one row would, it seems: give --memory 710MB"):
        choose.within(FakeRun("600MB"), lambda _: None)


def test_a_compiler_that_was_loaded_to_be_measured_counts(ladder):
    ladder(Group(Place(), [way("as it is", 950, 1.0), way("micro-batch 2", 850, 1.1)]), compiled=100 * MB)
    with pytest.raises(DoesNotFit, match="nothing fits"):
        choose.within(FakeRun("900MB"), lambda _: None)
    ladder(Group(Place(), [way("as it is", 950, 1.0), way("micro-batch 2", 700, 1.1)]), SLOW, compiled=100 * MB)
    estimate = choose.within(FakeRun("900MB"), lambda _: None)[1]
    assert estimate.chosen.way == "micro-batch 2"
    assert estimate.chosen.memory.runtime == 100 * MB


def test_the_whole_ladder_tells_what_is_not_allowed_and_does_not_choose_it(ladder):
    ladder(PLAIN, Group(SHALLOW, [way("depth 1", 300, 0.5, exact=False, allowed=False)]))
    found = choose.ladder_of(FakeRun("650MB"), lambda _: None)
    assert [one.way for one in found.costs] == ["as it is", "micro-batch 2", "depth 1"]
    assert found.chosen.way == "micro-batch 2"
    with pytest.raises(DoesNotFit, match="give --memory 610MB"):
        choose.ladder_of(FakeRun("400MB"), lambda _: None).required()
    assert choose.ladder_of(FakeRun(None), lambda _: None).required().chosen is None
