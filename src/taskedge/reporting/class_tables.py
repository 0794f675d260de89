"""Figures of classes as text: a table of precision, recall and F1, and the confusion matrix."""

from __future__ import annotations

from typing import Any

from taskedge.reporting.tables import columns

MAX_MATRIX = 12
"""Up to this number of classes, the confusion matrix is a table; of more, the most frequent confusions are listed."""
_NAME_WIDTH = 24


def class_table(figures: dict[str, Any]) -> str:
    """Return the figures of every class (``class_figures``) as a table."""
    rows = [["class", "rows", "predicted", "precision", "recall", "F1"]]
    for one in figures["classes"]:
        ratios = ["-" if one[name] is None else f"{one[name]:.3f}" for name in ("precision", "recall", "f1")]
        rows.append([_short(one["label"]), f"{one['rows']:,}", f"{one['predicted']:,}", *ratios])
    return columns(rows)


def confusion_table(figures: dict[str, Any]) -> str:
    """Return the confusion matrix as a table, or of many classes the most frequent confusions."""
    labels, confusion = [_short(label) for label in figures["labels"]], figures["confusion"]
    if len(labels) <= MAX_MATRIX:
        rows = [["right \\ predicted", *labels]]
        rows += [[label, *(f"{count:,}" for count in row)] for label, row in zip(labels, confusion, strict=True)]
        return columns(rows)
    pairs = [
        (count, labels[right], labels[given])
        for right, row in enumerate(confusion)
        for given, count in enumerate(row)
        if count and right != given
    ]
    pairs.sort(key=lambda pair: -pair[0])
    rows = [
        ["right", "predicted", "rows"],
        *([right, given, f"{count:,}"] for count, right, given in pairs[:MAX_MATRIX]),
    ]
    more = f"\n{len(pairs) - MAX_MATRIX:,} more pairs of classes are confused" if len(pairs) > MAX_MATRIX else ""
    return columns(rows, left=(0, 1)) + more


def _short(label: str) -> str:
    """Return a label in one line of a bounded width, in quotes where it is cut or has other than printable text."""
    shown = label if label.isprintable() and label else repr(label)
    return shown if len(shown) <= _NAME_WIDTH else f"{shown[: _NAME_WIDTH - 3]}..."
