"""Text classification: a class for each text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from taskedge.backbone.loading import Base
from taskedge.backbone.vocabulary import check_token_ids
from taskedge.training.classification import Classification
from taskedge.training.data.table import Table, read_table
from taskedge.training.data.text_data import DEFAULT_MAX_LENGTH, collator, encode, log_padding, reads_end_token
from taskedge.training.tasks import Collate, Columns, Log, Row, task
from taskedge.training.trainer_config import DEFAULTS


@task("text-classification")
class TextClassification(Classification):
    """A class for each text, by an encoder or any other model that transformers can put a classifier on."""

    name: ClassVar[str] = "text-classification"
    column_sets: ClassVar[tuple[tuple[str, ...], ...]] = (("text", "label"),)
    max_length: ClassVar[int | None] = DEFAULT_MAX_LENGTH
    batch_size: ClassVar[int] = DEFAULTS.batch_size

    @staticmethod
    def read(path: Path, columns: Columns, *, answers: bool, log: Log) -> Table:
        """Read texts and, with ``answers``, their labels."""
        return read_table(path, columns.text, columns.label if answers else None)

    def identity(self, table: Table) -> Any:
        """Return the texts and labels."""
        return [table.texts, table.labels]

    def encode(self, base: Base, table: Table, max_length: int, log: Log) -> list[Row]:
        """Return tokenized texts with label indices."""
        rows = encode(
            base.tokenizer, table.texts, self.label_indices(table), max_length, log,
            controls_as_text=reads_end_token(base.model),
        )  # fmt: skip
        check_token_ids((row["input_ids"] for row in rows), base.tokens_without_embedding, table.path)
        if table.labels is not None:
            log_padding(base.model, log)
        return rows

    def collate(self, base: Base) -> Collate:
        """Return a function that pads rows to a batch."""
        return collator(base.tokenizer, base.model)
