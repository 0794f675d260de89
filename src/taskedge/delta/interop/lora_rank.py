"""The rank that a delta has as LoRA, and which ranks vLLM serves.

The entries of a linear in C distinct columns are exactly a product of rank C: one factor holds the differences, the
rows of the other are one-hot. Entries in fewer rows than columns are one of the number of rows. With a product beside
them, the ranks add up. Source: this project.
"""

from __future__ import annotations

import torch

from taskedge.delta.delta import Delta

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM accepts as its largest rank (``--max-lora-rank``). Source: ``MaxLoRARanks`` in ``vllm/config/lora.py``."""
VLLM_DEFAULT_RANK = 16


def lora_ranks(delta: Delta) -> dict[str, int]:
    """Return the lowest rank of an exact LoRA of each changed linear, by name; none if the delta has filters."""
    if delta.filters:
        return {}
    ranks = {
        name: min(len(torch.unique(linear.columns)), len(torch.unique(linear.rows)))
        for name, linear in delta.linears.items()
        if len(linear)
    }
    return ranks | {name: product.rank + ranks.get(name, 0) for name, product in delta.low_rank.items()}


def vllm_limit(rank: int) -> int | None:
    """Return the smallest ``--max-lora-rank`` of vLLM that serves a rank; None if there is none."""
    return next((limit for limit in VLLM_RANKS if limit >= rank), None)


def rank_text(ranks: dict[str, int]) -> str:
    """Return a line about the rank of an export and who serves it; empty if no linear is changed."""
    if not ranks:
        return ""
    rank, lowest = max(ranks.values()), min(ranks.values())
    own = f"rank {rank}" if lowest == rank else f"rank {rank} (the linears need {lowest} to {rank})"
    return f"{own}; {vllm_text(rank)}"


def vllm_text(rank: int) -> str:
    """Return what vLLM needs to serve a rank."""
    limit = vllm_limit(rank)
    if limit is None:
        return f"more than the {VLLM_RANKS[-1]} that vLLM serves"
    if limit <= VLLM_DEFAULT_RANK:
        return f"within vLLM's default limit of {VLLM_DEFAULT_RANK}"
    return f"vLLM needs --max-lora-rank {limit}"
