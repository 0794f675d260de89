"""Figures of classes are those that their definitions give, counted row by row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskedge.training.class_figures import class_figures, label_figures, worst_mistakes, worst_sets


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_precision_recall_and_f1_by_counting(rows):
    truth, predicted = zip(*rows, strict=True)
    figures = class_figures("abcd", truth, predicted)
    for index, one in enumerate(figures["classes"]):
        hits = sum(t == p == index for t, p in rows)
        given_, right = predicted.count(index), truth.count(index)
        assert (one["rows"], one["predicted"]) == (right, given_)
        assert one["precision"] == (hits / given_ if given_ else None)
        assert one["recall"] == (hits / right if right else None)
        assert one["f1"] == (pytest.approx(2 * hits / (given_ + right)) if given_ + right else None)
        assert figures["confusion"][index] == [rows.count((index, other)) for other in range(4)]


def test_the_worst_mistake_is_first_and_right_rows_are_none():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.99, 0.01]], np.float32)
    found = worst_mistakes(["a", "b"], [0, 1, 1, 1], probabilities, ["w", "x", "y", "z"])
    assert [(one["row"], one["text"], one["predicted"]) for one in found] == [(4, "z", "a"), (2, "x", "a")]
    assert found[0]["probability_of_label"] == pytest.approx(0.01)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
def test_sets_of_one_label_have_the_figures_of_classes(rows):
    truth, predicted = (np.eye(4, dtype=bool)[list(side)] for side in zip(*rows, strict=True))
    figures = label_figures("abcd", truth, predicted)
    assert figures["classes"] == class_figures("abcd", *zip(*rows, strict=True))["classes"]
    assert "confusion" not in figures


def test_the_least_probable_right_set_is_the_worst():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]], np.float32)
    truth = np.array([[1, 0], [0, 1], [1, 0]], bool)
    found = worst_sets(["a", "b"], truth, probabilities >= 0.5, probabilities, ["x", "y", "z"])
    assert [(one["row"], one["label"], one["predicted"]) for one in found] == [(3, "a", "b"), (2, "b", "a")]
    assert found[0]["probability_of_label"] == pytest.approx(0.2 * 0.2)
    assert found[0]["probability"] == pytest.approx(0.8 * 0.8)
