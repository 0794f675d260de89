import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskedge.cooperation.coordinator.aggregation import weighted_mean
from taskedge.cooperation.coordinator.robust_aggregation import (
    KrumScores,
    aggregate,
    capped_weights,
    clip_factors,
    clip_to_median,
    krum_scores,
)

BLOCK_OF = {"a": 1, "b": 1, "c": 2}
ROBUST = ("median", "trimmed", "krum")


def answers(count, seed=0, names=("a", "b", "c"), weights=None):
    draw = torch.Generator().manual_seed(seed)
    made = [{name: torch.randn(3, generator=draw) for name in names} for _ in range(count)]
    return list(zip(weights or [1.0] * count, made, strict=True))


def stacked(given, name):
    return np.stack([tensors[name].double().numpy() for _, tensors in given])


def test_the_mean_is_the_weighted_mean_to_the_last_bit():
    given = answers(3, weights=[1.0, 7.0, 2.0])
    combined, by_mean = aggregate("mean", given, BLOCK_OF)
    expected = weighted_mean(given)
    assert all(torch.equal(combined[name], expected[name]) for name in "abc")
    assert by_mean == []


@pytest.mark.parametrize("count", [3, 4, 5, 6, 9, 10])
def test_median_and_trimmed_mean_equal_brute_force(count):
    given = answers(count, seed=count)
    median, _ = aggregate("median", given, BLOCK_OF)
    trimmed, _ = aggregate("trimmed", given, BLOCK_OF)
    for name in "abc":
        values = np.sort(stacked(given, name), axis=0)
        np.testing.assert_allclose(median[name], np.median(values, axis=0), rtol=1e-12)
        np.testing.assert_allclose(trimmed[name], values[count // 3 : count - count // 3].mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("count", [5, 6, 9, 11])
def test_krum_keeps_what_brute_force_keeps(count):
    given = answers(count, seed=count, weights=[1.0 + place for place in range(count)])
    points = np.concatenate([stacked(given, name) for name in "abc"], axis=1)
    wrong = min(count // 3, (count - 3) // 2)
    scores = []
    for place in range(count):
        others = sorted(((points[place] - points[j]) ** 2).sum() for j in range(count) if j != place)
        scores.append(sum(others[: count - wrong - 2]))
    np.testing.assert_allclose(krum_scores(given), scores, rtol=1e-9)
    kept = [given[place] for place in sorted(np.argsort(scores)[: count - wrong])]
    combined, _ = aggregate("krum", given, dict.fromkeys("abc", 1))
    assert all(torch.equal(combined[name], weighted_mean(kept)[name]) for name in "abc")


@pytest.mark.parametrize("count", [5, 9, 10])
def test_rules_equal_those_of_flower(count):
    flower = pytest.importorskip("flwr.server.strategy.aggregate", reason="flwr is in another environment")
    given = answers(count, seed=count, weights=[1.0 + place for place in range(count)])
    theirs = [([tensors[name].double().numpy() for name in "abc"], int(weight)) for weight, tensors in given]
    wrong = min(count // 3, (count - 3) // 2)
    one_block = dict.fromkeys("abc", 1)  # Flower compares whole answers
    for rule, expected in (
        ("median", flower.aggregate_median(theirs)),
        ("trimmed", flower.aggregate_trimmed_avg(theirs, count // 3 / count + 1e-9)),
        ("krum", flower.aggregate_krum(theirs, wrong, count - wrong)),
    ):
        combined, _ = aggregate(rule, given, one_block)
        for name, array in zip("abc", expected, strict=True):
            np.testing.assert_allclose(combined[name], array, rtol=1e-9, err_msg=rule)


@pytest.mark.parametrize("rule", ROBUST)
def test_a_block_with_two_answers_has_the_mean_and_is_named(rule):
    given = [*answers(2), *answers(3, seed=1, names=("c",))]
    combined, by_mean = aggregate(rule, given, BLOCK_OF)
    assert by_mean == [1]
    expected = weighted_mean(given[:2])
    assert torch.equal(combined["a"], expected["a"])
    assert torch.equal(combined["b"], expected["b"])
    assert not torch.equal(combined["c"], weighted_mean(given)["c"])


def test_krum_finds_over_rounds_who_is_like_an_honest_device_in_each_of_them():
    """Sign flips of gradients that are mostly noise: no round shows them, the running scores do, saved or not."""
    draw = torch.Generator().manual_seed(0)
    names, scores, once = [f"d{place}" for place in range(9)], KrumScores(), 0
    for _ in range(40):
        honest = 0.25 + torch.randn(9, 200, generator=draw)
        sent = [(1.0, {"a": -row if place >= 6 else row}) for place, row in enumerate(honest)]
        without, _ = aggregate("krum", sent, {"a": 1})
        once += torch.equal(without["a"], weighted_mean(sent[:6])["a"])
        saved = KrumScores()
        saved.load_state_dict(scores.state_dict())
        combined, _ = aggregate("krum", sent, {"a": 1}, names, scores)
        again, _ = aggregate("krum", sent, {"a": 1}, names, saved)
        assert torch.equal(combined["a"], again["a"])
    assert once < 30
    assert torch.equal(combined["a"], weighted_mean(sent[:6])["a"])


def test_krum_of_four_answers_is_the_median():
    given = answers(4)
    by_krum, by_mean = aggregate("krum", given, BLOCK_OF)
    median, _ = aggregate("median", given, BLOCK_OF)
    assert all(torch.equal(by_krum[name], median[name]) for name in "abc")
    assert by_mean == []


@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("count", [5, 9])
def test_no_third_of_the_answers_leads_away(rule, count):
    given = answers(count)
    for liars in itertools.islice(itertools.combinations(range(count), (count - 1) // 3), 20):
        lied = [(w, {n: t + 1e9 for n, t in x.items()}) if i in liars else (w, x) for i, (w, x) in enumerate(given)]
        combined, _ = aggregate(rule, lied, BLOCK_OF)
        assert all(tensor.abs().max() < 10 for tensor in combined.values())


@given(st.permutations(range(6)))
def test_the_order_of_answers_does_not_matter(order):
    given = answers(6, seed=3)
    for rule in ROBUST:
        once, _ = aggregate(rule, given, BLOCK_OF)
        again, _ = aggregate(rule, [given[place] for place in order], BLOCK_OF)
        assert all(torch.allclose(once[name], again[name], rtol=1e-12) for name in "abc")


@pytest.mark.parametrize(
    ("norms", "running", "factors"),
    [
        ([{1: 1.0}, {1: 2.0}, {1: 2.5}], {}, [{}, {}, {}]),  # within three times the median
        ([{1: 1.0}, {1: 2.0}, {1: 1e20}], {}, [{}, {}, {1: 2e-20}]),
        ([{1: 1.0}, {1: 100.0}], {}, [{}, {1: 0.01}]),  # of two answers the lower one is the median
        ([{1: 100.0}], {}, [{}]),  # nothing to compare with
        ([{1: 100.0}], {1: 2.0}, [{1: 0.02}]),
        ([{1: 2.0, 2: 7.0}], {1: 0.5, 2: 7.0}, [{1: 0.25}]),  # per block
        ([{1: 9.0}, {1: 8.0}, {1: 10.0}], {1: 1.0}, [{}, {}, {}]),  # three answers are their own measure
        ([{1: 0.0}, {1: 0.0}, {1: 5.0}], {}, [{}, {}, {}]),  # no scale to clip to
        ([{1: 0.0}, {1: 0.0}, {1: 5.0}], {1: 0.5}, [{}, {}, {1: 0.1}]),  # but that of earlier answers
        ([{1: 0.0}, {1: 5.0}], {1: 0.5}, [{}, {1: 0.1}]),
    ],
)
def test_an_answer_is_scaled_down_to_the_median(norms, running, factors):
    assert clip_factors(norms, running, 3.0) == factors


def test_only_the_block_that_is_too_large_is_scaled():
    tensors = {"a": torch.tensor([3.0]), "c": torch.tensor([5.0])}
    gradients = clip_to_median(tensors, {1: 0.5}, BLOCK_OF)
    assert (float(gradients["a"]), float(gradients["c"])) == (1.5, 5.0)
    assert gradients["c"] is tensors["c"]
    values = clip_to_median(tensors, {1: 0.5}, BLOCK_OF, {"a": torch.tensor([1.0]), "c": torch.tensor([0.0])})
    assert (float(values["a"]), float(values["c"])) == (2.0, 5.0)  # half of the way from 1 to 3


@pytest.mark.parametrize(
    ("tokens", "rows", "running", "weights"),
    [
        ([80, 120, 4096], [8, 8, 8], 0.0, [80, 120, 240]),  # the median is 15 a row
        ([80, 4096], [8, 8], 0.0, [80, 160]),
        ([4096], [8], 10.0, [160]),
        ([4096], [8], 0.0, [4096]),  # alone, its weight changes nothing
        ([100, 200, 4096], [8, 16, 0], 0.0, [100, 200, 4096]),  # rows of an unknown number
        ([7, 7], [0, 0], 0.0, [7, 7]),
    ],
)
def test_claimed_tokens_count_up_to_twice_the_median_of_a_row(tokens, rows, running, weights):
    assert capped_weights(tokens, rows, running) == weights
