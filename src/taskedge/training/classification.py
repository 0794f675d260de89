"""What tasks with classes share, whatever the data is."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from torch import nn

from taskedge.backbone.loading import Base
from taskedge.delta.delta import Provenance
from taskedge.errors import InputError
from taskedge.training.data.table import Table, check_labels, label_set
from taskedge.training.data.text_data import predict, quality
from taskedge.training.tasks import Collate, Columns, Done, Measures, Row


@dataclass(frozen=True)
class Classification(abc.ABC):
    """Finds one of a few classes. Measured: accuracy, macro F1 and loss (:class:`.text_data.Quality`)."""

    labels: tuple[str, ...]

    @classmethod
    def learn(cls, table: Table, columns: Columns) -> Self:
        return cls(tuple(label_set(table)))

    @classmethod
    def recall(cls, provenance: Provenance) -> Self:
        if not provenance.labels:
            raise InputError("the delta names no labels, so it is not one of a classifier made by 'taskedge tune'")
        return cls(provenance.labels)

    def about(self) -> dict[str, Any]:
        return {}

    def meet(self, base: Base, table: Table | None = None, max_length: int = 0, new_tokens: int | None = None) -> Self:
        return self

    def check(self, table: Table) -> None:
        check_labels(table, self.labels)

    def places(self, table: Table) -> list[int] | None:
        """The class of each row by its place among ``labels``; None for a table without answers."""
        place = {label: index for index, label in enumerate(self.labels)}
        return None if table.labels is None else [place[label] for label in table.labels]

    @abc.abstractmethod
    def collate(self, base: Base) -> Collate:
        """See :class:`taskedge.training.tasks.Task`."""

    def evaluate(self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, done: Done) -> Measures:
        found = predict(model, rows, self.collate(base), batch_size, done)
        return asdict(quality(found, [row["labels"] for row in rows]))

    def predict(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, done: Done
    ) -> list[dict[str, Any]]:
        found = predict(model, rows, self.collate(base), batch_size, done)
        return [
            {"label": self.labels[place], "probability": round(float(chances[place]), 6)}
            for place, chances in zip(found.classes, found.probabilities, strict=True)
        ]
