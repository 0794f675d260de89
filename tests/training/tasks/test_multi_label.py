"""Sets of labels for texts: the loss is that of transformers, measures and answers follow from its outputs."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_task
import torch

from taskedge.backbone.loading import load_base
from taskedge.delta.delta import Provenance
from taskedge.errors import InputError
from taskedge.training.classification import classifies_rows, examines_rows
from taskedge.training.data.text_data import outputs
from taskedge.training.passes_loss import PassesLoss
from taskedge.training.tasks import TASKS, Columns, task_of_delta
from taskedge.training.tasks.multi_label import MultiLabelClassification, constant_labels, rarest_labels

COLUMNS = Columns(text=("text",), labels=("nice", "dark", "plot"))
ROWS = [("good film", 1, 0, 0), ("bad film never", 0, 0, 0), ("the plot", 1, 0, 1), ("a short good film", 1, 0, 1)]


@pytest.fixture
def made(tmp_path):
    """The task, its base and its rows."""
    path = tiny_task.table(tmp_path / "rows.csv", ROWS, ("text", *COLUMNS.labels))
    table = MultiLabelClassification.read(path, COLUMNS, answers=True, log=str)
    task = MultiLabelClassification.from_table(table, COLUMNS)
    base = load_base(task.name, tiny_task.bert(tmp_path / "base"), task.labels)
    return task.bind(base), base, table


def test_labels_and_rows(made):
    task, base, table = made
    assert TASKS["multi-label-classification"] is MultiLabelClassification
    assert task.labels == ("nice", "dark", "plot")  # in the order of the columns, also one that no row has
    rows = task.encode(base, table, 16, str)
    assert [row["labels"] for row in rows] == [[1, 0, 0], [0, 0, 0], [1, 0, 1], [1, 0, 1]]
    assert examines_rows(task)
    assert not classifies_rows(task)
    assert constant_labels(table, task.labels).endswith("'dark' in no row: nothing is learned of such a label")
    assert rarest_labels(table) == ["nice", "", "plot", "plot"]


def test_the_loss_is_binary_cross_entropy_over_rows_and_labels(made):
    """The oracle: torch's own function on the logits, and micro-batches of uneven size sum to it."""
    task, base, table = made
    rows, collate = task.encode(base, table, 16, str), task.collate(base)
    model = base.model.eval()
    assert model.config.problem_type == "multi_label_classification"
    batch = collate(rows)
    with torch.no_grad():
        logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["labels"])
        losses = PassesLoss(model)
        parts = [collate(rows[:3]), collate(rows[3:])]
        losses.begin_step(parts)
        torch.testing.assert_close(sum(losses(part) for part in parts), expected)
    measured = task.evaluate(model, base, rows, 2, lambda _: None)
    assert measured["loss"] == pytest.approx(float(expected), abs=1e-6)


def test_measures_by_hand():
    """Against sums over the cells of the matrix of rows and labels."""
    task = MultiLabelClassification(("a", "b", "c"))
    truth = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]])
    logits = np.array([[3, -1, -2], [2, -3, -1], [-1, -4, -2], [1, 2, -5]], dtype=np.float32)
    given = logits >= 0
    hits, wrong = ((truth == 1) & given).sum(), ((truth == 1) != given).sum()

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, index):
            return type("Output", (), {"logits": torch.from_numpy(logits)[index]})

    class Plain(MultiLabelClassification):
        def collate(self, base):
            return lambda rows: {"index": torch.tensor([row["index"] for row in rows])}

    rows = [{"index": index, "labels": list(map(float, row))} for index, row in enumerate(truth)]
    plain = Plain(task.labels)
    measured, prediction = plain.examine(Model(), None, rows, 2, lambda _: None)
    assert measured["micro_f1"] == pytest.approx(2 * hits / (2 * hits + wrong))
    assert measured["macro_f1"] == pytest.approx(np.mean([2 * 2 / (2 + 3), 2 * 1 / (2 + 1)]))  # "c" is nowhere
    assert measured["exact_match"] == pytest.approx(2 / 4)
    figures = plain.figures(rows, prediction)
    assert "confusion" not in figures
    assert [(one["rows"], one["predicted"], one["f1"]) for one in figures["classes"]] == [
        (2, 3, pytest.approx(0.8)), (2, 1, pytest.approx(2 / 3)), (0, 0, None)
    ]  # fmt: skip
    worst = plain.mistakes(rows, prediction, ["p", "q", "r", "s"])
    assert [(one["text"], one["label"], one["predicted"]) for one in worst] == [("q", "a, b", "a"), ("s", "b", "a, b")]
    assert plain.never_predicted(rows, prediction) == ""
    answers = plain.answers(logits, rows)
    assert [answer["labels"] for answer in answers] == [["a"], ["a"], [], ["a", "b"]]
    assert answers[0]["probability_a"] == pytest.approx(1 / (1 + np.exp(-3)), abs=1e-6)


def test_a_delta_remembers_labels_and_threshold(made):
    task = made[0]
    about = Provenance(task=task.name, labels=task.labels, training=task.to_provenance() | {"threshold": 0.3})
    assert task_of_delta(about) == MultiLabelClassification(task.labels, threshold=0.3)
    assert task.to_provenance() == {"threshold": 0.5}


def test_half_precision_models_take_the_labels(made, tmp_path):
    task, _, table = made
    base = load_base(task.name, tmp_path / "base", task.labels, dtype="bf16")
    batch = task.collate(base)(task.encode(base, table, 16, str))
    base.model(**batch).loss.backward()
    assert outputs(base.model, task.encode(base, table, 16, str), task.collate(base)).shape == (4, 3)


@pytest.mark.parametrize(
    ("rows", "columns", "problem"),
    [
        ([("a", 1), ("b", 0)], Columns(text=("text",), label="x"), "column 'x' has 0 and 1 only, so it is one label"),
        ([("a", "p"), ("b", "p")], Columns(text=("text",), label="x"), "there is only the label 'p'"),
        ([("a", ""), ("b", "")], Columns(text=("text",), label="x"), "no row has a label"),
    ],
)
def test_data_that_have_no_sets(tmp_path, rows, columns, problem):
    path = tiny_task.table(tmp_path / "rows.csv", rows, ("text", "x"))
    table = MultiLabelClassification.read(path, columns, answers=True, log=str)
    with pytest.raises(InputError, match=problem):
        MultiLabelClassification.from_table(table, columns)
