"""Rows that are held out of the training data: a seeded share of every class."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from taskedge.errors import InputError


class PartRows(list[dict[str, Any]]):
    """Some rows of a table.

    Args:
        rows: the rows.
        numbers: the number of each in its table, from 1, for messages.
    """

    def __init__(self, rows: Iterable[dict[str, Any]], numbers: Sequence[int]) -> None:
        super().__init__(rows)
        self.numbers = tuple(numbers)


def part_rows(rows: Sequence[dict[str, Any]], part: Sequence[int]) -> PartRows:
    """Return the encoded rows of some rows of a table, by their index there; a row of a table may have become several.

    Args:
        rows: the encoded rows. Rows that are not one for each row of the table state their numbers.
        part: indices of rows of the table.
    """
    numbers = getattr(rows, "numbers", None)
    if numbers is None:
        return PartRows((rows[index] for index in part), [index + 1 for index in part])
    wanted = {index + 1 for index in part}
    chosen = [place for place, number in enumerate(numbers) if number in wanted]
    return PartRows((rows[place] for place in chosen), [numbers[place] for place in chosen])


def parse_validation(value: str) -> float | Path:
    """Return the share that a setting names, such as ``10%`` or ``0.1``, or else the path of a file.

    Raises:
        InputError: a share is not between 0 and 1.
    """
    text = value.strip()
    number = text.removesuffix("%")
    try:
        share = float(number) / (100 if text.endswith("%") else 1)
    except ValueError:
        return Path(value)
    if not 0 < share < 1:
        raise InputError(f"{value!r} is not a share between 0 and 1: write 10% or 0.1, or name a file")
    return share


def split_rows(num_rows: int, share: float, seed: int, classes: Sequence[Hashable] | None) -> tuple[list[int], ...]:
    """Return the indices of the training rows and of the held-out rows, both ascending.

    Each class gives its share, rounded to the nearest number of rows; a class keeps at least one row for training, and
    gives at least one if it has two or more. The same seed and data give the same rows.

    Args:
        num_rows: rows of the table.
        share: of the rows to hold out.
        seed: of the order in which rows are taken.
        classes: the class of each row, to hold out the same share of every class; None for answers without classes.

    Raises:
        InputError: no row is left to train on, or none to hold out.
    """
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index in range(num_rows):
        groups[None if classes is None else classes[index]].append(index)
    draw = random.Random(seed)
    held_out: set[int] = set()
    for members in groups.values():
        count = min(max(math.floor(share * len(members) + 0.5), 1), len(members) - 1)
        held_out.update(draw.sample(members, count))
    if not held_out:
        raise InputError(f"--validation: {num_rows} rows leave none to hold out: name a file, or leave it out")
    return [index for index in range(num_rows) if index not in held_out], sorted(held_out)
