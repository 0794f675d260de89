"""Quantize a device's answer: float8 or bfloat16 for a quarter or half of the bytes, or float32 unchanged.

Only gradients and changes are quantized, never values: the error of a value would be far more than a step.

- ``bfloat16`` is float32 without its lower 16 bits. The relative error of a number is at most 2^-8.
- ``float8`` (e4m3) has a relative error of at most 2^-4, and a fixed absolute error for numbers below 2^-14.8 of their
  tensor's largest. Each tensor has a scale, sent beside it, that maps its largest number to the format's largest.
  Errors are relative to each entry of a gradient. That suits Adam, whose steps do not depend on the size of a gradient,
  and the errors are small beside the noise of a batch.

There is no error feedback from one round to the next: the error is relative, so it shrinks with the change, and the
next answer is computed at the values that contain it. A device therefore keeps no quantization state, and a resumed run
reproduces the bits of an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from taskedge.cooperation.protocol.flat_tensors import flatten, layout_of

UPLOAD_DTYPES = {"float8": torch.float8_e4m3fn, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""Dtypes that answers can be sent in, by name."""
SCALES = "/scales"
"""Name of the tensor of float8 scales, which no parameter has: float32, one per tensor in the order of names."""
_MAX_FLOAT8 = torch.finfo(torch.float8_e4m3fn).max
_MIN_SCALE = torch.finfo(torch.float32).tiny


def bytes_per_value(upload: str) -> int:
    """Return the bytes of one value in an answer."""
    return UPLOAD_DTYPES[upload].itemsize


def answer_kind(upload: str, local_steps: int) -> str:
    """Return the kind of an answer: ``gradients`` after one step, else ``values``, or ``changes`` if quantized."""
    if local_steps == 1:
        return "gradients"
    return "values" if upload == "float32" else "changes"


def answer_layout(upload: str, shapes: Mapping[str, torch.Size]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Return dtype and shape of every tensor in an answer for trained names of these shapes."""
    layout = {name: (UPLOAD_DTYPES[upload], shape) for name, shape in shapes.items()}
    if upload == "float8":
        layout[SCALES] = (torch.float32, torch.Size([len(shapes)]))
    return layout


def quantize(kind: str, upload: str, trained: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an answer.

    Args:
        kind: See :func:`answer_kind`.
        upload: A key of ``UPLOAD_DTYPES``.
        trained: float32 gradients, or new values.
        base: The values that training began with, at least those of the trained names.
    """
    if kind == "changes":
        trained = {name: tensor.double() - base[name].double() for name, tensor in trained.items()}
    if upload != "float8":
        return {name: tensor.to(UPLOAD_DTYPES[upload]) for name, tensor in trained.items()}
    names = sorted(trained)
    scales = torch.stack([_scale(trained[name]) for name in names])
    quantized = {
        name: (trained[name].double() / scale.double()).float().to(UPLOAD_DTYPES[upload])
        for name, scale in zip(names, scales, strict=True)
    }
    return quantized | {SCALES: scales}


def dequantize(kind: str, quantized: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Invert :func:`quantize`: return float32 gradients, or new values."""
    answer = QuantizedAnswer(kind, quantized, base)
    return answer.layout.split(answer.flat())


class QuantizedAnswer(Mapping[str, Tensor]):
    """The tensors of an answer, kept as they were sent and dequantized at each access, to float32.

    A coordinator can so hold the answers of a round in a quarter of their float32 bytes, and in one tensor each.

    Args:
        kind: See :func:`answer_kind`.
        quantized: See :func:`quantize`. All but the scales have one dtype.
        base: The values that training began with. They must stay as they are.

    Attributes:
        layout: Sorted names, and shapes.
    """

    def __init__(self, kind: str, quantized: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> None:
        self.layout = layout_of(quantized, sorted(quantized.keys() - {SCALES}))
        self._sent = flatten(quantized[name] for name in self.layout.names)
        self._scales = quantized[SCALES].clone() if SCALES in quantized else None
        self._base = base if kind == "changes" else None

    def flat(self) -> Tensor:
        """Return float32 gradients or new values, one tensor behind the other by ``layout``."""
        if self._scales is None and self._base is None:
            return self._sent.float()
        flat = self._sent.double()
        if self._scales is not None:
            flat = flat * self._scales.double().repeat_interleave(self.layout.counts)
        if self._base is not None:
            flat = flatten(self._base[name] for name in self.layout.names).double() + flat
        return flat.float()

    def __getitem__(self, name: str) -> Tensor:
        """Return one tensor, float32."""
        index, start, end = self.layout.places[name]
        tensor = self._sent[start:end].double().view(self.layout.shapes[index])
        if self._scales is not None:
            tensor = tensor * self._scales[index].double()
        if self._base is not None:
            tensor = self._base[name].double() + tensor
        return tensor.float()

    def __iter__(self) -> Iterator[str]:
        """Return an iterator over the names."""
        return iter(self.layout.names)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self.layout.names)


def _scale(tensor: Tensor) -> Tensor:
    """Return the float32 value of a quantized 1; not finite if the tensor is not."""
    largest = tensor.abs().max() if tensor.numel() else torch.zeros(())
    return (largest.double() / _MAX_FLOAT8).clamp_min(_MIN_SCALE).float()
