"""Bounds of the numbers in messages. A number of a device is used only after it was read through here.

No bound is a judgment of what is likely. Each is far outside what an honest device can send, and keeps sums, products
and files within what floats and JSON can hold.
"""

from __future__ import annotations

from typing import Any

MAX_SECONDS = 1e6
"""Longest training of one task [s]: eleven days."""
MAX_LOSS = 1e9
"""Largest magnitude of a mean loss."""
MAX_MEMORY_BYTES = 2.0**60
MAX_ROWS = 2**48
MAX_VERSION = 2**48
MIN_MEASURED, MAX_MEASURED = 1e-12, 1e21
"""Range of the positive numbers in a profile: seconds, bytes, FLOP/s."""
MAX_REASON_CHARACTERS = 300
"""Longest text of a device in an error or in the event log."""


def bounded_number(value: Any, low: float, high: float) -> float | None:
    """Return a JSON number as a float if it is between ``low`` and ``high``, else None. A bool is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if low <= value <= high else None  # also false for NaN; an integer of any size compares


def bounded_count(value: Any, low: int, high: int) -> int | None:
    """Return a JSON integer if it is between ``low`` and ``high``, else None. A bool is no integer."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if low <= value <= high else None


def is_finite_tree(value: Any, low: float, high: float) -> bool:
    """Return whether every number inside a JSON value is 0 or has a magnitude between ``low`` and ``high``."""
    if isinstance(value, dict):
        return all(is_finite_tree(item, low, high) for item in value.values())
    if isinstance(value, list | tuple):
        return all(is_finite_tree(item, low, high) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    return value == 0 or low <= abs(value) <= high


def short_text(value: Any, characters: int = 60) -> str:
    """Return a value of a message for an error text: its ``repr``, cut to a number of characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError) as error:  # an integer of more digits than Python prints, or deep nesting
        text = f"<{type(value).__name__}: {type(error).__name__}>"
    return text if len(text) <= characters else f"{text[: characters - 3]}..."


def short_reason(reason: object) -> str:
    """Return a reason that may quote a device, cut to ``MAX_REASON_CHARACTERS``.

    What a terminal would obey or cannot print (control characters, halves of surrogate pairs) is written as escapes.
    """
    text = str(reason)[: MAX_REASON_CHARACTERS + 1]
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= MAX_REASON_CHARACTERS else f"{text[: MAX_REASON_CHARACTERS - 3]}..."
