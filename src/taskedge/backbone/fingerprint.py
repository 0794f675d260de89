"""Short fingerprints of weights: a delta is bound to the base that it was made on by them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import torch
from torch import Tensor, nn

DIGEST_BYTES = 12


def digest(values: Tensor) -> str:
    """Return the hex BLAKE2b (96 bit) of the values as little-endian fp32 bytes; order matters, shape does not.

    fp32 represents every bf16 and fp16 value exactly, so digests are equal only where the stored values are.
    """
    flat = values.detach().to(device="cpu", dtype=torch.float32).contiguous()
    return hashlib.blake2b(flat.numpy().tobytes(), digest_size=DIGEST_BYTES).hexdigest()


def base_digest(model: nn.Module, full_parameters: Collection[str]) -> str:
    """Return the hex BLAKE2b (96 bit) of all parameters outside ``full_parameters``: names, shapes, dtypes, bytes.

    Two machines with the same digest have the same base. Parameters in ``full_parameters`` (the head) count by name,
    shape and dtype only: each machine initializes its own, and a cooperative run sends its values. The model must not
    have a support installed.
    """
    total = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for name, parameter in model.named_parameters():
        total.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        if name not in full_parameters:
            values = parameter.detach().cpu().contiguous().reshape(-1)
            total.update(values.view(torch.uint8).numpy().data)
    return total.hexdigest()
