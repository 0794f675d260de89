"""The rank of an export is the number of distinct columns, or rows, that a linear's entries are in."""

from __future__ import annotations

import pytest
import tiny
import torch

import taskedge as te
from taskedge.delta.interop.lora_rank import VLLM_RANKS, lora_ranks, rank_text, vllm_limit


@pytest.mark.parametrize("options", [{"columns": 3}, {"per_neuron": 1}, {"budget": "2%", "allocation": "global"}])
def test_it_is_the_rank_of_the_change(options):
    """The rank of a matrix of random numbers at the entries: no smaller product is exact."""
    model = tiny.bert()
    te.install(model, te.select(model, [tiny.batch(model)], **options))
    delta = te.extract(tiny.train(model))
    ranks = lora_ranks(delta)
    assert ranks.keys() == {name for name, linear in delta.linears.items() if len(linear)}
    for name, rank in ranks.items():
        entries = delta.linears[name]
        change = torch.zeros(entries.shape, dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        change[entries.rows, entries.columns] = torch.randn(len(entries), generator=generator, dtype=torch.float64)
        assert int(torch.linalg.matrix_rank(change)) <= rank
        if "columns" in options:
            assert rank == 3 == int(torch.linalg.matrix_rank(change))


def test_what_vllm_serves_is_named():
    assert [vllm_limit(rank) for rank in (1, 2, 16, 17, 512, 513)] == [1, 8, 16, 32, 512, None]
    assert rank_text({}) == ""
    assert rank_text({"a": 4, "b": 4}) == "rank 4; within vLLM's default limit of 16"
    assert rank_text({"a": 4, "b": 20}) == "rank 20 (the linears need 4 to 20); vLLM needs --max-lora-rank 32"
    assert rank_text({"a": VLLM_RANKS[-1] + 1}).endswith("more than the 512 that vLLM serves")
