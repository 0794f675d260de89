"""Text to text: a target for each source, by an encoder-decoder such as T5 or BART."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import nn

from taskedge.backbone.loading import Base
from taskedge.backbone.vocabulary import check_token_ids
from taskedge.delta.delta import Provenance
from taskedge.errors import InputError
from taskedge.training.data.table import Table, read_table
from taskedge.training.data.text_data import cut_line, encode
from taskedge.training.generation import generate_targets, label_collator, log_unmatched, negative_log_likelihood
from taskedge.training.tasks import Collate, Columns, Log, Measures, OnProgress, Row, ignore_log, task
from taskedge.training.text_metrics import missing_text_metrics, text_metrics


@task("text-to-text")
@dataclass(frozen=True)
class TextToText:
    """A target for each source, such as a translation or a summary.

    The encoder reads the source as the tokenizer writes it, with its end token. The decoder learns the target and the
    end token after it.

    Measures: ``loss`` (mean negative log-likelihood of the target's tokens, in nats), ``perplexity``, ``exact_match``,
    and those of :mod:`taskedge.training.text_metrics`.

    Attributes:
        new_tokens: largest number of tokens of a generated target; 0 before ``bind``.
    """

    new_tokens: int = 0

    name: ClassVar[str] = "text-to-text"
    column_sets: ClassVar[tuple[tuple[str, ...], ...]] = (("source", "target"), ("prompt", "response"))
    max_length: ClassVar[int | None] = 512
    batch_size: ClassVar[int] = 8
    labels: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def read(path: Path, columns: Columns, *, answers: bool, log: Log) -> Table:
        """Read sources and, with ``answers``, their targets."""
        source, target = columns.source or columns.prompt, columns.target or columns.response
        if source is None:
            raise InputError(f"{path}: text-to-text needs the column of the source: name it with --source")
        return read_table(path, source, target if answers else None, strip_labels=False)

    @classmethod
    def from_table(cls, table: Table, columns: Columns) -> Self:
        """Make the task of training data."""
        return cls()

    @classmethod
    def from_provenance(cls, provenance: Provenance) -> Self:
        """Make the task of the length of targets that a delta remembers."""
        fields = provenance.training.get("target_generation")
        if not isinstance(fields, dict) or not isinstance(fields.get("max_new_tokens"), int):
            raise InputError("the delta does not say how long its targets are, so it is no encoder-decoder's")
        return cls(fields["max_new_tokens"])

    def to_provenance(self) -> dict[str, Any]:
        """Return the length of targets."""
        return {"target_generation": {"max_new_tokens": self.new_tokens}}

    def bind(
        self,
        base: Base,
        table: Table | None = None,
        max_length: int = 0,
        new_tokens: int | None = None,
        log: Log = ignore_log,
    ) -> Self:
        """Set the length of targets: that of the longest in the training data, unless it is given."""
        end = base.tokenizer.eos_token_id
        if end is None:
            raise InputError("the base's tokenizer has no end token, so the end of a target cannot be learned: set it")
        limit = new_tokens or self.new_tokens
        if table is not None and not limit:
            limit = min(max(map(len, _target_ids(base, table.labels or ()))), max_length)
        if base.max_positions is not None and limit > base.max_positions - 1:
            log(f"at most {base.max_positions - 1} tokens are generated, not {limit}: the model has no more positions")
            limit = base.max_positions - 1
        log(
            f"the encoder reads the source, the decoder writes the target up to {limit} tokens and ends it with "
            f"{base.tokenizer.convert_ids_to_tokens(end)!r}"
        )
        if missing := missing_text_metrics():
            log(f"{missing}: pip install 'taskedge[text-metrics]'")
        return replace(self, new_tokens=limit)

    def check(self, table: Table) -> None:
        """Accept any target."""

    def identity(self, table: Table) -> Any:
        """Return the sources and targets."""
        return [table.texts, table.labels]

    def encode(self, base: Base, table: Table, max_length: int, log: Log) -> list[Row]:
        """Return the tokens of each source, and those of its target as ``labels``; both are cut at ``max_length``."""
        rows = encode(base.tokenizer, table.texts, None, max_length, log, controls_as_text=True)
        rows = [{"input_ids": list(row["input_ids"])} for row in rows]
        check_token_ids((row["input_ids"] for row in rows), base.tokens_without_embedding, table.path)
        if table.labels is None:
            return rows
        targets, end = _target_ids(base, table.labels), int(base.tokenizer.eos_token_id)
        cut = [len(ids) for ids in targets if len(ids) > max_length]
        if cut:
            lost = sum(cut) - max_length * len(cut)
            log(f"targets: {cut_line(len(cut), len(rows), lost, max(cut), max_length, 'at their end')}")
        check_token_ids(targets, base.tokens_without_embedding, table.path)
        for row, ids, label in zip(rows, targets, table.labels, strict=True):
            kept = ids if len(ids) <= max_length else [*ids[: max_length - 1], end]
            row |= {"labels": kept, "target_tokens": len(kept), "response": label.strip()}
        log_unmatched(targets, len(rows), self.new_tokens, "targets", log)
        return rows

    def collate(self, base: Base) -> Collate:
        """Return a function that pads sources, and targets with the label that is ignored."""
        return label_collator(int(base.tokenizer.pad_token_id))

    def evaluate(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, on_progress: OnProgress
    ) -> Measures:
        """Measure the likelihood of the targets, and how near the generated ones are."""
        total, tokens = negative_log_likelihood(model, rows, self.collate(base), batch_size, lambda _: None)
        loss = total / max(tokens, 1)
        targets, truth = self._generate(model, base, rows, batch_size, on_progress), [row["response"] for row in rows]
        equal = sum(one == other for one, other in zip(targets, truth, strict=True))
        measures: Measures = {"rows": len(rows), "loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        return measures | {"exact_match": equal / len(rows)} | text_metrics(targets, truth)

    def predict(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, on_progress: OnProgress
    ) -> list[dict[str, Any]]:
        """Return the generated target of each row."""
        return [{"target": text} for text in self._generate(model, base, rows, batch_size, on_progress)]

    def _generate(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, on_progress: OnProgress
    ) -> list[str]:
        sources = [row["input_ids"] for row in rows]
        written = generate_targets(
            model, sources, base.tokenizer, new_tokens=self.new_tokens, batch_size=batch_size, on_progress=on_progress
        )
        return [self.response_text(base, ids) for ids in written]

    def response_text(self, base: Base, tokens: Sequence[int]) -> str:
        """Return the target that generated tokens are, without surrounding blanks."""
        return str(base.tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    def stop_ids(self, base: Base) -> set[int]:
        """Return the id of the token that ends a target."""
        return {int(base.tokenizer.eos_token_id)}


def _target_ids(base: Base, targets: Sequence[str]) -> list[list[int]]:
    """Return the tokens of targets, each with the end token at its end. Control tokens inside are read as text."""
    end = base.tokenizer.eos_token_id
    encoded = base.tokenizer(text_target=list(targets), split_special_tokens=True, verbose=False)["input_ids"]
    return [[*ids] if ids and ids[-1] == end else [*ids, end] for ids in encoded] or [[end]]
