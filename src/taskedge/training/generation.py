"""Batched log-likelihood and greedy generation by language models."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from taskedge.backbone.label_loss import IGNORED_LABEL, LabelLossModel, label_count, label_shift_of
from taskedge.training.data.text_data import batch_indices, evaluating, is_same_answer
from taskedge.training.guard import guarded

IGNORED = IGNORED_LABEL
"""Label of a token that is not learned."""
MAX_LOGITS = 2**27
"""Largest number of logits at once: 0.5 GB in fp32."""


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> Tensor:
    """Return rows as int64 [rows, longest], filled with ``value`` at their end, or with ``left`` at their start."""
    longest = max(map(len, rows))
    padded = []
    for row in rows:
        padding = [value] * (longest - len(row))
        padded.append([*padding, *row] if left else [*row, *padding])
    return torch.tensor(padded)


def label_collator(padding: int) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """Return a function that pads rows with ``input_ids`` and ``labels`` at their end to a batch.

    Args:
        padding: id of the padding token. Labels are padded with :data:`IGNORED`.
    """

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids = [row["input_ids"] for row in rows]
        return {
            "input_ids": pad(ids, padding),
            "attention_mask": pad([[1] * len(row) for row in ids], 0),
            "labels": pad([row["labels"] for row in rows], IGNORED),
        }

    return collate


def log_unmatched(
    answers: Sequence[Sequence[int]], num_rows: int, new_tokens: int, noun: str, log: Callable[[str], object]
) -> None:
    """Log how many answers are longer than what is generated, if any is; ``noun`` names them."""
    num_long = sum(len(ids) > new_tokens for ids in answers)
    if num_long:
        log(
            f"{num_long:,} of {num_rows:,} {noun} have more than {new_tokens} tokens, which is the most "
            "that is generated: they cannot be matched exactly (see --max-new-tokens)"
        )


def negative_log_likelihood(
    model: nn.Module,
    rows: Sequence[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
    batch_size: int,
    on_progress: Callable[[int], object],
) -> tuple[float, int]:
    """Return the sum of the negative log-likelihoods, in nats, of all tokens that have a label, and their number."""
    device, total, num_tokens = next(model.parameters()).device, 0.0, 0
    vocabulary = int(getattr(model.config, "vocab_size", 2**16))
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]["input_ids"]))  # the largest batch comes first
    start = 0
    with evaluating(model):
        while start < len(order):
            max_rows = max(1, MAX_LOGITS // (vocabulary * len(rows[order[start]]["input_ids"])))
            if isinstance(model, LabelLossModel):
                max_rows = batch_size
            indices = order[start : start + min(batch_size, max_rows)]
            with guarded(model, rows, indices, collate):
                batch = {key: value.to(device) for key, value in collate([rows[i] for i in indices]).items()}
                num_learned = label_count(batch["labels"], label_shift_of(model))
                if num_learned and isinstance(model, LabelLossModel):
                    total += float(model(**batch, num_items_in_batch=1).loss)
                elif num_learned:
                    total += _sum_over_logits(model, batch)
            num_tokens += num_learned
            start += len(indices)
            on_progress(len(indices))
    return total, num_tokens


def _sum_over_logits(model: nn.Module, batch: dict[str, Tensor]) -> float:
    labels, shift = batch["labels"], label_shift_of(model)
    if shift:
        batch = {key: value for key, value in batch.items() if key != "labels"}  # an encoder-decoder needs them
    logits = model(**batch).logits[:, : labels.shape[1] - shift].flatten(0, 1)  # (rows · tokens, vocabulary)
    labels = labels[:, shift:].flatten()
    learned = labels != IGNORED
    return float(cross_entropy(logits[learned].float(), labels[learned], reduction="sum"))


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    pad_token: int,
    end_token: int | Collection[int],
    new_tokens: int,
    batch_size: int,
    on_progress: Callable[[int], object],
) -> list[list[int]]:
    """Return the most probable tokens after each prompt, one at a time, up to an end token or ``new_tokens``.

    Prompts of a batch are padded at their start. If that changes what the model answers, prompts of different lengths
    do not share a batch.
    """
    from transformers import GenerationConfig

    ends = [end_token] if isinstance(end_token, int) else sorted(end_token)
    responses: list[list[int]] = [[] for _ in prompts]
    greedy = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=new_tokens, pad_token_id=pad_token, eos_token_id=ends
    )
    published = model.generation_config  # its penalties and sampling are not used
    model.generation_config = greedy
    lengths = [len(prompt) for prompt in prompts]
    prompt_rows = [{"input_ids": prompt} for prompt in prompts]

    def left_padded(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        return left_padded_batch(model, [row["input_ids"] for row in rows], pad_token)

    try:
        with evaluating(model):
            with guarded(model, prompt_rows, range(len(prompts)), left_padded):
                mixed = batch_size == 1 or is_padding_ignored(model, prompts, pad_token)
            for indices in batch_indices(lengths, batch_size, mixed=mixed):
                with guarded(model, prompt_rows, indices, left_padded):
                    batch = left_padded([prompt_rows[index] for index in indices])
                    output = model.generate(**batch, generation_config=greedy)  # type: ignore[operator]
                for index, tokens in zip(indices, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                    responses[index] = tokens[: next((i for i, token in enumerate(tokens) if token in ends), None)]
                on_progress(len(indices))
    finally:
        model.generation_config = published
    return responses


def generate_targets(
    model: nn.Module,
    sources: Sequence[Sequence[int]],
    tokenizer: Any,
    *,
    new_tokens: int,
    batch_size: int,
    on_progress: Callable[[int], object],
) -> list[list[int]]:
    """Return the most probable target of each source by an encoder-decoder, one token at a time, without its end.

    Sources are padded at their end. If that changes what the model writes, sources of different lengths do not share a
    batch. Of the base's own generation settings, only the tokens that a target begins with are used.
    """
    from transformers import GenerationConfig

    published: Any = model.generation_config
    config: Any = model.config
    end, padding = int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)
    greedy = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=new_tokens, pad_token_id=padding, eos_token_id=end,
        decoder_start_token_id=config.decoder_start_token_id,
        forced_bos_token_id=getattr(published, "forced_bos_token_id", None),
    )  # fmt: skip
    device = next(model.parameters()).device

    def padded(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        return target_batch(model, [row["input_ids"] for row in rows], padding)

    def first_logits(rows: Sequence[dict[str, Any]]) -> Tensor:
        start = torch.full((len(rows), 1), config.decoder_start_token_id, device=device)
        logits: Tensor = model(**padded(rows), decoder_input_ids=start).logits
        return logits[:, 0]

    lengths, source_rows = list(map(len, sources)), [{"input_ids": list(source)} for source in sources]
    targets: list[list[int]] = [[] for _ in sources]
    model.generation_config = greedy
    try:
        with evaluating(model):
            pair = [source_rows[lengths.index(length)] for length in (min(lengths), max(lengths))]
            with guarded(model, source_rows, range(len(sources)), padded):
                mixed = batch_size == 1 or is_same_answer(first_logits(pair[:1]), first_logits(pair)[:1])
            for indices in batch_indices(lengths, batch_size, mixed=mixed):
                with guarded(model, source_rows, indices, padded):
                    batch = padded([source_rows[index] for index in indices])
                    output = model.generate(**batch, generation_config=greedy)  # type: ignore[operator]
                for index, tokens in zip(indices, output[:, 1:].tolist(), strict=True):
                    targets[index] = tokens[: tokens.index(end) if end in tokens else None]
                on_progress(len(indices))
    finally:
        model.generation_config = published
    return targets


def target_batch(model: nn.Module, sources: Sequence[Sequence[int]], padding: int) -> dict[str, Tensor]:
    """Return the sources of an encoder-decoder as a batch, padded at their end."""
    device = next(model.parameters()).device
    mask = pad([[1] * len(source) for source in sources], 0)
    return {"input_ids": pad(sources, padding).to(device), "attention_mask": mask.to(device)}


def predicts_next_tokens(model: nn.Module) -> bool:
    """Return whether the model's own loss is that of the next token, as training needs it.

    The decoders of BART and its kind compare a token's logits with the label at the same place: they would learn to
    copy.
    """
    if isinstance(model, LabelLossModel):
        return True
    ids = torch.tensor([[1, 2, 3, 1]], device=next(model.parameters()).device)
    with evaluating(model):
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
    if output.loss is None:
        return True  # the trainer refuses it
    expected = float(cross_entropy(output.logits[0, :-1].float(), ids[0, 1:]))
    return abs(float(output.loss) - expected) <= 1e-3 * expected


def left_padded_batch(model: nn.Module, prompts: Sequence[Sequence[int]], pad_token: int) -> dict[str, Tensor]:
    """Return prompts as a batch for the model, padded at their start."""
    device = next(model.parameters()).device
    mask = pad([[1] * len(prompt) for prompt in prompts], 0, left=True)
    return {"input_ids": pad(prompts, pad_token, left=True).to(device), "attention_mask": mask.to(device)}


def is_padding_ignored(model: nn.Module, prompts: Sequence[Sequence[int]], pad_token: int) -> bool:
    """Return whether the next tokens after the shortest prompt are the same alone and beside the longest.

    Models with absolute positions that they do not count from the attention mask fail this, such as BART's decoder. Two
    tokens are compared, because the second depends on the cache.
    """
    from transformers import GenerationConfig

    shortest, longest = min(prompts, key=len), max(prompts, key=len)
    if len(shortest) == len(longest):
        return True
    two = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=2, min_new_tokens=2, pad_token_id=pad_token,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    alone, beside = (
        model.generate(**left_padded_batch(model, batch, pad_token), generation_config=two)  # type: ignore[operator]
        for batch in ([shortest], [shortest, longest])
    )
    if not is_same_answer(alone.logits[0], beside.logits[0][:1]):
        return False
    if alone.sequences[0, -2] != beside.sequences[0, -2]:
        return True  # two equally probable tokens
    return is_same_answer(alone.logits[1], beside.logits[1][:1])
