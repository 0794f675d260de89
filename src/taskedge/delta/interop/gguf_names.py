"""How llama.cpp names and lays out the linears of a model, as its converter from Hugging Face does.

Names are from the table of the package ``gguf``. Llama's converter also reorders the rows of the query and key
projections, because llama.cpp rotates neighboring pairs of numbers where transformers rotates two halves. Source:
``convert_hf_to_gguf.py`` of llama.cpp, class ``LlamaModel``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.gguf_file import gguf_package
from taskedge.errors import InputError

ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "gemma3_text": "GEMMA3"}
"""Name of the architecture in llama.cpp by model type of transformers: those whose layout the tests check."""
_REORDERED = ("LLAMA",)


@dataclass(frozen=True)
class GgufNames:
    """Names and row order of a model's linears in a GGUF file.

    Attributes:
        architecture: as the file states it, such as ``"llama"``.
        names: name in GGUF with ``.weight``, by linear.
        heads: number of heads of the linears whose rows are reordered, by linear.
    """

    architecture: str
    names: dict[str, str]
    heads: dict[str, int]

    def to_gguf(self, linear: str, rows: Tensor) -> Tensor:
        """Return a weight [out, in], or a factor [out, rank], in llama.cpp's order of rows."""
        heads = self.heads.get(linear)
        if heads is None:
            return rows
        return rows.reshape(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)

    def from_gguf(self, linear: str, rows: Tensor) -> Tensor:
        """Return the same in the order of transformers."""
        heads = self.heads.get(linear)
        if heads is None:
            return rows
        return rows.reshape(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def gguf_names(model: nn.Module, linears: Iterable[str]) -> GgufNames:
    """Return the names of some linears of a model.

    Raises:
        InputError: the model's type is not in :data:`ARCHITECTURES`, it is no language model, or llama.cpp has no name
            for a linear.
    """
    gguf = gguf_package()
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", "")
    if model_type not in ARCHITECTURES or not type(model).__name__.endswith("ForCausalLM"):
        raise InputError(
            f"{type(model).__name__} ({model_type or 'no type'}) has no GGUF export: these are for language models of "
            f"type {', '.join(ARCHITECTURES)}"
        )
    assert config is not None
    kind = ARCHITECTURES[model_type]
    architecture = gguf.MODEL_ARCH[kind]
    table = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    names, heads = {}, {}
    for linear in linears:
        name = table.get_name(linear)
        if name is None:
            raise InputError(f"linear {linear!r} has no name in llama.cpp: export with --to merged")
        names[linear] = f"{name}.weight"
        if kind in _REORDERED and linear.endswith(("q_proj", "k_proj")):
            heads[linear] = config.num_attention_heads if linear.endswith("q_proj") else config.num_key_value_heads
    return GgufNames(gguf.MODEL_ARCH_NAMES[architecture], names, heads)


def read_tensor(tensor: Any) -> Tensor:
    """Return a tensor of a GGUF file in fp32, whatever it is stored in."""
    return torch.from_numpy(gguf_package().quants.dequantize(tensor.data, tensor.tensor_type).copy()).float()
