"""Random choices of a run as functions of its seed and of where in the run they are made: there is no state to save."""

from __future__ import annotations

import hashlib


def derive(*parts: int | str) -> int:
    """A seed of 63 bits from other numbers and names."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1
