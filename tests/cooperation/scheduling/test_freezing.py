"""Modules are halved down to the share, idle ones are tried by staleness, and a resumed schedule is unchanged."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskedge.cooperation.scheduling.freezing import ActiveModules, FreezingConfig

SETTINGS = FreezingConfig(active_share=0.25, stage=3, window=3, every=6)


def made(count, settings=SETTINGS):
    return ActiveModules([f"w{index}" for index in range(count)], settings)


def play(gains, modules, rounds, first=1):
    """(active modules, decisions) of every round, where a module gains the same whenever it trains."""
    seen = []
    for number in range(first, rounds + 1):
        active = modules.begin_round(number)
        seen.append((active, modules.end_round(number, {name: gains[name] for name in active})))
    return seen


def named(*gains):
    return {f"w{index}": gain for index, gain in enumerate(gains)}


def test_all_train_at_first_and_then_the_halves_that_gain_most_down_to_the_share():
    seen = play(named(0.01, 0.3, 0.02, 0.03, 0.01, 0.02, 0.2, 0.01), made(8), 10)
    assert [active for active, _ in seen[:3]] == [[f"w{index}" for index in range(8)]] * 3
    assert [active for active, _ in seen[3:6]] == [["w1", "w2", "w3", "w6"]] * 3
    assert seen[2][1] == ["4 of 8 modules stay active: w1, w2, w3, w6"]
    assert seen[5][1] == ["2 of 8 modules stay active: w1, w6"]
    assert [decisions for index, (_, decisions) in enumerate(seen[:6]) if index not in (2, 5)] == [[]] * 4
    assert seen[9][0] == ["w1", "w6"]


@pytest.mark.parametrize(
    ("count", "share", "left"),
    [(36, 1 / 8, [18, 9, 5]), (8, 1 / 8, [4, 2, 1]), (5, 0.3, [3, 2]), (7, 0.9, []), (10, 0.6, [6])],
)
def test_the_last_halving_stops_at_the_share(count, share, left):
    modules = made(count, FreezingConfig(share, stage=2, window=1, every=50))
    seen = play({f"w{index}": 1.0 for index in range(count)}, modules, 20)
    assert [lines for _, decisions in seen for lines in decisions if "stay active" in lines] == [
        f"{stay} of {count} modules stay active: {', '.join(sorted(f'w{index}' for index in range(count))[:stay])}"
        for stay in left
    ]


def test_every_stage_has_gains_of_its_own():
    """A module that gained much in the first stage alone does not stay active after the second."""
    modules = made(4, FreezingConfig(0.25, stage=1, window=1, every=9))
    play(named(9.0, 1.0, 0.0, 0.0), modules, 1)
    assert play(named(0.1, 0.2, 0.0, 0.0), modules, 2, first=2)[-1][1] == ["1 of 4 modules stay active: w1"]


def test_gains_are_of_the_whole_stage():
    """Module 0 gains in the first round alone, and more than the other in all of them."""
    modules = made(2, FreezingConfig(0.5, stage=3, window=1, every=4))
    for number, gains in enumerate(({"w0": 9.0, "w1": 1.0}, {"w0": 0.0, "w1": 1.0}, {"w0": 0.0, "w1": 1.0}), start=1):
        modules.begin_round(number)
        lines = modules.end_round(number, gains)
    assert lines == ["1 of 2 modules stay active: w0"]


def test_idle_modules_are_tried_in_order_of_staleness():
    seen = play(named(0.4, 0.4, *[0.001] * 6), made(8), 6 + 3 * 6)
    tried = []
    for start in range(6, len(seen), 6):
        window, rest = seen[start : start + 3], seen[start + 3 : start + 6]
        assert all(active == window[0][0] for active, _ in window)
        assert [active for active, _ in rest] == [["w0", "w1"]] * 3
        tried += sorted(set(window[0][0]) - {"w0", "w1"})
    assert tried == ["w4", "w5", "w6", "w7", "w2", "w3"]  # those that went idle first


def test_a_module_that_gains_more_in_the_window_replaces_the_one_that_gains_least():
    gains, modules = named(0.2, 0.3, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01), made(8)
    play(gains, modules, 6)
    seen = play(gains | {"w4": 0.25}, modules, 12, first=7)
    assert [decisions for _, decisions in seen if decisions] == [["revived w4; idle from now on w0"]]
    assert seen[-1][0] == ["w1", "w4"]


def test_each_window_has_gains_of_its_own():
    """Gains fall with the learning rate, so a module that gained much long ago has no advantage."""
    modules = made(2, FreezingConfig(0.5, stage=3, window=3, every=3))
    play(named(9.0, 1.0), modules, 3)
    seen = play(named(0.1, 0.2), modules, 6, first=4)
    assert seen[-1][1] == ["revived w1; idle from now on w0"]


def test_only_modules_updated_in_the_whole_window_become_active():
    modules = made(4, FreezingConfig(0.5, stage=3, window=3, every=6))
    play(named(0.5, 0.4, 0.1, 0.1), modules, 3)
    for number in range(4, 7):
        active = modules.begin_round(number)
        assert active == ["w0", "w1", "w2", "w3"]
        gains = {"w0": 0.1, "w1": 0.1, "w2": 9.0} if number > 4 else {"w0": 0.1, "w1": 0.1}
        lines = modules.end_round(number, gains)
    assert lines == []
    assert modules.begin_round(7) == ["w0", "w1"]


def test_a_share_of_one_is_off():
    modules = made(4, FreezingConfig())
    assert modules.all_active
    assert play(named(*[0.1] * 4), modules, 30) == [([f"w{index}" for index in range(4)], [])] * 30


@pytest.mark.parametrize(("share", "stay"), [(1 / 8, 5), (0.01, 1), (0.5, 18)])
def test_the_share_is_of_modules_and_at_least_one(share, stay):
    seen = play({f"w{index}": index for index in range(36)}, made(36, FreezingConfig(share)), 75)
    assert len(seen[-1][0]) == stay


@given(
    st.integers(2, 9),
    st.floats(0.05, 1.0),
    st.integers(1, 8),
    st.integers(1, 4),
    st.integers(1, 10),
    st.integers(0, 40),
    st.randoms(use_true_random=False),
)
def test_whatever_the_settings_the_share_is_kept_and_a_stop_changes_nothing(
    count, share, stage, window, every, stop, draw
):
    settings = FreezingConfig(share, stage, window, every)
    gains = {f"w{index}": draw.random() for index in range(count)}
    whole = play(gains, made(count, settings), 41)

    first, second = made(count, settings), made(count, settings)
    before = play(gains, first, stop)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + play(gains, second, 41, first=stop + 1) == whole

    keep = max(1, math.ceil(share * count))
    left = [count]
    while left[-1] > keep:
        left.append(max(keep, math.ceil(left[-1] / 2)))
    for number, (active, _) in enumerate(whole, start=1):
        stages = (number - 1) // stage
        trying = (number - stage * (len(left) - 1) - 1) % max(every, window) < window
        assert len(active) == (left[stages] if stages < len(left) - 1 else min(count, 2 * keep) if trying else keep)
