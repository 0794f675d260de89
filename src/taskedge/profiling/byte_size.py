"""Sizes as people write them: 600MB, 1.5 GiB."""

from __future__ import annotations

import re

from taskedge.errors import InputError

UNITS = {"": 1, "B": 1} | {
    f"{letter}{kind}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for kind, base in (("B", 1000), ("iB", 1024), ("", 1000))
}


def parse_bytes(text: str) -> int:
    """``"600MB"``, ``"1.5 GiB"``, ``"2g"`` or a plain number of bytes.

    Raises:
        InputError: it is no size above 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", text)
    units = {name.lower(): size for name, size in UNITS.items()}
    size = round(float(found[1]) * units.get(found[2].lower(), 0)) if found else 0
    if not size:
        raise InputError(f"{text!r} is no size of memory: write 600MB, 1.5GB or 512MiB")
    return size


def show_bytes(size: float) -> str:
    """In MB, as ``parse_bytes`` reads it."""
    return f"{size / 1e6:,.0f} MB"
