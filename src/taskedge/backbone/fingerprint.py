"""Short fingerprints of base values, so that a delta knows the base it was made on."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

DIGEST_BYTES = 12


def digest(values: Tensor) -> str:
    """Hex BLAKE2b (96 bit) of the values as little-endian fp32 bytes; order matters, shape does not.

    fp32 holds every bf16 and fp16 value exactly, so two bases agree only where their stored values do.
    """
    flat = values.detach().to(device="cpu", dtype=torch.float32).contiguous()
    return hashlib.blake2b(flat.numpy().tobytes(), digest_size=DIGEST_BYTES).hexdigest()
