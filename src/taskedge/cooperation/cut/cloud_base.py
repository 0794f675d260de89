"""The cloud's half of a model: the frozen blocks, which run a device's embedded tokens and stop at its modules.

The blocks are those of transformers, unchanged and never written to. A hook replaces what enters the first block by the
device's embedded tokens, and another ends the forward pass behind the last one. At the first linear of a group, a pass
sends the device columns of its input, and adds the answer to the outputs of the group's linears. In the backward pass
autograd arrives there again, with the gradients of these outputs. Below the lowest active module nothing requires a
gradient, so autograd stores nothing there and ends above.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from taskedge.backbone.blocks import blocks
from taskedge.backbone.candidates import candidates
from taskedge.backbone.experts import ExpertLinear
from taskedge.backbone.layers import Linear, LinearAdapter, first_input
from taskedge.cooperation.cut.module_groups import Group
from taskedge.errors import InputError, TaskEdgeError

Ask = Callable[[str, Group, Tensor, bool], Tensor | None]
"""(kind, group, matrix, whether its input needs a gradient) -> the device's matrix."""


@dataclass
class Pass:
    """One batch of one device, on its way through the blocks.

    Attributes:
        hidden: what enters the first block, [batch, length, width].
        mask: int64 [batch, length], 0 at padding.
        groups: of the active modules.
        parked: what idle modules add to their outputs, from the input of the linear, by name.
        ask: asks the device, and waits for its answer.
    """

    hidden: Tensor
    mask: Tensor
    groups: list[Group] = field(default_factory=list)
    parked: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    ask: Ask | None = None

    def __post_init__(self) -> None:
        self.group_of = {module.name: group for group in self.groups for module in group.modules}
        self.anchor = torch.zeros((), requires_grad=bool(self.groups))
        self.started: dict[str, tuple[Tensor, tuple[Tensor, ...]]] = {}
        """Input and products of the groups that are under way, by the name of the group."""
        self.returns_tuple = False
        self.trains = False
        """Whether blocks are in training mode while this pass computes."""


class _Finished(Exception):
    """Ends the forward pass behind the last block."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


class _Exchange(torch.autograd.Function):
    """Additions of a group of modules to their outputs, from the device; the backward pass asks it again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, cut: Pass, group: Group) -> tuple[Tensor, ...]:  # type: ignore[override]
        assert cut.ask is not None
        ctx.cut, ctx.group, ctx.x = cut, group, (x.shape, x.dtype)
        products = cut.ask("columns", group, group.gather(x), ctx.needs_input_grad[0])
        assert products is not None
        return torch.split(products.to(x.device, x.dtype), group.row_counts, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        shape, dtype = ctx.x
        added = ctx.cut.ask("gradients", ctx.group, torch.cat(grads, 1), ctx.needs_input_grad[0])
        if added is None:
            return None, torch.zeros(()), None, None
        gradient = added.to(grads[0].device, dtype)
        if ctx.group.columns is not None:
            whole = gradient.new_zeros(len(gradient), shape[-1])
            gradient = whole.index_copy_(1, ctx.group.columns, gradient)
        return gradient.view(shape), torch.zeros(()), None, None


class CloudBase:
    """A frozen base whose blocks run passes of many devices, one at a time.

    Args:
        model: of transformers, without a head for a task; it is frozen.
        name: of the base, as its owner gave it: deltas name it.

    Raises:
        InputError: The model is no stack of blocks that read hidden states, or does not read token ids.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        config: Any = getattr(model, "config", None)
        self.model, self.name = model.requires_grad_(False).eval(), name
        self.blocks = blocks(model)
        stacks = {block.name.rpartition(".")[0] for block in self.blocks}
        if config is None or len(stacks) != 1 or getattr(config, "is_encoder_decoder", False):
            raise InputError(
                f"{name}: {type(model).__name__} has {len(stacks)} stacks of blocks, and the cut needs one: "
                "name an encoder or a causal language model"
            )
        if getattr(model, "main_input_name", "input_ids") != "input_ids":
            raise InputError(f"{name}: {type(model).__name__} reads no token ids: the cut is for models of texts")
        config.use_cache = False
        self.stack = stacks.pop()
        self.width = int(config.hidden_size)
        self.positions = getattr(config, "max_position_embeddings", None)
        self.dtype = next(self.blocks[0].module.parameters()).dtype
        self.device = next(model.parameters()).device
        inside = tuple(f"{block.name}." for block in self.blocks)
        self.linears: dict[str, Linear] = {
            name: linear
            for name, linear in candidates(model).items()
            if name.startswith(inside)
            and isinstance(linear.adapter, LinearAdapter)
            and not isinstance(linear.module, ExpertLinear)
        }
        self.shapes = {name: linear.shape for name, linear in self.linears.items()}
        self._current = threading.local()
        self.blocks[0].module.register_forward_pre_hook(self._enter, with_kwargs=True)
        self.blocks[-1].module.register_forward_hook(self._leave)
        for linear_name, linear in self.linears.items():
            linear.module.register_forward_hook(self._hook_of(linear_name), with_kwargs=True)

    def forward(self, cut: Pass, *, trains: bool) -> Tensor:
        """Run a pass through the blocks and return the last hidden states, [batch, length, width].

        Args:
            cut: The pass. With ``trains`` and active modules, autograd is recorded.
            trains: Whether blocks are in training mode (dropout) and a backward pass follows.
        """
        cut.trains = trains
        self._set_mode(trains)
        with self._running(cut), torch.set_grad_enabled(trains and bool(cut.groups)):
            try:
                self.model(input_ids=torch.zeros_like(cut.mask), attention_mask=cut.mask)
            except _Finished as finished:
                return finished.states
        raise TaskEdgeError(f"{self.name}: its forward pass does not end with block {self.blocks[-1].name}")

    def _set_mode(self, trains: bool) -> None:
        """Put the blocks, which all passes share, into the mode of the pass that computes."""
        for block in self.blocks:
            if block.module.training != trains:
                block.module.train(trains)

    def calibration_batch(self, cut: Pass) -> dict[str, Tensor]:
        """Make a pass the present one of this thread, and return the batch to call the model with."""
        self._current.cut = cut
        self._current.goes_on = True
        return {"input_ids": torch.zeros_like(cut.mask), "attention_mask": cut.mask}

    def end_calibration(self) -> None:
        """Forget the pass of :meth:`calibration_batch`."""
        self._current.cut, self._current.goes_on = None, False

    @contextmanager
    def _running(self, cut: Pass) -> Iterator[None]:
        self._current.cut, self._current.goes_on = cut, False
        try:
            yield
        finally:
            self._current.cut = None
            cut.started.clear()

    @property
    def _cut(self) -> Pass | None:
        return cast("Pass | None", getattr(self._current, "cut", None))

    def _enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cut = self._cut
        if cut is None:
            return None
        hidden = cut.hidden.to(self.device, self.dtype)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def _leave(self, _: nn.Module, args: Any, output: Any) -> None:
        cut = self._cut
        if cut is None or self._current.goes_on:
            return
        cut.returns_tuple = isinstance(output, tuple)
        raise _Finished(output[0] if cut.returns_tuple else output)

    def _hook_of(self, name: str) -> Callable[..., Tensor | None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
            cut = self._cut
            if cut is None:
                return None
            if name in cut.parked:
                return output + cut.parked[name](first_input(args, kwargs)).to(output.dtype)
            group = cut.group_of.get(name)
            return None if group is None else self._with_product(cut, group, name, first_input(args, kwargs), output)

        return hook

    def _with_product(self, cut: Pass, group: Group, name: str, x: Tensor, output: Tensor) -> Tensor:
        if group.name not in cut.started:
            products = _Exchange.apply(x, cut.anchor, cut, group)  # type: ignore[no-untyped-call]
            self._set_mode(cut.trains)  # while this pass waited, another may have computed in its own
            cut.started[group.name] = x, products
        shared, products = cut.started[group.name]
        if shared is not x:
            raise TaskEdgeError(
                f"{name} reads another tensor than {group.name}, with which the plan groups it: the calibration "
                "batches took another path through the model; leave the linear out"
            )
        index = [module.name for module in group.modules].index(name)
        rows, product = group.modules[index].rows, products[index]
        if rows is None:
            return output + product.view_as(output)
        return output.flatten(0, -2).index_add(1, rows.to(output.device), product).view_as(output)


def load_cloud_base(name: str, dtype: str = "auto", log: Callable[[str], None] = lambda _: None) -> CloudBase:
    """Load the base ``name`` without a head, for the cloud's end.

    Args:
        name: a folder or a hub id.
        dtype: see :data:`taskedge.backbone.loading.DTYPES`.
        log: called with a line.

    Raises:
        InputError: there is no such base, or it cannot be cut.
    """
    import transformers

    from taskedge.backbone.loading import DTYPES, explain_load_errors

    log(f"loading {name}")
    with explain_load_errors(name):
        model = transformers.AutoModel.from_pretrained(name, dtype=DTYPES[dtype], use_safetensors=True)
    return CloudBase(model, name)
