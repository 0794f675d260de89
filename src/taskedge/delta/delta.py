"""The delta: a trained change, bound to the base that it was trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from taskedge.errors import DeltaError

WHOLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What a parameter that was trained whole can be."""


@dataclass(frozen=True)
class LinearDelta:
    """The trained entries of one linear.

    Attributes:
        shape: (out, in) of the weight.
        rows, columns: int64 [n], sorted by row and then column.
        values: float32 [n], absolute: they replace the base's.
        base_dtype: of the weight it was trained on, such as ``"float32"``.
        base_digest: digest of the base's values at the entries (:func:`taskedge.backbone.fingerprint.digest`).
    """

    shape: tuple[int, int]
    rows: Tensor
    columns: Tensor
    values: Tensor
    base_dtype: str
    base_digest: str

    def check(self, name: str) -> None:
        """Raises DeltaError where the entries contradict themselves; ``name`` is for the message."""
        out, inputs = self.shape
        if not len(self.rows) == len(self.columns) == len(self.values):
            raise DeltaError(
                f"linear {name!r}: {len(self.rows)} rows, {len(self.columns)} columns and {len(self.values)} values"
            )
        if not len(self.rows):
            return
        if int(self.rows.min()) < 0 or int(self.rows.max()) >= out:
            raise DeltaError(f"linear {name!r}: a row index is outside 0..{out - 1}")
        if int(self.columns.min()) < 0 or int(self.columns.max()) >= inputs:
            raise DeltaError(f"linear {name!r}: a column index is outside 0..{inputs - 1}")
        if bool(((self.rows * inputs + self.columns).diff() <= 0).any()):
            raise DeltaError(f"linear {name!r}: entries are not sorted, or one is there twice")
        if not bool(torch.isfinite(self.values).all()):
            raise DeltaError(f"linear {name!r}: a value is not a finite number")

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class LowRankDelta:
    """A low-rank product that is added to one linear's weight W [out, in]: ``W + scale·BA``.

    Attributes:
        a: float32 [rank, in].
        b: float32 [out, rank].
        scale: what the product is multiplied by: alpha/r in LoRA.
        base_dtype: of the weight it was trained on, such as ``"float32"``.
        base_digest: digest of that whole weight, row by row (:func:`taskedge.backbone.fingerprint.digest`).
    """

    a: Tensor
    b: Tensor
    scale: float
    base_dtype: str
    base_digest: str

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""
        return len(self.b), self.a.shape[1]

    @property
    def rank(self) -> int:
        """Rows of A."""
        return len(self.a)

    @property
    def numbers(self) -> int:
        """How many numbers the two factors hold."""
        return self.a.numel() + self.b.numel()

    def check(self, name: str) -> None:
        """Raises DeltaError where the factors contradict themselves; ``name`` is for the message."""
        sizes = *self.a.shape, *self.b.shape
        if len(self.a.shape) != 2 or len(sizes) != 4 or min(sizes) < 1 or sizes[0] != sizes[3]:
            raise DeltaError(
                f"linear {name!r}: factors of {list(self.a.shape)} and {list(self.b.shape)}, where [rank, in] and "
                "[out, rank] were expected"
            )
        if not math.isfinite(self.scale):
            raise DeltaError(f"linear {name!r}: its product is scaled by {self.scale}")
        for factor in (self.a, self.b):
            if factor.dtype != torch.float32:
                raise DeltaError(f"linear {name!r}: a factor is {factor.dtype}, not float32")
            if not bool(torch.isfinite(factor).all()):
                raise DeltaError(f"linear {name!r}: a factor holds a value that is not a finite number")


@dataclass(frozen=True)
class Provenance:
    """How a delta came to be: what a person or a program must know to use it again."""

    rule: str = "given"
    allocation: str = "given"
    budget: str = ""
    base: str = ""
    """Hub id or folder name of the base, as a hint: what binds is the digest."""
    base_parameters: int = 0
    task: str = ""
    """Such as ``"text-classification"``; empty where taskedge does not know."""
    labels: tuple[str, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    """Settings of the training run."""


@dataclass(frozen=True)
class Delta:
    """Support, trained values, low-rank products, and the parameters that were trained whole (the head).

    Checked when it is made: a delta that exists is sound in itself.
    """

    linears: dict[str, LinearDelta]
    whole: dict[str, Tensor] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    low_rank: dict[str, LowRankDelta] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, linear in self.linears.items():
            linear.check(name)
        for name, product in self.low_rank.items():
            product.check(name)
            if name in self.linears or f"{name}.weight".removeprefix(".") in self.whole:
                raise DeltaError(f"linear {name!r} is changed in two ways: by a low-rank product, and otherwise")
        for name, tensor in self.whole.items():
            if tensor.dtype not in WHOLE:
                raise DeltaError(f"parameter {name!r} is {tensor.dtype}, not floating point of 16, 32 or 64 bits")
            if not bool(torch.isfinite(tensor).all()):
                raise DeltaError(f"parameter {name!r}: a value is not a finite number")

    @cached_property
    def entries(self) -> int:
        """How many of the base's weights are replaced."""
        return sum(len(linear) for linear in self.linears.values())

    @property
    def low_rank_parameters(self) -> int:
        """How many numbers the low-rank products hold: counted apart from the entries."""
        return sum(product.numbers for product in self.low_rank.values())

    @property
    def whole_parameters(self) -> int:
        """How many numbers were trained whole, the head's: counted apart from the entries."""
        return sum(tensor.numel() for tensor in self.whole.values())

    def with_provenance(self, **changes: Any) -> Delta:
        """The same delta with some of its provenance replaced."""
        return replace(self, provenance=replace(self.provenance, **changes))

    def save(self, path: str | Path, *, values: Literal["fp32", "bf16"] = "fp32", head: bool = True) -> Path:
        """Writes the delta as one safetensors file (docs/delta-format.md); written aside, then renamed.

        Args:
            path: where to; a file that is there is replaced.
            values: how entries and low-rank factors are stored. ``"bf16"`` halves them and rounds.
            head: whether the whole parameters go in too.
        """
        from taskedge.delta.file import save

        return save(self, Path(path), values=values, head=head)
