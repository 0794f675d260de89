"""Classes of a task: their order, their indices, and the answers of a model."""

from pathlib import Path

import pytest
import tiny_task

from taskedge.backbone.loading import load_base
from taskedge.delta.delta import Provenance
from taskedge.errors import InputError
from taskedge.training.data.table import Table
from taskedge.training.tasks import Columns, task_of_delta
from taskedge.training.tasks.text_classification import TextClassification


def table(*labels):
    return Table(Path("x.csv"), ["good film"] * len(labels), list(labels))


def test_a_delta_remembers_the_classes():
    task = TextClassification.from_table(table("pos", "neg", "pos"), Columns())
    assert task.labels == ("neg", "pos")
    assert task.to_provenance() == {}
    assert task_of_delta(Provenance(task=task.name, labels=task.labels)) == task
    with pytest.raises(InputError, match="the delta names no labels"):
        task_of_delta(Provenance(task=task.name))


def test_labels_by_their_index():
    task = TextClassification(("neg", "pos"))
    assert task.label_indices(table("pos", "neg", "pos")) == [1, 0, 1]
    assert task.label_indices(Table(Path("x.csv"), ["a"])) is None
    task.check(table("pos"))
    with pytest.raises(InputError, match="the label 'meh' does not occur in training"):
        task.check(table("pos", "meh"))


def test_predictions_are_the_measured_ones(tmp_path):
    base = load_base("text-classification", tiny_task.bert(tmp_path / "base"), ("neg", "pos"))
    task = TextClassification(("neg", "pos"))
    texts, labels = zip(*tiny_task.rows(20), strict=True)
    rows = task.encode(base, Table(Path("x.csv"), list(texts), list(labels)), 64, str)
    done = []
    answers = task.predict(base.model, base, rows, 8, done.append)
    measures = task.evaluate(base.model, base, rows, 8, lambda _: None)
    hits = [answer["label"] == label for answer, label in zip(answers, labels, strict=True)]
    assert measures["accuracy"] == sum(hits) / 20
    assert all(0.5 <= answer["probability"] <= 1 for answer in answers)
    assert done == [8, 8, 4]
