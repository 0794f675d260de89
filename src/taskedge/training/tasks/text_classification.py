"""Text classification: a class for each text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from taskedge.backbone.loading import Base
from taskedge.training.classification import Classification
from taskedge.training.data.table import Table, read_table
from taskedge.training.data.text_data import LONGEST, collator, encode
from taskedge.training.tasks import Collate, Columns, Row, Say, task
from taskedge.training.trainer_config import FitSettings


@task("text-classification")
class TextClassification(Classification):
    """A class for each text, by an encoder or any other model that transformers can put a classifier on."""

    name: ClassVar[str] = "text-classification"
    reads: ClassVar[tuple[tuple[str, ...], ...]] = (("text", "label"),)
    max_length: ClassVar[int | None] = LONGEST
    batch_size: ClassVar[int] = FitSettings.batch_size

    @staticmethod
    def read(path: Path, columns: Columns, *, answers: bool, say: Say) -> Table:
        return read_table(path, columns.text, columns.label if answers else None)

    def identity(self, table: Table) -> Any:
        return [table.texts, table.labels]

    def encode(self, base: Base, table: Table, max_length: int, say: Say) -> list[Row]:
        return encode(base.tokenizer, table.texts, self.places(table), max_length)

    def collate(self, base: Base) -> Collate:
        return collator(base.tokenizer)
