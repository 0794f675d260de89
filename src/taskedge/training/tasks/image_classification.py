"""Image classification: a class for each image, from folders or from a table of paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from taskedge.backbone.loading import Base
from taskedge.errors import InputError
from taskedge.training.classification import Classification
from taskedge.training.data.image_data import (
    decode_image,
    image_paths,
    read_image_folder,
    read_image_table,
    row_location,
)
from taskedge.training.data.table import Table
from taskedge.training.tasks import Batch, Collate, Columns, Log, Row, task
from taskedge.training.trainer_config import DEFAULTS


@task("image-classification")
class ImageClassification(Classification):
    """A class for each image. Rows hold paths; the base's own processor makes pixels of them, batch by batch."""

    name: ClassVar[str] = "image-classification"
    column_sets: ClassVar[tuple[tuple[str, ...], ...]] = (("image", "label"),)
    max_length: ClassVar[int | None] = None
    batch_size: ClassVar[int] = DEFAULTS.batch_size

    @staticmethod
    def read(path: Path, columns: Columns, *, answers: bool, log: Log) -> Table:
        """Read a folder of images, or a table of paths; with ``answers``, their classes too."""
        if path.is_dir():
            return read_image_folder(path, answers=answers, log=log)
        return read_image_table(path, columns.image or "", columns.label if answers else None)

    def identity(self, table: Table) -> Any:
        """Return paths, labels, and the sizes and times of the files."""
        stamps = [(stat.st_size, stat.st_mtime_ns) for stat in map(Path.stat, image_paths(table))]
        return [table.texts, table.labels, stamps]

    def encode(self, base: Base, table: Table, max_length: int, log: Log) -> list[Row]:
        """Return paths with label indices."""
        rows: list[Row] = [
            {"path": path, "where": row_location(table, index), "image": table.texts[index]}
            for index, path in enumerate(image_paths(table))
        ]
        for row, label in zip(rows, self.label_indices(table) or (), strict=False):
            row["labels"] = label
        return rows

    def collate(self, base: Base) -> Collate:
        """Return a function that decodes and processes the images of rows."""
        dtype = next(base.model.parameters()).dtype  # not every model casts its pixels itself

        def collate(rows: list[Row]) -> Batch:
            images = [decode_image(row["path"], row["where"]) for row in rows]
            try:
                batch = {"pixel_values": base.image_processor(images, return_tensors="pt")["pixel_values"].to(dtype)}
            except ValueError as error:
                raise InputError(f"the base's image processor cannot make a batch ({error}): see its size") from None
            if "labels" in rows[0]:
                batch["labels"] = torch.tensor([row["labels"] for row in rows])
            return batch

        return collate

    def answers(self, logits: npt.NDArray[np.float32], rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return the answers to rows from the model's outputs for them, [rows, classes]."""
        return [{"image": row["image"]} | each for row, each in zip(rows, super().answers(logits, rows), strict=True)]
