"""A summary of a run's data, and warnings about labels that are probably not what the user means.

A label is compared without surrounding blanks. Labels that differ in case, inner blanks or Unicode form only are
distinct classes, so they are reported.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

from taskedge.training.data.image_data import image_paths
from taskedge.training.data.table import Table, as_number

MAX_LISTED_CLASSES = 6
"""Up to this number of classes, the summary lists all; of more, the largest and the smallest."""
NEARLY_ALL = 0.9
"""Share of rows with a number as label from which the other labels are reported."""


def data_summary(train: Table, eval_table: Table | None, num_classes: int, *, images: bool = False) -> list[str]:
    """Return lines about the rows of a run.

    Args:
        train: the training data.
        eval_table: the held-out data, if there is any.
        num_classes: number of classes; 0 if the answers are no classes.
        images: whether the texts are paths of images. Copies under other paths are not recognized.
    """
    line = f"{len(train):,} rows"
    if num_classes:
        line += f", {num_classes:,} classes: {_class_counts(train.answers or [])}"
    lines = [line]
    for table in (train, eval_table):
        if table is not None and table.num_stripped_labels:
            lines.append(
                f"{table.path}: blanks around the label are removed in {table.num_stripped_labels:,} of "
                f"{len(table):,} rows"
            )
    if eval_table is not None:
        inputs = [set(map(str, image_paths(table))) if images else set(table.texts) for table in (train, eval_table)]
        shared = inputs[0] & inputs[1]
        names = list(map(str, image_paths(eval_table))) if images else eval_table.texts
        num_shared = sum(name in shared for name in names)
        lines.append(f"{len(eval_table):,} held-out rows, {num_shared:,} of which are in the training data too")
    return lines


def understood_lines(table: Table, num_classes: int = 0) -> list[str]:
    """Return the lines about a file that is read: its format, its rows, and its classes if it has any."""
    return [line for line in (table.understood, *data_summary(table, None, num_classes)) if line]


def label_warnings(table: Table, *, may_be_numbers: bool) -> list[str]:
    """Return a line for each doubt about the classes of a table.

    Args:
        table: the training data.
        may_be_numbers: whether the labels decided that they are classes, instead of the user.
    """
    labels = table.answers or []
    counts = Counter(labels)
    warnings = [*_near_doubles(counts)]
    if may_be_numbers:
        warnings += _number_warnings(labels)
    lone = [label for label, count in counts.items() if count == 1]
    if lone:
        verb = "classes have" if len(lone) > 1 else "class has"
        warnings.append(f"{len(lone):,} {verb} one row only: {_listed(lone)}")
    return [f"{table.path}: {warning}" for warning in warnings]


def _class_counts(labels: Sequence[str]) -> str:
    """Return the classes with their numbers of rows, the largest first."""
    counts = [f"{label!r} {count:,}" for label, count in Counter(labels).most_common()]
    if len(counts) > MAX_LISTED_CLASSES:
        counts = [*counts[: MAX_LISTED_CLASSES // 2], "...", *counts[-MAX_LISTED_CLASSES // 2 :]]
    return ", ".join(counts)


def _near_doubles(counts: Counter[str]) -> list[str]:
    """Return a line for each group of classes that differ in case, blanks or Unicode form only."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for label in counts:
        groups[" ".join(unicodedata.normalize("NFKC", label).casefold().split())].append(label)
    lines = []
    for group in groups.values():
        if len(group) > 1:
            shown = " and ".join(f"{ascii(label) if _same_looks(group) else repr(label)}" for label in sorted(group))
            lines.append(f"{shown} are classes of their own, but differ in case, blanks or Unicode form only")
    return lines


def _same_looks(labels: Sequence[str]) -> bool:
    """Return whether some labels look the same, because they differ in their Unicode form only."""
    return len({unicodedata.normalize("NFC", label) for label in labels}) < len(labels)


def _number_warnings(labels: Sequence[str]) -> list[str]:
    """Return a line about decimal commas, and one about the labels that are no numbers where nearly all are."""
    lines = []
    commas = [row for row, label in enumerate(labels) if re.fullmatch(r"[-+]?\d+,\d+", label)]
    if commas:
        lines.append(
            f"{len(commas):,} of {len(labels):,} labels look like numbers with a decimal comma, {labels[commas[0]]!r} "
            f"in row {commas[0] + 1} first, and are taken as classes: write them with a point, or give "
            "--task text-classification"
        )
    others = [row for row, label in enumerate(labels) if as_number(label) is None]
    if 0 < len(others) <= (1 - NEARLY_ALL) * len(labels) and len(others) != len(commas):
        lines.append(
            f"{len(labels) - len(others):,} of {len(labels):,} labels are numbers, but {labels[others[0]]!r} in row "
            f"{others[0] + 1} is none, so all are taken as classes: correct it, or give --task text-classification"
        )
    return lines


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(map(repr, labels[:5])) + (", ..." if len(labels) > 5 else "")
