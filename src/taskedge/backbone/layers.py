"""Layers that are matrix products, and how each sees its weight, input and output as matrices.

A :class:`LayerAdapter` maps what one class of layer stores, reads and returns to ``Y [tokens, out] = X [tokens, in] ·
W [out, in]ᵀ``. Other modules work on these matrices and never ask for the class of a layer. To support another class,
add an adapter here and to ``LAYER_ADAPTERS``. A :class:`Linear` is one layer of a model with its adapter.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskedge.backbone.experts import ExpertLinear, named_experts

CHUNK_TOKENS = 1024
"""Tokens summed in float32 before the sum is added to a float64 total."""


@dataclass(frozen=True)
class LayerAdapter(abc.ABC):
    """How one class of layer is a matrix product. Adapters that are equal see one tensor as the same matrix X."""

    default_scope: ClassVar[Literal["everywhere", "in blocks", "on request"]] = "everywhere"
    """Where such layers carry entries unless layers are named."""

    @classmethod
    @abc.abstractmethod
    def match(cls, module: nn.Module) -> LayerAdapter | None:
        """Return the adapter for ``module``, or None if ``module`` is of another class."""

    def unsupported_reason(self, module: nn.Module) -> str | None:
        """Return why ``module``, which this adapter matches, cannot carry entries, or None if it can."""
        return None

    @abc.abstractmethod
    def matrix(self, stored: Tensor) -> Tensor:
        """Return the weight, or its gradient, as [out, in]: a view wherever the memory layout allows it."""

    @abc.abstractmethod
    def weight_index(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
        """Return the index of entries (``rows``, ``columns``) of W in the stored weight."""

    @abc.abstractmethod
    def token_shape(self, x: Tensor) -> torch.Size:
        """Return the shape whose elements are the tokens of ``x``: [batch, tokens] for a sequence."""

    @abc.abstractmethod
    def gather(self, x: Tensor, columns: Tensor) -> Tensor:
        """Return the columns int64 [m] of X as [tokens, m]."""

    @abc.abstractmethod
    def reduce_inputs(self, x: Tensor, mask: Tensor | None, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return float64 [in]: ``Σ_tokens mask·function(X_j)`` for every column j.

        Args:
            x: the input of the layer.
            mask: float32 [tokens], or None to count all tokens.
            function: elementwise.
        """

    def output_tokens(self, output: Tensor) -> Tensor:
        """Return the output of the layer, or the gradient of it, as [tokens, out]."""
        return as_tokens(output)


@dataclass(frozen=True)
class LinearAdapter(LayerAdapter):
    """``nn.Linear``, Hugging Face's ``Conv1D``, or one expert of several; ``transposed``: stored as [in, out]."""

    transposed: bool

    @classmethod
    def match(cls, module: nn.Module) -> LinearAdapter | None:
        """Return the adapter of an ``nn.Linear``, an ``ExpertLinear`` or a ``Conv1D``, else None."""
        if isinstance(module, nn.Linear):
            return cls(transposed=False)
        if isinstance(module, ExpertLinear):
            return cls(transposed=module.transposed)
        if hasattr(module, "nf") and any(base.__name__ == "Conv1D" for base in type(module).__mro__):
            return cls(transposed=True)  # matched by name: transformers is not imported here
        return None

    def matrix(self, stored: Tensor) -> Tensor:
        """Return ``stored``, transposed if the layer stores [in, out]."""
        return stored.t() if self.transposed else stored

    def weight_index(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
        """Return (rows, columns), swapped if the layer stores [in, out]."""
        return (columns, rows) if self.transposed else (rows, columns)

    def token_shape(self, x: Tensor) -> torch.Size:
        """Return every dimension of ``x`` but the features."""
        return x.shape[:-1]

    def gather(self, x: Tensor, columns: Tensor) -> Tensor:
        """Return columns of the features."""
        # from a matrix: along the last of three dimensions ``index_select`` is 7 times as slow on a CPU
        return as_tokens(x).index_select(1, columns)

    def reduce_inputs(self, x: Tensor, mask: Tensor | None, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return float64 [in]; chunks are summed in float32 first."""
        x = as_tokens(x)
        total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
        for start in range(0, len(x), CHUNK_TOKENS):
            values = function(x[start : start + CHUNK_TOKENS].float())  # [chunk, in]
            total += values.sum(0) if mask is None else mask[start : start + CHUNK_TOKENS] @ values
        return total


@dataclass(frozen=True)
class ConvAdapter(LayerAdapter):
    """``nn.Conv2d`` with one group, as im2col: a token is a position of the kernel, in = channels · height · width.

    Input column ``(c·height + y)·width + x`` is what position (y, x) of the kernel meets in channel c. All columns are
    strided views of the padded image, so only the needed ones are ever copied.
    """

    default_scope: ClassVar[Literal["in blocks"]] = "in blocks"
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]
    """Zeros left, right, above and below."""

    @classmethod
    def match(cls, module: nn.Module) -> ConvAdapter | None:
        """Return the adapter of an ``nn.Conv2d``, else None."""
        if not isinstance(module, nn.Conv2d):
            return None
        kernel, stride, dilation = (_pair(module, name) for name in ("kernel_size", "stride", "dilation"))
        left, right, above, below = module._reversed_padding_repeated_twice  # also set where padding is "same"
        return cls(kernel, stride, dilation, (left, right, above, below))

    def unsupported_reason(self, module: nn.Module) -> str | None:
        """Return a reason for several groups, a padding mode other than zeros and an overridden forward pass."""
        assert isinstance(module, nn.Conv2d)
        if module.groups != 1:
            return f"its {module.groups} groups each have a matrix of their own"
        if module.padding_mode != "zeros":
            return f"it pads in mode {module.padding_mode!r}, not with zeros"
        return overridden_forward(module, nn.Conv2d)

    def matrix(self, stored: Tensor) -> Tensor:
        """Return ``stored`` [out, channels, height, width] as [out, in]."""
        return stored.flatten(1)

    def weight_index(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
        """Return (row, channel, y, x) of each entry."""
        return (rows, *self._kernel_positions(columns))

    def token_shape(self, x: Tensor) -> torch.Size:
        """Return [batch, height, width] of the output."""
        return self._windows(x).shape[:3]

    def gather(self, x: Tensor, columns: Tensor) -> Tensor:
        """Return the pixels that the needed positions of the kernel meet."""
        windows = self._windows(x)
        channel, kernel_y, kernel_x = self._kernel_positions(columns)
        return windows[:, :, :, channel, kernel_y, kernel_x].flatten(0, 2)  # [tokens, m]

    def reduce_inputs(self, x: Tensor, mask: Tensor | None, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return float64 [in], summed over views of the padded image."""
        values = self._windows(x, lambda padded: function(padded.float()))
        if mask is not None:
            values = values * mask.view(*values.shape[:3], 1, 1, 1)
        return values.sum((0, 1, 2), dtype=torch.float64).flatten()

    def output_tokens(self, output: Tensor) -> Tensor:
        """Return [batch, out, height, width] as [tokens, out]."""
        return output.movedim(-3, -1).flatten(0, -2)  # [batch, out, y, x] -> [tokens, out]

    def _kernel_positions(self, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return channel, y and x in the kernel of each column."""
        height, width = self.kernel
        return columns // (height * width), columns // width % height, columns % width

    def _windows(self, x: Tensor, function: Callable[[Tensor], Tensor] = lambda padded: padded) -> Tensor:
        """Return X before it is flattened: a view [batch, y, x, channels, kernel height, kernel width] of the image."""
        x = x if x.dim() == 4 else x[None]
        padded = function(F.pad(x, self.padding) if any(self.padding) else x)
        spans = [dilation * (kernel - 1) + 1 for kernel, dilation in zip(self.kernel, self.dilation, strict=True)]
        windows = padded.unfold(2, spans[0], self.stride[0]).unfold(3, spans[1], self.stride[1])
        return windows[..., :: self.dilation[0], :: self.dilation[1]].permute(0, 2, 3, 1, 4, 5)


@dataclass(frozen=True)
class EmbeddingAdapter(LayerAdapter):
    """``nn.Embedding``: token j is the one-hot input e_j, in = vocabulary, out = width; W is stored transposed.

    No one-hot vector of the vocabulary's length is ever made. The padding token reads as zeros: it has no gradient.
    """

    default_scope: ClassVar[Literal["on request"]] = "on request"
    vocabulary: int
    padding: int | None

    @classmethod
    def match(cls, module: nn.Module) -> EmbeddingAdapter | None:
        """Return the adapter of an ``nn.Embedding``, else None."""
        return cls(module.num_embeddings, module.padding_idx) if isinstance(module, nn.Embedding) else None

    def unsupported_reason(self, module: nn.Module) -> str | None:
        """Return a reason for options that change the weight or its gradient, and an overridden forward pass."""
        assert isinstance(module, nn.Embedding)
        if module.max_norm is not None:
            return "max_norm changes its weight in every forward pass"
        if module.scale_grad_by_freq:
            return "scale_grad_by_freq gives it other gradients than those of the loss"
        if module.sparse:
            return "its gradients are sparse tensors"
        return overridden_forward(module, nn.Embedding)

    def matrix(self, stored: Tensor) -> Tensor:
        """Return ``stored`` [vocabulary, width] as [out, in]."""
        return stored.t()

    def weight_index(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
        """Return (columns, rows)."""
        return columns, rows

    def token_shape(self, x: Tensor) -> torch.Size:
        """Return the shape of the token ids."""
        return x.shape

    def gather(self, x: Tensor, columns: Tensor) -> Tensor:
        """Return bool [tokens, m]: whether a token is the one of the column."""
        hits: Tensor = x.reshape(-1, 1) == columns
        return hits if self.padding is None else hits & (columns != self.padding)

    def reduce_inputs(self, x: Tensor, mask: Tensor | None, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return float64 [in] from the counts of the tokens."""
        tokens = torch.ones(x.numel(), device=x.device) if mask is None else mask
        counts = torch.bincount(x.flatten(), tokens.double(), minlength=self.vocabulary)
        if self.padding is not None:
            counts[self.padding] = 0
        of_one, of_zero = function(torch.tensor([1.0, 0.0])).tolist()
        total: Tensor = counts * of_one + (tokens.double().sum() - counts) * of_zero
        return total


LAYER_ADAPTERS: tuple[type[LayerAdapter], ...] = (LinearAdapter, ConvAdapter, EmbeddingAdapter)


def adapter_of(module: nn.Module) -> LayerAdapter | None:
    """Return the adapter of ``module``, or None if ``module`` is not a matrix product."""
    return next((adapter for cls in LAYER_ADAPTERS if (adapter := cls.match(module)) is not None), None)


class ReadOnlyLayer(nn.Module):
    """A layer whose weight is stored in a form that is never written to (:mod:`taskedge.backbone.storage`)."""

    def dense_weight(self) -> Tensor:
        """Return the weight as a plain layer of its class stores it; writing to the result has no lasting effect."""
        raise NotImplementedError

    def overlay(self, index: tuple[Tensor, ...], values: Tensor) -> None:
        """Lay ``values`` [n] over the weight at ``index`` (into the stored weight)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Linear:
    """A layer of a model that computes ``Y = X Wᵀ + b``; its adapter gives the meaning of these matrices."""

    name: str
    module: nn.Module
    adapter: LayerAdapter

    @property
    def stored(self) -> Tensor:
        """The weight as the layer stores it, without gradient."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight.detach()

    @property
    def weight(self) -> Tensor:
        """The weight as [out, in], for reading."""
        return self.adapter.matrix(self.stored)

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        coded: tuple[int, int] | None = getattr(self.module, "matrix_shape", None)
        out, inputs = coded or self.adapter.matrix(_weight_parameter(self.module)).shape
        return out, inputs

    @property
    def device(self) -> torch.device:
        """The device of the weight."""
        return _weight_parameter(self.module).device

    @property
    def parameter(self) -> str:
        """Name of the model's parameter that holds the weight; experts of one layer share one."""
        if isinstance(self.module, ExpertLinear):
            experts = self.name.rpartition(".")[0].rpartition(".")[0]
            return f"{experts}.{self.module.projection}".removeprefix(".")
        return f"{self.name}.weight".removeprefix(".")

    @property
    def is_read_only(self) -> bool:
        """Whether only single entries can be written: the weight is mapped from a file or stored as codes."""
        return isinstance(self.module, ReadOnlyLayer)

    @property
    def storage_dtype(self) -> str:
        """The dtype that the weight is stored in, such as ``"float32"``; ``"int8"`` or ``"int4"`` for codes."""
        return getattr(self.module, "coding", "") or str(_weight_parameter(self.module).dtype).removeprefix("torch.")

    def read(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return a copy of the entries [n], in the weight's dtype."""
        stored = self.stored
        return stored[self.adapter.weight_index(rows.to(stored.device), columns.to(stored.device))]

    def write(self, rows: Tensor, columns: Tensor, values: Tensor) -> None:
        """Write entries [n] into the model, rounded to the weight's dtype."""
        index = self.adapter.weight_index(rows.to(self.device), columns.to(self.device))
        with torch.no_grad():
            write_entries(self.module, index, values.to(self.device))

    def overwrite(self, weight: Tensor) -> None:
        """Write a whole weight [out, in] into a model whose weight is not read-only, rounded to its dtype."""
        assert not self.is_read_only
        self.weight.copy_(weight)


def as_linear(name: str, module: nn.Module) -> Linear | None:
    """Return ``module`` as a :class:`Linear`, or None if it is not a matrix product."""
    adapter = adapter_of(module)
    return None if adapter is None else Linear(name, module, adapter)


def linears(model: nn.Module) -> dict[str, Linear]:
    """Return every linear of the model by name, in the order of its modules, with those of fused experts."""
    modules = (each for named in model.named_modules() for each in (named, *named_experts(*named)))
    return {name: linear for name, module in modules if (linear := as_linear(name, module)) is not None}


def stored_weight(module: nn.Module) -> Tensor:
    """Return the weight in its present state; unlike ``module.weight``, this never writes trained values into it."""
    return module.dense_weight() if isinstance(module, ReadOnlyLayer) else _weight_parameter(module)


def write_entries(module: nn.Module, index: tuple[Tensor, ...], values: Tensor) -> None:
    """Write ``values`` [n] at ``index`` into the stored weight; to be called without gradient.

    Values are rounded to the weight's dtype. A read-only weight gets them in its overlay.
    """
    if isinstance(module, ReadOnlyLayer):
        module.overlay(index, values)
    else:
        weight = _weight_parameter(module)
        weight.index_put_(index, values.to(weight.dtype))


def _weight_parameter(module: nn.Module) -> Tensor:
    """Return the tensor that holds the weight, codes included; the weight itself where it is computed."""
    if isinstance(module, ExpertLinear):
        return module.stored_weight()
    parameter = module._parameters.get("weight")
    return cast(Tensor, module.weight) if parameter is None else parameter


def as_tokens(x: Tensor) -> Tensor:
    """Return [..., features] as [tokens, features]; a single vector is one token."""
    return x.flatten(0, -2) if x.dim() > 1 else x[None]


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the first input of a forward call: every class of layer has its own name for it."""
    return args[0] if args else next(iter(kwargs.values()))


def tensor_version(x: Tensor) -> int:
    """Return how often ``x`` was changed in place; 0 for a tensor made in inference mode, which does not count."""
    return 0 if x.is_inference() else x._version


def overridden_forward(module: nn.Module, base: type[nn.Module]) -> str | None:
    """Return a reason if the class of ``module`` overrides ``base.forward`` (adds positions, scales), else None.

    A class whose ``keeps_forward`` is true is passed over.
    """
    for owner in type(module).__mro__:
        if "forward" in vars(owner) and not vars(owner).get("keeps_forward"):
            return None if owner is base else f"{owner.__name__} has a forward pass of its own"
    return None


def _pair(module: nn.Conv2d, name: str) -> tuple[int, int]:
    height, width = getattr(module, name)
    return height, width
