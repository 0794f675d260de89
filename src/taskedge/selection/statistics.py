"""One pass over calibration data: what every linear's inputs look like, and where the loss pulls.

Nothing of the model is changed, no activation outlives the layer that made it, and of the linears' gradients one is
held at a time: it is added to a sum in a temporary file (:mod:`taskedge.selection.disk_accumulator`) and freed
before the next is
made. (A linear that runs several times in a forward pass is the exception: autograd itself adds its gradients up and
hands out their sum, as in any backward pass.)
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.layer_adapters import Kind
from taskedge.backbone.linears import Linear, version
from taskedge.errors import InputError
from taskedge.selection.gradient_sums import GRADIENTS as GRADIENTS
from taskedge.selection.gradient_sums import SQUARED_GRADIENTS as SQUARED_GRADIENTS
from taskedge.selection.gradient_sums import GradientSums

INPUTS = "inputs"
ABSOLUTE_INPUTS = "absolute inputs"


@dataclass
class LinearStatistics:
    """What calibration left for one linear."""

    reads: str
    """The linear that was first to read the same input tensor; query, key and value share theirs."""
    tokens: int = 0
    """Tokens seen, padding not counted."""
    input_squares: Tensor | None = None
    """float64 [in]: ``Σ_tokens x_j²``. A sum, so that statistics of several devices add up."""
    input_absolutes: Tensor | None = None
    """float64 [in]: ``Σ_tokens |x_j|``, a sum as well."""
    read_gradient: Callable[[], Tensor] | None = None
    """Gives float32 [out, in]: the gradient of the loss, summed over batches."""
    read_squared_gradient: Callable[[], Tensor] | None = None
    """Gives float32 [out, in]: the squares of each batch's gradient, summed over batches."""

    @property
    def input_norm(self) -> Tensor:
        """float32 [in]: ``‖X_j‖₂``, the l2 norm of every input feature over all tokens."""
        assert self.input_squares is not None
        return self.input_squares.sqrt().float()

    @property
    def input_mean(self) -> Tensor:
        """float32 [in]: ``mean|x_j|``, the mean magnitude of every input feature over all tokens."""
        assert self.input_absolutes is not None
        return (self.input_absolutes / max(self.tokens, 1)).float()

    @property
    def gradient(self) -> Tensor:
        """float32 [out, in]: ``Σ_batches g``. Read from the disk at each use, so it is the reader's to change."""
        assert self.read_gradient is not None
        return self.read_gradient()

    @property
    def squared_gradient(self) -> Tensor:
        """float32 [out, in]: ``Σ_batches g²``, g the gradient of one batch. Read at each use as well."""
        assert self.read_squared_gradient is not None
        return self.read_squared_gradient()


class Statistics(dict[str, LinearStatistics]):
    """Statistics of each linear by name. Closing it, or leaving it as a context, removes its temporary file."""

    def __init__(self, linears: Mapping[str, LinearStatistics], gradients: GradientSums | None = None) -> None:
        super().__init__(linears)
        self._gradients = gradients
        self.vectors: dict[str, Tensor] = gradients.vectors if gradients else {}
        """float32 [n] on the CPU: ``Σ_batches g²`` of the further parameters that were watched, by name."""

    def close(self) -> None:
        """Gradients cannot be read any more; all else stays."""
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
    """Runs ``batches`` through the model and returns statistics of each linear.

    Args:
        model: any module; run in eval mode, and left in the mode and on the device it was in.
        linears: the linears to watch, by name.
        batches: what the model takes: a mapping (keyword arguments), a tuple or list (positional), or one tensor.
            Where a batch has an ``attention_mask`` [batch, tokens], positions that it masks are not counted.
        needs: ``INPUTS`` for the input norms and ``ABSOLUTE_INPUTS`` for the input means (forward only);
            ``GRADIENTS`` and ``SQUARED_GRADIENTS`` for those of the loss, which the model must return (give it
            labels). A batch's gradient is that of its loss, as a rule the mean over its rows, so squared gradients are
            squares per batch and not per row. Empty: only which linears share an input.
        on_batch: called with the number of batches done, for progress.
        vectors: further parameters of the model, small ones (biases, norms), whose squared gradients are summed too.

    Returns:
        Statistics in the order of ``linears``. With gradients they hold a temporary file: use them as a context.

    Raises:
        InputError: no batches; a linear that never ran; a loss that is missing or not finite; a temporary folder
            that cannot hold the sums of gradients (4 bytes a weight).
    """
    backward = bool(vectors) or not {GRADIENTS, SQUARED_GRADIENTS}.isdisjoint(needs)
    gradients = GradientSums(linears, vectors or {}, needs) if backward else None
    watch = _Watch(linears, needs)
    with ExitStack() as on_error:
        if gradients is not None:
            on_error.callback(gradients.close)
        _run(model, batches, watch, gradients, on_batch)
        idle = [name for name in linears if name not in watch.seen]
        if idle:
            raise InputError(
                f"{len(idle)} linear(s) never ran on the calibration data, {idle[0]!r} first; "
                "leave them out by naming the linears to use"
            )
        on_error.pop_all()
    if gradients is not None:
        for name, seen in watch.seen.items():
            seen.read_gradient = gradients.reader(GRADIENTS, name)
            seen.read_squared_gradient = gradients.reader(SQUARED_GRADIENTS, name)
    return Statistics({name: watch.seen[name] for name in linears}, gradients)


def _run(
    model: nn.Module,
    batches: Iterable[Any],
    watch: _Watch,
    gradients: GradientSums | None,
    on_batch: Callable[[int], None] | None,
) -> None:
    """Every batch forward, and backward where gradients are asked for."""
    done = 0
    with ExitStack() as stack:
        stack.enter_context(_evaluating(model))
        stack.enter_context(watch.hooks())
        stack.enter_context(torch.set_grad_enabled(gradients is not None))
        if gradients is not None:
            stack.enter_context(gradients.watching(model))
        for done, batch in enumerate(batches, start=1):
            watch.start(batch)
            output = run(model, batch)
            if gradients is not None:
                _loss(output, done).backward()  # type: ignore[no-untyped-call]
            if on_batch is not None:
                on_batch(done)
    if not done:
        raise InputError("no calibration batches were given: selection needs at least one batch of the task's data")


def run(model: nn.Module, batch: Any) -> Any:
    """``model(batch)`` with the batch moved to the model's device; mappings and sequences are unpacked."""
    device = next(model.parameters()).device
    if isinstance(batch, Mapping):
        return model(**{key: _moved(value, device) for key, value in batch.items()})
    if isinstance(batch, tuple | list):
        return model(*(_moved(value, device) for value in batch))
    return model(_moved(batch, device))


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _loss(output: Any, batch: int) -> Tensor:
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", output)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise InputError("this rule needs the gradient of a loss, but the model gave none: put labels in the batches")
    if not torch.isfinite(loss):
        raise InputError(f"the loss of calibration batch {batch} is {loss.item()}, so its gradient says nothing")
    return loss


@dataclass
class _Input:
    """A tensor that linears of the running batch read."""

    tensor: weakref.ref[Tensor]
    version: int
    reader: str
    """The first linear that read it."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """By what is needed of inputs."""


class _Watch:
    """Hooks on linears, and what they have seen so far."""

    def __init__(self, linears: Mapping[str, Linear], needs: Collection[str]) -> None:
        self.seen: dict[str, LinearStatistics] = {}
        self._linears, self._needs = linears, needs
        self._inputs: dict[tuple[int, Kind], _Input] = {}  # by id
        self._mask: Tensor | None = None

    def start(self, batch: Any) -> None:
        """A new batch: its mask counts, and inputs seen before are forgotten."""
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        self._mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        self._inputs.clear()

    @contextmanager
    def hooks(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, linear in self._linears.items():
                handle = linear.module.register_forward_pre_hook(
                    lambda _, given, named, name=name: self._see_input(name, next(iter((*given, *named.values())))),
                    with_kwargs=True,
                )
                stack.callback(handle.remove)
            yield

    def _see_input(self, name: str, x: Tensor) -> None:
        known = self._input(name, x)
        seen = self.seen.setdefault(name, LinearStatistics(reads=known.reader))
        if not (INPUTS in self._needs or ABSOLUTE_INPUTS in self._needs):
            return
        kind = self._linears[name].kind
        kept = self._kept_tokens(kind.positions(x), x.device)
        seen.tokens += int(kept.sum()) if kept is not None else kind.positions(x).numel()
        if INPUTS in self._needs:
            squares = self._sum(INPUTS, known, kind, x, kept)
            seen.input_squares = squares if seen.input_squares is None else seen.input_squares + squares
        if ABSOLUTE_INPUTS in self._needs:
            absolutes = self._sum(ABSOLUTE_INPUTS, known, kind, x, kept)
            seen.input_absolutes = absolutes if seen.input_absolutes is None else seen.input_absolutes + absolutes

    def _sum(self, need: str, known: _Input, kind: Kind, x: Tensor, kept: Tensor | None) -> Tensor:
        """The sum over the tokens of x, taken once however many linears read it."""
        if need not in known.sums:
            known.sums[need] = kind.sums(x.detach(), kept, _OF_INPUTS[need])
        return known.sums[need]

    def _input(self, name: str, x: Tensor) -> _Input:
        """What is known of the input that ``name`` reads now; one changed in place since is another input."""
        key = id(x), self._linears[name].kind
        known = self._inputs.get(key)
        if known is None or known.tensor() is not x or known.version != version(x):
            known = self._inputs[key] = _Input(weakref.ref(x), version(x), reader=name)
        return known

    def _kept_tokens(self, positions: torch.Size, device: torch.device) -> Tensor | None:
        """float32 [tokens]: 1 where a position counts; None where all do."""
        if self._mask is None or positions != self._mask.shape:
            return None
        return self._mask.to(device=device, dtype=torch.float32).flatten()


_OF_INPUTS = {INPUTS: torch.square, ABSOLUTE_INPUTS: torch.abs}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was
