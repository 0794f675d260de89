"""Sizes of memory as text: 600MB, 1.5 GiB.

``pydantic.ByteSize`` is not used: it rounds down (0.03GiB is a byte less), accepts 0, reads 1.GB as
1 byte, and ignores text after the unit.
"""

from __future__ import annotations

import re

from taskedge.errors import InputError

UNITS = {"": 1, "B": 1} | {
    f"{letter}{kind}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for kind, base in (("B", 1000), ("iB", 1024), ("", 1000))
}


def parse_bytes(text: str) -> int:
    """Return the bytes of a size such as ``"600MB"``, ``"1.5 GiB"``, ``"2g"`` or a plain number.

    Raises:
        InputError: the text is not a size above 0.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", text)
    units = {name.lower(): size for name, size in UNITS.items()}
    size = round(float(match[1]) * units.get(match[2].lower(), 0)) if match else 0
    if not size:
        raise InputError(f"{text!r} is not a size of memory: write 600MB, 1.5GB or 512MiB")
    return size


def format_bytes(size: float) -> str:
    """Return a size in MB. :func:`parse_bytes` reads the result if it is below 1 GB."""
    return f"{size / 1e6:,.0f} MB"
