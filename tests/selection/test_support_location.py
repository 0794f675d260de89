"""Where supports lie: shares by block and kind, and overlaps, against counts by hand."""

from __future__ import annotations

import json

import pytest
import torch

from taskedge.selection.support_location import (
    SupportLocation,
    block_and_kind,
    location_values,
    ordered_blocks,
    share_by_block,
    support_overlaps,
)

SHAPES = {"m.layer.0.query": (4, 5), "m.layer.0.key": (4, 5), "m.layer.1.query": (2, 10)}


def location(name, **flat):
    entries = {f"m.layer.{key[1]}.{key[2:]}": torch.tensor(values) for key, values in flat.items()}
    return SupportLocation(name, {linear: SHAPES[linear] for linear in entries}, entries)


ONE = location("one", b0query=[0, 3, 7, 11], b0key=[2], b1query=[1, 2])
OTHER = location("other", b0query=[3, 7, 8], b1query=[0, 19])


def test_shares_by_block_and_kind():
    assert len(ONE) == 7
    assert share_by_block(ONE) == {"m.layer.0": {"query": 0.2, "key": 0.05}, "m.layer.1": {"query": 0.1}}


def test_the_overlap_is_counted_and_compared_with_chance():
    (pair,) = support_overlaps([ONE, OTHER])
    assert (pair.first, pair.second, pair.shared, pair.share) == ("one", "other", 2, 0.4)
    assert pair.by_chance == pytest.approx((4 * 3 / 20 + 2 * 2 / 20) / 5)
    assert pair.by_block == {"m.layer.0": {"query": 2 / 3, "key": 0.0}, "m.layer.1": {"query": 0.0}}


def test_chance_is_the_mean_over_random_supports():
    generator = torch.Generator().manual_seed(0)

    def drawn(name):
        flat = {linear: torch.randperm(20, generator=generator)[:6].sort().values for linear in SHAPES}
        return SupportLocation(name, SHAPES, flat)

    pairs = [support_overlaps([drawn("a"), drawn("b")])[0] for _ in range(300)]
    mean = sum(pair.share for pair in pairs) / len(pairs)
    assert all(pair.by_chance == pytest.approx(0.3) for pair in pairs)
    assert abs(mean - 0.3) < 0.02


def test_a_support_overlaps_itself_in_full():
    (pair,) = support_overlaps([ONE, ONE])
    assert pair.share == 1.0
    assert all(share == 1.0 for kinds in pair.by_block.values() for share in kinds.values())


def test_plain_values():
    values = json.loads(json.dumps(location_values([ONE, OTHER, ONE])))
    assert [one["entries"] for one in values["supports"]] == [7, 5, 7]
    assert [(pair["first"], pair["second"]) for pair in values["overlaps"]] == [
        ("one", "other"),
        ("one", "one"),
        ("other", "one"),
    ]


def test_blocks_are_ordered_by_number():
    assert ordered_blocks(["a.layer.10", "a.layer.2", "a.layer.10", "a.layer.0"]) == [
        "a.layer.0",
        "a.layer.2",
        "a.layer.10",
    ]
    assert block_and_kind("a.layer.3.output.dense") == ("a.layer.3", "output.dense")
    assert block_and_kind("head") == ("head", "head")
