"""Multi-label classification: a set of labels for each text, with one decision for each label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from torch import nn

from taskedge.backbone.loading import Base
from taskedge.delta.delta import Provenance
from taskedge.errors import InputError
from taskedge.training.class_figures import label_figures, worst_sets
from taskedge.training.class_weights import never_predicted_hint
from taskedge.training.data.label_sets import DEFAULT_SEPARATOR, read_label_sets
from taskedge.training.data.table import Table, label_indices
from taskedge.training.data.text_data import Prediction, outputs
from taskedge.training.tasks import Batch, Collate, Columns, Log, Measures, OnProgress, Row, task
from taskedge.training.tasks.text_classification import TextClassification

MULTI_LABEL = "multi-label-classification"
THRESHOLD = 0.5


@task(MULTI_LABEL)
@dataclass(frozen=True)
class MultiLabelClassification(TextClassification):
    """Any number of labels for each text: one output a label, trained with binary cross-entropy.

    A label is predicted if its probability is at least ``threshold``. Measures: micro F1 over all rows and labels,
    macro F1 (mean over the labels that occur or are predicted), the share of rows whose set is exactly right, and the
    loss in nats, a mean over rows and labels.

    Attributes:
        threshold: probability from which a label is predicted.
    """

    threshold: float = THRESHOLD

    name: ClassVar[str] = MULTI_LABEL
    column_sets: ClassVar[tuple[tuple[str, ...], ...]] = (("text", "label"), ("text", "labels"))

    @staticmethod
    def read(path: Path, columns: Columns, *, answers: bool, log: Log) -> Table:
        """Read texts and, with ``answers``, their sets of labels."""
        if not answers:
            return read_label_sets(path, columns.text)
        separator = columns.label_separator or DEFAULT_SEPARATOR
        return read_label_sets(
            path, columns.text, label=columns.label, labels=columns.labels, separator=separator
        )  # fmt: skip

    @classmethod
    def from_table(cls, table: Table, columns: Columns) -> Self:
        """Make the task of the labels in training data: the columns in their order, or the sorted labels of a column.

        Raises:
            InputError: there are fewer than two labels, or only 0 and 1 in one column.
        """
        labels = tuple(columns.labels) or tuple(sorted(set(table.answers or ())))
        if len(labels) < 2:
            found = f"there is only the label {labels[0]!r}" if labels else "no row has a label"
            raise InputError(
                f"{table.path}: {found}, and {MULTI_LABEL} needs at least two: give a column of two classes to "
                "--task text-classification"
            )
        if set(labels) <= {"0", "1"}:
            raise InputError(
                f"{table.path}: column {columns.label!r} has 0 and 1 only, so it is one label: name a column for each "
                "label (--label toxic --label rude), or give --task text-classification"
            )
        return cls(labels, pair=table.pairs is not None)

    @classmethod
    def from_provenance(cls, provenance: Provenance) -> Self:
        """Make the task of the labels and the threshold that a delta names."""
        return replace(
            super().from_provenance(provenance), threshold=float(provenance.training.get("threshold", THRESHOLD))
        )

    def to_provenance(self) -> dict[str, Any]:
        """Return the threshold, and whether two texts go in as a pair."""
        return {"threshold": self.threshold, **super().to_provenance()}

    def label_indices(self, table: Table) -> list[Any] | None:
        """Return 0.0 or 1.0 for each of ``labels``, for each row; None for a table without answers."""
        if table.answers_by_row is None:
            return None
        marked = [set(label_indices(row, self.labels)) for row in table.answers_by_row]
        return [[float(index in row) for index in range(len(self.labels))] for row in marked]

    def collate(self, base: Base) -> Collate:
        """Return a function that pads rows to a batch; the loss needs labels in the dtype of the outputs."""
        pad = super().collate(base)
        dtype = next(base.model.parameters()).dtype

        def collate(rows: list[Row]) -> Batch:
            batch = pad(rows)
            if "labels" in batch:
                batch["labels"] = batch["labels"].to(dtype)
            return batch

        return collate

    def evaluate(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, on_progress: OnProgress
    ) -> Measures:
        """Measure the predicted sets of labels."""
        return self.examine(model, base, rows, batch_size, on_progress)[0]

    def examine(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, on_progress: OnProgress
    ) -> tuple[Measures, Prediction]:
        """Measure the predicted sets of labels, and return the probabilities as well."""
        logits = outputs(model, rows, self.collate(base), batch_size, on_progress).astype(np.float64)
        prediction = Prediction(_sigmoid(logits))
        truth, given = _truth(rows), self._sets(prediction)
        hits, count = (truth & given).sum(axis=0), truth.sum(axis=0) + given.sum(axis=0)
        seen = count > 0
        loss = np.where(truth, np.logaddexp(0, -logits), np.logaddexp(0, logits)).mean()
        return {
            "rows": len(rows),
            "micro_f1": 2 * float(hits.sum()) / float(count.sum()) if seen.any() else None,
            "macro_f1": float((2 * hits[seen] / count[seen]).mean()) if seen.any() else None,
            "exact_match": float((truth == given).all(axis=1).mean()),
            "loss": float(loss),
        }, prediction

    def figures(self, rows: Sequence[Row], prediction: Prediction) -> dict[str, Any]:
        """Return the figures of every label; sets have no confusion matrix."""
        return label_figures(self.labels, _truth(rows), self._sets(prediction))

    def mistakes(self, rows: Sequence[Row], prediction: Prediction, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Return the rows with wrong sets whose right set is the least probable, the worst first."""
        return worst_sets(self.labels, _truth(rows), self._sets(prediction), prediction.probabilities, texts)

    def never_predicted(self, rows: Sequence[Row], prediction: Prediction) -> str:
        """Return a line about labels that occur but are never predicted; ``""`` if there are none."""
        truth, given = (np.nonzero(sets)[1].tolist() for sets in (_truth(rows), self._sets(prediction)))
        return never_predicted_hint(self.labels, truth, given)

    def answers(self, logits: npt.NDArray[np.float32], rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return the answers to rows from the model's outputs for them, [rows, labels]."""
        prediction = Prediction(_sigmoid(logits))
        return [
            {"labels": [label for label, mark in zip(self.labels, marks, strict=True) if mark]}
            | {
                f"probability_{label}": round(float(chance), 6)
                for label, chance in zip(self.labels, probabilities, strict=True)
            }
            for marks, probabilities in zip(self._sets(prediction), prediction.probabilities, strict=True)
        ]

    def _sets(self, prediction: Prediction) -> npt.NDArray[np.bool_]:
        """Return which labels are predicted, bool [rows, labels]."""
        sets: npt.NDArray[np.bool_] = prediction.probabilities >= self.threshold
        return sets


def constant_labels(table: Table, labels: Sequence[str]) -> str:
    """Return a line about labels that no row or every row has, of which nothing is learned; ``""`` without any."""
    counts = Counter(table.answers or ())
    shown = [f"{label!r} in no row" for label in labels if not counts[label]]
    shown += [f"{label!r} in every row" for label in labels if counts[label] == len(table)]
    if not shown:
        return ""
    return (
        f"{table.path}: {', '.join(shown[:6])}{', ...' if len(shown) > 6 else ''}: nothing is learned of such a label"
    )


def rarest_labels(table: Table) -> list[str]:
    """Return the rarest label of each row, by which rows are held out in equal shares; ``""`` for a row without any."""
    counts = Counter(table.answers or ())
    return [min(row, key=lambda label: (counts[label], label), default="") for row in table.answers_by_row or ()]


def _truth(rows: Sequence[Row]) -> npt.NDArray[np.bool_]:
    """Return which labels the rows have, bool [rows, labels]."""
    return np.array([row["labels"] for row in rows]) > 0.5


def _sigmoid(logits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return probabilities, computed without overflow."""
    small = np.exp(-np.abs(logits.astype(np.float64)))
    result: npt.NDArray[np.float32] = (np.where(logits >= 0, 1.0, small) / (1.0 + small)).astype(np.float32)
    return result
