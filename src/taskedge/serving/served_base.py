"""One base in memory for all kinds of task: a classifier and a language model of one base share its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from taskedge.backbone.loading import TASK_AUTO_CLASSES, Base, load_base
from taskedge.backbone.storage.set_storage import set_weight_storage
from taskedge.errors import InputError
from taskedge.serving.mixed_model import MixedModel
from taskedge.training.data.text_data import evaluating, is_same_answer
from taskedge.training.generation import is_padding_ignored, target_batch

Log = Callable[[str], None]

SERVED_TASKS = (
    "text-classification",
    "multi-label-classification",
    "text-regression",
    "image-classification",
    "text-generation",
    "text-to-text",
    "token-classification",
)
"""Kinds of task that requests can be answered for."""


@dataclass(frozen=True)
class View:
    """The base as one class of model sees it.

    Attributes:
        kind: name of the class of transformers.
        base: the model with its tokenizer or image processor.
        mixed: runs batches whose rows have tasks of their own.
        mixes_lengths: whether texts of different lengths can share a batch: the model ignores padding.
    """

    kind: str
    base: Base
    mixed: MixedModel
    mixes_lengths: bool


class ServedBase:
    """Loads the base once, and what each further kind of task needs beside it.

    Args:
        name: folder or hub id.
        dtype: one of ``taskedge.backbone.loading.DTYPES``.
        weight_storage: one of ``taskedge.backbone.storage.WEIGHT_STORAGE``.
        log: receives lines about the base.
    """

    def __init__(
        self, name: str | Path, *, dtype: str = "auto", weight_storage: str = "resident", log: Log = lambda _: None
    ) -> None:
        self.name, self.dtype, self.weight_storage = str(name), dtype, weight_storage
        self._log = log
        self._views: dict[str, View] = {}

    def view(self, task: str, labels: Sequence[str]) -> View:
        """Return the base for a kind of task; it is loaded when the first task of its class comes.

        Args:
            task: a key of ``TASK_AUTO_CLASSES``.
            labels: the task's classes, which give the shape of a new head. Every task brings its own head.

        Raises:
            InputError: the base cannot do such tasks; see :func:`taskedge.backbone.loading.load_base`.
        """
        if task not in SERVED_TASKS:
            raise InputError(f"{self.name}: tasks of kind {task} cannot be served: answer them with 'taskedge predict'")
        kind = TASK_AUTO_CLASSES[task]
        if kind not in self._views:
            base = load_base(task, self.name, labels, dtype=self.dtype, keep_head=True, log=self._log)
            base.model.eval()
            base.model.requires_grad_(False)
            self._share_weights(base.model)
            set_weight_storage(base.model, self.weight_storage, self._log)
            self._views[kind] = View(kind, base, MixedModel(base.model), _mixes_lengths(task, base))
        return self._views[kind]

    def _share_weights(self, model: Any) -> None:
        """Replace the shared part of a model by that of the model that was loaded first, if they are the same class."""
        prefix = model.base_model_prefix
        for view in self._views.values():
            first: Any = view.base.model
            shared = getattr(first, prefix, None)  # T5 with a language-model head has its parts beside each other
            own: Any = getattr(model, prefix, None)
            if shared is not None and first.base_model_prefix == prefix and type(shared) is type(own):
                if shared.state_dict().keys() == own.state_dict().keys():
                    setattr(model, prefix, shared)
                else:  # such as a tagger without the pooler of a classifier
                    for name, part in own.named_children():
                        if type(getattr(shared, name, None)) is type(part):
                            setattr(own, name, getattr(shared, name))
                self._log(f"{self.name}: {type(model).__name__} shares the weights of {type(first).__name__}")
                return


def _mixes_lengths(task: str, base: Base) -> bool:
    """Return whether the answer to a short text is the same alone and beside a long one."""
    if base.tokenizer is None:
        return True
    ids = [index for index in range(len(base.tokenizer)) if index not in base.tokenizer.all_special_ids][:64]
    short, long = ids[:3], (ids * 3)[: min(24, base.max_positions or 24)]
    if task == "text-generation":
        with evaluating(base.model):
            return is_padding_ignored(base.model, [short, long], base.tokenizer.pad_token_id)
    if task == "text-to-text":
        with evaluating(base.model):
            alone, beside = (first_target_logits(base, batch) for batch in ([short], [short, long]))
        return is_same_answer(alone, beside[:1])
    from taskedge.training.data.text_data import PADDED_LEFT, collator

    collate = collator(base.tokenizer, base.model)
    end = getattr(base.model.config, "eos_token_id", None)
    ends = [end] if getattr(base.model.config, "is_encoder_decoder", False) and isinstance(end, int) else []
    rows = [{"input_ids": [*part, *ends], "attention_mask": [1] * len([*part, *ends])} for part in (short, long)]
    with evaluating(base.model):
        alone, beside = (base.model(**collate(batch)).logits for batch in (rows[:1], rows))
    if task == "token-classification":  # outputs of a short text end before those of a long one, or begin behind them
        left = getattr(base.model.config, "model_type", "") in PADDED_LEFT
        beside = beside[:, -alone.shape[1] :] if left else beside[:, : alone.shape[1]]
    return is_same_answer(alone, beside[:1])


def first_target_logits(base: Base, sources: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the logits [rows, words] of the first token of each target, by an encoder-decoder."""
    batch = target_batch(base.model, sources, int(base.tokenizer.pad_token_id))
    start = int(base.model.config.decoder_start_token_id)  # type: ignore[union-attr, arg-type]
    logits: torch.Tensor = base.model(**batch, decoder_input_ids=torch.full((len(sources), 1), start)).logits
    return logits[:, 0]


def head_names(model: nn.Module, names: Sequence[str]) -> set[str]:
    """Return those of the parameters that are outside the part that all tasks share."""
    prefix = getattr(model, "base_model_prefix", "")
    return {name for name in names if not (prefix and name.startswith(f"{prefix}."))}


def probe_batch(task: str, base: Base, rows: int) -> dict[str, torch.Tensor]:
    """Return a batch of equal rows that no user sends, to compare ways of computing it."""
    if base.tokenizer is None:
        from PIL import Image

        image = Image.radial_gradient("L").convert("RGB").resize((64, 48))
        dtype = next(base.model.parameters()).dtype
        pixels = base.image_processor([image], return_tensors="pt")["pixel_values"].to(dtype)
        return {"pixel_values": pixels.expand(rows, *pixels.shape[1:])}
    ids = [index for index in range(len(base.tokenizer)) if index not in base.tokenizer.all_special_ids][3:8]
    end = getattr(base.model.config, "eos_token_id", None)
    if getattr(base.model.config, "is_encoder_decoder", False) and isinstance(end, int):
        ids = [*ids, end]
    tokens = torch.tensor([ids]).expand(rows, -1)
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if task == "text-to-text":
        start = int(base.model.config.decoder_start_token_id)  # type: ignore[union-attr, arg-type]
        batch["decoder_input_ids"] = torch.tensor([[start, *ids[:3]]]).expand(rows, -1)
    return batch
