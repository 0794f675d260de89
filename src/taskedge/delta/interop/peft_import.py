"""A PEFT LoRA adapter folder (``adapter_config.json``, ``adapter_model.safetensors``) as a delta; PEFT is not needed.

What a delta cannot hold is refused with the reason, never left out. The format is that of PEFT 0.6 to 0.21, read from
its source (``peft/utils/save_and_load.py``, ``peft/tuners/lora/``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from taskedge.backbone.fingerprint import digest
from taskedge.backbone.linears import Linear, linears, why_unusable
from taskedge.backbone.loading import explained, load_classifier
from taskedge.delta.delta import Delta, LowRankDelta, Provenance
from taskedge.errors import InputError, did_you_mean

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")
_HARMLESS = {
    # what names the adapter, what says which modules it is on (its tensors do), and what matters in training only
    *("peft_type", "auto_mapping", "peft_version", "inference_mode", "runtime_config"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
    *("lora_dropout", "megatron_core", "megatron_config", "qalora_group_size"),
    # how the factors started, given that the base stayed as it was (init_lora_weights says so)
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
}
_BASE_STAYS = (True, False, "gaussian", "orthogonal", "eva")
"""Ways of starting that leave the base's weights alone; PiSSA and its kind move part of them into the factors."""


class _Config(BaseModel):
    """The part of adapter_config.json that the result depends on; other keys are in ``model_extra``."""

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
    """An adapter folder, read and checked in itself."""

    folder: Path
    config: _Config
    tensors: dict[str, Tensor]
    """By their names in the base: ``encoder.layer.0.query.lora_A.weight``."""


def import_peft(folder: Path, model: str | None = None, labels: Sequence[str] = ()) -> Delta:
    """A LoRA adapter of a sequence classifier as a delta of its base: the one it names, or ``model``.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        model: the base, a local folder or a hub id.
        labels: names of the classes in the adapter's order; empty: those that the base's config names.

    Raises:
        InputError: the folder is no LoRA adapter, holds what a delta cannot hold, or does not fit the base.
    """
    adapter = read_adapter(folder)
    config = adapter.config
    if config.task_type not in (None, "SEQ_CLS"):
        raise InputError(
            f"{folder}: an adapter for {config.task_type}: only those of classifiers (SEQ_CLS) are imported"
        )
    if config.revision and not model:
        raise InputError(f"{folder}: made on revision {config.revision!r} of its base: give that base with --model")
    name = model or config.base_model_name_or_path
    if not name:
        raise InputError(f"{folder}: the adapter does not name its base: give it with --model")
    labels = tuple(labels) or _labels(name)
    base = load_classifier(name, labels)
    delta = to_delta(adapter, base.model)
    lost = [parameter for parameter in base.fresh if parameter not in delta.whole]
    if lost:
        raise InputError(f"{folder}: neither the adapter nor {name} holds {lost[0]!r}: name another base with --model")
    return delta.with_provenance(base=name, task="text-classification", labels=labels)


def read_adapter(folder: Path) -> Adapter:
    """Reads and checks a LoRA adapter folder.

    Raises:
        InputError: it is none, it is damaged, its weights are pickled, or it holds what a delta cannot hold.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: no PEFT adapter: it has no {CONFIG}")
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
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{folder / CONFIG}: {place}: {first['msg']}: is it a LoRA adapter?") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise InputError(f"{folder}: damaged ({error}): fetch the adapter again") from None
    why = _why_not(config)
    if why:
        raise InputError(f"{folder}: {why}")
    return Adapter(folder, config, {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()})


def to_delta(adapter: Adapter, model: nn.Module) -> Delta:
    """The adapter as a delta of ``model``, its base.

    Raises:
        InputError: a tensor that fits no place in the model, or that a delta cannot hold.
    """
    factors: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    parameters = dict(model.named_parameters())
    for name, tensor in adapter.tensors.items():
        if not tensor.is_floating_point():
            raise InputError(f"{adapter.folder}: tensor {name!r} is {tensor.dtype}, not floating point")
        matched = _FACTOR.fullmatch(name)
        if matched:
            factors.setdefault(matched[1], {})[matched[2]] = tensor.float()
        else:
            whole[name] = _saved(adapter, name, tensor, parameters)
    known = linears(model)
    unusable = why_unusable(model, known)
    modules = dict(model.named_modules())
    low_rank = {}
    for name, pair in factors.items():
        if name not in known:
            kind = (
                f"is a {type(modules[name]).__name__}"
                if name in modules
                else f"is not there{did_you_mean(name, known)}"
            )
            raise InputError(f"{adapter.folder}: LoRA on {name!r}, which in the base {kind}: only linears can have it")
        if name in unusable:
            raise InputError(f"{adapter.folder}: LoRA on {name!r} cannot be held: {unusable[name]}")
        low_rank[name] = _product(adapter, known[name], pair)
    if not low_rank:
        raise InputError(f"{adapter.folder}: {WEIGHTS} holds no LoRA factors")
    ranks = sorted({product.rank for product in low_rank.values()})
    made = Provenance(
        rule="lora",
        budget="rank " + ", ".join(map(str, ranks)),
        base_parameters=sum(parameter.numel() for parameter in parameters.values()),
        training={"imported": "PEFT LoRA", "lora_alpha": adapter.config.lora_alpha},
    )
    return Delta({}, whole, made, low_rank)


def _why_not(config: _Config) -> str:
    """Why a delta cannot hold what the adapter says, or nothing."""
    if config.peft_type != "LORA":
        return f"an adapter of type {config.peft_type}: only LoRA is imported"
    extra = config.model_extra or {}
    if extra.get("use_dora"):
        return "DoRA rescales every row of the weight, which a low-rank product cannot say: only plain LoRA is imported"
    if config.bias != "none" or extra.get("lora_bias"):
        return "it trains biases of the linears (bias or lora_bias): only adapters with bias='none' are imported"
    if config.init_lora_weights not in _BASE_STAYS and config.init_lora_weights is not None:
        return (
            f"init_lora_weights={config.init_lora_weights!r} changed the base as well: save it from PEFT with "
            "path_initial_model_for_weight_conversion, which makes it plain LoRA"
        )
    unknown = [key for key, value in extra.items() if value and key not in _HARMLESS]
    if unknown:
        return f"it uses {unknown[0]}={extra[unknown[0]]!r}, which a delta cannot hold"
    return ""


def _saved(adapter: Adapter, name: str, tensor: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """A parameter that the adapter holds whole (modules_to_save), in the base's dtype."""
    if ".lora_embedding_" in f".{name}":
        raise InputError(f"{adapter.folder}: LoRA on an embedding ({name}): only linears can have it")
    saved = adapter.config.modules_to_save or []
    modules = accumulate(name.split(".")[:-1], "{}.{}".format)  # a.b.weight: a, a.b
    if name not in parameters or not any(f".{module}".endswith(f".{ending}") for module in modules for ending in saved):
        raise InputError(
            f"{adapter.folder}: tensor {name!r} is neither a LoRA factor nor of a module in modules_to_save"
        )
    own = parameters[name]
    if own.shape != tensor.shape:
        raise InputError(
            f"{adapter.folder}: {name!r} is {list(own.shape)} in the base, the adapter holds {list(tensor.shape)}: "
            "where that is the number of classes, name them with --labels, in the adapter's order"
        )
    return tensor.to(own.dtype)


def _product(adapter: Adapter, linear: Linear, factors: Mapping[str, Tensor]) -> LowRankDelta:
    folder, config, name = adapter.folder, adapter.config, linear.name
    rank = int(_for(folder, name, config.rank_pattern, config.r))
    out, inputs = linear.shape
    shapes = [list(factors[part].shape) if part in factors else None for part in "AB"]
    if shapes != [[rank, inputs], [out, rank]]:
        raise InputError(
            f"{folder}: the factors of {name!r} are {shapes[0]} and {shapes[1]}; by its config and the base they "
            f"must be {[rank, inputs]} and {[out, rank]}"
        )
    alpha = _for(folder, name, config.alpha_pattern, config.lora_alpha)
    return LowRankDelta(
        a=factors["A"],
        b=factors["B"],
        scale=float(alpha / (rank**0.5 if config.use_rslora else rank)),
        base_dtype=str(linear.weight.dtype).removeprefix("torch."),
        base_digest=digest(linear.weight),
    )


def _for(folder: Path, name: str, patterns: Mapping[str, float] | None, otherwise: float) -> float:
    """What the first pattern says that matches the end of the module's name, as PEFT looks it up."""
    for pattern, value in (patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", name):
                return value
        except re.error as error:
            raise InputError(f"{folder / CONFIG}: {pattern!r} is no pattern ({error})") from None
    return otherwise


def _labels(name: str) -> tuple[str, ...]:
    """The classes that the base's config names."""
    from transformers import AutoConfig

    with explained(name):
        named: dict[Any, str] = AutoConfig.from_pretrained(name).id2label
    return tuple(named[place] for place in sorted(named))
