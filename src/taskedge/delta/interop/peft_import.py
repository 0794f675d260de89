"""Import of a PEFT LoRA adapter folder as a delta, without PEFT.

An adapter with content that a delta cannot represent is refused with the reason. Source of the format: PEFT 0.6 to 0.21
(``peft/utils/save_and_load.py``, ``peft/tuners/lora/``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from taskedge.backbone.candidates import unusable_linears
from taskedge.backbone.fingerprint import digest
from taskedge.backbone.layers import Linear, linears
from taskedge.backbone.loading import Base, explain_load_errors, load_base, load_classifier, locate_base
from taskedge.delta.delta import Delta, LowRankDelta, Provenance
from taskedge.errors import InputError, did_you_mean

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

PLAIN_NEW_TOKENS = 64
"""Tokens that an imported language model generates at most, unless told otherwise."""
_PREFIX = "base_model.model."
_PLACEHOLDER = re.compile(r"LABEL_\d+")
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")
_HARMLESS = {
    # names, the list of modules (its tensors give it), and settings that matter only in training
    *("peft_type", "auto_mapping", "peft_version", "inference_mode", "runtime_config"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
    *("lora_dropout", "megatron_core", "megatron_config", "qalora_group_size"),
    # initialization of the factors, provided the base is unchanged (see init_lora_weights)
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
}
_BASE_UNCHANGED = (True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that do not change the base. PiSSA and others move part of it into the factors."""


class _Config(BaseModel):
    """The keys of adapter_config.json that affect the result; others are in ``model_extra``."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    peft_type: str
    r: Annotated[int, Field(ge=1)]
    lora_alpha: float
    use_rslora: bool = False
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    modules_to_save: list[str] | None = None
    bias: str = "none"
    init_lora_weights: bool | str | None = True
    base_model_name_or_path: str | None = None
    revision: str | None = None
    task_type: str | None = None


@dataclass(frozen=True)
class Adapter:
    """A validated adapter folder.

    Attributes:
        folder: its path.
        config: its config.
        tensors: by name in the base, such as ``encoder.layer.0.query.lora_A.weight``.
    """

    folder: Path
    config: _Config
    tensors: dict[str, Tensor]


def import_peft(
    folder: Path,
    model: str | None = None,
    labels: Sequence[str] = (),
    *,
    log: Callable[[str], None] = lambda _: None,
    generation: Callable[[Base], dict[str, Any]] | None = None,
) -> Delta:
    """Return a LoRA adapter of a sequence classifier or a causal language model as a delta.

    Args:
        folder: folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        model: local folder or hub id of the base; by default the base that the adapter names, a relative path from the
            current folder or from the adapter's.
        labels: names of the classes in the adapter's order; by default the ones in the base's config.
        log: receives a line about the names of the classes, if the base's config gives them.
        generation: gives the training settings that say how a language model's prompts are written; by default, plain
            text.

    Raises:
        InputError: the folder is not a LoRA adapter, a delta cannot represent it, or it does not fit the base; a label
            is empty or occurs twice.
    """
    for index, label in enumerate(labels):
        if not label or label in labels[:index]:
            raise InputError(f"the label {label!r} {'occurs twice' if label else 'is empty'}: name every class once")
    adapter = read_adapter(folder)
    config = adapter.config
    if config.task_type not in (None, "SEQ_CLS", "CAUSAL_LM"):
        raise InputError(
            f"{folder}: an adapter for {config.task_type}: only adapters of classifiers (SEQ_CLS) and of causal "
            "language models (CAUSAL_LM) are imported"
        )
    if config.task_type == "CAUSAL_LM" and labels:
        raise InputError(f"{folder}: an adapter of a language model has no classes: leave out --labels")
    if config.revision and not model:
        raise InputError(f"{folder}: trained on revision {config.revision!r} of its base: give that base with --model")
    name = model or _base_location(folder, config.base_model_name_or_path)
    if config.task_type == "CAUSAL_LM":
        base = load_base("text-generation", name, keep_head=True, log=log)
        delta = to_delta(adapter, base.model)
        settings = (generation or _plain_text)(base)
        training = delta.provenance.training | settings
        return delta.with_provenance(base=name, task="text-generation", training=training)
    names_classes = not labels
    labels = tuple(labels) or _labels(name)
    base = load_classifier(name, labels, keep_head=True)
    delta = to_delta(adapter, base.model)
    missing = [parameter for parameter in base.new_parameters if parameter not in delta.full_parameters]
    if missing:
        raise InputError(f"{folder}: neither the adapter nor {name} has {missing[0]!r}: name another base with --model")
    if names_classes:
        log(_labels_text(labels))
    return delta.with_provenance(base=name, task="text-classification", labels=labels)


def _plain_text(base: Base) -> dict[str, Any]:
    """Return the settings of a language model whose prompts are plain text."""
    return {"generation": {"form": "plain text", "max_new_tokens": PLAIN_NEW_TOKENS}}


def read_adapter(folder: Path) -> Adapter:
    """Read and validate a LoRA adapter folder.

    Raises:
        InputError: the folder is not a LoRA adapter, is damaged, has pickled weights, or a delta cannot represent it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: not a PEFT adapter: it has no {CONFIG}")
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").exists()
        raise InputError(
            f"{folder}: it has no {WEIGHTS}"
            + (
                ": adapter_model.bin is a pickle, which can run code: save the adapter as safetensors"
                if pickled
                else ""
            )
        )
    try:
        config = _Config.model_validate(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        tensors = load_file(folder / WEIGHTS)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{folder / CONFIG}: {key}: {first['msg']}: is it a LoRA adapter?") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise InputError(f"{folder}: damaged ({error}): fetch the adapter again") from None
    reason = _unsupported_reason(config)
    if reason:
        raise InputError(f"{folder}: {reason}")
    return Adapter(folder, config, {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()})


def to_delta(adapter: Adapter, model: nn.Module) -> Delta:
    """Return the adapter as a delta of its base ``model``.

    Raises:
        InputError: a tensor does not fit the model, or a delta cannot represent it.
    """
    factors: dict[str, dict[str, Tensor]] = {}
    full_parameters: dict[str, Tensor] = {}
    parameters = dict(model.named_parameters())
    for name, tensor in adapter.tensors.items():
        if not tensor.is_floating_point():
            raise InputError(f"{adapter.folder}: tensor {name!r} is {tensor.dtype}, not floating point")
        matched = _FACTOR.fullmatch(name)
        if matched:
            factors.setdefault(matched[1], {})[matched[2]] = tensor.float()
        else:
            full_parameters[name] = _saved_parameter(adapter, name, tensor, parameters)
    layers = linears(model)
    unusable = unusable_linears(model, layers)
    modules = dict(model.named_modules())
    low_rank = {}
    for name, pair in factors.items():
        if name not in layers:
            kind = (
                f"is a {type(modules[name]).__name__}"
                if name in modules
                else f"does not exist{did_you_mean(name, layers)}"
            )
            raise InputError(f"{adapter.folder}: LoRA on {name!r}, which in the base {kind}: only linears can have it")
        if name in unusable:
            raise InputError(f"{adapter.folder}: LoRA on {name!r} is not supported: {unusable[name]}")
        low_rank[name] = _product(adapter, layers[name], pair)
    if not low_rank:
        raise InputError(f"{adapter.folder}: {WEIGHTS} holds no LoRA factors")
    ranks = sorted({product.rank for product in low_rank.values()})
    provenance = Provenance(
        rule="lora",
        budget="rank " + ", ".join(map(str, ranks)),
        base_parameters=sum(parameter.numel() for parameter in parameters.values()),
        training={"imported": "PEFT LoRA", "lora_alpha": adapter.config.lora_alpha},
    )
    return Delta({}, full_parameters, provenance, low_rank)


def _unsupported_reason(config: _Config) -> str:
    """Return why a delta cannot represent the adapter, or the empty text."""
    if config.peft_type != "LORA":
        return f"an adapter of type {config.peft_type}: only LoRA is imported"
    extra = config.model_extra or {}
    if extra.get("use_dora"):
        return "DoRA rescales every row of the weight, which a low-rank product cannot do: only plain LoRA is imported"
    if config.bias != "none" or extra.get("lora_bias"):
        return "it trains biases of the linears (bias or lora_bias): only adapters with bias 'none' are imported"
    if config.init_lora_weights not in _BASE_UNCHANGED and config.init_lora_weights is not None:
        return (
            f"the setting init_lora_weights {config.init_lora_weights!r} changed the base as well: save it from PEFT "
            "with path_initial_model_for_weight_conversion, which makes it plain LoRA"
        )
    unknown = [key for key, value in extra.items() if value and key not in _HARMLESS]
    if unknown:
        return f"it uses {unknown[0]}={extra[unknown[0]]!r}, which a delta cannot represent"
    return ""


def _saved_parameter(adapter: Adapter, name: str, tensor: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """Return a parameter that the adapter stores completely (modules_to_save), in the dtype of the base."""
    if ".lora_embedding_" in f".{name}":
        raise InputError(f"{adapter.folder}: LoRA on an embedding ({name}): only linears can have it")
    saved = adapter.config.modules_to_save or []
    modules = accumulate(name.split(".")[:-1], "{}.{}".format)  # a.b.weight: a, a.b
    if name not in parameters or not any(f".{module}".endswith(f".{ending}") for module in modules for ending in saved):
        raise InputError(
            f"{adapter.folder}: tensor {name!r} is neither a LoRA factor nor in a module of modules_to_save"
        )
    parameter = parameters[name]
    if parameter.shape != tensor.shape:
        raise InputError(
            f"{adapter.folder}: {name!r} is {list(parameter.shape)} in the base, the adapter has {list(tensor.shape)}: "
            "if that is the number of classes, name them with --labels, in the adapter's order"
        )
    return tensor.to(parameter.dtype)


def _product(adapter: Adapter, linear: Linear, factors: Mapping[str, Tensor]) -> LowRankDelta:
    folder, config, name = adapter.folder, adapter.config, linear.name
    rank = int(_pattern_value(folder, name, config.rank_pattern, config.r))
    out, inputs = linear.shape
    shapes = [list(factors[part].shape) if part in factors else None for part in "AB"]
    if shapes != [[rank, inputs], [out, rank]]:
        raise InputError(
            f"{folder}: the factors of {name!r} are {shapes[0]} and {shapes[1]}; by its config and the base they "
            f"must be {[rank, inputs]} and {[out, rank]}"
        )
    alpha = _pattern_value(folder, name, config.alpha_pattern, config.lora_alpha)
    return LowRankDelta(
        a=factors["A"],
        b=factors["B"],
        scale=float(alpha / (rank**0.5 if config.use_rslora else rank)),
        base_dtype=str(linear.weight.dtype).removeprefix("torch."),
        base_digest=digest(linear.weight),
    )


def _pattern_value(folder: Path, name: str, patterns: Mapping[str, float] | None, default: float) -> float:
    """Return the value of the first pattern that matches the end of a module's name, as PEFT does."""
    for pattern, value in (patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", name):
                return value
        except re.error as error:
            raise InputError(f"{folder / CONFIG}: {pattern!r} is not a regular expression ({error})") from None
    return default


def _base_location(folder: Path, name: str | None) -> str:
    """Return the folder or hub id of the base that the adapter names.

    Raises:
        InputError: it names none, or a folder that does not exist.
    """
    if not name:
        raise InputError(f"{folder}: the adapter does not name its base: give it with --model")
    try:
        return locate_base(name, folder)
    except InputError as error:
        raise InputError(f"{error}; {folder} names it as its base: give its location with --model") from None


def _labels_text(labels: Sequence[str]) -> str:
    """Return a line about the classes of the base's config, which are placeholders if nobody named them."""
    shown = ", ".join(map(repr, labels[:12])) + (f" and {len(labels) - 12} more" if len(labels) > 12 else "")
    if not all(_PLACEHOLDER.fullmatch(label) for label in labels):
        return f"{len(labels)} classes, named as in the base's config: {shown}"
    return (
        f"warning: the base's config does not name its {len(labels)} classes, so they are named {shown}, and data with "
        "other labels cannot be evaluated: name them with --labels, in the adapter's order"
    )


def _labels(name: str) -> tuple[str, ...]:
    """Return the classes that the base's config names."""
    from transformers import AutoConfig

    with explain_load_errors(name):
        names: dict[Any, str] = AutoConfig.from_pretrained(name).id2label
    return tuple(names[index] for index in sorted(names))
