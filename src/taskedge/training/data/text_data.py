"""Labelled texts as what a model takes: tokenised rows, padded batches, and how well it does on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from taskedge.training.trainer_config import FitSettings

Row = dict[str, Any]
"""An example as the collator takes it; under ``labels`` what is to be learnt, if that is known."""
LONGEST = 128
"""Tokens that a text to be labelled is cut at, where no one says another."""


def encode(tokenizer: Any, texts: Sequence[str], labels: Sequence[int] | None, max_length: int) -> list[Row]:
    """One row per text: ``input_ids`` and what else the tokenizer gives, cut at ``max_length`` tokens; ``labels``."""
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)
    rows = [{key: encoded[key][place] for key in encoded} for place in range(len(texts))]
    if labels is not None:
        for row, label in zip(rows, labels, strict=True):
            row["labels"] = label
    return rows


def collator(tokenizer: Any) -> Callable[[list[Row]], dict[str, torch.Tensor]]:
    """Makes a batch of rows, padded to its longest."""
    from transformers import DataCollatorWithPadding

    collate: Callable[[list[Row]], dict[str, torch.Tensor]] = DataCollatorWithPadding(tokenizer)
    return collate


@dataclass(frozen=True)
class Prediction:
    """Class probabilities float32 [rows, classes], in the order of the rows."""

    probabilities: npt.NDArray[np.float32]

    @property
    def classes(self) -> npt.NDArray[np.int64]:
        """int64 [rows]: the most probable class."""
        best: npt.NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return best


def predict(
    model: nn.Module,
    rows: Sequence[Row],
    collate: Callable[[list[Row]], dict[str, torch.Tensor]],
    batch_size: int = FitSettings.batch_size,
    on_batch: Callable[[int], object] | None = None,
) -> Prediction:
    """Class probabilities of ``rows`` (:func:`outputs`)."""
    logits = torch.from_numpy(outputs(model, rows, collate, batch_size, on_batch))
    return Prediction(logits.softmax(-1).numpy())


def outputs(
    model: nn.Module,
    rows: Sequence[Row],
    collate: Callable[[list[Row]], dict[str, torch.Tensor]],
    batch_size: int = FitSettings.batch_size,
    on_batch: Callable[[int], object] | None = None,
) -> npt.NDArray[np.float32]:
    """float32 [rows, outputs]: runs the model over ``rows`` in eval mode, texts of like length together."""
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda place: len(rows[place].get("input_ids", ())))
    found: list[npt.NDArray[np.float32]] = []
    with evaluating(model):
        for start in range(0, len(rows), batch_size):
            chosen = order[start : start + batch_size]
            batch = collate([{k: v for k, v in rows[place].items() if k != "labels"} for place in chosen])
            logits = model(**{key: value.to(device) for key, value in batch.items()}).logits
            found.append(logits.float().cpu().numpy())
            if on_batch is not None:
                on_batch(len(chosen))
    sorted_back = np.empty((len(rows), found[0].shape[1]), dtype=np.float32)
    sorted_back[order] = np.concatenate(found)
    return sorted_back


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; the mode it was in after."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class Quality:
    """How well classes were found."""

    rows: int
    accuracy: float
    macro_f1: float
    """The mean over classes of their F1, a class that neither occurs nor is predicted left out."""
    loss: float
    """Mean negative log-likelihood in nats."""


def quality(prediction: Prediction, labels: Sequence[int]) -> Quality:
    """Compares a prediction with the truth."""
    truth = np.asarray(labels, dtype=np.int64)
    guess = prediction.classes
    f1 = []
    for label in np.union1d(truth, guess):
        hits = int(((truth == label) & (guess == label)).sum())
        f1.append(2 * hits / (int((truth == label).sum()) + int((guess == label).sum())))
    likelihood = prediction.probabilities[np.arange(len(truth)), truth]
    return Quality(
        rows=len(truth),
        accuracy=float((truth == guess).mean()),
        macro_f1=float(np.mean(f1)),
        loss=float(-np.log(np.clip(likelihood, 1e-12, None)).mean()),
    )
