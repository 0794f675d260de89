"""Joining blocks of a table adds their costs up and keeps the rest."""

import numpy as np
import pytest
from shapes import table


def test_joined_blocks_have_the_sums_of_their_parts():
    blocks = table(5)
    joined = blocks.merged([2, 2, 1])
    assert len(joined) == 3
    assert joined.layers == (blocks.layers[0] + blocks.layers[1], blocks.layers[2] + blocks.layers[3], blocks.layers[4])
    for name in ("parameters", "forward_flops", "backward_flops", "activation_bytes", "payload_values"):
        before, after = getattr(blocks, name), getattr(joined, name)
        assert after == pytest.approx([before[0] + before[1], before[2] + before[3], before[4]])
    for name in ("other_forward_flops", "base_bytes", "sequence_tokens", "model", "digest"):
        assert getattr(joined, name) == getattr(blocks, name)


def test_depth_counts_layers_and_not_blocks():
    joined = table(5).merged([2, 2, 1])
    assert joined.layers_per_block.tolist() == [2, 2, 1]
    assert joined.deepest_layer.tolist() == [2, 4, 5]
    assert np.array_equal(table(3).deepest_layer, [1, 2, 3])
