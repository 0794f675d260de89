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
from taskedge.delta.delta import Provenance
from taskedge.errors import InputError
from taskedge.training.data.table import COUNTED, Table, as_number, read_table
from taskedge.training.data.text_data import LONGEST, collator, encode, outputs
from taskedge.training.tasks import Batch, Collate, Columns, Done, Measures, Row, Say, task
from taskedge.training.trainer_config import FitSettings

Numbers = npt.NDArray[np.float64]


@task("text-regression")
@dataclass(frozen=True)
class TextRegression:
    """A number for each text. The model learns it standardised; what it says comes back in the unit of the data.

    Measured: ``mse`` in the square of that unit, and the correlations of Pearson and Spearman.
    """

    mean: float
    deviation: float
    """Standard deviation of the training targets (of the population)."""

    name: ClassVar[str] = "text-regression"
    reads: ClassVar[tuple[tuple[str, ...], ...]] = (("text", "label"),)
    max_length: ClassVar[int | None] = LONGEST
    batch_size: ClassVar[int] = FitSettings.batch_size
    labels: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def read(path: Path, columns: Columns, *, answers: bool, say: Say) -> Table:
        return read_table(path, columns.text, columns.label if answers else None)

    @classmethod
    def learn(cls, table: Table, columns: Columns) -> Self:
        targets = _targets(table)
        deviation = float(targets.std())
        if not deviation:
            raise InputError(f"{table.path}: every row has the number {targets[0]:g}: there is nothing to learn")
        return cls(float(targets.mean()), deviation)

    @classmethod
    def recall(cls, provenance: Provenance) -> Self:
        target = provenance.training.get("target")
        if not isinstance(target, dict) or {"mean", "deviation"} - target.keys():
            raise InputError("the delta does not say how its targets were standardised, so it is no regression's")
        return cls(float(target["mean"]), float(target["deviation"]))

    def about(self) -> dict[str, Any]:
        return {"target": {"mean": self.mean, "deviation": self.deviation}}

    def meet(self, base: Base, table: Table | None = None, max_length: int = 0, new_tokens: int | None = None) -> Self:
        return self

    def check(self, table: Table) -> None:
        _targets(table, instead="or remove the row")

    def identity(self, table: Table) -> Any:
        return [table.texts, table.labels]

    def encode(self, base: Base, table: Table, max_length: int, say: Say) -> list[Row]:
        rows = encode(base.tokenizer, table.texts, None, max_length)
        if table.labels is not None:
            for row, target in zip(rows, _targets(table), strict=True):
                row |= {"labels": (float(target) - self.mean) / self.deviation, "target": float(target)}
        return rows

    def collate(self, base: Base) -> Collate:
        pad = collator(base.tokenizer)

        def collate(rows: list[Row]) -> Batch:
            batch = pad([{key: value for key, value in row.items() if key != "target"} for row in rows])
            if "labels" in batch:
                batch["labels"] = batch["labels"].to(next(base.model.parameters()).dtype)  # the loss wants one dtype
            return batch

        return collate

    def evaluate(self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, done: Done) -> Measures:
        found, truth = self._found(model, base, rows, batch_size, done), np.array([row["target"] for row in rows])
        return {
            "rows": len(rows),
            "mse": float(np.square(found - truth).mean()),
            "pearson": pearson(found, truth),
            "spearman": pearson(ranks(found), ranks(truth)),
        }

    def predict(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, done: Done
    ) -> list[dict[str, Any]]:
        return [{"value": float(f"{value:.6g}")} for value in self._found(model, base, rows, batch_size, done)]

    def _found(self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, done: Done) -> Numbers:
        found = outputs(model, rows, self.collate(base), batch_size, done)
        return self.mean + self.deviation * found[:, 0].astype(np.float64)


def pearson(one: Numbers, other: Numbers) -> float | None:
    """Pearson's correlation; None where one side does not vary."""
    one, other = one - one.mean(), other - other.mean()
    length = math.sqrt(float(np.square(one).sum()) * float(np.square(other).sum()))
    return float((one * other).sum()) / length if length else None


def ranks(values: Numbers) -> Numbers:
    """float64: the rank of each value from 1, equal values sharing the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    means: Numbers = (np.cumsum(count) - (count - 1) / 2)[place]
    return means


def _targets(table: Table, instead: str = "or give --task text-classification") -> Numbers:
    """The answers as numbers; ``instead``: what to do about one that is none, if not correct it.

    Raises:
        InputError: one is none.
    """
    numbers = [as_number(label) for label in table.labels or ()]
    if None in numbers:
        row = numbers.index(None)
        assert table.labels is not None
        raise InputError(
            f"{table.path}, row {row + 1}: the label {table.labels[row]!r} is no number, which text-regression needs: "
            f"correct it, {instead} ({COUNTED})"
        )
    return np.array(numbers, dtype=np.float64)
