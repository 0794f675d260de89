"""Random choices of a run as functions of its seed and of their place in the run, so that there is no state to save."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """Return a seed of 63 bits that follows from numbers and names."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def random_order(num_rows: int, seed: int) -> list[int]:
    """Return the row indices in the random order of a seed."""
    return torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed)).tolist()


def epoch_order(num_rows: int, seed: int, epoch: int) -> list[int]:
    """Return the row indices in the order of one epoch, the order of ``accelerate``'s ``SeedableRandomSampler``."""
    return random_order(num_rows, seed + epoch)
