"""Texts with classes: read with or without answers, and encoded with label indices."""

import pytest
import tiny_task

from taskedge.backbone.loading import load_base
from taskedge.errors import InputError
from taskedge.training.tasks import TASKS, Columns
from taskedge.training.tasks.text_classification import TextClassification

COLUMNS = Columns(text=("text",), label="label")


@pytest.fixture
def path(tmp_path):
    return tiny_task.table(tmp_path / "rows.csv", [("good film", "pos"), ("bad film never", "neg")])


def test_it_is_registered():
    assert TASKS["text-classification"] is TextClassification


def test_reading_with_and_without_answers(path):
    with_answers = TextClassification.read(path, COLUMNS, answers=True, log=str)
    without = TextClassification.read(path, COLUMNS, answers=False, log=str)
    assert with_answers.texts == without.texts == ["good film", "bad film never"]
    assert with_answers.labels == ["pos", "neg"]
    assert without.labels is None
    with pytest.raises(InputError, match="no column 'stars'"):
        TextClassification.read(path, Columns(text=("text",), label="stars"), answers=True, log=str)


def test_rows_and_batches(path, tmp_path):
    table = TextClassification.read(path, COLUMNS, answers=True, log=str)
    task = TextClassification.from_table(table, COLUMNS)
    base = load_base(task.name, tiny_task.bert(tmp_path / "base"), task.labels)
    assert task.bind(base) is task
    rows = task.encode(base, table, 4, str)
    assert [row["labels"] for row in rows] == [1, 0]
    assert [len(row["input_ids"]) for row in rows] == [4, 4]  # the second is cut
    batch = task.collate(base)(rows)
    assert batch["input_ids"].shape == (2, 4)
    assert batch["labels"].tolist() == [1, 0]
    assert task.identity(table) == [table.texts, table.labels]
