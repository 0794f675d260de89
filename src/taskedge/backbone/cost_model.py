"""FLOPs, bytes and payload of a model's blocks, counted by watching one sequence pass: nothing is specific to a model.

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
from taskedge.backbone.cost_table import BlockTable, Floats
from taskedge.backbone.linears import candidates
from taskedge.errors import BudgetError, InputError

Ints = NDArray[np.int64]


def block_table(model: nn.Module, inputs: Mapping[str, Tensor], share: float, name: str) -> BlockTable:
    """Counts what the blocks of ``model`` cost.

    Args:
        model: any module with repeated blocks; left as it was found.
        inputs: keyword arguments of one forward pass, [sequences, tokens, ...] first; an image counts as one token.
        share: trained entries as a share of all the model's parameters, spread evenly over the neurons of the
            blocks' linears (the ``per_neuron`` allocation); the sum over blocks is exact.
        name: what to call the model in plans and messages.

    Returns:
        The table, one row per layer, nearest the loss first.

    Raises:
        InputError: the model has no repeated blocks, or no gradient reaches them.
        BudgetError: the share is more than the blocks' linears hold.
    """
    found = sorted(blocks(model), key=lambda block: block.depth)
    if not found:
        raise InputError(f"{name} ({type(model).__name__}) has no repeated blocks to plan with")
    shape = next(iter(inputs.values())).shape
    sequences, length = shape[0], shape[1] if len(shape) < 4 else 1
    watch = _Watch(model, found)
    forward, backward, total = watch.run(inputs)
    tokens = sequences * length
    rows = _per_block(model, found, lambda shape: shape[0])
    entries, most = (
        round(share * sum(parameter.numel() for parameter in model.parameters())),
        int(_per_block(model, found, math.prod).sum()),
    )
    if entries > most:
        raise BudgetError(f"{entries:,} trained entries are more than the {most:,} weights in the blocks of {name}")
    return BlockTable(
        layers=tuple((block.name,) for block in found),
        parameters=np.array([sum(p.numel() for p in block.module.parameters()) for block in found], dtype=np.float64),
        forward_flops=forward / tokens,
        backward_flops=backward / tokens,
        activation_bytes=watch.saved_bytes() / tokens,
        input_bytes=watch.input_bytes() / tokens,
        boundary_bytes=watch.boundary_bytes() / tokens,
        payload_values=spread(entries, rows).astype(np.float64),
        other_forward_flops=(total - float(forward.sum())) / tokens,
        base_bytes=float(sum(p.numel() * p.element_size() for p in (*model.parameters(), *model.buffers()))),
        sequence_tokens=length,
        model=name,
        digest=shape_digest(model),
    )


def shape_digest(model: nn.Module) -> str:
    """Hex fingerprint (96 bit) of the names, shapes and types of the model's parameters.

    Cost depends on the shape alone, so two fine-tunings of one model share their profiles.
    """
    lines = [f"{name} {tuple(p.shape)} {p.dtype}" for name, p in model.named_parameters()]
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=12).hexdigest()


def spread(entries: int, rows: Ints) -> Ints:
    """``entries`` divided over blocks in proportion to ``rows`` [L]: whole numbers, exact sum (largest remainder)."""
    if not rows.sum():
        return np.zeros(len(rows), dtype=np.int64)
    exact = entries * rows / rows.sum()
    whole: Ints = np.floor(exact).astype(np.int64)
    for place in np.argsort(whole - exact, kind="stable")[: entries - int(whole.sum())]:
        whole[place] += 1
    return whole


def skeleton(model: str) -> nn.Module:
    """The body of a Hugging Face model on the meta device: the config's shape, no weights.

    Raises:
        InputError: there is no config of that name, or transformers does not know its architecture.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(model)
        with torch.device("meta"):
            built: nn.Module = transformers.AutoModel.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"model {model!r} has no config that can be used: {first}") from None
    return built


def dummy_inputs(model: nn.Module, sequences: int, length: int) -> dict[str, Tensor]:
    """Token ids [sequences, length] on the model's device; ids do not matter, costs depend on shapes only."""
    device, config = next(model.parameters()).device, getattr(model, "config", None)
    limit, vocabulary = (getattr(config, key, None) for key in ("max_position_embeddings", "vocab_size"))
    if vocabulary is None:
        raise InputError(f"{type(model).__name__} takes no token ids; from Python, block_table() counts any model")
    if limit is not None and length > limit:
        raise InputError(f"{length} tokens are more than the {limit} positions of the model; give a smaller --length")
    ids = torch.zeros(sequences, length, dtype=torch.long, device=device)
    if device.type != "meta":
        ids = torch.randint(min(5, vocabulary - 1), vocabulary, ids.shape, device=device)
    inputs = {"input_ids": ids}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    return inputs


def _per_block(model: nn.Module, found: list[Block], count: Callable[[tuple[int, int]], int]) -> Ints:
    """[L] sum of ``count(shape)`` over the candidate linears of each block."""
    layers = candidates(model)
    return np.array(
        [
            sum(count(layer.shape) for name, layer in layers.items() if name.startswith(f"{block.name}."))
            for block in found
        ]
    )


class _Watch:
    """One forward and backward pass through frozen weights, with the FLOPs and saved tensors of each block."""

    def __init__(self, model: nn.Module, found: list[Block]) -> None:
        self._model, self._found = model, found
        self._now: int | None = None  # the block whose forward runs
        self._saved: list[dict[int, Tensor]] = [{} for _ in found]  # storages kept per block
        self._fed: list[dict[int, Tensor]] = [{} for _ in found]  # inputs of its linears
        self._hooks: list[Any] = []

    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Floats, Floats, float]:
        """FLOPs per block forward [L] and backward [L], and of the whole forward pass."""
        wanted = [(p, p.requires_grad) for p in self._model.parameters()]
        training = self._model.training
        try:
            self._model.requires_grad_(False).train()
            self._attach()
            self._weights = {_key(t) for t in (*self._model.parameters(), *self._model.buffers())}
            forward = FlopCounterMode(display=False)
            with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor), forward:
                loss = scalar(self._model(**inputs))
            if not loss.requires_grad:
                raise InputError(f"no gradient reaches the blocks of {type(self._model).__name__}")
            back = FlopCounterMode(display=False)
            marks = self._mark_backward(back)
            with back:
                loss.backward()  # type: ignore[no-untyped-call]
        finally:
            for hook in self._hooks:
                hook.remove()
            for parameter, flag in wanted:
                parameter.requires_grad_(flag)
            self._model.train(training)
        counts = forward.get_flop_counts()
        top = type(self._model).__name__
        per_block = [sum(counts.get(f"{top}.{block.name}", {}).values()) for block in self._found]
        return np.array(per_block, dtype=np.float64), self._between(marks, back), float(forward.get_total_flops())

    def saved_bytes(self) -> Floats:
        return np.array([sum(_bytes(t) for t in kept.values()) for kept in self._saved], dtype=np.float64)

    def input_bytes(self) -> Floats:
        everywhere = {key for kept in self._saved for key in kept}
        return np.array(
            [sum(_bytes(t) for key, t in fed.items() if key not in everywhere) for fed in self._fed], dtype=np.float64
        )

    def boundary_bytes(self) -> Floats:
        return np.array([0 if edge is None else _bytes(edge) for edge in self._edges], dtype=np.float64)

    def _attach(self) -> None:
        deepest = len(self._found) - 1
        self._edges: list[Tensor | None] = [None] * len(self._found)  # output of each block, where it has a gradient
        layers = candidates(self._model)
        for place, block in enumerate(self._found):
            if place == deepest:
                self._hooks.append(block.module.register_forward_pre_hook(_start_gradient, with_kwargs=True))
            self._hooks.append(block.module.register_forward_pre_hook(partial(self._enter, place)))
            self._hooks.append(block.module.register_forward_hook(partial(self._leave, place)))
            for name, layer in layers.items():
                if name.startswith(f"{block.name}."):
                    self._hooks.append(
                        layer.module.register_forward_pre_hook(partial(self._feed, place), with_kwargs=True)
                    )

    def _enter(self, place: int, *_: Any) -> None:
        self._now = place

    def _leave(self, place: int, _module: nn.Module, _args: Any, output: Any) -> None:
        self._now = None
        self._edges[place] = first_float(output)

    def _feed(self, place: int, _module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        x = next(iter((*args, *kwargs.values())))
        self._fed[place].setdefault(_key(x), x)

    def _keep(self, tensor: Tensor) -> Tensor:
        if self._now is not None and _key(tensor) not in self._weights:
            self._saved[self._now].setdefault(_key(tensor), tensor)
        return tensor

    def _mark_backward(self, counter: FlopCounterMode) -> list[int]:
        """A list that receives the running FLOP total each time the gradient leaves one block for the next."""
        marks: list[int] = [-1] * len(self._found)
        for place, edge in enumerate(self._edges):
            if edge is not None and edge.requires_grad:
                edge.register_hook(partial(_mark, marks, place, counter))  # type: ignore[no-untyped-call]
        return marks

    def _between(self, marks: list[int], counter: FlopCounterMode) -> Floats:
        """Backward FLOPs of each block: between the gradient reaching its output and leaving its input."""
        ends = [*marks[1:], counter.get_total_flops()]
        return np.asarray(np.maximum(np.array(ends, dtype=np.float64) - np.array(marks), 0.0))


def scalar(output: Any) -> Tensor:
    """A loss of any model output: the mean square of its first floating-point tensor."""
    return first_float(output).float().square().mean()


def first_float(output: Any) -> Tensor:
    """The first floating-point tensor in a tensor, a tuple or a mapping.

    Raises:
        InputError: there is none.
    """
    parts = [output] if isinstance(output, Tensor) else output.values() if isinstance(output, Mapping) else output
    for part in parts:
        if isinstance(part, Tensor) and part.is_floating_point():
            return part
    raise InputError("the model's output holds no floating-point tensor")


def _start_gradient(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Makes the first floating-point argument the place that gradients flow to."""
    values = list(args)
    for index, value in enumerate(values):
        if isinstance(value, Tensor) and value.is_floating_point():
            values[index] = value.detach().requires_grad_()
            return tuple(values), kwargs
    for key, value in kwargs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            return args, kwargs | {key: value.detach().requires_grad_()}
    return args, kwargs


def _mark(marks: list[int], place: int, counter: FlopCounterMode, _: Tensor) -> None:
    marks[place] = counter.get_total_flops()


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
