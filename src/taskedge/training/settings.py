"""What ``taskedge tune`` can be told. The only place where these names, defaults and help texts stand."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from taskedge.errors import InputError, did_you_mean
from taskedge.training.fit import FitSettings

_FIT = FitSettings()


class TuneSettings(BaseModel):
    """Settings of one run. Flags and the keys of a settings file have the names of these fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, Field(description="Base model: a local folder or a hub id.")]
    train: Annotated[Path, Field(description="Training data: a CSV, TSV, JSONL or Parquet file.")]
    eval: Annotated[Path | None, Field(description="Held-out data to measure the result on.")] = None
    text: Annotated[list[str], Field(description="Column with the text; repeat it to join several.", min_length=1)]
    label: Annotated[str, Field(description="Column with the label.")]
    budget: Annotated[str, Field(description="Share of the model's parameters to train.")] = "0.1%"
    per_neuron: Annotated[int | None, Field(description="Instead of a budget: entries per neuron.", ge=1)] = None
    rule: Annotated[str, Field(description="What ranks the weights: taskedge, magnitude, random or gradient.")] = (
        "taskedge"
    )
    allocation: Annotated[str, Field(description="How they are spread: per_neuron, per_layer or global.")] = (
        "per_neuron"
    )
    max_columns: Annotated[
        int | None, Field(description="Most distinct inputs used per linear: a cap on memory.", ge=1)
    ] = None
    step: Annotated[
        Literal["plain", "activation"], Field(description="'activation' scales steps by the inverse input norm.")
    ] = "plain"
    calibration: Annotated[int, Field(description="Batches that the selection looks at.", ge=1)] = 8
    epochs: Annotated[float, Field(description="Passes over the training data.", gt=0)] = _FIT.epochs
    lr: Annotated[float, Field(description="Peak learning rate.", gt=0)] = _FIT.lr
    batch_size: Annotated[int, Field(description="Rows in a batch.", ge=1)] = _FIT.batch_size
    accumulate: Annotated[int, Field(description="Batches per optimiser step.", ge=1)] = _FIT.accumulate
    weight_decay: Annotated[float, Field(description="Pull of the weights towards the base.", ge=0)] = _FIT.weight_decay
    warmup: Annotated[float, Field(description="Share of the steps with a rising rate.", ge=0, lt=1)] = _FIT.warmup
    clip: Annotated[float, Field(description="Largest norm of the gradient; 0 for no limit.", ge=0)] = _FIT.clip
    bf16: Annotated[bool, Field(description="Compute in bfloat16 where it is safe (autocast).")] = _FIT.bf16
    max_length: Annotated[int, Field(description="Longest text in tokens; longer ones are cut.", ge=1)] = 128
    seed: Annotated[int, Field(description="Of the head, the order of the data, and dropout.", ge=0)] = _FIT.seed
    threads: Annotated[int | None, Field(description="CPU threads; 1 makes runs bit-identical.", ge=1)] = None
    checkpoint_every: Annotated[int, Field(description="Optimiser steps between checkpoints.", ge=1)] = 25
    values: Annotated[Literal["fp32", "bf16"], Field(description="How the file stores trained values.")] = "fp32"
    tensorboard: Annotated[bool, Field(description="Log for TensorBoard in the run's folder.")] = False
    out: Annotated[Path, Field(description="The delta file to write.")] = Path("task.safetensors")

    @model_validator(mode="before")
    @classmethod
    def _one_text_is_a_list(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("text"), str):
            return data | {"text": [data["text"]]}
        return data

    def fit(self) -> FitSettings:
        """The part that concerns the training loop."""
        names = FitSettings.__dataclass_fields__.keys() & type(self).model_fields.keys()
        return FitSettings(**{name: getattr(self, name) for name in names})


def settle(flags: Mapping[str, Any], config: Path | None = None) -> TuneSettings:
    """Flags over the settings file over defaults.

    Raises:
        InputError: all faults in one message, each with its place; an unknown key names the nearest known one.
    """
    stored = _read_toml(config) if config else {}
    known = TuneSettings.model_fields
    merged = {key.replace("-", "_"): value for key, value in stored.items()} | dict(flags)
    try:
        return TuneSettings(**merged)
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            key = ".".join(str(part) for part in fault["loc"])
            source = f"{config}: " if key in {name.replace("-", "_") for name in stored} and key not in flags else "--"
            name = key if source != "--" else key.replace("_", "-")
            if fault["type"] == "extra_forbidden":
                faults.append(f"{source}{name}: unknown setting{did_you_mean(key, known)}")
            elif fault["type"] == "missing":
                faults.append(f"--{name} is needed: {known[key].description}")
            else:
                faults.append(
                    f"{source}{name}: {fault['msg'].removeprefix('Value error, ')} (given: {fault['input']!r})"
                )
        raise InputError("; ".join(faults)) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML: {error}") from None
