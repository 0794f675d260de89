"""Parse the JSON of a message strictly: what two readers could understand in two ways is refused.

Python's parser accepts more than the standard: ``NaN`` and ``Infinity``, integers of any length, which no float holds,
numbers such as ``1e999``, which become infinite, an object with a key twice, of which the last one counts, and UTF-16
and UTF-32, which it guesses. A device could use each of these to make a check fail instead of the message.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

MAX_INTEGER = 2**63
"""Integers of this size and above are refused: they fit neither 64 bits nor a float."""
MAX_NESTING = 32
"""Most lists and objects inside one another. A message of this package has six."""
_MAX_DIGITS = 20


def parse_json(text: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: The text is no JSON by the standard or not in UTF-8, has a key twice, is nested too deeply, or has
            a number that is not finite or beyond 64 bits.
    """
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_int=_bounded_integer,
            parse_float=_finite_float,
            parse_constant=_no_constant,
        )
    except RecursionError:
        raise ValueError(f"more than {MAX_NESTING} lists and objects inside one another") from None
    _check_nesting(value)
    return value


def finite_json(value: Any) -> Any:
    """Return a JSON-able value with numbers that JSON does not have (NaN, infinities) replaced by None."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: finite_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(item) for item in value]
    return value


def _unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("an object has a key twice")
    return made


def _bounded_integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS or abs(value := int(digits)) >= MAX_INTEGER:
        raise ValueError(f"an integer of {len(digits)} digits")
    return value


def _finite_float(digits: str) -> float:
    value = float(digits)
    if abs(value) == float("inf"):
        raise ValueError("a number beyond the largest float")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name}, which JSON does not have")


def _check_nesting(value: Any) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_NESTING + 1):
        level = [
            item
            for parent in level
            if isinstance(parent, dict | list)
            for item in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"more than {MAX_NESTING} lists and objects inside one another")
