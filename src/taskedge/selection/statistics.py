"""One pass over calibration data: what every linear's inputs look like, and where the loss pulls.

Nothing of the model is changed, and no activation outlives the layer that made it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.kinds import Kind
from taskedge.backbone.linears import Linear, version
from taskedge.errors import InputError

INPUTS = "inputs"
GRADIENTS = "gradients"


@dataclass
class LinearStatistics:
    """What calibration left for one linear."""

    reads: str
    """The linear that was first to read the same input tensor; query, key and value share theirs."""
    tokens: int = 0
    """Tokens seen, padding not counted."""
    input_squares: Tensor | None = None
    """float64 [in]: ``Σ_tokens x_j²``. A sum, so that statistics of several devices add up."""
    gradient: Tensor | None = None
    """float32 [out, in]: the gradient of the loss, summed over batches."""

    @property
    def input_norm(self) -> Tensor:
        """float32 [in]: ``‖X_j‖₂``, the l2 norm of every input feature over all tokens."""
        assert self.input_squares is not None
        return self.input_squares.sqrt().float()


Statistics = dict[str, LinearStatistics]


def measure(
    model: nn.Module,
    linears: Mapping[str, Linear],
    batches: Iterable[Any],
    needs: Collection[str] = (INPUTS,),
    on_batch: Callable[[int], None] | None = None,
) -> Statistics:
    """Runs ``batches`` through the model and returns statistics of each linear.

    Args:
        model: any module; run in eval mode, and left in the mode and on the device it was in.
        linears: the linears to watch, by name.
        batches: what the model takes: a mapping (keyword arguments), a tuple or list (positional), or one tensor.
            Where a batch has an ``attention_mask`` [batch, tokens], positions that it masks are not counted.
        needs: ``"inputs"`` for the input norms (forward only), ``"gradients"`` for the gradient of the loss (the
            model must return one: give it labels). Empty: only which linears share an input.
        on_batch: called with the number of batches done, for progress.

    Raises:
        InputError: no batches; a linear that never ran; a loss that is missing or not finite.
    """
    watch = _Watch(linears, needs)
    done = 0
    with ExitStack() as stack:
        stack.enter_context(_evaluating(model))
        stack.enter_context(watch.hooks())
        stack.enter_context(torch.set_grad_enabled(GRADIENTS in needs))
        if GRADIENTS in needs:
            stack.enter_context(_only_these_require_grad(model, linears))
        for done, batch in enumerate(batches, start=1):
            watch.start(batch)
            output = run(model, batch)
            if GRADIENTS in needs:
                _loss(output, done).backward()  # type: ignore[no-untyped-call]
            if on_batch is not None:
                on_batch(done)
    if not done:
        raise InputError("no calibration batches were given: selection needs at least one batch of the task's data")
    idle = [name for name in linears if name not in watch.statistics]
    if idle:
        raise InputError(
            f"{len(idle)} linear(s) never ran on the calibration data, {idle[0]!r} first; "
            "leave them out by naming the linears to use"
        )
    if GRADIENTS in needs:
        watch.fill_in_zero_gradients()
    return {name: watch.statistics[name] for name in linears}


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
    squares: Tensor | None = None


class _Watch:
    """Hooks on linears, and what they have seen so far."""

    def __init__(self, linears: Mapping[str, Linear], needs: Collection[str]) -> None:
        self.statistics: Statistics = {}
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
                if GRADIENTS in self._needs:
                    weight = linear.module.weight
                    assert isinstance(weight, Tensor)
                    handle = weight.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                        lambda parameter, name=name: self._see_gradient(name, parameter)
                    )
                    stack.callback(handle.remove)
            yield

    def _see_input(self, name: str, x: Tensor) -> None:
        known = self._input(name, x)
        seen = self.statistics.setdefault(name, LinearStatistics(reads=known.reader))
        if INPUTS not in self._needs:
            return
        kind = self._linears[name].kind
        kept = self._kept_tokens(kind.positions(x), x.device)
        if known.squares is None:
            known.squares = kind.sums(x.detach(), kept, torch.square)
        seen.tokens += int(kept.sum()) if kept is not None else kind.positions(x).numel()
        seen.input_squares = known.squares if seen.input_squares is None else seen.input_squares + known.squares

    def _see_gradient(self, name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient = self._linears[name].kind.matrix(parameter.grad.detach().float())
        parameter.grad = None  # one dense gradient at a time
        seen = self.statistics[name]
        seen.gradient = gradient if seen.gradient is None else seen.gradient.add_(gradient)

    def fill_in_zero_gradients(self) -> None:
        """A weight that the loss does not depend on is given none by autograd."""
        for name, linear in self._linears.items():
            seen = self.statistics[name]
            if seen.gradient is None:
                seen.gradient = torch.zeros(linear.shape, device=linear.weight.device)

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


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was


@contextmanager
def _only_these_require_grad(model: nn.Module, linears: Mapping[str, Linear]) -> Iterator[None]:
    before = {parameter: (parameter.requires_grad, parameter.grad) for parameter in model.parameters()}
    wanted = {id(linear.module.weight) for linear in linears.values()}
    for parameter in before:
        parameter.requires_grad_(id(parameter) in wanted)
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, (required, gradient) in before.items():
            parameter.requires_grad_(required)
            parameter.grad = gradient
