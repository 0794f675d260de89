"""Figures of classes as text."""

from __future__ import annotations

from taskedge.reporting.class_tables import MAX_MATRIX, class_table, confusion_table

FIGURES = {
    "labels": ["neg", "a\nb"],
    "confusion": [[3, 1], [0, 0]],
    "classes": [
        {"label": "neg", "rows": 4, "predicted": 3, "precision": 1.0, "recall": 0.75, "f1": 6 / 7},
        {"label": "a\nb", "rows": 0, "predicted": 1, "precision": 0.0, "recall": None, "f1": 0.0},
    ],
}


def test_the_table_has_a_line_for_each_class():
    assert class_table(FIGURES).splitlines() == [
        "class   rows  predicted  precision  recall     F1",
        "neg        4          3      1.000   0.750  0.857",
        "'a\\nb'     0          1      0.000       -  0.000",
    ]


def test_the_matrix_and_the_most_frequent_confusions():
    assert confusion_table(FIGURES).splitlines()[1].split() == ["neg", "3", "1"]
    size = MAX_MATRIX + 2
    confusion = [[0] * size for _ in range(size)]
    confusion[1][0], confusion[2][0] = 5, 7
    listed = confusion_table({"labels": [f"c{i}" for i in range(size)], "confusion": confusion}).splitlines()
    assert [line.split() for line in listed[1:]] == [["c2", "c0", "7"], ["c1", "c0", "5"]]
