"""Calibration statistics: the inputs of every linear, and gradients of the loss, from one pass over a few batches.

The model is not changed, and no activation outlives the layer that made it. One gradient of a linear is in memory at a
time: it is added to a sum in a temporary file (:mod:`taskedge.selection.disk_accumulator`) and freed before the next is
computed. The exception is a linear that runs several times in a forward pass: autograd adds up its gradients itself and
returns their sum, as in any backward pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.evaluation import evaluation_mode, loss_of, run_batch
from taskedge.backbone.experts import ExpertLinear, exposed
from taskedge.backbone.layers import CHUNK_TOKENS, LayerAdapter, Linear, first_input, tensor_version
from taskedge.errors import InputError
from taskedge.selection.decoder_inputs import DecoderInputs
from taskedge.selection.gradient_sums import FIRST_GRADIENTS as FIRST_GRADIENTS
from taskedge.selection.gradient_sums import GRADIENT_STATISTICS, GradientSums
from taskedge.selection.gradient_sums import GRADIENTS as GRADIENTS
from taskedge.selection.gradient_sums import SQUARED_GRADIENTS as SQUARED_GRADIENTS

INPUTS = "inputs"
ABSOLUTE_INPUTS = "absolute inputs"
INPUT_PRODUCTS = "input products"
CHANGES = "changes"
"""What a dense training run changed; no forward or backward pass measures it, see :class:`LinearStatistics`."""

MAX_PRODUCT_INPUTS = 16_384
"""Widest input whose products are summed: 2 GiB of them."""


@dataclass
class LinearStatistics:
    """Calibration statistics of one linear. Sums, so that statistics of several devices can be added.

    Attributes:
        shared_input: the first linear that read the same input tensor; query, key and value share theirs.
        tokens: number of tokens, without padding.
        input_squares: ``Σ_tokens x_j²``, float64 [in].
        input_absolutes: ``Σ_tokens |x_j|``, float64 [in].
        input_products: ``XᵀX``, float64 [in, in], on the device of the input; one tensor for all readers of an input.
        read_gradient: returns the gradient of the loss, summed over batches, float32 [out, in].
        read_squared_gradient: returns the squares of each batch's gradient, summed over batches, float32 [out, in].
        read_first_gradient: returns the gradient of the first batch, float32 [out, in].
        read_change: returns the trained weight of a dense run minus the base's, float32 [out, in]. Whoever ran it sets
            this (:mod:`taskedge.training.dense_run`).
    """

    shared_input: str
    tokens: int = 0
    input_squares: Tensor | None = None
    input_absolutes: Tensor | None = None
    input_products: Tensor | None = None
    read_gradient: Callable[[], Tensor] | None = None
    read_squared_gradient: Callable[[], Tensor] | None = None
    read_first_gradient: Callable[[], Tensor] | None = None
    read_change: Callable[[], Tensor] | None = None

    @property
    def input_norm(self) -> Tensor:
        """l2 norm of every input feature over all tokens, ``‖X_j‖₂``, float32 [in]."""
        assert self.input_squares is not None
        return self.input_squares.sqrt().float()

    @property
    def input_rms(self) -> Tensor | None:
        """Root mean square of every input feature over all tokens, float32 [in] on the CPU; None if not measured."""
        if self.input_squares is None:
            return None
        return (self.input_squares / max(self.tokens, 1)).sqrt().float().cpu()

    @property
    def input_mean(self) -> Tensor:
        """Mean magnitude of every input feature over all tokens, ``mean|x_j|``, float32 [in]."""
        assert self.input_absolutes is not None
        return (self.input_absolutes / max(self.tokens, 1)).float()

    @property
    def gradient(self) -> Tensor:
        """``Σ_batches g``, float32 [out, in]; a new tensor, read from the disk at each use."""
        assert self.read_gradient is not None
        return self.read_gradient()

    @property
    def squared_gradient(self) -> Tensor:
        """``Σ_batches g²``, g the gradient of one batch, float32 [out, in]; a new tensor at each use."""
        assert self.read_squared_gradient is not None
        return self.read_squared_gradient()

    @property
    def first_gradient(self) -> Tensor:
        """The gradient of the first batch, float32 [out, in]; a new tensor at each use."""
        assert self.read_first_gradient is not None
        return self.read_first_gradient()

    @property
    def change(self) -> Tensor:
        """``θ_tuned - θ_0`` of a dense run, float32 [out, in]; a new tensor at each use."""
        assert self.read_change is not None
        return self.read_change()


class Statistics(dict[str, LinearStatistics]):
    """Statistics of each linear by name; a context manager that removes the temporary file on exit.

    Attributes:
        vectors: ``Σ_batches g²`` of the further parameters, float32 [n] on the CPU, by name.
        idle: names of the linears that never ran; their sums are 0.
        num_batches: batches that were measured; None if unknown.
    """

    def __init__(
        self,
        linears: Mapping[str, LinearStatistics],
        gradients: GradientSums | None = None,
        idle: Collection[str] = (),
        num_batches: int | None = None,
    ) -> None:
        super().__init__(linears)
        self.num_batches = num_batches
        self.idle = tuple(idle)
        self._gradients = gradients
        self.vectors: dict[str, Tensor] = gradients.vectors if gradients else {}

    def close(self) -> None:
        """Remove the temporary file; gradients can no longer be read."""
        if self._gradients is not None:
            self._gradients.close()

    def __enter__(self) -> Statistics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def measure(
    model: nn.Module,
    linears: Mapping[str, Linear],
    batches: Iterable[Any],
    needs: Collection[str] = (INPUTS,),
    on_batch: Callable[[int], None] | None = None,
    vectors: Mapping[str, nn.Parameter] | None = None,
) -> Statistics:
    """Run batches through the model and return statistics of each linear.

    Args:
        model: any module; it runs in evaluation mode, and its mode and device are restored.
        linears: the linears to watch, by name.
        batches: each a mapping (keyword arguments), a tuple or list (positional arguments) or one tensor. Positions
            that an ``attention_mask`` [batch, tokens] masks are not counted.
        needs: ``INPUTS`` for input norms, ``ABSOLUTE_INPUTS`` for input means and ``INPUT_PRODUCTS`` for products of
            inputs (forward only); ``GRADIENTS``, ``SQUARED_GRADIENTS`` and ``FIRST_GRADIENTS`` for gradients of the
            loss, which the model must return (put labels into the batches). The loss of a batch is usually a mean over
            its rows, so squares are per batch, not per row. If empty, only shared inputs are recorded.
        on_batch: progress callback; receives the number of finished batches.
        vectors: further small parameters (biases, norms), whose squared gradients are summed too.

    Returns:
        Statistics in the order of ``linears``. With gradients they own a temporary file: use them as a context. A
        linear that never ran (an expert that no token is routed to, or one whose weight the model reads without calling
        it) has sums of 0 and is named in ``idle``.

    Raises:
        InputError: there are no batches; no linear ran; the loss is missing or not finite; the temporary folder cannot
            hold the sums of gradients (4 bytes a weight).
    """
    backward = bool(vectors) or not GRADIENT_STATISTICS.isdisjoint(needs)
    gradients = GradientSums(linears, vectors or {}, needs) if backward else None
    watch = _Watch(model, linears, needs)
    with ExitStack() as on_error:
        if gradients is not None:
            on_error.callback(gradients.close)
        num_batches = _run(model, batches, watch, gradients, on_batch)
        idle = [name for name in linears if watch.is_idle(name)]
        if linears and len(idle) == len(linears):
            raise InputError(
                f"none of the {len(idle)} linears to choose from ran on the calibration batches, {idle[0]!r} first: "
                "the model reads their weights without calling them, so they cannot carry entries"
            )
        for name in idle:
            watch.statistics[name] = _zeros(name, linears[name], needs)
        on_error.pop_all()
    if gradients is not None:
        for name, linear in watch.statistics.items():
            linear.read_gradient = gradients.reader(GRADIENTS, name)
            linear.read_squared_gradient = gradients.reader(SQUARED_GRADIENTS, name)
            linear.read_first_gradient = gradients.reader(FIRST_GRADIENTS, name)
    return Statistics({name: watch.statistics[name] for name in linears}, gradients, idle, num_batches)


def _zeros(name: str, linear: Linear, needs: Collection[str]) -> LinearStatistics:
    """Return the statistics of a linear that never ran."""
    zeros = torch.zeros(linear.shape[1], dtype=torch.float64, device=linear.device)
    return LinearStatistics(
        shared_input=name,
        input_squares=zeros if INPUTS in needs else None,
        input_absolutes=zeros if ABSOLUTE_INPUTS in needs else None,
        input_products=torch.diag(zeros) if INPUT_PRODUCTS in needs else None,
    )


def _run(
    model: nn.Module,
    batches: Iterable[Any],
    watch: _Watch,
    gradients: GradientSums | None,
    on_batch: Callable[[int], None] | None,
) -> int:
    """Run each batch forward, and backward if gradients are needed; return the number of batches."""
    num_batches = 0
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(exposed(linear.module for linear in watch.linears.values()))
        stack.enter_context(watch.hooks())
        if gradients is not None:
            stack.enter_context(gradients.watching(model))
        for num_batches, batch in enumerate(batches, start=1):
            watch.start(batch)
            backward = gradients is not None and not gradients.is_complete
            with torch.set_grad_enabled(backward):
                output = run_batch(model, batch)
            if gradients is not None and backward:
                gradients.start_batch()
                loss = loss_of(output)
                if not torch.isfinite(loss):
                    raise InputError(
                        f"the loss of calibration batch {num_batches} is {loss.item()}: it has no usable gradient"
                    )
                loss.backward()  # type: ignore[no-untyped-call]
            if on_batch is not None:
                on_batch(num_batches)
    if not num_batches:
        raise InputError("no calibration batches were given: selection needs at least one batch of the task's data")
    return num_batches


@dataclass
class _Input:
    """A tensor that linears of the current batch read.

    Attributes:
        tensor, version: the tensor, and the version in which it was read.
        first_reader: the first linear that read it.
        sums: sums over its tokens, by statistic.
    """

    tensor: weakref.ref[Tensor]
    version: int
    first_reader: str
    sums: dict[str, Tensor] = field(default_factory=dict)


class _Watch:
    """Hooks on linears that collect statistics."""

    def __init__(self, model: nn.Module, linears: Mapping[str, Linear], needs: Collection[str]) -> None:
        self.statistics: dict[str, LinearStatistics] = {}
        self.linears, self._needs = linears, needs
        self._inputs: dict[tuple[int, LayerAdapter], _Input] = {}  # by id
        self._mask: Tensor | None = None
        self._decoder = DecoderInputs(model)

    def start(self, batch: Any) -> None:
        """Take the mask of a new batch, and forget the inputs of the last one."""
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        self._mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        self._decoder.start(batch)
        self._inputs.clear()

    def is_idle(self, name: str) -> bool:
        """Return whether a linear has read no token that counts."""
        linear = self.statistics.get(name)
        return linear is None or (linear.input_squares is not None and not linear.tokens)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(self._decoder.hooks())
            for name, linear in self.linears.items():
                handle = linear.module.register_forward_pre_hook(
                    lambda _, args, kwargs, name=name: self._add_input(name, first_input(args, kwargs)),
                    with_kwargs=True,
                )
                stack.callback(handle.remove)
            yield

    def _add_input(self, name: str, x: Tensor) -> None:
        shared = self._shared_input(name, x)
        linear = self.statistics.setdefault(name, LinearStatistics(shared_input=shared.first_reader))
        if {INPUTS, ABSOLUTE_INPUTS, INPUT_PRODUCTS}.isdisjoint(self._needs):
            return
        adapter = self.linears[name].adapter
        module = self.linears[name].module
        if isinstance(module, ExpertLinear):
            kept = self._kept_routed_tokens(module, x.device)
        else:
            mask = self._decoder.mask if self._decoder.is_read_by(name, x) else self._mask
            kept = _kept_tokens(mask, adapter.token_shape(x), x.device)
        linear.tokens += int(kept.sum()) if kept is not None else adapter.token_shape(x).numel()
        if INPUTS in self._needs:
            squares = self._sum(INPUTS, shared, adapter, x, kept)
            linear.input_squares = squares if linear.input_squares is None else linear.input_squares + squares
        if ABSOLUTE_INPUTS in self._needs:
            absolutes = self._sum(ABSOLUTE_INPUTS, shared, adapter, x, kept)
            linear.input_absolutes = absolutes if linear.input_absolutes is None else linear.input_absolutes + absolutes
        if INPUT_PRODUCTS in self._needs:
            if shared.first_reader == name:
                linear.input_products = self._add_products(name, x.detach(), kept, linear.input_products)
            else:
                linear.input_products = self.statistics[shared.first_reader].input_products

    def _sum(self, statistic: str, shared: _Input, adapter: LayerAdapter, x: Tensor, kept: Tensor | None) -> Tensor:
        """Return the sum over the tokens of x; it is computed once for all linears that read x."""
        if statistic not in shared.sums:
            shared.sums[statistic] = adapter.reduce_inputs(x.detach(), kept, _OF_INPUTS[statistic])
        return shared.sums[statistic]

    def _add_products(self, name: str, x: Tensor, kept: Tensor | None, total: Tensor | None) -> Tensor:
        """Add ``XᵀX`` to a sum, in place; chunks are summed in float32 first."""
        linear = self.linears[name]
        width = linear.shape[1]
        if width > MAX_PRODUCT_INPUTS:
            raise InputError(
                f"linear {name!r} has {width:,} inputs, whose products are {8 * width**2 / 1e9:.0f} GB: choose a "
                "column score without them, or leave this linear out"
            )
        if total is None:
            total = torch.zeros(width, width, dtype=torch.float64, device=x.device)
        tokens = linear.adapter.gather(x, torch.arange(width, device=x.device))
        for start in range(0, len(tokens), CHUNK_TOKENS):
            chunk = tokens[start : start + CHUNK_TOKENS].float()
            if kept is not None:
                chunk = chunk * kept[start : start + CHUNK_TOKENS, None]
            total += chunk.t() @ chunk
        return total

    def _shared_input(self, name: str, x: Tensor) -> _Input:
        """Return the record of the input that ``name`` reads now; a tensor changed in place counts as another input."""
        key = id(x), self.linears[name].adapter
        shared = self._inputs.get(key)
        if shared is None or shared.tensor() is not x or shared.version != tensor_version(x):
            shared = self._inputs[key] = _Input(weakref.ref(x), tensor_version(x), first_reader=name)
        return shared

    def _kept_routed_tokens(self, expert: ExpertLinear, device: torch.device) -> Tensor | None:
        """Return float32 [tokens] with 1 for the tokens of an expert that are no padding, or None if all count."""
        routed = expert.routed_tokens()
        if self._mask is None or routed is None or routed[1] != self._mask.numel():
            return None
        return self._mask.to(device=device, dtype=torch.float32).flatten()[routed[0]]


def _kept_tokens(mask: Tensor | None, positions: torch.Size, device: torch.device) -> Tensor | None:
    """Return float32 [tokens] with 1 for positions that count, or None if all count."""
    if mask is None or positions != mask.shape:
        return None
    return mask.to(device=device, dtype=torch.float32).flatten()


_OF_INPUTS = {INPUTS: torch.square, ABSOLUTE_INPUTS: torch.abs}
