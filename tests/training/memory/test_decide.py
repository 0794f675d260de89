"""The configuration that is chosen within a budget, and the refusal if none fits. The costs are made up here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from example_costs import cost

from taskedge.errors import DoesNotFit
from taskedge.training.memory import decide
from taskedge.training.memory.options import MemoryOption
from taskedge.training.memory.profiler import ConfigGroup
from taskedge.training.memory.search_space import LoadConfig
from taskedge.training.memory.step_cost import MARGIN_BYTES, PeakMemory
from taskedge.training.tune_config import TuneConfig

MB = 10**6
SHALLOW = LoadConfig((MemoryOption("depth", 1, "depth"),))


def config(name, megabytes, seconds, **changes):
    """Return the cost of a configuration that needs ``megabytes``, margin included."""
    memory = PeakMemory(megabytes * MB - MARGIN_BYTES, 0, 0, 0, 0, 0, 0)
    return cost(config=name, changes={"config": name}, memory=memory, cpu_seconds=seconds, seconds=seconds, **changes)


class FakeRun:
    def __init__(self, memory, allow=None):
        self.config = TuneConfig(model="m", train="t.csv", memory=memory, allow=allow)
        self.taken = None

    def with_config(self, changes):
        self.taken = changes
        return self


@pytest.fixture
def measured(monkeypatch):
    """Replace measurements by given groups. The returned class counts the groups that were used."""

    def put(*groups, reached=0, compiled=0, least=0):
        class FakeProfiler:
            num_measured = 0

            def __init__(self, run, budget, on_group):
                self.headroom = SimpleNamespace(peak_bytes=reached)
                self.compiler_bytes, self.min_step_bytes = compiled, least

            def iter_groups(self, *, include_disallowed=False, wants_more=lambda: True):
                before = LoadConfig()
                for group in groups:
                    if group.load != before and not wants_more():
                        return
                    before = group.load
                    if include_disallowed or all(one.allowed for one in group.costs):
                        FakeProfiler.num_measured += 1
                        yield group

        monkeypatch.setattr(decide, "MemoryProfiler", FakeProfiler)
        return FakeProfiler

    return put


PLAIN = ConfigGroup(LoadConfig(), [config("as configured", 900, 1.0), config("micro-batch 2", 600, 1.1)])
SLOW = ConfigGroup(LoadConfig(), [config("recompute", 500, 1.6)])
DEPTH = ConfigGroup(SHALLOW, [config("depth 1", 300, 0.5, exact=False)])


def test_the_fastest_that_fits_is_chosen_and_slower_ones_are_not_measured(measured):
    for memory, taken, asked in (
        ("900MB", "as configured", 1),
        ("899MB", "micro-batch 2", 1),
        ("599MB", "recompute", 2),
    ):
        fake, run = measured(PLAIN, SLOW, DEPTH), FakeRun(memory)
        found, estimate = decide.choose_within_budget(run, lambda _: None)
        assert found.taken == {"config": taken}
        assert estimate.chosen.config == taken
        assert estimate.budget == int(memory[:-2]) * MB
        assert fake.num_measured == asked


def test_the_first_of_equally_fast_ones_is_chosen(measured):
    measured(ConfigGroup(LoadConfig(), [config("large", 500, 1.04), config("small", 400, 1.0)]))
    assert decide.choose_within_budget(FakeRun("1GB"), lambda _: None)[1].chosen.config == "large"


def test_an_option_that_changes_the_result_is_chosen_only_if_nothing_else_fits(measured):
    measured(PLAIN, SLOW, DEPTH)
    assert decide.choose_within_budget(FakeRun("500MB", ["depth"]), lambda _: None)[1].chosen.config == "recompute"
    measured(PLAIN, SLOW, DEPTH)
    assert decide.choose_within_budget(FakeRun("400MB", ["depth"]), lambda _: None)[1].chosen.config == "depth 1"


def test_a_refusal_names_a_budget_just_above_the_least_and_that_one_does(measured):
    measured(PLAIN, SLOW)
    with pytest.raises(DoesNotFit, match=r"--memory 499MB: nothing fits: .* give --memory 510MB; or allow") as refused:
        decide.choose_within_budget(FakeRun("499MB"), lambda _: None)
    assert refused.value.exit_code == 3
    assert refused.value.needed == 500 * MB + decide.REFUSAL_MARGIN_BYTES
    assert "--allow bf16 --allow depth --allow int4 --allow int8" in str(refused.value)
    measured(PLAIN, SLOW)
    assert decide.choose_within_budget(FakeRun("500MB"), lambda _: None)[1].chosen.config == "recompute"


def test_the_peak_of_the_measurement_counts(measured):
    measured(PLAIN, SLOW, reached=520 * MB)
    with pytest.raises(DoesNotFit, match=r"trying a few rows took 520 MB already: give --memory 530MB"):
        decide.choose_within_budget(FakeRun("510MB"), lambda _: None)
    measured(PLAIN, SLOW, reached=520 * MB)
    assert decide.choose_within_budget(FakeRun("525MB"), lambda _: None)[1].chosen.config == "recompute"
    measured(PLAIN, SLOW, reached=450 * MB)
    with pytest.raises(DoesNotFit, match=r"the smallest is 'recompute', .* give --memory 510MB"):
        decide.choose_within_budget(FakeRun("400MB"), lambda _: None)


@pytest.mark.parametrize(("least", "reached"), [(692, 600), (600, 692)])
def test_nothing_could_be_measured(measured, least, reached):
    measured(reached=reached * MB, least=least * MB)
    with pytest.raises(DoesNotFit, match="a step of one row is predicted to need more: give --memory 710MB"):
        decide.choose_within_budget(FakeRun("600MB"), lambda _: None)


def test_a_compiler_that_was_loaded_to_be_measured_counts(measured):
    measured(
        ConfigGroup(LoadConfig(), [config("as configured", 950, 1.0), config("micro-batch 2", 850, 1.1)]),
        compiled=100 * MB,
    )
    with pytest.raises(DoesNotFit, match="nothing fits"):
        decide.choose_within_budget(FakeRun("900MB"), lambda _: None)
    measured(
        ConfigGroup(LoadConfig(), [config("as configured", 950, 1.0), config("micro-batch 2", 700, 1.1)]),
        SLOW,
        compiled=100 * MB,
    )
    estimate = decide.choose_within_budget(FakeRun("900MB"), lambda _: None)[1]
    assert estimate.chosen.config == "micro-batch 2"
    assert estimate.chosen.memory.runtime == 100 * MB


def test_disallowed_options_are_listed_and_not_chosen(measured):
    measured(PLAIN, ConfigGroup(SHALLOW, [config("depth 1", 300, 0.5, exact=False, allowed=False)]))
    found = decide.profile_all_options(FakeRun("650MB"), lambda _: None)
    assert [one.config for one in found.costs] == ["as configured", "micro-batch 2", "depth 1"]
    assert found.chosen.config == "micro-batch 2"
    with pytest.raises(DoesNotFit, match="give --memory 610MB"):
        decide.profile_all_options(FakeRun("400MB"), lambda _: None).required()
    assert decide.profile_all_options(FakeRun(None), lambda _: None).required().chosen is None
