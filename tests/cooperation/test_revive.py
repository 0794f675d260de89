"""Which blocks train when: warm-up, the best share, probes by staleness, swaps; and a stopped schedule goes on."""

import json
import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from taskedge.cooperation.revive import Revival, ReviveSettings


class Blocks:
    """Blocks that grow by a share of their own in every round in which they train, so scores stay as they are."""

    def __init__(self, speeds):
        self.speeds = dict(enumerate(speeds, start=1))
        self.names = {block: (f"w{block}", f"b{block}") for block in self.speeds}
        self.change = {
            name: torch.full((3,), 1e-3, dtype=torch.float64) for names in self.names.values() for name in names
        }

    def train(self, active):
        for block in active:
            for name in self.names[block]:
                self.change[name] = self.change[name] * (1 + self.speeds[block])


def play(blocks, revival, rounds, first=1):
    """(active blocks, decisions) of every round."""
    seen = []
    for number in range(first, rounds + 1):
        active = revival.active(number, blocks.change)
        blocks.train(active)
        seen.append((active, revival.ended(number, set(active), blocks.change)))
    return seen


SETTINGS = ReviveSettings(active_share=0.25, warmup=6, window=3, every=6, probes=1)


def test_all_train_in_the_warm_up_and_then_the_fastest_share():
    seen = play(Blocks([0.01, 0.3, 0.02, 0.03, 0.01, 0.02, 0.2, 0.01]), made(8), 6)
    assert {active for active, _ in seen} == {tuple(range(1, 9))}
    assert [decided for _, decided in seen[:5]] == [[]] * 5
    assert "stay active" in seen[5][1][0]


def made(count, settings=SETTINGS):
    return Revival({block: (f"w{block}", f"b{block}") for block in range(1, count + 1)}, settings)


def test_the_score_is_the_relative_change_over_a_window():
    """Block 1 grows by its size's half in the window, block 2 by a tenth, block 3 not at all."""
    revival = made(3, ReviveSettings(active_share=1 / 3, warmup=2, window=2, every=4))
    change = {"w1": torch.tensor([1.0]), "w2": torch.tensor([9.0]), "w3": torch.tensor([5.0])}
    change |= {f"b{block}": torch.zeros(1) for block in (1, 2, 3)}
    revival.active(1, change)
    revival.ended(1, {1, 2, 3}, change)
    revival.active(2, change)
    after = change | {"w1": torch.tensor([2.0]), "w2": torch.tensor([10.0])}
    assert revival.ended(2, {1, 2, 3}, after) == ["blocks [1] stay active, the others idle"]
    facts, _ = revival.state()
    assert facts["scores"] == {"1": 0.5, "2": 0.1, "3": 0.0}


def test_idle_blocks_are_probed_by_staleness_and_every_one_has_its_turn():
    seen = play(Blocks([0.4, 0.4, *[0.001] * 6]), made(8), 6 + 6 * 6)
    probes = []
    for start in range(6, len(seen), 6):
        window, rest = seen[start : start + 3], seen[start + 3 : start + 6]
        assert [decided for _, decided in window] == [[]] * 3
        assert len({active for active, _ in window}) == 1
        assert all(len(active) == 2 for active, _ in rest)
        (probe,) = set(window[0][0]) - set(rest[0][0])
        probes.append(probe)
    assert len(set(probes)) == len(probes)


def test_a_block_that_beats_the_weakest_active_one_takes_its_place():
    blocks, revival = Blocks([0.2, 0.3, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01]), made(8)
    play(blocks, revival, 6)
    blocks.speeds = dict.fromkeys(blocks.speeds, 0.0001) | {3: 0.5}
    seen = play(blocks, revival, 6 + 6 * 6, first=7)
    said = [words for _, decided in seen for words in decided]
    assert any(words.startswith("block 3 revived") for words in said)
    assert 3 in seen[-1][0]


def test_a_block_without_updates_is_not_scored_and_not_revived():
    blocks, revival = (
        Blocks([0.5, 0.4, 0.9, 0.9]),
        made(4, ReviveSettings(active_share=0.5, warmup=3, window=3, every=6)),
    )
    for number in range(1, 4):
        active = revival.active(number, blocks.change)
        blocks.train((1, 2))
        revival.ended(number, {1, 2} if number > 1 else {1}, blocks.change)
    assert revival.state()[0]["scores"].keys() == {"1"}
    for number in range(4, 7):
        active = revival.active(number, blocks.change)
        blocks.train(active)
        said = revival.ended(number, set(active) - {3, 4}, blocks.change)
    assert said == []


def test_a_share_of_one_is_off():
    revival = made(4, ReviveSettings())
    assert revival.everything
    assert [active for active, _ in play(Blocks([0.1] * 4), revival, 30)] == [(1, 2, 3, 4)] * 30


@given(
    st.integers(2, 9),
    st.floats(0.05, 1.0),
    st.integers(1, 8),
    st.integers(1, 4),
    st.integers(1, 10),
    st.integers(1, 3),
    st.integers(0, 40),
    st.randoms(use_true_random=False),
)
def test_whatever_the_settings_the_share_is_kept_and_a_stop_changes_nothing(
    count, share, warmup, window, every, probes, stop, draw
):
    settings = ReviveSettings(share, warmup, window, every, probes)
    speeds = [draw.random() / 2 for _ in range(count)]
    whole = play(Blocks(speeds), made(count, settings), 41)

    blocks, first = Blocks(speeds), made(count, settings)
    before = play(blocks, first, stop)
    facts, tensors = first.state()
    second = made(count, settings)
    second.load(json.loads(json.dumps(facts)), tensors)
    assert before + play(blocks, second, 41, first=stop + 1) == whole

    keep = max(1, math.ceil(share * count))
    rounded = window * math.ceil(warmup / window)
    for number, (active, _) in enumerate(whole, start=1):
        assert len(active) == (count if number <= rounded else len(active))
        assert keep <= len(active) <= (count if number <= rounded else min(count, keep + probes))
