"""Number formats of stored weights: fixed point, and adaptive float. Values become codes of 2 to 16 bits and back.

Source: NVMExplorer (arXiv 2109.01188) for the two formats of stored weights; AdaptivFloat (arXiv 1909.13271) for the
float whose exponent bias is chosen for each tensor.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from taskedge.errors import InputError

_NAME = re.compile(r"(fixed|adaptive):(\d+)\.(\d+)")


class NumberFormat(Protocol):
    """Codes of one tensor: int64, each of ``bits`` bits."""

    @property
    def bits(self) -> int:
        """Bits of a code."""

    def encode(self, values: Tensor) -> Tensor:
        """Return the code int64 [n] of the nearest value that the format has."""

    def decode(self, codes: Tensor) -> Tensor:
        """Return the values float32 [n] of codes."""


@dataclass(frozen=True)
class FixedPoint:
    """Two's complement with ``fraction_bits`` bits after the point; values beyond the range take its end."""

    integer_bits: int
    fraction_bits: int

    @property
    def bits(self) -> int:
        """Bits of a code; the sign is one of the integer bits."""
        return self.integer_bits + self.fraction_bits

    def encode(self, values: Tensor) -> Tensor:
        """Return codes int64 [n]."""
        half = 2 ** (self.bits - 1)
        steps = (values.double() * 2**self.fraction_bits).round().clamp(-half, half - 1)
        codes: Tensor = steps.long() & (2**self.bits - 1)
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """Return values float32 [n]."""
        half = 2 ** (self.bits - 1)
        signed = torch.where(codes >= half, codes - 2 * half, codes)
        values: Tensor = signed.double() / 2**self.fraction_bits
        return values.float()


@dataclass(frozen=True)
class AdaptiveFloat:
    """A float of sign, exponent and mantissa without infinities; its smallest code is 0.

    Attributes:
        bits: of a code.
        exponent_bits: of them, for the exponent.
        bias: added to the exponent, so that the largest value of the tensor is in range.
    """

    bits: int
    exponent_bits: int
    bias: int

    @classmethod
    def fitted(cls, values: Tensor, bits: int, exponent_bits: int) -> AdaptiveFloat:
        """Return the format whose largest binade holds the largest value of a tensor."""
        largest = float(values.abs().max()) if values.numel() else 0.0
        top = int(torch.frexp(torch.tensor(largest, dtype=torch.float64)).exponent) - 1 if largest else 0
        return cls(bits, exponent_bits, top - (2**exponent_bits - 1))

    @property
    def mantissa_bits(self) -> int:
        """Bits after the leading 1."""
        return self.bits - 1 - self.exponent_bits

    def encode(self, values: Tensor) -> Tensor:
        """Return codes int64 [n]: sign, then exponent, then mantissa."""
        steps = 2**self.mantissa_bits
        magnitude = values.double().abs()
        exponent = torch.where(magnitude > 0, torch.frexp(magnitude).exponent.long() - 1, self.bias)
        exponent = exponent.clamp(min=self.bias)
        scaled = (
            (torch.ldexp(magnitude, -exponent.double()) * steps).round().long()
        )  # steps .. 2·steps, less below the range
        code = (exponent - self.bias) * steps + scaled - steps
        lowest = 2.0**self.bias * (1 + 1 / steps)
        code = torch.where(scaled <= steps, torch.where(exponent == self.bias, 0, code), code)
        code = torch.where((magnitude >= lowest / 2) & (code < 1), 1, code).clamp(0, 2 ** (self.bits - 1) - 1)
        signed: Tensor = code + (values < 0) * (code > 0) * 2 ** (self.bits - 1)
        return signed

    def decode(self, codes: Tensor) -> Tensor:
        """Return values float32 [n]."""
        steps = 2**self.mantissa_bits
        magnitude = codes % 2 ** (self.bits - 1)
        exponent = torch.div(magnitude, steps, rounding_mode="floor")
        value = torch.ldexp(1 + (magnitude % steps).double() / steps, (exponent + self.bias).double())
        value = torch.where(magnitude == 0, 0.0, value)
        return torch.where(codes >= 2 ** (self.bits - 1), -value, value).float()


def format_for(name: str, values: Tensor) -> NumberFormat:
    """Return the format of one tensor.

    Args:
        name: ``fixed:I.F`` (I integer bits with the sign, F fraction bits) or ``adaptive:N.E`` (N bits, E of them for
            the exponent).
        values: the tensor, to which an adaptive float is fitted.

    Raises:
        InputError: the name has another form, or a number of bits that is out of range.
    """
    kind, first, second = parse_format(name)
    return FixedPoint(first, second) if kind == "fixed" else AdaptiveFloat.fitted(values, first, second)


def parse_format(name: str) -> tuple[str, int, int]:
    """Return (kind, first number, second number) of the name of a format.

    Raises:
        InputError: see :func:`format_for`.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(
            f"number format {name!r}: write fixed:2.6 (integer.fraction bits) or adaptive:8.3 (bits.exponent)"
        )
    kind, first, second = match[1], int(match[2]), int(match[3])
    bits = first + second if kind == "fixed" else first
    if not 2 <= bits <= 16 or first < 1 or (kind == "adaptive" and not 1 <= second <= min(bits - 2, 5)):
        raise InputError(
            f"number format {name!r}: values have 2 to 16 bits, an exponent 1 to 5 and a mantissa at least 1"
        )
    return kind, first, second
