"""Tensors that a model and its deltas store, and how often one forward pass touches it: counted on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.cost_model import dummy_inputs, first_float, skeleton
from taskedge.backbone.layers import linears
from taskedge.backbone.loading import TASK_AUTO_CLASSES
from taskedge.backbone.shapes import load_config
from taskedge.delta.delta import Delta, LinearDelta, LowRankDelta
from taskedge.errors import DeltaError, InputError, did_you_mean
from taskedge.placement.stored_tensors import ActivationTraffic, BaseTensor, TaskSize


@dataclass(frozen=True)
class ModelTraffic:
    """The parameters of a base and the traffic of one pass.

    Attributes:
        base: every parameter that all tasks share.
        activations: inputs and outputs of the layers that have parameters.
        assumed: names of parameters whose own layer is never called, so that the calls of a layer around it count.
    """

    base: list[BaseTensor]
    activations: ActivationTraffic
    assumed: list[str]


def task_skeleton(model: str, delta: Delta | None) -> nn.Module:
    """Return the model of a delta's task on the meta device; without a delta, the body of the model.

    A delta that names no task gets the first kind of model that has its linears, or the body.

    Raises:
        InputError: the model has no usable config, or cannot do the task of the delta.
    """
    if delta is None:
        return skeleton(model)
    task = delta.provenance.task
    if task in TASK_AUTO_CLASSES:
        return _with_head(model, task, delta)
    for kind in TASK_AUTO_CLASSES:
        try:
            made = _with_head(model, kind, delta)
        except InputError:
            continue
        if {*delta.linears, *delta.low_rank} <= linears(made).keys():
            return made
    return skeleton(model)


def model_traffic(model: nn.Module, tokens: int, own: frozenset[str] = frozenset()) -> ModelTraffic:
    """Count what one forward pass of ``tokens`` tokens (or of one image) reads and writes.

    A layer reads each of its parameters once a call, however many tokens it computes; an embedding reads one row for
    each id. A parameter that several layers share is stored once and read by each.

    Args:
        model: a model on the meta device.
        tokens: of the pass.
        own: names of parameters that belong to tasks: they are left out.

    Raises:
        InputError: the model takes neither token ids nor images, or has fewer positions.
    """
    counter = _Traffic()
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
        counter.watch(name, module)
    with torch.no_grad():
        try:
            model.eval()(**_inputs(model, tokens))
        finally:
            counter.stop()
    base, assumed = [], []
    for name, parameter in model.named_parameters():
        if name in own:
            continue
        read = counter.read.get(id(parameter), 0)
        if not read:
            assumed.append(name)
            read = parameter.numel() * max(counter.calls_around(owner) for owner in owners[id(parameter)])
        base.append(BaseTensor(name, parameter.numel(), parameter.dim() > 1, read))
    activations = ActivationTraffic(counter.largest, counter.written, counter.inputs)
    return ModelTraffic(base, activations, assumed)


def task_size(name: str, delta: Delta, model: nn.Module) -> TaskSize:
    """Return what a task stores beside the base, after checking that the base has its layers.

    Raises:
        DeltaError: the model lacks a layer of the delta, or has it in another shape.
    """
    layers = linears(model)
    changes: dict[str, LinearDelta | LowRankDelta] = {**delta.linears, **delta.low_rank}
    for layer, change in changes.items():
        if layer not in layers:
            near = did_you_mean(layer, layers)
            raise DeltaError(f"task {name!r} changes linear {layer!r}, which the model does not have{near}")
        if layers[layer].shape != change.shape:
            raise DeltaError(
                f"task {name!r} changes linear {layer!r} of shape {list(change.shape)}; the model has it in "
                f"{list(layers[layer].shape)}: name the base of the delta with --model"
            )
    beside = delta.num_full_parameters + delta.num_low_rank_parameters
    beside += 0 if delta.prompt is None else delta.prompt.num_parameters
    return TaskSize(name, delta.num_entries, beside)


def _with_head(model: str, task: str, delta: Delta) -> nn.Module:
    import transformers

    config = load_config(model)
    if task.endswith("classification") and delta.provenance.labels:
        config.num_labels = len(delta.provenance.labels)
    elif task == "text-regression":
        config.num_labels = 1
    try:
        with torch.device("meta"):
            made: nn.Module = getattr(transformers, TASK_AUTO_CLASSES[task]).from_config(config)
    except (ValueError, KeyError) as error:
        line = str(error).strip().splitlines()[0]
        raise InputError(f"model {model!r} cannot do the task {task!r} of the delta: {line}") from None
    return made


def _inputs(model: nn.Module, tokens: int) -> dict[str, Tensor]:
    config = getattr(model, "config", None)
    size = getattr(config, "image_size", None)
    if getattr(config, "vocab_size", None) is None and size is not None:
        height, width = size if isinstance(size, list | tuple) else (size, size)
        channels = getattr(config, "num_channels", 3)
        return {"pixel_values": torch.zeros(1, channels, height, width, device=next(model.parameters()).device)}
    try:
        return dummy_inputs(model, 1, tokens)
    except InputError as error:
        text = str(error).replace("give a smaller --length", "give fewer tokens_per_pass in the chip file")
        raise InputError(text) from None


@dataclass
class _Traffic:
    """Hooks on every layer with parameters, and the numbers of values that they count."""

    read: dict[int, int] = field(default_factory=dict)  # of each parameter, by id
    calls: dict[str, int] = field(default_factory=dict)  # of each module, by name
    inputs: int = 0
    written: int = 0
    largest: int = 0
    _hooks: list[Any] = field(default_factory=list)

    def watch(self, name: str, module: nn.Module) -> None:
        self._hooks.append(module.register_forward_hook(partial(self._on_call, name), with_kwargs=True))

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def calls_around(self, name: str) -> int:
        """Return the calls of the innermost module around (or at) a name that is called; 0 if there is none."""
        while name and not self.calls.get(name):
            name = name.rpartition(".")[0]
        return self.calls.get(name, 0)

    def _on_call(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        parameters = list(module.parameters(recurse=False))
        if not parameters:
            return
        made = first_float(output).numel()
        for parameter in parameters:
            values = made if isinstance(module, nn.Embedding) else parameter.numel()
            self.read[id(parameter)] = self.read.get(id(parameter), 0) + values
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        taken = given[0].numel() if given else 0
        self.inputs += taken
        self.written += made
        self.largest = max(self.largest, taken + made)
