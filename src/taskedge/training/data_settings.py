"""Settings of ``taskedge tune`` about the data and the base. The only place of their names, defaults and help texts.

Must not import torch or transformers: help texts and faults in flags are printed at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from taskedge.backbone.storage import current_name
from taskedge.training.config import Config


class DataSettings(Config):
    """Settings of one run about its data, its task and its base."""

    # data and task
    model: Annotated[str, Field(description="Base model: a local folder, a hub id or a GGUF file.")]
    train: Annotated[
        Path,
        Field(
            description="Training data: a CSV, TSV, JSONL, Parquet or text file, a folder of images, or a data set of "
            "the hub such as imdb:train."
        ),
    ]
    eval: Annotated[Path | None, Field(description="Held-out data to measure the result on.")] = None
    validation: Annotated[
        str | None,
        Field(
            description="Data for the held-out loss while it trains: a file, or a share of the training data such as "
            "10%, the same of every class, by the seed. Without it, --eval-every reads --eval."
        ),
    ] = None
    task: Annotated[
        str | None,
        Field(
            description="Kind of task: text-classification, multi-label-classification, text-regression, "
            "image-classification, text-generation, text-to-text, token-classification or dialogue-state. If left out, "
            "it is inferred from the data."
        ),
    ] = None
    text: Annotated[
        list[str] | None, Field(description="Column with the text; repeat it to join several.", min_length=1)
    ] = None
    label: Annotated[
        list[str] | str | None,
        Field(
            description="Column with the label: a class or a number. Repeat it, or write --label a,b, for columns of 0 "
            "and 1, of which several may be set in a row."
        ),
    ] = None
    label_separator: Annotated[
        str | None,
        Field(
            description="What separates the labels in a column that lists those of each row; a comma with --task "
            "multi-label-classification.",
            min_length=1,
        ),
    ] = None
    prompt: Annotated[str | None, Field(description="Column with the prompt.")] = None
    response: Annotated[str | None, Field(description="Column with the response to it.")] = None
    messages: Annotated[
        str | None,
        Field(description="Column with whole conversations, of which every turn of the assistant is learned."),
    ] = None
    source: Annotated[str | None, Field(description="Column with the source text of an encoder-decoder.")] = None
    target: Annotated[str | None, Field(description="Column with the target text to it.")] = None
    tokens: Annotated[str | None, Field(description="Column with a list of tokens.")] = None
    tags: Annotated[str | None, Field(description="Column with the list of their tags.")] = None
    turns: Annotated[str | None, Field(description="Column with the turns of a dialogue and their states.")] = None
    image: Annotated[str | None, Field(description="Column with the path of an image.")] = None

    class_weights: Annotated[
        Literal["none", "balanced"],
        Field(description="Weights of classes in the training loss; 'balanced': inverse to their numbers of rows."),
    ] = "none"

    # base model
    dtype: Annotated[
        Literal["auto", "fp32", "bf16", "fastest"],
        Field(
            description="Data type of the base weights; 'auto': the one in which its files store them; 'fastest': bf16 "
            "where its products are faster on this processor and the kind of task was measured with it."
        ),
    ] = "auto"
    weight_storage: Annotated[
        Literal["resident", "mmap", "int8", "int4"],
        Field(
            description="How base weights are stored: 'resident' in memory; 'mmap', mapped from the file and shared "
            "with other processes; 'int8' and 'int4', as codes of 8 or 4 bits."
        ),
    ] = "resident"

    @model_validator(mode="before")
    @classmethod
    def _wrap_single_text(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("text"), str):
            return data | {"text": [data["text"]]}
        return data

    @field_validator("label", mode="before")
    @classmethod
    def _unwrap_single_label(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return value[0] if len(value) == 1 else list(value) or None
        return value

    @field_validator("weight_storage", mode="before")
    @classmethod
    def _translate_old_weight_storage(cls, value: Any) -> Any:
        return current_name(value) if isinstance(value, str) else value
