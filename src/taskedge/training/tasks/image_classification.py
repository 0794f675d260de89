"""Image classification: a class for each image, from folders or from a table of paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from taskedge.backbone.loading import Base
from taskedge.errors import InputError
from taskedge.training.classification import Classification
from taskedge.training.data.image_data import decode, image_paths, place, read_folder, read_image_table
from taskedge.training.data.table import Table
from taskedge.training.tasks import Batch, Collate, Columns, Done, Row, Say, task
from taskedge.training.trainer_config import FitSettings


@task("image-classification")
class ImageClassification(Classification):
    """A class for each image. Rows hold paths; pixels are made of them batch by batch, by the base's own processor."""

    name: ClassVar[str] = "image-classification"
    reads: ClassVar[tuple[tuple[str, ...], ...]] = (("image", "label"),)
    max_length: ClassVar[int | None] = None
    batch_size: ClassVar[int] = FitSettings.batch_size

    @staticmethod
    def read(path: Path, columns: Columns, *, answers: bool, say: Say) -> Table:
        if path.is_dir():
            return read_folder(path, answers=answers, say=say)
        return read_image_table(path, columns.image or "", columns.label if answers else None)

    def identity(self, table: Table) -> Any:
        stamps = [(stat.st_size, stat.st_mtime_ns) for stat in map(Path.stat, image_paths(table))]
        return [table.texts, table.labels, stamps]

    def encode(self, base: Base, table: Table, max_length: int, say: Say) -> list[Row]:
        rows: list[Row] = [
            {"path": path, "where": place(table, row), "image": table.texts[row]}
            for row, path in enumerate(image_paths(table))
        ]
        for row, label in zip(rows, self.places(table) or (), strict=False):
            row["labels"] = label
        return rows

    def collate(self, base: Base) -> Collate:
        dtype = next(base.model.parameters()).dtype  # not every model casts its pixels itself

        def collate(rows: list[Row]) -> Batch:
            images = [decode(row["path"], row["where"]) for row in rows]
            try:
                batch = {"pixel_values": base.images(images, return_tensors="pt")["pixel_values"].to(dtype)}
            except ValueError as error:
                raise InputError(f"the base's image processor cannot make a batch ({error}): see its size") from None
            if "labels" in rows[0]:
                batch["labels"] = torch.tensor([row["labels"] for row in rows])
            return batch

        return collate

    def predict(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, done: Done
    ) -> list[dict[str, Any]]:
        found = super().predict(model, base, rows, batch_size, done)
        return [{"image": row["image"]} | one for row, one in zip(rows, found, strict=True)]
