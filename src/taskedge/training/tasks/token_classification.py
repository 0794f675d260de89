"""Token classification: a tag for each token, such as the names of persons and places in a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from taskedge.backbone.label_loss import IGNORED_LABEL as IGNORED
from taskedge.backbone.loading import Base
from taskedge.backbone.vocabulary import check_token_ids
from taskedge.errors import InputError
from taskedge.training.classification import Classification
from taskedge.training.data.table import Table, label_indices
from taskedge.training.data.tagged_tokens import read_tagged, split_row
from taskedge.training.data.text_data import (
    DEFAULT_MAX_LENGTH,
    PADDED_LEFT,
    batch_indices,
    collator,
    evaluating,
    is_same_answer,
    log_padding,
)
from taskedge.training.guard import guarded
from taskedge.training.tasks import Batch, Collate, Columns, Log, Measures, OnProgress, Row, ignore_log, task
from taskedge.training.text_metrics import entity_metrics
from taskedge.training.trainer_config import DEFAULTS

Logits = npt.NDArray[np.float32]


@task("token-classification")
@dataclass(frozen=True)
class TokenClassification(Classification):
    """A tag for each token of a row, by an encoder.

    The tokens are joined by blanks and read as one text. The tag of a token is learned and predicted at its first
    sub-word; the other sub-words have no label.

    Measures: ``loss`` and ``accuracy`` over tokens, and precision, recall and F1 of whole entities if ``seqeval`` is
    installed. A token behind the cut has no prediction and counts as ``O``.
    """

    name: ClassVar[str] = "token-classification"
    column_sets: ClassVar[tuple[tuple[str, ...], ...]] = (("tokens", "tags"),)
    max_length: ClassVar[int | None] = DEFAULT_MAX_LENGTH
    batch_size: ClassVar[int] = DEFAULTS.batch_size

    @staticmethod
    def read(path: Path, columns: Columns, *, answers: bool, log: Log) -> Table:
        """Read tokens and, with ``answers``, their tags."""
        if columns.tokens is None:
            raise InputError(f"{path}: token-classification needs the column of the tokens: name it with --tokens")
        return read_tagged(path, columns.tokens, columns.tags if answers else None)

    def bind(
        self,
        base: Base,
        table: Table | None = None,
        max_length: int = 0,
        new_tokens: int | None = None,
        log: Log = ignore_log,
    ) -> TokenClassification:
        """Check that the tokenizer tells which characters a sub-word is made of."""
        if not getattr(base.tokenizer, "is_fast", False):
            raise InputError(
                f"the base's tokenizer ({type(base.tokenizer).__name__}) does not tell where its sub-words are in a "
                "text, so tags cannot be put to them: name a base with a tokenizer.json"
            )
        log("the tokens of a row are joined by blanks; a tag is learned at the first sub-word of its token")
        return self

    def identity(self, table: Table) -> Any:
        """Return the tokens and tags."""
        return [table.texts, table.labels]

    def encode(self, base: Base, table: Table, max_length: int, log: Log) -> list[Row]:
        """Return tokenized rows; ``words``: the position of each token's first sub-word, -1 for a token without one."""
        rows = list[Row]()
        num_cut = num_lost = num_empty = 0
        for row, joined in enumerate(table.texts):
            words = split_row(joined)
            starts = np.cumsum([0, *(len(word) + 1 for word in words)])[:-1]
            encoded = base.tokenizer(
                " ".join(words), truncation=True, max_length=max_length, return_offsets_mapping=True, verbose=False,
                split_special_tokens=True,
            )  # fmt: skip
            spans = encoded.pop("offset_mapping")
            positions = _first_positions(spans, starts, [len(word) for word in words])
            last = max((end for _, end in spans), default=0)
            behind = sum(start >= last for start in starts)
            num_cut, num_lost = num_cut + (behind > 0), num_lost + behind
            num_empty += positions.count(-1) - min(behind, positions.count(-1))
            made: Row = {**encoded, "words": positions}
            if table.labels is not None:
                tags = label_indices(split_row(table.labels[row]), self.labels)
                made["tags"] = tags
                made["labels"] = [IGNORED] * len(encoded["input_ids"])
                for position, tag in zip(positions, tags, strict=True):
                    if position >= 0:
                        made["labels"][position] = tag
            rows.append(made)
        check_token_ids((made["input_ids"] for made in rows), base.tokens_without_embedding, table.path)
        if num_cut:
            log(
                f"{num_cut:,} of {len(rows):,} rows have more than {max_length:,} sub-words and are cut: {num_lost:,} "
                f"of their tokens are not read, and count as {self._fallback!r} (see --max-length)"
            )
        if num_empty:
            log(f"{num_empty:,} tokens have no sub-word in the base's tokenizer: they count as {self._fallback!r}")
        if table.labels is not None:
            log_padding(base.model, log)
        return rows

    def collate(self, base: Base) -> Collate:
        """Return a function that pads rows and their labels to a batch."""
        pad = collator(base.tokenizer, base.model)
        left = getattr(base.model.config, "model_type", "") in PADDED_LEFT

        def collate(rows: list[Row]) -> Batch:
            inputs = [
                {key: row[key] for key in row if key not in ("labels", "tags", "words", "tokens")} for row in rows
            ]
            batch = pad(inputs)
            width = batch["input_ids"].shape[1]
            if all("labels" in row for row in rows):
                fills = [[IGNORED] * (width - len(row["labels"])) for row in rows]
                batch["labels"] = torch.tensor(
                    [
                        [*fill, *row["labels"]] if left else [*row["labels"], *fill]
                        for row, fill in zip(rows, fills, strict=True)
                    ]
                )
            return batch

        return collate

    def evaluate(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, on_progress: OnProgress
    ) -> Measures:
        """Measure the predicted tags."""
        found = self._word_logits(model, base, rows, batch_size, on_progress)
        truth = [row["tags"] for row in rows]
        total, read = 0.0, 0
        for logits, row in zip(found, rows, strict=True):
            words = np.array(row["words"]) >= 0
            tags = np.array(row["tags"])[words]
            wide = logits[words].astype(np.float64)
            peak = wide.max(1, keepdims=True, initial=-np.inf)
            likelihood = wide - peak - np.log(np.exp(wide - peak).sum(1, keepdims=True))
            total -= float(likelihood[np.arange(len(tags)), tags].sum())
            read += len(tags)
        names = [self._tags(logits, row) for logits, row in zip(found, rows, strict=True)]
        true_names = [[self.labels[tag] for tag in row] for row in truth]
        num_tokens = sum(map(len, truth))
        hits = sum(
            a == b for one, other in zip(names, true_names, strict=True) for a, b in zip(one, other, strict=True)
        )
        measures: Measures = {"rows": len(rows), "accuracy": hits / num_tokens, "loss": total / max(read, 1)}
        return measures | entity_metrics(names, true_names)

    def predict(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, on_progress: OnProgress
    ) -> list[dict[str, Any]]:
        """Return the tags of each row's tokens, separated by blanks."""
        found = self._word_logits(model, base, rows, batch_size, on_progress)
        return [{"tags": " ".join(self._tags(logits, row))} for logits, row in zip(found, rows, strict=True)]

    def tags_of(self, base: Base, logits: Logits, row: Row) -> dict[str, Any]:
        """Return the ``tags`` of one row and, if the row has them, its ``tokens``.

        Args:
            base: the base that computed the logits.
            logits: float32 [width, tags]: outputs at all positions of a batch, padding included.
            row: from :meth:`encode`.
        """
        left = getattr(base.model.config, "model_type", "") in PADDED_LEFT
        offset = len(logits) - len(row["input_ids"]) if left else 0
        places = [max(position, 0) + offset for position in row["words"]]
        tags = self._tags(logits[places], row)
        return ({"tokens": row["tokens"]} if "tokens" in row else {}) | {"tags": tags}

    @property
    def _fallback(self) -> str:
        """The tag of a token that is not read."""
        return "O" if "O" in self.labels else self.labels[0]

    def _tags(self, logits: Logits, row: Row) -> list[str]:
        best = logits.argmax(1)
        return [
            self.labels[index] if position >= 0 else self._fallback
            for index, position in zip(best, row["words"], strict=True)
        ]

    def _word_logits(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, on_progress: OnProgress
    ) -> list[Logits]:
        """Return float32 [tokens, tags] for each row, at first sub-words; texts of similar length share a batch."""
        device, make = next(model.parameters()).device, self.collate(base)
        unlabeled = [{key: value for key, value in row.items() if key not in ("labels", "tags")} for row in rows]
        lengths = [len(row["input_ids"]) for row in rows]
        left = getattr(base.model.config, "model_type", "") in PADDED_LEFT
        found: list[Logits] = [np.zeros((0, 0), np.float32)] * len(rows)

        def logits_of(indices: Sequence[int]) -> list[torch.Tensor]:
            with guarded(model, unlabeled, indices, make):
                batch = make([unlabeled[index] for index in indices])
                logits = model(**{key: value.to(device) for key, value in batch.items()}).logits.float().cpu()
            width = logits.shape[1]
            shift = [width - lengths[index] if left else 0 for index in indices]
            return [part[offset : offset + lengths[i]] for part, offset, i in zip(logits, shift, indices, strict=True)]

        with evaluating(model):
            short, long = lengths.index(min(lengths)), lengths.index(max(lengths))
            mixed = short == long or batch_size == 1
            if not mixed:
                mixed = is_same_answer(logits_of([short])[0], logits_of([short, long])[0])
            for indices in batch_indices(lengths, batch_size, mixed=mixed):
                for index, logits in zip(indices, logits_of(indices), strict=True):
                    found[index] = logits[torch.tensor(rows[index]["words"]).clamp_min(0)].numpy()
                on_progress(len(indices))
        return found


def _first_positions(
    spans: Sequence[tuple[int, int]], starts: npt.NDArray[np.int64], lengths: Sequence[int]
) -> list[int]:
    """Return for each token the position of the first sub-word with a character of it; -1 if there is none.

    Args:
        spans: the first character of each sub-word and the one after its last; empty for special tokens.
        starts: the first character of each token.
        lengths: characters of each token.
    """
    positions, place = [-1] * len(lengths), 0
    for position, (start, end) in enumerate(spans):
        if end <= start:
            continue
        while place < len(lengths) and starts[place] + lengths[place] <= start:
            place += 1
        word = place  # a sub-word may begin with the blank before its token, and reach over several tokens
        while word < len(lengths) and starts[word] < end:
            if positions[word] < 0 and starts[word] + lengths[word] > start:
                positions[word] = position
            word += 1
    return positions
