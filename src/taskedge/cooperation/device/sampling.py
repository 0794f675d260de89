"""Which rows a device trains on in a round: a function of the seed, the device and the round."""

from __future__ import annotations

import torch

from taskedge.training.seeds import derive


def rows_of_round(rows: int, wanted: int, round_number: int, seed: int) -> list[int]:
    """Which of a device's ``rows`` it trains on in a round (from 1), in order.

    Rounds take turns through seeded passes over the data, so every row is seen once before any is seen twice; a round
    that the device misses is left out, and changes no other.
    """
    start = (round_number - 1) * wanted
    passes = range(start // rows, (start + wanted - 1) // rows + 1)
    order = [place for number in passes for place in permutation(rows, derive(seed, number))]
    first = start - passes[0] * rows
    return order[first : first + wanted]


def permutation(count: int, seed: int) -> list[int]:
    """0 .. count-1 in a seeded order."""
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order
