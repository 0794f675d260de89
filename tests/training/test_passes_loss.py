"""The loss of a step in several passes is that of one pass over the same rows."""

from __future__ import annotations

import pytest
import tiny
import torch

from taskedge.training.passes_loss import PassesLoss


@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2], ids=lambda make: make.__name__)
def test_unequal_passes_sum_to_the_loss_of_the_whole_batch(make):
    model = make().eval()
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(1, tiny.VOCABULARY, (5, 6), generator=draw)
    labels = torch.arange(5) % tiny.LABELS
    losses = PassesLoss(model)

    def loss_of(*parts):
        batches = [{"input_ids": ids[part], "labels": labels[part]} for part in parts]
        losses.begin_step(batches)
        return sum(losses(batch) for batch in batches)

    torch.testing.assert_close(loss_of(slice(0, 4), slice(4, 5)), loss_of(slice(0, 5)))
