"""The export ``executorch``: the model with its task as a program of ExecuTorch, for phones and small devices."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskedge.delta.interop.export import TOKENIZER_FILES, OutputKind, Source, exports
from taskedge.delta.interop.onnx_graph import LogitsModel, in_fp32, write_task
from taskedge.delta.interop.self_check import MAX_TOKENS, Batch, check_rows
from taskedge.errors import InputError

EXECUTORCH_FOLDER = OutputKind(
    "an ExecuTorch folder",
    "task.json",
    "format",
    ("task.json", "model.pte", "preprocessor_config.json", *TOKENIZER_FILES),
)
TOLERANCE = 1e-4
MAX_BATCH = 16
"""Largest batch of a program, which plans its memory when it is written."""


def executorch_module(name: str) -> Any:
    """Import a module of ``executorch``, without the lines that its import prints.

    Raises:
        InputError: the package is not installed.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return importlib.import_module(f"executorch.{name}")
    except ImportError as error:
        raise InputError(
            f"an ExecuTorch export needs the package executorch ({error}): pip install 'taskedge[executorch]' in an "
            "environment of its own, since it pins releases of others"
        ) from None


def executorch_reader(source: Source, path: Path) -> Callable[[Batch], Tensor]:
    """Return the logits by ExecuTorch's runtime on the processor; larger batches go in parts."""
    program = executorch_module("runtime").Runtime.get().load_program(path / "model.pte")

    def run(batch: Batch) -> Tensor:
        method = program.load_method("forward")
        values = [tensor.float() if tensor.is_floating_point() else tensor for tensor in batch.values()]
        parts = zip(*(torch.split(value, MAX_BATCH) for value in values), strict=True)
        return torch.cat([method.execute([each.contiguous() for each in part])[0].clone() for part in parts])

    return run


@exports(
    "executorch",
    makes=EXECUTORCH_FOLDER,
    loads="executorch.runtime.Runtime.get().load_program({path!r} + '/model.pte')",
    reads=executorch_reader,
    tolerance=TOLERANCE,
)
def executorch_folder(source: Source, path: Path) -> dict[str, Any]:
    """A program of ExecuTorch in fp32 with the kernels of XNNPACK, for up to 16 rows of any length, and its task.

    Raises:
        InputError: the package is missing, the model is not one of transformers for texts or images, or torch cannot
            export it.
    """
    exir = executorch_module("exir")
    xnnpack = executorch_module("backends.xnnpack.partition.xnnpack_partitioner")
    model = source.model
    batches = check_rows(model, source.processor)
    if not batches or "decoder_input_ids" in batches[0]:
        raise InputError(f"{type(model).__name__} has no ExecuTorch export: export with --to merged")
    example = {name: values.float() if values.is_floating_point() else values for name, values in batches[0].items()}
    names, longest = list(example), _longest(source)
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    axes: dict[int, Any] = {0: batch}
    if "pixel_values" not in example:
        axes[1] = torch.export.Dim("length", min=2, max=longest)
    with in_fp32(model) as plain, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        wrapped = LogitsModel(plain, names).eval()
        shapes = {"values": tuple(axes for _ in names)}
        try:
            exported = torch.export.export(wrapped, tuple(example.values()), dynamic_shapes=shapes)
            lowered = exir.to_edge_transform_and_lower(exported, partitioner=[xnnpack.XnnpackPartitioner()])
            (path / "model.pte").write_bytes(lowered.to_executorch().buffer)
        except Exception as error:  # of whatever the model's code does that cannot be exported
            first = str(error).strip().partition("\n")[0]
            raise InputError(
                f"torch cannot export {type(model).__name__} ({type(error).__name__}: {first}): export with --to merged"
            ) from error
    limits = {"max_batch": MAX_BATCH} | ({} if "pixel_values" in example else {"max_tokens": longest})
    write_task(source, path, names, weights="fp32", **limits)
    return {"graph_inputs": names, "weights": "fp32", **limits}


def _longest(source: Source) -> int:
    """Return the tokens of the longest text that the program takes."""
    trained = source.delta.provenance.training.get("max_length") or MAX_TOKENS
    positions = getattr(source.model.config, "max_position_embeddings", None)
    longest = max(int(trained), MAX_TOKENS)
    return min(longest, positions) if isinstance(positions, int) and positions > 2 else longest
