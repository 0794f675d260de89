"""Which modules train when: halving down to the share, trials by staleness, swaps; and a stopped schedule goes on."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskedge.cooperation.scheduling.freezing import Revival, ReviveSettings

SETTINGS = ReviveSettings(active_share=0.25, stage=3, window=3, every=6)


def made(count, settings=SETTINGS):
    return Revival([f"w{place}" for place in range(count)], settings)


def play(gains, revival, rounds, first=1):
    """(active modules, decisions) of every round, where a module gains the same whenever it trains."""
    seen = []
    for number in range(first, rounds + 1):
        active = revival.active(number)
        seen.append((active, revival.ended(number, {name: gains[name] for name in active})))
    return seen


def named(*gains):
    return {f"w{place}": gain for place, gain in enumerate(gains)}


def test_all_train_at_first_and_then_the_halves_that_gain_most_down_to_the_share():
    seen = play(named(0.01, 0.3, 0.02, 0.03, 0.01, 0.02, 0.2, 0.01), made(8), 10)
    assert [active for active, _ in seen[:3]] == [[f"w{place}" for place in range(8)]] * 3
    assert [active for active, _ in seen[3:6]] == [["w1", "w2", "w3", "w6"]] * 3
    assert seen[2][1] == ["4 of 8 modules stay active: w1, w2, w3, w6"]
    assert seen[5][1] == ["2 of 8 modules stay active: w1, w6"]
    assert [decided for place, (_, decided) in enumerate(seen[:6]) if place not in (2, 5)] == [[]] * 4
    assert seen[9][0] == ["w1", "w6"]


@pytest.mark.parametrize(
    ("count", "share", "left"),
    [(36, 1 / 8, [18, 9, 5]), (8, 1 / 8, [4, 2, 1]), (5, 0.3, [3, 2]), (7, 0.9, []), (10, 0.6, [6])],
)
def test_the_last_halving_stops_at_the_share(count, share, left):
    revival = made(count, ReviveSettings(share, stage=2, window=1, every=50))
    seen = play({f"w{place}": 1.0 for place in range(count)}, revival, 20)
    assert [said for _, decided in seen for said in decided if "stay active" in said] == [
        f"{stay} of {count} modules stay active: {', '.join(sorted(f'w{place}' for place in range(count))[:stay])}"
        for stay in left
    ]


def test_every_stage_has_gains_of_its_own():
    """What gained much in the first stage alone does not stay for it in the second."""
    revival = made(4, ReviveSettings(0.25, stage=1, window=1, every=9))
    play(named(9.0, 1.0, 0.0, 0.0), revival, 1)
    assert play(named(0.1, 0.2, 0.0, 0.0), revival, 2, first=2)[-1][1] == ["1 of 4 modules stay active: w1"]


def test_gains_are_of_the_whole_stage():
    """Module 0 gains in the first round alone, and more than the other in all of them."""
    revival = made(2, ReviveSettings(0.5, stage=3, window=1, every=4))
    for number, gains in enumerate(({"w0": 9.0, "w1": 1.0}, {"w0": 0.0, "w1": 1.0}, {"w0": 0.0, "w1": 1.0}), start=1):
        revival.active(number)
        said = revival.ended(number, gains)
    assert said == ["1 of 2 modules stay active: w0"]


def test_idle_modules_are_tried_by_staleness_and_every_one_has_its_turn():
    seen = play(named(0.4, 0.4, *[0.001] * 6), made(8), 6 + 3 * 6)
    tried = []
    for start in range(6, len(seen), 6):
        window, rest = seen[start : start + 3], seen[start + 3 : start + 6]
        assert all(active == window[0][0] for active, _ in window)
        assert [active for active, _ in rest] == [["w0", "w1"]] * 3
        tried += sorted(set(window[0][0]) - {"w0", "w1"})
    assert tried == ["w4", "w5", "w6", "w7", "w2", "w3"]  # those that went idle first


def test_what_gains_more_in_the_window_takes_the_place_of_what_gains_least():
    gains, revival = named(0.2, 0.3, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01), made(8)
    play(gains, revival, 6)
    seen = play(gains | {"w4": 0.25}, revival, 12, first=7)
    assert [decided for _, decided in seen if decided] == [["revived w4; idle from now on w0"]]
    assert seen[-1][0] == ["w1", "w4"]


def test_windows_are_measured_apart_so_that_a_falling_rate_favours_nothing():
    """All gain less and less; whoever gained much long ago has no advantage."""
    revival = made(2, ReviveSettings(0.5, stage=3, window=3, every=3))
    play(named(9.0, 1.0), revival, 3)
    seen = play(named(0.1, 0.2), revival, 6, first=4)
    assert seen[-1][1] == ["revived w1; idle from now on w0"]


def test_only_what_was_updated_in_the_whole_window_comes_in():
    revival = made(4, ReviveSettings(0.5, stage=3, window=3, every=6))
    play(named(0.5, 0.4, 0.1, 0.1), revival, 3)
    for number in range(4, 7):
        active = revival.active(number)
        assert active == ["w0", "w1", "w2", "w3"]
        gains = {"w0": 0.1, "w1": 0.1, "w2": 9.0} if number > 4 else {"w0": 0.1, "w1": 0.1}
        said = revival.ended(number, gains)
    assert said == []
    assert revival.active(7) == ["w0", "w1"]


def test_a_share_of_one_is_off():
    revival = made(4, ReviveSettings())
    assert revival.everything
    assert play(named(*[0.1] * 4), revival, 30) == [([f"w{place}" for place in range(4)], [])] * 30


@pytest.mark.parametrize(("share", "stay"), [(1 / 8, 5), (0.01, 1), (0.5, 18)])
def test_the_share_is_of_modules_and_at_least_one(share, stay):
    seen = play({f"w{place}": place for place in range(36)}, made(36, ReviveSettings(share)), 75)
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
    settings = ReviveSettings(share, stage, window, every)
    gains = {f"w{place}": draw.random() for place in range(count)}
    whole = play(gains, made(count, settings), 41)

    first, second = made(count, settings), made(count, settings)
    before = play(gains, first, stop)
    second.load(json.loads(json.dumps(first.state())))
    assert before + play(gains, second, 41, first=stop + 1) == whole

    keep = max(1, math.ceil(share * count))
    left = [count]
    while left[-1] > keep:
        left.append(max(keep, math.ceil(left[-1] / 2)))
    for number, (active, _) in enumerate(whole, start=1):
        stages = (number - 1) // stage
        trying = (number - stage * (len(left) - 1) - 1) % max(every, window) < window
        assert len(active) == (left[stages] if stages < len(left) - 1 else min(count, 2 * keep) if trying else keep)
