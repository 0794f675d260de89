"""Models by their shape alone: the speed and memory of a machine do not depend on the values of the weights.

A model here includes its head, since the logits over a vocabulary cost as much as several blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from taskedge.errors import InputError, UnknownName

if TYPE_CHECKING:
    from torch import nn

ModelKind = Literal["encoder", "causal LM", "seq2seq"]

KIND_AUTO_CLASSES: dict[ModelKind, str] = {
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
"""Public models, one of each kind: the model type of transformers, and the changes to its default config."""


@dataclass(frozen=True)
class Shape:
    """A model's shape, and where its weights are, if anywhere.

    Attributes:
        name: for messages.
        config: a config of transformers.
        folder: a folder or a hub id with weights; None if there are no weights.
    """

    name: str
    config: Any
    folder: str | None = None

    @property
    def kind(self) -> ModelKind:
        """The kind of the model."""
        from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

        if getattr(self.config, "is_encoder_decoder", False):
            return "seq2seq"
        encoder = type(self.config) in AutoModelForMaskedLM._model_mapping  # these have a causal class, too
        causal = type(self.config) in AutoModelForCausalLM._model_mapping
        return "causal LM" if causal and not encoder else "encoder"

    def skeleton(self) -> nn.Module:
        """Return the model on the meta device: shapes, no weights.

        Raises:
            InputError: transformers knows no such model of this kind.
        """
        import torch

        with torch.device("meta"):
            return self._from_config()

    def load(self, log: Callable[[str], None]) -> tuple[nn.Module, bool]:
        """Return the model on the CPU, and whether its weights are its own; random weights if none can be loaded.

        Args:
            log: receives a line if weights are random although there is a folder.

        Raises:
            InputError: see :meth:`skeleton`.
        """
        import transformers

        from taskedge.backbone.gguf_file import pretrained_arguments, weight_arguments

        if self.folder is not None:
            auto_class = getattr(transformers, KIND_AUTO_CLASSES[self.kind])
            try:
                with pretrained_arguments(self.folder) as (location, arguments):
                    more = weight_arguments(arguments)
                    return auto_class.from_pretrained(location, use_safetensors=True, **more), True
            except OSError as error:
                log(f"{self.name}: no weights can be loaded, so they are random: {_first_line(error)}")
        return self._from_config(), False

    def _from_config(self) -> nn.Module:
        import transformers

        try:
            model: nn.Module = getattr(transformers, KIND_AUTO_CLASSES[self.kind]).from_config(self.config)
        except ValueError as error:
            raise InputError(f"model {self.name!r} has no form as {self.kind}: {_first_line(error)}") from None
        return model


def known_shape(name: str) -> Shape:
    """Return one of ``SHAPES`` by name.

    Raises:
        UnknownName: there is none of that name.
    """
    import transformers

    if name not in SHAPES:
        raise UnknownName("shape", name, SHAPES)
    model_type, changes = SHAPES[name]
    return Shape(name, transformers.AutoConfig.for_model(model_type, **changes))


def shape_of(model: str) -> Shape:
    """Return the shape of the model in a folder, a hub id with a config or a GGUF file; weights are not needed.

    Raises:
        InputError: see :func:`load_config`.
    """
    return Shape(model.rstrip("/").rpartition("/")[2] or model, load_config(model), model)


def load_config(model: str) -> Any:
    """Return the transformers config of the model in a folder, a hub id or a GGUF file.

    Raises:
        InputError: there is no config of that name, or transformers does not know its architecture.
    """
    import transformers

    from taskedge.backbone.gguf_file import pretrained_arguments, read_gguf
    from taskedge.backbone.loading import explain_load_errors

    with explain_load_errors(model), pretrained_arguments(model) as (location, arguments):
        if arguments:
            read_gguf(model)
        try:
            return transformers.AutoConfig.from_pretrained(location, **arguments)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"model {model!r} has no config that can be used: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
