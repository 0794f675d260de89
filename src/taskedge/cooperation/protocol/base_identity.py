"""Whether two machines hold the same base: a cooperative run adds up changes to it, so they must."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import torch
from torch import nn


def base_digest(model: nn.Module, whole: Collection[str]) -> str:
    """Hex BLAKE2b (96 bit) over names, shapes, dtypes and bytes of all parameters but those that train whole.

    Those are the head: every machine makes a fresh one, and the run sends its own. Taken before a support is installed.
    """
    total = hashlib.blake2b(digest_size=12)
    for name, parameter in model.named_parameters():
        total.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        if name not in whole:
            values = parameter.detach().cpu().contiguous().reshape(-1)
            total.update(values.view(torch.uint8).numpy().data)
    return total.hexdigest()
