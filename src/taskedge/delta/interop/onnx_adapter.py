"""The export ``onnx-adapter``: one base graph with LoRA inputs, and a small file with what a task changes.

The graph adds ``x @ A @ B`` to every linear that entries can be in. A [in, rank] and B [rank, out] are inputs with a
default of rank 0, so that without an adapter the graph is the base. onnxruntime fills them from an ``.onnx_adapter``
file per run (``LoraAdapter``, ``RunOptions.add_active_adapter``). The head's parameters are inputs, too. The graph
depends on the base and the kind of task alone, so every task of that kind runs on the graph of any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taskedge.backbone.candidates import candidates
from taskedge.backbone.layers import LinearAdapter, linears
from taskedge.delta.interop.export import TOKENIZER_FILES, OutputKind, Source, exports
from taskedge.delta.interop.lora_export import checked_ranks
from taskedge.delta.interop.onnx_graph import onnx_package, run_graph, session, trace, write_task
from taskedge.delta.interop.peft_export import changes_of
from taskedge.delta.interop.peft_layouts import factors
from taskedge.delta.interop.read_back import base_parameters, changed_weights, replaced
from taskedge.delta.interop.self_check import Batch
from taskedge.errors import InputError

GRAPH, ADAPTER = "base.onnx", "task.onnx_adapter"
ADAPTER_FOLDER = OutputKind(
    "an ONNX adapter folder", "task.json", "format",
    ("task.json", GRAPH, ADAPTER, "preprocessor_config.json", *TOKENIZER_FILES),
)  # fmt: skip
VERSION = 1


def adapter_reader(source: Source, path: Path) -> Callable[[Batch], Tensor]:
    """Return the logits of the base graph with the adapter, by onnxruntime."""
    return run_adapter(path / GRAPH, path / ADAPTER)


def run_adapter(graph: Path, adapter: Path) -> Callable[[Batch], Tensor]:
    """Return a function from a batch to the logits of a graph with an adapter active."""
    runtime = onnx_package("onnxruntime")
    loaded = runtime.LoraAdapter()
    loaded.Load(str(adapter))
    options = runtime.RunOptions()
    options.add_active_adapter(loaded)
    run = run_graph(session(graph), options)
    return lambda batch, kept=loaded: run(batch)  # type: ignore[misc]  # the adapter must outlive the options


@exports(
    "onnx-adapter", makes=ADAPTER_FOLDER, loads="onnxruntime.InferenceSession({path!r} + '/base.onnx')",
    reads=adapter_reader, tolerance=1e-4,
)  # fmt: skip
def onnx_adapter(source: Source, path: Path, *, max_rank: int | None = None) -> dict[str, Any]:
    """A base graph with LoRA inputs and an `.onnx_adapter` file, which onnxruntime switches from run to run.

    Raises:
        InputError: a package is missing, the model has no ONNX export, or a linear needs more than ``max_rank``.
    """
    ranks = checked_ranks(source, max_rank)
    changes = changes_of(source)
    values: dict[str, Tensor] = {}
    for name, change in changes.items():
        b, a = factors(change)
        values |= {f"{name}.lora_A": a.t(), f"{name}.lora_B": (change.scale * b).t()}
    values |= {name: tensor.float() for name, tensor in source.delta.full_parameters.items()}
    places = {**candidates(source.model), **{name: linears(source.model)[name] for name in changes}}
    for name, layer in places.items():
        if not isinstance(layer.adapter, LinearAdapter):
            raise InputError(
                f"{name!r} is a {type(layer.module).__name__}, and a graph with adapters adds products to linears "
                "only: export with --to onnx"
            )
    layers = {name: layer.module for name, layer in places.items()}
    base = replaced(source.model, changed_weights(source, {}), base_parameters(source))
    with base, _with_factors(layers, {name: layer.shape for name, layer in places.items()}):
        names = trace(source, path / GRAPH, fold=False)
    _make_inputs(path / GRAPH, layers, list(source.delta.full_parameters))
    runtime = onnx_package("onnxruntime")
    file = runtime.AdapterFormat()
    file.set_adapter_version(VERSION)
    file.set_model_version(VERSION)
    arrays = {name: np.ascontiguousarray(tensor.detach().cpu().numpy()) for name, tensor in values.items()}
    file.set_parameters({name: runtime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()})
    file.export_adapter(str(path / ADAPTER))
    write_task(source, path, names, adapter=ADAPTER)
    return {
        "linears": len(changes),
        "rank": max(ranks.values()),
        "adapter_bytes": (path / ADAPTER).stat().st_size,
        "graph_bytes": (path / GRAPH).stat().st_size,
    }


@contextmanager
def _with_factors(modules: dict[str, nn.Module], shapes: dict[str, tuple[int, int]]) -> Iterator[None]:
    """Let every module add a product of rank 1 of its own parameters ``lora_A`` and ``lora_B`` inside the block."""

    def add(module: Any, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        added: Tensor = (given[0] @ module.lora_A) @ module.lora_B
        return output + added

    handles = []
    try:
        for place, (name, module) in enumerate(modules.items()):  # equal tensors would become one initializer
            out, inputs = shapes[name]
            a, b = torch.full((inputs, 1), 2.0 * place + 1), torch.full((1, out), 2.0 * place + 2)
            module.register_parameter("lora_A", nn.Parameter(a, requires_grad=False))
            module.register_parameter("lora_B", nn.Parameter(b, requires_grad=False))
            handles.append(module.register_forward_hook(add))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in modules.values():
            module._parameters.pop("lora_A", None)
            module._parameters.pop("lora_B", None)


def _make_inputs(file: Path, modules: dict[str, nn.Module], parameters: list[str]) -> None:
    """Turn the factors and the parameters of the head into inputs with a default: rank 0, and zeros of one class."""
    onnx = onnx_package("onnx")
    model = onnx.load(str(file))
    graph = model.graph
    wanted = {f"{name}.lora_{part}": 0 if part == "B" else 1 for name in modules for part in "AB"}
    names = {f"model.{name}": name for name in (*wanted, *parameters)}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    del graph.value_info[:]  # it states rank 1
    for initializer in graph.initializer:
        name = names.get(initializer.name)
        if name is None:
            continue
        dims: list[int | str] = list(initializer.dims)
        if name in wanted:
            dims[wanted[name]] = f"rank of {name.rpartition('.')[0]}"
        else:
            dims[0] = "labels" if _is_head(name, graph) else dims[0]
        default = [0 if name in wanted else 1] if any(isinstance(dim, str) for dim in dims) else []
        shape = [default[0] if isinstance(dim, str) else dim for dim in dims]
        initializer.CopyFrom(onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name))
        graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims))
    for output in graph.output:
        last = output.type.tensor_type.shape.dim[-1]
        if parameters:
            last.Clear()
            last.dim_param = "labels"
    onnx.save(model, str(file))


def _is_head(name: str, graph: Any) -> bool:
    """Return whether the parameter's rows are the classes: those of the last product before the logits."""
    last = {output.name for output in graph.output}
    inputs: set[str] = set()
    for node in reversed(graph.node):
        if last & set(node.output):
            inputs |= set(node.input)
            if node.op_type in ("Gemm", "MatMul"):
                break
            last |= set(node.input)
    before = {given for node in graph.node if inputs & set(node.output) for given in node.input}
    return name in inputs | before
