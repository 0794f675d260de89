"""How a device's answer is coded: float32 as it is, or bfloat16 for half the bytes.

bfloat16 is float32 without its lower 16 bits: a number is off by at most 2^-8 of itself, and none overflows or vanishes
that float32 holds. So what is coded is always a gradient or a change, never a value: of a value that would be far more
than a step. Nothing is carried from one round to the next (no error feedback): the error is relative, so it shrinks
with what is sent, and the next answer is computed at the values that hold it. That keeps a device free of state, and a
resumed run equal to one that was not stopped, bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

UPLOADS = {"bfloat16": torch.bfloat16, "float32": torch.float32}
"""By name, what answers are sent as."""


def bytes_per_value(upload: str) -> int:
    """Of an answer."""
    return UPLOADS[upload].itemsize


def answer_kind(upload: str, local_steps: int) -> str:
    """What an answer holds: ``gradients``; after several steps new ``values``, or where these are coded ``changes``."""
    if local_steps == 1:
        return "gradients"
    return "values" if upload == "float32" else "changes"


def coded(kind: str, upload: str, trained: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an answer.

    Args:
        trained: float32 gradients, or new values.
        held: the values that training began with, of the same names at least.
    """
    if kind == "changes":
        trained = {name: tensor.double() - held[name].double() for name, tensor in trained.items()}
    return {name: tensor.to(UPLOADS[upload]) for name, tensor in trained.items()}


def decoded(kind: str, sent: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mirror image of :func:`coded`: float32 gradients, or new values."""
    if kind == "changes":
        return {name: (held[name].double() + tensor.double()).float() for name, tensor in sent.items()}
    return {name: tensor.float() for name, tensor in sent.items()}
