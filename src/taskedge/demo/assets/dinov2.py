"""Read the weights of a DINOv2-shaped vision transformer from an ONNX file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskedge.errors import InputError

PREFIX = "backbone."


def write_dinov2(file: Path, config: Any, folder: Path) -> None:
    """Write config and safetensors of the ``Dinov2Model`` inside an ONNX file to ``folder``.

    The names equal the ones of the published checkpoints, which every version of transformers reads.

    Raises:
        InputError: Weights of the model are missing or have another shape.
    """
    from safetensors.torch import save_file
    from transformers import Dinov2Model

    state = dinov2_state(file)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    _, report = Dinov2Model.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
    wrong = {problem: names for problem, names in report.items() if names}
    if wrong:
        raise InputError(f"{file.name} does not hold the vision transformer that it should: {wrong}")


def dinov2_state(file: Path) -> dict[str, Tensor]:
    """Return the weights by name.

    An exported linear is an anonymous operand [in, out] of a MatMul node; the name of the node identifies the linear.
    The position table is exported in two anonymous parts, [1, 1, width] for the class token and [1, patches, width].
    The mask token takes no part in inference and is absent; it is filled with zeros.
    """
    import onnx
    from onnx.numpy_helper import to_array

    graph = onnx.load(file).graph
    stored = {tensor.name: torch.from_numpy(to_array(tensor).copy()) for tensor in graph.initializer}
    state = {name.removeprefix(PREFIX): tensor for name, tensor in stored.items() if name.startswith(PREFIX)}
    positions = []
    for node in graph.node:
        linear = re.fullmatch(r"/backbone/(.+)/MatMul", node.name)
        for name in node.input:
            if name not in stored or name.startswith(PREFIX):
                continue
            if linear and node.op_type == "MatMul":
                state[linear[1].replace("/", ".") + ".weight"] = stored[name].t().contiguous()
            elif node.name.startswith("/backbone/embeddings/") and stored[name].dim() == 3:
                positions.append(stored[name])
    positions.sort(key=lambda part: part.shape[1])
    if len(positions) != 2 or positions[0].shape[1] != 1:
        raise InputError(f"{file.name}: found {[list(part.shape) for part in positions]} for the position table")
    state["embeddings.position_embeddings"] = torch.cat(positions, dim=1)  # (1, 1 + patches, width)
    state["embeddings.mask_token"] = torch.zeros(1, positions[0].shape[2])
    return state
