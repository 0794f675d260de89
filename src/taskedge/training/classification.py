"""Base class of tasks with classes, for any kind of data."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self, TypeGuard

import numpy as np
import numpy.typing as npt
from torch import nn

from taskedge.backbone.loading import Base
from taskedge.delta.delta import Provenance
from taskedge.errors import InputError
from taskedge.training.class_figures import class_figures, worst_mistakes
from taskedge.training.class_weights import never_predicted_hint
from taskedge.training.data.table import Table, check_labels, label_indices, label_set
from taskedge.training.data.text_data import Prediction, class_probabilities, outputs, predict, quality
from taskedge.training.tasks import Collate, Columns, Log, Measures, OnProgress, Row, ignore_log


def examines_rows(task: object) -> TypeGuard[Classification]:
    """Return whether a task has figures of each class or label over rows: one class a row, or a set of labels."""
    return classifies_rows(task) or (
        isinstance(task, Classification) and type(task).examine is not Classification.examine
    )


def classifies_rows(task: object) -> TypeGuard[Classification]:
    """Return whether a task has one class for each row, and not one for each token of it."""
    return isinstance(task, Classification) and type(task).evaluate is Classification.evaluate


@dataclass(frozen=True)
class Classification(abc.ABC):
    """Predicts one of a few classes. Measures: accuracy, macro F1 and loss (:class:`.text_data.Quality`)."""

    labels: tuple[str, ...]

    @classmethod
    def from_table(cls, table: Table, columns: Columns) -> Self:
        """Make the task of the classes in training data."""
        return cls(tuple(label_set(table)))

    @classmethod
    def from_provenance(cls, provenance: Provenance) -> Self:
        """Make the task of the classes that a delta names."""
        if not provenance.labels:
            raise InputError("the delta names no labels, so it is not one of a classifier made by 'taskedge tune'")
        return cls(provenance.labels)

    def to_provenance(self) -> dict[str, Any]:
        """Return nothing: the labels are all."""
        return {}

    def bind(
        self,
        base: Base,
        table: Table | None = None,
        max_length: int = 0,
        new_tokens: int | None = None,
        log: Log = ignore_log,
    ) -> Self:
        """Return the task itself: nothing depends on the base."""
        return self

    def check(self, table: Table) -> None:
        """Refuse labels that are not among the classes."""
        check_labels(table, self.labels)

    def label_indices(self, table: Table) -> list[Any] | None:
        """Return the index of each row's class among ``labels``; None for a table without answers."""
        return None if table.labels is None else label_indices(table.labels, self.labels)

    @abc.abstractmethod
    def collate(self, base: Base) -> Collate:
        """Return a function that makes a batch of rows."""

    def evaluate(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, on_progress: OnProgress
    ) -> Measures:
        """Measure the predicted classes."""
        return self.examine(model, base, rows, batch_size, on_progress)[0]

    def examine(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, on_progress: OnProgress
    ) -> tuple[Measures, Prediction]:
        """Measure the predicted classes, and return the prediction as well."""
        prediction = predict(model, rows, self.collate(base), batch_size, on_progress)
        return asdict(quality(prediction, [row["labels"] for row in rows])), prediction

    def figures(self, rows: Sequence[Row], prediction: Prediction) -> dict[str, Any]:
        """Return the figures of every class and the confusion matrix, as JSON-able values."""
        return class_figures(self.labels, [row["labels"] for row in rows], prediction.classes.tolist())

    def mistakes(self, rows: Sequence[Row], prediction: Prediction, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Return the wrong rows whose right class is the least probable, the worst first."""
        return worst_mistakes(self.labels, [row["labels"] for row in rows], prediction.probabilities, texts)

    def never_predicted(self, rows: Sequence[Row], prediction: Prediction) -> str:
        """Return a line about classes that occur but are never predicted; ``""`` if there are none."""
        return never_predicted_hint(self.labels, [row["labels"] for row in rows], prediction.classes.tolist())

    def predict(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, on_progress: OnProgress
    ) -> list[dict[str, Any]]:
        """Return the most probable class of each row and its probability."""
        return self.answers(outputs(model, rows, self.collate(base), batch_size, on_progress), rows)

    def answers(self, logits: npt.NDArray[np.float32], rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return the answers to rows from the model's outputs for them, [rows, classes]."""
        prediction = class_probabilities(logits)
        return [
            {"label": self.labels[index], "probability": round(float(probabilities[index]), 6)}
            for index, probabilities in zip(prediction.classes, prediction.probabilities, strict=True)
        ]
