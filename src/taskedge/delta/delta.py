"""The delta: a trained change of a model, bound to the base that it was trained on. Plain, validated data."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from taskedge.delta.filter_delta import FilterDelta
from taskedge.delta.gated_rows import GatedRows
from taskedge.delta.prompt_delta import PromptDelta
from taskedge.errors import DeltaError, InputError, did_you_mean

FULL_PARAMETER_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Dtypes of parameters that are trained in full."""
CLOSED_LAYERS = "closed_layers"
"""Item of the training settings of a delta from gates on layers: names of the layers whose gates are closed."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class LinearDelta:
    """The trained entries of one linear.

    Attributes:
        shape: (out, in) of the weight.
        rows, columns: int64 [n], sorted by row and then column.
        values: float32 [n], absolute: they replace the values of the base.
        base_dtype: dtype of the base's weight, such as ``"float32"``.
        base_digest: digest of the base's values at the entries (:func:`taskedge.backbone.fingerprint.digest`).
    """

    shape: tuple[int, int]
    rows: Tensor
    columns: Tensor
    values: Tensor
    base_dtype: str
    base_digest: str

    def check(self, name: str) -> None:
        """Raise DeltaError if the entries contradict themselves; ``name`` is the linear's, for the message."""
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
            raise DeltaError(f"linear {name!r}: entries are not sorted, or one occurs twice")
        if not bool(torch.isfinite(self.values).all()):
            raise DeltaError(f"linear {name!r}: a value is not a finite number")

    @cached_property
    def positions(self) -> Tensor:
        """Position of each entry in the flat weight, int64 [n]."""
        return self.rows * self.shape[1] + self.columns

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class LowRankDelta:
    """A low-rank product that is added to one linear's weight W [out, in]: ``W + scale·BA``.

    Attributes:
        a: float32 [rank, in].
        b: float32 [out, rank].
        scale: factor of the product: alpha/r in LoRA.
        base_dtype: dtype of the base's weight, such as ``"float32"``.
        base_digest: digest of that weight, row by row (:func:`taskedge.backbone.fingerprint.digest`).
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
        """Rank of the product: rows of A."""
        return len(self.a)

    @property
    def num_parameters(self) -> int:
        """Numbers in both factors."""
        return self.a.numel() + self.b.numel()

    def check(self, name: str) -> None:
        """Raise DeltaError if the factors contradict themselves; ``name`` is the linear's, for the message."""
        sizes = *self.a.shape, *self.b.shape
        if len(self.a.shape) != 2 or len(sizes) != 4 or min(sizes) < 1 or sizes[0] != sizes[3]:
            raise DeltaError(
                f"linear {name!r}: factors of shape {list(self.a.shape)} and {list(self.b.shape)}; [rank, in] and "
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
    """How a delta was made, and what a program needs to use it.

    Attributes:
        rule, allocation, budget: how the entries were selected.
        base: hub id or folder name of the base. A hint: the digests bind a delta to its base.
        base_parameters: number of parameters of the base.
        task: kind of task, such as ``"text-classification"``; empty if unknown.
        labels: classes in the order of the head's outputs.
        training: settings of the training run, JSON-able.
    """

    rule: str = "given"
    allocation: str = "given"
    budget: str = ""
    base: str = ""
    base_parameters: int = 0
    task: str = ""
    labels: tuple[str, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Head:
    """The part of a delta for several tasks that only one task has.

    Attributes:
        full_parameters: parameters of the task's head, by name.
        provenance: the task, its labels, and how it was trained.
        gated: rows in which the task has entries of its own instead of the shared ones, by linear.
    """

    full_parameters: dict[str, Tensor]
    provenance: Provenance
    gated: dict[str, GatedRows] = field(default_factory=dict)


@dataclass(frozen=True)
class Delta:
    """A trained change. It is validated when it is created, so an existing delta is consistent.

    Attributes:
        linears: trained entries, by linear.
        full_parameters: parameters that were trained in full (the head), by name.
        provenance: how the delta was made.
        low_rank: low-rank products, by linear. They are added to weights that have their entries already.
        heads: of a delta for several tasks, by the task's name; :meth:`with_head` returns the delta for one of them.
        filters: of low-rank products that have one, by linear. Such a product is not added to the weight.
        prompt: a soft prompt; a delta with one changes no weight but those of its head.
    """

    linears: dict[str, LinearDelta]
    full_parameters: dict[str, Tensor] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    low_rank: dict[str, LowRankDelta] = field(default_factory=dict)
    heads: dict[str, Head] = field(default_factory=dict)
    filters: dict[str, FilterDelta] = field(default_factory=dict)
    prompt: PromptDelta | None = None

    def __post_init__(self) -> None:
        for name, linear in self.linears.items():
            linear.check(name)
        for name, product in self.low_rank.items():
            product.check(name)
            if f"{name}.weight".removeprefix(".") in self.full_parameters:
                raise DeltaError(f"linear {name!r} is changed in two ways: by a low-rank product, and in full")
            if name in self.linears:
                self._check_both(name, self.linears[name], product)
        for name, one in self.filters.items():
            if name not in self.low_rank or self.heads:
                raise DeltaError(f"linear {name!r} has a filter, but no low-rank product, or the delta has heads")
            one.check(name, self.low_rank[name].shape[0])
        if self.prompt is not None:
            if self.linears or self.low_rank or self.heads:
                raise DeltaError("a delta has a soft prompt, and entries, products or heads beside it")
            self.prompt.check()
        _check_full_parameters(self.full_parameters)
        for name, head in self.heads.items():
            check_name("head", name)
            _check_full_parameters(head.full_parameters)
            both = head.full_parameters.keys() & self.full_parameters.keys()
            if both:
                raise DeltaError(f"parameter {min(both)!r} belongs to all tasks and to head {name!r}")
            for key, gated in head.gated.items():
                if key in self.low_rank or f"{key}.weight" in self.full_parameters | head.full_parameters:
                    raise DeltaError(f"linear {key!r} is changed in two ways: by entries of head {name!r}, and in full")
                gated.check(key, self.linears.get(key))
                self._own_linear(key, gated).check(key)

    def _check_both(self, name: str, linear: LinearDelta, product: LowRankDelta) -> None:
        """Raise DeltaError if a linear cannot have its entries beside its product."""
        reason = ""
        if (linear.shape, linear.base_dtype) != (product.shape, product.base_dtype):
            reason = (
                f"the first are of {list(linear.shape)} in {linear.base_dtype}, the second of {list(product.shape)} in "
                f"{product.base_dtype}"
            )
        elif self.heads or name in self.filters:
            reason = "the delta has heads" if self.heads else "the product has a filter"
        if reason:
            raise DeltaError(f"linear {name!r} has entries and a low-rank product, and {reason}")

    @cached_property
    def num_entries(self) -> int:
        """Number of the base's weights that are replaced."""
        return sum(len(linear) for linear in self.linears.values())

    @property
    def overlap(self) -> list[str]:
        """The linears that have entries and a low-rank product."""
        return [name for name in self.linears if name in self.low_rank]

    @property
    def num_low_rank_parameters(self) -> int:
        """Numbers in the low-rank products, those of filters included."""
        of_filters = sum(one.num_parameters for one in self.filters.values())
        return of_filters + sum(product.num_parameters for product in self.low_rank.values())

    @property
    def num_full_parameters(self) -> int:
        """Numbers in the parameters that were trained in full."""
        return sum(tensor.numel() for tensor in self.full_parameters.values())

    def with_provenance(self, **changes: Any) -> Delta:
        """Return the delta with some attributes of its provenance replaced."""
        return replace(self, provenance=replace(self.provenance, **changes))

    def with_head(self, name: str | None) -> Delta:
        """Return the delta for one of its tasks, with that head only.

        Args:
            name: of the head; None for a delta that has no named heads, or a single one.

        Raises:
            InputError: there is no such head, or there are several and none is named.
        """
        if name is None and not self.heads:
            return self
        if name is None and len(self.heads) > 1:
            raise InputError(f"the delta has the heads {', '.join(self.heads)}: name one of them (--head)")
        if name is not None and name not in self.heads:
            known = f"its heads are {', '.join(self.heads)}" if self.heads else "it has no named heads"
            raise InputError(f"the delta has no head {name!r}: {known}{did_you_mean(name, self.heads)}")
        head = self.heads[name if name is not None else next(iter(self.heads))]
        own = {key: self._own_linear(key, gated) for key, gated in head.gated.items()}
        linears = {key: part for key, part in (self.linears | own).items() if len(part) or key not in own}
        return replace(
            self,
            linears=linears,
            full_parameters=self.full_parameters | head.full_parameters,
            provenance=head.provenance,
            heads={},
        )

    def _own_linear(self, name: str, gated: GatedRows) -> LinearDelta:
        """Return all entries that a task has in a linear: the shared ones of its closed rows, and its own."""
        rows, columns, values = gated.entries(self.linears.get(name))
        return LinearDelta(gated.shape, rows, columns, values, gated.base_dtype, gated.base_digest)


def check_name(what: str, name: str) -> None:
    """Raise DeltaError unless a name of a task or head has 1 to 64 letters, digits, ``.``, ``_`` or ``-``.

    The first character is a letter or digit, so a name is a file name and a part of a URL.
    """
    if not _NAME.fullmatch(name):
        raise DeltaError(
            f"{what} {name!r}: a name has 1 to 64 letters, digits, '.', '_' or '-', and begins with a letter or digit"
        )


def _check_full_parameters(parameters: dict[str, Tensor]) -> None:
    for name, tensor in parameters.items():
        if tensor.dtype not in FULL_PARAMETER_DTYPES:
            raise DeltaError(f"parameter {name!r} is {tensor.dtype}, not floating point of 16, 32 or 64 bits")
        if not bool(torch.isfinite(tensor).all()):
            raise DeltaError(f"parameter {name!r}: a value is not a finite number")
