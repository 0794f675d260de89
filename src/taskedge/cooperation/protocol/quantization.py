"""How a device's answer is coded: float8 or bfloat16 for a quarter or half of the bytes, or float32 as it is.

What is coded is always a gradient or a change, never a value: of a value an error would be far more than a step.

- ``bfloat16`` is float32 without its lower 16 bits: a number is off by at most 2^-8 of itself.
- ``float8`` (e4m3) is off by at most 2^-4 of itself, and numbers below 2^-14.8 of their tensor's largest by a fixed
  amount; each tensor has a scale, sent beside it, that puts its largest number at the format's largest. Errors are of a
  gradient's own size entry by entry, which suits Adam, whose steps do not depend on that size; they are small beside
  the noise of a batch.

Nothing is carried from one round to the next (no error feedback): the error is relative, so it shrinks with what is
sent, and the next answer is computed at the values that hold it. That keeps a device free of state, and a resumed run
equal to one that was not stopped, bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

UPLOADS = {"float8": torch.float8_e4m3fn, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""By name, what answers are sent as."""
SCALES = "/scales"
"""Where float8 keeps the scales: float32, one for each tensor in the order of their names; no parameter's."""
_LARGEST = torch.finfo(torch.float8_e4m3fn).max
_LEAST_SCALE = torch.finfo(torch.float32).tiny


def bytes_per_value(upload: str) -> int:
    """Of an answer."""
    return UPLOADS[upload].itemsize


def answer_kind(upload: str, local_steps: int) -> str:
    """What an answer holds: ``gradients``; after several steps new ``values``, or where these are coded ``changes``."""
    if local_steps == 1:
        return "gradients"
    return "values" if upload == "float32" else "changes"


def layout(upload: str, shapes: Mapping[str, torch.Size]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Dtype and shape of every tensor that an answer with these trained names holds."""
    sent = {name: (UPLOADS[upload], shape) for name, shape in shapes.items()}
    return sent | ({SCALES: (torch.float32, torch.Size([len(shapes)]))} if upload == "float8" else {})


def coded(kind: str, upload: str, trained: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an answer.

    Args:
        trained: float32 gradients, or new values.
        held: the values that training began with, of the same names at least.
    """
    if kind == "changes":
        trained = {name: tensor.double() - held[name].double() for name, tensor in trained.items()}
    if upload != "float8":
        return {name: tensor.to(UPLOADS[upload]) for name, tensor in trained.items()}
    names = sorted(trained)
    scales = torch.stack([_scale(trained[name]) for name in names])
    sent = {
        name: (trained[name].double() / scale.double()).float().to(UPLOADS[upload])
        for name, scale in zip(names, scales, strict=True)
    }
    return sent | {SCALES: scales}


def decoded(kind: str, sent: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mirror image of :func:`coded`: float32 gradients, or new values."""
    names = sorted(sent.keys() - {SCALES})
    scales = sent[SCALES].double() if SCALES in sent else torch.ones(len(names), dtype=torch.float64)
    read = {name: sent[name].double() * scale for name, scale in zip(names, scales, strict=True)}
    if kind == "changes":
        read = {name: held[name].double() + change for name, change in read.items()}
    return {name: tensor.float() for name, tensor in read.items()}


def _scale(tensor: Tensor) -> Tensor:
    """float32: what 1 stands for; not finite where the tensor is not."""
    largest = tensor.abs().max() if tensor.numel() else torch.zeros(())
    return (largest.double() / _LARGEST).clamp_min(_LEAST_SCALE).float()
