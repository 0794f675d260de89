"""Text regression: a number for each text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from torch import nn

from taskedge.backbone.loading import Base
from taskedge.backbone.vocabulary import check_token_ids
from taskedge.delta.delta import Provenance
from taskedge.errors import InputError
from taskedge.training.data.table import Table, as_number, read_table
from taskedge.training.data.table_readers import ROW_NUMBERING
from taskedge.training.data.text_data import DEFAULT_MAX_LENGTH, collator, encode, log_padding, outputs, reads_end_token
from taskedge.training.data.text_pairs import bound_pair, pair_of
from taskedge.training.tasks import Batch, Collate, Columns, Log, Measures, OnProgress, Row, ignore_log, task
from taskedge.training.trainer_config import DEFAULTS

Numbers = npt.NDArray[np.float64]


@task("text-regression")
@dataclass(frozen=True)
class TextRegression:
    """A number for each text. The model learns it standardized; answers are in the unit of the data.

    Measures: ``mse`` in the square of that unit, and the correlations of Pearson and Spearman.

    Attributes:
        mean: mean of the training targets.
        deviation: their standard deviation (of the population).
        pair: whether the two texts of a row go in as a pair (:mod:`taskedge.training.data.text_pairs`). Before
            ``bind``, whether there are two text columns.
    """

    mean: float
    deviation: float
    pair: bool = False

    name: ClassVar[str] = "text-regression"
    column_sets: ClassVar[tuple[tuple[str, ...], ...]] = (("text", "label"),)
    max_length: ClassVar[int | None] = DEFAULT_MAX_LENGTH
    batch_size: ClassVar[int] = DEFAULTS.batch_size
    labels: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def read(path: Path, columns: Columns, *, answers: bool, log: Log) -> Table:
        """Read texts and, with ``answers``, their numbers."""
        return read_table(path, columns.text, columns.label if answers else None)

    @classmethod
    def from_table(cls, table: Table, columns: Columns) -> Self:
        """Make the task of the scale of the training targets."""
        targets = _targets(table)
        deviation = float(targets.std())
        if not deviation:
            raise InputError(f"{table.path}: every row has the number {float(targets[0])!r}: there is nothing to learn")
        return cls(float(targets.mean()), deviation, pair=table.pairs is not None)

    @classmethod
    def from_provenance(cls, provenance: Provenance) -> Self:
        """Make the task of the scale that a delta remembers."""
        target = provenance.training.get("target")
        if not isinstance(target, dict) or {"mean", "deviation"} - target.keys():
            raise InputError("the delta does not say how its targets were standardized, so it is no regression's")
        pair = bool(provenance.training.get("pair", False))
        return cls(float(target["mean"]), float(target["deviation"]), pair)

    def to_provenance(self) -> dict[str, Any]:
        """Return the scale of the targets, and whether two texts go in as a pair."""
        scale = {"target": {"mean": self.mean, "deviation": self.deviation}}
        return scale | ({"pair": True} if self.pair else {})

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

    def check(self, table: Table) -> None:
        """Refuse labels that are not numbers."""
        _targets(table, remedy="or remove the row")

    def identity(self, table: Table) -> Any:
        """Return the texts and labels."""
        return [[table.firsts, table.pairs] if self.pair else table.texts, table.labels]

    def encode(self, base: Base, table: Table, max_length: int, log: Log) -> list[Row]:
        """Return tokenized texts with standardized numbers under ``labels``, and the numbers under ``target``."""
        as_text = reads_end_token(base.model)
        texts, pairs = pair_of(table) if self.pair else (table.texts, None)
        rows = encode(base.tokenizer, texts, None, max_length, log, controls_as_text=as_text, pairs=pairs)
        check_token_ids((row["input_ids"] for row in rows), base.tokens_without_embedding, table.path)
        if table.labels is not None:
            log_padding(base.model, log)
            for row, target in zip(rows, _targets(table), strict=True):
                row |= {"labels": (float(target) - self.mean) / self.deviation, "target": float(target)}
        return rows

    def collate(self, base: Base) -> Collate:
        """Return a function that pads rows to a batch."""
        pad = collator(base.tokenizer, base.model)
        dtype = next(base.model.parameters()).dtype  # the loss needs labels in the dtype of the outputs

        def collate(rows: list[Row]) -> Batch:
            batch = pad([{key: value for key, value in row.items() if key != "target"} for row in rows])
            if "labels" in batch:
                batch["labels"] = batch["labels"].to(dtype)
            return batch

        return collate

    def evaluate(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, on_progress: OnProgress
    ) -> Measures:
        """Measure the predicted numbers."""
        values = self._predict_values(model, base, rows, batch_size, on_progress)
        truth = np.array([row["target"] for row in rows])
        return {
            "rows": len(rows),
            "mse": float(np.square(values - truth).mean()),
            "pearson": pearson(values, truth),
            "spearman": pearson(ranks(values), ranks(truth)),
        }

    def predict(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, on_progress: OnProgress
    ) -> list[dict[str, Any]]:
        """Return the number of each row, in full: its shortest decimal form reads back as the same float64."""
        return self.answers(outputs(model, rows, self.collate(base), batch_size, on_progress), rows)

    def answers(self, logits: npt.NDArray[np.float32], rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return the answers to rows from the model's outputs for them, [rows, 1]."""
        return [{"value": float(value)} for value in self._values(logits)]

    def _predict_values(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, on_progress: OnProgress
    ) -> Numbers:
        return self._values(outputs(model, rows, self.collate(base), batch_size, on_progress))

    def _values(self, standardized: npt.NDArray[np.float32]) -> Numbers:
        return self.mean + self.deviation * standardized[:, 0].astype(np.float64)


def pearson(x: Numbers, y: Numbers) -> float | None:
    """Return Pearson's correlation; None if one side does not vary."""
    x, y = x - x.mean(), y - y.mean()
    norm = math.sqrt(float(np.square(x).sum()) * float(np.square(y).sum()))
    return float((x * y).sum()) / norm if norm else None


def ranks(values: Numbers) -> Numbers:
    """Return the rank of each value as float64, from 1; equal values share the mean of their ranks."""
    _, index, count = np.unique(values, return_inverse=True, return_counts=True)
    means: Numbers = (np.cumsum(count) - (count - 1) / 2)[index]
    return means


def _targets(table: Table, remedy: str = "or give --task text-classification") -> Numbers:
    """Return the answers as numbers.

    Args:
        table: the table.
        remedy: what to do about an answer that is not a number, besides correcting it.

    Raises:
        InputError: an answer is not a number.
    """
    numbers = [as_number(label) for label in table.labels or ()]
    if None in numbers:
        row = numbers.index(None)
        assert table.labels is not None
        raise InputError(
            f"{table.path}, row {row + 1}: the label {table.labels[row]!r} is no number, which text-regression needs: "
            f"correct it, {remedy} ({ROW_NUMBERING})"
        )
    return np.array(numbers, dtype=np.float64)
