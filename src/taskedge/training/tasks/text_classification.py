"""Text classification: a class for each text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from taskedge.backbone.loading import Base
from taskedge.backbone.vocabulary import check_token_ids
from taskedge.delta.delta import Provenance
from taskedge.training.classification import Classification
from taskedge.training.data.table import Table, read_table
from taskedge.training.data.text_data import DEFAULT_MAX_LENGTH, collator, encode, log_padding, reads_end_token
from taskedge.training.data.text_pairs import bound_pair, pair_of
from taskedge.training.tasks import Collate, Columns, Log, Row, ignore_log, task
from taskedge.training.trainer_config import DEFAULTS


@task("text-classification")
@dataclass(frozen=True)
class TextClassification(Classification):
    """A class for each text, by an encoder or any other model that transformers can put a classifier on.

    Attributes:
        pair: whether the two texts of a row go in as a pair (:mod:`taskedge.training.data.text_pairs`). Before
            ``bind``, whether there are two text columns.
    """

    pair: bool = False

    name: ClassVar[str] = "text-classification"
    column_sets: ClassVar[tuple[tuple[str, ...], ...]] = (("text", "label"),)
    max_length: ClassVar[int | None] = DEFAULT_MAX_LENGTH
    batch_size: ClassVar[int] = DEFAULTS.batch_size

    @staticmethod
    def read(path: Path, columns: Columns, *, answers: bool, log: Log) -> Table:
        """Read texts and, with ``answers``, their labels."""
        return read_table(path, columns.text, columns.label if answers else None)

    @classmethod
    def from_table(cls, table: Table, columns: Columns) -> Self:
        """Make the task of the classes in training data, and of its text columns."""
        return replace(super().from_table(table, columns), pair=table.pairs is not None)

    @classmethod
    def from_provenance(cls, provenance: Provenance) -> Self:
        """Make the task of the classes that a delta names; deltas of earlier versions have one text."""
        return replace(super().from_provenance(provenance), pair=bool(provenance.training.get("pair", False)))

    def to_provenance(self) -> dict[str, Any]:
        """Return whether two texts go in as a pair."""
        return {"pair": True} if self.pair else {}

    def bind(
        self,
        base: Base,
        table: Table | None = None,
        max_length: int = 0,
        new_tokens: int | None = None,
        log: Log = ignore_log,
    ) -> Self:
        """Join the two texts of a row if the base's tokenizer does not separate them."""
        return bound_pair(self, base, log)

    def identity(self, table: Table) -> Any:
        """Return the texts and labels."""
        return [[table.firsts, table.pairs] if self.pair else table.texts, table.labels]

    def encode(self, base: Base, table: Table, max_length: int, log: Log) -> list[Row]:
        """Return tokenized texts with label indices."""
        texts, pairs = pair_of(table) if self.pair else (table.texts, None)
        rows = encode(
            base.tokenizer, texts, self.label_indices(table), max_length, log,
            controls_as_text=reads_end_token(base.model), pairs=pairs,
        )  # fmt: skip
        check_token_ids((row["input_ids"] for row in rows), base.tokens_without_embedding, table.path)
        if table.labels is not None:
            log_padding(base.model, log)
        return rows

    def collate(self, base: Base) -> Collate:
        """Return a function that pads rows to a batch."""
        return collator(base.tokenizer, base.model)
