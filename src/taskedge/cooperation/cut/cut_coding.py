"""How activations and their gradients are written as bytes: a matrix [tokens, k], a row for each token.

- ``fp32``: 4 bytes a number, exact.
- ``bf16``: 2 bytes a number; the relative error is at most 2^-8.
- ``float8`` (e4m3): 1 byte a number and a scale a token that maps its largest number to the format's largest, 448. The
  relative error is at most 2^-4, and numbers below 2^-14.8 of the token's largest have a fixed absolute error.
- ``int8``: 1 byte a number and a scale a token; the absolute error is at most 1/254 of the token's largest number.

Scales stand before the numbers, as float32. All is little-endian. Numbers that are not finite are refused at both ends.

Source: this project; a scale for each token as in LLM.int8() (arXiv 2208.07339) and ZeroQuant (arXiv 2206.01861).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from taskedge.errors import InputError, UnknownName

DEFAULT_CODING = "fp32"


@dataclass(frozen=True)
class _Coding:
    """How one number is stored.

    Attributes:
        dtype: of the stored number.
        largest: what the largest number of a token is mapped to; 0 without a scale.
        stored: maps numbers that are divided by their scale to the dtype.
    """

    dtype: torch.dtype
    largest: float = 0.0
    stored: Callable[[Tensor], Tensor] = lambda numbers: numbers


_FLOAT8, _INT8 = torch.float8_e4m3fn, torch.int8
_CODINGS = {
    "fp32": _Coding(torch.float32),
    "bf16": _Coding(torch.bfloat16),
    "float8": _Coding(_FLOAT8, torch.finfo(_FLOAT8).max),
    "int8": _Coding(_INT8, torch.iinfo(_INT8).max, torch.round),
}
CODINGS = tuple(_CODINGS)
"""Names of the codings."""


def coded_bytes(shape: tuple[int, int], coding: str) -> int:
    """Return the bytes of a matrix [tokens, k].

    Raises:
        UnknownName: there is no coding of that name.
    """
    way = _way(coding)
    tokens, width = shape
    return tokens * width * way.dtype.itemsize + (4 * tokens if way.largest else 0)


def encode(tensor: Tensor, coding: str) -> bytes:
    """Return a matrix [tokens, k] as bytes.

    Raises:
        InputError: it is no matrix, or a number is not finite, or too large for the coding.
        UnknownName: there is no coding of that name.
    """
    way = _way(coding)
    if tensor.dim() != 2 or not tensor.is_floating_point():
        raise InputError(f"{tensor.dtype} {list(tensor.shape)} is no matrix of tokens: give floats [tokens, k]")
    numbers = tensor.detach().to("cpu", torch.float32)
    _refuse_not_finite(numbers, "to send")
    if not way.largest:
        stored = numbers.to(way.dtype)
        if way.dtype != torch.float32:
            _refuse_not_finite(stored, f"in {coding}")
        return _bytes(stored)
    scales = torch.ones(len(numbers))
    if numbers.shape[1]:
        scales = (numbers.abs().amax(1) / way.largest).clamp_min(torch.finfo(torch.float32).tiny)
    _refuse_not_finite(scales[:, None] * way.largest, f"in {coding}")  # what a rounded scale brings back
    scaled = (numbers / scales[:, None]).clamp(-way.largest, way.largest)
    return _bytes(scales) + _bytes(way.stored(scaled).to(way.dtype))


def decode(content: bytes, shape: tuple[int, int], coding: str) -> Tensor:
    """Return the matrix float32 [tokens, k] in these bytes.

    Raises:
        InputError: their number is another than that of the shape, or a number or a scale is not finite.
        UnknownName: there is no coding of that name.
    """
    way = _way(coding)
    tokens, width = shape
    expected = coded_bytes(shape, coding)
    if tokens < 0 or width < 0 or len(content) != expected:
        raise InputError(f"{len(content):,} bytes where {expected:,} were expected, for {list(shape)} in {coding}")
    of_scales = 4 * tokens if way.largest else 0
    numbers = _tensor(content[of_scales:], way.dtype).view(shape).float()
    if of_scales:
        scales = _tensor(content[:of_scales], torch.float32)
        if bool((scales <= 0).any()):
            raise InputError(f"a scale of {float(scales.min()):g}: every scale of {coding} is above 0")
        numbers = numbers * scales[:, None]
    _refuse_not_finite(numbers, "that came")
    return numbers


def _way(coding: str) -> _Coding:
    if coding not in _CODINGS:
        raise UnknownName("coding", coding, CODINGS)
    return _CODINGS[coding]


def _refuse_not_finite(numbers: Tensor, where: str) -> None:
    finite = torch.isfinite(numbers.float())
    if not bool(finite.all()):
        token, place = (~finite).nonzero()[0].tolist()
        raise InputError(
            f"{int((~finite).sum()):,} of the {finite.numel():,} numbers {where} are not finite, that of token "
            f"{token}, place {place} first: lower the learning rate, or take another coding"
        )


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def _tensor(content: bytes, dtype: torch.dtype) -> Tensor:
    if not content:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(dtype)
