"""FLOPs, bytes and payload of a model's blocks, counted during one forward and backward pass of any model.

Works on the meta device, where a model has shapes but no weights, so a config is enough (:func:`skeleton`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from taskedge.backbone.blocks import Block, blocks
from taskedge.backbone.candidates import candidates
from taskedge.backbone.cost_table import BlockTable, Floats
from taskedge.backbone.layers import first_input
from taskedge.backbone.shapes import load_config
from taskedge.errors import BudgetError, InputError

Ints = NDArray[np.int64]


def block_table(model: nn.Module, inputs: Mapping[str, Tensor], share: float, name: str) -> BlockTable:
    """Count the costs of the blocks of ``model``.

    Args:
        model: any module with repeated blocks; its state is restored afterwards.
        inputs: keyword arguments of one forward pass, [sequences, tokens, ...] first; an image counts as one token.
        share: trained entries as a share of all the model's parameters, spread evenly over the neurons of the
            blocks' linears (the ``per_neuron`` allocation); the sum over blocks is exact.
        name: of the model, for plans and messages.

    Returns:
        The table, one row per layer, nearest the loss first.

    Raises:
        InputError: the model has no repeated blocks, or no gradient reaches them.
        BudgetError: the share is more than the weights of the blocks' linears.
    """
    by_depth = sorted(blocks(model), key=lambda block: block.depth)
    if not by_depth:
        raise InputError(f"{name} ({type(model).__name__}) has no repeated blocks to plan with")
    shape = next(iter(inputs.values())).shape
    length = shape[1] if len(shape) < 4 else 1
    tokens = shape[0] * length
    counter = _PassCounter(model, by_depth)
    forward, backward, total = counter.run(inputs)
    entries = round(share * sum(parameter.numel() for parameter in model.parameters()))
    max_entries = int(_sum_per_block(model, by_depth, math.prod).sum())
    if entries > max_entries:
        raise BudgetError(
            f"{entries:,} trained entries are more than the {max_entries:,} weights in the blocks of {name}"
        )
    neurons = _sum_per_block(model, by_depth, lambda shape: shape[0])
    return BlockTable(
        layers=tuple((block.name,) for block in by_depth),
        parameters=np.array(
            [sum(p.numel() for p in block.module.parameters()) for block in by_depth], dtype=np.float64
        ),
        forward_flops=forward / tokens,
        backward_flops=backward / tokens,
        activation_bytes=counter.saved_bytes() / tokens,
        input_bytes=counter.input_bytes() / tokens,
        boundary_bytes=counter.boundary_bytes() / tokens,
        payload_values=distribute_entries(entries, neurons).astype(np.float64),
        other_forward_flops=(total - float(forward.sum())) / tokens,
        base_bytes=float(sum(p.numel() * p.element_size() for p in (*model.parameters(), *model.buffers()))),
        sequence_tokens=length,
        model=name,
        digest=shape_digest(model),
    )


def shape_digest(model: nn.Module) -> str:
    """Return a hex fingerprint (96 bit) of the names, shapes and dtypes of the model's parameters.

    Cost depends on the shape alone, so two fine-tunings of one model share their profiles.
    """
    lines = [f"{name} {tuple(p.shape)} {p.dtype}" for name, p in model.named_parameters()]
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=12).hexdigest()


def distribute_entries(entries: int, neurons: Ints) -> Ints:
    """Divide ``entries`` over blocks in proportion to ``neurons`` [L]: integers of exact sum (largest remainder)."""
    if not neurons.sum():
        return np.zeros(len(neurons), dtype=np.int64)
    exact = entries * neurons / neurons.sum()
    shares: Ints = np.floor(exact).astype(np.int64)
    remaining = entries - int(shares.sum())
    for i in np.argsort(shares - exact, kind="stable")[:remaining]:
        shares[i] += 1
    return shares


def skeleton(model: str) -> nn.Module:
    """Return the body of a Hugging Face model on the meta device: the shape in its config, no weights.

    Raises:
        InputError: there is no config of that name, or transformers does not know its architecture.
    """
    import transformers

    config = load_config(model)
    try:
        with torch.device("meta"):
            body: nn.Module = transformers.AutoModel.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise InputError(f"model {model!r} has no config that can be used: {first_line}") from None
    return body


def dummy_inputs(model: nn.Module, sequences: int, length: int) -> dict[str, Tensor]:
    """Return token ids [sequences, length] on the model's device; costs do not depend on their values.

    Raises:
        InputError: the model takes no token ids, or has fewer positions than ``length``.
    """
    device, config = next(model.parameters()).device, getattr(model, "config", None)
    max_length = getattr(config, "max_position_embeddings", None)
    vocabulary = getattr(config, "vocab_size", None)
    if vocabulary is None:
        raise InputError(f"{type(model).__name__} takes no token ids; from Python, block_table() counts any model")
    if max_length is not None and length > max_length:
        raise InputError(
            f"{length} tokens are more than the {max_length} positions of the model; give a smaller --length"
        )
    ids = torch.zeros(sequences, length, dtype=torch.long, device=device)
    if device.type != "meta":
        ids = torch.randint(min(5, vocabulary - 1), vocabulary, ids.shape, device=device)
    inputs = {"input_ids": ids}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    return inputs


def scalar_loss(output: Any) -> Tensor:
    """Return a loss of any model output: the mean square of its first floating-point tensor."""
    return first_float(output).float().square().mean()


def first_float(output: Any) -> Tensor:
    """Return the first floating-point tensor in a tensor, a tuple or a mapping.

    Raises:
        InputError: there is none.
    """
    if isinstance(output, Mapping):
        output = output.values()
    for part in (output,) if isinstance(output, Tensor) else output:
        if isinstance(part, Tensor) and part.is_floating_point():
            return part
    raise InputError("the model's output holds no floating-point tensor")


def _sum_per_block(model: nn.Module, by_depth: list[Block], count: Callable[[tuple[int, int]], int]) -> Ints:
    """Return [L], the sum of ``count(shape)`` over the candidate linears of each block."""
    layers = candidates(model)
    return np.array(
        [
            sum(count(layer.shape) for name, layer in layers.items() if name.startswith(f"{block.name}."))
            for block in by_depth
        ]
    )


class _PassCounter:
    """One forward and backward pass through frozen weights, with the FLOPs and saved tensors of each block."""

    def __init__(self, model: nn.Module, by_depth: list[Block]) -> None:
        self._model, self._blocks = model, by_depth
        self._running: int | None = None  # index of the block whose forward pass runs
        self._saved: list[dict[int, Tensor]] = [{} for _ in by_depth]  # by storage, per block
        self._inputs: list[dict[int, Tensor]] = [{} for _ in by_depth]  # of its linears, by storage
        self._outputs: list[Tensor | None] = [None] * len(by_depth)  # of each block, where it has a gradient
        self._weights: set[int] = set()  # storages
        self._hooks: list[Any] = []

    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Floats, Floats, float]:
        """Return FLOPs per block forward [L] and backward [L], and those of the whole forward pass."""
        required_grad = [(p, p.requires_grad) for p in self._model.parameters()]
        training = self._model.training
        try:
            self._model.requires_grad_(False).train()
            self._add_hooks()
            self._weights = {_storage(t) for t in (*self._model.parameters(), *self._model.buffers())}
            forward_counter = FlopCounterMode(display=False)
            with torch.autograd.graph.saved_tensors_hooks(self._on_save, lambda tensor: tensor), forward_counter:
                loss = scalar_loss(self._model(**inputs))
            if not loss.requires_grad:
                raise InputError(f"no gradient reaches the blocks of {type(self._model).__name__}")
            backward_counter = FlopCounterMode(display=False)
            marks = self._mark_backward(backward_counter)
            with backward_counter:
                loss.backward()  # type: ignore[no-untyped-call]
        finally:
            for hook in self._hooks:
                hook.remove()
            for parameter, required in required_grad:
                parameter.requires_grad_(required)
            self._model.train(training)
        counts = forward_counter.get_flop_counts()
        top = type(self._model).__name__
        forward = [sum(counts.get(f"{top}.{block.name}", {}).values()) for block in self._blocks]
        total = float(forward_counter.get_total_flops())
        return np.array(forward, dtype=np.float64), _differences(marks, backward_counter), total

    def saved_bytes(self) -> Floats:
        return np.array([sum(_bytes(t) for t in saved.values()) for saved in self._saved], dtype=np.float64)

    def input_bytes(self) -> Floats:
        """Return [L] bytes of the inputs of linears that the backward pass has not saved anyway."""
        saved_anywhere = {key for saved in self._saved for key in saved}
        return np.array(
            [sum(_bytes(t) for key, t in inputs.items() if key not in saved_anywhere) for inputs in self._inputs],
            dtype=np.float64,
        )

    def boundary_bytes(self) -> Floats:
        return np.array([0 if output is None else _bytes(output) for output in self._outputs], dtype=np.float64)

    def _add_hooks(self) -> None:
        layers = candidates(self._model)
        for i, block in enumerate(self._blocks):
            if i == len(self._blocks) - 1:  # the deepest: gradients end at its input
                self._hooks.append(block.module.register_forward_pre_hook(_require_gradient, with_kwargs=True))
            self._hooks.append(block.module.register_forward_pre_hook(partial(self._on_enter, i)))
            self._hooks.append(block.module.register_forward_hook(partial(self._on_leave, i)))
            for name, layer in layers.items():
                if name.startswith(f"{block.name}."):
                    on_input = partial(self._on_input, i)
                    self._hooks.append(layer.module.register_forward_pre_hook(on_input, with_kwargs=True))

    def _on_enter(self, i: int, *_: Any) -> None:
        self._running = i

    def _on_leave(self, i: int, _module: nn.Module, _args: Any, output: Any) -> None:
        self._running = None
        self._outputs[i] = first_float(output)

    def _on_input(self, i: int, _module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        x = first_input(args, kwargs)
        self._inputs[i].setdefault(_storage(x), x)

    def _on_save(self, tensor: Tensor) -> Tensor:
        if self._running is not None and _storage(tensor) not in self._weights:
            self._saved[self._running].setdefault(_storage(tensor), tensor)
        return tensor

    def _mark_backward(self, counter: FlopCounterMode) -> list[int]:
        """Return a list that receives the running FLOP total each time the gradient leaves one block for the next."""
        marks = [-1] * len(self._blocks)
        for i, output in enumerate(self._outputs):
            if output is not None and output.requires_grad:
                output.register_hook(partial(_mark, marks, i, counter))  # type: ignore[no-untyped-call]
        return marks


def _differences(marks: list[int], counter: FlopCounterMode) -> Floats:
    """Return backward FLOPs of each block: between the gradient reaching its output and leaving its input."""
    ends = [*marks[1:], counter.get_total_flops()]
    return np.asarray(np.maximum(np.array(ends, dtype=np.float64) - np.array(marks), 0.0))


def _require_gradient(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Make the first floating-point argument a leaf that requires a gradient."""
    values = list(args)
    for i, value in enumerate(values):
        if isinstance(value, Tensor) and value.is_floating_point():
            values[i] = value.detach().requires_grad_()
            return tuple(values), kwargs
    for key, value in kwargs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            return args, kwargs | {key: value.detach().requires_grad_()}
    return args, kwargs


def _mark(marks: list[int], i: int, counter: FlopCounterMode, _: Tensor) -> None:
    marks[i] = counter.get_total_flops()


def _storage(tensor: Tensor) -> int:
    """Return a key of the tensor's storage."""
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
