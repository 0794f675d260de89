"""Numbers are learned standardized and predicted in their unit; correlations equal those of scipy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_task
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from taskedge.backbone.loading import load_base
from taskedge.delta.delta import Provenance
from taskedge.errors import InputError
from taskedge.training.data.table import Table
from taskedge.training.data.text_data import outputs
from taskedge.training.tasks import Columns, task_of_delta
from taskedge.training.tasks.text_regression import TextRegression, pearson, ranks

numbers = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=20)


@given(numbers)
def test_correlations(pairs):
    one, other = (np.array(side, dtype=np.float64) for side in zip(*pairs, strict=True))
    assert ranks(one).tolist() == stats.rankdata(one).tolist()
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert pearson(one, other) is None
    else:
        assert pearson(one, other) == pytest.approx(stats.pearsonr(one, other)[0], abs=1e-12)
        assert pearson(ranks(one), ranks(other)) == pytest.approx(stats.spearmanr(one, other)[0], abs=1e-12)


def table(*labels):
    return Table(Path("x.csv"), ["good film"] * len(labels), list(labels))


def test_what_is_remembered_is_recalled():
    made = TextRegression.from_table(table("10", "20", "60"), Columns())
    assert (made.mean, made.deviation) == (30.0, float(np.std([10, 20, 60])))
    assert task_of_delta(Provenance(task="text-regression", training=made.to_provenance())) == made
    with pytest.raises(InputError, match="does not say how its targets were standardized"):
        task_of_delta(Provenance(task="text-regression"))


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (["1.5", "good"], r"x\.csv, row 2: the label 'good' is no number, which text-regression needs"),
        (["1.5", "nan"], "row 2: the label 'nan' is no number"),
        (["1.5", "1.50"], "every row has the number 1.5"),
    ],
)
def test_what_cannot_be_learnt(labels, told):
    with pytest.raises(InputError, match=told):
        TextRegression.from_table(table(*labels), Columns())


def test_targets_of_held_out_data_are_checked():
    with pytest.raises(InputError, match=r"label .x. is no number.*: correct it, or remove the row") as fault:
        TextRegression(0.0, 1.0).check(table("x"))
    assert "--task" not in str(fault.value)  # what the delta is for is settled


def test_predictions_are_in_the_unit_of_the_data(tmp_path):
    torch.manual_seed(0)
    base = load_base("text-regression", tiny_task.bert(tmp_path / "base"))
    assert base.model.config.num_labels == 1
    task = TextRegression(mean=1000.0, deviation=50.0)
    texts, labels = zip(*tiny_task.ratings(7), strict=True)
    data = Table(Path("x.csv"), list(texts), list(labels))
    rows = task.encode(base, data, 64, str)
    assert [row["labels"] for row in rows] == [(float(label) - 1000) / 50 for label in labels]
    assert "labels" not in task.encode(base, Table(data.path, data.texts), 64, str)[0]
    with torch.no_grad():
        direct = [float(base.model.eval()(**base.tokenizer(text, return_tensors="pt")).logits) for text in texts]
    done = [].append
    direct = np.array([1000 + 50 * value for value in direct])
    assert [row["value"] for row in task.predict(base.model, base, rows, 3, done)] == pytest.approx(direct, rel=1e-5)
    measured, truth = task.evaluate(base.model, base, rows, 3, done), np.array(labels, dtype=float)
    assert measured["rows"] == 7
    assert measured["mse"] == pytest.approx(np.square(direct - truth).mean(), rel=1e-5)
    assert measured["pearson"] == pytest.approx(stats.pearsonr(direct, truth)[0], abs=1e-4)
    assert measured["spearman"] == pytest.approx(stats.spearmanr(direct, truth)[0], abs=1e-4)


@pytest.mark.parametrize(("mean", "deviation"), [(1_700_000_000.0, 250.0), (1_234_567.89, 1.0), (1e-9, 1e-12)])
def test_predictions_keep_every_digit(tmp_path, mean, deviation):
    base = load_base("text-regression", tiny_task.bert(tmp_path / "base"))
    task = TextRegression(mean, deviation)
    texts = [text for text, _ in tiny_task.ratings(16)]
    rows = task.encode(base, Table(Path("x.csv"), texts), 64, str)
    values = [answer["value"] for answer in task.predict(base.model, base, rows, 16, str)]
    expected = mean + deviation * outputs(base.model, rows, task.collate(base), 16)[:, 0].astype(np.float64)
    assert len(set(expected)) > 4
    assert [float(repr(value)) for value in values] == expected.tolist()


def test_the_loss_is_that_of_standardised_targets(tmp_path):
    base = load_base("text-regression", tiny_task.bert(tmp_path / "base"))
    task = TextRegression(mean=80.0, deviation=20.0)
    texts, labels = zip(*tiny_task.ratings(4), strict=True)
    batch = task.collate(base)(task.encode(base, Table(Path("x"), list(texts), list(labels)), 64, str))
    output = base.model.eval()(**batch)
    expected = (output.logits[:, 0] - torch.tensor([(float(x) - 80) / 20 for x in labels])).square().mean()
    torch.testing.assert_close(output.loss, expected)
