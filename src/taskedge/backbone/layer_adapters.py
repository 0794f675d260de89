"""The kinds of layers that are matrix products: how each sees its weight, its input and its output as matrices.

A kind turns what a layer stores, reads and gives into ``Y [tokens, out] = X [tokens, in] · W [out, in]ᵀ``. Nothing else
asks what a layer is; another kind is a class here and a name in ``KINDS``.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 1024  # tokens whose sum float32 holds well enough


@dataclass(frozen=True)
class Kind(abc.ABC):
    """A kind with what it must know of its layer. Kinds that are equal see one tensor as the same matrix X."""

    takes_part: ClassVar[Literal["everywhere", "in blocks", "on request"]] = "everywhere"
    """Where such layers carry entries when no one names them."""

    @classmethod
    @abc.abstractmethod
    def of(cls, module: nn.Module) -> Kind | None:
        """The kind of ``module``, or None where it is of another."""

    def why_not(self, module: nn.Module) -> str | None:
        """Why a layer of this kind cannot carry entries, or None where it can."""
        return None

    @abc.abstractmethod
    def matrix(self, stored: Tensor) -> Tensor:
        """The weight, or its gradient, as [out, in]: a view wherever the memory allows it."""

    @abc.abstractmethod
    def place(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
        """The index of entries of W in the weight as it is stored."""

    @abc.abstractmethod
    def positions(self, x: Tensor) -> torch.Size:
        """The shape whose elements are the tokens of x: [batch, tokens] for a sequence."""

    @abc.abstractmethod
    def gather(self, x: Tensor, columns: Tensor) -> Tensor:
        """Columns int64 [m] of X: [tokens, m]."""

    @abc.abstractmethod
    def sums(self, x: Tensor, kept: Tensor | None, of: Callable[[Tensor], Tensor]) -> Tensor:
        """float64 [in]: ``Σ_tokens kept·of(X_j)``; ``of`` is elementwise, ``kept`` float32 [tokens] or None for all."""

    def tokens(self, output: Tensor) -> Tensor:
        """What the layer gives, or the gradient of it, as [tokens, out]."""
        return as_tokens(output)


@dataclass(frozen=True)
class Features(Kind):
    """``nn.Linear``, and Hugging Face's ``Conv1D``, whose weight is stored ``transposed``: [in, out]."""

    transposed: bool

    @classmethod
    def of(cls, module: nn.Module) -> Features | None:
        if isinstance(module, nn.Linear):
            return cls(transposed=False)
        if hasattr(module, "nf") and any(kind.__name__ == "Conv1D" for kind in type(module).__mro__):  # transformers'
            return cls(transposed=True)
        return None

    def matrix(self, stored: Tensor) -> Tensor:
        return stored.t() if self.transposed else stored

    def place(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
        return (columns, rows) if self.transposed else (rows, columns)

    def positions(self, x: Tensor) -> torch.Size:
        return x.shape[:-1]

    def gather(self, x: Tensor, columns: Tensor) -> Tensor:
        # from a matrix: along the last of three dimensions ``index_select`` is 7 times as slow on a CPU
        return as_tokens(x).index_select(1, columns)

    def sums(self, x: Tensor, kept: Tensor | None, of: Callable[[Tensor], Tensor]) -> Tensor:
        x = as_tokens(x)
        total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
        for start in range(0, len(x), CHUNK):
            values = of(x[start : start + CHUNK].float())  # (chunk, in)
            total += values.sum(0) if kept is None else kept[start : start + CHUNK] @ values
        return total


@dataclass(frozen=True)
class Patches(Kind):
    """``nn.Conv2d`` of one group, as im2col: a token is a position of the kernel, in = channels · height · width.

    Input column ``(c·height + y)·width + x`` is what kernel place (y, x) meets in channel c. All are strided views of
    the padded image, so only the wanted ones are ever copied.
    """

    takes_part: ClassVar[Literal["in blocks"]] = "in blocks"
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]
    """Zeros left, right, above and below."""

    @classmethod
    def of(cls, module: nn.Module) -> Patches | None:
        if not isinstance(module, nn.Conv2d):
            return None
        kernel, stride, dilation = (_pair(module, name) for name in ("kernel_size", "stride", "dilation"))
        left, right, above, below = module._reversed_padding_repeated_twice  # also where padding is "same"
        return cls(kernel, stride, dilation, (left, right, above, below))

    def why_not(self, module: nn.Module) -> str | None:
        assert isinstance(module, nn.Conv2d)
        if module.groups != 1:
            return f"its {module.groups} groups each have a matrix of their own"
        if module.padding_mode != "zeros":
            return f"it pads with padding_mode={module.padding_mode!r}, not with zeros"
        return own_forward(module, nn.Conv2d)

    def matrix(self, stored: Tensor) -> Tensor:
        return stored.flatten(1)

    def place(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
        return (rows, *self._taps(columns))

    def positions(self, x: Tensor) -> torch.Size:
        return self._windows(x).shape[:3]

    def gather(self, x: Tensor, columns: Tensor) -> Tensor:
        windows = self._windows(x)
        channel, y, x_ = self._taps(columns)
        return windows[:, :, :, channel, y, x_].flatten(0, 2)  # (tokens, m)

    def sums(self, x: Tensor, kept: Tensor | None, of: Callable[[Tensor], Tensor]) -> Tensor:
        values = self._windows(x, lambda padded: of(padded.float()))
        if kept is not None:
            values = values * kept.view(*values.shape[:3], 1, 1, 1)
        return values.sum((0, 1, 2), dtype=torch.float64).flatten()

    def tokens(self, output: Tensor) -> Tensor:
        return output.movedim(-3, -1).flatten(0, -2)  # (batch, out, y, x) -> (tokens, out)

    def _taps(self, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Channel, y and x in the kernel of each column."""
        height, width = self.kernel
        return columns // (height * width), columns // width % height, columns % width

    def _windows(self, x: Tensor, of: Callable[[Tensor], Tensor] = lambda padded: padded) -> Tensor:
        """X before it is flattened: a view [batch, y, x, channels, kernel height, kernel width] of the padded image."""
        x = x if x.dim() == 4 else x[None]
        padded = of(F.pad(x, self.padding) if any(self.padding) else x)
        spans = [dilation * (kernel - 1) + 1 for kernel, dilation in zip(self.kernel, self.dilation, strict=True)]
        windows = padded.unfold(2, spans[0], self.stride[0]).unfold(3, spans[1], self.stride[1])
        return windows[..., :: self.dilation[0], :: self.dilation[1]].permute(0, 2, 3, 1, 4, 5)


@dataclass(frozen=True)
class OneHot(Kind):
    """``nn.Embedding``: the token j is the one-hot input e_j, in = vocabulary, out = width; W is stored transposed.

    No one-hot of the vocabulary is ever made. The padding token reads as zeros: it has no gradient.
    """

    takes_part: ClassVar[Literal["on request"]] = "on request"
    vocabulary: int
    padding: int | None

    @classmethod
    def of(cls, module: nn.Module) -> OneHot | None:
        return cls(module.num_embeddings, module.padding_idx) if isinstance(module, nn.Embedding) else None

    def why_not(self, module: nn.Module) -> str | None:
        assert isinstance(module, nn.Embedding)
        if module.max_norm is not None:
            return "max_norm changes its weight in every forward pass"
        if module.scale_grad_by_freq:
            return "scale_grad_by_freq gives it other gradients than those of the loss"
        if module.sparse:
            return "its gradients are sparse tensors (sparse=True)"
        return own_forward(module, nn.Embedding)

    def matrix(self, stored: Tensor) -> Tensor:
        return stored.t()

    def place(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
        return columns, rows

    def positions(self, x: Tensor) -> torch.Size:
        return x.shape

    def gather(self, x: Tensor, columns: Tensor) -> Tensor:
        hits: Tensor = x.reshape(-1, 1) == columns
        return hits if self.padding is None else hits & (columns != self.padding)

    def sums(self, x: Tensor, kept: Tensor | None, of: Callable[[Tensor], Tensor]) -> Tensor:
        tokens = torch.ones(x.numel(), device=x.device) if kept is None else kept
        counts = torch.bincount(x.flatten(), tokens.double(), minlength=self.vocabulary)
        if self.padding is not None:
            counts[self.padding] = 0
        one, zero = of(torch.tensor([1.0, 0.0])).tolist()
        total: Tensor = counts * one + (tokens.double().sum() - counts) * zero
        return total


KINDS: tuple[type[Kind], ...] = (Features, Patches, OneHot)


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of ``module``, or None where it is no matrix product."""
    return next((kind for candidate in KINDS if (kind := candidate.of(module)) is not None), None)


def as_tokens(x: Tensor) -> Tensor:
    """[..., features] as [tokens, features]; a lone vector is one token."""
    return x.flatten(0, -2) if x.dim() > 1 else x[None]


def own_forward(module: nn.Module, base: type[nn.Module]) -> str | None:
    """Says so where the class of ``module`` computes something else than ``base`` does (positions, scales), else None.

    Such a class cannot be told apart from its base otherwise.
    """
    for owner in type(module).__mro__:
        if "forward" in vars(owner) and not vars(owner).get("keeps_forward"):
            return None if owner is base else f"{owner.__name__} has a forward pass of its own"
    return None


def _pair(module: nn.Conv2d, name: str) -> tuple[int, int]:
    height, width = getattr(module, name)
    return height, width
