"""The export ``openvino``: the model with its task as a model of OpenVINO, for Intel's processors and graphics."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from taskedge.delta.interop.export import TOKENIZER_FILES, OutputKind, Source, exports
from taskedge.delta.interop.onnx_graph import trace, write_task
from taskedge.delta.interop.self_check import Batch
from taskedge.errors import InputError

OPENVINO_FOLDER = OutputKind(
    "an OpenVINO folder",
    "task.json",
    "format",
    ("task.json", "model.xml", "model.bin", "preprocessor_config.json", *TOKENIZER_FILES),
)
TOLERANCE = 1e-4


def openvino_package() -> Any:
    """Import ``openvino``.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("openvino")
    except ImportError:
        raise InputError(
            "an OpenVINO export needs the package openvino: pip install 'taskedge[openvino]'; --to onnx writes a graph "
            "that OpenVINO reads, too"
        ) from None


def openvino_reader(source: Source, path: Path) -> Callable[[Batch], Tensor]:
    """Return the logits by OpenVINO on the processor, computed in fp32 with as many threads as torch."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino_package().Core().compile_model(str(path / "model.xml"), "CPU", settings)
    names = [port.get_any_name() for port in compiled.inputs]

    def run(batch: Batch) -> Tensor:
        values = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}
        logits = compiled({name: values[name].numpy() for name in names})[0]
        return torch.from_numpy(logits.copy())  # the next request overwrites its buffer

    return run


@exports(
    "openvino",
    makes=OPENVINO_FOLDER,
    loads="openvino.Core().compile_model({path!r} + '/model.xml')",
    reads=openvino_reader,
    tolerance=TOLERANCE,
)
def openvino_folder(source: Source, path: Path) -> dict[str, Any]:
    """A graph of OpenVINO in fp32 (`model.xml`, `model.bin`) with dynamic batch and length, and its task.

    It is converted from the graph of the export ``onnx``.

    Raises:
        InputError: a package is missing, or the model has no ONNX export.
    """
    openvino = openvino_package()
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        names = trace(source, file)
        # read_model and save_model, and not convert_model, which reports its use to the vendor
        openvino.save_model(openvino.Core().read_model(str(file)), str(path / "model.xml"), compress_to_fp16=False)
    write_task(source, path, names, weights="fp32")
    return {"graph_inputs": names, "weights": "fp32"}
