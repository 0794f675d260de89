"""The export ``onnx``: the model with its task as one ONNX graph, for onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from taskedge.delta.interop.export import TOKENIZER_FILES, OutputKind, Source, exports
from taskedge.delta.interop.onnx_graph import onnx_package, run_graph, session, trace, write_task
from taskedge.delta.interop.self_check import Batch, check_rows, self_check
from taskedge.errors import UnknownName

ONNX_FOLDER = OutputKind(
    "an ONNX folder", "task.json", "format", ("task.json", "model.onnx", "preprocessor_config.json", *TOKENIZER_FILES)
)
QUANTIZED = ("int8",)
TOLERANCE = 1e-4
INT8_TOLERANCE = 0.5
"""The largest difference of int8 logits, relative to the largest logit: more means a broken graph, not rounding."""


def onnx_reader(source: Source, path: Path) -> Callable[[Batch], Tensor]:
    """Return the logits by onnxruntime."""
    return run_graph(session(path / "model.onnx"))


@exports(
    "onnx", makes=ONNX_FOLDER, loads="onnxruntime.InferenceSession({path!r} + '/model.onnx')", reads=onnx_reader,
    tolerance=TOLERANCE,
)  # fmt: skip
def onnx_folder(source: Source, path: Path, *, quantize: str | None = None) -> dict[str, Any]:
    """An ONNX graph with dynamic batch and length, `task.json` and the tokenizer; `quantize` stores weights as int8.

    Raises:
        InputError: a package is missing, or the model has no ONNX export.
        UnknownName: ``quantize`` is not ``"int8"``.
        ExportDiffers: the fp32 graph computes something else than the model.
    """
    if quantize is not None and quantize not in QUANTIZED:
        raise UnknownName("quantization", quantize, QUANTIZED)
    file = path / "model.onnx"
    names = trace(source, file)
    details: dict[str, Any] = {"graph_inputs": names, "weights": quantize or "fp32"}
    if quantize:
        batches = check_rows(source.model, source.processor)
        before = self_check(source.model, batches, run_graph(session(file)), TOLERANCE, "the fp32 graph")
        details |= {"largest_difference_fp32": before["largest_difference"], "tolerance": INT8_TOLERANCE}
        _to_int8(file)
    write_task(source, path, names, weights=details["weights"])
    return details


def _to_int8(file: Path) -> None:
    """Quantize the weights of matrix products to int8; onnxruntime quantizes their inputs when it runs."""
    import logging

    quantization = onnx_package("onnxruntime.quantization")
    plain = file.with_name("fp32.onnx")
    file.rename(plain)
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it advises to preprocess the graph, which changes no weight
    try:
        quantization.quantize_dynamic(str(plain), str(file), weight_type=quantization.QuantType.QInt8)
    finally:
        logging.root.setLevel(level)
        plain.unlink()
