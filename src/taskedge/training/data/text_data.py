"""Labeled texts for a model: tokenized rows, padded batches, predictions, and their quality."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from taskedge.backbone.evaluation import evaluation_mode
from taskedge.training.trainer_config import DEFAULTS

Row = dict[str, Any]
"""An example for the collator. ``labels`` is what is to be learned, if it is known."""
DEFAULT_MAX_LENGTH = 128
"""Default number of tokens at which a text with a label is cut."""


def encode(
    tokenizer: Any,
    texts: Sequence[str],
    labels: Sequence[int] | None,
    max_length: int,
    log: Callable[[str], object] = print,
) -> list[Row]:
    """Return one row per text: everything that the tokenizer gives, cut at ``max_length`` tokens, and ``labels``.

    Args:
        tokenizer: the base's tokenizer.
        texts: the texts.
        labels: what is to be learned of each text, if it is known.
        max_length: largest number of tokens, with the special tokens.
        log: called with a line about the texts that are cut, if there are any.
    """
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)
    _log_cut_texts(tokenizer, texts, [len(ids) for ids in encoded["input_ids"]], max_length, log)
    rows = [{key: encoded[key][index] for key in encoded} for index in range(len(texts))]
    if labels is not None:
        for row, label in zip(rows, labels, strict=True):
            row["labels"] = label
    return rows


def _log_cut_texts(
    tokenizer: Any, texts: Sequence[str], lengths: Sequence[int], max_length: int, log: Callable[[str], object]
) -> None:
    """Log how many texts have more than ``max_length`` tokens, and how many the longest has."""
    full = [text for text, length in zip(texts, lengths, strict=True) if length >= max_length]
    if not full:
        return
    uncut = tokenizer(full, truncation=False, verbose=False)["input_ids"]  # only a row of full length can be cut
    cut = [len(ids) for ids in uncut if len(ids) > max_length]
    if cut:
        log(
            f"{len(cut):,} of {len(texts):,} rows have more than {max_length} tokens and are cut "
            f"(longest: {max(cut):,} tokens)"
        )


def collator(tokenizer: Any) -> Callable[[list[Row]], dict[str, torch.Tensor]]:
    """Return a function that makes a batch of rows, padded to the longest."""
    from transformers import DataCollatorWithPadding

    collate: Callable[[list[Row]], dict[str, torch.Tensor]] = DataCollatorWithPadding(tokenizer)
    return collate


@dataclass(frozen=True)
class Prediction:
    """Predicted classes.

    Attributes:
        probabilities: float32 [rows, classes], in the order of the rows.
    """

    probabilities: npt.NDArray[np.float32]

    @property
    def classes(self) -> npt.NDArray[np.int64]:
        """The most probable class of each row, int64 [rows]."""
        best: npt.NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return best


def predict(
    model: nn.Module,
    rows: Sequence[Row],
    collate: Callable[[list[Row]], dict[str, torch.Tensor]],
    batch_size: int = DEFAULTS.batch_size,
    on_batch: Callable[[int], object] | None = None,
) -> Prediction:
    """Return class probabilities of ``rows``. See :func:`outputs` for the arguments."""
    logits = torch.from_numpy(outputs(model, rows, collate, batch_size, on_batch))
    return Prediction(logits.softmax(-1).numpy())


def outputs(
    model: nn.Module,
    rows: Sequence[Row],
    collate: Callable[[list[Row]], dict[str, torch.Tensor]],
    batch_size: int = DEFAULTS.batch_size,
    on_batch: Callable[[int], object] | None = None,
) -> npt.NDArray[np.float32]:
    """Run the model over ``rows`` in evaluation mode; texts of similar length share a batch.

    Args:
        model: returns an output with ``logits``.
        rows: the rows; their labels are left out.
        collate: makes a batch of rows.
        batch_size: rows in a batch.
        on_batch: called with the number of rows of each batch.

    Returns:
        float32 [rows, outputs], in the order of the rows.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].get("input_ids", ())))
    batches: list[npt.NDArray[np.float32]] = []
    with evaluating(model):
        for start in range(0, len(rows), batch_size):
            indices = order[start : start + batch_size]
            batch = collate([{k: v for k, v in rows[index].items() if k != "labels"} for index in indices])
            logits = model(**{key: value.to(device) for key, value in batch.items()}).logits
            batches.append(logits.float().cpu().numpy())
            if on_batch is not None:
                on_batch(len(indices))
    in_row_order = np.empty((len(rows), batches[0].shape[1]), dtype=np.float32)
    in_row_order[order] = np.concatenate(batches)
    return in_row_order


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode and compute no gradients inside the block."""
    with evaluation_mode(model), torch.inference_mode():
        yield


@dataclass(frozen=True)
class Quality:
    """Quality of predicted classes.

    Attributes:
        rows: number of rows.
        accuracy: share of rows with the right class.
        macro_f1: mean F1 of the classes that occur or are predicted.
        loss: mean negative log-likelihood in nats.
    """

    rows: int
    accuracy: float
    macro_f1: float
    loss: float


def quality(prediction: Prediction, labels: Sequence[int]) -> Quality:
    """Compare a prediction with the true classes."""
    truth = np.asarray(labels, dtype=np.int64)
    predicted = prediction.classes
    f1 = []
    for label in np.union1d(truth, predicted):
        hits = int(((truth == label) & (predicted == label)).sum())
        f1.append(2 * hits / (int((truth == label).sum()) + int((predicted == label).sum())))
    likelihood = prediction.probabilities[np.arange(len(truth)), truth]
    return Quality(
        rows=len(truth),
        accuracy=float((truth == predicted).mean()),
        macro_f1=float(np.mean(f1)),
        loss=float(-np.log(np.clip(likelihood, 1e-12, None)).mean()),
    )
