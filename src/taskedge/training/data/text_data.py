"""Labeled texts for a model: tokenized rows, padded batches, predictions, and their quality."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from taskedge.backbone.evaluation import evaluation_mode
from taskedge.training.data.control_tokens import control_names, log_control_tokens
from taskedge.training.guard import guarded
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
    *,
    controls_as_text: bool = False,
    pairs: Sequence[str] | None = None,
) -> list[Row]:
    """Return one row per text: everything that the tokenizer gives, cut at ``max_length`` tokens, and ``labels``.

    Args:
        tokenizer: the base's tokenizer.
        texts: the texts.
        labels: what is to be learned of each text, if it is known.
        max_length: largest number of tokens, with the special tokens.
        log: called with a line about the texts that are cut, if there are any.
        controls_as_text: read control tokens inside a text, such as ``</s>``, as text. The classifiers of
            encoder-decoders need it: they read the end token and fail on rows with another number of them. Others may
            get two texts in one, with a control token between them.
        pairs: the second text of each row, after the tokenizer's own separator. Of a row that is too long, the end of
            the longer text is cut.
    """
    how = "as plain text" if controls_as_text else "as the control token, not as text"
    log_control_tokens(control_names(tokenizer), texts, how, log)
    if pairs is not None:
        log_control_tokens(control_names(tokenizer), pairs, how, log)
    options = {"split_special_tokens": True} if controls_as_text else {}
    if controls_as_text:
        texts = _without_controls(tokenizer, texts, log)
        pairs = None if pairs is None else _without_controls(tokenizer, pairs, log)
    both = (list(texts),) if pairs is None else (list(texts), list(pairs))
    encoded = tokenizer(*both, truncation=True, max_length=max_length, **options)
    _log_cut_texts(tokenizer, both, [len(ids) for ids in encoded["input_ids"]], max_length, log, options)
    rows = [{key: encoded[key][index] for key in encoded} for index in range(len(texts))]
    _fill_empty_rows(tokenizer, rows, log)
    if labels is not None:
        for row, label in zip(rows, labels, strict=True):
            row["labels"] = label
    return rows


def _without_controls(tokenizer: Any, texts: Sequence[str], log: Callable[[str], object]) -> list[str]:
    """Return texts with a blank inside control tokens that the tokenizer makes of plain text too, as T5's does."""
    control = {name: index for name, index in control_names(tokenizer).items() if index != tokenizer.unk_token_id}
    find = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or "(?!)")
    frame = len(tokenizer("")["input_ids"])
    result, parted = list(texts), list[int]()
    for row, text in enumerate(texts):
        if find.search(text):
            ids = tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"]
            if sum(index in control.values() for index in ids) > frame:
                result[row] = find.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
                parted.append(row + 1)
    if parted:
        log(f"in {len(parted):,} of these rows a blank is put into it, so that it is text (first: row {parted[0]})")
    return result


def _log_cut_texts(
    tokenizer: Any, texts: Sequence[Sequence[str]], lengths: Sequence[int], max_length: int,
    log: Callable[[str], object], options: dict[str, Any],
) -> None:  # fmt: skip
    """Log how many texts have more than ``max_length`` tokens, how many tokens that is, and where they are cut."""
    rows = [index for index, length in enumerate(lengths) if length >= max_length]
    if not rows:
        return
    full = [[part[index] for index in rows] for part in texts]
    uncut = tokenizer(*full, truncation=False, verbose=False, **options)[
        "input_ids"
    ]  # only a row of full length can be cut
    cut = [len(ids) for ids in uncut if len(ids) > max_length]
    if cut:
        place = "start" if getattr(tokenizer, "truncation_side", "right") == "left" else "end"
        log(
            cut_line(
                len(cut), len(lengths), sum(cut) - max_length * len(cut), max(cut), max_length, f"at their {place}"
            )
        )


def cut_line(num_cut: int, num_rows: int, num_lost: int, longest: int, max_length: int, where: str) -> str:
    """Return a line about rows that are cut, with the number of tokens that are lost."""
    limit, lost = (f"{count:,} token{'s' * (count != 1)}" for count in (max_length, num_lost))
    return (
        f"{num_cut:,} of {num_rows:,} rows have more than {limit} and are cut {where}: {lost} "
        f"{'is' if num_lost == 1 else 'are'} lost (longest row: {longest:,} tokens)"
    )


def _fill_empty_rows(tokenizer: Any, rows: Sequence[Row], log: Callable[[str], object]) -> None:
    """Give rows of texts that have no token, such as those of marks that the tokenizer drops, one control token."""
    empty = [number for number, row in enumerate(rows, start=1) if not row["input_ids"]]
    if not empty:
        return
    control = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.unk_token_id)
    token = next((index for index in (*control, tokenizer.pad_token_id) if index is not None), 0)
    for number in empty:
        row = rows[number - 1]
        row.update({key: [int(key == "attention_mask")] for key in row}, input_ids=[token])
    log(
        f"{len(empty):,} of {len(rows):,} rows have no token (first: row {empty[0]}): they are read as "
        f"{tokenizer.convert_ids_to_tokens(token)!r}"
    )


def reads_end_token(model: nn.Module) -> bool:
    """Return whether a model's classifier looks for the end token in a text: those of encoder-decoders do."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


PADDED_LEFT = frozenset({"xlnet"})
"""Types of models whose classifier reads the last position, so that padding stands before the text."""
READS_PADDING = frozenset({"convbert", "fnet", "nystromformer", "perceiver", "yoso"})
"""Types of models whose answer to a text depends on the padding on either side of it, in spite of the mask."""


def log_padding(model: nn.Module, log: Callable[[str], object]) -> None:
    """Log that the model reads padding, if it is of a type that does."""
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    if model_type in READS_PADDING:
        log(
            f"models of type {model_type!r} read the padding of a batch: texts of different lengths are evaluated in "
            "batches of their own, but in training a text's gradient depends on the other texts of its batch "
            "(not with --batch-size 1)"
        )


def collator(tokenizer: Any, model: nn.Module | None = None) -> Callable[[list[Row]], dict[str, torch.Tensor]]:
    """Return a function that makes a batch of rows, padded to the longest.

    Padding follows the text, whatever side the tokenizer prefers: most models count absolute positions from the first
    token of a row, padding or not. The exceptions are ``PADDED_LEFT``.

    Args:
        tokenizer: a tokenizer with a padding token.
        model: the model that reads the batches.
    """
    from transformers.data.data_collator import pad_without_fast_tokenizer_warning

    config = getattr(model, "config", None)
    side = "left" if getattr(config, "model_type", "") in PADDED_LEFT else "right"
    end = getattr(config, "eos_token_id", None)
    # the classifiers of encoder-decoders count end tokens, masked or not
    counts_ends = getattr(config, "is_encoder_decoder", False) and end == tokenizer.pad_token_id

    def collate(rows: list[Row]) -> dict[str, torch.Tensor]:
        batch: dict[str, torch.Tensor] = pad_without_fast_tokenizer_warning(
            tokenizer, rows, padding=True, padding_side=side, return_tensors="pt"
        )
        if counts_ends:
            batch["input_ids"].masked_fill_(batch["attention_mask"] == 0, int(end == 0))
        return batch

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
    return class_probabilities(outputs(model, rows, collate, batch_size, on_batch))


def class_probabilities(logits: npt.NDArray[np.float32]) -> Prediction:
    """Return the prediction of logits, [rows, classes]."""
    return Prediction(torch.from_numpy(logits).softmax(-1).numpy())


def outputs(
    model: nn.Module,
    rows: Sequence[Row],
    collate: Callable[[list[Row]], dict[str, torch.Tensor]],
    batch_size: int = DEFAULTS.batch_size,
    on_batch: Callable[[int], object] | None = None,
) -> npt.NDArray[np.float32]:
    """Run the model over ``rows`` in evaluation mode; texts of similar length share a batch.

    If the answer to the shortest row is not the same alone and beside the longest, because the model reads padding,
    only texts of one length share a batch.

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
    lengths = [len(row.get("input_ids", ())) for row in rows]

    unlabeled = [{key: value for key, value in row.items() if key != "labels"} for row in rows]

    def logits_of(indices: Sequence[int]) -> torch.Tensor:
        with guarded(model, unlabeled, indices, collate):
            batch = collate([unlabeled[index] for index in indices])
            logits: torch.Tensor = model(**{key: value.to(device) for key, value in batch.items()}).logits
        return logits

    order: list[int] = []
    answers: list[npt.NDArray[np.float32]] = []
    with evaluating(model):
        short, long = lengths.index(min(lengths)), lengths.index(max(lengths))
        mixed = short == long or batch_size == 1 or is_same_answer(logits_of([short]), logits_of([short, long])[:1])
        for indices in batch_indices(lengths, batch_size, mixed=mixed):
            order += indices
            answers.append(logits_of(indices).float().cpu().numpy())
            if on_batch is not None:
                on_batch(len(indices))
    in_row_order = np.empty((len(rows), answers[0].shape[1]), dtype=np.float32)
    in_row_order[order] = np.concatenate(answers)
    return in_row_order


def batch_indices(lengths: Sequence[int], batch_size: int, *, mixed: bool) -> Iterator[list[int]]:
    """Yield the row indices of each batch, the shortest rows first.

    Args:
        lengths: tokens of each row.
        batch_size: largest number of rows in a batch.
        mixed: whether rows of different lengths may share a batch.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    start = 0
    while start < len(order):
        indices = order[start : start + batch_size]
        if not mixed:
            indices = [index for index in indices if lengths[index] == lengths[indices[0]]]
        yield indices
        start += len(indices)


def is_same_answer(logits: torch.Tensor, others: torch.Tensor) -> bool:
    """Return whether logits differ by rounding only, relative to the largest of them: 1e-4 in fp32, 0.1 below."""
    tolerance = 1e-4 if logits.dtype.itemsize >= 4 else 0.1
    scale = float(logits.abs().max())
    return float((logits.float() - others.float()).abs().max()) <= tolerance * scale


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
