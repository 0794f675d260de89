"""Models by their shape alone: what a machine can do with one does not depend on the values of its weights.

A model here is whole, with the head that it is used with, since a vocabulary's logits cost as much as many a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from taskedge.errors import InputError, UnknownName

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["encoder", "causal LM", "seq2seq"]

AUTO: dict[Kind, str] = {
    "encoder": "AutoModelForSequenceClassification",
    "causal LM": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
}
"""The class of transformers for each kind of model."""

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "minilm-l6": (
        "bert",
        {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    ),
    "smollm2-135m": (
        "llama",
        {
            "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
            "num_key_value_heads": 3, "intermediate_size": 1536, "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "t5-small": (
        "t5",
        {
            "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8,
            "decoder_start_token_id": 0,
        },
    ),
}  # fmt: skip
"""Public models, one of each kind: transformers' type, and what differs from the defaults of its config."""


@dataclass(frozen=True)
class Shape:
    """A model's shape, and where its weights are, if anywhere."""

    name: str
    config: Any
    folder: str | None = None
    """A folder or a hub id; None: there are no weights."""

    @property
    def kind(self) -> Kind:
        """What the model is."""
        from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

        if getattr(self.config, "is_encoder_decoder", False):
            return "seq2seq"
        encoder = type(self.config) in AutoModelForMaskedLM._model_mapping  # these have a causal class, too
        causal = type(self.config) in AutoModelForCausalLM._model_mapping
        return "causal LM" if causal and not encoder else "encoder"

    def skeleton(self) -> nn.Module:
        """The model on the meta device: shapes, no weights.

        Raises:
            InputError: transformers knows no such model of this kind.
        """
        import torch

        with torch.device("meta"):
            return self._built()

    def load(self, say: Callable[[str], None]) -> tuple[nn.Module, bool]:
        """The model on the CPU, and whether its weights are its own; random ones where none can be had, which is said.

        Raises:
            InputError: as :meth:`skeleton`.
        """
        import transformers

        if self.folder is not None:
            auto = getattr(transformers, AUTO[self.kind])
            try:
                return auto.from_pretrained(self.folder, use_safetensors=True), True
            except OSError as error:
                say(f"{self.name}: no weights can be loaded, so they are random: {str(error).strip().splitlines()[0]}")
        return self._built(), False

    def _built(self) -> nn.Module:
        import transformers

        try:
            model: nn.Module = getattr(transformers, AUTO[self.kind]).from_config(self.config)
        except ValueError as error:
            first = str(error).strip().splitlines()[0]
            raise InputError(f"model {self.name!r} has no form as {self.kind}: {first}") from None
        return model


def known_shape(name: str) -> Shape:
    """One of ``SHAPES``.

    Raises:
        UnknownName: there is none of that name.
    """
    import transformers

    if name not in SHAPES:
        raise UnknownName("shape", name, SHAPES)
    kind, changes = SHAPES[name]
    return Shape(name, transformers.AutoConfig.for_model(kind, **changes))


def shape_of(model: str) -> Shape:
    """That of a folder or a hub id with a config; weights are not needed.

    Raises:
        InputError: there is no config of that name, or transformers does not know its architecture.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"model {model!r} has no config that can be used: {first}") from None
    return Shape(model.rstrip("/").rpartition("/")[2] or model, config, model)
