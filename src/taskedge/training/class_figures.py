"""Figures of every class or label: precision, recall, F1, the confusion matrix, worst mistakes. Plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def class_figures(labels: Sequence[str], truth: Sequence[int], predicted: Sequence[int]) -> dict[str, Any]:
    """Return the figures of every class as JSON-able values.

    Args:
        labels: names of the classes.
        truth, predicted: indices of the right and of the predicted class, one a row.

    Returns:
        ``confusion``: rows by right class (outer) and predicted class (inner). ``classes``: for each its ``label``,
        its ``rows``, how often it is ``predicted``, and ``precision``, ``recall`` and ``f1``; None where the
        denominator is 0.
    """
    confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(confusion, (np.asarray(truth, np.int64), np.asarray(predicted, np.int64)), 1)
    hits, rows, given = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    return {
        "labels": list(labels),
        "confusion": confusion.tolist(),
        "classes": _by_label(labels, hits, rows, given),
    }


def label_figures(
    labels: Sequence[str], truth: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    """Return the figures of every label of rows with sets of labels, as :func:`class_figures` without ``confusion``.

    Args:
        labels: their names.
        truth, predicted: whether a row has the label, bool [rows, labels].
    """
    hits, rows, given = ((truth & predicted).sum(axis=0), truth.sum(axis=0), predicted.sum(axis=0))
    return {"labels": list(labels), "classes": _by_label(labels, hits, rows, given)}


def worst_mistakes(
    labels: Sequence[str],
    truth: Sequence[int],
    probabilities: npt.NDArray[np.float32],
    texts: Sequence[str],
    count: int = 20,
) -> list[dict[str, Any]]:
    """Return the wrong rows whose right class is the least probable, the worst first.

    Args:
        labels: names of the classes.
        truth: index of the right class of each row.
        probabilities: float32 [rows, classes].
        texts: the input of each row.
        count: largest number of rows to return.
    """
    right = np.asarray(truth, np.int64)
    predicted = probabilities.argmax(axis=1)
    of_right = probabilities[np.arange(len(right)), right]
    wrong = np.flatnonzero(predicted != right)
    order = wrong[np.argsort(of_right[wrong], kind="stable")][:count]
    return [
        {
            "row": int(index) + 1,
            "text": texts[index],
            "label": labels[right[index]],
            "predicted": labels[predicted[index]],
            "probability": float(probabilities[index, predicted[index]]),
            "probability_of_label": float(of_right[index]),
        }
        for index in order
    ]


def worst_sets(
    labels: Sequence[str],
    truth: npt.NDArray[np.bool_],
    predicted: npt.NDArray[np.bool_],
    probabilities: npt.NDArray[np.float32],
    texts: Sequence[str],
    count: int = 20,
) -> list[dict[str, Any]]:
    """Return the rows with a wrong set of labels whose right set is the least probable, as :func:`worst_mistakes`.

    The probability of a set is the product of those of its labels being set or not.

    Args:
        labels: names of the labels.
        truth, predicted: whether a row has the label, bool [rows, labels].
        probabilities: of each label, float32 [rows, labels].
        texts: the input of each row.
        count: largest number of rows to return.
    """

    def of_sets(sets: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        chances: npt.NDArray[np.float64] = np.where(sets, probabilities, 1 - probabilities).astype(np.float64)
        product: npt.NDArray[np.float64] = chances.prod(axis=1)
        return product

    def names(row: npt.NDArray[np.bool_]) -> str:
        return ", ".join(label for label, mark in zip(labels, row, strict=True) if mark) or "none"

    of_right, of_given = of_sets(truth), of_sets(predicted)
    wrong = np.flatnonzero((truth != predicted).any(axis=1))
    order = wrong[np.argsort(of_right[wrong], kind="stable")][:count]
    return [
        {
            "row": int(index) + 1,
            "text": texts[index],
            "label": names(truth[index]),
            "predicted": names(predicted[index]),
            "probability": float(of_given[index]),
            "probability_of_label": float(of_right[index]),
        }
        for index in order
    ]


def _by_label(labels: Sequence[str], hits: Any, rows: Any, given: Any) -> list[dict[str, Any]]:
    return [
        {
            "label": label,
            "rows": int(rows[index]),
            "predicted": int(given[index]),
            "precision": _ratio(hits[index], given[index]),
            "recall": _ratio(hits[index], rows[index]),
            "f1": _ratio(2 * hits[index], rows[index] + given[index]),
        }
        for index, label in enumerate(labels)
    ]


def _ratio(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if whole else None
