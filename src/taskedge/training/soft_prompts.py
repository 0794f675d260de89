"""Soft prompts in a run: which tasks have them, where they start, and rows whose tokens are codes.

Source: see :mod:`taskedge.forms.prompt`. Start from words: Lester et al. (arXiv 2104.08691), and
PEFT's option ``TEXT``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from taskedge.backbone.label_loss import IGNORED_LABEL
from taskedge.backbone.loading import Base
from taskedge.errors import InputError
from taskedge.forms.prompt import (
    NO_ROLE,
    ROLES,
    USER,
    PromptLayout,
    attach_prompt,
    attached_prompt,
    prompt_embedding,
    with_prompt_room,
)
from taskedge.training.held_out_rows import PartRows
from taskedge.training.tasks import Log, Row, Task, ignore_log
from taskedge.training.tune_config import TuneConfig

_CLASSIFIERS = ("text-classification", "text-regression")
_GENERATORS = ("text-generation", "dialogue-state")


def start_prompt(base: Base, task: Task, config: TuneConfig, log: Log = ignore_log) -> Base:
    """Give the base of a run the soft prompt that its settings ask for; other forms change nothing.

    Args:
        base: freshly loaded.
        task: of the run; it may name ``slots``, of which each gets soft tokens of its own.
        config: settings of the run.
        log: called with a line about the words that the soft tokens start from.

    Returns:
        The base, with the positions that the soft tokens leave for text.

    Raises:
        InputError: the task or the base cannot have a soft prompt.
    """
    if config.form != "prompt":
        return base
    _check_task(task, config)
    embedding = prompt_embedding(base.model)
    slots: tuple[str, ...] = getattr(task, "slots", ()) or (task.name,)
    layout = PromptLayout(
        slots=slots,
        length=config.prompt_tokens,
        vocabulary=embedding.num_embeddings,
        where=config.prompt_where,
        repeat=config.prompt_repeat,
        segments=config.prompt_segments,
    )
    weight = embedding.weight.detach()
    width = embedding.embedding_dim
    if config.prompt_init == "random":
        generator = torch.Generator().manual_seed(config.seed)
        spread = float(weight.float().std())
        tokens = torch.randn(len(slots), layout.length, width, generator=generator) * spread
        log(
            f"soft tokens start at random (normal, deviation {spread:.3g} as that of the word vectors): known to learn "
            "far less than a start from words"
        )
    else:
        tokens = torch.stack([_word_vectors(base, embedding, text, layout.length) for text in _texts(task, config)])
        shown = "; ".join(repr(text) for text in _texts(task, config)[:3]) + ("; ..." if len(slots) > 3 else "")
        log(f"{layout.length} soft tokens for each of {len(slots)} slots start from the words of {shown}")
    segments = torch.zeros(len(ROLES), width) if layout.segments else None
    attach_prompt(base.model, layout, tokens, segments)
    return with_prompt_room(base)


def prompt_rows(base: Base, rows: Sequence[Row], layout: PromptLayout | None = None) -> list[Row]:
    """Return encoded rows with the soft tokens of the base's prompt; the rows themselves if it has none.

    A row may have ``slot``, the index of its slot, and ``roles``, one for each token of its ``prompt``. Without roles,
    text before the value is the user's. Values have no role.

    Args:
        base: its model reads the soft tokens, or will.
        rows: from a task.
        layout: of the soft prompt; by default that of the model.
    """
    prompt = attached_prompt(base.model)
    layout = prompt.layout if layout is None and prompt is not None else layout
    if layout is None:
        return rows if isinstance(rows, list) else list(rows)
    start = {*base.tokenizer("")["input_ids"][:1]} & {base.tokenizer.bos_token_id, base.tokenizer.cls_token_id}
    made = [_with_soft_tokens(row, layout, start) for row in rows]
    return PartRows(made, rows.numbers) if isinstance(rows, PartRows) else made


def _with_soft_tokens(row: Row, layout: PromptLayout, start: set[int]) -> Row:
    slot, made = int(row.get("slot", 0)), dict(row)
    if "prompt" in row:
        ids = list(row["prompt"])
        roles = list(row.get("roles") or [USER] * len(ids))
        made["prompt"] = layout.placed(ids, roles, slot, int(bool(ids) and ids[0] in start))
    if "input_ids" not in row:
        return made
    ids, labels = list(row["input_ids"]), row.get("labels")
    num_start = int(bool(ids) and ids[0] in start)
    if not isinstance(labels, list):  # one answer for the whole row, and columns beside the ids
        made["input_ids"] = layout.placed(ids, [USER] * len(ids), slot, num_start)
        for name in ("attention_mask", "token_type_ids"):
            if name in row:
                old = list(row[name])
                made[name] = [*old[:num_start], *[int(name == "attention_mask")] * layout.length, *old[num_start:]]
        return made
    learned = next((place for place, label in enumerate(labels) if label != IGNORED_LABEL), len(labels))
    before, value = ids[:learned], ids[learned:]
    if not before:  # plain text, of which every token is learned
        made["input_ids"] = layout.placed(ids, [NO_ROLE] * len(ids), slot, num_start)
        made["labels"] = [*labels[:num_start], *[IGNORED_LABEL] * layout.length, *labels[num_start:]]
        return made
    roles = list(row["roles"])[-learned:] if row.get("roles") else [USER] * learned
    placed = layout.placed(before, roles, slot, min(num_start, learned))
    rest = layout.marked(value, [NO_ROLE] * len(value))
    made["input_ids"], made["labels"] = [*placed, *rest], [*[IGNORED_LABEL] * len(placed), *labels[learned:]]
    return made


def _check_task(task: Any, config: TuneConfig) -> None:
    """Raise InputError if the task cannot have a soft prompt, or not one with these settings."""
    generates = task.name in _GENERATORS
    if not generates and task.name not in _CLASSIFIERS:
        raise InputError(
            f"--form prompt is for {', '.join([*_CLASSIFIERS, *_GENERATORS])}, and the data for {task.name}: use "
            "another --form"
        )
    has_value = generates and getattr(task, "has_value", True)
    for given, flag in (
        (config.prompt_where == "after", "--prompt-where after"),
        (config.prompt_repeat, "--prompt-repeat"),
        (generates and config.prompt_segments, "--prompt-segments"),
    ):
        if given and not has_value:
            raise InputError(f"{flag} needs one value to generate after each text: leave it out for this data")
    if not config.prompt_tokens and not config.prompt_segments:
        raise InputError("no soft tokens and no segments: give --prompt-tokens above 0, or --prompt-segments")


def _texts(task: Task, config: TuneConfig) -> list[str]:
    """Return the text whose words the soft tokens of each slot start from."""
    slots: tuple[str, ...] = getattr(task, "slots", ())
    if slots:
        lead = f"{config.prompt_text} " if config.prompt_text else ""
        return [f"{lead}{slot.replace('-', ' ').replace('_', ' ')}" for slot in slots]
    if config.prompt_text:
        return [config.prompt_text]
    return [f"{task.name.replace('-', ' ')}: {', '.join(task.labels)}".removesuffix(": ")]


def _word_vectors(base: Base, embedding: Any, text: str, length: int) -> Tensor:
    """Return float32 [length, width]: the vectors of the words of a text, from its beginning again where it ends."""
    ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise InputError(f"the tokenizer has no token for {text!r}, so no soft token can start from it: --prompt-text")
    with torch.no_grad():
        vectors: Tensor = embedding(torch.tensor(list(islice(cycle(ids), length)), dtype=torch.int64))
    return vectors.float()
