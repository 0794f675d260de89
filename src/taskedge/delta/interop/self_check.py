"""The end of every export: some rows through the model and through what was written.

The rows are those that the caller gives, or sentences of this module in several lengths; for a model of images, noise.
A difference above the tolerance refuses the export, and nothing is written.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.evaluation import evaluation_mode
from taskedge.errors import TaskEdgeError

Batch = dict[str, Tensor]
SENTENCES = (
    "The room was warm and the coffee came quickly.",
    "No.",
    "I waited for two hours, and in the end nobody could tell me why the train had not left the station.",
    "What is the capital of the country with 83 million people?",
    "A film that starts slowly, finds its rhythm in the middle, and then throws all of it away in the last minutes; "
    "still, the two actors at its center are worth the ticket, and the music stays with you for days.",
    "Please send the invoice to the address below.",
)
MAX_TOKENS = 128
IMAGE_SIZE = 64
"""Height and width of rows for a model that takes images of any size."""
TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
LOW_PRECISION = {torch.float32: 1.0, torch.float64: 1.0, torch.float16: 500.0, torch.bfloat16: 4000.0}
"""How much a tolerance for fp32 grows with the dtype of the base."""


class ExportDiffers(TaskEdgeError):
    """Raised where the files of an export compute something else than the model."""


def check_rows(model: nn.Module, processor: Any = None, texts: Sequence[str] = ()) -> list[Batch]:
    """Return batches for a model of transformers: rows of several lengths in one, and a single row; empty if unknown.

    Args:
        model: the model.
        processor: its tokenizer, if there is one; otherwise token ids are drawn.
        texts: rows to use instead of the sentences of this module.
    """
    config = getattr(model, "config", None)
    accepted = inspect.signature(model.forward).parameters
    generator = torch.Generator().manual_seed(0)
    if "pixel_values" in accepted and "input_ids" not in accepted:
        size = getattr(config, "image_size", None) or IMAGE_SIZE  # a network of convolutions states none
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        shape = (getattr(config, "num_channels", 3), height, width)
        dtype = next(model.parameters()).dtype
        return [{"pixel_values": torch.randn(count, *shape, generator=generator).to(dtype)} for count in (4, 1)]
    if "input_ids" not in accepted or not isinstance(getattr(config, "vocab_size", None), int):
        return []
    rows = _token_rows(config, processor, texts, generator)
    names = [name for name in TOKEN_INPUTS if name in rows[0] and name in accepted]
    groups = [rows[start : start + 8] for start in range(0, len(rows), 8)] + [rows[-1:]]
    if "attention_mask" not in accepted:
        groups = [[row] for row in rows]
    padding = {"input_ids": getattr(config, "pad_token_id", None) or 0}
    batches = [
        {name: _padded([row[name] for row in group], padding.get(name, 0)) for name in names} for group in groups
    ]
    if "decoder_input_ids" in accepted and not type(model).__name__.endswith("Classification"):
        start = getattr(config, "decoder_start_token_id", None) or 0
        for batch in batches:
            batch["decoder_input_ids"] = torch.full((len(batch["input_ids"]), 1), start)
    return batches


def _token_rows(
    config: Any, processor: Any, texts: Sequence[str], generator: torch.Generator
) -> list[dict[str, list[int]]]:
    """Return token ids, mask and, if the tokenizer gives them, segments of every row."""
    limit = getattr(config, "max_position_embeddings", None)
    longest = min(MAX_TOKENS, limit - 4) if isinstance(limit, int) and limit > 8 else MAX_TOKENS
    if processor is not None and hasattr(processor, "convert_ids_to_tokens"):
        found = processor(list(texts or SENTENCES), truncation=True, max_length=longest, return_attention_mask=True)
        rows = [{name: found[name][place] for name in found} for place in range(len(found["input_ids"]))]
        return [row for row in rows if row["input_ids"]]
    end = getattr(config, "eos_token_id", None)
    ends = [end] if isinstance(end, int) and getattr(config, "is_encoder_decoder", False) else []
    low = min(5, config.vocab_size - 1)
    lengths = [min(longest, length) for length in (5, 2, 11, 7)]
    drawn = [torch.randint(low, config.vocab_size, (length,), generator=generator).tolist() for length in lengths]
    ids = [[token for token in row if token != end] + ends or [low] for row in drawn]
    return [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids]


def _padded(rows: Sequence[Sequence[int]], padding: int) -> Tensor:
    padded = torch.full((len(rows), max(map(len, rows))), padding)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = torch.tensor(row)
    return padded


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """Return the model's logits in evaluation mode, fp32, without a cache."""
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    device = next(model.parameters()).device
    with evaluation_mode(model), torch.no_grad():
        output = model(**{name: tensor.to(device) for name, tensor in batch.items()}, **options)
    return output.logits.float().cpu()  # type: ignore[no-any-return]


def self_check(
    model: nn.Module, batches: Sequence[Batch], run: Callable[[Batch], Any], tolerance: float, what: str
) -> dict[str, Any]:
    """Compare the logits of the model with those of an export.

    Args:
        model: the model with the delta applied.
        batches: from :func:`check_rows`.
        run: computes the logits of a batch from what was written.
        tolerance: largest accepted difference for an fp32 base, relative to the largest logit if that is over 1.
        what: the export, for the message.

    Returns:
        ``checked_rows``, ``largest_difference``, and ``same_answers``: the share of rows, or of positions of a language
        model, whose largest logit is at the same place. Positions that only padding fills are left out.

    Raises:
        ExportDiffers: a difference is above the tolerance, or not a number.
    """
    largest, rows, scale, same, answers = 0.0, 0, 1.0, 0, 0
    for batch in batches:
        expected = logits_of(model, batch)
        found = torch.as_tensor(run(batch)).float()
        if found.shape != expected.shape:
            raise ExportDiffers(
                f"{what}: its logits are {list(found.shape)}, the model's {list(expected.shape)}; nothing was written"
            )
        difference = (found - expected).abs()
        if expected.dim() == 3 and "attention_mask" in batch and "decoder_input_ids" not in batch:
            mask = batch["attention_mask"].bool()
            difference, expected, found = difference[mask], expected[mask], found[mask]
        same += int((found.argmax(-1) == expected.argmax(-1)).sum())
        answers += expected[..., 0].numel()
        largest = max(largest, float(difference.nan_to_num(nan=torch.inf).max()))
        scale = max(scale, float(expected.abs().max()))
        rows += len(next(iter(batch.values())))
    limit = tolerance * scale * LOW_PRECISION.get(next(model.parameters()).dtype, 1.0)
    if not largest <= limit:
        raise ExportDiffers(
            f"{what}: its logits differ from the model's by up to {largest:.2g} on {rows} rows, more than {limit:.2g}; "
            "nothing was written: export with --to merged, whose values replace the base's"
        )
    return {"checked_rows": rows, "largest_difference": largest, "same_answers": same / answers}
