"""Trace a model of transformers to an ONNX graph with a dynamic batch and length, and run such a graph.

The graph has the inputs ``input_ids`` and ``attention_mask``, int64 [batch, length], or ``pixel_values``, fp32, and the
output ``logits``. A language model gives the logits of every position; it has no cache.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.delta.interop.export import Source
from taskedge.delta.interop.self_check import Batch, check_rows, logits_of
from taskedge.errors import InputError

FORMAT = "taskedge-onnx/1"
OPSET = 17
MAX_BYTES = 2**31 - 2**24
"""An ONNX file is one protobuf message, which holds less than 2 GiB."""


class LogitsModel(nn.Module):
    """A model with positional inputs that returns its logits alone."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self._names = model, names

    def forward(self, *values: Tensor) -> Tensor:
        """Return the logits of the values of the inputs, in the order of their names."""
        options = {} if "pixel_values" in self._names else {"use_cache": False}
        if "use_cache" in options and not hasattr(self.model.config, "use_cache"):
            options = {}
        return self.model(**dict(zip(self._names, values, strict=True)), **options).logits  # type: ignore[no-any-return]


def onnx_package(name: str) -> Any:
    """Import ``onnx`` or ``onnxruntime``, or a module of them.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(
            f"an ONNX export needs the package {name.partition('.')[0]}: pip install 'taskedge[onnx]'"
        ) from None


def trace(source: Source, path: Path, *, fold: bool = True) -> list[str]:
    """Write the graph of the model in fp32 to a file, and return the names of its inputs.

    Args:
        source: the model to trace.
        path: of the file.
        fold: compute at once what depends on weights only; without it each weight keeps its name and layout.

    Raises:
        InputError: the model is not one of transformers for texts or images, is too large for one file, or torch
            cannot trace it.
    """
    onnx_package("onnx")
    model = source.model
    batches = check_rows(model, source.processor)
    if not batches or "decoder_input_ids" in batches[0]:
        raise InputError(f"{type(model).__name__} has no ONNX export: export with --to merged")
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    if size > MAX_BYTES:
        raise InputError(
            f"the model has {size:,} bytes in fp32, and one ONNX file holds 2 GiB: export with --to merged"
        )
    example = {name: values.float() if values.is_floating_point() else values for name, values in batches[0].items()}
    names = list(example)
    axes: dict[int, str] = {0: "batch"} if "pixel_values" in example else {0: "batch", 1: "length"}
    per_token = "input_ids" in example and logits_of(model, batches[0]).dim() == 3
    dynamic: dict[str, dict[int, str]] = dict.fromkeys(names, axes)
    dynamic["logits"] = axes if per_token else {0: "batch"}
    with in_fp32(model) as plain, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # what it traces as a constant shows in the self-check
        wrapped = LogitsModel(plain, names).eval()
        try:
            torch.onnx.export(
                wrapped, tuple(example.values()), str(path), input_names=names, output_names=["logits"],
                dynamic_axes=dynamic, opset_version=OPSET, do_constant_folding=fold, dynamo=False,
            )  # fmt: skip
        except Exception as error:  # of whatever the model's code does that cannot be traced
            first = str(error).strip().partition("\n")[0]
            raise InputError(
                f"torch cannot trace {type(model).__name__} ({type(error).__name__}: {first}): export with --to merged"
            ) from error
    return names


@contextmanager
def in_fp32(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the model in fp32, itself where it is, else converted and back, in evaluation mode."""
    modes = {module: module.training for module in model.modules()}
    kept = {name: tensor for name, tensor in model.named_parameters() if tensor.dtype != torch.float32}
    original = {name: tensor.data for name, tensor in kept.items()}
    try:
        for tensor in kept.values():
            tensor.data = tensor.data.float()
        yield model.eval()
    finally:
        for name, tensor in kept.items():
            tensor.data = original[name]
        for module, training in modes.items():
            module.training = training


def session(path: Path) -> Any:
    """Return an onnxruntime session on the CPU with as many threads as torch."""
    runtime = onnx_package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_graph(opened: Any, run_options: Any = None) -> Callable[[Batch], Tensor]:
    """Return a function from a batch to the logits of a session."""
    inputs = {given.name for given in opened.get_inputs()}

    def run(batch: Batch) -> Tensor:
        values = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}
        given = {name: tensor.numpy() for name, tensor in values.items() if name in inputs}
        return torch.from_numpy(opened.run(["logits"], given, run_options)[0])

    return run


def write_task(source: Source, folder: Path, names: list[str], **more: Any) -> None:
    """Write ``task.json``, what a program needs beside graph and tokenizer, and the tokenizer or image processor."""
    provenance, config = source.delta.provenance, source.model.config
    training = provenance.training
    task: dict[str, Any] = {
        "format": FORMAT,
        "task": provenance.task,
        "labels": list(provenance.labels),
        "inputs": names,
        "max_length": training.get("max_length", training.get("max_tokens")),
        "pad_token_id": getattr(config, "pad_token_id", None) or 0,
        "eos_token_id": getattr(config, "eos_token_id", None),
        "base": source.base,
        **{key: training[key] for key in ("generation", "target", "threshold") if key in training},
        **more,
    }
    (folder / "task.json").write_text(json.dumps(task, indent=2, default=str) + "\n", encoding="utf-8")
    if source.processor is not None:
        source.processor.save_pretrained(folder)
